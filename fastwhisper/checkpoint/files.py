"""Files that are not trusted: opened only if regular, read at offsets, watched for changes.

A FIFO or a device is refused before it can block. No read goes beyond the size that the file had
when it was opened.
"""

from __future__ import annotations

import json
import os
import stat
from codecs import BOM_UTF8
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from fastwhisper.errors import InvalidModelFormatError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = [
    "RegularFile",
    "WeightFile",
    "list_directory",
    "parse_json",
    "read_json",
    "shown",
    "to_path",
]

MAX_JSON_BYTES: Final = 1 << 20
"""Largest config. Real configs have a few kilobytes."""

_READ_BYTES: Final = 1 << 30
"""Largest single read: Linux shortens reads at 2 GiB, macOS refuses them."""

_SHOWN_CHARS: Final = 120


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A file of weights as it was when it was inspected.

    Attributes:
        path: Its path.
        size_bytes: Its length.
        mtime_ns: When it was last written, in nanoseconds since the epoch.
        device: The file system it is on (`st_dev`).
        inode: Its number there (`st_ino`). Another number means that it was replaced.
    """

    path: Path
    size_bytes: int
    mtime_ns: int
    device: int
    inode: int


class RegularFile:
    """A regular file, open for reads at offsets.

    Attributes:
        seen: The file as it was when it was opened.
    """

    __slots__ = ("_fd", "seen")

    def __init__(self, path: Path) -> None:
        # O_NONBLOCK: opening a FIFO returns at once, and fstat then refuses it.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
        _occupy_descriptor_zero()
        try:
            self._fd = os.open(path, flags)
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error
        try:
            self.seen = _stamp(path, os.fstat(self._fd))
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        """Return the descriptor, which is open until the block is left."""
        return self._fd

    @property
    def descriptor_path(self) -> str:
        """An ASCII path of this very file."""
        return f"/dev/fd/{self._fd}"

    def must_be(self, inspected: WeightFile, *, at_path: bool = False) -> None:
        """Check that the file is still the one that was inspected.

        Args:
            inspected: The file as it was inspected.
            at_path: Check what is at the path now, and not what was opened.

        Raises:
            InvalidModelFormatError: It was replaced, rewritten, truncated or deleted.
        """
        try:
            status = inspected.path.stat() if at_path else os.fstat(self._fd)
        except OSError as error:
            raise _unreadable(inspected.path, error) from error
        if _stamp(inspected.path, status) != inspected:
            raise InvalidModelFormatError(
                inspected.path, None, "changed while it was being loaded", "load it again"
            )

    def read_at(self, offset: int, size: int) -> bytes:
        """Read up to `size` bytes; fewer only at the end of the file."""
        buffer = bytearray(max(0, min(size, self.seen.size_bytes - offset)))
        self.read_into(buffer, offset)
        return bytes(buffer)

    def read_into(self, buffer: bytearray | memoryview, offset: int) -> None:
        """Fill a buffer with the bytes at an offset, without holding the GIL.

        Args:
            buffer: Writable bytes, C-contiguous.
            offset: Where to read, in bytes.

        Raises:
            InvalidModelFormatError: The file ends before the buffer is full.
        """
        rest = memoryview(buffer)
        while rest:
            try:
                done = os.preadv(self._fd, [rest[:_READ_BYTES]], offset)
            except OSError as error:
                raise _unreadable(self.seen.path, error) from error
            if not done:
                raise InvalidModelFormatError(
                    self.seen.path, None, f"ends before byte {offset + len(rest)}"
                )
            rest = rest[done:]
            offset += done


def to_path(path: str | os.PathLike[str]) -> Path:
    """Return a caller's path as a `Path`."""
    return Path(path)


def list_directory(path: Path) -> frozenset[str]:
    """List the names in a directory.

    Raises:
        InvalidModelFormatError: It is missing, not a directory, or not readable.
    """
    try:
        return frozenset(entry.name for entry in path.iterdir())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object from a small file.

    Raises:
        InvalidModelFormatError: It is not readable, too large, or not a JSON object.
    """
    with RegularFile(path) as file:
        if file.seen.size_bytes > MAX_JSON_BYTES:
            raise InvalidModelFormatError(path, None, f"has more than {MAX_JSON_BYTES} bytes")
        return parse_json(file.read_at(0, MAX_JSON_BYTES), path)


def parse_json(data: bytes, path: Path) -> dict[str, object]:
    """Parse a JSON object without duplicate keys. A byte order mark is skipped.

    Raises:
        InvalidModelFormatError: The data is anything else.
    """
    try:
        parsed = json.loads(data.removeprefix(BOM_UTF8).decode(), object_pairs_hook=_unique)
    except RecursionError:
        raise InvalidModelFormatError(path, None, "is nested too deeply") from None
    except ValueError as error:
        raise InvalidModelFormatError(path, None, f"is not JSON ({shown(str(error))})") from error
    if type(parsed) is not dict:
        raise InvalidModelFormatError(path, None, "is not a JSON object")
    return parsed


def shown(name: str) -> str:
    """Return text from a file in a form that is safe to show in a message: short, printable."""
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def _occupy_descriptor_zero() -> None:
    """Open the null device as descriptor 0 if stdin is closed.

    Otherwise `mx.load` would get descriptor 0, which it treats as a failed open.
    """
    try:
        os.fstat(0)
    except OSError:
        descriptor = os.open(os.devnull, os.O_RDONLY)
        if descriptor:  # another thread was faster
            os.close(descriptor)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _stamp(path: Path, status: os.stat_result) -> WeightFile:
    if not stat.S_ISREG(status.st_mode):
        raise InvalidModelFormatError(
            path, None, "is not a regular file", "put the file itself at this path"
        )
    return WeightFile(path, status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino)


def _unreadable(path: Path, error: Exception) -> InvalidModelFormatError:
    reason = getattr(error, "strerror", None) or str(error)
    return InvalidModelFormatError(
        path, None, f"is not readable ({reason})", "check the path and its permissions"
    )
