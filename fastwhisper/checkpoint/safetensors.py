"""safetensors files -> plans: a strict parser of headers, and the index of sharded checkpoints.

A header is accepted only if its spans cover the data section exactly. safetensors' own reader
must agree before a weight is used.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from fastwhisper.checkpoint.files import RegularFile, parse_json, read_json, shown
from fastwhisper.checkpoint.plan import MAX_RANK, WIDTHS, TensorPlan
from fastwhisper.errors import InvalidModelFormatError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from fastwhisper.checkpoint.files import WeightFile

__all__ = [
    "DTYPES",
    "check_with_safetensors",
    "is_cut_off",
    "pad_header",
    "parse_header",
    "plan_shards",
    "read_header",
]

MAX_HEADER_BYTES: Final = 4 << 20
"""Largest header. large-v3 quantized has 2,300 tensors and needs 0.3 MB."""

MAX_TENSORS: Final = 1 << 14
"""Largest number of tensors in a file."""

MAX_SHARDS: Final = 256

DTYPES: Final = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
}
"""MLX's name of each element type of safetensors."""

_DATA_ALIGNMENT: Final = 16 << 10
"""Where the data begins in the files that we write: at a page of Apple silicon."""

_ENTRY_KEYS: Final = {"dtype", "shape", "data_offsets"}
_LENGTH_BYTES: Final = 8
_ABSURD_BYTES: Final = 1 << 60
"""An offset that no file has: a header with it is wrong, and not cut off."""


def read_header(file: RegularFile) -> bytes:
    """Read the JSON of a safetensors header.

    Raises:
        InvalidModelFormatError: The file has no header, or one that is too long.
    """
    path, size = file.seen.path, file.seen.size_bytes
    length = int.from_bytes(file.read_at(0, _LENGTH_BYTES), "little")
    if size < _LENGTH_BYTES or _LENGTH_BYTES + length > size:
        raise InvalidModelFormatError(path, None, f"has {size} bytes, too few for its header")
    if length > MAX_HEADER_BYTES:
        raise InvalidModelFormatError(
            path, None, f"has a header of {length} bytes, more than {MAX_HEADER_BYTES}"
        )
    header = file.read_at(_LENGTH_BYTES, length)
    if not header.startswith(b"{"):
        raise InvalidModelFormatError(path, None, "has no safetensors header")
    return header


def parse_header(file: RegularFile, index: int) -> list[TensorPlan]:
    """Plan the tensors of a safetensors file from its header.

    Args:
        file: The open file.
        index: Its index among the checkpoint's files.

    Returns:
        One plan for each tensor, with its stored name, by offset.

    Raises:
        InvalidModelFormatError: The header does not follow the format exactly.

    Source:
        safetensors, README "Format": 8 bytes of little-endian length, that many bytes
        of JSON, then the data without holes.
    """
    path = file.seen.path
    start, entries = _read_entries(file)
    plans: list[TensorPlan] = []
    for name, entry in entries.items():
        if name == "__metadata__":
            _check_metadata(entry, path)
        else:
            plans.append(_plan_entry(name, entry, path, index, start))
    plans.sort(key=lambda plan: (plan.offset_bytes, plan.size_bytes))
    _check_cover(plans, start, file.seen.size_bytes, path)
    return plans


def pad_header(header: bytes) -> bytes:
    """Return the begin of a file: a header's length and JSON, with spaces up to a page's border.

    So the first tensor is aligned. Every reader skips the spaces.
    """
    header += b" " * (-(_LENGTH_BYTES + len(header)) % _DATA_ALIGNMENT)
    return len(header).to_bytes(_LENGTH_BYTES, "little") + header


def is_cut_off(file: RegularFile) -> bool:
    """Return whether a file has another length than its header says. Other faults are not judged.

    It is a part of `parse_header`: for large-v3-turbo at int4 it takes 1.6 ms, `parse_header` 4.
    """
    size = file.seen.size_bytes
    length = int.from_bytes(file.read_at(0, _LENGTH_BYTES), "little")
    start = _LENGTH_BYTES + length
    # A crash may leave a file of zeros.
    if not length or start > size:
        return True
    try:
        _, entries = _read_entries(file)
    except InvalidModelFormatError:
        return False
    spans = [entry.get("data_offsets") for entry in entries.values() if type(entry) is dict]
    ends = [span[1] for span in spans if type(span) is list and _are_counts(span) and span[1:]]
    return size != start + max((end for end in ends if end < _ABSURD_BYTES), default=0)


