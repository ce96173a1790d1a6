"""MLX, imported with what it needs before it. Called in the engine's threads."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import os
import sys
import threading
from pathlib import Path
from typing import Any

from fastwhisper.engine import blas
from fastwhisper.errors import BackendMissingError

__all__ = ["import_mlx", "may_have_gpu"]

_prepare_lock = threading.Lock()
_is_prepared = False


def import_mlx() -> Any:
    """Import `mlx.core`, with a fast BLAS in place before it where there is one.

    Raises:
        BackendMissingError: MLX is installed without a backend for this machine, or
            `FASTWHISPER_BLAS` names a file that can't be loaded.
    """
    global _is_prepared  # noqa: PLW0603  once for the process, as the import is
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


def may_have_gpu() -> bool:
    """Return, without importing MLX, whether it may compute on a GPU."""
    return sys.platform == "darwin" or blas.has_cuda_backend()


def _load_library() -> None:
    """Load MLX's library and start CUDA's driver, while Python goes on.

    With CUDA each takes 0.2 s, and importing `mlx.core` would hold up all of Python for them, as
    `ctypes.CDLL` would. A function that ctypes calls doesn't.
    """
    if blas.has_cuda_backend():
        threading.Thread(target=_start_driver, name="fastwhisper-driver", daemon=True).start()
    spec = importlib.util.find_spec("mlx")
    for place in (spec and spec.submodule_search_locations) or ():
        # What fails here fails again at the import, which tells why.
        ctypes.CDLL(None).dlopen(os.fsencode(Path(place, "lib", "libmlx.so")), os.RTLD_NOW)


def _start_driver() -> None:
    with contextlib.suppress(OSError):
        ctypes.CDLL("libcuda.so.1").cuInit(0)
