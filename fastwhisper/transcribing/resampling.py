"""Samples at any rate -> samples at 16 kHz, by FFmpeg."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import av
import numpy as np

from fastwhisper.errors import AudioError
from fastwhisper.whisper.filters import SAMPLE_RATE

if TYPE_CHECKING:
    from fastwhisper.transcribing.samples import FloatArray

__all__ = ["resample"]

_RATES: Final = range(2_000, 768_001)
"""In Hz. A lower one is a rate in kHz, and would take memory without end."""


def resample(samples: FloatArray, rate: int) -> FloatArray:
    """Return samples at 16 kHz.

    Args:
        samples: Mono samples. Shape (samples,), float32.
        rate: Their rate in Hz.

    Returns:
        Shape (round(samples * 16000 / rate),) within a sample, float32.

    Raises:
        AudioError: No recording has this rate.
    """
    if rate not in _RATES:
        raise AudioError(f"samples at {rate} Hz", "give their sampling rate in Hz")
    if rate == SAMPLE_RATE or not len(samples):
        return samples
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(samples[None], np.float32), format="fltp", layout="mono"
    )
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
    frames = [*resampler.resample(frame), *resampler.resample(None)]
    found = [part.to_ndarray()[0] for part in frames]
    if not found:
        raise AudioError(f"{len(samples)} samples at {rate} Hz", "too short; give more")
    return np.concatenate(found)
