"""Any audio -> mono float32 samples at 16 kHz.

Importing this module imports neither MLX nor FFmpeg: samples that are a NumPy array need neither.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import numpy as np

from fastwhisper.errors import AudioError
from fastwhisper.transcribing.timeline import Timeline
from fastwhisper.whisper.filters import SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import mlx.core as mx

    from fastwhisper.transcribing.inputs import MediaSource

    FloatArray: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    AudioSource: TypeAlias = MediaSource | np.ndarray | mx.array

__all__ = ["load_audio", "never_cancel", "read_blocks", "read_chunk", "to_samples"]

_BLOCK_SAMPLES: Final = 30 * SAMPLE_RATE

_FULL_SCALE: Final = np.float32(32768)

_LOUDEST: Final = 32.0
"""Largest sample of a float recording, 30 dB above 1. Larger ones are integers as floats."""


def never_cancel() -> None:
    """Return without an exception: the `check` of a caller that never cancels."""


def load_audio(source: AudioSource, *, check: Callable[[], None] = never_cancel) -> FloatArray:
    """Read a whole audio.

    Args:
        source: A path, a binary file object, or mono samples at 16 kHz: shape (samples,),
            float32, NumPy or MLX. An MLX array that is not evaluated yet must have been made in
            the calling thread.
        check: Called between blocks; may raise to cancel.

    Returns:
        Mono samples at 16 kHz, nominally in [-1, 1]. Shape (samples,), float32.

    Raises:
        AudioError: The source is not audio, or can't be read; the message says which.
    """
    return np.concatenate(list(read_blocks(source, check=check)))


def read_blocks(
    source: AudioSource, *, check: Callable[[], None], timeline: Timeline | None = None
) -> Iterator[FloatArray]:
    """Read an audio in blocks of 30 s.

    Args:
        source: As for `load_audio`.
        check: Called between blocks; may raise to cancel.
        timeline: Gets the late start and the gaps of a media file, which are not decoded.

    Yields:
        Mono samples at 16 kHz, nominally in [-1, 1]. Shape (480_000,), float32; the last block is
        shorter, and no block is empty.

    Raises:
        AudioError: The source is not audio, or can't be read; the message says which.
    """
    if isinstance(source, (str, os.PathLike)) or hasattr(source, "read"):
        yield from _read_media(cast("MediaSource", source), timeline or Timeline(), check)
        return
    samples = to_samples(cast("np.ndarray", source))
    for start in range(0, len(samples), _BLOCK_SAMPLES):
        check()
        yield samples[start : start + _BLOCK_SAMPLES]


def _read_media(
    source: MediaSource, timeline: Timeline, check: Callable[[], None]
) -> Iterator[FloatArray]:
    """Read a media file in blocks of 30 s, as `read_blocks` does."""
    from fastwhisper.transcribing.media import decode_media  # noqa: PLC0415  FFmpeg takes 0.1 s

    block = np.empty(_BLOCK_SAMPLES, np.float32)
    used = 0
    for decoded in decode_media(source, timeline, check=check):
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


def to_samples(source: np.ndarray | mx.array) -> FloatArray:
    """Check samples, and convert an MLX array to NumPy, so that another thread may read it.

    Args:
        source: Mono samples at 16 kHz. Shape (samples,), float32. An MLX array that is not
            evaluated yet must have been made in the calling thread.

    Returns:
        The samples. Shape (samples,), float32.

    Raises:
        AudioError: The source is not an array, has no samples, is not one-dimensional, not
            float32, not finite, or in the range of integers.
    """
    array = source if isinstance(source, np.ndarray) else _from_mlx(source)
    name = _name(array)
    if array.dtype.kind not in "fiu":
        raise AudioError(name, f"dtype {array.dtype}; give float32 samples in [-1, 1]")
    if array.ndim != 1:
        raise AudioError(name, "not one-dimensional; give mono samples of shape (samples,)")
    if array.size == 0:
        raise AudioError(name, "zero samples; give at least one")
    lowest, highest = float(array.min()), float(array.max())
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise AudioError(name, "NaN or infinite samples; give finite ones in [-1, 1]")
    peak = max(-lowest, highest)
    if array.dtype != np.float32 or peak > _LOUDEST:
        found = f"dtype {array.dtype}, largest value {peak:g}"
        library = "numpy" if array is source else "mlx.core"
        raise AudioError(name, f"{found}; give {_conversion(array.dtype, peak, library)}")
    return array


def _conversion(dtype: np.dtype[np.generic], peak: float, library: str) -> str:
    """Return the code that makes float32 samples in [-1, 1] of samples with this peak."""
    code = "samples" if dtype == np.float32 else f"samples.astype({library}.float32)"
    if dtype.kind == "u":
        return f"{code} / {1 << (8 * dtype.itemsize - 1)} - 1"
    if dtype.kind == "f" and peak <= _LOUDEST:
        return code
    # Of the resolutions that recordings have, the first with this peak: integers of 16 bits are
    # often kept in a larger type.
    bits = 8 if dtype == np.int8 else next((b for b in (16, 24, 32) if peak <= 1 << (b - 1)), 64)
    return f"{code} / {1 << (bits - 1)}"


def _from_mlx(source: object) -> np.ndarray:
    """Convert an MLX array to NumPy."""
    mlx = sys.modules.get("mlx.core")  # a process that has not imported it has no MLX array
    if mlx is None or not isinstance(source, mlx.array):
        raise AudioError(
            f"object of type {type(source).__name__}",
            "not audio; give a path, a binary file, or float32 samples (NumPy or MLX)",
        )
    array = cast("mx.array", source)
    if array.dtype == mlx.bfloat16:  # NumPy has none
        raise AudioError(_name(array), "dtype bfloat16; give samples.astype(mlx.core.float32)")
    try:
        return np.array(array)
    except RuntimeError as error:  # not evaluated, and made in another thread
        raise AudioError(
            _name(array), f"call mx.eval on it in the thread that made it ({error})"
        ) from error


def _name(array: np.ndarray | mx.array) -> str:
    """Return the name of an array for messages."""
    return f"array of shape {array.shape}"


def read_chunk(chunk: object) -> FloatArray:
    """Check a chunk of sound, and convert it to samples.

    Args:
        chunk: Bytes of 16-bit little-endian integers, or mono samples at 16 kHz: shape (samples,),
            float32, NumPy or MLX.

    Returns:
        Shape (samples,), float32.

    Raises:
        AudioError: It is something else; the message says what.
    """
    if isinstance(chunk, bytes):
        samples: FloatArray = np.frombuffer(chunk, "<i2").astype(np.float32)
        samples /= _FULL_SCALE
        return samples
    return to_samples(cast("np.ndarray", chunk))
