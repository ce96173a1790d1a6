"""Files of weights -> groups of named, evaluated arrays.

Two rules live here. Arrays cross threads only when evaluated: a lazy one is tied to the thread
that made it, so none is ever yielded. Nothing is trusted: after a failed read MLX takes the
arrays for evaluated and hands out old memory, so a failure drops every array and is final; and a
file that changes after its inspection is noticed before and after each group.
"""

from __future__ import annotations

import os
import zlib
from itertools import groupby
from typing import TYPE_CHECKING, Final

import mlx.core as mx

from fastwhisper.checkpoint.files import RegularFile, shown
from fastwhisper.checkpoint.inspection import SAFETENSORS
from fastwhisper.errors import InvalidModelFormatError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fastwhisper.checkpoint.files import TensorPlan, WeightFile
    from fastwhisper.checkpoint.inspection import Checkpoint

__all__ = ["GROUP_BYTES", "read_shards"]

GROUP_BYTES: Final = 64 << 20
"""Bytes of a group. One such read is 4 to 12 ms warm and 150 ms cold, which is how long a
cancelled load may go on; it costs 9 % of time against one read of everything."""

_INFLATE_BYTES: Final = 1 << 20
_TRIES: Final = 9
_AGAIN: Final = "download the file again, or convert the model again"

_Arrays = dict[str, mx.array]


def read_shards(checkpoint: Checkpoint, *, prefix: str = "") -> Iterator[Mapping[str, mx.array]]:
    """Read the weights of a checkpoint, group by group, in the order of the files.

    Any number of these may run side by side, each in one thread: the arrays of a group are
    evaluated in the thread that asks for it and usable in all.

    Args:
        checkpoint: What to read.
        prefix: Read only tensors whose names begin with this, such as "encoder.".

    Yields:
        About 64 MiB of arrays by full MLX name, in the file's dtypes.

    Raises:
        InvalidModelFormatError: A file changed since it was inspected, ends early, or can't
            be read. Drop what was yielded before: the load has failed.
    """
    chosen = [tensor for tensor in checkpoint.tensors if tensor.name.startswith(prefix)]
    for index, tensors in groupby(chosen, key=lambda tensor: tensor.file):
        file = checkpoint.files[index]
        # Opened before MLX opens it: it holds the file that the checks are about.
        with RegularFile(file.path) as opened:
            opened.must_be(file)
            plans = list(tensors)
            lazy = _map(opened, file, plans) if checkpoint.layout in SAFETENSORS else {}
            for group in _groups(plans):
                yield _read(opened, file, group, lazy)


def _read(opened: RegularFile, file: WeightFile, group: list[TensorPlan], lazy: _Arrays) -> _Arrays:
    """Read and evaluate one group between two looks at the file."""
    arrays: _Arrays = {}
    try:
        opened.must_be(file)
        for plan in group:
            mapped = lazy.pop(plan.stored, None)
            arrays[plan.name] = _load(opened, plan) if mapped is None else mapped
        mx.eval(list(arrays.values()))
        opened.must_be(file)
    except (RuntimeError, MemoryError) as error:
        _forget(arrays, lazy)
        raise InvalidModelFormatError(
            file.path, None, f"can't be read by MLX ({shown(str(error))}); {_AGAIN}"
        ) from error
    except BaseException:
        _forget(arrays, lazy)
        raise
    return arrays


def _forget(arrays: _Arrays, lazy: _Arrays) -> None:
    # The traceback keeps the frames and so the dictionaries alive; their arrays must go.
    arrays.clear()
    lazy.clear()


def _groups(plans: list[TensorPlan]) -> Iterator[list[TensorPlan]]:
    """Cut into groups of at most 64 MiB; a larger tensor is a group of its own."""
    group: list[TensorPlan] = []
    size = 0
    for plan in plans:
        if group and size + plan.size_bytes > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(plan)
        size += plan.size_bytes
    if group:
        yield group


def _map(opened: RegularFile, file: WeightFile, plans: list[TensorPlan]) -> _Arrays:
    """Let MLX open a safetensors file: its reads are the fastest, and lazy.

    Returns:
        Unevaluated arrays by stored name, only those that are one tensor of the network as
        they are.
    """
    text = os.fspath(file.path)
    try:
        text.encode()
    except UnicodeEncodeError:
        # MLX takes no path that is not UTF-8; the open file has another one.
        text = opened.descriptor_path
    found = _mx_load(text, opened, file)
    opened.must_be(file, at_path=True)
    lazy: _Arrays = {}
    for plan in plans:
        if plan.transpose is not None:
            continue
        array = found.get(plan.stored)
        if array is None or array.shape != plan.shape or array.dtype != _dtype(plan):
            raise InvalidModelFormatError(
                file.path, shown(plan.stored), f"reads differently through MLX; {_AGAIN}"
            )
        lazy[plan.stored] = array
    return lazy


def _mx_load(path: str, opened: RegularFile, file: WeightFile) -> _Arrays:
    for left in reversed(range(_TRIES)):
        try:
            # MLX takes descriptor 0, which it gets when stdin is closed, for a failure.
            with opened.lowest_descriptor_taken():
                found = mx.load(path, format="safetensors")
        except (RuntimeError, ValueError, IndexError) as error:
            # Another lane that held 0 may have let it go in between. Nothing is evaluated yet,
            # so opening again is safe.
            if not left:
                raise InvalidModelFormatError(
                    file.path, None, f"can't be opened by MLX ({shown(str(error))}); {_AGAIN}"
                ) from error
        else:
            if isinstance(found, dict):
                return found
    raise InvalidModelFormatError(file.path, None, f"holds no named arrays; {_AGAIN}")


def _load(opened: RegularFile, plan: TensorPlan) -> mx.array:
    """Read one tensor through a buffer of its own; only bfloat16 needs evaluation after."""
    import numpy as np  # noqa: PLC0415 - the safetensors path does without it

    raw = plan.dtype == "bfloat16"
    buffer = np.empty(plan.stored_shape, dtype="uint16" if raw else plan.dtype)
    view = buffer.reshape(-1).view(np.uint8).data
    if plan.packed_bytes is None:
        opened.read_into(view, plan.offset_bytes)
    else:
        _inflate(opened, plan, view, plan.packed_bytes)
    if plan.crc32 is not None and zlib.crc32(view, plan.crc32[0]) != plan.crc32[1]:
        raise InvalidModelFormatError(
            opened.seen.path, shown(plan.stored), f"has a wrong checksum; {_AGAIN}"
        )
    if plan.transpose is not None:
        buffer = np.ascontiguousarray(buffer.transpose(plan.transpose))
    array = mx.array(buffer)
    return array.view(mx.bfloat16) if raw else array


def _inflate(opened: RegularFile, plan: TensorPlan, view: memoryview, packed: int) -> None:
    """Inflate a tensor into a buffer that has its exact size: no bomb fits."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    skip = plan.head_bytes
    at = done = 0
    try:
        while not inflater.eof and (inflater.unconsumed_tail or at < packed):
            chunk = inflater.unconsumed_tail
            if not chunk:
                chunk = opened.read_at(plan.offset_bytes + at, min(_INFLATE_BYTES, packed - at))
                at += len(chunk)
            # One byte more than belongs there, to notice that there is more.
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
            opened.seen.path, shown(plan.stored), f"doesn't inflate to its size; {_AGAIN}"
        )


def _dtype(plan: TensorPlan) -> mx.Dtype:
    dtype: mx.Dtype = getattr(mx, plan.dtype)
    return dtype
