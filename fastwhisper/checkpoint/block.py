"""Tensors side by side in one block of memory, filled from a file without MLX.

MLX reads each tensor into memory of its own. One block for many tensors takes fewer system calls,
fewer page faults, and can be in huge pages. The tensors are views of the block, so the block lives
as long as one of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import mlx.core as mx

from fastwhisper.checkpoint.plan import WIDTHS, split_plans

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from fastwhisper.checkpoint.files import RegularFile
    from fastwhisper.checkpoint.plan import TensorPlan
    from fastwhisper.values import DtypeName

    Array = np.ndarray[Any, np.dtype[Any]]

__all__ = ["BlockReader", "cast_floating", "view_tensor"]

_ALIGNMENT: Final = 8
_CAST_BYTES: Final = 1 << 20
"""Bytes that are read before they are cast: they stay in the processor's cache."""

_CASTS: Final = {"float16", "float32"}
"""NumPy casts one to the other in place. It has no bfloat16."""
_SIGN_AND_HALF: Final = -(1 << 31) | 0x7FFF << 13
"""The bits of a float32 that hold a float16: its sign, and its other 15 bits."""

_LARGEST_EXPONENT: Final = 65536.0
"""Finite numbers of float16 are smaller."""

_MOST_BYTES: Final = (1 << 31) - 1
"""The longest axis of an MLX array. A block is one axis of bytes."""


@dataclass(slots=True)
class _Stretch:
    """Bytes of a file that go to one place of the block.

    Attributes:
        offset: Where they begin in the file.
        size: How many they are.
        at: Where they begin in the block.
        stored: Their dtype in the file if they are cast, else None.
    """

    offset: int
    size: int
    at: int
    stored: str | None


@dataclass(frozen=True, slots=True)
class BlockReader:
    """Reads tensors of one file into blocks.

    Attributes:
        opened: The file.
        dtype: The dtype of floating tensors; None keeps the file's.
        allocate: Returns at least so many bytes of MLX's memory, evaluated: shape (bytes,), uint8.
            Nobody has read or written them.
        with_numpy: Whether NumPy casts float16 and float32 while they are read. Otherwise, and
            with bfloat16, MLX casts what was read.
    """

    opened: RegularFile
    dtype: DtypeName | None
    allocate: Callable[[int], mx.array]
    with_numpy: bool = True

    def fits(self, plan: TensorPlan) -> bool:
        """Return whether the bytes of a tensor can be read as they are, or cast."""
        return plan.is_plain and self._count_bytes(plan) <= _MOST_BYTES

    def read(self, plans: Sequence[TensorPlan]) -> dict[str, mx.array]:
        """Read tensors that fit into one new block.

        What MLX must cast is read into small blocks, because a block is kept as a whole.

        Returns:
            The arrays by their MLX names, evaluated.

        Raises:
            InvalidModelFormatError: The file ends early, or is not readable.
        """
        final = [plan for plan in plans if not self._must_cast(plan)]
        arrays = self._read_block(final) if final else {}
        if self.dtype is not None:
            for part in split_plans(filter(self._must_cast, plans), _CAST_BYTES):
                cast_later = self._read_block(part)
                cast_floating(cast_later, self.dtype)
                arrays |= cast_later
        return arrays

    def _read_block(self, plans: Sequence[TensorPlan]) -> dict[str, mx.array]:
        places, stretches, size = self._lay_out(plans)
        block = self.allocate(size)
        with memoryview(cast("Any", block)) as memory:
            for stretch in stretches:
                self._fill(stretch, memory)
        arrays = {}
        for plan, at in zip(plans, places, strict=True):
            arrays[plan.name] = view_tensor(block, at, self._find_dtype(plan), plan.shape)
        mx.eval(list(arrays.values()))
        return arrays

    def _lay_out(self, plans: Sequence[TensorPlan]) -> tuple[list[int], list[_Stretch], int]:
        """Give each tensor its place: neighbours in the file are neighbours in the block.

        Returns:
            Where each tensor begins, what to read, and the bytes of the block.
        """
        places: list[int] = []
        stretches: list[_Stretch] = []
        end = 0
        for plan in plans:
            dtype = self._find_dtype(plan)
            stored = plan.dtype if dtype != plan.dtype else None
            last = stretches[-1] if stretches else None
            if (
                last is not None
                and last.offset + last.size == plan.offset_bytes
                and last.stored == stored
                and end % WIDTHS[dtype] == 0
            ):
                last.size += plan.size_bytes
            else:
                end += -end % _ALIGNMENT
                stretches.append(_Stretch(plan.offset_bytes, plan.size_bytes, end, stored))
            places.append(end)
            end += self._count_bytes(plan)
        return places, stretches, end

    def _fill(self, stretch: _Stretch, memory: memoryview) -> None:
        if stretch.stored is None:
            part = memory[stretch.at : stretch.at + stretch.size]
            self.opened.read_into(part, stretch.offset)
            return
        import numpy as np  # noqa: PLC0415  50 ms, and only a cast needs it

        stored = np.dtype(stretch.stored)
        count = stretch.size // stored.itemsize
        target = np.frombuffer(memory, self.dtype, count, offset=stretch.at)
        step = _CAST_BYTES // stored.itemsize
        source = np.empty(min(count, step), stored)
        for start in range(0, count, step):
            piece = source[: count - start]
            begin = stretch.offset + start * stored.itemsize
            self.opened.read_into(piece.view(np.uint8).data, begin)
            _cast_piece(piece, target[start : start + len(piece)])

    def _find_dtype(self, plan: TensorPlan) -> str:
        """Return the dtype that a tensor has in the block."""
        if self.with_numpy and self.dtype is not None and {plan.dtype, self.dtype} == _CASTS:
            return self.dtype
        return plan.dtype

    def _must_cast(self, plan: TensorPlan) -> bool:
        """Return whether MLX must cast a tensor."""
        is_floating = self.dtype is not None and "float" in plan.dtype
        return is_floating and self._find_dtype(plan) != self.dtype

    def _count_bytes(self, plan: TensorPlan) -> int:
        return math.prod(plan.shape) * WIDTHS[self._find_dtype(plan)]


