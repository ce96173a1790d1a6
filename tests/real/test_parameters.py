"""The real tiny.en: the pure functions give mlx_whisper's parameters, in every layout."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
import pytest
from mlx_whisper import load_models

from fastwhisper.checkpoint.inspection import inspect_checkpoint
from fastwhisper.values import Dimensions
from tests.helpers.modules import assert_same_module, load_by_hand, name_parameters
from tests.helpers.tiny_models import huggingface_config, write_arrays

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fastwhisper.values import DtypeName


@pytest.mark.slow
def test_names_of_transformers_give_the_same_module(tiny_en_ct2: Path, tmp_path: Path) -> None:
    """Tiny.en under the names of transformers is tiny.en, with its alignment heads."""
    checkpoint = inspect_checkpoint(tiny_en_ct2)
    wanted = load_by_hand(tiny_en_ct2)
    arrays = {
        name: np.array(array)
        for name, array in name_parameters(wanted).items()
        if name != "alignment_heads"
    }
    write_arrays(
        tmp_path,
        arrays,
        huggingface_config(checkpoint.dimensions),
        layout="huggingface model.safetensors",
        dimensions=checkpoint.dimensions,
    )
    heads = {"alignment_heads": checkpoint.alignment_heads}
    (tmp_path / "generation_config.json").write_text(json.dumps(heads))
    assert inspect_checkpoint(tmp_path).layout == "huggingface"
    assert_same_module(load_by_hand(tmp_path), wanted)


def test_model_bin_has_the_dimensions_of_tiny_en(tiny_en_ct2: Path) -> None:
    """Dimensions come from shapes and scalars, alignment heads from the config."""
    found = inspect_checkpoint(tiny_en_ct2)
    assert found.dimensions == Dimensions(80, 1500, 384, 6, 4, 51864, 448, 384, 6, 4)
    assert found.alignment_heads is not None
    assert found.alignment_heads[:3] == ((1, 0), (2, 0), (2, 5))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
@pytest.mark.parametrize(
    ("precision", "embedding"),
    [("float16", True), ("int8", False), ("int8", True), ("int4", False), ("int4", True)],
)
def test_parameters_equal_those_of_mlx_whisper(
    precision: str,
    suffix: str,
    dtype: DtypeName,
    tiny_en_directory: Callable[..., Path],
    *,
    embedding: bool,
) -> None:
    """Names, dtypes, shapes and every value are the same, with the embedding quantized or not."""
    directory = tiny_en_directory(precision, f"weights.{suffix}", quantize_embedding=embedding)
    theirs = load_models.load_model(str(directory), getattr(mx, dtype))
    assert_same_module(load_by_hand(directory, dtype), theirs)
