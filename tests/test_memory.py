"""What a load takes, and that nothing of it stays: memory, threads, tasks, descriptors."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import mlx.core as mx
import numpy as np
import pytest

import fastwhisper
from fastwhisper import LoadingFailedError
from fastwhisper.engine import threads
from fastwhisper.engine.threads import Lane
from fastwhisper.values import Dimensions
from tests.helpers.gates import STAGES, Gate, find_function
from tests.helpers.interpreter import run_python
from tests.helpers.sparse_models import write_zeros
from tests.helpers.tiny_models import SPEAKING
from tests.helpers.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEEP = Dimensions(
    n_mels=80,
    n_audio_ctx=1500,
    n_audio_state=512,
    n_audio_head=8,
    n_audio_layer=12,
    n_vocab=51864,
    n_text_ctx=448,
    n_text_state=512,
    n_text_head=8,
    n_text_layer=12,
)
"""A model of 232 MB in float16, whose largest tensor is 53 MB."""

FAILING = [
    pytest.param(stage, marks=[] if stage == "apply" else pytest.mark.slow)
    for stage in STAGES
    if stage not in {"locate", "inspect"}
]
"""The stages that run beside or after the reading of weights, and make arrays."""


@pytest.fixture
def model(tiny_model_dir: Callable[..., Path]) -> Path:
    """Return a one-layer model that can transcribe."""
    return tiny_model_dir(dimensions=SPEAKING)


@pytest.fixture
def without_collector(model: Path) -> Iterator[None]:
    """Switch the garbage collector off, so that memory is back only when nothing refers to it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def settled(model: Path) -> int:
    """Load once what is loaded once for the process, and count the bytes that MLX then holds."""
    async with fastwhisper.open(model, warm_up=True):
        pass
    gc.collect()
    return mx.get_active_memory()


def held(before: int) -> int:
    """Count the bytes that came since, but for single numbers that MLX keeps."""

    def count() -> int:
        more = mx.get_active_memory() - before
        return 0 if more < 64 else more

    if mx.default_device() != mx.cpu:  # a GPU gives back in its own time
        wait_until(lambda: count() == 0)
    return count()


