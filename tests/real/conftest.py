"""The real tiny.en in the layouts its repositories have, and one real sentence."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import mlx.core as mx
import pytest
from mlx import nn

import fastwhisper
from tests.helpers.audio import SAMPLE
from tests.helpers.modules import name_parameters

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="session")
def sample() -> Path:
    """Return the recording of one English sentence."""
    return SAMPLE


@pytest.fixture(scope="session")
def tiny_en_directory(
    tiny_en_ct2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Return a function that writes the real tiny.en in MLX's layout, once for each call's values.

    Its arguments are a precision, the name of the weights file, and whether the embedding is
    quantized too, as in some of the table's repositories and not in others.
    """
    made: dict[tuple[str, str, bool], Path] = {}

    def make(precision: str, file: str, *, quantize_embedding: bool = True) -> Path:
        key = (precision, file, quantize_embedding)
        if key not in made:
            directory = tmp_path_factory.mktemp("tiny.en")
            kinds = (nn.Linear, nn.Embedding) if quantize_embedding else (nn.Linear,)
            made[key] = _convert(tiny_en_ct2, directory / file, precision, kinds)
        return made[key]

    return make


def _convert(
    source: Path, weights: Path, precision: str, kinds: tuple[type[nn.Module], ...]
) -> Path:
    """Convert as mlx-examples' `convert.py` does for the repositories of the table."""
    module = fastwhisper.load_model(source)
    config: dict[str, object] = {
        "model_type": "whisper",
        **asdict(fastwhisper.inspect_checkpoint(source).dimensions),
    }
    if precision != "float16":
        bits = {"int8": 8, "int4": 4}[precision]
        config["quantization"] = {"group_size": 64, "bits": bits}
        nn.quantize(
            module,
            group_size=64,
            bits=bits,
            class_predicate=lambda _, part: isinstance(part, kinds),
        )
    params = name_parameters(module)
    if weights.suffix == ".npz":
        mx.savez(str(weights), **params)
    else:
        mx.save_safetensors(str(weights), params)
    (weights.parent / "config.json").write_text(json.dumps(config))
    return weights.parent
