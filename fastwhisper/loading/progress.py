"""Progress: bytes are counted in any thread and reported on the event loop's thread."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
import time
from functools import partial
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
        self._context = contextvars.copy_context()
        self._posted_s = 0.0

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
        """Add bytes to a stage, and report on the loop of `post`, where `pump` has ended.

        An exception from the callback comes too late to fail the load: it is logged, and nothing
        is reported any more.
        """
        self.add(stage, done_bytes)
        latest = self._latest[stage]
        now_s = time.monotonic()
        if now_s - self._posted_s < _PERIOD_S and latest.done_bytes != latest.total_bytes:
            return
        self._posted_s = now_s
        # The loop may have ended, in order or by a crash.
        with contextlib.suppress(RuntimeError, OSError):
            post(partial(self._context.copy().run, self._report_logged))

    def finish(self) -> None:
        """End `pump` after a last report. Called on the event loop's thread."""
        self._finished.set()

    async def pump(self) -> None:
        """Report until `finish`. An exception from the callback is raised here."""
        while self._on_progress is not None and not self._finished.is_set():
            with anyio.move_on_after(_PERIOD_S):
                await self._finished.wait()
            self.report_latest()

    def report_latest(self) -> None:
        """Call the callback for each stage that has changed. Called on the event loop's thread."""
        with self._lock:
            latest = dict(self._latest)
        for stage, progress in latest.items():
            if self._on_progress is not None and self._reported.get(stage) != progress:
                self._reported[stage] = progress
                self._on_progress(progress)

    def _report_logged(self) -> None:
        try:
            self.report_latest()
        except BaseException:
            # Raised here, SystemExit would end the host's loop: no task owns this call.
            self._on_progress = None
            _logger.exception("on_progress failed after the model was ready")
