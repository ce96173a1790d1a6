"""A path or a file object -> a seekable binary file.

Only regular files are opened, so opening never waits for another process.
"""

from __future__ import annotations

import inspect
import io
import os
import re
import select
import stat
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Final, TypeAlias, cast

from fastwhisper.errors import AudioError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    MediaSource: TypeAlias = str | os.PathLike[str] | BinaryIO

__all__ = ["name_source", "open_source"]

_BLOCK_BYTES: Final = 1 << 20
_SPOOL_IN_MEMORY_BYTES: Final = 32 << 20
_POLL_MS: Final = 100

_IS_TEXT: Final = "the file is opened as text; open it in binary mode"

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|data:")
"""Begin of a URL, also of one that went through `Path`, which leaves one slash."""

_LONGEST_NAME: Final = 4096
"""Characters of a name in messages: what is longer is no path, but may be a URL with data."""


def name_source(source: MediaSource) -> str:
    """Return the name of a source for messages: its path, or the name of the file object."""
    if isinstance(source, (str, os.PathLike)):
        return repr(os.fspath(source))
    name = getattr(source, "name", None)  # None or a descriptor, if the file has no name
    return name if isinstance(name, str) else "file object"


@contextmanager
def open_source(source: MediaSource, *, check: Callable[[], None]) -> Iterator[BinaryIO]:
    """Open a source as a seekable binary file that is not empty, at its first byte."""
    if isinstance(source, (str, os.PathLike)):
        with _open_regular(os.fsdecode(source)) as file:
            yield file
        return
    if isinstance(source, io.TextIOBase):
        raise AudioError(name_source(source), _IS_TEXT)
    if inspect.iscoroutinefunction(source.read):
        raise AudioError(
            name_source(source), "its read() is asynchronous; give io.BytesIO(await file.read())"
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
    name = name_source(path)
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
        raise AudioError(name_source(source), "the file is empty")


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
        raise AudioError(name_source(source), _IS_TEXT)
    if not isinstance(block, (bytes, bytearray, memoryview)):
        raise AudioError(
            name_source(source), f"its read() returns {type(block).__name__}, not bytes"
        )
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
        raise AudioError(name_source(source), f"the file can't be read ({error})") from error
