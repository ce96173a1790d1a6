"""The plan of a mapped file: which of its pages are wrapped, and which tensors are views of them.

A wrapped chunk begins and ends at the border of a page, since Metal takes whole pages only. A
tensor lies whole in one chunk, and chunks may share a page. A page that is not in the page cache
is in no chunk: it is read faster than it is mapped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from fastwhisper.checkpoint.plan import WIDTHS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fastwhisper.checkpoint.plan import TensorPlan
    from fastwhisper.values import DtypeName

__all__ = ["Chunk", "describe_mapping", "find_obstacle", "find_span", "plan_chunks"]

_MOST_BYTES: Final = (1 << 31) - 1
"""The longest axis of an MLX array. A chunk is one axis of bytes."""


class Chunk(NamedTuple):
    """Whole pages of a file, and the tensors that are views of them.

    Attributes:
        offset: Where it begins in the file, a multiple of the page's size.
        size: Its bytes, a multiple of the page's size. The last page may exceed the file.
        tensors: The plans of its tensors, by offset.
    """

    offset: int
    size: int
    tensors: tuple[TensorPlan, ...]


def find_obstacle(plan: TensorPlan, dtype: DtypeName | None) -> str | None:
    """Return why a tensor must be read and can't be a view of the file, or None.

    Args:
        plan: The plan of the tensor.
        dtype: The dtype of floating arrays; None keeps the file's.
    """
    if plan.packed_bytes is not None:
        return "is compressed"
    if plan.crc32 is not None:
        return "has a checksum"
    if plan.transpose is not None:
        return "must be transposed"
    if dtype is not None and "float" in plan.dtype and plan.dtype != dtype:
        return f"must be cast to {dtype}"
    if plan.offset_bytes % WIDTHS[plan.dtype]:
        return "is not aligned"
    return None if plan.size_bytes else "is empty"


def describe_mapping(plans: Sequence[TensorPlan], dtype: DtypeName | None) -> str:
    """Return whether tensors map, in words: "yes", "no (...)", or how many of them.

    Args:
        plans: The plans of the tensors.
        dtype: As for `find_obstacle`.
    """
    found = [find_obstacle(plan, dtype) for plan in plans]
    reasons = " or ".join(sorted({reason for reason in found if reason is not None}))
    if not reasons:
        return "yes"
    mapped = found.count(None)
    if not mapped:
        return f"no (each tensor {reasons})"
    return f"{mapped} of {len(found)} tensors (the rest {reasons})"


def find_span(plans: Iterable[TensorPlan], page_bytes: int) -> tuple[int, int]:
    """Return the offset and the bytes of the whole pages from the first tensor to the last one."""
    begin, end = 1 << 63, 0
    for plan in plans:
        begin = min(begin, plan.offset_bytes)
        end = max(end, plan.offset_bytes + plan.size_bytes)
    begin -= begin % page_bytes
    return begin, end + -end % page_bytes - begin


def plan_chunks(
    plans: Iterable[TensorPlan],
    resident: bytes,
    *,
    begin: int,
    page_bytes: int,
    most_bytes: int = _MOST_BYTES,
) -> list[Chunk]:
    """Choose the chunks to wrap, and their tensors.

    Neighbours share a chunk if all pages between them are in the page cache: the GPU makes the
    pages of a chunk resident together.

    Args:
        plans: Tensors of one file without an obstacle.
        resident: One byte for each page from `begin` on: zero if it is not in the page cache.
        begin: Where the first page begins in the file, in bytes.
        page_bytes: The size of a page.
        most_bytes: The largest size of a chunk.

    Returns:
        The chunks, by offset. A tensor that is in none must be read.
    """
    groups: list[list[TensorPlan]] = []
    first = end = 0  # the pages of the last group
    for plan in sorted(plans, key=lambda plan: plan.offset_bytes):
        page = (plan.offset_bytes - begin) // page_bytes
        after = -(-(plan.offset_bytes + plan.size_bytes - begin) // page_bytes)
        if (after - page) * page_bytes > most_bytes or not _all_set(resident, page, after):
            continue
        fits = (after - first) * page_bytes <= most_bytes
        if groups and fits and _all_set(resident, end, page):
            groups[-1].append(plan)
        else:
            groups.append([plan])
            first = page
        end = after
    return [Chunk(*find_span(group, page_bytes), tuple(group)) for group in groups]


def _all_set(resident: bytes, first: int, end: int) -> bool:
    """Return whether pages are all known to be in the page cache."""
    return end <= len(resident) and resident.find(0, first, end) < 0
