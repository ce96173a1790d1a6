"""The real tiny.en in the layouts its repositories have, and one real sentence."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import pytest
from mlx import nn
from mlx.utils import tree_flatten

import fastwhisper

if TYPE_CHECKING:
    from collections.abc import Callable

SENTENCE = (
    "Good morning. Today we will talk about the weather. "
    "It is going to rain in the north and the sun will shine in the south."
)


@pytest.fixture(scope="session")
def sample() -> Path:
    """Give the recording of `SENTENCE`."""
    return Path(__file__).parent.parent / "data" / "sample.ogg"


@pytest.fixture(scope="session")
def tiny_en_directory(
    tiny_en_ct2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """Give a function that writes the real tiny.en as (precision, weights file)."""
    made: dict[tuple[str, str], Path] = {}

    def make(precision: str, file: str) -> Path:
        key = (precision, file)
        if key not in made:
            made[key] = _convert(tiny_en_ct2, tmp_path_factory.mktemp("tiny.en"), *key)
        return made[key]

    return make


def _convert(source: Path, directory: Path, precision: str, file: str) -> Path:
    """Convert as mlx-examples' `convert.py` does for the repositories of the table."""
    module = fastwhisper.load_model(source)
    config: dict[str, object] = asdict(fastwhisper.inspect_checkpoint(source).dimensions)
    if precision != "float16":
        bits = {"int8": 8, "int4": 4}[precision]
        config["quantization"] = {"group_size": 64, "bits": bits}
        nn.quantize(
            module,
            group_size=64,
            bits=bits,
            class_predicate=lambda _, part: isinstance(part, (nn.Linear, nn.Embedding)),
        )
    weights = dict(tree_flatten(module.parameters()))
    if file.endswith(".npz"):
        mx.savez(str(directory / file), **weights)
    else:
        mx.save_safetensors(str(directory / file), weights)
    (directory / "config.json").write_text(json.dumps(config))
    return directory
