"""The import of MLX: always here first, in an engine thread, after a fast BLAS."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastwhisper.engine import blas
from fastwhisper.errors import BackendMissingError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["import_computing", "import_mlx", "may_have_gpu"]

_prepare_lock = threading.Lock()
_is_prepared = False


def import_mlx() -> Any:
    """Import `mlx.core`, after a fast BLAS if there is one.

    Raises:
        BackendMissingError: MLX is installed without a backend for this machine, or
            `FASTWHISPER_BLAS` names a file that can't be loaded.
    """
    global _is_prepared  # noqa: PLW0603  once for the process, like the import
    with _prepare_lock:
        if not _is_prepared:
            blas.prepare()
            if sys.platform == "linux" and "mlx.core" not in sys.modules:
                _load_library()
            _is_prepared = True
    try:
        return importlib.import_module("mlx.core")
    except ImportError as error:
        if sys.platform == "linux":
            advice = (
                "on Linux MLX's backend is an extra: pip install 'fastwhisper[cpu]', or "
                "[cuda12] or [cuda13] with an NVIDIA GPU"
            )
        else:
            advice = "MLX needs Apple silicon with macOS, or Linux; pip install fastwhisper"
        raise BackendMissingError(f"MLX can't be imported ({error}): {advice}") from error


def import_computing(name: str) -> ModuleType:
    """Import a module that imports MLX at its top. Called in an engine thread.

    Raises:
        BackendMissingError: MLX has no backend for this machine.
    """
    import_mlx()
    return importlib.import_module(name)


def may_have_gpu() -> bool:
    """Return whether MLX may compute on a GPU. MLX is not imported for it."""
    return sys.platform == "darwin" or blas.has_cuda_backend()


def _load_library() -> None:
    """Load MLX's library and start CUDA's driver without holding the GIL.

    With CUDA each takes 0.2 s. Importing `mlx.core` holds the GIL for as long, and so does
    `ctypes.CDLL`; calling `dlopen` through ctypes does not.
    """
    if blas.has_cuda_backend():
        threading.Thread(target=_start_driver, name="fastwhisper-driver", daemon=True).start()
    spec = importlib.util.find_spec("mlx")
    for place in (spec and spec.submodule_search_locations) or ():
        # A failure is ignored: the import fails too, and says why.
        ctypes.CDLL(None).dlopen(os.fsencode(Path(place, "lib", "libmlx.so")), os.RTLD_NOW)


def _start_driver() -> None:
    with contextlib.suppress(OSError):
        ctypes.CDLL("libcuda.so.1").cuInit(0)