def fail_after(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """Let a stage do its work and then fail, its results in the frame that raises."""
    _, name, real = find_function(target)

    def failing(*args: Any, **kwargs: Any) -> None:
        results = real(*args, **kwargs)
        raise ZeroDivisionError(f"after {name}: {type(results)}")

    monkeypatch.setattr(target, failing)


@pytest.mark.anyio
@pytest.mark.parametrize("stage", FAILING)
@pytest.mark.parametrize("background", [False, True])
async def test_nothing_of_a_failed_load_is_reachable(
    model: Path,
    stage: str,
    monkeypatch: pytest.MonkeyPatch,
    without_collector: None,
    *,
    background: bool,
) -> None:
    """At once, with the error still at hand and the session still open, the weights are gone."""
    before = await settled(model)
    fail_after(monkeypatch, STAGES[stage])
    if background:
        async with fastwhisper.open(model, background=True, warm_up=True) as session:
            with pytest.raises(LoadingFailedError) as caught:
                await session.wait_until_ready(None)
            error = caught.value.__cause__
            assert held(before) == 0
    else:
        with pytest.raises(ZeroDivisionError) as caught_bare:
            async with fastwhisper.open(model, warm_up=True):
                pytest.fail("the block must not begin")
        error = caught_bare.value
    assert isinstance(error, ZeroDivisionError)
    assert held(before) == 0


@pytest.mark.anyio
@pytest.mark.parametrize("stage", FAILING)
async def test_nothing_of_a_cancelled_load_is_reachable(
    model: Path, stage: str, monkeypatch: pytest.MonkeyPatch, without_collector: None
) -> None:
    """Leaving in the middle of a load gives its memory back without the garbage collector."""
    before = await settled(model)
    gate = Gate(monkeypatch, STAGES[stage])
    async with fastwhisper.open(model, background=True, warm_up=True):
        await gate.wait_until_reached()
    assert held(before) == 0


@pytest.mark.anyio
async def test_nothing_of_a_session_is_reachable(model: Path, without_collector: None) -> None:
    """After a transcription and the end of the block module and memory are gone at once."""
    before = await settled(model)
    async with fastwhisper.open(model) as session:
        weights = weakref.ref(session.result.model)
        await session.transcribe(np.zeros(1600, np.float32), temperature=0, sample_len=1)
    assert weights() is None
    assert held(before) == 0


@pytest.mark.anyio
async def test_weights_are_given_back_beside_the_event_loop(
    model: Path, without_collector: None
) -> None:
    """The last reference to a module falls in one of the engine's threads, as it may take 0.1 s."""
    threads: list[str] = []
    async with fastwhisper.open(model) as session:
        weakref.finalize(
            session.result.model, lambda: threads.append(threading.current_thread().name)
        )
        await session.transcribe(np.zeros(1600, np.float32), temperature=0, sample_len=1)
    assert [name.startswith("fastwhisper-") for name in threads] == [True]


@pytest.mark.anyio
async def test_leaving_does_not_wait_for_another_sessions_window(model: Path) -> None:
    """A session is left while another's job has the compute lane."""
    window = threading.Event()
    async with fastwhisper.open(model):
        job = threads.submit(window.wait, Lane.COMPUTE)
    assert not job.finished.is_set()
    window.set()
    await anyio.to_thread.run_sync(job.finished.wait)


def test_nothing_of_a_failed_load_model_is_reachable(
    model: Path, monkeypatch: pytest.MonkeyPatch, without_collector: None
) -> None:
    """Also of a blocking load, with its error still at hand."""
    fastwhisper.load_model(model)
    gc.collect()
    before = mx.get_active_memory()
    stages = [STAGES[stage] for stage in ("read", "confirm", "apply")]
    for stage in (*stages, "fastwhisper.compat._import_network", "fastwhisper.compat._build"):
        with monkeypatch.context() as patched:
            fail_after(patched, stage)
            with pytest.raises(ZeroDivisionError) as caught:
                fastwhisper.load_model(model)
            assert (held(before), caught.type) == (0, ZeroDivisionError)


# Numbers go to stdout as JSON: bytes of RSS, threads, tasks and descriptors after each cycle.
CYCLES = """
import gc, json, os, sys
import anyio
import numpy as np
import fastwhisper

directory, backend = sys.argv[1:]
found = []

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

async def main():
    for cycle in range(60):
        async with fastwhisper.open(directory, background=bool(cycle % 2)) as session:
            await session.wait_until_ready(None)
            if cycle % 5 == 0:
                await session.transcribe(np.zeros(1600, np.float32), temperature=0, sample_len=1)
        found.append([
            resident(), len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")),
            len(anyio.get_running_tasks()) if backend == "asyncio" else 0,
        ])

anyio.run(main, backend=backend)
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts in /proc")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_fifty_cycles_leave_nothing_behind(
    tiny_model_dir: Callable[..., Path], backend: str
) -> None:
    """After ten cycles fifty more add no 10 % to RSS, and no thread, task or descriptor."""
    # Left to itself, glibc keeps up to 40 MB of freed memory for each thread, now more and now
    # less: with a fixed threshold RSS is what is in use.
    malloc = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    done = run_python("-c", CYCLES, tiny_model_dir(dimensions=SPEAKING), backend, env=malloc)
    begin, end = (json.loads(done.stdout)[cycle] for cycle in (9, 59))
    assert end[0] < 1.1 * begin[0]
    assert end[1:] == begin[1:]


PEAK = """
import json, sys
import anyio
import fastwhisper

async def main():
    result = await fastwhisper.load(sys.argv[1], dtype=sys.argv[2], warm_up=False)
    import mlx.core as mx
    from mlx.utils import tree_flatten
    weights = sum(array.nbytes for _, array in tree_flatten(result.model.parameters()))
    print(json.dumps([weights, mx.get_peak_memory(), result.ready.state.stats.peak_bytes]))

anyio.run(main)
"""


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return `DEEP`, of zeros: as a sparse file it takes neither time nor disk."""
    return write_zeros(tmp_path_factory.mktemp("deep"), DEEP)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_load_peaks_at_its_weights(deep: Path, dtype: str) -> None:
    """While loading MLX never holds 15 % more than the weights at the compute dtype."""
    weights, peak, reported = json.loads(run_python("-c", PEAK, deep, dtype).stdout)
    assert weights > 200e6
    assert weights <= peak < 1.15 * weights
    assert 0 < reported <= peak
