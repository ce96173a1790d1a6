"""The import of MLX: always here first, in an engine thread, after a fast BLAS."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import sys
import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastwhisper.engine import blas
from fastwhisper.errors import BackendMissingError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = [
    "FREEZE",
    "import_computing",
    "import_mlx",
    "is_frozen",
    "is_mlx_shared",
    "may_have_gpu",
    "may_map",
    "start_cuda",
]

FREEZE: Final = "freeze it again: pyinstaller --collect-all mlx --collect-all fastwhisper"
"""Advice for a frozen program that lacks files."""

_CUDA_DRIVER: Final = "libcuda.so.1"

_dlopen = ctypes.CDLL(None).dlopen
_dlopen.restype = ctypes.c_void_p

_prepare_lock = threading.Lock()
_is_prepared = False
_is_mlx_shared = False


def import_mlx() -> Any:
    """Import `mlx.core`, after a fast BLAS if there is one.

    Raises:
        BackendMissingError: MLX is installed without a backend for this machine, or a frozen
            program lacks files of MLX, or a Mac gives this process no GPU, or `FASTWHISPER_BLAS`
            names a file that can't be loaded.
    """
    global _is_prepared, _is_mlx_shared  # noqa: PLW0603  once for the process, like the import
    with _prepare_lock:
        if not _is_prepared:
            _is_mlx_shared = "mlx.core" in sys.modules
            blas.prepare()
            if sys.platform == "linux" and not _is_mlx_shared:
                _load_library()
            _is_prepared = True
    try:
        module = importlib.import_module("mlx.core")
    except ImportError as error:
        if is_frozen():
            advice = f"this program is frozen without files of MLX; {FREEZE}"
        elif sys.platform == "linux":
            advice = (
                "on Linux MLX's backend is an extra: pip install 'fastwhisper[cpu]', or "
                "[cuda12] or [cuda13] with an NVIDIA GPU"
            )
        else:
            advice = "MLX needs Apple silicon with macOS, or Linux; pip install fastwhisper"
        raise BackendMissingError(f"MLX can't be imported ({error}): {advice}") from error
    _check_kernels()
    _check_metal(module)
    return module


def is_mlx_shared() -> bool:
    """Return whether the program had imported MLX before the engine, so may use it beside it."""
    return _is_mlx_shared


def import_computing(name: str) -> ModuleType:
    """Import a module that imports MLX at its top. Called in an engine thread.

    Raises:
        BackendMissingError: MLX has no backend for this machine, or a frozen program lacks the
            module.
    """
    import_mlx()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not is_frozen():
            raise
        raise BackendMissingError(
            f"this program is frozen without the module {error.name}; {FREEZE}"
        ) from error


def is_frozen() -> bool:
    """Return whether this is a program made by PyInstaller or a like tool."""
    return bool(getattr(sys, "frozen", False))


@cache
def _check_kernels() -> None:
    """Raise BackendMissingError if a frozen program on a Mac lacks the file of Metal's kernels."""
    root = getattr(sys, "_MEIPASS", None)
    if sys.platform == "darwin" and is_frozen() and root is not None:
        kernels = next(Path(root).rglob("mlx.metallib"), None)
        if kernels is None:
            raise BackendMissingError(
                f"this program is frozen without mlx.metallib, the kernels of MLX; {FREEZE}"
            )


@cache
def _check_metal(mx: Any) -> None:
    """Raise BackendMissingError if a Mac gives this process no GPU.

    MLX needs one for every array there: Metal allocates the memory, also that of the CPU.
    """
    if sys.platform == "darwin":
        try:
            mx.device_info(mx.gpu)
        except RuntimeError as error:
            raise BackendMissingError(
                f"MLX can't use the GPU of this Mac ({error}): start the program where it may, "
                "such as outside of a sandbox, or in a session of a user who is logged in"
            ) from error


def may_have_gpu() -> bool:
    """Return whether MLX may compute on a GPU. MLX is not imported for it."""
    return sys.platform == "darwin" or blas.has_cuda_backend()


def may_map() -> bool:
    """Return whether weights may be mapped: on a Mac only. MLX is not imported for it."""
    return sys.platform == "darwin"


def _load_library() -> None:
    """Load MLX's library and wait for CUDA, without holding the GIL.

    With CUDA that takes 0.2 s. Importing `mlx.core` does the same with the GIL held, and so does
    `ctypes.CDLL`; calling `dlopen` through ctypes does not.
    """
    driver = start_cuda()
    if driver is not None:
        # Its libraries would wait for the load of MLX's, and of CUDA's later, with the GIL held.
        importlib.import_module("numpy")
    spec = importlib.util.find_spec("mlx")
    for place in (spec and spec.submodule_search_locations) or ():
        # A failure is ignored: the import fails too, and says why.
        _dlopen(os.fsencode(Path(place, "lib", "libmlx.so")), os.RTLD_NOW)
    if driver is not None:
        driver.join()


@cache
def start_cuda() -> threading.Thread | None:
    """Begin to start CUDA in a thread of its own; return that thread, or None without CUDA."""
    if not blas.has_cuda_backend():
        return None
    handle = _dlopen(_CUDA_DRIVER.encode(), os.RTLD_NOW)
    if not handle:
        return None
    driver = threading.Thread(target=_start_driver, args=(handle,), daemon=True)
    driver.start()
    return driver


def _start_driver(handle: int) -> None:
    """Start CUDA's driver and the context of the first GPU, which MLX's import would wait for."""
    driver = ctypes.CDLL(_CUDA_DRIVER, handle=handle)
    if driver.cuInit(0) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(ctypes.c_void_p()), 0)
