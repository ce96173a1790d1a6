"""Every cell of the repository table, at its real size and in its repository's format."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Final

import pytest

import fastwhisper
from bench.models import DIMENSIONS, tensors
from fastwhisper.loading import stages
from fastwhisper.sources import find
from fastwhisper.values import LoadOptions, Quantization, WhisperModel
from tests.helpers.sparse_models import write_sparse_npz, write_sparse_safetensors
from tests.helpers.tiny_models import SPEAKING, write_model

if TYPE_CHECKING:
    from pathlib import Path

    from fastwhisper.values import Dimensions

pytestmark = pytest.mark.slow

COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"
BITS: Final = {"float16": None, "int8": 8, "int4": 4}
# Gigabytes of parameters at float16, as the model cards have them (39 M, 74 M, 244 M, …).
SIZES_GB: Final = {
    "tiny": 0.075, "base": 0.144, "small": 0.483, "medium": 1.53,
    "large-v3-turbo": 1.61, "large-v3": 3.09,
}  # fmt: skip


def cells() -> list[tuple[str, str]]:
    """Name all 30 cells."""
    return [(str(model), str(quant)) for model in WhisperModel for quant in Quantization]


def dimensions_of(model: str) -> Dimensions:
    """Return the real dimensions; an English-only model lacks one token."""
    dims = DIMENSIONS[model.removesuffix(".en")]
    return replace(dims, n_vocab=51864) if model.endswith(".en") else dims


def place(cache: Path, repo: str) -> Path:
    """Make the folder of a snapshot in the Hugging Face cache."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


def write_sparse(snapshot: Path, model: str, quant: str) -> None:
    """Write a repository of the real size whose weights are a hole: all zeros, no disk."""
    dims, bits = dimensions_of(model), BITS[quant]
    old = model != "large-v3-turbo"
    config: dict[str, object] = asdict(dims)
    if bits:
        config["quantization"] = {"group_size": 64, "bits": bits}
    (snapshot / "config.json").write_text(json.dumps(config))
    listed = list(tensors(dims, bits, quantize_embedding=not old))
    if old:
        write_sparse_npz(snapshot / "weights.npz", listed)
    else:
        name = "weights.safetensors" if bits is None else "model.safetensors"
        write_sparse_safetensors(snapshot / name, listed)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty Hugging Face cache."""
    from huggingface_hub import constants  # noqa: PLC0415

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize(("model", "quant"), cells())
def test_a_cached_cell_is_found_with_its_precision(hub_cache: Path, model: str, quant: str) -> None:
    """Each cell of the table, at its real size, is found in the cache and told apart."""
    repo = fastwhisper.resolve_repo(model, quant)
    write_sparse(place(hub_cache, repo), model, quant)
    location = find.find_local(model, LoadOptions(quant=Quantization(quant), offline=True))
    assert location is not None
    assert (location.source, location.revision) == (repo, COMMIT)
    checkpoint = stages.inspect(location.path)
    assert checkpoint.actual == quant
    assert checkpoint.layout == ("npz" if model != "large-v3-turbo" else "safetensors")
    if quant == "float16":
        assert checkpoint.total_bytes / 1e9 == pytest.approx(
            SIZES_GB[model.removesuffix(".en")], rel=0.03
        )


@pytest.mark.anyio
@pytest.mark.parametrize("layout", ["weights.npz", "weights.safetensors", "model.safetensors"])
@pytest.mark.parametrize("quant", list(Quantization))
async def test_a_cached_cell_opens(hub_cache: Path, quant: Quantization, layout: str) -> None:
    """A repository in each of the table's formats opens by its name, offline."""
    repo = fastwhisper.resolve_repo("tiny", quant)
    write_model(
        place(hub_cache, repo),
        layout=layout,  # type: ignore[arg-type]  # one of its names
        dimensions=SPEAKING,
        precision=quant,
        quantize_embedding=False,
    )
    async with fastwhisper.open("tiny", quant=quant, offline=True) as session:
        result = session.result
        assert (result.source, result.revision) == (repo, COMMIT)
        assert result.requested == result.actual == quant
        assert not result.did_fallback
