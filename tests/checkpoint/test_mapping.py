"""Tensors as views of a mapped file. Where there is no Metal, the pages are copied."""

from __future__ import annotations

import mmap
import os
from functools import partial
from typing import TYPE_CHECKING

import mlx.core as mx
import pytest

from fastwhisper.checkpoint import chunks, mapping
from fastwhisper.checkpoint.inspection import inspect_checkpoint
from fastwhisper.checkpoint.mapping import map_tensors
from fastwhisper.checkpoint.read import read_shards
from fastwhisper.errors import InvalidModelFormatError
from tests.helpers.pages import CopyingPages, align_weights
from tests.helpers.tiny_models import write_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fastwhisper.checkpoint.plan import Checkpoint
    from fastwhisper.values import DtypeName


def check(
    checkpoint: Checkpoint, pages: CopyingPages, dtype: DtypeName | None = "float16"
) -> dict[str, mx.array]:
    """Map what can be mapped, and compare it with the same tensors read."""
    found = map_tensors(checkpoint, dtype=dtype, pages=pages)
    read = {name: array for group in read_shards(checkpoint) for name, array in group.items()}
    for name, array in found.items():
        assert (array.dtype, array.shape) == (read[name].dtype, read[name].shape), name
        assert mx.array_equal(array, read[name]).item(), name
    return found


def write(path: Path, *, shift: int = 0, precision: str = "float16") -> Checkpoint:
    """Write a model whose data begins so many bytes behind a multiple of 16."""
    return inspect_checkpoint(align_weights(write_model(path, precision=precision), shift=shift))


@pytest.mark.parametrize("precision", ["float16", "int8", "int4"])
def test_aligned_file_is_mapped_whole(tmp_path: Path, precision: str) -> None:
    """Every tensor is a view of one chunk, the last ones too, behind which the file ends."""
    checkpoint = write(tmp_path, precision=precision)
    pages = CopyingPages()
    assert len(check(checkpoint, pages)) == len(checkpoint.tensors)
    size = checkpoint.files[0].size_bytes
    assert size % mmap.PAGESIZE
    # Pages of the header alone are not wrapped.
    begin = min(plan.offset_bytes for plan in checkpoint.tensors) // mmap.PAGESIZE * mmap.PAGESIZE
    assert pages.wrapped == [size + -size % mmap.PAGESIZE - begin]


@pytest.mark.parametrize("shift", range(1, 9))
def test_tensors_that_are_not_aligned_are_left_to_be_read(tmp_path: Path, shift: int) -> None:
    """uint32 maps at every fourth place, float16 at every second."""
    checkpoint = write(tmp_path, shift=shift, precision="int4")
    found = check(checkpoint, CopyingPages())
    expected = {dtype for dtype, width in (("uint32", 4), ("float16", 2)) if not shift % width}
    assert {str(array.dtype).rpartition(".")[2] for array in found.values()} == expected


def test_tensors_that_are_cast_are_left_to_be_read(tmp_path: Path) -> None:
    """The packed weights of a quantized model need no cast."""
    checkpoint = write(tmp_path, precision="int8")
    found = check(checkpoint, CopyingPages(), "float32")
    assert found
    assert {array.dtype for array in found.values()} == {mx.uint32}


