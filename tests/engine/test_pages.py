"""The pages of a file: mapped as long as they are used, and known to be cached."""

from __future__ import annotations

import gc
import mmap
import os
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from fastwhisper.engine import pages
from fastwhisper.errors import BackendMissingError

PAGE = mmap.PAGESIZE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file of three pages and a half."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(1, 129)) * (7 * PAGE // 2 // 128))
    return path


def map_file(path: Path, offset: int, size: int) -> memoryview:
    """Map a file and close its descriptor."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return pages.map_file(descriptor, offset, size)
    finally:
        os.close(descriptor)


def test_mapping_holds_the_bytes_of_the_file(file: Path) -> None:
    """Read-only, from any page, without a descriptor; zeros behind the end of the file."""
    data = file.read_bytes()
    memory = map_file(file, PAGE, 3 * PAGE)
    assert (memory.format, memory.readonly, memory.nbytes) == ("B", True, 3 * PAGE)
    assert memory.tobytes() == data[PAGE:] + bytes(PAGE // 2)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists the mappings as a file")
def test_mapping_lives_as_long_as_a_part_of_it(file: Path) -> None:
    """A slice keeps it; with the last one it is unmapped."""

    def is_mapped() -> bool:
        gc.collect()
        return str(file) in Path("/proc/self/maps").read_text()

    memory = map_file(file, 0, 4 * PAGE)
    part = memory[PAGE : 2 * PAGE]
    del memory
    assert is_mapped()
    assert part[:3].tolist() == [1, 2, 3]
    del part
    assert not is_mapped()


def test_pages_of_a_file_that_was_just_written_are_cached(file: Path) -> None:
    """One byte for each page, the last one too."""
    assert pages.find_resident(map_file(file, 0, 4 * PAGE)) == b"\1" * 4


@pytest.mark.parametrize(("offset", "size"), [(1, PAGE), (0, 0)])
def test_what_can_not_be_mapped_is_an_os_error(file: Path, offset: int, size: int) -> None:
    """The system says why."""
    with pytest.raises(OSError, match="Invalid argument"):
        map_file(file, offset, size)


def test_pipe_can_not_be_mapped() -> None:
    """Only files can."""
    reader, writer = os.pipe()
    try:
        with pytest.raises(OSError):  # noqa: PT011  the reason depends on the system
            pages.map_file(reader, 0, PAGE)
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.skipif(mx.metal.is_available(), reason="Metal wraps memory")
def test_without_metal_no_page_is_wrapped(file: Path) -> None:
    """MLX says so, and does not copy."""
    with pytest.raises(ValueError, match="without a copy"):
        pages.wrap(map_file(file, 0, PAGE))


@pytest.mark.skipif(not mx.metal.is_available(), reason="only Metal wraps memory")
def test_metal_wraps_pages(file: Path) -> None:
    """The array has the bytes of the file, and keeps them mapped."""
    array = pages.wrap(map_file(file, 0, 4 * PAGE))
    gc.collect()
    assert bytes(array.tolist()) == file.read_bytes() + bytes(PAGE // 2)  # type: ignore[arg-type]  # integers


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_other_devices_are_refused(device: str) -> None:
    """The message names what MLX computes on."""
    with pytest.raises(BackendMissingError, match=f"computes on {device}: memory_map=True needs"):
        pages.check_support(device)


@pytest.mark.parametrize("version", ["0.32.3", "0.31.9.dev1"])
def test_older_mlx_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names both versions."""
    monkeypatch.setattr(mx, "__version__", version)
    with pytest.raises(BackendMissingError, match=rf"0\.32\.4 or newer, and this is {version}"):
        pages.check_support("metal")


@pytest.mark.parametrize("version", ["0.32.4", "0.33.0.dev20260901+abc", "1.0.0"])
def test_newer_mlx_is_accepted(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it is a build between two versions."""
    monkeypatch.setattr(mx, "__version__", version)
    pages.check_support("metal")
