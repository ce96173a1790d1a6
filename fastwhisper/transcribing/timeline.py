"""Positions in the decoded audio -> times in the media file, where it may begin late or have gaps.

What is missing in the file is not decoded as silence. The decoder notes each gap before it gives
the samples behind it, in the same thread.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

from fastwhisper.whisper.filters import SAMPLE_RATE

__all__ = ["Timeline"]

_LATE_START_S: Final = 0.2
"""A start that is less late is the delay of an encoder: 0.14 s at most, for MP3 at 8 kHz and AAC at
16 kHz. FFmpeg's command and mlx_whisper add none. Whisper's own times are not more exact."""

_GAP_S: Final = 1.0
"""A shorter gap is left out of the times. Several that add up to more are one gap."""

_STRETCH_S: Final = 0.2
"""Least audio between two gaps, so that broken times do not make a window of each frame."""

_LATEST_S: Final = 30 * 24 * 3600.0
"""A time after this many seconds is broken. Mel frames have to fit into 32 bits."""


class Timeline:
    """The times of one audio, frame by frame: its late start and its gaps."""

    def __init__(self) -> None:
        self._audio_s = 0.0
        self._shift_s = 0.0
        # The file's own time of its begin; None if the first frame says it.
        self._origin_s: float | None = None
        self._limit_s = _LATE_START_S
        # The samples at which gaps are, and how far what follows is moved, in samples.
        self._gaps: list[int] = []
        self._shifts: list[int] = []

    def begin(self, origin_s: float | None) -> None:
        """Begin with a file, or with the next link of a chained file.

        Args:
            origin_s: Begin of the file in its own time, in seconds. None if its audio is its begin.
        """
        self._origin_s = origin_s
        self._limit_s = _LATE_START_S

    def add(self, duration_s: float, *, time_s: float | None, following_s: float | None) -> None:
        """Add a decoded frame.

        A time that goes back changes nothing. One that is too late is a gap if the next frame
        agrees: a single wrong time is not.

        Args:
            duration_s: Length of the frame in seconds.
            time_s: When it begins, in the file's own time; None if the file does not say it.
            following_s: The same for the next frame.
        """
        expected_s = self._audio_s + self._shift_s
        if time_s is not None and self._origin_s is None:
            self._origin_s = time_s - expected_s
        if time_s is not None and following_s is not None and self._origin_s is not None:
            found_s = time_s - self._origin_s
            is_confirmed = abs(following_s - time_s - duration_s) <= _GAP_S
            is_late = expected_s + self._limit_s < found_s <= _LATEST_S
            if is_late and is_confirmed and self._has_room:
                self._shift_s += found_s - expected_s
                self._gaps.append(round(self._audio_s * SAMPLE_RATE))
                self._shifts.append(round(self._shift_s * SAMPLE_RATE))
        self._limit_s = _GAP_S
        self._audio_s += duration_s

    @property
    def _has_room(self) -> bool:
        """Whether there is enough audio after the last gap."""
        return not self._gaps or self._audio_s - self._gaps[-1] / SAMPLE_RATE >= _STRETCH_S

    def place(self, sample: int) -> int:
        """Return where in the file a sample of the audio is, in samples from the file's begin."""
        count = bisect_right(self._gaps, sample)
        return sample + (self._shifts[count - 1] if count else 0)

    def place_end(self, audio_s: float) -> float:
        """Return when something ends in the file that ends so many seconds into the audio."""
        last = max(round(audio_s * SAMPLE_RATE) - 1, 0)
        return audio_s + (self.place(last) - last) / SAMPLE_RATE

    def find_gap(self, sample: int) -> int | None:
        """Return the first sample behind the next gap that is known; None if there is none."""
        count = bisect_right(self._gaps, sample)
        return self._gaps[count] if count < len(self._gaps) else None
