"""A model of a pool, and the places of those who wait."""

from __future__ import annotations

import dataclasses
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeAlias

import anyio

if TYPE_CHECKING:
    from pathlib import Path

    from fastwhisper.engine import tasks
    from fastwhisper.loading.load import LoadTask
    from fastwhisper.session import Session
    from fastwhisper.values import LoadOptions, WhisperModel

    Key: TypeAlias = tuple[WhisperModel | Path | str, LoadOptions, bool]

__all__ = ["Entry", "Place", "borrowed"]

borrowed: ContextVar[tuple[Session, ...]] = ContextVar("borrowed", default=())
"""What the running task has borrowed, or the task that started it. Some may be left."""


@dataclasses.dataclass(slots=True, eq=False)
class Entry:
    """A model of the pool.

    Attributes:
        key: What it is borrowed by.
        load: Its load.
        bytes: Bytes of its weights; 0 before its files are inspected.
        is_admitted: Whether these bytes count.
        borrowers: Those who use it or wait for it to be ready.
        idle_since_s: When the last one left, on the loop's clock.
        changed: Set when a borrower comes or leaves, or the entry must close.
        is_closing: Whether nobody may borrow it any more.
        task: Its task.
        sessions: Those of its borrowers.
    """

    key: Key
    load: LoadTask
    bytes: int = 0
    is_admitted: bool = False
    borrowers: int = 0
    idle_since_s: float = 0.0
    changed: anyio.Event = dataclasses.field(default_factory=anyio.Event)
    is_closing: bool = False
    task: tasks.BackgroundTask | None = None
    sessions: set[Session] = dataclasses.field(default_factory=set)

    def is_held(self) -> bool:
        """Return whether the running task has borrowed it, or the task that started it."""
        return any(session in self.sessions for session in borrowed.get())


@dataclasses.dataclass(slots=True, eq=False)
class Place:
    """A place in the queue: of an entry that waits to be admitted, or of a borrower."""

    entry: Entry
    is_borrower: bool
    is_next: anyio.Event = dataclasses.field(default_factory=anyio.Event)
