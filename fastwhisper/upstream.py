"""MLX and mlx_whisper, imported for what is needed of them. Called in the engine's threads."""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import importlib
import importlib.util
import os
import sys
import threading
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from fastwhisper import blas
from fastwhisper.errors import BackendMissingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from importlib.machinery import ModuleSpec

__all__ = [
    "import_decoder",
    "import_mlx",
    "import_network",
    "import_tokens",
    "may_have_gpu",
]

_prepare_lock = threading.Lock()
_package_lock = threading.Lock()
_is_prepared = False

_PACKAGE: Final = "mlx_whisper"
_NETWORK: Final = "mlx_whisper.whisper"
_LIGHT: Final = (_PACKAGE, _NETWORK)
"""The modules that the network needs. Left to themselves they import the rest of mlx_whisper, and
with it numba, scipy, the Hub's client, tiktoken and NumPy: nine tenths of their time."""

_SUBMODULES: Final = ("audio", "decoding", "load_models", "timing", "tokenizer", "transcribe")
"""What upstream's own import of the package leaves in it, besides the network."""

_BLOCK_BYTES: Final = 100_000
"""Less than what `malloc` asks the system for apart from the heap."""
_BLOCKS: Final = 80


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


def import_network() -> None:
    """Import mlx_whisper's network, and put off all else of mlx_whisper until it is used.

    A package that the host has imported already is left as it is.

    Raises:
        BackendMissingError: MLX is installed without a backend for this machine.
    """
    import_mlx()
    if _NETWORK not in sys.modules:
        _grow_heap()
    _import_lightly(_NETWORK)


def import_decoder() -> None:
    """Import what turns the network's output into text: NumPy, and mlx_whisper's decoder.

    Raises:
        BackendMissingError: MLX is installed without a backend for this machine.
    """
    import_network()
    network, decoding, numpy = map(
        importlib.import_module, (_NETWORK, f"{_PACKAGE}.decoding", "numpy")
    )
    with _package_lock:
        if isinstance(vars(network).get("np"), _Late):
            network.np = numpy  # type: ignore[attr-defined]
            network.Whisper.decode = decoding.decode
            network.Whisper.detect_language = decoding.detect_language


def import_tokens() -> None:
    """Let `mlx_whisper.tokenizer` be imported without all else, MLX included."""
    _import_lightly(_PACKAGE)


def may_have_gpu() -> bool:
    """Tell, without importing MLX, whether it may compute on a GPU."""
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


def _grow_heap() -> None:
    """Have this thread's heap grow at once by what importing and building the network takes.

    glibc lets it grow by a page or two at a time, 1,500 times, and each time the page faults of
    the threads that read weights are held up. None of this room is touched.
    """
    if sys.platform == "linux":
        room = [bytes(_BLOCK_BYTES) for _ in range(_BLOCKS)]
        del room


def _import_lightly(name: str) -> None:
    with _package_lock:
        if _PACKAGE not in sys.modules and _finder not in sys.meta_path:
            # For good: a finder that goes makes a thread that walks over the list skip another.
            sys.meta_path.insert(0, _finder)
        importlib.import_module(name)


class _LightFinder(MetaPathFinder):
    """Finds the modules of `_LIGHT` as ever, and has them imported without what they put off."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _LIGHT else None
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _LightLoader(spec.loader.name, spec.loader.path)
        return spec


_finder = _LightFinder()


class _LightLoader(SourceFileLoader):
    """Runs a module with an `import` of its own; nobody else sees it."""

    def exec_module(self, module: ModuleType) -> None:
        scope = vars(builtins) | {"__import__": _import_or_put_off}
        vars(module)["__builtins__"] = scope
        super().exec_module(module)
        # The functions of the module keep this dictionary.
        scope["__import__"] = builtins.__import__
        if "np" in vars(module):
            vars(module)["np"] = _Late("numpy")
        if module.__name__ == _PACKAGE:
            for name in _SUBMODULES:
                vars(module).pop(name, None)
            module.__class__ = _Package


def _import_or_put_off(
    name: str,
    globals: Mapping[str, object] | None = None,  # noqa: A002  as `__import__` has them
    locals: Mapping[str, object] | None = None,  # noqa: A002
    fromlist: Sequence[str] = (),
    level: int = 0,
) -> Any:
    """Import as ever, but for what the network does without."""
    if (level, name) == (0, "numpy"):
        return SimpleNamespace(ndarray="np.ndarray")  # all that annotations ask for
    if level == 1 and not name:
        return SimpleNamespace(**dict.fromkeys(fromlist))
    if level == 1 and name in _SUBMODULES:
        return SimpleNamespace(**{part: _late(f"{_PACKAGE}.{name}", part) for part in fromlist})
    return builtins.__import__(name, globals, locals, fromlist, level)


def _late(module: str, name: str) -> Callable[..., Any]:
    """Stand in for a function of a module that is imported at its first call."""

    def late(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    late.__name__ = late.__qualname__ = name
    return late


class _Late(ModuleType):
    """Stands in for a module that is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


class _Package(ModuleType):
    """mlx_whisper, with what was put off imported when it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name in _SUBMODULES:
            importlib.import_module(f"{_PACKAGE}.{name}")
            return vars(self)[name]
        raise AttributeError(f"module {_PACKAGE!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the module binds its name to it; the package's own line comes after.
        if name == "transcribe" and isinstance(value, ModuleType):
            value = value.transcribe
        super().__setattr__(name, value)
