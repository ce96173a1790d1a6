"""Samples -> stretches of up to 30 s that begin and end in silence.

A batch decodes them as its windows. They are found block by block, each as soon as the samples
after it allow, and at most a minute of samples is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from fastwhisper.transcribing.voice import FRAME_SAMPLES, VoiceDetector
from fastwhisper.whisper.filters import SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from fastwhisper.transcribing.samples import FloatArray

    IntArray = np.ndarray[tuple[int, ...], np.dtype[np.intp]]

__all__ = ["MAX_SAMPLES", "Cut", "cut_at_silences"]

MAX_SAMPLES: Final = 30 * SAMPLE_RATE
"""Most samples of a cut."""

_SPEECH: Final = 0.2
"""From this probability on, a frame is kept when silence is skipped."""

_POSSIBLE: Final = 0.15
"""From this probability on, a frame is decoded when silence is not skipped."""

_PAUSE_LIMIT: Final = 0.35
"""Below this probability, a frame belongs to a pause where speech may be cut."""

_LOUD: Final = 0.02
"""Level, as a root mean square, of the loudest 32 ms of a block. The detector hears quieter blocks
less and less, below 0.0002 not at all, so they are raised to this level."""

_MAX_GAIN: Final = 100.0
"""Largest factor by which a block is raised: 40 dB. What is quieter still is noise of 16 bits."""

_BLOCK_SAMPLES: Final = 30 * SAMPLE_RATE


def _to_frames(seconds: float) -> int:
    """Return the whole frames in a time."""
    return int(seconds * SAMPLE_RATE) // FRAME_SAMPLES


_MAX_FRAMES: Final = _to_frames(30)
_MARGIN: Final = _to_frames(0.4)
"""Frames of silence that are kept before and after speech."""

_LONG_PAUSE: Final = _to_frames(2)
"""Shorter pauses stay inside a cut."""

_SEARCH: Final = _to_frames(10)
"""The end of a cut that is full is searched in its last frames."""

_PAUSE: Final = _to_frames(0.25)
"""A pause between two phrases. The detector hardly sees shorter ones."""

_ENOUGH: Final = _to_frames(1)
"""Of pauses that are longer than this, the last one is taken and not the longest."""

_SMOOTH: Final = 3
"""Frames of the shortest gap between two words: 0.1 s."""


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """One contiguous stretch of an audio.

    Attributes:
        start_sample: Number of samples before it in the audio.
        samples: Its samples. Shape (samples,), float32; at least 1 and at most `MAX_SAMPLES`.
        has_speech: Whether there may be speech in it. False only if the detector is sure.
    """

    start_sample: int
    samples: FloatArray
    has_speech: bool

    def move(self, samples: int) -> Cut:
        """Return the same stretch of an audio with more samples before it."""
        return Cut(self.start_sample + samples, self.samples, self.has_speech)


def cut_at_silences(
    blocks: Iterator[FloatArray], *, skip_silence: bool, check: Callable[[], None]
) -> Iterator[Cut]:
    """Cut an audio at silences.

    A full cut ends in the longest pause of its last 10 s, and in speech without a pause where it
    is quietest. An exception from `check` ends that `next` and not the iterator: the following
    `next` goes on where it was. An exception from `blocks` ends both, if `blocks` is a generator.

    Args:
        blocks: Mono samples at 16 kHz, nominally in [-1, 1]. Shape (samples,), float32, each of
            any length.
        skip_silence: Whether silence of more than 2 s is left out. Then a cut holds speech with
            0.4 s before and after it. Otherwise the cuts cover all samples, and silence of more
            than 2 s may be a cut of its own.
        check: Called before each block, and every 30 s in longer ones; may raise to cancel.

    Returns:
        An iterator of cuts in order, without overlap. There is none if `blocks` has no sample, or
        no speech and `skip_silence`.
    """
    return _Cutter(blocks, skip_silence=skip_silence, check=check)


class _Cutter:
    """The cuts of one audio.

    It keeps the frames that are in no cut yet. All positions are frames from the first of them.
    """

    def __init__(
        self, blocks: Iterator[FloatArray], *, skip_silence: bool, check: Callable[[], None]
    ) -> None:
        self._blocks = blocks
        self._skip_silence = skip_silence
        self._check = check
        self._threshold = _SPEECH if skip_silence else _POSSIBLE
        self._detector = VoiceDetector()
        self._unread: FloatArray = np.empty(0, np.float32)
        self._start_sample = 0
        # Memory of fixed size: a new array for each short block of a live stream takes long.
        self._memory = np.empty(2 * _BLOCK_SAMPLES + MAX_SAMPLES, np.float32)
        self._used = 0
        self._probabilities: FloatArray = np.empty(0, np.float32)
        self._has_ended = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Cut:
        """Read blocks until a cut is complete."""
        while (cut := self._take_cut()) is None:
            if self._has_ended:
                raise StopIteration
            self._check()
            self._read()
        return cut

    def _read(self) -> None:
        """Read up to 30 s."""
        if len(self._unread) == 0:
            block = next(self._blocks, None)
            if block is None:
                self._has_ended = True
                self._add_frames(self._detector.finish())
                return
            self._unread = block
        samples = self._unread[:_BLOCK_SAMPLES]
        self._unread = self._unread[_BLOCK_SAMPLES:]
        self._memory[self._used : self._used + len(samples)] = samples
        self._used += len(samples)
        self._add_frames(self._detector.push(_raise_level(samples)))

    def _add_frames(self, probabilities: FloatArray) -> None:
        self._probabilities = np.concatenate([self._probabilities, probabilities])

    def _take_cut(self) -> Cut | None:
        """Return the next cut if it can be known already, and drop silence that is skipped."""
        speech = self._find_speech()
        if len(speech):
            silent = max(int(speech[0]) - _MARGIN, 0)
            is_silence_complete = silent > _LONG_PAUSE
        else:
            silent = self._known if self._has_ended else max(self._known - _MARGIN, 0)
            is_silence_complete = self._has_ended and silent > 0
        if self._skip_silence:
            self._drop(silent)
            speech -= silent
        elif is_silence_complete or silent >= _MAX_FRAMES:
            return self._cut(min(silent, _MAX_FRAMES), has_speech=False)
        end = self._find_end(speech) if len(speech) else None
        return None if end is None else self._cut(end, has_speech=True)

    @property
    def _known(self) -> int:
        """Frames with a probability."""
        return len(self._probabilities)

    def _find_speech(self) -> IntArray:
        """Return the frames that may have speech."""
        return np.flatnonzero(self._probabilities >= self._threshold)

    def _find_end(self, speech: IntArray) -> int | None:
        """Return the end of the cut that begins now, or None if more samples must be read first."""
        if self._skip_silence:
            pauses = np.flatnonzero(np.diff(speech) > _LONG_PAUSE)
            last = int(speech[pauses[0]] if len(pauses) else speech[-1])
            is_complete = self._has_ended or len(pauses) or self._known - last > _LONG_PAUSE
            end = min(last + 1 + _MARGIN, self._known)
            if is_complete and end <= _MAX_FRAMES:
                return end
        elif self._has_ended and self._known <= _MAX_FRAMES:
            return self._known
        # The frames after the longest cut say how long a pause at its end is.
        if self._known < _MAX_FRAMES + _MARGIN and not self._has_ended:
            return None
        return self._find_boundary(speech)

    def _find_boundary(self, speech: IntArray) -> int:
        """Return the best end of a full cut."""
        first = _MAX_FRAMES - _SEARCH
        last = int(speech[speech < _MAX_FRAMES][-1])
        if last + 1 + _MARGIN <= first:
            return last + 1 + _MARGIN  # nothing but silence in the last 10 s
        best, best_frames = None, _PAUSE - 1
        for start, end in _find_pauses(self._probabilities):
            if end <= first or start >= _MAX_FRAMES:
                continue
            frames = min(end - start, _ENOUGH)
            if frames >= best_frames:
                boundary = min(start + _MARGIN, (start + end) // 2, _MAX_FRAMES)
                best, best_frames = max(boundary, first), frames
        return self._find_quietest(first) if best is None else best

    def _find_quietest(self, first: int) -> int:
        """Return the best boundary in speech without a pause, from the frame `first` on."""
        samples = self._memory[first * FRAME_SAMPLES : _MAX_FRAMES * FRAME_SAMPLES]
        frames = np.clip(samples, -1, 1).reshape(-1, FRAME_SAMPLES)
        # From the quietest to the loudest frame, 0 to 1. 1e-10: -100 dB.
        levels = np.log10(np.square(frames).mean(axis=1) + np.float32(1e-10))
        levels -= levels.min()
        levels /= max(levels.max(), 1e-6)
        scores = self._probabilities[first:_MAX_FRAMES] + levels
        smoothed = np.convolve(scores, np.ones(_SMOOTH), mode="valid")
        # The last one, if several are equal.
        quietest = len(smoothed) - 1 - int(smoothed[::-1].argmin())
        return first + quietest + _SMOOTH // 2

    def _cut(self, frames: int, *, has_speech: bool) -> Cut:
        """Take frames as the next cut."""
        samples = self._memory[: min(frames * FRAME_SAMPLES, self._used)].copy()
        cut = Cut(self._start_sample, samples, has_speech)
        self._drop(frames)
        return cut

    def _drop(self, frames: int) -> None:
        """Forget frames."""
        samples = min(frames * FRAME_SAMPLES, self._used)
        self._start_sample += samples
        self._used -= samples
        self._memory[: self._used] = self._memory[samples : samples + self._used]
        self._probabilities = self._probabilities[frames:]


def _find_pauses(probabilities: FloatArray) -> Iterator[tuple[int, int]]:
    """Find the first and the end frame of each stretch without speech, in order."""
    is_quiet = np.concatenate([[False], probabilities < _PAUSE_LIMIT, [False]])
    edges = np.flatnonzero(np.diff(is_quiet.astype(np.int8)))
    for start, end in edges.reshape(-1, 2):
        yield int(start), int(end)


def _raise_level(samples: FloatArray) -> FloatArray:
    """Return samples at a level that the detector hears. Shape as given, float32."""
    starts = np.arange(0, len(samples), FRAME_SAMPLES)
    energies = np.add.reduceat(np.square(samples, dtype=np.float64), starts)
    loudest = np.sqrt(energies.max(initial=0) / FRAME_SAMPLES)
    gain = _LOUD / max(loudest, _LOUD / _MAX_GAIN)
    return samples if gain <= 1 else np.multiply(samples, gain, dtype=np.float32)
