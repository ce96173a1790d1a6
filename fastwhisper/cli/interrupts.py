"""Signals that end a command, and the event loop of a command.

Theory of operation. SIGTERM and SIGHUP end a command as Ctrl-C does, and it keeps the same. In a
command without an event loop they raise KeyboardInterrupt. In an event loop a task waits for them,
and cancels the work. Signals come to the main thread only: where `main` is called from another
thread, they are the host program's. An event loop can't run inside another: where one is running,
the command's runs in a thread of its own, and the caller waits for it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.from_thread

from fastwhisper.engine.jobs import wait_for_future

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import FrameType

__all__ = ["run_command", "run_loop"]


def run_command(command: Callable[[], int]) -> int:
    """Run a command. Return its exit status, or 128 + the number of the signal that ended it."""
    ended_by: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> None:
        # A closed terminal sends more than one, and the second must not stop the cleaning up.
        if not ended_by:
            ended_by.append(number)
            raise KeyboardInterrupt

    with _handling(interrupt, _list_signals() - {signal.SIGINT}):
        try:
            return command()
        except KeyboardInterrupt:
            return 128 + (ended_by or [signal.SIGINT])[0]


def run_loop(work: Callable[[], Awaitable[int]]) -> int:
    """Run work in an event loop. Return its exit status, or 128 + the number of the signal.

    A second Ctrl-C ends the process at once, unless another event loop was running.

    Raises:
        KeyboardInterrupt: Ctrl-C, while another event loop was running in this thread.
    """
    try:
        anyio.get_cancelled_exc_class()
    except RuntimeError:  # no event loop is running
        return anyio.run(_run_watched, work)
    # The running loop would keep Ctrl-C for later: it runs nothing before this function returns.
    with (
        _handling(signal.default_int_handler, _list_signals() & {signal.SIGINT}),
        anyio.from_thread.start_blocking_portal() as portal,
    ):
        # KeyboardInterrupt leaves the portal, which cancels the work and waits for its end.
        return wait_for_future(portal.start_task_soon(work))


def _list_signals() -> set[int]:
    """Return the signals that end a command; none in a thread to which they do not come."""
    if threading.current_thread() is not threading.main_thread():
        return set()
    # SIGHUP: the terminal was closed. Windows has none.
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    # What is ignored stays ignored: SIGHUP under nohup, SIGINT of a job in the background.
    return {number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN}


@contextmanager
def _handling(
    handler: Callable[[int, FrameType | None], object], numbers: set[int]
) -> Iterator[None]:
    """Handle signals for the time of a block."""
    with ExitStack() as stack:
        for number in numbers:
            stack.callback(signal.signal, number, signal.getsignal(number))
            signal.signal(number, handler)
        yield


async def _run_watched(work: Callable[[], Awaitable[int]]) -> int:
    """Run work until its end or a signal."""
    status = 0
    ended_by: list[int] = []
    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        scope = anyio.CancelScope()
        # Windows: asyncio takes no handlers there, and handles Ctrl-C alone.
        if sys.platform != "win32" and (numbers := _list_signals()):
            group.start_soon(_watch, numbers, scope, ended_by)
        # The task group would wrap this error into an ExceptionGroup.
        try:
            with scope:
                status = await work()
        except Exception as error:  # noqa: BLE001  raised again below
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return 128 + ended_by[0] if scope.cancelled_caught else status


async def _watch(numbers: set[int], scope: anyio.CancelScope, ended_by: list[int]) -> None:
    """Cancel a scope at the first signal, and end the process at a further Ctrl-C."""
    with anyio.open_signal_receiver(*map(signal.Signals, numbers)) as signals:
        async for number in signals:
            if number == signal.SIGINT and ended_by:
                os._exit(128 + number)
            ended_by.append(number)
            scope.cancel()
