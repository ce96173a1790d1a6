"""The same weights for every contestant of `bench.text`, each in the layout that it opens."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import mlx.core as mx
import numpy as np

import fastwhisper
from bench.models import DIMENSIONS, model_directory
from fastwhisper.sources import find
from fastwhisper.values import LoadOptions
from fastwhisper.whisper.network import compute_sinusoids
from tests.helpers.tiny_models import huggingface_arrays, huggingface_config

if TYPE_CHECKING:
    from fastwhisper.checkpoint.plan import Checkpoint

__all__ = ["Weights"]

# Of English-only models. Source: OpenAI's tokenizer.py; they follow the words in this order.
_END, _START, _NO_TIMESTAMPS = 50256, 50257, 50362


class Weights:
    """One model in the layouts of all contestants. Copies are written when they are asked for.

    Attributes:
        model: What was asked for.
        opened: What `fastwhisper.open` is given: a name, or a directory.
        directory: The directory of the model.
        checkpoint: Its plan.
    """

    def __init__(self, model: str, scratch: Path, root: Path | None = None) -> None:
        """Find a model on this machine.

        Args:
            model: A name of the table, a directory, or NAME:PRECISION for random weights.
            scratch: Where copies are written.
            root: Where random weights are kept; None is the user's cache.

        Raises:
            FileNotFoundError: The model is not on this machine.
        """
        name, _, quant = model.partition(":")
        if name in DIMENSIONS and quant:
            self.directory = model_directory(name, quant, root).absolute()
            self.opened = str(self.directory)
        else:
            found = find.find_local(model, LoadOptions.DEFAULT)
            if found is None:
                raise FileNotFoundError(f"{model} is not on this machine; tiny.en is in extra tiny")
            self.directory = found.path.absolute()
            self.opened = str(self.directory) if Path(model).is_dir() else model
        self.model = model
        self.checkpoint: Checkpoint = fastwhisper.inspect_checkpoint(self.directory)
        self._scratch = scratch / (model.replace(":", "-") if quant else self.directory.name)

    def for_contestant(self, name: str) -> str | None:
        """Return what a contestant opens; None if it can't open this model."""
        match name:
            case "mlx_whisper":
                return str(self.in_mlx_layout())
            case "faster-whisper":
                return str(self.directory) if (self.directory / "model.bin").exists() else None
            case "transformers":
                found = self._for_transformers()
                return str(found) if found else None
            case _:
                return self.opened

    def in_mlx_layout(self) -> Path:
        """Return a directory that mlx_whisper opens.

        mlx_whisper computes in the dtype of the file: on a CPU that must be float32.
        """
        whole = bool(self.checkpoint.precision) or mx.default_device().type == mx.gpu
        if whole and (self.directory / "weights.safetensors").exists():
            return self.directory
        out = self._scratch / "mlx"
        if not out.exists():
            out.mkdir(parents=True)
            dtype = mx.float16 if whole else mx.float32
            arrays = {name: array.astype(dtype) for name, array in self._read().items()}
            mx.save_safetensors(str(out / "weights.safetensors"), arrays)
            config = json.dumps(asdict(self.checkpoint.dimensions))
            (out / "config.json").write_text(config, encoding="utf-8")
        return out

    def _for_transformers(self) -> Path | None:
        tokenizer = self.directory / "tokenizer.json"
        settings = json.loads((self.directory / "config.json").read_text(encoding="utf-8"))
        if (self.directory / "model.safetensors").exists() and tokenizer.exists():
            return self.directory
        dimensions = self.checkpoint.dimensions
        if not tokenizer.exists() or dimensions.n_vocab > _MOST_ENGLISH:
            return None
        out = self._scratch / "transformers"
        if out.exists():
            return out
        out.mkdir(parents=True)
        named = {name: np.asarray(array) for name, array in self._read().items()}
        arrays = huggingface_arrays(named, dimensions)
        positions = compute_sinusoids(dimensions.n_audio_ctx, dimensions.n_audio_state)
        arrays["model.encoder.embed_positions.weight"] = np.asarray(positions)
        mx.save_safetensors(
            str(out / "model.safetensors"), {name: mx.array(a) for name, a in arrays.items()}
        )
        tokens = {
            "decoder_start_token_id": _START,
            **{f"{kind}_token_id": _END for kind in ("bos", "eos", "pad")},
        }
        generation: dict[str, Any] = tokens | {
            "begin_suppress_tokens": settings["suppress_ids_begin"],
            "suppress_tokens": settings["suppress_ids"],
            "is_multilingual": False,
            "max_initial_timestamp_index": 50,
            "max_length": dimensions.n_text_ctx,
            "no_timestamps_token_id": _NO_TIMESTAMPS,
        }
        config = huggingface_config(dimensions, **tokens)
        (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (out / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
        shutil.copy(tokenizer, out)
        return out

    def _read(self) -> dict[str, mx.array]:
        arrays: dict[str, mx.array] = {}
        for group in fastwhisper.read_shards(self.checkpoint):
            arrays.update(group)
        return arrays


_MOST_ENGLISH: Final = 51864
"""Tokens of an English-only model."""
