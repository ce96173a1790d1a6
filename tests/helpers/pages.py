"""Mapped files where there is no Metal: a stand-in that copies, and files that map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from fastwhisper.engine import backend, pages

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

__all__ = ["CopyingPages", "align_weights", "pretend_metal"]


class CopyingPages:
    """What `engine/pages.py` does, but with a copy of the pages instead of the pages.

    So it holds no mapping, while an array of Metal holds its mapping as long as a view is in use.

    Attributes:
        wrapped: The sizes of the chunks that were wrapped.
    """

    def __init__(self) -> None:
        self.wrapped: list[int] = []

    def map_file(self, descriptor: int, offset: int, size: int) -> memoryview:
        """Map the file as on a Mac."""
        return pages.map_file(descriptor, offset, size)

    def find_resident(self, memory: memoryview) -> bytes:
        """Find the pages in the page cache as on a Mac."""
        return pages.find_resident(memory)

    def wrap(self, memory: memoryview) -> mx.array:
        """Copy the pages. As Metal, refuse what is not read-only whole pages."""
        array = np.frombuffer(memory, np.uint8)
        if array.ctypes.data % 4096 or len(array) % 4096 or not memory.readonly:
            raise ValueError("not whole pages")
        self.wrapped.append(len(array))
        return mx.array(array)


def pretend_metal(monkeypatch: pytest.MonkeyPatch) -> CopyingPages:
    """Let this machine map weights, by copies."""
    copying = CopyingPages()
    monkeypatch.setattr(backend, "may_map", lambda: True)
    monkeypatch.setattr(pages, "check_support", lambda _: None)
    monkeypatch.setattr(pages, "wrap", copying.wrap)
    return copying


def align_weights(directory: Path, *, shift: int = 0) -> Path:
    """Let the data of `weights.safetensors` begin so many bytes behind a multiple of 16."""
    file = directory / "weights.safetensors"
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = data[8:start] + b" " * (-start % 16 + shift)
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[start:])
    return directory
