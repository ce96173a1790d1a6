"""Tasks and interrupts on both event loops: what differs between asyncio and trio."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.lowlevel

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = [
    "first_error",
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
        failure = first_error(errors)
    if failure is not None:
        raise failure


@uninterrupted
async def _run(job: Callable[[], Coroutine[Any, Any, None]]) -> None:
    # The first frame of a task decides whether trio interrupts it, also in the frames it calls.
    await job()


def first_error(errors: BaseException) -> BaseException:
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
