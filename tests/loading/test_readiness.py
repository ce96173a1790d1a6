"""Readiness: states, waiters, timeouts, failures, closing."""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING, cast

import anyio
import pytest

from fastwhisper.errors import (
    InvalidModelFormatError,
    LoadingFailedError,
    LoadingTimeoutError,
    ModelNotReadyError,
    SessionClosedError,
)
from fastwhisper.loading.readiness import Readiness
from fastwhisper.values import Closed, Failed, Loading, LoadStats, Ready

if TYPE_CHECKING:
    from fastwhisper.whisper.network import Whisper

pytestmark = pytest.mark.anyio

STATS = LoadStats(bytes_read=1, tensors=1, spans=(), peak_bytes=1)
MODULE = cast("Whisper", object())


@pytest.fixture
def failure() -> InvalidModelFormatError:
    """What a load may fail with."""
    from pathlib import Path  # noqa: PLC0415

    return InvalidModelFormatError(Path("weights.safetensors"), None, "is empty")


async def test_begins_loading() -> None:
    """A new readiness is loading and has no model."""
    readiness = Readiness("tiny")
    assert readiness.state == Loading()
    assert not readiness.is_ready
    with pytest.raises(ModelNotReadyError, match="wait_until_ready"):
        readiness.model()


async def test_wakes_every_waiter_when_ready() -> None:
    """Any number of tasks may wait; each gets the stats."""
    readiness = Readiness("tiny")
    got: list[LoadStats] = []

    async def wait() -> None:
        got.append(await readiness.wait(None))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert got == []
        readiness.become_ready(MODULE, STATS)
    assert got == [STATS] * 5
    assert readiness.state == Ready(STATS)
    assert readiness.model() is MODULE


async def test_a_timeout_leaves_the_load_alone() -> None:
    """A wait that times out raises, and a later one succeeds."""
    readiness = Readiness("tiny")
    with pytest.raises(LoadingTimeoutError, match="the load goes on") as caught:
        await readiness.wait(0.001)
    assert caught.value.timeout_s == 0.001
    assert isinstance(caught.value, TimeoutError)
    assert readiness.state == Loading()
    readiness.become_ready(MODULE, STATS)
    assert await readiness.wait() is STATS


async def test_a_timeout_of_zero_only_looks() -> None:
    """Polling raises at once while loading and returns at once when ready."""
    readiness = Readiness("tiny")
    with pytest.raises(LoadingTimeoutError):
        await readiness.wait(0)
    readiness.become_ready(MODULE, STATS)
    assert await readiness.wait(0) is STATS


async def test_a_cancelled_waiter_leaves_the_others_alone() -> None:
    """Cancelling one waiter cancels neither the load nor another waiter."""
    readiness = Readiness("tiny")
    got: list[LoadStats] = []

    async def wait() -> None:
        got.append(await readiness.wait(None))

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        async with anyio.create_task_group() as given_up:
            given_up.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            given_up.cancel_scope.cancel()
        assert readiness.state == Loading()
        readiness.become_ready(MODULE, STATS)
    assert got == [STATS]


async def test_a_failure_is_raised_at_every_wait(failure: InvalidModelFormatError) -> None:
    """Present and future waits raise a fresh error from the real one."""
    readiness = Readiness("tiny")
    caught: list[LoadingFailedError] = []

    async def wait() -> None:
        with pytest.raises(LoadingFailedError) as error:
            await readiness.wait(None)
        caught.append(error.value)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        readiness.become_failed(failure)
    await wait()
    assert len({id(error) for error in caught}) == 3
    assert all(error.__cause__ is failure for error in caught)
    assert readiness.state == Failed(failure)


async def test_closing_wakes_every_waiter() -> None:
    """After close no wait hangs: each raises SessionClosedError."""
    readiness = Readiness("tiny")

    async def wait() -> None:
        with pytest.raises(SessionClosedError):
            await readiness.wait(None)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        readiness.close()
    await wait()
    assert readiness.state == Closed()
    with pytest.raises(SessionClosedError):
        readiness.model()


async def test_never_goes_backwards(failure: InvalidModelFormatError) -> None:
    """What comes late changes nothing."""
    readiness = Readiness("tiny")
    readiness.become_ready(MODULE, STATS)
    readiness.become_failed(failure)
    states: list[object] = [readiness.state]
    readiness.close()
    readiness.become_ready(MODULE, STATS)
    states.append(readiness.state)
    assert states == [Ready(STATS), Closed()]


async def test_a_failure_nobody_saw_is_logged_once(
    failure: InvalidModelFormatError, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing a failed load that nobody waited for logs it, once."""
    readiness = Readiness("tiny")
    readiness.become_failed(failure)
    readiness.close()
    readiness.close()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "nobody waited" in caplog.text


async def test_a_failure_that_is_dropped_is_logged(
    failure: InvalidModelFormatError, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed result that is forgotten without a wait is logged."""
    Readiness("tiny").become_failed(failure)
    gc.collect()
    assert "nobody waited" in caplog.text


async def test_a_failure_somebody_saw_is_not_logged(
    failure: InvalidModelFormatError, caplog: pytest.LogCaptureFixture
) -> None:
    """Who waited knows already."""
    readiness = Readiness("tiny")
    readiness.become_failed(failure)
    with pytest.raises(LoadingFailedError):
        await readiness.wait()
    readiness.close()
    assert caplog.records == []


async def test_waiting_is_always_a_checkpoint() -> None:
    """A cancelled task notices at the wait, ready or not."""
    readiness = Readiness("tiny")
    readiness.become_ready(MODULE, STATS)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await readiness.wait()
    assert scope.cancelled_caught
