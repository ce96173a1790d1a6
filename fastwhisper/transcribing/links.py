"""Chained Ogg and FLAC files: several files in a row, each of a format of its own -> the files.

FFmpeg's demuxer stops, or decodes garbage, where the next one has another format.
"""

from __future__ import annotations

import io
import os
import re
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from fastwhisper.errors import AudioError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["split_links"]

_BLOCK_BYTES: Final = 1 << 20

_HEADS: Final = {
    # A page with its flags. 2: the first page of a stream.
    b"OggS": re.compile(rb"OggS\0(.)", re.DOTALL),
    # The mark of a file, and the head of its first block, which has 34 bytes.
    b"fLaC": re.compile(rb"fLaC[\0\x80]\0\0(\x22)"),
}
_IS_FIRST: Final = 2


def split_links(file: BinaryIO, name: str, *, check: Callable[[], None]) -> Iterator[BinaryIO]:
    """Split a chained file into its links.

    Args:
        file: A seekable file. Nobody else may use it until the iterator ends.
        name: Its name in messages.
        check: Called between blocks; may raise to cancel.

    Yields:
        The file itself, if it is no chain; otherwise each link as a file.

    Raises:
        AudioError: The file can't be read.

    Source:
        RFC 3533, section 4 (chained streams) and section 6 (the page); RFC 9639, section 8.
    """
    starts = _find_starts(file, name, check=check)
    file.seek(0)
    if not starts[1:]:
        yield file
        return
    for start, end in zip(starts, [*starts[1:], file.seek(0, os.SEEK_END)], strict=True):
        yield cast("BinaryIO", _Link(file, start, end))


def _find_starts(file: BinaryIO, name: str, *, check: Callable[[], None]) -> list[int]:
    """Return where the links begin; none if it is another format."""
    pattern = _HEADS.get(data := _read(file, 4, name))
    starts: list[int] = []
    was_first = False
    offset = 0
    while pattern and (block := _read(file, _BLOCK_BYTES, name)):
        check()
        data += block
        for found in pattern.finditer(data):
            # The streams of one link begin side by side: one first page follows another.
            is_first = bool(found[1][0] & _IS_FIRST)
            if is_first and not was_first:
                starts.append(offset + found.start())
            was_first = is_first and pattern is _HEADS[b"OggS"]
        # A head may go on in the next block.
        kept = data[-5:] if pattern is _HEADS[b"OggS"] else data[-7:]
        offset += len(data) - len(kept)
        data = kept
    return starts


def _read(file: BinaryIO, size: int, name: str) -> bytes:
    try:
        return file.read(size)
    except Exception as error:  # whatever a file object raises
        raise AudioError(name, f"the file can't be read ({error})") from error


class _Link(io.RawIOBase):
    """A part of a file, from one byte to another."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        super().__init__()
        self._file = file
        self._start = start
        self._size = end - start
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origins = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}
        self._position = max(origins[whence] + offset, 0)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._position, 0)
        self._file.seek(self._start + self._position)
        data = self._file.read(left if size < 0 else min(size, left))
        self._position += len(data)
        return data
