"""Tasks on either event loop: what asyncio and trio do differently, and anyio leaves so."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.lowlevel

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["first_error", "hold_interrupts", "on_this_loop", "side_by_side", "uninterrupted"]

F = TypeVar("F", bound="Callable[..., Any]")

_uninterrupted: list[Callable[..., Any]] = []


def uninterrupted(function: F) -> F:
    """Have trio raise no KeyboardInterrupt between two lines of this coroutine function.

    Trio raises it at any line of whichever task runs, and what a task of ours had begun
    would be left behind. Held off, it comes out of the main task's next wait, as asyncio's
    does anyway. Takes effect with `hold_interrupts`.
    """
    _uninterrupted.append(function)
    return function


def hold_interrupts() -> None:
    """Make `uninterrupted` take effect; for where trio, if it runs, has been imported."""
    trio = sys.modules.get("trio")
    if trio is not None:
        for function in _uninterrupted:
            trio.lowlevel.enable_ki_protection(function)


@uninterrupted
async def side_by_side(*jobs: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run jobs at once; the first that fails cancels the rest and is raised bare."""
    failure: BaseException | None = None
    try:
        async with anyio.create_task_group() as group:
            for job in jobs:
                group.start_soon(_run_and_forget, job)
    except BaseExceptionGroup as errors:
        failure = first_error(errors)
    if failure is not None:
        raise failure


def first_error(errors: BaseException) -> BaseException:
    """Give the first error of a task group's, bare."""
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors


@uninterrupted
async def _run_and_forget(job: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a job; if it is cancelled or fails, let its frames go, which hold what was loaded."""
    try:
        await job()
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise


def on_this_loop() -> Callable[[Callable[[], object]], object]:
    """Give a function that calls another on the running event loop, from any thread.

    anyio's own `from_thread` waits for the loop; these don't, so that a loop that is gone
    can't hold one of the engine's threads.
    """
    native: Any = anyio.lowlevel.current_token().native_token
    is_trio = hasattr(native, "run_sync_soon")
    post: Callable[[Callable[[], object]], object]
    post = native.run_sync_soon if is_trio else native.call_soon_threadsafe
    return post
