"""The plan of a load: which tensors a checkpoint has, and where their bytes lie."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Final, Literal

from fastwhisper.checkpoint.expected import find_main_bits
from fastwhisper.values import Quantization

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping
    from pathlib import Path

    from fastwhisper.checkpoint.files import WeightFile
    from fastwhisper.values import Dimensions, DtypeName, ModulePrecision

__all__ = ["MAX_RANK", "WIDTHS", "Checkpoint", "Layout", "TensorPlan", "split_plans"]

Layout = Literal["safetensors", "huggingface", "npz", "ctranslate2"]

WIDTHS: Final = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "float8_e5m2": 1,
    "float8_e4m3": 1,
    "uint16": 2,
    "int16": 2,
    "float16": 2,
    "bfloat16": 2,
    "uint32": 4,
    "int32": 4,
    "float32": 4,
    "uint64": 8,
    "int64": 8,
    "float64": 8,
}
"""Bytes of one element, by the dtype's name."""

MAX_RANK: Final = 8
"""Largest number of axes of a tensor. Whisper's tensors have at most three."""

_MOST_BITS_OF_INT4: Final = 5
"""Five bits in groups of 128 take 34 % of float16's bytes: the int4 of `fastwhisper quantize`."""


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """Where one tensor of the network lies, and how to read it.

    Attributes:
        name: Its name in the MLX network.
        stored: Its name in the file.
        dtype: Its element type as stored, such as "float16".
        shape: Its shape in the MLX network.
        file: Index into the checkpoint's files.
        offset_bytes: Offset of its first byte in the file.
        size_bytes: Length of its bytes, unpacked.
        transpose: Axes that turn the stored array into the MLX array, or None.
        packed_bytes: Length in the file if it is deflated, else None.
        head_bytes: Bytes before the array's own in a deflated stream.
        crc32: CRC of the bytes before the array in its zip member, and of the whole member.
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
    def is_plain(self) -> bool:
        """Whether the bytes in the file are those of the MLX array, before any cast."""
        return self.transpose is None and self.packed_bytes is None and self.crc32 is None

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in the file, before `transpose`."""
        if self.transpose is None:
            return self.shape
        stored = dict(zip(self.transpose, self.shape, strict=True))
        return tuple(stored[axis] for axis in range(len(self.shape)))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A Whisper checkpoint on disk: checked and planned, but not read.

    Attributes:
        path: The directory.
        layout: How the weights are stored: "safetensors" with MLX's names, which is read
            fastest; safetensors with the names of "huggingface"; "npz"; or "ctranslate2".
        dimensions: The network's sizes.
        precision: Bits and group size by module name, for quantized modules only.
        alignment_heads: (layer, head) pairs for word times if a config lists them, else None.
            `tensors` may contain a tensor of that name then.
        files: The files of weights as they were when they were inspected.
        tensors: The plan of every tensor of the network.
        left_out: The plans of stored tensors that the network does not need.
    """

    path: Path
    layout: Layout
    dimensions: Dimensions
    precision: Mapping[str, ModulePrecision] = field(hash=False)
    alignment_heads: tuple[tuple[int, int], ...] | None
    files: tuple[WeightFile, ...]
    tensors: tuple[TensorPlan, ...]
    left_out: tuple[TensorPlan, ...] = ()

    @property
    def actual(self) -> Quantization:
        """The precision: by the bits that most quantized weights have."""
        if not self.precision:
            return Quantization.FLOAT16
        bits = find_main_bits(self.dimensions, self.precision)
        return Quantization.INT4 if bits <= _MOST_BITS_OF_INT4 else Quantization.INT8

    @property
    def total_bytes(self) -> int:
        """Bytes of all weights, as stored and unpacked."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    def count_bytes(self, dtype: DtypeName | None) -> int:
        """Return the bytes of all weights in memory, the floating ones in a dtype.

        Args:
            dtype: The dtype; None keeps the file's.
        """
        if dtype is None:
            return self.total_bytes
        return sum(
            math.prod(tensor.shape) * WIDTHS[dtype]
            if "float" in tensor.dtype
            else tensor.size_bytes
            for tensor in self.tensors
        )

    @property
    def is_safetensors(self) -> bool:
        """Whether the files are safetensors, which MLX reads itself."""
        return self.layout in {"safetensors", "huggingface"}

    def select(self, prefix: str) -> Checkpoint:
        """Return the checkpoint with only the tensors whose names begin with `prefix`."""
        return self._with(tensor for tensor in self.tensors if tensor.name.startswith(prefix))

    def leave_out(self, names: Container[str]) -> Checkpoint:
        """Return the checkpoint without the tensors of these names."""
        return self._with(tensor for tensor in self.tensors if tensor.name not in names)

    def split(self, shares: int) -> tuple[Checkpoint, ...]:
        """Split the tensors into shares of about the same bytes, to be read side by side.

        Each share is one stretch of the files, so it is read forward.

        Args:
            shares: The largest number of shares.

        Returns:
            At most `shares` checkpoints, none of them empty. Their tensors are disjoint, and
            together they are all tensors.

        Raises:
            ValueError: `shares` is less than one.
        """
        if shares < 1:
            raise ValueError(f"shares must be at least 1, not {shares}")
        bounds = [0, *accumulate(tensor.size_bytes for tensor in self.tensors)]
        cuts = {0, len(self.tensors)}
        for number in range(1, shares):
            target = bounds[-1] * number / shares
            after = max(1, bisect_left(bounds, target))
            if after < len(bounds):
                is_nearer = bounds[after] - target < target - bounds[after - 1]
                cuts.add(after if is_nearer else after - 1)
        return tuple(self._with(self.tensors[a:b]) for a, b in pairwise(sorted(cuts)))

    def _with(self, tensors: Iterable[TensorPlan]) -> Checkpoint:
        return replace(self, tensors=tuple(tensors))


def split_plans(plans: Iterable[TensorPlan], most_bytes: int) -> Iterator[list[TensorPlan]]:
    """Split plans into groups of at most so many bytes. A larger tensor is a group of its own."""
    group: list[TensorPlan] = []
    size = 0
    for plan in plans:
        if group and size + plan.size_bytes > most_bytes:
            yield group
            group, size = [], 0
        group.append(plan)
        size += plan.size_bytes
    if group:
        yield group
