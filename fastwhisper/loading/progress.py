"""Progress: bytes are counted in any thread and reported on the event loop's thread."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING, Final

import anyio

from fastwhisper.values import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastwhisper.values import Stage

__all__ = ["Meter"]

_logger = logging.getLogger("fastwhisper")

_PERIOD_S: Final = 0.05
"""Seconds between two reports: often enough for a progress bar, and too seldom to cost time."""


class Meter:
    """The progress of each stage of one load."""

    def __init__(self, on_progress: Callable[[Progress], object] | None) -> None:
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._latest: dict[Stage, Progress] = {}
        self._reported: dict[Stage, Progress] = {}
        self._finished = anyio.Event()

    def report(self, stage: Stage, done_bytes: int, total_bytes: int | None) -> None:
        """Set the progress of a stage, from any thread."""
        with self._lock:
            self._latest[stage] = Progress(stage, done_bytes, total_bytes)

    def add(self, stage: Stage, done_bytes: int) -> None:
        """Add bytes to a stage that was set before, from any thread."""
        with self._lock:
            last = self._latest[stage]
            done = last.done_bytes + done_bytes
            self._latest[stage] = Progress(stage, done, last.total_bytes)

    def add_and_post(
        self, stage: Stage, post: Callable[[Callable[[], object]], object], done_bytes: int
    ) -> None:
        """Add bytes to a stage, and report on the loop of `post`, where no `pump` runs any more.

        An exception from the callback is logged: it comes too late to fail the load.
        """
        self.add(stage, done_bytes)
        # The loop may have ended since.
        with contextlib.suppress(RuntimeError):
            post(self._report_logged)

    def finish(self) -> None:
        """End `pump` after a last report. Called on the event loop's thread."""
        self._finished.set()

    async def pump(self) -> None:
        """Report until `finish`. An exception from the callback is raised here."""
        while self._on_progress is not None and not self._finished.is_set():
            with anyio.move_on_after(_PERIOD_S):
                await self._finished.wait()
            self._report_latest()

    def _report_latest(self) -> None:
        with self._lock:
            latest = dict(self._latest)
        for stage, progress in latest.items():
            if self._on_progress is not None and self._reported.get(stage) != progress:
                self._reported[stage] = progress
                self._on_progress(progress)

    def _report_logged(self) -> None:
        try:
            self._report_latest()
        except Exception:
            _logger.exception("on_progress failed after the model was ready")
