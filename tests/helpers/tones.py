"""Speech for tests of cutting: tones, and a voice detector that takes them for speech."""

from __future__ import annotations

import itertools

import numpy as np

from fastwhisper.transcribing.voice import FRAME_SAMPLES
from tests.helpers.audio import SAMPLE_RATE, tone

__all__ = ["ToneDetector", "alternate", "silence"]


class ToneDetector:
    """A detector that calls a frame speech if a sample in it is above 0.2.

    Below that the probability is the loudest sample, so a test can say what it is.
    """

    def __init__(self) -> None:
        self._pending = np.empty(0, np.float32)

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Add samples. Shape (samples,) to (frames,), float32."""
        self._pending = np.concatenate([self._pending, samples])
        frames = len(self._pending) // FRAME_SAMPLES
        whole = self._pending[: frames * FRAME_SAMPLES].reshape(frames, FRAME_SAMPLES)
        self._pending = self._pending[frames * FRAME_SAMPLES :]
        peaks = np.abs(whole).max(axis=1, initial=0)
        return np.where(peaks > 0.2, 1, peaks).astype(np.float32)

    def finish(self) -> np.ndarray:
        """Return the probability of the last frame."""
        return self.push(np.zeros(-len(self._pending) % FRAME_SAMPLES, np.float32))


def silence(seconds: float) -> np.ndarray:
    """Return zeros. Shape (samples,), float32."""
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def alternate(*seconds: float) -> np.ndarray:
    """Return silence, a tone, silence and so on, each of a given length.

    Shape (samples,), float32.
    """
    makers = itertools.cycle([silence, tone])
    return np.concatenate([make(length) for make, length in zip(makers, seconds, strict=False)])
