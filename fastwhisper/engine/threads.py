"""The engine: the fixed threads in which all MLX work of the process runs.

Why. MLX keeps its streams per thread. An array that is not evaluated can only be used in the
thread that made it, and each thread that evaluates once keeps an operating system thread until
the process ends. So the threads are few, live as long as the process, and only evaluated arrays
leave them.

Theory of operation.

- A *lane* is a queue with its threads. FILES (2 threads) evaluates no array, READ (twice
  `READERS`) reads and builds, COMPUTE (1) transcribes: one job at a time. All threads start
  together when the first job is submitted. With CUDA they import MLX when a job needs it, else at
  once.
- A *job* is a function that is queued. It is claimed once: by its thread, which runs it, or by
  its caller, who abandons it before it begins. Only a claimed job runs, so an abandoned one never
  runs later.
- Any thread may call `submit`, `run_blocking`, `wait_for`, `stop` and `check`. `run`, `enqueue`,
  `run_abandonable` and `release` belong to an event loop, asyncio's or trio's. A finished job
  wakes its loop with the loop's own thread-safe call, which never blocks the engine's thread.
- Cancelling is cooperative: the caller sets `job.stop`, and the job raises `Stopped` at its next
  `check`. Jobs check between groups, tokens and blocks, so within 200 ms.
- Nothing can hang: no job waits for another job of its lane (`run_blocking` inside a job calls
  the function in place); a lane never waits for an event loop; a caller that waits is woken by
  `finished`, which is set in every case.
- When the interpreter exits, `_leave` stops all jobs and parks the threads: MLX aborts the
  process if one of them ran on, or ended. After a fork the child has no threads, so `submit`
  raises there.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import sys
import threading
import time
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
import anyio.lowlevel

from fastwhisper.engine import INTERRUPTED, allocating, backend, blas, tasks
from fastwhisper.engine.jobs import Job, check, is_in_job, wait_until
from fastwhisper.errors import LoadingFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "READERS",
    "Lane",
    "check",
    "enqueue",
    "import_ahead",
    "release",
    "run",
    "run_abandonable",
    "run_blocking",
    "stop",
    "submit",
    "wait_for",
]

READERS: Final = max(2, min(4, (os.cpu_count() or 1) // 2))
"""Shares of a checkpoint that are read side by side.

