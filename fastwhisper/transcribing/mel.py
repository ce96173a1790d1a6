"""Samples -> Whisper's log-mel input.

A file is decoded block by block and only its mel is kept: 115 MB for one hour at 80 filters. An
MLX array that is not evaluated works only in the thread that made it, so samples, filters and mel
are NumPy arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import mlx.core as mx
import numpy as np

from fastwhisper.transcribing.samples import never_cancel, read_blocks
from fastwhisper.whisper.filters import SAMPLE_RATE, read_mel_filters

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastwhisper.transcribing.samples import AudioSource, FloatArray

__all__ = ["FRAMES_PER_SECOND", "WINDOW_FRAMES", "MelAudio", "compute_mel"]

FRAMES_PER_SECOND: Final = 100
"""Mel frames in one second."""

WINDOW_FRAMES: Final = 30 * FRAMES_PER_SECOND
"""Mel frames of one window, which is the network's input: 30 s."""

_FFT_SAMPLES: Final = 400
_HOP_SAMPLES: Final = SAMPLE_RATE // FRAMES_PER_SECOND

_EDGE_SAMPLES: Final = _FFT_SAMPLES // 2
_WINDOW_SAMPLES: Final = WINDOW_FRAMES * _HOP_SAMPLES
_GROW_FRAMES: Final = 10 * WINDOW_FRAMES


@dataclass(frozen=True, slots=True, eq=False)
class MelAudio:
    """The log-mel input of one audio, and of the 30 s of silence that Whisper expects after it.

    Attributes:
        mel: Scaled log10 energies. Shape (content_frames + 3000, n_mels), float32; one frame is
            10 ms.
        content_frames: Frames before the added silence.
        duration_s: Length of the audio in seconds.
    """

    mel: FloatArray
    content_frames: int
    duration_s: float


def compute_mel(
    source: AudioSource, *, n_mels: int, check: Callable[[], None] = never_cancel
) -> MelAudio:
    """Compute Whisper's log-mel input of an audio, block by block.

    Args:
        source: A path, a binary file object, or mono samples at 16 kHz: shape (samples,),
            float32, NumPy or MLX. An MLX array that is not evaluated yet must have been made in
            the calling thread.
        n_mels: Number of filters, 80 or 128.
        check: Called between blocks; may raise to cancel.

    Returns:
        The mel of the audio and of 30 s of silence after it.

    Raises:
        AudioError: The source is not audio, or can't be read; the message says which.
        ValueError: There are no filters for `n_mels`.

    Source:
        Radford et al. 2022, section 2.2; `log_mel_spectrogram(audio, padding=N_SAMPLES)` in
        `transcribe` of mlx_whisper.
    """
    stream = _MelStream(n_mels)
    blocks = read_blocks(source, check=check)
    # The samples at the start are mirrored, which needs one sample more than the edge has. A
    # shorter audio is continued with silence, because silence follows every audio.
    head = next(blocks)
    edge = np.zeros(_EDGE_SAMPLES + 1, np.float32)
    edge[: len(head)] = head[: len(edge)]
    stream.push(edge[:0:-1])
    stream.push(head)
    samples = len(head)
    for block in blocks:
        stream.push(block)
        samples += len(block)
    # The edge after the added silence mirrors silence.
    stream.push(np.zeros(_WINDOW_SAMPLES + _EDGE_SAMPLES, np.float32))
    content_frames = samples // _HOP_SAMPLES
    return MelAudio(
        mel=stream.finish(content_frames + WINDOW_FRAMES),
        content_frames=content_frames,
        duration_s=samples / SAMPLE_RATE,
    )


def make_silent_window(n_mels: int) -> MelAudio:
    """Return the mel of one window without any energy, for a warm-up.

    Args:
        n_mels: Number of filters, 80 or 128.
    """
    mel = np.zeros((2 * WINDOW_FRAMES, n_mels), np.float32)
    return MelAudio(mel, content_frames=WINDOW_FRAMES, duration_s=0.0)


class _MelStream:
    """Samples in, mel out. Keeps the mel, and at most one window of samples."""

    def __init__(self, n_mels: int) -> None:
        self._filters = read_mel_filters(n_mels)
        self._pending = np.empty(0, np.float32)
        self._log = np.empty((0, n_mels), np.float32)
        self._frames = 0

    def push(self, samples: FloatArray) -> None:
        """Add samples. Shape (samples,), float32, of any length."""
        self._pending = np.concatenate([self._pending, samples])
        # Whole windows only, so that FFT and product see the same rows as in mlx_whisper.
        while len(self._pending) >= _WINDOW_SAMPLES + _FFT_SAMPLES:
            self._compute(WINDOW_FRAMES)

    def finish(self, frames: int) -> FloatArray:
        """Return the scaled mel of the first `frames` frames. Shape (frames, n_mels), float32."""
        self._compute(frames - self._frames)
        # Resized in place, because a view would keep all of the memory.
        self._log.resize((frames, self._log.shape[1]), refcheck=False)
        log = self._log
        np.maximum(log, log.max() - np.float32(8), out=log)
        log += np.float32(4)
        log /= np.float32(4)
        return log

    def _compute(self, frames: int) -> None:
        """Compute the next `frames` frames, and drop the samples that no later frame needs."""
        if frames == 0:
            return
        end = self._frames + frames
        if end > len(self._log):
            # `resize` moves memory pages; a new array would hold two copies for a moment.
            self._log.resize((end + _GROW_FRAMES, self._log.shape[1]), refcheck=False)
        self._log[self._frames : end] = _log_energies(self._pending, frames, self._filters)
        self._pending = self._pending[frames * _HOP_SAMPLES :].copy()
        self._frames = end


def _log_energies(samples: FloatArray, frames: int, filters: FloatArray) -> FloatArray:
    """Return log10 energies before scaling. Shape (frames, n_mels), float32."""
    taper = mx.array(np.hanning(_FFT_SAMPLES + 1)[:-1])
    framed = mx.as_strided(mx.array(samples), [frames, _FFT_SAMPLES], [_HOP_SAMPLES, 1])
    energies = mx.fft.rfft(framed * taper).abs().square() @ mx.array(filters).T
    return np.array(mx.maximum(energies, 1e-10).log10())
