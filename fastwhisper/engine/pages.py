"""The pages of a file as memory of MLX, on a Mac.

Metal wraps memory without a copy if it begins at a page and has whole pages. `mmap.mmap` of Python
ends where the file ends and keeps a descriptor open, so the system's own is called. MLX's array
holds the exported buffer, and the buffer holds the mapping: it is unmapped when the last view is
gone. This module is imported in an engine thread, after the backend.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from typing import Any, Final, cast

import mlx.core as mx

from fastwhisper.errors import BackendMissingError

__all__ = ["check_support", "find_resident", "map_file", "wrap"]

_OLDEST: Final = (0, 32, 4)
"""The oldest MLX. Before, an operation might write its result into the wrapped memory."""

_FAILED: Final = ctypes.c_void_p(-1).value

_library = ctypes.CDLL(None, use_errno=True)
_mmap, _munmap, _mincore = _library.mmap, _library.munmap, _library.mincore
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong),
)
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


def check_support(device: str) -> None:
    """Check that MLX can wrap pages.

    Args:
        device: What MLX computes on.

    Raises:
        BackendMissingError: It computes on something else than Metal, or is too old.
    """
    if device != "metal":
        raise BackendMissingError(
            f"weights can't be mapped, since MLX computes on {device}: memory_map=True needs "
            "Metal; leave it out"
        )
    version = cast("Any", mx).__version__  # MLX's stub lacks it
    if tuple(map(int, version.split(".")[:3])) < _OLDEST:
        raise BackendMissingError(
            f"memory_map=True needs MLX {'.'.join(map(str, _OLDEST))} or newer, and this is "
            f"{version}: pip install -U mlx"
        )


def map_file(descriptor: int, offset: int, size: int) -> memoryview:
    """Map whole pages of an open file, read-only. The descriptor may be closed afterwards.

    Args:
        descriptor: The file.
        offset: Where to begin, a multiple of the page's size.
        size: How many bytes, whole pages. The last page may exceed the file: it ends in zeros.

    Returns:
        The bytes, format "B". They stay mapped as long as this view or a part of it is in use.

    Raises:
        OSError: The system does not map this file.
    """
    address = _mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, offset)
    if address in {None, _FAILED}:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    memory = (ctypes.c_ubyte * size).from_address(address)
    # Not at the exit of the interpreter, when arrays may still be in use.
    weakref.finalize(memory, _munmap, address, size).atexit = False
    return memoryview(memory).cast("B").toreadonly()


def find_resident(memory: memoryview) -> bytes:
    """Find which pages of a mapping are in the page cache.

    Args:
        memory: What `map_file` returned.

    Returns:
        One byte for each page, zero if it is not there. All are zero if the system does not tell.
    """
    mapped = cast("Any", memory).obj
    count = -(-len(memory) // mmap.PAGESIZE)
    found = ctypes.create_string_buffer(count)
    if _mincore(ctypes.addressof(mapped), len(memory), found):
        return bytes(count)
    return bytes(flags & 1 for flags in found.raw)


def wrap(memory: memoryview) -> mx.array:
    """Return whole pages of a mapping as an array, without a copy. Shape (bytes,), uint8.

    Raises:
        ValueError: MLX or Metal does not take this memory.
    """
    return mx.asarray(cast("Any", memory), copy=False)
