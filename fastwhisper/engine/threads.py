"""MLX's threads.

MLX keeps its streams per thread: an array that is not evaluated can't be used outside
the thread that made it, and every thread that ever evaluates costs an operating system
thread for good. So all MLX work of the process runs in a few threads that live as long as
it does, and only evaluated arrays leave them.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  tiktoken's; refused once the main thread ends
import contextlib
import os
import queue
import sys
import threading
import traceback
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

import anyio
import anyio.lowlevel

from fastwhisper.engine import backend, tasks
from fastwhisper.errors import LoadingFailedError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "READERS",
    "Lane",
    "Stopped",
    "check",
    "computes_on_gpu",
    "release",
    "run",
    "run_abandonable",
    "run_blocking",
    "stop",
    "submit",
    "wait_for",
]

READERS: Final = max(2, min(4, (os.cpu_count() or 1) // 2))
"""Lanes that read weights side by side.

Measured: four read as fast as eight on an H200 (16 cores); on 2 cores two are enough, as MLX's
own threads read ahead.
"""

_INTERRUPTED: Final = 130
"""What a shell makes of a process that Ctrl-C ended."""

T = TypeVar("T")


class Lane(Enum):
    """Which of the engine's threads runs a job."""

    FILES = "files"
    """For what does without MLX, and so need not wait until it is imported."""
    READ = "read"
    COMPUTE = "compute"


class Stopped(BaseException):
    """Raised by `check` inside a job whose caller has gone; never leaves the engine."""


class Job(Generic[T]):
    """A function on its way through one of the engine's threads."""

    __slots__ = ("_claim", "_error", "_function", "_notify", "_value", "finished", "stop")

    def __init__(self, function: Callable[[], T], notify: Callable[[], object] | None) -> None:
        self._claim = threading.Lock()
        self._function: Callable[[], T] = function
        self._value: T | None = None
        self._error: BaseException | None = None
        self._notify = notify
        self.finished = threading.Event()
        self.stop = False

    def abandon(self) -> bool:
        """Stop the job: at once if it has not begun, else at its next check.

        Returns:
            Whether it had not begun, and so never will.
        """
        self.stop = True
        if not self._claim.acquire(blocking=False):
            return False
        del self._function
        self.finished.set()  # so that a second stop() does not wait for what never begins
        return True

    def execute(self) -> None:
        """Run the function, unless it was abandoned, and keep what comes of it."""
        if not self._claim.acquire(blocking=False):
            return
        function = self._function
        # A function kept longer than its run would keep the arrays it holds alive.
        del self._function
        _here.job = self
        try:
            check()
            self._value = function()
        except BaseException as error:  # noqa: BLE001  handed to the caller by result()
            # The frames of what failed hold arrays, and they, the error and this job a cycle.
            traceback.clear_frames(error.__traceback__)
            # Only the leaving of the interpreter stops a job that somebody still waits for.
            self._error = SystemExit() if isinstance(error, Stopped) else error
        finally:
            _here.job = None
            del function
        self.finished.set()
        if self._notify is not None:
            # The loop that asked has ended, in order or by a crash that took its socket.
            with contextlib.suppress(RuntimeError, OSError):
                self._notify()

    def result(self) -> T:
        """Give what the function returned, or raise what it raised, once."""
        error, self._error = self._error, None
        value, self._value = self._value, None
        if error is not None:
            try:
                raise error
            finally:
                del error
        return cast("T", value)

    def forget(self) -> None:
        """Let go of what came of a job that nobody asks any more."""
        self._error = self._value = None


class _Here(threading.local):
    job: Job[Any] | None = None


class _Threads:
    """The threads of the process: started together, at first use."""

    def __init__(self) -> None:
        self.queues: dict[Lane, queue.SimpleQueue[Job[Any] | None]] = {
            lane: queue.SimpleQueue() for lane in Lane
        }
        self.running: set[Job[Any]] = set()
        self.idle = threading.Semaphore(0)
        self.forever = threading.Lock()
        self.forever.acquire()
        # More than a load reads with: the others build the network and warm up meanwhile.
        self.lanes = [Lane.FILES] * 2 + [Lane.COMPUTE] + [Lane.READ] * (2 * READERS)
        self.threads = [
            threading.Thread(
                target=self._work,
                args=(lane,),
                name=f"fastwhisper-{lane.value}-{number}",
                # Leaving the interpreter while a thread evaluates aborts it: see _leave.
                daemon=True,
            )
            for number, lane in enumerate(self.lanes)
        ]
        for thread in self.threads:
            thread.start()

    def _work(self, lane: Lane) -> None:
        jobs = self.queues[lane]
        if lane is not Lane.FILES:
            _prime()
        while (job := jobs.get()) is not None:
            self.running.add(job)
            if _leaving:
                job.stop = True
            job.execute()
            self.running.discard(job)
            del job
        self.idle.release()
        # A thread that ended now would run MLX's thread-local destructors while the process
        # runs its static ones, and abort; one that stands still here harms nothing.
        self.forever.acquire()


def _prime() -> None:
    """Let this thread evaluate once, so that the count of threads is final after the first load."""
    try:
        mx = backend.import_mlx()
    except ImportError:
        return  # the job that needs MLX says so
    mx.eval(mx.zeros(1))


