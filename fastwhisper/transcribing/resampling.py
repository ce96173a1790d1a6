"""Samples at any rate -> samples at 16 kHz, by FFmpeg."""

from __future__ import annotations

from typing import TYPE_CHECKING

import av
import numpy as np

from fastwhisper.errors import AudioError
from fastwhisper.whisper.filters import SAMPLE_RATE

if TYPE_CHECKING:
    from fastwhisper.transcribing.samples import FloatArray

__all__ = ["resample"]

_HIGHEST_RATE = 768_000


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
    if rate == SAMPLE_RATE or not len(samples):
        return samples
    if not 0 < rate <= _HIGHEST_RATE:
        raise AudioError(f"samples at {rate} Hz", "give the sampling rate of the recording in Hz")
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(samples[None], np.float32), format="fltp", layout="mono"
    )
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
    frames = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([part.to_ndarray()[0] for part in frames])
