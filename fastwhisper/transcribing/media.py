"""Media files: any file that FFmpeg can read -> blocks of mono 16-bit samples at 16 kHz.

FFmpeg reads through a file object that we opened: a path is never taken for a URL, and a playlist
can't open another file.
"""

from __future__ import annotations

import math
import warnings
from contextlib import suppress
from itertools import chain, groupby
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple, TypeAlias, TypeVar, cast

import av

from fastwhisper.errors import AudioError
from fastwhisper.transcribing.inputs import name_source, open_source
from fastwhisper.transcribing.links import split_links
from fastwhisper.transcribing.phase import replace_opposite_phase
from fastwhisper.whisper.filters import SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from av.container import InputContainer

    from fastwhisper.transcribing.inputs import MediaSource
    from fastwhisper.transcribing.timeline import Timeline

    IntSamples: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int16]]

__all__ = ["decode_media"]

_Item = TypeVar("_Item")

_BLOCK_BYTES: Final = 1 << 20
_TAGS: Final = (b"ID3", b"TAG", b"APETAGEX")
"""Begin of a packet that is no audio: the tag of an MP3 file that was appended to another one."""

_PLACE_S: Final = 1.0
"""What can't be decoded within so many seconds is one place."""

_SHOWN_PLACES: Final = 3

_HELD_S: Final = 10.0
"""Of a longer Ogg page, each part of so many seconds has a time."""


def decode_media(
    source: MediaSource, timeline: Timeline, *, check: Callable[[], None]
) -> Iterator[IntSamples]:
    """Decode the audio of a media file, block by block.

    What can't be decoded is left out, and what follows is decoded, as FFmpeg's command line does.
    One warning at the end says where that was. A file may change its format at any place.

    Args:
        source: A path; or a binary file object, which is read from its current position and is
            not closed. A file object that can't seek is copied to a temporary file first.
        timeline: Gets the late start and the gaps of the audio, which are not decoded.
        check: Called between packets, and between blocks of that copy; may raise to cancel.

    Yields:
        Mono samples at 16 kHz. Shape (samples,), int16; never empty.

    Raises:
        AudioError: The source can't be opened or read, is empty or opened as text, is not media,
            or has no audio that can be decoded.

    Source:
        `ffmpeg -ac 1 -ar 16000 -acodec pcm_s16le`, as in mlx_whisper's `load_audio`.
    """
    name = name_source(source)
    damage = _Damage(name)
    resampler = _Resampler(damage)
    is_empty = True
    with open_source(source, check=check) as file:
        frames = chain.from_iterable(
            _decode_link(link, damage, timeline, check=check)
            for link in split_links(file, name, check=check)
        )
        # None, the end of the stream, lets the resampler give what it still holds.
        for frame in chain(replace_opposite_phase(frames, name), [None]):
            for samples in resampler.convert(frame):
                is_empty = False
                yield samples
    if is_empty:
        reason = f": {damage.error}" if damage.error else ""
        raise AudioError(name, f"no audio that can be decoded (zero samples){reason}")
    damage.warn(timeline)


def _open_container(file: BinaryIO, name: str) -> InputContainer:
    """Open a file with FFmpeg. `name` is its name in messages."""
    try:
        # An empty list would allow every protocol. The name "none" allows no protocol, so a
        # playlist can name files and URLs but can't open them.
        return av.open(
            file,
            mode="r",
            buffer_size=_BLOCK_BYTES,
            container_options={"protocol_whitelist": "none"},
        )
    except av.FFmpegError as error:
        raise AudioError(name, f"not a media file that FFmpeg can read ({error})") from error
    except Exception as error:  # of the file object's read
        raise AudioError(name, f"the file can't be read ({error})") from error


def _choose_stream(container: InputContainer) -> av.AudioStream | None:
    """Return the audio stream that FFmpeg chooses, or None if there is no audio stream.

    Source:
        FFmpeg's rule: the default stream, then the most channels, then the first.
    """

    def rank(stream: av.AudioStream) -> tuple[bool, int]:
        return bool(stream.disposition & stream.disposition.default), stream.channels

    return max(container.streams.audio, key=rank, default=None)


