"""Files that nothing is trusted about, and the strict parser of safetensors headers.

The rule that nothing is trusted lives here: only regular files are opened (a FIFO or a device is
refused before it can hang), every read is bounded by the size the file had when it was opened,
and a header is a plan only if its spans cover the data exactly.
"""

from __future__ import annotations

import json
import math
import os
import stat
from codecs import BOM_UTF8
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from fastwhisper.errors import InvalidModelFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

__all__ = [
    "RegularFile",
    "TensorPlan",
    "WeightFile",
    "list_directory",
    "parse_json",
    "parse_safetensors",
    "read_header",
    "read_json",
    "shown",
    "to_path",
]

MAX_HEADER_BYTES: Final = 4 << 20
"""Largest safetensors header. large-v3 quantized has 2,300 tensors and needs 0.3 MB."""

MAX_TENSORS: Final = 1 << 14
"""Most tensors of a file."""

MAX_JSON_BYTES: Final = 1 << 20
"""Largest config. Real ones have a few kilobytes."""

MAX_RANK: Final = 8
"""Most axes a tensor may have. Whisper's have at most three."""

DTYPES: Final = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E4M3": ("float8_e4m3", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "F32": ("float32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F64": ("float64", 8),
}
"""Element types of safetensors: our name and the size in bytes."""

_ENTRY_KEYS: Final = {"dtype", "shape", "data_offsets"}
_AGAIN: Final = "download the file again, or convert the model again"


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A file of weights as it was when it was inspected.

    Attributes:
        path: Where it is.
        size_bytes: Its length.
        mtime_ns: When it was last written, in nanoseconds since the epoch.
        device: The file system it is on (`st_dev`).
        inode: Its identity there (`st_ino`): another one means it was replaced.
    """

    path: Path
    size_bytes: int
    mtime_ns: int
    device: int
    inode: int


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """Where one tensor of the network lies, and how to read it.

    Attributes:
        name: Its name in the MLX network.
        stored: Its name in the file.
        dtype: Its element type as stored, such as "float16".
        shape: Its shape in the MLX network.
        file: Index into the checkpoint's files.
        offset_bytes: Where its bytes begin in the file.
        size_bytes: Length of its bytes, unpacked.
        transpose: Axes that turn the stored array into the MLX one, or None.
        packed_bytes: Length in the file if it is deflated, else None.
        head_bytes: Bytes that come before the array's in a deflated stream.
        crc32: CRC of what comes before the array in its zip member, and of the whole member.
    """

    name: str
    stored: str
    dtype: str
    shape: tuple[int, ...]
    file: int
    offset_bytes: int
    size_bytes: int
    transpose: tuple[int, ...] | None = None
    packed_bytes: int | None = None
    head_bytes: int = 0
    crc32: tuple[int, int] | None = None

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in the file, before `transpose`."""
        if self.transpose is None:
            return self.shape
        stored = dict(zip(self.transpose, self.shape, strict=True))
        return tuple(stored[axis] for axis in range(len(self.shape)))


class RegularFile:
    """A regular file, open for bounded reads at offsets.

    Attributes:
        seen: The file as it was when it was opened.
    """

    __slots__ = ("_fd", "seen")

    def __init__(self, path: Path) -> None:
        # O_NONBLOCK: opening a FIFO returns at once, and fstat then refuses it.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
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

    @property
    def descriptor_path(self) -> str:
        """A path to this very file that is always ASCII."""
        return f"/dev/fd/{self._fd}"

    @contextmanager
    def lowest_descriptor_taken(self) -> Iterator[None]:
        """Occupy the lowest free descriptor: with stdin closed MLX's own open would get 0."""
        taken = os.dup(self._fd)
        try:
            yield
        finally:
            os.close(taken)

    def must_be(self, expected: WeightFile, *, at_path: bool = False) -> None:
        """Refuse the file unless it is still the one that was inspected.

        Args:
            expected: The file as it was inspected.
            at_path: Judge what is at the path now and not what was opened.

        Raises:
            InvalidModelFormatError: It was replaced, rewritten, truncated or deleted.
        """
        try:
            status = expected.path.stat() if at_path else os.fstat(self._fd)
        except OSError as error:
            raise _unreadable(expected.path, error) from error
        if _stamp(expected.path, status) != expected:
            raise InvalidModelFormatError(
                expected.path, None, "changed while it was being loaded; load it again"
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
                    self.seen.path, None, f"ends before byte {offset + len(rest)}; {_AGAIN}"
                )
            rest = rest[done:]
            offset += done


_READ_BYTES: Final = 1 << 30
"""Most bytes of one read: Linux cuts reads at 2 GiB, macOS refuses them."""


def to_path(path: str | os.PathLike[str]) -> Path:
    """Turn what a caller gives into a path."""
    return Path(path)