def view_tensor(block: mx.array, at: int, dtype: str, shape: tuple[int, ...]) -> mx.array:
    """Return a tensor that is a part of a block, as a lazy view.

    Args:
        block: Shape (bytes,), uint8.
        at: Where the tensor begins in the block, a multiple of its item size.
        dtype: The name of its dtype.
        shape: Its shape.
    """
    end = at + math.prod(shape) * WIDTHS[dtype]
    return block[at:end].view(getattr(mx, dtype)).reshape(shape)


def cast_floating(group: dict[str, mx.array], dtype_name: DtypeName) -> None:
    """Cast the floating arrays of a group in batches of 1 MiB.

    Smaller batches would take longer: with each evaluation a thread gives up the GIL, and waits
    up to 5 ms to get it back. Larger ones would hold more memory beside their source.
    """
    dtype: mx.Dtype = getattr(mx, dtype_name)
    floating = (name for name, array in group.items() if mx.issubdtype(array.dtype, mx.floating))
    waiting = [name for name in floating if group[name].dtype != dtype]
    while waiting:
        batch: dict[str, mx.array] = {}
        read_bytes = 0
        while waiting and read_bytes < _CAST_BYTES:
            name = waiting.pop()
            read_bytes += group[name].nbytes
            batch[name] = group[name] = group[name].astype(dtype)
        mx.eval(list(batch.values()))


def _cast_piece(source: Array, target: Array) -> None:
    """Cast float16 to float32 or back, to the last bit as NumPy does it.

    NumPy casts float16 one number at a time. Integer operations are done on many numbers at once:
    they put sign, exponent and fraction where float32 has them, and the product corrects the
    exponent, whose zero is 15 in float16 and 127 in float32. Only infinity and NaN, which have the
    largest exponent, become wrong and are cast by NumPy. For large-v3-turbo that takes 0.3 s
    instead of 0.9.
    """
    import numpy as np  # noqa: PLC0415  see BlockReader

    if source.dtype == np.float16:
        bits = source.view(np.int16).astype(np.int32)  # the sign is repeated in the new bits
        np.left_shift(bits, 13, out=bits)
        np.bitwise_and(bits, _SIGN_AND_HALF, out=bits)
        np.multiply(bits.view(np.float32), np.float32(2.0 ** (127 - 15)), out=target)
        if target.max() < _LARGEST_EXPONENT and target.min() > -_LARGEST_EXPONENT:
            return
    with np.errstate(over="ignore"):  # as MLX casts: what is too large becomes infinity
        target[...] = source