class _Damage:
    """The places of an audio that can't be decoded.

    Attributes:
        name: Name of the audio in messages.
        position_s: Seconds that are decoded.
        error: What was wrong at the first place.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.position_s = 0.0
        self.error: Exception | None = None
        self._places_s: list[float] = []
        self._end_s = -math.inf

    def add(self, error: Exception) -> None:
        """Remember that nothing can be decoded here."""
        self.error = self.error or error
        if self.position_s > self._end_s + _PLACE_S:
            self._places_s.append(self.position_s)
        self._end_s = self.position_s

    def warn(self, timeline: Timeline) -> None:
        """Give one warning for all places, with their times in the file."""
        if not self._places_s:
            return
        places = ", ".join(
            f"{timeline.place_end(place_s):.1f} s" for place_s in self._places_s[:_SHOWN_PLACES]
        )
        if more := len(self._places_s[_SHOWN_PLACES:]):
            places += f" and at {more} more {'place' if more == 1 else 'places'}"
        warnings.warn(
            f"{self.name}: audio that can't be decoded is left out at {places} ({self.error})",
            stacklevel=2,
        )


class _Decoded(NamedTuple):
    """A decoded frame.

    Attributes:
        frame: The frame.
        time_s: When it begins, in the file's own time; None if the file does not say it.
        page: The byte at which its page of an Ogg file begins.
    """

    frame: av.AudioFrame
    time_s: float | None
    page: int | None

    @property
    def duration_s(self) -> float:
        """Its length in seconds."""
        return self.frame.samples / self.frame.sample_rate


def _decode_link(
    file: BinaryIO, damage: _Damage, timeline: Timeline, *, check: Callable[[], None]
) -> Iterator[av.AudioFrame]:
    """Decode the frames of a file, or of a link of a chained file, of which the first must open."""
    is_first = damage.position_s == 0
    try:
        container = _open_container(file, damage.name)
    except AudioError as error:
        if is_first or not isinstance(error.__cause__, av.FFmpegError):
            raise
        damage.add(error.__cause__)
        return
    with container:
        stream = _choose_stream(container)
        if stream is None:
            if is_first:
                raise AudioError(damage.name, "no audio stream in this media file")
            return
        start = container.start_time if is_first else None
        timeline.begin(None if start is None else start / av.time_base)
        frames = _decode_frames(container, stream, damage, check=check)
        if container.format.name == "ogg":
            frames = _time_pages(frames, stream)
        for one, following in _pair_with_next(frames):
            timeline.add(
                one.duration_s,
                time_s=one.time_s,
                following_s=following.time_s if following else None,
            )
            yield one.frame


def _time_pages(frames: Iterator[_Decoded], stream: av.AudioStream) -> Iterator[_Decoded]:
    """Give the frames of each Ogg page the time that the page has.

    A page says when it ends. FFmpeg takes that for the begin of the next page, also over a gap.

    Source:
        RFC 3533, section 6, the granule position; RFC 7845, section 4.
    """
    # A page of silence may be minutes long, which would be held in memory as a whole.
    pages = (
        list(page)
        for _, page in groupby(frames, key=lambda one: (one.page, (one.time_s or 0.0) // _HELD_S))
    )
    for page, following in _pair_with_next(pages):
        end_s = following[0].time_s if following else _find_end_s(stream)
        left_s = sum(one.duration_s for one in page)
        for one in page:
            yield one._replace(time_s=None if end_s is None else end_s - left_s)
            left_s -= one.duration_s


def _find_end_s(stream: av.AudioStream) -> float | None:
    """Return when a stream ends, in the file's own time; None if the file does not say it."""
    if stream.start_time is None or stream.duration is None or stream.time_base is None:
        return None
    return float((stream.start_time + stream.duration) * stream.time_base)


def _pair_with_next(items: Iterator[_Item]) -> Iterator[tuple[_Item, _Item | None]]:
    """Yield each item with the next one, and the last one with None."""
    item = next(items, None)
    while item is not None:
        following = next(items, None)
        yield item, following
        item = following


def _decode_frames(
    container: InputContainer, stream: av.AudioStream, damage: _Damage, *, check: Callable[[], None]
) -> Iterator[_Decoded]:
    """Decode the frames of a stream."""
    page: int | None = None

    def decode(packet: av.Packet[av.AudioStream] | None) -> Iterator[_Decoded]:
        for frame in stream.decode(packet):
            damage.position_s += frame.samples / frame.sample_rate
            yield _Decoded(frame, frame.time, page)

    packets = container.demux(stream)
    while True:
        check()
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.FFmpegError as error:
            damage.add(error)
            break  # the rest can't be split into packets: take what the decoder still holds
        except Exception as error:  # of the file object's read
            raise AudioError(damage.name, f"the file can't be read ({error})") from error
        page = packet.pos
        try:
            yield from decode(packet)
        except av.FFmpegError as error:
            if not bytes(packet).startswith(_TAGS):
                damage.add(error)
    with suppress(av.FFmpegError):
        yield from decode(None)


class _Resampler:
    """FFmpeg's resampler; set up again whenever the stream changes its format."""

    def __init__(self, damage: _Damage) -> None:
        self._damage = damage
        self._format: tuple[str, str, int] | None = None
        self._resampler: av.AudioResampler | None = None

    def convert(self, frame: av.AudioFrame | None) -> Iterator[IntSamples]:
        """Convert one frame; None at the end of the stream. Yields shape (samples,), int16."""
        try:
            if frame is None:
                yield from self._resample(None)
                return
            found = (frame.format.name, frame.layout.name, frame.sample_rate)
            if found != self._format:
                yield from self._resample(None)
                self._format = found
                self._resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)
            yield from self._resample(frame)
        except (av.FFmpegError, ValueError) as error:
            self._damage.add(error)

    def _resample(self, frame: av.AudioFrame | None) -> Iterator[IntSamples]:
        for output in self._resampler.resample(frame) if self._resampler else ():
            # A resampler that has nothing to do returns the None that ends the stream.
            if output is not None and output.samples:
                yield cast("IntSamples", output.to_ndarray()[0])
