"""A file's own pages -> evaluated tensors, without a copy."""

from __future__ import annotations

import mmap
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

import mlx.core as mx

from fastwhisper.checkpoint.block import view_tensor
from fastwhisper.checkpoint.chunks import find_obstacle, find_span, plan_chunks
from fastwhisper.checkpoint.files import RegularFile

if TYPE_CHECKING:
    from fastwhisper.checkpoint.plan import Checkpoint, TensorPlan
    from fastwhisper.values import DtypeName

__all__ = ["Pages", "map_tensors"]


class Pages(Protocol):
    """What maps files and wraps their pages: the module `engine/pages.py`, or a stand-in."""

    def map_file(self, descriptor: int, offset: int, size: int) -> memoryview:
        """Map whole pages of an open file, read-only, as long as the buffer is used."""

    def find_resident(self, memory: memoryview) -> bytes:
        """Return one byte for each page of a mapping: zero if it is not in the page cache."""

    def wrap(self, memory: memoryview) -> mx.array:
        """Return whole pages of a mapping as an array. Shape (bytes,), uint8."""


def map_tensors(
    checkpoint: Checkpoint, *, dtype: DtypeName | None, pages: Pages
) -> dict[str, mx.array]:
    """Map what can be mapped: aligned tensors that need no cast and are in the page cache.

    The files are checked as for a read, before and after. If one is cut later while an array of
    it is in use, the system ends the process.

    Args:
        checkpoint: A checkpoint, or a share of one.
        dtype: The dtype of floating arrays; None keeps the file's.
        pages: What maps and wraps.

    Returns:
        The arrays by their MLX names, evaluated. All other tensors must be read.

    Raises:
        InvalidModelFormatError: A file changed since it was inspected, or is not readable.
    """
    arrays: dict[str, mx.array] = {}
    try:
        for index, tensors in groupby(checkpoint.tensors, key=lambda tensor: tensor.file):
            file = checkpoint.files[index]
            with RegularFile(file.path) as opened:
                opened.must_be(file)
                mappable = [plan for plan in tensors if find_obstacle(plan, dtype) is None]
                arrays |= _map_file(opened, mappable, pages)
                opened.must_be(file)
    except BaseException:
        arrays.clear()  # a traceback keeps the dictionary alive
        raise
    return arrays


def _map_file(opened: RegularFile, plans: list[TensorPlan], pages: Pages) -> dict[str, mx.array]:
    """Map tensors of one file. Those are left out that the system or Metal does not map."""
    arrays: dict[str, mx.array] = {}
    if not plans:
        return arrays
    begin, size = find_span(plans, mmap.PAGESIZE)
    try:
        memory = pages.map_file(opened.fileno(), begin, size)
    except OSError:
        return arrays
    resident = pages.find_resident(memory)
    for chunk in plan_chunks(plans, resident, begin=begin, page_bytes=mmap.PAGESIZE):
        at = chunk.offset - begin
        try:
            block = pages.wrap(memory[at : at + chunk.size])
        except ValueError:
            continue
        for plan in chunk.tensors:
            start = plan.offset_bytes - chunk.offset
            arrays[plan.name] = view_tensor(block, start, plan.dtype, plan.shape)
    mx.eval(list(arrays.values()))
    return arrays
