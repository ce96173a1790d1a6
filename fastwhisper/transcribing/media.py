"""Media files: any file that FFmpeg can read -> blocks of mono 16-bit samples at 16 kHz.

Only regular files are opened, so opening never waits for another process. FFmpeg reads through a
file object that we opened: a path is never taken for a URL, and a playlist can't open another file.
"""

from __future__ import annotations

import inspect
import io
import math
import os
import re
import select
import stat
import tempfile
import warnings
from contextlib import contextmanager, suppress
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO, Final, TypeAlias, cast

import av

from fastwhisper.errors import AudioError
from fastwhisper.transcribing.links import split_links
from fastwhisper.transcribing.phase import replace_opposite_phase
from fastwhisper.whisper.filters import SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from av.container import InputContainer

    MediaSource: TypeAlias = str | os.PathLike[str] | BinaryIO
    IntSamples: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int16]]

__all__ = ["decode_media"]

_BLOCK_BYTES: Final = 1 << 20
_SPOOL_IN_MEMORY_BYTES: Final = 32 << 20
_POLL_MS: Final = 100

_IS_TEXT: Final = "the file is opened as text; open it in binary mode"

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|data:")
"""Begin of a URL, also of one that went through `Path`, which leaves one slash."""

_TAGS: Final = (b"ID3", b"TAG", b"APETAGEX")
"""Begin of a packet that is no audio: the tag of an MP3 file that was appended to another one."""

_PLACE_S: Final = 1.0
"""What can't be decoded within so many seconds is one place."""

_SHOWN_PLACES: Final = 3

_LONGEST_NAME: Final = 4096
"""Characters of a name in messages: what is longer is no path, but may be a URL with data."""


def decode_media(source: MediaSource, *, check: Callable[[], None]) -> Iterator[IntSamples]:
    """Decode the audio of a media file, block by block.

    What can't be decoded is left out, and what follows is decoded, as FFmpeg's command line does.
    One warning at the end says where that was. A file may change its format at any place.

    Args:
        source: A path; or a binary file object, which is read from its current position and is
            not closed. A file object that can't seek is copied to a temporary file first.
        check: Called between packets, and between blocks of that copy; may raise to cancel.

    Yields:
        Mono samples at 16 kHz. Shape (samples,), int16; never empty.

    Raises:
        AudioError: The source can't be opened or read, is empty or opened as text, is not media,
            or has no audio that can be decoded.

    Source:
        `ffmpeg -ac 1 -ar 16000 -acodec pcm_s16le`, as in mlx_whisper's `load_audio`.
    """
    name = _name(source)
    damage = _Damage(name)
    resampler = _Resampler(damage)
    is_empty = True
    with _open_source(source, check=check) as file:
        frames = chain.from_iterable(
            _decode_link(link, damage, check=check) for link in split_links(file, name, check=check)
        )
        # None, the end of the stream, lets the resampler give what it still holds.
        for frame in chain(replace_opposite_phase(frames, name), [None]):
            for samples in resampler.convert(frame):
                is_empty = False
                yield samples
    if is_empty:
        reason = f": {damage.error}" if damage.error else ""
        raise AudioError(name, f"no audio that can be decoded (zero samples){reason}")
    damage.warn()


def _name(source: MediaSource) -> str:
    """Return the name of a source for messages: its path, or the name of the file object."""
    if isinstance(source, (str, os.PathLike)):
        return repr(os.fspath(source))
    name = getattr(source, "name", None)  # None or a descriptor, if the file has no name
    return name if isinstance(name, str) else "file object"


@contextmanager
def _open_source(source: MediaSource, *, check: Callable[[], None]) -> Iterator[BinaryIO]:
    """Open a source as a seekable binary file that is not empty, at its first byte."""
    if isinstance(source, (str, os.PathLike)):
        with _open_regular(os.fsdecode(source)) as file:
            yield file
        return
    if isinstance(source, io.TextIOBase):
        raise AudioError(_name(source), _IS_TEXT)
    if inspect.iscoroutinefunction(source.read):
        raise AudioError(
            _name(source), "its read() is asynchronous; give io.BytesIO(await file.read())"
        )
    with _translate_errors(source):
        # An object may have no more than `read`.
        is_seekable = hasattr(source, "seekable") and source.seekable() and source.tell() == 0
    if is_seekable:
        with _translate_errors(source):
            size_bytes = source.seek(0, os.SEEK_END)
            source.seek(0)
        _check_size(source, size_bytes)
        yield source
        return
    with tempfile.SpooledTemporaryFile(max_size=_SPOOL_IN_MEMORY_BYTES) as copy:
        while block := _read_block(source, check=check):
            check()
            copy.write(block)
        _check_size(source, copy.tell())
        copy.seek(0)
        yield cast("BinaryIO", copy)