_here = _Here()
_lock = threading.Lock()
_threads: _Threads | None = None
_forked = False
_leaving = False


def submit(
    function: Callable[[], T], lane: Lane, *, notify: Callable[[], object] | None = None
) -> Job[T]:
    """Queue a function for one of the engine's threads.

    Args:
        function: Called without arguments in the thread.
        lane: Two jobs of files run at once, twice `READERS` of reading, and one of compute.
        notify: Called in that thread when the job has finished.

    Raises:
        LoadingFailedError: This process was forked after its parent had used MLX, whose
            threads don't survive a fork.
    """
    global _threads  # noqa: PLW0603  one set of threads for the process is the point
    job = Job(partial(_settled, function) if lane is Lane.COMPUTE else function, notify)
    with _lock:
        if _forked:
            raise LoadingFailedError(
                "a model",
                "this process was forked after MLX had been used, and MLX does not survive "
                "that; start it with multiprocessing's 'spawn' instead",
            )
        if _leaving:
            raise SystemExit  # ends a thread that still loads, without a word
        if _threads is None:
            _threads = _Threads()
        _threads.queues[lane].put(job)
    return job


@tasks.uninterrupted
async def run(function: Callable[[], T], lane: Lane) -> T:
    """Run a function in one of the engine's threads and wait for it.

    On cancellation the job is told to stop at its next `check` and waited for, so that
    nothing of it runs on behind its caller. While the interpreter leaves, it waits for the
    end. Always a checkpoint.

    Raises:
        LoadingFailedError: This process was forked after its parent had used MLX.
    """
    await anyio.lowlevel.checkpoint_if_cancelled()
    done = anyio.Event()
    post = tasks.on_this_loop()
    try:
        job = submit(function, lane, notify=lambda: post(done.set))
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
            # A loop in a daemon thread goes when the process goes; asyncio would complain.
            await anyio.sleep_forever()
        raise


@tasks.uninterrupted
async def run_abandonable(function: Callable[[], T]) -> T:
    """Run a function that waits for the network in a thread of its own.

    On cancellation the caller is free at once; the function ends at its next `check`, or
    never, and nobody looks at what comes of it. It must not use MLX. Always a checkpoint.
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
    """Run a function in one of the engine's threads and block this one until it is done.

    From one of the engine's own threads, it is called in place.
    """
    if _here.job is not None:
        return function()
    return wait_for(submit(function, lane))


def wait_for(job: Job[T]) -> T:
    """Block until a job is done and give its result; an interrupt stops the job first."""
    try:
        job.finished.wait()
    except BaseException:
        stop(job)
        raise
    return job.result()


def stop(job: Job[Any]) -> None:
    """Stop a job at its next check and block until it has ended."""
    if not job.abandon():
        job.finished.wait()
    job.forget()


def check() -> None:
    """Raise `Stopped` inside a job whose caller has gone or whose interpreter is leaving."""
    job = _here.job
    if job is not None and job.stop:
        raise Stopped


def computes_on_gpu() -> bool:
    """Tell whether MLX computes on a GPU in this thread."""
    mx = backend.import_mlx()
    return bool(mx.default_device().type == mx.gpu)


async def release(*containers: list[Any] | dict[Any, Any]) -> None:
    """Empty containers of arrays, and give their memory back to the system. Not to be cancelled.

    Not on the event loop, which would stand still for 0.1 s with every gigabyte, and not in a
    lane where another session's work would come first.
    """
    done = anyio.Event()
    post = tasks.on_this_loop()
    with contextlib.suppress(SystemExit), anyio.CancelScope(shield=True):
        # SystemExit: a process that leaves gives everything back.
        submit(partial(_release, containers), Lane.FILES, notify=lambda: post(done.set))
        await done.wait()


def _release(containers: tuple[list[Any] | dict[Any, Any], ...]) -> None:
    for container in containers:
        container.clear()
    mx = sys.modules.get("mlx.core")
    if mx is not None:  # or no load has come so far
        mx.clear_cache()


def _settled(function: Callable[[], T]) -> T:
    """Wait for what a function has begun to compute: only then its memory is free."""
    try:
        return function()
    finally:
        mx = sys.modules.get("mlx.core")
        if mx is not None:
            mx.synchronize()


def _leave() -> None:
    """Stop every job at its next check and wait until the threads stand still."""
    global _leaving  # noqa: PLW0603  see submit
    _leaving = True
    threads = _threads
    if threads is None:
        return
    for job in list(threads.running):
        job.stop = True
    for lane in threads.lanes:
        threads.queues[lane].put(None)
    try:
        for _ in threads.lanes:
            threads.idle.acquire()
    except KeyboardInterrupt:
        # Going on would abort the process, as a thread still runs; waiting on is not wanted.
        os._exit(_INTERRUPTED)


def _after_fork_in_child() -> None:
    global _forked, _lock, _threads  # noqa: PLW0603  see submit
    _forked = _forked or _threads is not None
    _threads = None
    _lock = threading.Lock()  # another thread of the parent may have held the old one


atexit.register(_leave)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
