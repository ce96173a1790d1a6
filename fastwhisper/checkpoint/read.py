"""Files of weights -> groups of named, evaluated arrays.

Two rules hold here. First, only evaluated arrays are yielded: a lazy array belongs to the thread
that made it. Second, a failed read is final and drops all arrays: after it MLX treats arrays as
evaluated and would return old memory. A file that changes after its inspection is noticed before
and after each group.
"""

from __future__ import annotations

import os
import zlib
from itertools import groupby
from typing import TYPE_CHECKING, Final

import mlx.core as mx

from fastwhisper.checkpoint.block import BlockReader, cast_floating
from fastwhisper.checkpoint.files import RegularFile, shown
from fastwhisper.checkpoint.plan import split_plans
from fastwhisper.errors import InvalidModelFormatError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from fastwhisper.checkpoint.files import WeightFile
    from fastwhisper.checkpoint.plan import Checkpoint, TensorPlan
    from fastwhisper.values import DtypeName

__all__ = ["GROUP_BYTES", "read_shards"]

GROUP_BYTES: Final = 64 << 20
"""Bytes of a group. Reading one takes 4 to 12 ms from the page cache and 150 ms from a disk; a
cancelled load goes on for as long. One read of everything would be 9 % faster."""

_NUMPY_PAYS_BYTES: Final = 48 << 20
"""Bytes to cast from which NumPy, whose import takes 50 ms, is faster than MLX."""

_INFLATE_BYTES: Final = 1 << 20

_Arrays = dict[str, mx.array]


def read_shards(
    checkpoint: Checkpoint,
    *,
    prefix: str = "",
    dtype: DtypeName | None = None,
    allocate: Callable[[int], mx.array] | None = None,
) -> Iterator[Mapping[str, mx.array]]:
    """Read the weights of a checkpoint, group by group, in the order of the files.

    Several of these may run side by side, each in its own thread. The arrays of a group are
    evaluated in the thread that asks for it, and may be used in every thread.

    Args:
        checkpoint: A checkpoint, or a share of one.
        prefix: Read only tensors whose names begin with this, such as "encoder.".
        dtype: The dtype of floating arrays; None keeps the file's.
        allocate: Read into blocks of this memory, see `BlockReader`. None reads with MLX's own
            reader, which is faster for a GPU.

    Yields:
        About 64 MiB of arrays by full MLX name.

    Raises:
        InvalidModelFormatError: A file changed since it was inspected, ends early, or is not
            readable. The load has failed: drop the groups that were yielded before.
    """
    chosen = [tensor for tensor in checkpoint.tensors if tensor.name.startswith(prefix)]
    for index, tensors in groupby(chosen, key=lambda tensor: tensor.file):
        file = checkpoint.files[index]
        # Opened before MLX opens it: the checks are about this very file.
        with RegularFile(file.path) as opened:
            opened.must_be(file)
            plans = list(tensors)
            blocks = _find_blocks(opened, plans, dtype, allocate) if allocate else None
            with_mlx = checkpoint.is_safetensors and blocks is None
            lazy = _map(opened, file, plans) if with_mlx else {}
            for group in split_plans(plans, GROUP_BYTES):
                arrays = _read(opened, file, group, lazy, blocks)
                if dtype is not None:
                    cast_floating(arrays, dtype)
                yield arrays


def _find_blocks(
    opened: RegularFile,
    plans: list[TensorPlan],
    dtype: DtypeName | None,
    allocate: Callable[[int], mx.array],
) -> BlockReader:
    """Return a reader into blocks. It casts with NumPy if the import of NumPy pays."""
    cast_bytes = sum(
        plan.size_bytes for plan in plans if "float" in plan.dtype and plan.dtype != dtype
    )
    return BlockReader(opened, dtype, allocate, with_numpy=cast_bytes >= _NUMPY_PAYS_BYTES)


def _read(
    opened: RegularFile,
    file: WeightFile,
    group: list[TensorPlan],
    lazy: _Arrays,
    blocks: BlockReader | None,
) -> _Arrays:
    """Read and evaluate one group; check before and after that the file is the same."""
    arrays: _Arrays = {}
    try:
        opened.must_be(file)
        if blocks is not None and (fitting := [plan for plan in group if blocks.fits(plan)]):
            arrays |= blocks.read(fitting)
        for plan in group:
            if plan.name not in arrays:
                mapped = lazy.pop(plan.stored, None)
                arrays[plan.name] = _load(opened, plan) if mapped is None else mapped
        mx.eval(list(arrays.values()))
        opened.must_be(file)
    except (RuntimeError, MemoryError) as error:
        _forget(arrays, lazy)
        raise InvalidModelFormatError(
            file.path, None, f"is not readable by MLX ({shown(str(error))})"
        ) from error
    except BaseException:
        _forget(arrays, lazy)
        raise
    return arrays


