"""Media files: whatever FFmpeg can read, as blocks of mono 16-bit samples at 16 kHz.

Only regular files are opened, so nothing here waits for a writer. FFmpeg reads through
our file object: a path is never taken for a URL, a playlist never opens a second file.
"""

from __future__ import annotations

import io
import os
import select
import stat
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Final, TypeAlias, cast

from fastwhisper.errors import AudioError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import av
    import av.container
    import numpy as np

    MediaSource: TypeAlias = str | os.PathLike[str] | BinaryIO
    Samples: TypeAlias = np.ndarray[tuple[int], np.dtype[np.int16]]

__all__ = ["SAMPLE_RATE", "decode_media", "media_name", "open_media"]

SAMPLE_RATE: Final = 16_000

_BLOCK_BYTES: Final = 1 << 20
_SPOOL_IN_MEMORY_BYTES: Final = 32 << 20
_POLL_MS: Final = 100


def media_name(source: MediaSource) -> str:
    """Name a source in messages: its path, or what the file object says of itself."""
    if isinstance(source, (str, os.PathLike)):
        return repr(os.fspath(source))
    return str(getattr(source, "name", "file object"))


@contextmanager
def open_media(source: MediaSource, *, check: Callable[[], None]) -> Iterator[BinaryIO]:
    """Open a source for `decode_media`; a file object that can't seek is spooled first.

    Args:
        source: A path, or a binary file object, which is read from where it stands and
            left open.
        check: Called between blocks of a spooled file; may raise to cancel.

    Yields:
        A seekable file at its first byte.

    Raises:
        AudioError: Missing, empty, no regular file, not readable, or opened as text.
    """
    if isinstance(source, (str, os.PathLike)):
        with _open_regular(os.fspath(source)) as file:
            yield file
        return
    with _seekable(source, check=check) as file:
        yield file


def decode_media(file: BinaryIO, *, name: str, check: Callable[[], None]) -> Iterator[Samples]:
    """Decode the audio of a media file, as FFmpeg's command line does for mlx_whisper.

    A damaged packet is left out and what follows is decoded, as FFmpeg does.

    Args:
        file: A seekable binary file at its first byte.
        name: What messages call it.
        check: Called between packets; may raise to cancel.

    Yields:
        Mono samples at 16 kHz. Shape (samples,), int16.

    Raises:
        AudioError: No media, no audio in it, or none that can be decoded.

    Source:
        `ffmpeg -ac 1 -ar 16000 -acodec pcm_s16le`, as in mlx_whisper's `load_audio`.
    """
    import av  # noqa: PLC0415  slow, and a session fed with samples never needs it

    try:
        # An empty list would allow every protocol; this name allows none, so that a
        # playlist can name files and URLs but not open them.
        container = av.open(
            file,
            mode="r",
            buffer_size=_BLOCK_BYTES,
            container_options={"protocol_whitelist": "none"},
        )
    except (av.FFmpegError, OSError) as error:
        raise AudioError(name, f"is no media file that FFmpeg can read ({error})") from error
    with container:
        stream = _pick_stream(container)
        if stream is None:
            raise AudioError(name, "has no audio stream")
        decoded = False
        resampler = _Resampler(name)
        for frame in _frames(container, stream, check=check):
            for samples in resampler.convert(frame):
                decoded = True
                yield samples
        for samples in resampler.convert(None):
            decoded = True
            yield samples
        if not decoded:
            raise AudioError(name, "holds no audio that can be decoded (zero samples)")


def _open_regular(path: str) -> BinaryIO:
    def open_without_waiting(name: str, flags: int) -> int:
        # Without O_NONBLOCK, opening a FIFO waits for its writer.
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    name = media_name(path)
    try:
        file = open(path, "rb", opener=open_without_waiting)  # noqa: SIM115  Path.open takes no opener; the caller closes it
    except FileNotFoundError as error:
        raise AudioError(name, "there is no such file") from error
    except IsADirectoryError as error:
        raise AudioError(name, "is a directory; give an audio file") from error
    except PermissionError as error:
        raise AudioError(name, "no permission to read it") from error
    except (OSError, ValueError) as error:  # ValueError: NUL, or no encoding for the name
        raise AudioError(name, f"can't be opened ({error})") from error
    # Asked of the open file: the path may name another one by now.
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise AudioError(name, "is no regular file; the command line reads a pipe as '-'")
    if status.st_size == 0:
        file.close()
        raise AudioError(name, "is an empty file")
    return file


