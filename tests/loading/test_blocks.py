"""Loads into blocks of memory on a Linux CPU: with and without huge pages, files that are cut."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import pytest

import fastwhisper
from fastwhisper import InvalidModelFormatError
from fastwhisper.checkpoint.files import RegularFile
from tests.helpers.interpreter import run_python
from tests.helpers.tiny_models import SPEAKING

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        sys.platform != "linux" or mx.default_device() != mx.cpu, reason="not a Linux CPU"
    ),
]

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

LOAD = """
import ctypes, hashlib, json, sys
if sys.argv[2] == "off":
    PR_SET_THP_DISABLE = 41
    assert ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0
import anyio, fastwhisper
async def main():
    result = await fastwhisper.load(sys.argv[1], dtype="float32")
    from mlx.utils import tree_flatten
    digest = hashlib.sha256()
    for name, array in sorted(tree_flatten(result.model.parameters())):
        digest.update(name.encode() + bytes(memoryview(array)))
    stats = result.ready.state.stats
    print(json.dumps([digest.hexdigest(), stats.huge_page_bytes, stats.lanes, stats.bytes_mapped]))
anyio.run(main)
"""


RELEASE = """
import threading
import mlx.core as mx
from fastwhisper.engine import blocks, threads
from fastwhisper.engine.threads import Lane

def allocate():
    for _ in range(2000):
        blocks.allocate(4096)

mx.eval(mx.zeros(1))
jobs = [threads.submit(allocate, Lane.READ) for _ in range(2)]
while not all(job.finished.is_set() for job in jobs):
    threads.wait_for(threads.submit(lambda: threads._release(()), Lane.FILES))
"""

BESIDE = """
import sys, threading
import mlx.core as mx
import anyio, fastwhisper

def clear():
    while not stop:
        mx.eval([mx.ones(1000) for _ in range(20)])
        mx.clear_cache()

async def main():
    for _ in range(20):
        result = await fastwhisper.load(sys.argv[1])
    print(result.ready.state.stats.huge_page_bytes, result.ready.state.stats.lanes)

stop = False
host = threading.Thread(target=clear)
host.start()
anyio.run(main)
stop = True
host.join()
"""


@pytest.fixture
def model(tiny_model_dir: Callable[..., Path]) -> Path:
    """Return a model of 7 MB."""
    return tiny_model_dir(dimensions=SPEAKING)


def test_weights_are_the_same_without_huge_pages(model: Path) -> None:
    """A process that may not have huge pages reads the same, in small ones, and says so."""
    on, off = (
        json.loads(run_python("-c", LOAD, model, pages).stdout.splitlines()[-1])
        for pages in ("on", "off")
    )
    assert on[0] == off[0]
    assert off[1] == 0
    if HUGE_PAGES.exists() and "[never]" not in HUGE_PAGES.read_text():
        assert on[1] > 0
    for _, _, lanes, mapped_bytes in (on, off):
        assert lanes == 2
        assert mapped_bytes == 0


def test_a_release_beside_an_allocation_does_not_hang() -> None:
    """MLX's clear_cache waits for the allocation with the GIL held, and that needs the GIL."""
    run_python("-c", RELEASE)


def test_a_host_that_imported_mlx_may_clear_its_cache(model: Path) -> None:
    """Where the program had MLX first, nothing of a load waits for the GIL in MLX's threads."""
    assert run_python("-c", BESIDE, model).stdout.split() == ["0", "2"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_file_that_another_process_cuts_while_it_is_read(
    model: Path, dtype: Any, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an error, also when all bytes were read, and no array is kept."""
    weights = model / "weights.safetensors"
    real = RegularFile.read_into
    large_bytes = 1 << 20
    held_bytes = mx.get_active_memory()

    def read_into(self: RegularFile, buffer: memoryview, offset: int) -> None:
        # Not the header: the inspection reads it.
        if moment == "before" and len(buffer) > large_bytes // 2:
            cut()
        real(self, buffer, offset)
        if moment == "after" and len(buffer) > large_bytes // 2:
            cut()

    def cut() -> None:
        code = "import os, sys; os.truncate(sys.argv[1], 1 << 20)"
        subprocess.run([sys.executable, "-c", code, str(weights)], check=True)

    monkeypatch.setattr(RegularFile, "read_into", read_into)
    with pytest.raises(InvalidModelFormatError, match=r"changed while|ends before"):
        await fastwhisper.load(model, dtype=dtype)
    assert mx.get_active_memory() <= held_bytes + large_bytes