def _forget(arrays: _Arrays, lazy: _Arrays) -> None:
    # A traceback keeps the dictionaries alive; their arrays must be freed.
    arrays.clear()
    lazy.clear()


def _map(opened: RegularFile, file: WeightFile, plans: list[TensorPlan]) -> _Arrays:
    """Open a safetensors file with MLX, whose reads are the fastest.

    Returns:
        Lazy arrays by stored name, without those that must be transposed.
    """
    text = os.fspath(file.path)
    try:
        text.encode()
    except UnicodeEncodeError:
        # MLX accepts only paths in UTF-8; the open file has an ASCII path too.
        text = opened.descriptor_path
    found = _mx_load(text, file)
    opened.must_be(file, at_path=True)
    lazy: _Arrays = {}
    for plan in plans:
        if plan.transpose is not None:
            continue
        array = found.get(plan.stored)
        if array is None or array.shape != plan.shape or array.dtype != _dtype(plan):
            raise InvalidModelFormatError(
                file.path, shown(plan.stored), "reads differently through MLX"
            )
        lazy[plan.stored] = array
    return lazy


def _mx_load(path: str, file: WeightFile) -> _Arrays:
    try:
        found = mx.load(path, format="safetensors")
    except (RuntimeError, ValueError, IndexError) as error:
        raise InvalidModelFormatError(
            file.path, None, f"is not readable by MLX ({shown(str(error))})"
        ) from error
    if not isinstance(found, dict):
        raise InvalidModelFormatError(file.path, None, "has no named arrays")
    return found


def _load(opened: RegularFile, plan: TensorPlan) -> mx.array:
    """Read one tensor through a buffer of its own. A bfloat16 array is still lazy."""
    import numpy as np  # noqa: PLC0415  50 ms, and safetensors files need none of it

    raw = plan.dtype == "bfloat16"
    buffer = np.empty(plan.stored_shape, dtype="uint16" if raw else plan.dtype)
    view = buffer.reshape(-1).view(np.uint8).data
    if plan.packed_bytes is None:
        opened.read_into(view, plan.offset_bytes)
    else:
        _inflate(opened, plan, view, plan.packed_bytes)
    if plan.crc32 is not None and zlib.crc32(view, plan.crc32[0]) != plan.crc32[1]:
        raise InvalidModelFormatError(
            opened.seen.path, shown(plan.stored), "has the wrong checksum"
        )
    if plan.transpose is not None:
        buffer = np.ascontiguousarray(buffer.transpose(plan.transpose))
    array = mx.array(buffer)
    return array.view(mx.bfloat16) if raw else array


def _inflate(opened: RegularFile, plan: TensorPlan, view: memoryview, packed: int) -> None:
    """Inflate a tensor into a buffer of its exact size, so that a zip bomb has no room."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    skip = plan.head_bytes
    at = done = 0
    try:
        while not inflater.eof and (inflater.unconsumed_tail or at < packed):
            chunk = inflater.unconsumed_tail
            if not chunk:
                chunk = opened.read_at(plan.offset_bytes + at, min(_INFLATE_BYTES, packed - at))
                at += len(chunk)
            # One byte more than the buffer has, to notice a stream that is too long.
            room = min(_INFLATE_BYTES, skip + len(view) - done + 1)
            part = inflater.decompress(chunk, room)
            cut = part[skip:]
            skip -= len(part) - len(cut)
            if done + len(cut) > len(view):
                break
            view[done : done + len(cut)] = cut
            done += len(cut)
        exact = done == len(view) and inflater.eof
    except zlib.error:
        exact = False
    if not exact:
        raise InvalidModelFormatError(
            opened.seen.path, shown(plan.stored), "does not inflate to its size"
        )


def _dtype(plan: TensorPlan) -> mx.Dtype:
    dtype: mx.Dtype = getattr(mx, plan.dtype)
    return dtype
