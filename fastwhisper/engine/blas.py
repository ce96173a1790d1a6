"""Load a fast BLAS before MLX is imported, on a Linux CPU.

MLX's Linux wheel contains a reference BLAS. It multiplies float32 matrices at about a sixth of
OpenBLAS's speed. If a library is loaded with RTLD_GLOBAL before `mlx.core`, MLX uses its
`cblas_sgemm`: the dynamic linker takes the first definition that it finds.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import sys
from functools import cache
from pathlib import Path
from typing import Final

from fastwhisper.errors import BackendMissingError

__all__ = ["VARIABLE", "has_cuda_backend", "prepare"]

VARIABLE: Final = "FASTWHISPER_BLAS"
_LIBRARIES: Final = ("libopenblas.so.0", "libopenblas.so")
_logger = logging.getLogger("fastwhisper")


def prepare() -> str | None:
    """Load a system OpenBLAS for MLX's CPU backend, unless `FASTWHISPER_BLAS=off`.

    It does nothing on a Mac, with a CUDA backend, or after `mlx.core` was imported.

    Returns:
        The library that was loaded; None if there is none.

    Raises:
        BackendMissingError: `FASTWHISPER_BLAS` names a file that can't be loaded.
    """
    chosen = os.environ.get(VARIABLE, "")
    if chosen == "off" or sys.platform != "linux" or has_cuda_backend():
        return None
    if "mlx.core" in sys.modules:
        _logger.info(
            "mlx.core was imported before fastwhisper's first load, so it keeps its own BLAS; "
            "open a model before importing it, or set %s=off",
            VARIABLE,
        )
        return None
    if chosen:
        try:
            ctypes.CDLL(chosen, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise BackendMissingError(
                f"{VARIABLE}={chosen} can't be loaded ({error}): name a BLAS library, or 'off'"
            ) from error
        return chosen
    for library in _LIBRARIES:
        try:
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return library
    _logger.warning(
        "MLX's own BLAS is about six times slower than OpenBLAS on this CPU: install it "
        "(Debian: apt install libopenblas0-pthread), or set %s=off to silence this line",
        VARIABLE,
    )
    return None


@cache
def has_cuda_backend() -> bool:
    """Return whether MLX's CUDA backend is installed. Only files are looked at."""
    spec = importlib.util.find_spec("mlx")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    return any(any(Path(place).parent.glob("mlx_cuda*.dist-info")) for place in places)
