"""A function that runs beside a block: its end, its failure, the block's failure, cancels."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from fastwhisper.engine.tasks import Beside

pytestmark = pytest.mark.anyio


def beside(function: object) -> Beside:
    """Return a block beside which a coroutine function runs."""
    return Beside(function, name="beside", rule="the rule")  # type: ignore[arg-type]


async def test_leaving_cancels_the_function_and_waits_for_it() -> None:
    """The block begins while the function waits, and ends after it."""
    said: list[str] = []

    async def function() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            said.append("function")

    async with beside(function):
        await anyio.wait_all_tasks_blocked()
        said.append("block")
    assert said == ["block", "function"]


async def test_a_function_that_ends_first() -> None:
    """The block may go on when the function has ended."""
    ended = anyio.Event()

    async def function() -> None:
        ended.set()

    async with beside(function):
        await ended.wait()


@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit(3), KeyboardInterrupt()])
async def test_a_failure_is_raised_where_the_block_is_left(error: BaseException) -> None:
    """What the function raises, also to end the program, leaves the block bare."""

    async def function() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        async with beside(function):
            await anyio.wait_all_tasks_blocked()
    assert caught.value is error


async def test_an_exception_of_the_block_leaves_it_unchanged() -> None:
    """It is the same object, without a context."""
    mine = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        async with beside(anyio.sleep_forever):
            raise mine
    assert caught.value is mine
    assert mine.__context__ is None


async def test_a_cancel_of_the_block_waits_for_the_function() -> None:
    """A cancelled block ends cancelled, and the function with it."""
    ended = anyio.Event()

    async def function() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    with anyio.CancelScope() as scope:
        async with beside(function):
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert ended.is_set()
