"""Sound that comes in, and where in it somebody speaks."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import numpy as np

from fastwhisper.transcribing.voice import FRAME_SAMPLES, VoiceDetector
from fastwhisper.whisper.filters import SAMPLE_RATE

if TYPE_CHECKING:
    from fastwhisper.transcribing.samples import FloatArray

__all__ = ["SpeechBuffer"]

_FAINT_SPEECH: Final = 0.35
"""From this probability on, a frame continues speech."""

_LOUD: Final = 0.02
_MAX_GAIN: Final = 100.0
_LEVEL_SECONDS: Final = 30
"""Quiet sound is raised for the detector to the level of `cuts`, by the loudest of 30 s."""


class SpeechBuffer:
    """The sound that is still needed. All positions are samples from the begin of the stream.

    Attributes:
        samples: The sound. Shape (samples,), float32.
        start: Its begin, always that of a frame of the detector.
        speech_end: End of the last speech, also of speech that was dropped.
    """

    def __init__(self) -> None:
        self.samples = np.empty(0, np.float32)
        self.start = 0
        self.speech_end = 0
        self._voice = VoiceDetector()
        self._probabilities = np.empty(0, np.float32)
        self._levels: deque[float] = deque([0.0], maxlen=_LEVEL_SECONDS)
        self._level_samples = 0

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    @property
    def end(self) -> int:
        """End of the sound."""
        return self.start + len(self.samples)

    def push(self, samples: FloatArray) -> None:
        """Add sound: mono samples at 16 kHz, nominally in [-1, 1]. Shape (samples,), float32."""
        if not len(samples):
            return
        probabilities = self._voice.push(samples * self._measure_gain(samples))
        self.samples = np.concatenate([self.samples, samples])
        self._probabilities = np.concatenate([self._probabilities, probabilities])
        spoken = self.find_speech(_FAINT_SPEECH)
        if len(spoken):
            self.speech_end = int(spoken[-1]) + FRAME_SAMPLES

    def find_speech(self, least: float) -> np.ndarray:
        """Return where each frame begins that is speech with this probability or a higher one."""
        return self.start + np.flatnonzero(self._probabilities >= least) * FRAME_SAMPLES

    def drop(self, count: int) -> None:
        """Drop whole frames of the first samples."""
        frames = min(count // FRAME_SAMPLES, len(self._probabilities))
        if frames > 0:
            self.samples = self.samples[frames * FRAME_SAMPLES :]
            self._probabilities = self._probabilities[frames:]
            self.start += frames * FRAME_SAMPLES

    def _measure_gain(self, samples: FloatArray) -> float:
        """Return the factor by which the detector hears sound louder."""
        size = min(len(samples), FRAME_SAMPLES)  # a chunk may be shorter than a frame
        frames = samples[: len(samples) // size * size].reshape(-1, size)
        loudest = float(np.sqrt(np.square(frames).mean(axis=1)).max())
        self._levels[-1] = max(self._levels[-1], loudest)
        self._level_samples += len(samples)
        while self._level_samples >= SAMPLE_RATE:
            self._level_samples -= SAMPLE_RATE
            self._levels.append(loudest)
        return min(max(1.0, _LOUD / max(*self._levels, 1e-9)), _MAX_GAIN)
