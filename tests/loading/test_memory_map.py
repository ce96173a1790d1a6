"""`memory_map=True`: what is mapped and what is read. Where there is no Metal, pages are copied."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

import mlx.core as mx
import pytest

import fastwhisper
from fastwhisper import BackendMissingError, LoadOptions, Progress, Ready
from fastwhisper.engine import backend
from fastwhisper.sources import find
from tests.helpers.modules import assert_same_module
from tests.helpers.pages import align_weights, pretend_metal
from tests.helpers.tiny_models import SPEAKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fastwhisper import LoadResult, LoadStats
    from fastwhisper.values import DtypeName

pytestmark = pytest.mark.anyio


def read_stats(result: LoadResult) -> LoadStats:
    """Return the numbers of a load that is ready."""
    assert isinstance(result.ready.state, Ready)
    return result.ready.state.stats


@pytest.mark.parametrize(
    ("precision", "dtype", "shift"),
    [
        ("float16", "float16", 0),
        ("float16", "float32", 0),
        ("float16", "float16", 1),
        ("int8", "float16", 0),
        ("int8", "float32", 0),
        ("int4", "float16", 2),
    ],
)
async def test_mapped_model_is_the_one_that_is_read(
    tiny_model_dir: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    dtype: DtypeName,
    shift: int,
) -> None:
    """Each tensor is equal, whether it was mapped or read; the numbers say which."""
    directory = tiny_model_dir(dimensions=SPEAKING, precision=precision)
    align_weights(directory, shift=shift)
    read = await fastwhisper.load(directory, dtype=dtype, warm_up=False)
    pretend_metal(monkeypatch)
    mapped = await fastwhisper.load(directory, dtype=dtype, warm_up=False, memory_map=True)
    assert_same_module(mapped.model, read.model)
    widths = {"uint32": 4} | ({"float16": 2} if dtype == "float16" else {})
    expected = sum(
        plan.size_bytes
        for plan in fastwhisper.inspect_checkpoint(directory).tensors
        if plan.dtype in widths and not shift % widths[plan.dtype]
    )
    assert read_stats(mapped).bytes_mapped == expected
    assert read_stats(read).bytes_mapped == 0
    assert read_stats(mapped).bytes_read + expected == read_stats(read).bytes_read
    assert read_stats(mapped).tensors == read_stats(read).tensors


async def test_progress_counts_mapped_bytes(
    tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage "read" ends at its total."""
    directory = align_weights(tiny_model_dir(dimensions=SPEAKING))
    pretend_metal(monkeypatch)
    seen: list[Progress] = []
    options = LoadOptions(dtype="float16", warm_up=False, memory_map=True)
    await fastwhisper.load(directory, options=options, on_progress=seen.append)
    read = [each for each in seen if each.stage == "read"]
    assert read[-1].done_bytes == read[-1].total_bytes


async def test_mapped_session_transcribes(
    tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what a session says that reads its weights."""
    directory = align_weights(tiny_model_dir(dimensions=SPEAKING, dtype="float32"))
    audio = mx.sin(mx.arange(16_000) / 20)
    mx.eval(audio)
    async with fastwhisper.open(directory, dtype="float32") as session:
        read = await session.transcribe(audio, temperature=0.0, sample_len=8)
    pretend_metal(monkeypatch)
    async with fastwhisper.open(directory, dtype="float32", memory_map=True) as session:
        assert (await session.wait_until_ready()).bytes_mapped > 0
        assert await session.transcribe(audio, temperature=0.0, sample_len=8) == read


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac maps")
@pytest.mark.parametrize("background", [False, True])
async def test_elsewhere_it_is_refused_before_anything_is_found(
    background: Literal[True, False], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is downloaded; in the background too, entering the block raises."""
    monkeypatch.setattr(find, "find_local", None)
    monkeypatch.setattr(find, "fetch", None)
    with pytest.raises(BackendMissingError, match=r"can't be mapped on .*memory_map=True"):
        async with fastwhisper.open("tiny", memory_map=True, background=background):
            pass
    with pytest.raises(BackendMissingError, match=r"can't be mapped on .*memory_map=True"):
        await fastwhisper.load("tiny", options=LoadOptions(memory_map=True))


@pytest.mark.skipif(mx.metal.is_available(), reason="needs a device that is not Metal")
async def test_other_device_of_a_mac_is_refused(
    tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may have told MLX to compute on the CPU."""
    monkeypatch.setattr(backend, "may_map", lambda: True)
    with pytest.raises(BackendMissingError, match="MLX computes on"):
        await fastwhisper.load(tiny_model_dir(dimensions=SPEAKING), memory_map=True)
