"""NumPy's `.npz`: a zip of arrays -> plans. Nothing is unpickled.

The parser reads through any `read_at(offset, size)`, so tests need no disk.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from fastwhisper.checkpoint.files import shown
from fastwhisper.checkpoint.plan import MAX_RANK, WIDTHS, TensorPlan
from fastwhisper.errors import InvalidModelFormatError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from zipfile import ZipInfo

    ReadAt = Callable[[int, int], bytes]

__all__ = ["is_cut_off", "plan_npz"]

_NPY_DTYPES: Final = {
    "<f2": "float16",
    "<f4": "float32",
    "<f8": "float64",
    "<V2": "bfloat16",  # As MLX writes it.
    "|V2": "bfloat16",
    "|b1": "bool",
    "|i1": "int8",
    "<i2": "int16",
    "<i4": "int32",
    "<i8": "int64",
    "|u1": "uint8",
    "<u2": "uint16",
    "<u4": "uint32",
    "<u8": "uint64",
}
_NPY_FIXED_BYTES: Final = 12
_NPY_FIELD: Final = re.compile(
    r"'(descr|fortran_order|shape)': *"
    r"(?:'([<|][A-Za-z][0-9])'|(True|False)|\(([0-9, ]*)\)) *(?:, *|(?=\}))"
)
_NPY_MAGIC: Final = b"\x93NUMPY"
_NPY_SIZE: Final = re.compile(r"[0-9]+")
_NPY_HEAD_BYTES: Final = 4096
"""Longest header of an array. MLX and NumPy write 60 to 130 bytes."""

_ZIP_LOCAL: Final = struct.Struct("<4s22xHH")
_ZIP_READ_BYTES: Final = 1 << 20
"""Largest directory of a zip: 15,000 members. large-v3 has 1,300."""

_DEFLATE_RATIO: Final = 1100
"""Largest ratio of deflate, rounded up from 1032. A member that claims more is a zip bomb."""

_ZIP_END: Final = b"PK\x05\x06"
_ZIP_END_BYTES: Final = 22
_ZIP_COMMENT_BYTES: Final = 1 << 16
_ZIP_ENCRYPTED: Final = 0x1
_ZIP_DEFLATED: Final = 8


class _BoundedFile(io.RawIOBase):
    """A file for `zipfile` in which a single read is at most as long as a directory."""

    def __init__(self, read_at: ReadAt, size: int) -> None:
        self._read_at = read_at
        self._size = size
        self._offset = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("negative offset")
        self._offset = base + offset
        return self._offset

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._offset)
        size = left if size < 0 else min(size, left)
        if size > _ZIP_READ_BYTES:
            raise OSError("the directory is too large")
        data = self._read_at(self._offset, size)
        self._offset += len(data)
        return data


def plan_npz(read_at: ReadAt, size: int, path: Path, index: int) -> list[TensorPlan]:
    """Plan the arrays of an `.npz` file, stored or deflated, with their own names.

    Args:
        read_at: Called with an offset and a size in bytes; returns up to so many bytes.
        size: Length of the file in bytes.
        path: Its path, for messages.
        index: Its index among the checkpoint's files.

    Returns:
        The plans by offset.

    Raises:
        InvalidModelFormatError: It is not a zip of plain arrays, or it is damaged.

    Source:
        `numpy.lib.format` (versions 1 to 3); PKWARE APPNOTE 4.3.
    """
    import zipfile  # noqa: PLC0415  8 ms, more than the rest of an inspection

    try:
        with zipfile.ZipFile(_BoundedFile(read_at, size)) as archive:
            members = sorted(archive.infolist(), key=lambda member: member.header_offset)
            end = archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        raise InvalidModelFormatError(
            path, None, f"is not a zip archive ({shown(str(error))})"
        ) from error
    if not members:
        raise InvalidModelFormatError(path, None, "has no arrays")
    plans: dict[str, TensorPlan] = {}
    ends = [member.header_offset for member in members[1:]] + [end]
    for member, limit in zip(members, ends, strict=True):
        plan = _npz_member(read_at, member, limit, path)
        if plan.name in plans:
            raise InvalidModelFormatError(path, shown(plan.name), "appears twice")
        plans[plan.name] = replace(plan, file=index)
    return list(plans.values())


def is_cut_off(read_at: ReadAt, size: int) -> bool:
    """Return whether a file does not end with the end record of a zip. Nothing else is judged.

    Args:
        read_at: Called with an offset and a size in bytes; returns up to so many bytes.
        size: Length of the file in bytes.

    Source:
        PKWARE APPNOTE 4.3.16: the record's last field is the length of the comment after it.
    """
    tail = read_at(max(0, size - _ZIP_END_BYTES - _ZIP_COMMENT_BYTES), size)
    at = tail.rfind(_ZIP_END)
    comment = tail[at + _ZIP_END_BYTES - 2 : at + _ZIP_END_BYTES]
    return at < 0 or len(tail) != at + _ZIP_END_BYTES + int.from_bytes(comment, "little")


def _npz_member(read_at: ReadAt, member: ZipInfo, limit: int, path: Path) -> TensorPlan:
    """Plan one member of the archive. It must end before `limit`, where the next one begins."""
    name = member.filename.removesuffix(".npy")

    def refuse(detail: str) -> InvalidModelFormatError:
        return InvalidModelFormatError(path, shown(name), detail)

    if name == member.filename:
        raise refuse("is not an array")
    begin = _member_data(read_at, member)
    if begin is None:
        raise refuse("is encrypted, damaged, or compressed by another method than deflate")
    if begin + member.compress_size > limit:
        raise refuse("overlaps the next member")
    head = read_at(begin, min(_NPY_HEAD_BYTES, member.compress_size))
    deflated = member.compress_type == _ZIP_DEFLATED
    if deflated:
        try:
            head = zlib.decompressobj(-zlib.MAX_WBITS).decompress(head, _NPY_HEAD_BYTES)
        except zlib.error as error:
            raise refuse(f"is damaged ({error})") from error
    parsed = _parse_npy(head)
    if parsed is None:
        raise refuse("is not a plain array of numbers")
    dtype, fortran, shape, head_bytes = parsed
    size = math.prod(shape) * WIDTHS[dtype]
    if head_bytes + size != member.file_size:
        raise refuse(f"has {member.file_size} bytes, but its shape needs {head_bytes + size}")
    return TensorPlan(
        name,
        name,
        dtype,
        shape,
        0,
        begin if deflated else begin + head_bytes,
        size,
        # Fortran order is C order of the reversed shape, transposed.
        transpose=tuple(reversed(range(len(shape)))) if fortran and len(shape) > 1 else None,
        packed_bytes=member.compress_size if deflated else None,
        head_bytes=head_bytes if deflated else 0,
        crc32=(zlib.crc32(head[:head_bytes]), member.CRC),
    )


def _member_data(read_at: ReadAt, member: ZipInfo) -> int | None:
    """Return the offset of a member's data; None for a member that is not supported."""
    deflated = member.compress_type == _ZIP_DEFLATED
    if member.flag_bits & _ZIP_ENCRYPTED or not (deflated or member.compress_type == 0):
        return None
    if member.file_size > _DEFLATE_RATIO * member.compress_size:
        return None
    if not deflated and member.file_size != member.compress_size:
        return None
    local = read_at(member.header_offset, _ZIP_LOCAL.size) if member.header_offset >= 0 else b""
    if len(local) != _ZIP_LOCAL.size or not local.startswith(b"PK\3\4"):
        return None
    _, name_bytes, extra_bytes = _ZIP_LOCAL.unpack(local)
    return member.header_offset + _ZIP_LOCAL.size + int(name_bytes) + int(extra_bytes)


