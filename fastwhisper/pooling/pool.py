"""Many models under one budget of bytes: `pool()` and `ModelPool`.

Theory of operation.

- Everything here runs on one event loop, and nothing waits between a look and the change that
  follows from it. So there is no lock.
- An *entry* is a model that is opened, open or closing. Its task loads the model, waits until the
  model is not needed any more, and returns its memory. A borrower only waits for the entry.
- Bytes count from the moment an entry is admitted until its memory is returned. An entry knows its
  bytes when its files are inspected; then it queues for admission, before a weight is read.
- The queue is served in order. Whoever comes while somebody waits for room queues too, also for a
  model that is open: otherwise its borrowers could keep the room for ever. If that model is closed
  before their turn, they queue again. A task that has borrowed that model already borrows it again
  at once: it would wait for itself.
- An entry without a borrower is idle. It is closed when its time is over, when memory gets short,
  when the first of the queue fits in its place (the one first that was used longest ago), or with
  the pool.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import deque
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack

import anyio
import anyio.lowlevel

from fastwhisper.engine import memory, tasks
from fastwhisper.errors import (
    LoadingFailedError,
    LoadingTimeoutError,
    NotEnoughMemoryError,
    SessionClosedError,
)
from fastwhisper.pooling.entry import Entry, Place, borrowed
from fastwhisper.session import Session, prepare_load
from fastwhisper.sources.table import parse_model
from fastwhisper.values import Closed, Failed, LoadOptions, PooledModel, WhisperModel

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager

    from fastwhisper.loading.load import LoadTask
    from fastwhisper.pooling.entry import Key
    from fastwhisper.values import LoadOverrides

__all__ = ["ModelPool", "pool"]

_LOOK_S: Final = 2.0
"""Seconds between two looks at the system's memory, while a model is idle."""


@asynccontextmanager
@tasks.uninterrupted
async def pool(
    *,
    max_bytes: int | None = None,
    keep_alive_s: float | None = 300.0,
    options: LoadOptions = LoadOptions.DEFAULT,
) -> AsyncGenerator[ModelPool]:
    """Open a pool of models for the time of an `async with` block.

    It may be entered and left in different tasks. Leaving it closes all models: whoever still uses
    one gets `SessionClosedError`.

    Args:
        max_bytes: The most bytes of weights that are open at a time, at the dtypes that are
            computed in. None: no limit. What a transcription needs comes on top.
        keep_alive_s: Seconds that a model stays open after its last borrower has left. 0 closes
            it at once; None keeps it until its room is needed.
        options: How to load, unless a borrower says it.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.
    """
    _check_number("max_bytes", max_bytes, int)
    _check_number("keep_alive_s", keep_alive_s, (int, float))
    tasks.hold_interrupts()
    opened = ModelPool(max_bytes, keep_alive_s, options)
    try:
        yield opened
    finally:
        await opened.close()