def _open_regular(path: str) -> BinaryIO:
    """Open a regular file that is not empty, for reading."""
    name = _name(path)
    try:
        if path.startswith("~") and not os.path.lexists(path):
            path = os.path.expanduser(path)  # noqa: PTH111  Path raises if there is no home
        file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115  Path.open takes no opener; the caller closes it
    except (OSError, ValueError) as error:  # ValueError: NUL, or no encoding for the name
        raise AudioError(name[:_LONGEST_NAME], _explain(error, path)) from error
    # Checked on the open file, because the path may name another file by now.
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise AudioError(name, "not a regular file; the command line reads a pipe as '-'")
    if status.st_size == 0:
        file.close()
        raise AudioError(name, "the file is empty")
    return file


def _open_without_waiting(name: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a FIFO waits until another process writes to it.
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def _explain(error: OSError | ValueError, path: str) -> str:
    """Return why a file can't be opened, and what to do."""
    if isinstance(error, IsADirectoryError):
        return "this is a directory; give an audio file"
    if isinstance(error, PermissionError):
        return "no permission to read this file"
    if _URL.match(path):
        return "URLs are not opened; download the file and give its path"
    if isinstance(error, FileNotFoundError):
        return "no such file; check the path"
    return f"the file can't be opened ({error})"


def _check_size(source: BinaryIO, size_bytes: int) -> None:
    """Raise AudioError for a file object without a byte."""
    if size_bytes == 0:
        raise AudioError(_name(source), "the file is empty")


def _read_block(source: BinaryIO, *, check: Callable[[], None]) -> bytes:
    """Read up to 1 MiB from a file object; return no bytes at its end."""
    descriptor = _descriptor(source)
    read = source.read
    if descriptor is not None and isinstance(source, io.BufferedReader):
        # A pipe may stay silent without end, and its reader must still be able to cancel.
        pipe = select.poll()
        pipe.register(descriptor, select.POLLIN)
        while not pipe.poll(_POLL_MS):
            check()
        read = source.read1
    with _translate_errors(source):
        block: object = read(_BLOCK_BYTES)
    if isinstance(block, str):
        raise AudioError(_name(source), _IS_TEXT)
    if not isinstance(block, (bytes, bytearray, memoryview)):
        raise AudioError(_name(source), f"its read() returns {type(block).__name__}, not bytes")
    return bytes(block)


def _descriptor(source: BinaryIO) -> int | None:
    """Return the file descriptor of a file object, or None if it has none."""
    try:
        return source.fileno()
    except (AttributeError, OSError, ValueError):  # ValueError: closed, as reading it says
        return None


@contextmanager
def _translate_errors(source: BinaryIO) -> Iterator[None]:
    """Raise AudioError for what a file object raises: any error, as it may be of any library."""
    try:
        yield
    except Exception as error:
        raise AudioError(_name(source), f"the file can't be read ({error})") from error


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

    def warn(self) -> None:
        """Give one warning for all places."""
        if not self._places_s:
            return
        places = ", ".join(f"{place_s:.1f} s" for place_s in self._places_s[:_SHOWN_PLACES])
        if more := len(self._places_s[_SHOWN_PLACES:]):
            places += f" and at {more} more {'place' if more == 1 else 'places'}"
        warnings.warn(
            f"{self.name}: audio that can't be decoded is left out at {places} ({self.error})",
            stacklevel=2,
        )


def _decode_link(
    file: BinaryIO, damage: _Damage, *, check: Callable[[], None]
) -> Iterator[av.AudioFrame]:
    """Decode the frames of a file, or of a link of a chained file, of which the first must open."""
    try:
        container = _open_container(file, damage.name)
    except AudioError as error:
        if damage.position_s == 0 or not isinstance(error.__cause__, av.FFmpegError):
            raise
        damage.add(error.__cause__)
        return
    with container:
        stream = _choose_stream(container)
        if stream is not None:
            for frame in _decode_frames(container, stream, damage, check=check):
                damage.position_s += frame.samples / frame.sample_rate
                yield frame
        elif damage.position_s == 0:
            raise AudioError(damage.name, "no audio stream in this media file")


def _decode_frames(
    container: InputContainer, stream: av.AudioStream, damage: _Damage, *, check: Callable[[], None]
) -> Iterator[av.AudioFrame]:
    """Decode the frames of a stream."""
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
        try:
            yield from stream.decode(packet)
        except av.FFmpegError as error:
            if not bytes(packet).startswith(_TAGS):
                damage.add(error)
    with suppress(av.FFmpegError):
        yield from stream.decode(None)


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
