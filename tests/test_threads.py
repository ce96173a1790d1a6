"""Many tasks, many threads, two loops: the same results, and no thread too many."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.to_thread
import numpy as np
import pytest

import fastwhisper
from fastwhisper import Ready
from tests.helpers.gates import STAGES, Gate
from tests.helpers.interpreter import run_python
from tests.helpers.tiny_models import SPEAKING

if TYPE_CHECKING:
    from collections.abc import Callable

    Samples = np.ndarray[Any, np.dtype[np.float32]]

TASKS = 8
ROUNDS = 100
POSITIONS = 16
"""Encoder positions of a window of 0.32 s."""


LOADS = """
import os, sys, threading
import fastwhisper
from fastwhisper.engine import threads
from tests.helpers.waiting import wait_until

errors = []

def count():
    return len(os.listdir("/proc/self/task"))

def load():
    try:
        fastwhisper.load_model(sys.argv[1])
    except BaseException as error:
        errors.append(error)

load()
# Every reader has begun when all of them meet.
readers = threads._threads.lanes.count(threads.Lane.READ)
meeting = threading.Barrier(readers)
for job in [threads.submit(meeting.wait, threads.Lane.READ) for _ in range(readers)]:
    threads.wait_for(job)
before = count()
threads = [threading.Thread(target=load) for _ in range(200)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
wait_until(lambda: count() <= before)  # the kernel shows a thread for a moment after its end
print(errors)
"""


@pytest.fixture
def models(
    tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """Return two models that transcribe windows of 0.32 s: all else is as in 30 s, but cheap."""
    for module in ("mel", "window_decoder", "windows"):
        monkeypatch.setattr(f"fastwhisper.transcribing.{module}.WINDOW_FRAMES", 2 * POSITIONS)
    monkeypatch.setattr("fastwhisper.loading.stages._WINDOW_POSITIONS", POSITIONS)
    dimensions = replace(SPEAKING, n_audio_ctx=POSITIONS)
    first, second = (tiny_model_dir(dimensions=dimensions, seed=seed) for seed in (0, 1))
    return first, second


def noise(seed: int) -> Samples:
    """Return 0.2 s of noise."""
    return (np.random.default_rng(seed).standard_normal(3200) / 4).astype(np.float32)


async def heard(session: fastwhisper.Session, seed: int) -> str:
    """Transcribe the noise of a seed; by its text, as a log-probability may be NaN."""
    temperature = 0.0 if seed % 2 else 0.8
    options: Any = {"temperature": temperature, "sample_len": 1, "without_timestamps": True}
    return repr(await session.transcribe(noise(seed), language="en", seed=seed, **options))


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_hundred_rounds_of_eight_tasks_on_two_models(models: tuple[Path, Path]) -> None:
    """Every task of every round gets what it gets alone, whatever runs beside it."""
    async with fastwhisper.open(models[0]) as first, fastwhisper.open(models[1]) as second:
        sessions = (first, second)
        alone = [await heard(sessions[task % 2], task // 2) for task in range(TASKS)]
        assert len(set(alone)) == TASKS
        rounds: list[list[str]] = []

        async def one(results: list[str], task: int) -> None:
            results[task] = await heard(sessions[task % 2], task // 2)

        for _ in range(ROUNDS):
            rounds.append([""] * TASKS)
            async with anyio.create_task_group() as group:
                for task in range(TASKS):
                    group.start_soon(one, rounds[-1], task)
    assert rounds == [alone] * ROUNDS


@pytest.mark.slow
@pytest.mark.anyio
async def test_opening_while_others_transcribe(models: tuple[Path, Path]) -> None:
    """Sessions that come and go change nothing for one that is in use."""
    async with fastwhisper.open(models[0]) as session, fastwhisper.open(models[1]) as other:
        alone = await heard(session, 1)
        elsewhere = await heard(other, 1)
        results: list[str] = []

        async def come_and_go() -> None:
            for _ in range(5):
                async with fastwhisper.open(models[1]) as passing:
                    assert await heard(passing, 1) == elsewhere

        async def stay() -> None:
            for _ in range(20):
                results.append(await heard(session, 1))  # noqa: PERF401  one after the other

        async with anyio.create_task_group() as group:
            for job in (come_and_go, stay, come_and_go):
                group.start_soon(job)
    assert results == [alone] * 20


@pytest.mark.slow
def test_asyncio_in_a_thread_while_trio_runs_in_the_main_thread(
    models: tuple[Path, Path],
) -> None:
    """Two loops of both kinds use the engine at once, each its own session."""
    alone: dict[str, list[str]] = {}
    together: dict[str, list[str]] = {}
    meeting = threading.Barrier(2, timeout=60)

    async def use(name: str, model: Path, results: dict[str, list[str]], *, meet: bool) -> None:
        async with fastwhisper.open(model, background=True) as session:
            await session.wait_until_ready(None)
            if meet:
                await anyio.to_thread.run_sync(meeting.wait)
            results[name] = [await heard(session, seed) for seed in range(6)]

    def run(name: str, results: dict[str, list[str]], *, meet: bool) -> None:
        model = models[name == "trio"]
        anyio.run(partial(use, name, model, results, meet=meet), backend=name)

    for name in ("asyncio", "trio"):
        run(name, alone, meet=False)
    thread = threading.Thread(target=run, args=("asyncio", together), kwargs={"meet": True})
    thread.start()
    run("trio", together, meet=True)
    thread.join()
    assert together == alone


def test_blocking_loads_from_many_threads_give_the_same_model(models: tuple[Path, Path]) -> None:
    """`load_model` from eight threads at once gives each its own, equal module."""
    import mlx.core as mx  # noqa: PLC0415  after the engine has begun
    from mlx.utils import tree_flatten  # noqa: PLC0415

    found: list[Any] = [None] * TASKS

    def load(task: int) -> None:
        found[task] = fastwhisper.load_model(models[task % 2])

    threads = [threading.Thread(target=load, args=(task,)) for task in range(TASKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for task, module in enumerate(found[2:], start=2):
        pairs = zip(
            tree_flatten(module.parameters()),
            tree_flatten(found[task % 2].parameters()),
            strict=True,
        )
        assert all(name == same and bool(mx.array_equal(a, b)) for (name, a), (same, b) in pairs)
    assert len({id(module) for module in found}) == TASKS


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_two_hundred_loads_from_two_hundred_threads_leave_no_thread(
    tiny_model_dir: Callable[..., Path],
) -> None:
    """The operating system counts as many threads as after the first load."""
    assert run_python("-c", LOADS, tiny_model_dir()).stdout == "[]\n"


@pytest.mark.anyio
async def test_the_state_is_read_from_any_thread_and_never_goes_back(
    models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain thread that keeps looking sees loading, ready and closed, in this order."""
    gate = Gate(monkeypatch, STAGES["apply"])
    seen: list[str] = []
    looked = threading.Event()

    def look(session: fastwhisper.Session) -> None:
        while not seen or seen[-1] != "Closed":
            name = type(session.state).__name__
            if not seen or seen[-1] != name:
                seen.append(name)
            looked.set()

    async with (
        anyio.create_task_group() as group,
        fastwhisper.open(models[0], background=True) as session,
    ):
        group.start_soon(anyio.to_thread.run_sync, look, session)
        await gate.wait_until_reached()
        await anyio.to_thread.run_sync(looked.wait)
        gate.open.set()
        await session.wait_until_ready(None)
        # Twice: the first look may have begun before.
        for _ in range(2):
            looked.clear()
            await anyio.to_thread.run_sync(looked.wait)
    assert seen == ["Loading", "Ready", "Closed"]


@pytest.mark.trio
@pytest.mark.anyio
async def test_a_wait_on_another_loop_says_so(
    models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that could not be woken refuses to wait; once ready it needs no waking."""
    gate = Gate(monkeypatch, STAGES["read"])
    async with fastwhisper.open(models[0], background=True) as session:
        await gate.wait_until_reached()
        for backend in ("asyncio", "trio"):
            elsewhere = partial(anyio.run, session.wait_until_ready, None, backend=backend)
            with pytest.raises(RuntimeError, match="another event loop"):
                await anyio.to_thread.run_sync(elsewhere)
        gate.open.set()
        stats = await session.wait_until_ready(None)
        assert await anyio.to_thread.run_sync(elsewhere) == stats
        assert session.state == Ready(stats)
