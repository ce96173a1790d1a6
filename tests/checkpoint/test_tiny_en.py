"""The real tiny.en: our way of loading equals mlx_whisper's, array for array."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

import fastwhisper
from fastwhisper.checkpoint.inspection import inspect_checkpoint
from fastwhisper.checkpoint.read import read_shards
from fastwhisper.values import Dimensions
from fastwhisper.whisper.params import apply_params, build_module
from tests.helpers.tiny_models import huggingface_config, write_arrays

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fastwhisper.values import DtypeName
    from fastwhisper.whisper.network import Whisper


def load(directory: Path, dtype: DtypeName) -> Whisper:
    """Load through the core alone."""
    checkpoint = inspect_checkpoint(directory)
    module = build_module(checkpoint, dtype=dtype)
    params = {k: v for group in read_shards(checkpoint) for k, v in group.items()}
    apply_params(module, params)
    return module


def flat(module: nn.Module) -> dict[str, mx.array]:
    """Give the parameters by name, hidden arrays too."""
    return dict(tree_flatten(module.parameters())) | {
        "_positional_embedding": module.encoder._positional_embedding,
        "_mask": module.decoder._mask,
    }


@pytest.fixture(scope="module")
def mlx_dirs(tiny_en_ct2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write tiny.en as MLX directories: both layouts, three precisions, two ways."""
    made = {}
    dimensions = asdict(inspect_checkpoint(tiny_en_ct2).dimensions)
    for bits in (None, 8, 4):
        for embedding in (False, True) if bits else (False,):
            module = fastwhisper.load_model(tiny_en_ct2)
            config: dict[str, object] = {"model_type": "whisper", **dimensions}
            if bits:
                kinds = (nn.Linear, nn.Embedding) if embedding else (nn.Linear,)
                nn.quantize(module, 64, bits, class_predicate=_is_one_of(kinds))
                config["quantization"] = {"group_size": 64, "bits": bits}
            params = dict(tree_flatten(module.parameters()))
            for suffix in ("safetensors", "npz"):
                name = f"{bits}{'e' if embedding else ''}-{suffix}"
                directory = tmp_path_factory.mktemp(name)
                (directory / "config.json").write_text(json.dumps(config))
                path = str(directory / f"weights.{suffix}")
                if suffix == "npz":
                    mx.savez(path, **params)
                else:
                    mx.save_safetensors(path, params)
                made[name] = directory
    return made


def test_names_of_transformers_give_the_same_module(tiny_en_ct2: Path, tmp_path: Path) -> None:
    """Tiny.en as transformers stores it is tiny.en, array for array, alignment heads too."""
    checkpoint = inspect_checkpoint(tiny_en_ct2)
    wanted = flat(load(tiny_en_ct2, "float16"))
    arrays = {
        name: np.array(array)
        for name, array in wanted.items()
        if not name.startswith(("_", "alignment"))
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
    found = flat(load(tmp_path, "float16"))
    assert found.keys() == wanted.keys()
    assert all(mx.array_equal(found[name], array).item() for name, array in wanted.items())


def _is_one_of(kinds: tuple[type[nn.Module], ...]) -> Callable[[str, nn.Module], bool]:
    return lambda _, part: isinstance(part, kinds)


def test_model_bin_has_the_dimensions_of_tiny_en(tiny_en_ct2: Path) -> None:
    """Read from shapes and scalars; the heads from the config."""
    found = inspect_checkpoint(tiny_en_ct2)
    assert found.dimensions == Dimensions(80, 1500, 384, 6, 4, 51864, 448, 384, 6, 4)
    assert found.alignment_heads is not None
    assert found.alignment_heads[:3] == ((1, 0), (2, 0), (2, 5))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
@pytest.mark.parametrize("bits", ["None", "8", "8e", "4", "4e"])
def test_parameters_equal_those_of_mlx_whisper(
    bits: str, suffix: str, dtype: DtypeName, mlx_dirs: dict[str, Path]
) -> None:
    """Names, dtypes, shapes and every value."""
    load_models = pytest.importorskip("mlx_whisper.load_models")
    directory = mlx_dirs[f"{bits}-{suffix}"]
    ours = flat(load(directory, dtype))
    theirs = flat(load_models.load_model(str(directory), getattr(mx, dtype)))
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (array.dtype, array.shape)
        assert mx.array_equal(ours[name], array).item(), name
