"""Facts about this machine for `fastwhisper doctor`: versions, system, backend, caches, models.

Names of facts end in their unit, as `size_bytes`; `doctor.py` prints them.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from huggingface_hub import constants

from fastwhisper.engine import backend
from fastwhisper.engine.memory import find_limit_bytes
from fastwhisper.errors import FastWhisperError
from fastwhisper.loading import stages
from fastwhisper.sources import converted, find
from fastwhisper.values import LoadOptions, Quantization, WhisperModel

if TYPE_CHECKING:
    from fastwhisper.checkpoint.plan import Checkpoint
    from fastwhisper.sources.find import Location

__all__ = [
    "Facts",
    "LocalModel",
    "describe_backend",
    "describe_caches",
    "describe_system",
    "describe_versions",
    "find_models",
    "inspect_model",
]

Facts: TypeAlias = dict[str, Any]
"""What a section of the page says: numbers, texts, lists, or dictionaries of these, by name."""

_PACKAGES: Final = (
    "fastwhisper",
    "mlx",
    "numpy",
    "av",
    "anyio",
    "trio",
    "huggingface_hub",
    "safetensors",
    "mlx-whisper",
)
_BACKENDS: Final = ("mlx-metal", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")
_VARIABLES: Final = re.compile(
    "(FASTWHISPER|HF|MLX|OPENBLAS|OMP|CUDA|XDG_CACHE)_.*|GLIBC_TUNABLES|MALLOC_.*"
)
_HUGE_PAGES: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on this machine.

    Attributes:
        name: A name of the table, a directory or a repository.
        quant: The precision that is asked for; None takes what the files hold.
        location: Its directory.
        checkpoint: What is opened: its files, or their converted copy.
    """

    name: str
    quant: Quantization | None
    location: Location
    checkpoint: Checkpoint

    @property
    def is_converted(self) -> bool:
        """Whether a converted copy is opened."""
        return self.checkpoint.path != self.location.path


def describe_versions(facts: Facts) -> None:
    """Find the versions of fastwhisper and of the packages that it uses."""
    facts["python"] = f"{platform.python_implementation()} {platform.python_version()}"
    for name in _PACKAGES:
        facts[name] = _find_version(name) or "not installed"
    for name in _BACKENDS:
        if found := _find_version(name):
            facts[name] = found


def _find_version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def describe_system(facts: Facts) -> None:
    """Find what the machine has: cores, memory and pages."""
    facts["platform"] = platform.platform()
    if backend.is_frozen():
        facts["frozen"] = "yes"
    facts["cores"] = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        facts["cores_allowed"] = len(os.sched_getaffinity(0))
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        facts["memory_bytes"] = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
    facts["memory_limit_bytes"] = find_limit_bytes() or "none"
    facts["page_bytes"] = mmap.PAGESIZE
    facts["huge_pages"] = _read_huge_pages()
    facts["variables"] = ", ".join(sorted(filter(_VARIABLES.fullmatch, os.environ))) or "none"


def _read_huge_pages() -> str:
    """Return when Linux gives transparent huge pages: always, madvise or never."""
    with suppress(OSError):
        chosen = re.search(r"\[(\w+)\]", _HUGE_PAGES.read_text(encoding="ascii"))
        if chosen is not None:
            return chosen[1]
    return "n/a"


def describe_backend(facts: Facts) -> None:
    """Find what MLX computes on, and with which BLAS. Called in an engine thread.

    Raises:
        BackendMissingError: MLX has no backend for this machine.
    """
    mx = backend.import_mlx()
    compute = backend.import_computing("fastwhisper.loading.compute")
    device = compute.find_device()
    facts["device"] = device
    known = mx.device_info()
    facts["device_name"] = known.get("device_name", "unknown")
    facts["architecture"] = known.get("architecture", "unknown")
    total_bytes = known.get("total_memory") or known.get("memory_size")
    if total_bytes is not None:
        facts["device_memory_bytes"] = total_bytes
    facts["dtype"] = compute.choose_dtype(device)
    facts |= _describe_blas(device)


class _Symbol(ctypes.Structure):
    """What `dladdr` says about an address."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _describe_blas(device: str) -> Facts:
    """Find the library that multiplies matrices: the one whose `cblas_sgemm` the linker takes."""
    if device == "cuda":
        return {"blas": "cuBLAS"}
    if sys.platform == "darwin":
        return {"blas": "Accelerate"}
    program = ctypes.CDLL(None)
    symbol = _Symbol()
    try:
        program.dladdr(program.cblas_sgemm, ctypes.byref(symbol))
    except AttributeError:
        # MLX's own symbols are not global.
        return {"blas": "MLX's own, several times slower than OpenBLAS"}
    path = os.fsdecode(symbol.file)
    facts: Facts = {"blas": path}
    library = ctypes.CDLL(path)
    with suppress(AttributeError):  # another library than OpenBLAS
        library.openblas_get_config.restype = ctypes.c_char_p
        facts["blas_build"] = library.openblas_get_config().decode("ascii", "replace").strip()
        facts["blas_threads"] = library.openblas_get_num_threads()
    return facts


def describe_caches(facts: Facts) -> None:
    """Find the cache folders and their sizes. Blocks."""
    hub = Path(constants.HF_HUB_CACHE)
    if hub.parts[:1] == ("~",):
        facts["hub_folder"] = "none: no home directory is known; set HF_HOME to another directory"
    else:
        facts["hub_folder"] = str(hub)
        facts["hub_bytes"] = _measure_hub(hub)
    root = converted.find_root()
    if root is None:
        facts["converted_folder"] = f"none: {converted.explain_absence()}"
    else:
        facts["converted_folder"] = str(root)
        entries = converted.entries()
        facts["converted_copies"] = len(entries)
        facts["converted_bytes"] = sum(entry.size_bytes for entry in entries)


def _measure_hub(folder: Path) -> int:
    """Compute the size of the models in the Hugging Face cache, in bytes."""
    total_bytes = 0
    for blobs in folder.glob("models--*/blobs"):
        with suppress(OSError), os.scandir(blobs) as files:
            total_bytes += sum(file.stat().st_size for file in files)
    return total_bytes


def find_models(facts: Facts) -> list[LocalModel]:
    """Find the models of the table that are on this machine, the smallest first. Blocks."""
    found: list[LocalModel] = []
    broken: list[str] = []
    for name in WhisperModel:
        for quant in Quantization:
            try:
                local = inspect_model(name, quant)
            except (FastWhisperError, OSError) as error:
                broken.append(f"{name} at {quant}: {error}")
            else:
                found += [local] if local is not None else []
    found.sort(key=lambda local: local.checkpoint.total_bytes)
    facts["found"] = [
        {
            "model": local.name,
            "precision": str(local.checkpoint.actual),
            "size_bytes": local.checkpoint.total_bytes,
            "source": local.location.source,
        }
        for local in found
    ]
    if broken:
        facts["broken"] = broken
    return found


def inspect_model(name: str, quant: Quantization | None) -> LocalModel | None:
    """Find and inspect a model on this machine. Blocks.

    Args:
        name: A name of the table, a directory or a repository.
        quant: The precision; None takes what the files hold, or float16 for a name of the table.

    Returns:
        The model, or None if it is not on this machine.

    Raises:
        ModelNotFoundError: The name is unknown.
        InvalidModelFormatError: A file of the model is broken.
    """
    options = LoadOptions() if quant is None else LoadOptions(quant=quant)
    location = find.find_local(name, options)
    if location is None:
        return None
    return LocalModel(str(name), quant, location, stages.inspect(location.path))