Measured: four read as fast as eight on an H200 with 16 cores. On 2 cores two are enough, because
MLX's own threads read ahead.
"""

_RELEASED_BYTES: Final = 64 << 20
"""Bytes that are freed at a time: 5 ms in pages of 4 KiB."""

T = TypeVar("T")


class Lane(Enum):
    """A queue of jobs with its threads."""

    FILES = "files"
    """Jobs that evaluate no array, and so need not wait until MLX is imported."""
    READ = "read"
    COMPUTE = "compute"


class _Threads:
    """All threads of the engine."""

    def __init__(self) -> None:
        self.queues: dict[Lane, queue.SimpleQueue[Job[Any] | None]] = {
            lane: queue.SimpleQueue() for lane in Lane
        }
        # With CUDA the load of MLX's library takes 0.1 s. Meanwhile a library of Python's own would
        # wait for the loader's lock with the GIL held, and the first imports of a load need some.
        self.needs_mlx = threading.Event()
        if not blas.has_cuda_backend():
            self.needs_mlx.set()
        self.running: set[Job[Any]] = set()
        self.idle = threading.Semaphore(0)
        self.forever = threading.Lock()
        self.forever.acquire()
        # Twice as many as a load reads with: the others build the network and warm up.
        self.lanes = [Lane.FILES] * 2 + [Lane.COMPUTE] + [Lane.READ] * (2 * READERS)
        self.threads = [
            threading.Thread(
                target=self._work,
                args=(lane,),
                name=f"fastwhisper-{lane.value}-{number}",
                # See `_leave`: the process aborts if a thread evaluates while it exits.
                daemon=True,
            )
            for number, lane in enumerate(self.lanes)
        ]
        for thread in self.threads:
            thread.start()

    def _work(self, lane: Lane) -> None:
        jobs = self.queues[lane]
        if lane is not Lane.FILES:
            self.needs_mlx.wait()
            _prime()
        while (job := jobs.get()) is not None:
            self.running.add(job)
            if _leaving:
                job.stop = True
            job.execute()
            self.running.discard(job)
            del job
        self.idle.release()
        # A thread that ended now would run MLX's thread-local destructors beside the static ones
        # of the process, and abort it. So it waits here until the process is gone.
        self.forever.acquire()


def _prime() -> None:
    """Evaluate once in this thread, so that no operating system thread is added later."""
    if _leaving:
        return
    try:
        mx = backend.import_mlx()
        mx.eval(mx.zeros(1))
    except Exception:  # noqa: BLE001  a job that needs MLX raises the error again
        # No backend, or a GPU that can't be used. A thread that ended now would leave its jobs and
        # the exit waiting for ever.
        return


_lock = threading.Lock()
_threads: _Threads | None = None
_forked = False
_leaving = False


def submit(
    function: Callable[[], T], lane: Lane, *, notify: Callable[[], object] | None = None
) -> Job[T]:
    """Queue a function for an engine thread. Does not block; may be called from any thread.

    Args:
        function: Called without arguments in the thread.
        lane: The lane that runs it.
        notify: Called in that thread when the job has finished.

    Raises:
        LoadingFailedError: This process was forked after its parent had used MLX, whose
            threads do not survive a fork.
    """
    global _threads  # noqa: PLW0603  one set of threads for the process
    job = Job(partial(_synchronize, function) if lane is Lane.COMPUTE else function, notify)
    with _lock:
        if _forked:
            raise LoadingFailedError(
                "a model",
                "this process was forked after MLX had been used, and MLX does not survive a "
                "fork; start the process with multiprocessing's 'spawn'",
            )
        if _leaving:
            raise SystemExit  # ends a thread that still loads, without a message
        if _threads is None:
            try:
                _threads = _Threads()
            except RuntimeError as error:
                # A limit of threads, or a program whose main thread has ended, in Python 3.12.
                raise LoadingFailedError("a model", str(error)) from error
        if lane is not Lane.FILES:
            _threads.needs_mlx.set()
        _threads.queues[lane].put(job)
    return job


def import_ahead(name: str) -> None:
    """Begin to import a module that imports MLX, in an engine thread. Does not block.

    During the read, an import would slow down page faults. If it fails, nobody is told: whoever
    imports the module again gets the same error.
    """
    submit(partial(backend.import_computing, name), Lane.READ)


def enqueue(function: Callable[[], T], lane: Lane) -> tuple[Job[T], anyio.Event]:
    """Queue a function, and return its job and an event of this loop that is set at its end."""
    done = anyio.Event()
    post = tasks.on_this_loop()
    return submit(function, lane, notify=lambda: post(done.set)), done


@tasks.uninterrupted
async def run(function: Callable[[], T], lane: Lane) -> T:
    """Run a function in an engine thread and wait for it. Always a cancellation point.

    On cancellation the job is stopped at its next `check` and waited for, so no part of it
    runs after this returns. While the interpreter exits, this waits for the end of the process.

    Raises:
        LoadingFailedError: This process was forked after its parent had used MLX.
    """
    await anyio.lowlevel.checkpoint_if_cancelled()
    try:
        job, done = enqueue(function, lane)
        del function
        try:
            await done.wait()
        except BaseException:
            if not job.abandon():
                with anyio.CancelScope(shield=True):
                    await done.wait()
            job.forget()
            raise
        return job.result()
    except SystemExit:
        if _leaving:
            # A loop in a daemon thread ends with the process; asyncio would log an error.
            await anyio.sleep_forever()
        raise


@tasks.uninterrupted
async def run_abandonable(function: Callable[[], T]) -> T:
    """Run a function that waits for the network in its own thread. Always a cancellation point.

    On cancellation this returns at once. The function ends at its next `check`, or never, and its
    outcome is dropped. It must not use MLX.
    """
    await anyio.lowlevel.checkpoint_if_cancelled()
    done = anyio.Event()
    post = tasks.on_this_loop()
    job = Job(function, lambda: post(done.set))
    threading.Thread(target=job.execute, name="fastwhisper-download", daemon=True).start()
    try:
        await done.wait()
    except BaseException:
        job.abandon()
        raise
    return job.result()


def run_blocking(function: Callable[[], T], lane: Lane) -> T:
    """Run a function in an engine thread and block until it is done.

    Inside an engine thread the function is called in place.
    """
    if is_in_job():
        return function()
    return wait_for(submit(function, lane))


def wait_for(job: Job[T]) -> T:
    """Block until a job is done and return its result. An interrupt stops the job first."""
    try:
        wait_until(job.finished.wait)
    except BaseException:
        stop(job)
        raise
    return job.result()


def stop(job: Job[Any]) -> None:
    """Stop a job at its next check and block until it has ended."""
    if not job.abandon():
        wait_until(job.finished.wait)
    job.forget()


async def release(
    *containers: list[Any] | dict[Any, Any], jobs: Sequence[tuple[Job[Any], anyio.Event]] = ()
) -> None:
    """Stop jobs, empty containers of arrays and return their memory. Can't be cancelled.

    The memory is returned in the FILES lane: on the event loop it would block for 0.1 s with every
    gigabyte, and in another lane it would wait for the work of other sessions. It is returned in
    groups, because MLX holds the GIL while it frees an array.

    Args:
        *containers: Lists and dictionaries of arrays.
        jobs: Jobs, each with an event of this loop that is set at its end.
    """
    with contextlib.suppress(SystemExit), anyio.CancelScope(shield=True):
        # SystemExit: a process that exits returns all memory anyway.
        for job, ended in jobs:
            if not job.abandon():
                await ended.wait()
        _, done = enqueue(partial(_release, containers), Lane.FILES)
        await done.wait()


def _release(containers: tuple[list[Any] | dict[Any, Any], ...]) -> None:
    """Free arrays in groups. MLX frees memory with the GIL held, 70 ms for each gigabyte."""
    arrays: list[Any] = []
    for container in containers:
        _take_arrays(container, arrays)
        container.clear()
    mx = sys.modules.get("mlx.core")
    if mx is None:
        return
    freed_bytes = 0
    while arrays:
        freed_bytes += arrays.pop().nbytes
        if freed_bytes >= _RELEASED_BYTES:
            freed_bytes = 0
            _clear_cache(mx)
            time.sleep(0)  # gives up the GIL
    _clear_cache(mx)


def _clear_cache(mx: Any) -> None:
    # With the GIL held this waits for all streams, so for an allocation, which needs the GIL.
    with allocating:
        mx.clear_cache()


def _take_arrays(tree: Any, arrays: list[Any]) -> None:
    """Add all arrays of a tree to a list. A network is a dictionary too."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        for value in tree:
            _take_arrays(value, arrays)
    elif hasattr(tree, "nbytes"):
        arrays.append(tree)


def _synchronize(function: Callable[[], T]) -> T:
    """Call a function and wait for the computations that it began: then their memory is free."""
    try:
        return function()
    finally:
        mx = sys.modules.get("mlx.core")
        if mx is not None:
            mx.synchronize()


def _leave() -> None:
    """Stop every job at its next check and wait until no thread runs."""
    global _leaving  # noqa: PLW0603  see submit
    _leaving = True
    threads = _threads
    if threads is None:
        return
    for job in list(threads.running):
        job.stop = True
    threads.needs_mlx.set()
    for lane in threads.lanes:
        threads.queues[lane].put(None)
    try:
        for _ in threads.lanes:
            wait_until(threads.idle.acquire)
    except KeyboardInterrupt:
        # A thread still runs, so leaving in order would abort the process.
        os._exit(INTERRUPTED)


def _after_fork_in_child() -> None:
    global _forked, _lock, _threads  # noqa: PLW0603  see submit
    _forked = _forked or _threads is not None
    _threads = None
    _lock = threading.Lock()  # another thread of the parent may have held the old one


atexit.register(_leave)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