@pytest.mark.parametrize("most_pages", [9, 10, 16, 30])
def test_small_chunks_give_the_same_arrays(
    tmp_path: Path, most_pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks overlap by a page where a tensor crosses the border."""
    checkpoint = write(tmp_path)
    small = partial(chunks.plan_chunks, most_bytes=most_pages * mmap.PAGESIZE)
    monkeypatch.setattr(mapping, "plan_chunks", small)
    pages = CopyingPages()
    assert len(check(checkpoint, pages)) == len(checkpoint.tensors)
    assert len(pages.wrapped) > 1
    assert max(pages.wrapped) <= most_pages * mmap.PAGESIZE


def test_pages_that_are_not_cached_are_left_to_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of the file is mapped."""
    checkpoint = write(tmp_path)
    pages = CopyingPages()
    cold = bytearray(b"\1" * (checkpoint.files[0].size_bytes // mmap.PAGESIZE + 1))
    cold[10] = cold[11] = 0
    monkeypatch.setattr(pages, "find_resident", lambda _: bytes(cold))
    found = check(checkpoint, pages)
    left = [plan for plan in checkpoint.tensors if plan.name not in found]
    assert left == [
        plan
        for plan in checkpoint.tensors
        if plan.offset_bytes < 12 * mmap.PAGESIZE
        and plan.offset_bytes + plan.size_bytes > 10 * mmap.PAGESIZE
    ]


def test_shares_map_their_own_pages(tmp_path: Path) -> None:
    """Together they are all tensors, and no share wraps the whole file."""
    checkpoint = write(tmp_path)
    pages = CopyingPages()
    found: dict[str, mx.array] = {}
    for share in checkpoint.split(4):
        found |= check(share, pages)
    assert len(found) == len(checkpoint.tensors)
    assert max(pages.wrapped) < checkpoint.files[0].size_bytes


@pytest.mark.parametrize("layout", ["deflated weights.npz", "weights.npz"])
def test_checked_and_compressed_tensors_are_left_to_be_read(tmp_path: Path, layout: str) -> None:
    """An npz has a checksum for each, so each byte is read anyway."""
    checkpoint = inspect_checkpoint(write_model(tmp_path, layout=layout))  # type: ignore[arg-type]  # a layout
    assert check(checkpoint, CopyingPages()) == {}


def test_shards_are_mapped_file_by_file(tmp_path: Path) -> None:
    """Each file has chunks of its own."""
    directory = write_model(tmp_path, layout="model.safetensors.index.json", precision="int8")
    checkpoint = inspect_checkpoint(directory)
    found = check(checkpoint, CopyingPages(), None)
    assert found.keys() == {
        plan.name for plan in checkpoint.tensors if chunks.find_obstacle(plan, None) is None
    }


@pytest.mark.parametrize("failure", [ValueError, OSError])
def test_what_the_system_does_not_map_is_left_to_be_read(
    tmp_path: Path, failure: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system without mappings, or memory that Metal refuses, is no error."""
    pages = CopyingPages()

    def refuse(*_: object) -> None:
        raise failure

    monkeypatch.setattr(pages, "wrap" if failure is ValueError else "map_file", refuse)
    assert check(write(tmp_path), pages) == {}


# Files that change.


def change_bytes(file: Path) -> None:
    """Write other bytes of the same length."""
    status = file.stat()
    file.write_bytes(bytes(status.st_size))
    os.utime(file, ns=(0, status.st_mtime_ns + 1))


def replace_file(file: Path) -> None:
    """Put another file with the same bytes and time at the path."""
    status = file.stat()
    other = file.with_suffix(".new")
    other.write_bytes(file.read_bytes())
    os.utime(other, ns=(0, status.st_mtime_ns))
    other.rename(file)


def cut(file: Path) -> None:
    """Take the last byte away."""
    os.truncate(file, file.stat().st_size - 1)


@pytest.mark.parametrize("change", [change_bytes, replace_file, cut])
def test_file_that_changed_since_its_inspection_is_refused(
    tmp_path: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a page is mapped."""
    checkpoint = write(tmp_path)
    change(checkpoint.files[0].path)
    pages = CopyingPages()
    monkeypatch.setattr(pages, "map_file", None)
    with pytest.raises(InvalidModelFormatError, match="changed"):
        map_tensors(checkpoint, dtype=None, pages=pages)


def test_file_that_changes_while_it_is_mapped_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at again when the arrays are made, and none of them is kept."""
    checkpoint = write(tmp_path)
    pages = CopyingPages()
    kept: list[dict[str, mx.array]] = []
    map_file = mapping._map_file

    def map_and_change(*arguments: object) -> dict[str, mx.array]:
        kept.append(map_file(*arguments))  # type: ignore[arg-type]  # passed on
        change_bytes(checkpoint.files[0].path)
        return kept[0]

    monkeypatch.setattr(mapping, "_map_file", map_and_change)
    with pytest.raises(InvalidModelFormatError, match="changed") as caught:
        map_tensors(checkpoint, dtype=None, pages=pages)
    frame = caught.traceback[-2].frame if len(caught.traceback) > 1 else None
    assert kept
    assert frame is not None
    assert frame.f_locals["arrays"] == {}


def test_missing_file_is_refused(tmp_path: Path) -> None:
    """With the error of a read."""
    checkpoint = write(tmp_path)
    checkpoint.files[0].path.unlink()
    with pytest.raises(InvalidModelFormatError, match="not readable"):
        map_tensors(checkpoint, dtype=None, pages=CopyingPages())
