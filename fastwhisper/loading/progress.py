"""Count bytes in any thread, report them on the event loop's."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import anyio

from fastwhisper.values import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastwhisper.values import Stage

__all__ = ["Meter"]

_PERIOD_S: Final = 0.05
"""Seconds between two reports: often enough for a bar, too seldom to cost anything."""


class Meter:
    """The progress of one load: how far each of its stages has come."""

    def __init__(self, on_progress: Callable[[Progress], object] | None) -> None:
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._latest: dict[Stage, Progress] = {}
        self._reported: dict[Stage, Progress] = {}
        self._finished = anyio.Event()

    def report(self, stage: Stage, done_bytes: int, total_bytes: int | None) -> None:
        """Say how far a stage has come, from any thread."""
        with self._lock:
            self._latest[stage] = Progress(stage, done_bytes, total_bytes)

    def add(self, stage: Stage, done_bytes: int) -> None:
        """Count bytes of a stage that was reported before, from any thread."""
        with self._lock:
            last = self._latest[stage]
            done = last.done_bytes + done_bytes
            self._latest[stage] = Progress(stage, done, last.total_bytes)

    def finish(self) -> None:
        """Let `pump` report what is left and return. On the event loop's thread."""
        self._finished.set()

    async def pump(self) -> None:
        """Report until `finish`; what the callback raises is raised here."""
        if self._on_progress is None:
            return
        self._finished = anyio.Event()
        while not self._finished.is_set():
            with anyio.move_on_after(_PERIOD_S):
                await self._finished.wait()
            with self._lock:
                latest = dict(self._latest)
            for stage, progress in latest.items():
                if self._reported.get(stage) != progress:
                    self._reported[stage] = progress
                    self._on_progress(progress)
