"""Jobs: functions that run once in an engine thread, and can be stopped."""

from __future__ import annotations

import contextlib
import inspect
import threading
import traceback
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

__all__ = ["Job", "Stopped", "check", "is_in_job", "wait_for_future", "wait_until"]

T = TypeVar("T")

_WAIT_S: Final = 0.2
"""An interrupt ends a wait after this at the latest. Without a timeout it may not end it at all:
NVRTC, which compiles CUDA's kernels, sets SA_RESTART for the handler of SIGINT."""


class Stopped(BaseException):
    """Raised by `check` in a job whose caller has gone. It never leaves the engine."""


class Job(Generic[T]):
    """A function that is queued for an engine thread, or runs in one, and its outcome."""

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
        """Stop the job: at once if it has not begun, otherwise at its next check.

        Returns:
            Whether it had not begun. Then it never begins.
        """
        self.stop = True
        if not self._claim.acquire(blocking=False):
            return False
        del self._function
        self.finished.set()  # so that a second `stop` does not wait
        return True

    def execute(self) -> None:
        """Run the function, unless it was abandoned, and keep its outcome."""
        if not self._claim.acquire(blocking=False):
            return
        function = self._function
        # A function that is kept would keep its arrays alive.
        del self._function
        _here.job = self
        try:
            check()
            self._value = function()
        except BaseException as error:  # noqa: BLE001  handed to the caller by result()
            # The error's frames hold arrays, and with the error and this job they are a cycle.
            _clear_frames(error)
            # A job that somebody waits for is stopped only when the interpreter exits.
            self._error = SystemExit() if isinstance(error, Stopped) else error
        finally:
            _here.job = None
            del function
        self.finished.set()
        if self._notify is not None:
            # The caller's loop has ended, or has crashed and lost its socket.
            with contextlib.suppress(RuntimeError, OSError):
                self._notify()

    def result(self) -> T:
        """Return what the function returned, or raise what it raised. Called once."""
        error, self._error = self._error, None
        value, self._value = self._value, None
        if error is not None:
            try:
                raise error
            finally:
                del error
        return cast("T", value)

    def forget(self) -> None:
        """Drop the outcome of a job that nobody waits for any more."""
        self._error = self._value = None


def _clear_frames(error: BaseException) -> None:
    """Clear the frames of a job that has raised an error.

    An error that was raised before still names the frames of the tasks that it passed then. One of
    them may wait for this job, and to clear a coroutine's frame ends the coroutine.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if not frame.f_code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
            with contextlib.suppress(RuntimeError):  # a frame that runs: this one
                frame.clear()


class _Here(threading.local):
    job: Job[Any] | None = None


_here = _Here()


def is_in_job() -> bool:
    """Return whether the calling thread runs a job."""
    return _here.job is not None


def check() -> None:
    """Raise `Stopped` in a job whose caller has gone or whose interpreter is exiting."""
    job = _here.job
    if job is not None and job.stop:
        raise Stopped


def wait_until(wait: Callable[..., bool]) -> None:
    """Block until a wait has succeeded. An interrupt is raised here.

    Args:
        wait: Called with `timeout`, in seconds, again and again: `wait` of an event, or `acquire`.
    """
    while not wait(timeout=_WAIT_S):
        pass


def wait_for_future(future: Future[T]) -> T:
    """Block until a future is done and return its result. An interrupt is raised here."""
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    wait_until(done.wait)
    try:
        return future.result()
    finally:
        del future  # with its error, whose traceback names this frame, it is a cycle