def list_directory(path: Path) -> frozenset[str]:
    """List the names in a directory.

    Raises:
        InvalidModelFormatError: It is none, is missing, or may not be read.
    """
    try:
        return frozenset(entry.name for entry in path.iterdir())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object from a small file.

    Raises:
        InvalidModelFormatError: It can't be read, is too large, or is no JSON object.
    """
    with RegularFile(path) as file:
        if file.seen.size_bytes > MAX_JSON_BYTES:
            raise InvalidModelFormatError(
                path, None, f"has more than {MAX_JSON_BYTES} bytes; {_AGAIN}"
            )
        return parse_json(file.read_at(0, MAX_JSON_BYTES), path)


def parse_json(data: bytes, path: Path) -> dict[str, object]:
    """Parse a JSON object without duplicate keys; a byte order mark is skipped.

    Raises:
        InvalidModelFormatError: It is anything else.
    """
    try:
        parsed = json.loads(data.removeprefix(BOM_UTF8).decode(), object_pairs_hook=_unique)
    except RecursionError:
        raise InvalidModelFormatError(path, None, f"is nested too deeply; {_AGAIN}") from None
    except ValueError as error:
        detail = shown(str(error))
        raise InvalidModelFormatError(path, None, f"is not JSON ({detail}); {_AGAIN}") from error
    if type(parsed) is not dict:
        raise InvalidModelFormatError(path, None, f"holds no JSON object; {_AGAIN}")
    return parsed


def read_header(file: RegularFile) -> bytes:
    """Read the JSON of a safetensors header, of a length that it may have.

    Raises:
        InvalidModelFormatError: The file has no such header.
    """
    path, size = file.seen.path, file.seen.size_bytes
    length = int.from_bytes(file.read_at(0, 8), "little")
    if size < 8 or 8 + length > size:  # noqa: PLR2004 - the length's own eight bytes
        raise InvalidModelFormatError(
            path, None, f"has {size} bytes, too few for its header; {_AGAIN}"
        )
    if length > MAX_HEADER_BYTES:
        raise InvalidModelFormatError(
            path, None, f"has a header of {length} bytes, more than any Whisper needs; {_AGAIN}"
        )
    header = file.read_at(8, length)
    if not header.startswith(b"{"):
        raise InvalidModelFormatError(path, None, f"has no safetensors header; {_AGAIN}")
    return header


def parse_safetensors(file: RegularFile, index: int) -> list[TensorPlan]:
    """Plan the tensors of a safetensors file from its header.

    Args:
        file: The open file.
        index: Its place among the checkpoint's files.

    Returns:
        One plan for each tensor, under its stored name, by offset.

    Raises:
        InvalidModelFormatError: The header is not exactly what the format demands.

    Source:
        safetensors, README "Format": 8 bytes of little-endian length, that many bytes
        of JSON, then the data without holes.
    """
    path = file.seen.path
    header = read_header(file)
    start = 8 + len(header)
    entries = parse_json(header, path)
    if len(entries) > MAX_TENSORS:
        raise InvalidModelFormatError(path, None, f"has {len(entries)} tensors; {_AGAIN}")
    plans: list[TensorPlan] = []
    for name, entry in entries.items():
        if name == "__metadata__":
            _check_metadata(entry, path)
        else:
            plans.append(_plan_entry(name, entry, path, index, start))
    plans.sort(key=lambda plan: (plan.offset_bytes, plan.size_bytes))
    _check_cover(plans, start, file.seen.size_bytes, path)
    return plans


def shown(name: str) -> str:
    """Make text from a file fit for a message: short, printable."""
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


_SHOWN_CHARS: Final = 120


def _plan_entry(name: str, entry: object, path: Path, index: int, start: int) -> TensorPlan:
    """Plan one entry of a header. Exact types: a bool is an int to isinstance."""

    def refuse(detail: str) -> InvalidModelFormatError:
        return InvalidModelFormatError(path, shown(name), f"{detail}; {_AGAIN}")

    if type(entry) is not dict or entry.keys() != _ENTRY_KEYS:
        raise refuse("needs exactly dtype, shape and data_offsets")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or dtype not in DTYPES:
        raise refuse(f"has the unknown dtype {shown(str(dtype))}")
    if type(shape) is not list or len(shape) > MAX_RANK or not _all_counts(shape):
        raise refuse(f"has no shape of at most {MAX_RANK} axes")
    if type(span) is not list or len(span) != 2 or not _all_counts(span):  # noqa: PLR2004 - begin and end
        raise refuse("has no begin and end in data_offsets")
    our_dtype, width = DTYPES[dtype]
    # Python's integers don't wrap, so a shape whose byte count overflows is caught here.
    size = math.prod(shape) * width
    if span[1] - span[0] != size:
        raise refuse(f"needs {size} bytes by its shape and has {span[1] - span[0]}")
    return TensorPlan(name, name, our_dtype, tuple(shape), index, start + span[0], size)


def _check_cover(plans: list[TensorPlan], start: int, size: int, path: Path) -> None:
    """Demand that the spans, by offset, cover the data section exactly."""
    end = start
    for plan in plans:
        if plan.offset_bytes != end:
            flaw = "overlaps another tensor" if plan.offset_bytes < end else "leaves a gap"
            raise InvalidModelFormatError(path, shown(plan.stored), f"{flaw}; {_AGAIN}")
        end += plan.size_bytes
    if end != size:
        raise InvalidModelFormatError(
            path, None, f"has {size} bytes and its header describes {end}; {_AGAIN}"
        )


def _check_metadata(entry: object, path: Path) -> None:
    if entry is not None and (
        type(entry) is not dict or any(type(value) is not str for value in entry.values())
    ):
        raise InvalidModelFormatError(path, "__metadata__", f"is no map of strings; {_AGAIN}")


def _all_counts(values: list[object]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _stamp(path: Path, status: os.stat_result) -> WeightFile:
    if not stat.S_ISREG(status.st_mode):
        raise InvalidModelFormatError(path, None, "is no regular file; put the file itself here")
    return WeightFile(path, status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino)


def _unreadable(path: Path, error: Exception) -> InvalidModelFormatError:
    reason = getattr(error, "strerror", None) or str(error)
    return InvalidModelFormatError(
        path, None, f"can't be read ({reason}); check the path and its permissions"
    )
