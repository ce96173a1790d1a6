"""Audio: any media file or array -> samples -> Whisper's log-mel input.

A file is decoded as a stream and only its mel is kept: 115 MB an hour at 80 filters.

MLX arrays cross threads only when evaluated, so nothing made here is lazy when it
leaves: samples, filters and mel are NumPy arrays.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, TypeGuard, cast

import numpy as np

from fastwhisper.errors import AudioError
from fastwhisper.transcribing.media import SAMPLE_RATE, decode_media, media_name, open_media
from fastwhisper.whisper.filters import read_mel_filters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import mlx.core as mx

    from fastwhisper.transcribing.media import MediaSource

    FloatArray: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    AudioSource: TypeAlias = MediaSource | np.ndarray | mx.array

__all__ = [
    "HOP_SAMPLES",
    "SAMPLE_RATE",
    "WINDOW_FRAMES",
    "MelAudio",
    "load_audio",
    "log_mel",
    "open_mel",
    "to_samples",
]

HOP_SAMPLES: Final = 160
"""Samples a mel frame advances: 10 ms."""

WINDOW_FRAMES: Final = 3000
"""Mel frames of one window of the network: 30 s."""

_FFT_SAMPLES: Final = 400
_EDGE_SAMPLES: Final = _FFT_SAMPLES // 2
_BLOCK_SAMPLES: Final = WINDOW_FRAMES * HOP_SAMPLES
_FULL_SCALE: Final = np.float32(32768)
_GROW_FRAMES: Final = 10 * WINDOW_FRAMES


@dataclass(frozen=True, slots=True, eq=False)
class MelAudio:
    """The log-mel input of one audio, with the 30 s of silence Whisper expects after it.

    Attributes:
        mel: Scaled log10 energies. Shape (content_frames + 3000, n_mels), float32; one
            frame is 10 ms.
        content_frames: Frames before the added silence.
        duration_s: Length of the audio in seconds.
    """

    mel: FloatArray
    content_frames: int
    duration_s: float


def _go_on() -> None:
    """Never cancel."""


def load_audio(source: AudioSource, *, check: Callable[[], None] = _go_on) -> FloatArray:
    """Read a whole audio.

    Args:
        source: A path, a binary file object, or mono samples at 16 kHz: shape
            (samples,), float32, NumPy or MLX. An MLX array that is not evaluated yet
            must come from the calling thread.
        check: Called between blocks; may raise to cancel.

    Returns:
        Mono samples at 16 kHz, nominally in [-1, 1]. Shape (samples,), float32.

    Raises:
        AudioError: The source is no audio, or can't be read; the message says which.
    """
    return np.concatenate(list(_blocks(source, check)))


def to_samples(source: np.ndarray | mx.array) -> FloatArray:
    """Check samples, and turn MLX ones into NumPy's, which may cross threads.

    Args:
        source: Mono samples at 16 kHz. Shape (samples,), float32. An MLX array that is
            not evaluated yet must come from the calling thread.

    Returns:
        The samples. Shape (samples,), float32.

    Raises:
        AudioError: No samples, not one-dimensional, not float32, or not finite.
    """
    array = source if isinstance(source, np.ndarray) else _from_mlx(source)
    name = f"array of shape {array.shape}"
    if array.dtype != np.float32:
        raise AudioError(name, f"is {array.dtype}, not float32 samples in [-1, 1]")
    if array.ndim != 1:
        raise AudioError(name, "is not one-dimensional: give mono samples, shape (samples,)")
    if array.size == 0:
        raise AudioError(name, "has zero samples")
    if not np.isfinite(array).all():
        raise AudioError(name, "holds NaN or infinite samples")
    return array


def log_mel(pcm: FloatArray | mx.array, *, n_mels: int = 80) -> mx.array:
    """Turn audio into Whisper's log-mel input.

    Args:
        pcm: Mono samples in [-1, 1] at 16 kHz. Shape (samples,), float32.
        n_mels: Number of filters, 80 or 128.

    Returns:
        Scaled log10 energies, evaluated. Shape (frames, n_mels), float32; one frame is
        10 ms.

    Raises:
        AudioError: `pcm` is empty, not one-dimensional, not float32 or not finite.
        ValueError: No filters for `n_mels`.

    Source:
        Radford et al. 2022, section 2.2; equal to mlx_whisper's `log_mel_spectrogram`.
    """
    import mlx.core as mx  # noqa: PLC0415  blas.py acts before MLX is imported

    samples = to_samples(pcm)
    stream = _MelStream(n_mels)
    stream.push(samples[1 : _EDGE_SAMPLES + 1][::-1])
    stream.push(samples)
    stream.push(samples[-_EDGE_SAMPLES - 1 : -1][::-1])
    return mx.array(stream.finish(len(samples) // HOP_SAMPLES))


def open_mel(source: AudioSource, *, n_mels: int, check: Callable[[], None] = _go_on) -> MelAudio:
    """Turn any audio into Whisper's log-mel input, block by block.

    Args:
        source: As for `load_audio`.
        n_mels: Number of filters, 80 or 128.
        check: Called between blocks; may raise to cancel.

    Returns:
        The mel of the audio and of 30 s of silence after it.

    Raises:
        AudioError: The source is no audio, or can't be read; the message says which.
        ValueError: No filters for `n_mels`.

    Source:
        `transcribe` of mlx_whisper: `log_mel_spectrogram(audio, padding=N_SAMPLES)`.
    """
    stream = _MelStream(n_mels)
    blocks = _blocks(source, check)
    # The reflected edge needs one sample more than it is long; silence stands in for
    # what a shorter audio lacks, as it follows every audio.
    head = next(blocks)
    edge = np.zeros(_EDGE_SAMPLES + 1, np.float32)
    edge[: len(head)] = head[: len(edge)]
    stream.push(edge[:0:-1])
    stream.push(head)
    samples = len(head)
    for block in blocks:
        stream.push(block)
        samples += len(block)
    # The edge after the silence reflects silence.
    stream.push(np.zeros(_BLOCK_SAMPLES + _EDGE_SAMPLES, np.float32))
    content_frames = samples // HOP_SAMPLES
    return MelAudio(
        mel=stream.finish(content_frames + WINDOW_FRAMES),
        content_frames=content_frames,
        duration_s=samples / SAMPLE_RATE,
    )


def _blocks(source: AudioSource, check: Callable[[], None]) -> Iterator[FloatArray]:
    """Read a source in blocks of 30 s; the last one is shorter, none is empty."""
    if _is_media(source):
        yield from _media_blocks(source, check)
        return
    samples = to_samples(cast("np.ndarray", source))
    for start in range(0, len(samples), _BLOCK_SAMPLES):
        check()
        yield samples[start : start + _BLOCK_SAMPLES]


def _is_media(source: AudioSource) -> TypeGuard[MediaSource]:
    return isinstance(source, (str, os.PathLike)) or hasattr(source, "read")


def _media_blocks(source: MediaSource, check: Callable[[], None]) -> Iterator[FloatArray]:
    block = np.empty(_BLOCK_SAMPLES, np.float32)
    used = 0
    with open_media(source, check=check) as file:
        for decoded in decode_media(file, name=media_name(source), check=check):
            samples = decoded
            while len(samples):
                part = samples[: _BLOCK_SAMPLES - used]
                block[used : used + len(part)] = part
                used += len(part)
                samples = samples[len(part) :]
                if used == _BLOCK_SAMPLES:
                    yield block / _FULL_SCALE
                    used = 0
    if used:
        yield block[:used] / _FULL_SCALE


def _from_mlx(source: object) -> np.ndarray:
    import mlx.core as mx  # noqa: PLC0415  blas.py acts before MLX is imported

    if not isinstance(source, mx.array):
        raise AudioError(
            f"object of type {type(source).__name__}",
            "is no audio: give a path, a binary file, or float32 samples (NumPy or MLX)",
        )
    name = f"array of shape {source.shape}"
    if source.dtype != mx.float32:
        raise AudioError(name, f"is {source.dtype}, not float32 samples in [-1, 1]")
    try:
        return np.array(source)
    except RuntimeError as error:  # made lazily in another thread
        raise AudioError(
            name, f"call mx.eval on it in the thread that made it ({error})"
        ) from error


class _MelStream:
    """Samples in, log-mel out; keeps the mel and less than one block of samples."""

    def __init__(self, n_mels: int) -> None:
        self._filters = read_mel_filters(n_mels)
        self._pending = np.empty(0, np.float32)
        self._log = np.empty((0, n_mels), np.float32)
        self._frames = 0

    def push(self, samples: FloatArray) -> None:
        """Take samples. Shape (samples,), float32, of any length."""
        self._pending = np.concatenate([self._pending, samples])
        # Whole blocks only: FFT and matmul then see the rows they see upstream.
        while len(self._pending) >= _BLOCK_SAMPLES + _FFT_SAMPLES:
            self._keep(WINDOW_FRAMES)

    def finish(self, frames: int) -> FloatArray:
        """End the stream after so many frames. Returns shape (frames, n_mels), float32."""
        self._keep(frames - self._frames)
        # In place, as numpy never gives a view's memory back.
        self._log.resize((frames, self._log.shape[1]), refcheck=False)
        log = self._log
        if frames:
            np.maximum(log, log.max() - np.float32(8), out=log)
        log += np.float32(4)
        log /= np.float32(4)
        return log

    def _keep(self, frames: int) -> None:
        if frames == 0:
            return
        end = self._frames + frames
        if end > len(self._log):
            # Grows by realloc, which moves pages instead of holding two copies.
            self._log.resize((end + _GROW_FRAMES, self._log.shape[1]), refcheck=False)
        self._log[self._frames : end] = _log_energies(self._pending, frames, self._filters)
        self._pending = self._pending[frames * HOP_SAMPLES :].copy()
        self._frames = end


def _log_energies(samples: FloatArray, frames: int, filters: FloatArray) -> FloatArray:
    """Compute unscaled log10 energies. Returns shape (frames, n_mels), float32."""
    import mlx.core as mx  # noqa: PLC0415  blas.py acts before MLX is imported

    window = mx.array(np.hanning(_FFT_SAMPLES + 1)[:-1])
    framed = mx.as_strided(mx.array(samples), [frames, _FFT_SAMPLES], [HOP_SAMPLES, 1])
    energies = mx.fft.rfft(framed * window).abs().square() @ mx.array(filters).T
    return np.array(mx.maximum(energies, 1e-10).log10())