@contextmanager
def _seekable(source: BinaryIO, *, check: Callable[[], None]) -> Iterator[BinaryIO]:
    """Give a file object that is not empty, or a spooled copy of what it still holds."""
    if isinstance(source, io.TextIOBase):
        raise AudioError(media_name(source), "is opened as text; open it in binary mode")
    with _translated(source):
        in_place = source.seekable() and source.tell() == 0
    if in_place:
        with _translated(source):
            size_bytes = source.seek(0, os.SEEK_END)
            source.seek(0)
        _refuse_empty(source, size_bytes)
        yield source
        return
    with tempfile.SpooledTemporaryFile(max_size=_SPOOL_IN_MEMORY_BYTES) as spool:
        while block := _read_block(source, check=check):
            check()
            spool.write(block)
        _refuse_empty(source, spool.tell())
        spool.seek(0)
        yield cast("BinaryIO", spool)


def _read_block(source: BinaryIO, *, check: Callable[[], None]) -> bytes:
    with _translated(source):
        descriptor = _descriptor(source)
        if descriptor is None or not isinstance(source, io.BufferedReader):
            return source.read(_BLOCK_BYTES)
        # A pipe may stay silent for ever, and who waits for it must still be stoppable.
        pipe = select.poll()
        pipe.register(descriptor, select.POLLIN)
        while not pipe.poll(_POLL_MS):
            check()
        return source.read1(_BLOCK_BYTES)


def _descriptor(source: BinaryIO) -> int | None:
    try:
        return source.fileno()
    except (AttributeError, OSError):  # no file of the operating system
        return None


@contextmanager
def _translated(source: BinaryIO) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: closed
        raise AudioError(media_name(source), f"can't be read ({error})") from error


def _refuse_empty(source: BinaryIO, size_bytes: int) -> None:
    if size_bytes == 0:
        raise AudioError(media_name(source), "is empty")


def _pick_stream(container: av.container.InputContainer) -> av.AudioStream | None:
    # FFmpeg's own choice: the default stream, then the most channels, then the first.
    def score(stream: av.AudioStream) -> tuple[bool, int]:
        return bool(stream.disposition & stream.disposition.default), stream.channels

    return max(container.streams.audio, key=score, default=None)


def _frames(
    container: av.container.InputContainer, stream: av.AudioStream, *, check: Callable[[], None]
) -> Iterator[av.AudioFrame]:
    import av  # noqa: PLC0415  see decode_media

    packets = container.demux(stream)
    while True:
        check()
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.FFmpegError:
            break  # the rest can't even be split into packets: give what the decoder still has
        try:
            yield from stream.decode(packet)
        except av.FFmpegError:
            continue
    try:
        yield from stream.decode(None)
    except av.FFmpegError:
        return


class _Resampler:
    """FFmpeg's resampler, set up anew whenever a stream changes its format midway."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._input: tuple[str, str, int] | None = None
        self._resampler: av.AudioResampler | None = None

    def convert(self, frame: av.AudioFrame | None) -> Iterator[Samples]:
        """Convert one frame, or flush at the end. Yields shape (samples,), int16."""
        import av  # noqa: PLC0415  see decode_media

        try:
            if frame is None:
                yield from self._resample(None)
                return
            form = (frame.format.name, frame.layout.name, frame.sample_rate)
            if form != self._input:
                yield from self._resample(None)
                self._input = form
                self._resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)
            yield from self._resample(frame)
        except (av.FFmpegError, ValueError) as error:
            raise AudioError(self._name, f"can't be mixed down to mono ({error})") from error

    def _resample(self, frame: av.AudioFrame | None) -> Iterator[Samples]:
        for output in self._resampler.resample(frame) if self._resampler else ():
            # A resampler with nothing to do hands the flushing None back.
            if output is not None and output.samples:
                yield cast("Samples", output.to_ndarray()[0])