def _parse_npy(head: bytes) -> tuple[str, bool, tuple[int, ...], int] | None:
    """Return an array's dtype, Fortran order and shape, and its header's length in bytes."""
    width = {1: 2, 2: 4, 3: 4}.get(head[6]) if len(head) > _NPY_FIXED_BYTES else None
    if width is None or not head.startswith(_NPY_MAGIC):
        return None
    end = 8 + width + int.from_bytes(head[8 : 8 + width], "little")
    text = head[8 + width : end].decode("latin-1").strip()
    if end > len(head) or not (text.startswith("{") and text.endswith("}")):
        return None
    found: dict[str, tuple[str | None, str | None, str | None]] = {}
    at = 1
    while match := _NPY_FIELD.match(text, at):
        if match[1] in found:
            return None
        found[match[1]] = (match[2], match[3], match[4])
        at = match.end()
    if at != len(text) - 1 or found.keys() != {"descr", "fortran_order", "shape"}:
        return None
    descr, order, sizes = found["descr"][0], found["fortran_order"][1], found["shape"][2]
    if descr not in _NPY_DTYPES or order is None or sizes is None:
        return None
    shape = tuple(int(size) for size in _NPY_SIZE.findall(sizes))
    return (_NPY_DTYPES[descr], order == "True", shape, end) if len(shape) <= MAX_RANK else None
