"""MLX and mlx_whisper, imported for what is needed of them. Called in the engine's threads."""

from __future__ import annotations

import importlib
import sys
import threading
from types import ModuleType
from typing import Any, Final

from fastwhisper import blas
from fastwhisper.errors import BackendMissingError

__all__ = ["import_mlx", "import_mlx_whisper"]

_blas_lock = threading.Lock()
_package_lock = threading.Lock()
_blas_is_in_place = False

# mlx_whisper's package imports these two when it is imported, and with them numba and scipy
# (for word times), tqdm, and the Hub client's API (to load models): nine tenths of its time,
# for nothing that the network or the decoder of a window needs. During that import
# placeholders stand in for them. Afterwards no placeholder is left anywhere, and the
# package's attributes mean the real modules, which are imported when they are first used.
_PACKAGE: Final = "mlx_whisper"
_PUT_OFF: Final = ("load_models", "transcribe")
_FUNCTION: Final = "transcribe"
"""`mlx_whisper.transcribe` is a function: its package takes it from the module of that name."""


def import_mlx() -> Any:
    """Import `mlx.core`, with a fast BLAS in place before it where there is one.

    Raises:
        BackendMissingError: MLX is installed without a backend for this machine, or
            `FASTWHISPER_BLAS` names a file that can't be loaded.
    """
    global _blas_is_in_place  # noqa: PLW0603  once for the process, as the import is
    with _blas_lock:
        if not _blas_is_in_place:
            blas.prepare()
            _blas_is_in_place = True
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


def import_mlx_whisper() -> None:
    """Import mlx_whisper's network and decoder without what they don't need.

    A package that the host has imported already is left as it is.

    Raises:
        BackendMissingError: MLX is installed without a backend for this machine.
    """
    import_mlx()
    with _package_lock:
        if _PACKAGE not in sys.modules:
            _import_package()
        importlib.import_module(f"{_PACKAGE}.whisper")


def _import_package() -> None:
    placeholders = {name: _Placeholder(f"{_PACKAGE}.{name}") for name in _PUT_OFF}
    for placeholder in placeholders.values():
        sys.modules.setdefault(placeholder.__name__, placeholder)
    try:
        package = importlib.import_module(_PACKAGE)
    finally:
        for placeholder in placeholders.values():
            if sys.modules.get(placeholder.__name__) is placeholder:
                del sys.modules[placeholder.__name__]
    for name in _PUT_OFF:
        vars(package).pop(name, None)
    package.__class__ = _Package


class _Placeholder(ModuleType):
    """Stands in for a module while its package is imported."""

    def __getattr__(self, name: str) -> Any:
        if name == _FUNCTION:
            return None  # what the package takes, and what is taken away from it again
        # Another thread has met the placeholder: it gets what it came for.
        if name.startswith("__"):
            raise AttributeError(name)
        sys.modules.pop(self.__name__, None)
        return getattr(importlib.import_module(self.__name__), name)


class _Package(ModuleType):
    """mlx_whisper, with what was put off imported when it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name in {*_PUT_OFF, "timing"}:
            importlib.import_module(f"{_PACKAGE}.{name}")
            return vars(self)[name]
        raise AttributeError(f"module {_PACKAGE!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the module binds its name to it; the package's own line comes after.
        if name == _FUNCTION and isinstance(value, ModuleType):
            value = value.transcribe
        super().__setattr__(name, value)
