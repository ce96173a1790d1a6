"""One quantization: quantize a network module by module, and write the checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from mlx.utils import tree_flatten
from safetensors.numpy import save

from fastwhisper.checkpoint.expected import expected_shapes
from fastwhisper.checkpoint.inspection import CONFIG
from fastwhisper.checkpoint.safetensors import pad_header
from fastwhisper.engine import threads
from fastwhisper.quantizing.calibrate import calibrate, round_layers
from fastwhisper.quantizing.recipe import choose_precision, describe_precision
from fastwhisper.quantizing.speech import read_calibration_windows
from fastwhisper.sources.atomic import open_new_directory
from fastwhisper.values import Progress, Quantization

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from fastwhisper.quantizing.calibrate import QuantizedLayer
    from fastwhisper.whisper.network import Whisper

__all__ = ["Quantizer"]

_WEIGHTS: Final = "weights.safetensors"
_LENGTH_BYTES: Final = 8
"""Bytes of a safetensors file that tell the length of its header."""


class Quantizer:
    """One quantization. Its steps run in the engine's compute thread.

    Attributes:
        model: The network, in float32. Calibration replaces its weights.
        precision: Bits and group size by module name.
    """

    def __init__(self, model: Whisper, quant: Quantization, size_ratio: float) -> None:
        """Choose the precision of each module.

        Raises:
            ValueError: No recipe makes a model as small as `size_ratio` of float16's bytes.
        """
        self.model = model
        self.precision = choose_precision(model.dims, quant, size_ratio=size_ratio)
        self._quant = quant
        self._arrays: dict[str, np.ndarray[Any, np.dtype[Any]]] = {}

    def steps(self) -> Generator[Progress]:
        """Quantize one module for each `next`, and say how far the work is.

        Raises:
            FloatingPointError: Calibration met a value that is not finite.
        """
        packed = {f"{module}.weight" for module in self.precision}
        for name, parameter in tree_flatten(self.model.parameters()):
            if name not in packed:
                array = np.array(parameter)
                is_float = np.issubdtype(array.dtype, np.floating)
                self._arrays[name] = array.astype(np.float16) if is_float else array
        shapes = expected_shapes(self.model.dims)
        sizes = {name: 2 * shapes[name][0] * shapes[name][1] for name in packed}
        done_bytes, total_bytes = 0, sum(sizes.values())
        yield Progress("convert", 0, total_bytes)
        for layer in self.quantize_layers():
            self._arrays[f"{layer.name}.weight"] = layer.packed.weight
            self._arrays[f"{layer.name}.scales"] = layer.packed.scales
            self._arrays[f"{layer.name}.biases"] = layer.packed.biases
            if layer.bias is not None:
                self._arrays[f"{layer.name}.bias"] = layer.bias.astype(np.float16)
            done_bytes += sizes[f"{layer.name}.weight"]
            yield Progress("convert", done_bytes, total_bytes)

    def quantize_layers(self) -> Iterator[QuantizedLayer]:
        """Quantize all modules that have a precision: int8 by rounding, int4 calibrated."""
        if self._quant is Quantization.INT8:
            return round_layers(self.model, self.precision, check=threads.check)
        windows = list(read_calibration_windows(self.model))
        return calibrate(self.model, windows, self.precision, check=threads.check)

    def write(self, directory: Path) -> None:
        """Write the checkpoint into a new directory, which appears only when it is complete."""
        config = {
            "model_type": "whisper",
            **asdict(self.model.dims),
            "quantization": describe_precision(self.precision),
        }
        directory.parent.mkdir(parents=True, exist_ok=True)
        with open_new_directory(directory) as unfinished:
            (unfinished / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
            _write_weights(unfinished / _WEIGHTS, self._arrays)
            threads.check()


def _write_weights(path: Path, arrays: dict[str, np.ndarray[Any, np.dtype[Any]]]) -> None:
    """Write a safetensors file that can be mapped. safetensors puts the widest tensors first."""
    # `save_file` would make a file that only its owner may read.
    with memoryview(save(arrays)) as data, path.open("wb") as file:
        start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
        file.write(pad_header(bytes(data[_LENGTH_BYTES:start])))
        file.write(data[start:])
