"""The mel filters that Whisper was trained with, and their sample rate.

Source:
    Radford et al. 2022, section 2.2; `audio.py` and `mel_filters.npz` of openai/whisper.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

__all__ = ["SAMPLE_RATE", "read_mel_filters"]

SAMPLE_RATE: Final = 16_000
"""Samples in one second of Whisper's input."""

_COUNTS: Final = (80, 128)
_FILE: Final = Path(__file__).parent / "data" / "mel_filters.npz"


def read_mel_filters(n_mels: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Read the filters that turn a spectrum into mel energies.

    Args:
        n_mels: Number of filters, 80 or 128.

    Returns:
        Shape (n_mels, 201), float32; the spectrum is that of 400 samples at 16 kHz.

    Raises:
        ValueError: There are no filters for `n_mels`.

    Source:
        `librosa.filters.mel(sr=16000, n_fft=400)`, as the file holds it.
    """
    if n_mels not in _COUNTS:
        raise ValueError(f"no mel filters for n_mels={n_mels}; Whisper has 80 or 128 filters")
    with np.load(_FILE, allow_pickle=False) as filters:
        found: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = filters[f"mel_{n_mels}"]
    return found
