"""In-process figures: load() with warm imports against mx.load and mx.eval of the same file.

usage: pytest bench/test_load.py --benchmark-json FILE    (with the dependency group `bench`)
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import anyio
import mlx.core as mx
import pytest

import fastwhisper
from bench.models import DIMENSIONS, PRECISIONS, model_directory

if TYPE_CHECKING:
    from collections.abc import Callable

CASES = [(model, quant) for model in DIMENSIONS for quant in PRECISIONS if model != "large-v3"]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def directory(request: pytest.FixtureRequest) -> str:
    """Give a synthetic model of real size; loaded once, so that imports and pages are warm."""
    made = str(model_directory(*request.param))
    anyio.run(_load, made)
    return made


async def _load(directory: str) -> None:
    await fastwhisper.load(directory, dtype="float16")


def _read(directory: str) -> None:
    mx.eval(mx.load(f"{directory}/weights.safetensors"))


@pytest.mark.parametrize("way", ["load", "floor"])
def test_in_process(benchmark: Any, directory: str, way: str) -> None:
    """Time one load, on a loop that runs already, or one read of the bare file."""
    step: Callable[[], None]
    if way == "floor":
        benchmark.pedantic(_read, args=(directory,), setup=_clean, rounds=7, warmup_rounds=1)
        return
    with anyio.from_thread.start_blocking_portal() as portal:

        def step() -> None:
            portal.call(_load, directory)

        benchmark.pedantic(step, setup=_clean, rounds=7, warmup_rounds=1)


def _clean() -> None:
    gc.collect()
    mx.clear_cache()
