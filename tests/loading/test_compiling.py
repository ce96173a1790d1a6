"""Kernels that a machine compiles for the first time: ready, closing and cancelling do not wait."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import numpy as np
import pytest

import fastwhisper
from fastwhisper import LoadOptions
from tests.helpers.tiny_models import SPEAKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio


@pytest.fixture
def model(tiny_model_dir: Callable[..., Path]) -> Path:
    """Return a one-layer model that can transcribe."""
    return tiny_model_dir(dimensions=SPEAKING)


class Compiler:
    """A step of the warm-up that looks for no stop, as MLX when it compiles.

    Attributes:
        begun: Set when it begins.
        end: Set to let it end.
        ended: Set when it has ended.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Event()
        self.end = threading.Event()
        self.ended = threading.Event()

        def compile_kernels(_: object) -> None:
            self.begun.set()
            self.end.wait()
            self.ended.set()

        for step in ("mel", "rules", "step", "convolution", "attention"):
            # A GPU needs more than the 0.2 s for these.
            monkeypatch.setattr(f"fastwhisper.loading.warm_up.WarmUp.warm_{step}", lambda _: None)
        monkeypatch.setattr("fastwhisper.loading.warm_up.WarmUp.warm_network", compile_kernels)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    """Return a step that compiles until the test ends. Ready waits for it 0.2 s."""
    import fastwhisper.loading.warm_up  # noqa: PLC0415  imports MLX, which a fixture may do

    monkeypatch.setattr(fastwhisper.loading.warm_up, "COMPILING_S", 0.2)
    compiler = Compiler(monkeypatch)
    yield compiler
    compiler.end.set()
    assert not compiler.begun.is_set() or compiler.ended.wait(10)


@pytest.mark.parametrize("options", [LoadOptions(), LoadOptions(background=True)])
async def test_ready_does_not_wait_for_kernels(
    model: Path, options: LoadOptions, compiler: Compiler
) -> None:
    """The statistics tell of them; a transcription waits for what it needs."""
    async with fastwhisper.open(model, options=options, warm_up=True) as session:
        stats = await session.wait_until_ready()
        assert compiler.begun.is_set()
        assert stats.kernels_pending == 1
        tone = np.sin(np.arange(16_000, dtype=np.float32))
        texts: list[str] = []

        async def transcribe() -> None:
            result = await session.transcribe(tone, language="en", temperature=0, sample_len=4)
            texts.append(result.text)

        async with anyio.create_task_group() as group:
            group.start_soon(transcribe)
            await anyio.wait_all_tasks_blocked()
            assert not texts
            compiler.end.set()
        assert texts


async def test_leaving_does_not_wait_for_kernels(model: Path, compiler: Compiler) -> None:
    """The block is left while a kernel is compiled, and the next session opens."""
    async with fastwhisper.open(model, warm_up=True):
        begin_s = time.perf_counter()
    assert time.perf_counter() - begin_s < 1
    assert not compiler.ended.is_set()
    async with fastwhisper.open(model, warm_up=False) as session:
        assert session.is_ready
        compiler.end.set()


async def test_cancelling_does_not_wait_for_kernels(
    model: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that is cancelled before ready ends within a second."""
    monkeypatch.setattr("fastwhisper.loading.warm_up.COMPILING_S", 60)
    async with fastwhisper.open(model, warm_up=True, background=True) as session:
        await anyio.to_thread.run_sync(compiler.begun.wait)
        assert not session.is_ready
        begin_s = time.perf_counter()
    assert time.perf_counter() - begin_s < 1
    assert not compiler.ended.is_set()


async def test_all_kernels_are_there_if_they_were_compiled_before(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nothing is pending."""
    with monkeypatch.context() as patch:
        patch.setattr("fastwhisper.loading.warm_up.COMPILING_S", 300)
        async with fastwhisper.open(model, warm_up=True):
            pass
    async with fastwhisper.open(model, warm_up=True) as session:
        assert (await session.wait_until_ready()).kernels_pending == 0


async def test_error_of_a_step_fails_the_load(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised bare, and the other steps end."""

    def fail(_: object) -> None:
        raise RuntimeError("[compile] no such kernel")

    monkeypatch.setattr("fastwhisper.loading.warm_up.WarmUp.warm_rules", fail)
    with pytest.raises(RuntimeError, match="no such kernel"):
        await fastwhisper.load(model, warm_up=True)
