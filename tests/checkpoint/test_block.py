"""Tensors in one block of memory."""

from __future__ import annotations

import itertools
import mmap
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest

from fastwhisper.checkpoint.block import BlockReader
from fastwhisper.checkpoint.files import RegularFile
from fastwhisper.checkpoint.plan import WIDTHS, TensorPlan
from fastwhisper.engine import blocks
from fastwhisper.errors import InvalidModelFormatError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastwhisper.values import DtypeName

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or mx.default_device() != mx.cpu, reason="blocks are for a Linux CPU"
)

Array = np.ndarray[Any, np.dtype[Any]]


def allocate(size: int) -> mx.array:
    """Allocate a block and fill it, so that a byte that nobody reads is seen."""
    block = blocks.allocate(size)
    np.asarray(block)[:] = 0xA5
    return block


def read(
    path: Path, arrays: Sequence[Array], dtype: DtypeName | None = None, *, shift: int = 0
) -> list[mx.array]:
    """Write arrays behind so many bytes, and read them into one block."""
    path.write_bytes(bytes(shift) + b"".join(array.tobytes() for array in arrays))
    ends = itertools.accumulate((array.nbytes for array in arrays), initial=shift)
    plans = [
        TensorPlan(str(number), "", array.dtype.name, array.shape, 0, offset, array.nbytes)
        for number, (array, offset) in enumerate(zip(arrays, ends, strict=False))
    ]
    with RegularFile(path) as opened:
        reader = BlockReader(opened, dtype, allocate)
        assert all(map(reader.fits, plans))
        return list(reader.read(plans).values())


@pytest.mark.parametrize("shift", [0, 1, 3, 4096])
def test_arrays_of_any_width_and_place(shift: int, tmp_path: Path) -> None:
    """Each array is aligned in memory, wherever it lies in the file."""
    generator = np.random.default_rng(3)
    names = [name for name in WIDTHS if name[0] in "ui"] * 2
    arrays: list[Array] = [
        generator.integers(0, 100, (size, 3)).astype(name) for size, name in enumerate(names, 1)
    ]
    generator.shuffle(arrays)
    for found, wanted in zip(read(tmp_path / "file", arrays, shift=shift), arrays, strict=True):
        array = np.asarray(found)
        assert array.ctypes.data % array.itemsize == 0
        assert array.dtype == wanted.dtype
        np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_scalars_and_empty_arrays(dtype: DtypeName | None, tmp_path: Path) -> None:
    """They take their place, or none."""
    arrays: list[Array] = [
        np.array(3.5, np.float16),
        np.zeros((0, 4), np.float16),
        np.ones(2, "f2"),
    ]
    found = read(tmp_path / "file", arrays, dtype)
    assert [array.shape for array in found] == [(), (0, 4), (2,)]
    assert found[0].item() == 3.5
    assert found[2].tolist() == [1, 1]


def test_every_float16_is_cast_to_the_last_bit(tmp_path: Path) -> None:
    """Zeros of both signs, subnormal numbers and the largest; infinity and NaN."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)]
    for array in (finite, halves, halves[::-1].copy()):
        [found] = read(tmp_path / "file", [array], "float32")
        assert found.dtype == mx.float32
        bits = np.asarray(found).view(np.uint32)
        np.testing.assert_array_equal(bits, array.astype(np.float32).view(np.uint32))


def test_float32_is_cast_to_float16(tmp_path: Path) -> None:
    """It is rounded as NumPy rounds, and what is too large becomes infinity."""
    array = np.random.default_rng(5).normal(0, 1, 1000).astype(np.float32)
    array[:3] = 1e6, -1e-7, np.nan
    [found] = read(tmp_path / "file", [array], "float16")
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(np.asarray(found), array.astype(np.float16))


def test_cast_arrays_lie_beside_others(tmp_path: Path) -> None:
    """Only floating arrays are cast, in several pieces if they are large."""
    generator = np.random.default_rng(7)
    arrays: list[Array] = [
        generator.integers(0, 9, 5).astype(np.uint32),
        generator.normal(0, 1, (3, 400_001)).astype(np.float16),
        generator.normal(0, 1, 3).astype(np.float16),
        generator.normal(0, 1, 3).astype(np.float32),
        generator.integers(0, 9, 7).astype(np.uint8),
        generator.normal(0, 1, 700_000).astype(np.float16),
    ]
    for found, array in zip(read(tmp_path / "file", arrays, "float32"), arrays, strict=True):
        wanted = array.astype(np.float32) if array.dtype == np.float16 else array
        assert np.asarray(found).dtype == wanted.dtype
        np.testing.assert_array_equal(np.asarray(found), wanted)


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_file_that_ends_early(dtype: DtypeName | None, tmp_path: Path) -> None:
    """It is an error that names the byte, with no array."""
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    plan = TensorPlan("a", "", "float16", (100,), 0, 0, 200)
    with RegularFile(path) as opened, pytest.raises(InvalidModelFormatError, match="ends before"):
        BlockReader(opened, dtype, allocate).read([plan])


@pytest.mark.parametrize("size", [1, 24, 4095, 1 << 20, (2 << 20) - 1, 2 << 20, 5_000_001])
def test_blocks_of_any_size(size: int) -> None:
    """A block has the bytes that were asked for, and can be written."""
    block = blocks.allocate(size)
    assert block.size >= size
    np.asarray(block)[:] = 7
    assert mx.all(block == 7).item()


def test_blocks_are_in_huge_pages() -> None:
    """All of a large block is, where the kernel offers them."""
    huge_bytes = 32 << 20
    with mmap.mmap(-1, 4 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as probe:
        try:
            probe.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pytest.skip("this kernel has no huge pages")
        probe[:] = bytes(len(probe))
        if not _count_huge_bytes():
            pytest.skip("this kernel gives no huge pages")
    before = _count_huge_bytes()
    block = blocks.allocate(huge_bytes)
    np.asarray(block)[:] = 1
    assert _count_huge_bytes() - before >= huge_bytes * 3 // 4


def _count_huge_bytes() -> int:
    text = Path("/proc/self/smaps_rollup").read_text()
    [kilobytes] = re.findall(r"AnonHugePages: *(\d+) kB", text)
    return int(kilobytes) << 10
