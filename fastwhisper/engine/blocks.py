"""Blocks of MLX's memory in huge pages, on Linux.

Most Linux kernels give a process huge pages, of 2 MiB, only where it asks for them. In pages of
4 KiB the weights of large-v3-turbo take 400,000 page faults, most of the time of a load. This
module is imported in an engine thread, after the backend.
"""

from __future__ import annotations

import ctypes
import json
import os
from typing import BinaryIO, Final, cast

import mlx.core as mx

from fastwhisper.engine import allocating

__all__ = ["allocate"]

_HUGE_BYTES: Final = 2 << 20
_PAGE_BYTES: Final = 4096
_MADV_HUGEPAGE: Final = 14


def allocate(size: int) -> mx.array:
    """Allocate memory of MLX that nobody has read or written, in huge pages if possible.

    Returns:
        At least so many bytes, evaluated: shape (bytes,), uint8. Its memoryview is writable.
    """
    # The C library adds less than a page. So it maps a multiple of 2 MiB, which Linux aligns.
    size += -(size + _PAGE_BYTES) % _HUGE_BYTES if size >= _HUGE_BYTES else 0
    with allocating:
        found = mx.load(cast("BinaryIO", _Empty(size)), format="safetensors")
        mx.eval(found)
    if not isinstance(found, dict):
        raise TypeError("a safetensors file has named arrays")
    return found["block"]


class _Empty:
    """A safetensors file of one tensor, whose bytes are left as they are.

    MLX offers no other way to allocate memory without filling it. It hands its new memory to
    `readinto`, in a thread of its own that needs the GIL. `mx.clear_cache` waits for that thread
    with the GIL held, so the engine never calls it meanwhile, and allocates no block where the
    program may call it.
    """

    closed = False

    def __init__(self, size: int) -> None:
        tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
        header = json.dumps({"block": tensor}).encode()
        self._header = len(header).to_bytes(8, "little") + header
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        end = len(self._header) + self._size
        self._at = offset + (end if whence == os.SEEK_END else 0)
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        """Give the header, or the bytes that are in the buffer. Called in a thread of MLX."""
        if self._at < len(self._header):
            part = self._header[self._at : self._at + len(buffer)]
            buffer[: len(part)] = part
            self._at += len(part)
            return len(part)
        if len(buffer) >= _HUGE_BYTES:
            _advise(buffer)
        return len(buffer)


_madvise = ctypes.PyDLL(None).madvise  # keeps the GIL, so that `readinto` is over soon
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def _advise(buffer: memoryview) -> None:
    """Ask for huge pages. A kernel without them refuses, and small ones are used."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    start = address - address % _PAGE_BYTES
    end = address + len(buffer)
    _madvise(start, end + -end % _PAGE_BYTES - start, _MADV_HUGEPAGE)
