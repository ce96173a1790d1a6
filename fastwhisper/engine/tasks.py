"""Tasks and interrupts on both event loops: what differs between asyncio and trio."""

from __future__ import annotations

import contextvars
import sys
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
import anyio.lowlevel

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

__all__ = [
    "BackgroundTask",
    "Beside",
    "hold_interrupts",
    "on_this_loop",
    "side_by_side",
    "uninterrupted",
]

F = TypeVar("F", bound="Callable[..., Any]")

_uninterrupted: list[Callable[..., Any]] = []


def uninterrupted(function: F) -> F:
    """Protect a coroutine function from KeyboardInterrupt on trio. A decorator.

    Trio raises KeyboardInterrupt at any line of the running task, and would leave what that task
    had begun. A protected task goes on, and the main task's next wait raises it, as on asyncio.
    The protection takes effect with `hold_interrupts`.
    """
    _uninterrupted.append(function)
    return function


def hold_interrupts() -> None:
    """Make `uninterrupted` take effect. Called on a loop: trio, if it runs, is imported by then."""
    trio = sys.modules.get("trio")
    if trio is not None:
        for function in _uninterrupted:
            trio.lowlevel.enable_ki_protection(function)


@uninterrupted
async def side_by_side(*jobs: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run coroutine functions side by side. The first error cancels the rest and is raised bare."""
    failure: BaseException | None = None
    try:
        async with anyio.create_task_group() as group:
            for job in jobs:
                group.start_soon(_run, job)
    except BaseExceptionGroup as errors:
        failure = _first_error(errors)
    if failure is not None:
        raise failure


@uninterrupted
async def _run(job: Callable[[], Coroutine[Any, Any, None]]) -> None:
    # The first frame of a task decides whether trio interrupts it, also in the frames it calls.
    # No job begins before all tasks have: the interpreter may leave a loop in a daemon thread at
    # any time, and would complain of a coroutine that never began.
    await anyio.lowlevel.cancel_shielded_checkpoint()
    await job()


_background: set[BackgroundTask] = set()


class BackgroundTask:
    """A coroutine function in a task of its own, which is in no task group.

    Whoever makes it waits for its end.

    Attributes:
        failure: What it raised, other than its cancellation; None before its end.
    """

    def __init__(self, function: Callable[[], Coroutine[Any, Any, None]], *, name: str) -> None:
        """Start the function; `name` is that of its task."""
        self.failure: BaseException | None = None
        self._function = function
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        self._id = 0
        self._task = _spawn(self._run, name)
        _background.add(self)  # asyncio itself keeps no task

    def cancel(self) -> None:
        """Cancel the function."""
        self._scope.cancel()

    def is_current(self) -> bool:
        """Return whether the running task is this one."""
        return anyio.get_current_task().id == self._id

    async def wait(self) -> None:
        """Wait for the end of the function, without raising its error."""
        await self._ended.wait()

    @uninterrupted
    async def _run(self) -> None:
        self._id = anyio.get_current_task().id
        try:
            with self._scope:
                await self._function()
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001  whoever waits raises it again
            self.failure = error
        finally:
            _background.discard(self)
            self._ended.set()


class Beside:
    """A coroutine function that runs beside an `async with` block, in a task of its own.

    Leaving the block cancels the function, and waits for its end. An exception of the block leaves
    as the same object, never in an `ExceptionGroup`.

    The block has a task group's rule, but it is not one: the task that entered it must leave it.
    Another task leaves the block of an async generator that was dropped. A task group would cancel
    the task that entered it on asyncio, and end the event loop on trio. Here the function ends,
    no other task is touched, and `RuntimeError` is raised.
    """

    def __init__(
        self, function: Callable[[], Coroutine[Any, Any, None]], *, name: str, rule: str
    ) -> None:
        """Store what runs.

        Args:
            function: It is started when the block is entered.
            name: Name of its task.
            rule: Message of the `RuntimeError` when another task leaves the block.
        """
        self._function = function
        self._name = name
        self._rule = rule

    @uninterrupted
    async def __aenter__(self) -> Self:
        # The coroutine of the task: another task may get the task's id later.
        self._owner = anyio.get_current_task().coro
        self._task = BackgroundTask(self._function, name=self._name)
        return self

    @uninterrupted
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._task.cancel()
        with anyio.CancelScope(shield=True):
            await self._task.wait()
        if self._task.failure is not None:
            raise self._task.failure
        if anyio.get_current_task().coro is self._owner:
            return
        if isinstance(error, Exception):
            error.add_note(self._rule)
        elif error is None or isinstance(error, GeneratorExit):
            raise RuntimeError(self._rule)


def _spawn(function: Callable[[], Coroutine[Any, Any, None]], name: str) -> object:
    """Start a task that is in no task group; whoever starts it waits for its end."""
    native: Any = anyio.lowlevel.current_token().native_token
    if hasattr(native, "run_sync_soon"):
        return sys.modules["trio"].lowlevel.spawn_system_task(
            function, name=name, context=contextvars.copy_context()
        )
    return native.create_task(function(), name=name)


def _first_error(errors: BaseException) -> BaseException:
    """Return the first error of a task group, not in a group."""
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors


def on_this_loop() -> Callable[[Callable[[], object]], object]:
    """Return a function that calls another on the running event loop, from any thread.

    It does not wait for the loop, unlike anyio's `from_thread`: a loop that has ended can't block
    an engine thread.
    """
    native: Any = anyio.lowlevel.current_token().native_token
    is_trio = hasattr(native, "run_sync_soon")
    post: Callable[[Callable[[], object]], object]
    post = native.run_sync_soon if is_trio else native.call_soon_threadsafe
    return post