def _check_number(name: str, value: Any, kind: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{name}={value!r}: give a number, or None")
    if not value >= 0:
        raise ValueError(f"{name}={value!r}: give 0 or more, or None")


class ModelPool:
    """Open models that borrowers share. `pool` makes it; any task of its event loop may use it."""

    def __init__(
        self, max_bytes: int | None, keep_alive_s: float | None, options: LoadOptions
    ) -> None:
        self._max_bytes = max_bytes
        self._keep_alive_s = keep_alive_s
        self._options = options
        self._open: dict[Key, Entry] = {}
        self._closing: set[Entry] = set()
        self._tasks: set[tasks.BackgroundTask] = set()
        self._queue: deque[Place] = deque()
        self._is_closed = False

    @property
    def models(self) -> tuple[PooledModel, ...]:
        """The models that are closing, and then those that are loading or open, as they came."""
        now_s = anyio.current_time()
        return tuple(
            PooledModel(
                entry.load.model_name,
                Closed() if entry.is_closing else entry.load.readiness.state,
                entry.bytes if entry.is_admitted else 0,
                entry.borrowers,
                0.0 if entry.borrowers else now_s - entry.idle_since_s,
            )
            for entry in [*self._closing, *self._open.values()]
        )

    def session(
        self,
        model: WhisperModel | str | os.PathLike[str],
        *,
        timeout: float | None = None,
        **overrides: Unpack[LoadOverrides],
    ) -> AbstractAsyncContextManager[Session]:
        """Borrow an open model for the time of an `async with` block.

        A model that is borrowed by several at the same options is opened once. Each of them has a
        session of their own: leaving the block cancels what was begun with it, and nothing else.
        With `background` the block does not wait for the load, only for its turn. Who holds a model
        and waits for room that this model or another waiting task holds waits for ever: give a
        timeout, or borrow one at a time.

        Args:
            model: As for `open`.
            timeout: Seconds to wait for room and for the load; None waits without a limit.
            **overrides: Single fields of the pool's `options`.

        Raises:
            NotEnoughMemoryError: The model is larger than the whole budget, or than the
                container's limit.
            LoadingTimeoutError: The time is over.
            SessionClosedError: The pool was left.
            FastWhisperError: As for `open`.
        """
        options = dataclasses.replace(self._options, **overrides)
        return self._borrow(model, options, timeout, quant_given="quant" in overrides)

    @asynccontextmanager
    @tasks.uninterrupted
    async def _borrow(
        self,
        model: WhisperModel | str | os.PathLike[str],
        options: LoadOptions,
        timeout: float | None,  # noqa: ASYNC109  the contract
        *,
        quant_given: bool,
    ) -> AsyncGenerator[Session]:
        # A look at a path takes microseconds. In a thread it would wait for the files of others.
        parsed = parse_model(model)
        if isinstance(parsed, Path):
            parsed = parsed.absolute()
        # For a name of the table it makes no difference.
        quant_given = quant_given and not isinstance(parsed, WhisperModel)
        key = (parsed, dataclasses.replace(options, background=False), quant_given)
        entry: Entry | None = None
        await anyio.lowlevel.checkpoint()
        try:
            with anyio.move_on_after(timeout) as scope:
                entry = await self._take(key)
                if not options.background and not entry.load.readiness.is_ready:
                    await _wait_until_open(entry)
            if scope.cancelled_caught or entry is None:
                advice = "others may hold its room, or it takes longer: give a longer timeout"
                raise LoadingTimeoutError(str(model), timeout or 0.0, advice)
            session = Session(entry.load)
            entry.sessions.add(session)
            borrowed.set((*(s for s in borrowed.get() if not s.is_left), session))
            try:
                yield session
            finally:
                session.leave()
                await session.settle()
                entry.sessions.discard(session)
        finally:
            if entry is not None:
                self._give_back(entry)

    async def _take(self, key: Key) -> Entry:
        """Return an entry that has one more borrower."""
        while True:
            if self._is_closed:
                raise SessionClosedError(str(key[0]))
            entry = self._open.get(key)
            if entry is None:
                # The arguments are checked here, in the task of whoever gives them.
                load = await self._prepare(key)
                if key in self._open or self._is_closed:
                    continue
                entry = self._begin(key, load)
            elif entry.is_admitted and self._queue and not entry.is_held():
                await self._wait_for_turn(entry, is_borrower=True)
                if entry.is_closing:
                    continue
                return entry
            entry.borrowers += 1
            entry.changed.set()
            return entry

    @staticmethod
    async def _prepare(key: Key) -> LoadTask:
        model, options, quant_given = key
        overrides: LoadOverrides = {"quant": options.quant} if quant_given else {}
        return await prepare_load(model, options, None, overrides)

    def _begin(self, key: Key, load: LoadTask) -> Entry:
        entry = Entry(key, load, idle_since_s=anyio.current_time())
        self._open[key] = entry
        load.admit = partial(self._admit, entry)
        entry.task = tasks.BackgroundTask(
            partial(self._keep, entry), name=f"pool: {load.model_name}"
        )
        self._tasks.add(entry.task)
        return entry

    def _give_back(self, entry: Entry) -> None:
        entry.borrowers -= 1
        entry.idle_since_s = anyio.current_time()
        entry.changed.set()
        is_waiting = any(place.entry is entry and not place.is_borrower for place in self._queue)
        if is_waiting and not entry.borrowers:
            self._close(entry)  # nobody wants the room that it waits for
        self._serve()

    # The queue

    async def _admit(self, entry: Entry, needed_bytes: int) -> None:
        """Wait until there is room for a model whose files were inspected."""
        if self._max_bytes is not None and needed_bytes > self._max_bytes:
            raise NotEnoughMemoryError(
                str(entry.load.model_name), needed_bytes, self._max_bytes, "max_bytes of the pool"
            )
        entry.bytes = needed_bytes
        if not entry.borrowers and (self._queue or not self._has_room(needed_bytes)):
            self._close(entry)  # nobody wants the room that it would wait for
        await self._wait_for_turn(entry, is_borrower=False)

    async def _wait_for_turn(self, entry: Entry, *, is_borrower: bool) -> None:
        place = Place(entry, is_borrower)
        self._queue.append(place)
        self._serve()
        try:
            await place.is_next.wait()
        except BaseException:
            if place in self._queue:
                self._queue.remove(place)
                self._serve()
            elif is_borrower:
                self._give_back(entry)
            raise

    def _serve(self) -> None:
        """Serve the queue from its first place on, as far as there is room."""
        while self._queue:
            entry = self._queue[0].entry
            if self._queue[0].is_borrower:
                entry.borrowers += 1  # before the next in the queue looks for room
                entry.changed.set()
            elif not entry.is_closing:
                if not self._make_room(entry.bytes):
                    return
                entry.is_admitted = True
            self._queue.popleft().is_next.set()

    def _has_room(self, needed_bytes: int) -> bool:
        """Return whether there is room without closing anything."""
        used_bytes = sum(model.bytes for model in self.models)
        return self._max_bytes is None or used_bytes + needed_bytes <= self._max_bytes

    def _make_room(self, needed_bytes: int) -> bool:
        """Return whether there is room; close idle models if there will be room then."""
        if self._max_bytes is None or self._has_room(needed_bytes):
            return True
        admitted = [entry for entry in self._open.values() if entry.is_admitted]
        missing_bytes = sum(entry.bytes for entry in admitted) + needed_bytes - self._max_bytes
        idle = sorted(
            (entry for entry in admitted if not entry.borrowers),
            key=lambda entry: entry.idle_since_s,
        )
        if missing_bytes <= sum(entry.bytes for entry in idle):
            for entry in idle:
                if missing_bytes <= 0:
                    break
                missing_bytes -= entry.bytes
                self._close(entry)
        return False

    # The task of an entry

    async def _keep(self, entry: Entry) -> None:
        """Open a model, keep it while it is needed, and return its memory."""
        try:
            await entry.load.run_in_background(owned=True)
            if isinstance(entry.load.readiness.state, Failed):
                return
            while not entry.is_closing:
                entry.changed = anyio.Event()
                wait_s = math.inf if entry.borrowers else min(self._find_left_s(entry), _LOOK_S)
                with anyio.move_on_after(wait_s):
                    await entry.changed.wait()
                if not entry.borrowers and (not self._find_left_s(entry) or memory.is_short()):
                    self._close(entry)
        finally:
            self._close(entry)
            with anyio.CancelScope(shield=True):
                if not isinstance(entry.load.readiness.state, Failed):  # that every wait tells
                    entry.load.readiness.close()
                    for session in entry.sessions:
                        session.leave()
                    for session in list(entry.sessions):
                        await session.settle()
                await entry.load.release()
            self._closing.discard(entry)
            if entry.task is not None:
                self._tasks.discard(entry.task)
            self._serve()

    def _find_left_s(self, entry: Entry) -> float:
        """Return the seconds for which an entry is kept if nobody borrows it."""
        if self._keep_alive_s is None:
            return math.inf
        return max(0.0, entry.idle_since_s + self._keep_alive_s - anyio.current_time())

    def _close(self, entry: Entry) -> None:
        """Let an entry be borrowed no more, and end its task."""
        if entry.is_closing:
            return
        entry.is_closing = True
        entry.changed.set()
        del self._open[entry.key]
        if entry.is_admitted:
            self._closing.add(entry)
        if entry.task is not None and not entry.load.readiness.is_ready:
            entry.task.cancel()  # it loads, or waits for room

    async def close(self) -> None:
        """Close all models, and wait until their memory is returned. Can't be cancelled."""
        self._is_closed = True
        with anyio.CancelScope(shield=True):
            for entry in list(self._open.values()):
                self._close(entry)
            for place in self._queue:
                place.is_next.set()  # whoever waits finds the pool closed
            for task in list(self._tasks):
                await task.wait()


async def _wait_until_open(entry: Entry) -> None:
    """Wait for a load. Its error is raised in each borrower's task, as a copy."""
    try:
        await entry.load.readiness.wait(None)
    except LoadingFailedError as error:
        cause = error.__cause__
        if isinstance(cause, Exception):
            raise copy.copy(cause) from cause
        raise