def plan_shards(directory: Path, where: Path) -> tuple[list[WeightFile], list[TensorPlan]]:
    """Plan a sharded checkpoint. The index and the shards must say the same.

    Args:
        directory: The directory of the shards.
        where: The index.

    Returns:
        The shards as they were when they were opened, and their tensors by stored name.

    Raises:
        InvalidModelFormatError: A shard is missing or broken, its name leaves the directory,
            or it holds other tensors than the index says.
    """
    mapped = read_json(where).get("weight_map")
    if not isinstance(mapped, dict) or not mapped:
        raise InvalidModelFormatError(where, "weight_map", "is missing")
    for name, shard in mapped.items():
        _check_shard_name(where, name, shard)
    shards = sorted(set(mapped.values()))
    if len(shards) > MAX_SHARDS:
        raise InvalidModelFormatError(where, "weight_map", f"names {len(shards)} shards")
    files: list[WeightFile] = []
    tensors: list[TensorPlan] = []
    for index, shard in enumerate(shards):
        with RegularFile(directory / shard) as file:
            tensors += parse_header(file, index)
            files.append(file.seen)
    found: dict[str, str] = {}
    for tensor in tensors:
        shard = shards[tensor.file]
        if found.setdefault(tensor.stored, shard) != shard:
            raise InvalidModelFormatError(
                directory / shard, shown(tensor.stored), "is in two shards"
            )
    # Equal maps: no shard holds a tensor that the index does not name for it.
    misplaced = sorted(
        name for name in found.keys() | mapped if found.get(name) != mapped.get(name)
    )
    if misplaced:
        raise InvalidModelFormatError(
            where,
            shown(misplaced[0]),
            f"is not in the shard that the index names ({len(misplaced)} such tensors)",
            "download the index and its shards again, together",
        )
    return files, tensors


def check_with_safetensors(file: WeightFile, plans: Iterable[TensorPlan]) -> None:
    """Check that safetensors' own reader (Rust) sees the same tensors.

    Args:
        file: A safetensors file.
        plans: All tensors that our parser sees in it.

    Raises:
        InvalidModelFormatError: The two readers disagree.
    """
    # It imports NumPy: 50 ms.
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415

    ours = {plan.stored: (plan.dtype, plan.stored_shape) for plan in plans}
    try:
        with safe_open(file.path, framework="numpy") as reader:
            slices = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118  not a mapping
            theirs = {
                name: (DTYPES.get(part.get_dtype(), ""), tuple(part.get_shape()))
                for name, part in slices.items()
            }
    except (SafetensorError, OSError, ValueError) as error:
        raise InvalidModelFormatError(
            file.path, None, f"is refused by safetensors ({shown(str(error))})"
        ) from error
    if ours != theirs:
        raise InvalidModelFormatError(file.path, None, "reads differently through safetensors")


def _read_entries(file: RegularFile) -> tuple[int, dict[str, object]]:
    """Return the offset of the data section, and the header's entries, which are not checked."""
    path = file.seen.path
    header = read_header(file)
    entries = parse_json(header, path)
    if len(entries) > MAX_TENSORS:
        raise InvalidModelFormatError(path, None, f"has {len(entries)} tensors")
    return _LENGTH_BYTES + len(header), entries


def _plan_entry(name: str, entry: object, path: Path, index: int, start: int) -> TensorPlan:
    """Plan one entry of a header. Types are compared exactly: a bool is an int to isinstance."""

    def refuse(detail: str) -> InvalidModelFormatError:
        return InvalidModelFormatError(path, shown(name), detail)

    if type(entry) is not dict or entry.keys() != _ENTRY_KEYS:
        raise refuse("needs exactly dtype, shape and data_offsets")
    code, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(code) is not str or code not in DTYPES:
        raise refuse(f"has the unknown dtype {shown(str(code))}")
    if type(shape) is not list or len(shape) > MAX_RANK or not _are_counts(shape):
        raise refuse(f"has no shape of at most {MAX_RANK} axes")
    if type(span) is not list or not _are_counts(span):
        raise refuse("has no begin and end in data_offsets")
    match span:
        case [begin, end]:
            pass
        case _:
            raise refuse("has no begin and end in data_offsets")
    # Python's integers do not overflow, so a shape with an absurd byte count is caught here.
    size = math.prod(shape) * WIDTHS[DTYPES[code]]
    if end - begin != size:
        raise refuse(f"needs {size} bytes by its shape and has {end - begin}")
    return TensorPlan(name, name, DTYPES[code], tuple(shape), index, start + begin, size)


def _check_cover(plans: list[TensorPlan], start: int, size: int, path: Path) -> None:
    """Check that the spans, by offset, cover the data section exactly."""
    end = start
    for plan in plans:
        if plan.offset_bytes != end:
            flaw = "overlaps another tensor" if plan.offset_bytes < end else "leaves a gap"
            raise InvalidModelFormatError(path, shown(plan.stored), flaw)
        end += plan.size_bytes
    if end != size:
        raise InvalidModelFormatError(
            path, None, f"has {size} bytes, but its header describes {end}"
        )


def _check_metadata(entry: object, path: Path) -> None:
    if entry is not None and (
        type(entry) is not dict or any(type(value) is not str for value in entry.values())
    ):
        raise InvalidModelFormatError(path, "__metadata__", "is not a map of strings")


def _are_counts(values: list[object]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _check_shard_name(where: Path, name: str, shard: object) -> None:
    """Check a shard's name by its letters: in Hugging Face snapshots files are links."""
    if (
        not isinstance(shard, str)
        or not shard.endswith(".safetensors")
        or not shard.isprintable()
        or any(character in shard for character in "/\\:")
    ):
        raise InvalidModelFormatError(
            where, shown(name), f"names {shown(repr(shard))}, which is not a file of this directory"
        )
