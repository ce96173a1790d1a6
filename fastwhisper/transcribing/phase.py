"""Channels in opposite phase, which are silent when they are mixed, are found and replaced."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Final

import av
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["replace_opposite_phase"]

_LIMIT: Final = 0.04
"""Power of the sum of the channels, as a share of the power of the loudest channel. A mix of two
channels is then 20 dB quieter than the louder one. That of channels without a relation is 2."""

_STEP: Final = 4
"""One frame of so many is measured."""


def replace_opposite_phase(frames: Iterable[av.AudioFrame], name: str) -> Iterator[av.AudioFrame]:
    """Replace all channels by the loudest one, where a mix of them would be nearly silent.

    Each second is measured on its own. The first one that is replaced gives a warning.

    Args:
        frames: Decoded frames of any format.
        name: Name of the audio in the warning.

    Yields:
        As many frames, of the same length and format. Others are the same objects.
    """
    is_known = False
    for block in _split_seconds(frames):
        channel = _find_channel(block)
        if channel is None:
            yield from block
            continue
        if not is_known:
            is_known = True
            warnings.warn(
                f"{name}: the channels are in opposite phase and cancel each other; the louder "
                "one is transcribed",
                stacklevel=2,
            )
        for frame in block:
            yield _spread(frame, channel)


def _split_seconds(frames: Iterable[av.AudioFrame]) -> Iterator[list[av.AudioFrame]]:
    """Split frames into blocks of about 1 s, each of one format."""
    block: list[av.AudioFrame] = []
    samples = 0
    for frame in frames:
        if block and (_form(frame) != _form(block[0]) or samples >= frame.sample_rate):
            yield block
            block, samples = [], 0
        block.append(frame)
        samples += frame.samples
    if block:
        yield block


def _form(frame: av.AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _find_channel(block: list[av.AudioFrame]) -> int | None:
    """Return the loudest channel if a mix would be nearly silent; otherwise None."""
    count = block[0].layout.nb_channels
    # PyAV can't read 64-bit integers, which hardly any recording has.
    if count == 1 or block[0].format.name.startswith("s64"):
        return None
    powers, mixed = np.zeros(count), 0.0
    for frame in block[::_STEP]:
        samples = _read(frame).astype(np.float32)
        if frame.format.name.startswith("u8"):
            samples -= 128
        mix = samples.sum(axis=0)
        powers += np.einsum("ij,ij->i", samples, samples)
        mixed += float(mix @ mix)
    return int(powers.argmax()) if mixed < _LIMIT * powers.max() else None


def _read(frame: av.AudioFrame) -> np.ndarray:
    """Return the samples of a frame. Shape (channels, samples), of the frame's type."""
    samples = frame.to_ndarray()
    return samples if frame.format.is_planar else samples.reshape(frame.samples, -1).T


def _spread(frame: av.AudioFrame, channel: int) -> av.AudioFrame:
    """Return a frame with one channel of this one in all its channels."""
    count = frame.layout.nb_channels
    samples = np.repeat(_read(frame)[channel][None], count, axis=0)
    if not frame.format.is_planar:
        samples = samples.T.reshape(1, -1)
    made = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(samples), format=frame.format.name, layout=frame.layout.name
    )
    made.sample_rate, made.pts, made.time_base = frame.sample_rate, frame.pts, frame.time_base
    return made
