"""Files that other programs made of a Whisper, and that are not read here: what they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastwhisper.checkpoint.files import RegularFile
from fastwhisper.errors import InvalidModelFormatError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["name_by_bytes", "name_by_suffix"]

_PYTORCH: Final = "a PyTorch checkpoint"
_GGUF: Final = "a GGUF file"
_GGML: Final = "a ggml file of whisper.cpp"

_MAGIC: Final = (
    (b"GGUF", _GGUF),
    (b"lmgg", _GGML),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", _PYTORCH),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file of Keras"),
    (b"version https://git-lfs", "a pointer of Git LFS and not the file itself (git lfs pull)"),
)
"""First bytes of a file, and what it is.

Source:
    `GGML_FILE_MAGIC` of ggml.h (little-endian); gguf.md; `MAGIC_NUMBER` of torch/serialization.py,
    pickled; the HDF5 format; the specification of Git LFS.
"""

_ZIP: Final = b"PK\x03\x04"
_TORCH_MEMBER: Final = b"/data.pkl"
_READ_BYTES: Final = 256
_SUFFIXES: Final = {".pt": _PYTORCH, ".pth": _PYTORCH, ".gguf": _GGUF, ".ggml": _GGML}
_PREFIXES: Final = {"ggml": _GGML, "pytorch_model": _PYTORCH}


def name_by_bytes(path: Path) -> str | None:
    """Return what a file is, by its first bytes.

    Args:
        path: The file.

    Returns:
        Such as "a GGUF file"; None if it is nothing that is known here, or can't be read.
    """
    try:
        with RegularFile(path) as file:
            begin = file.read_at(0, _READ_BYTES)
    except InvalidModelFormatError:
        return None
    for magic, kind in _MAGIC:
        if begin.startswith(magic):
            return kind
    # PyTorch's zip has a pickle as its first member. An npz has arrays.
    return _PYTORCH if begin.startswith(_ZIP) and _TORCH_MEMBER in begin else None


def name_by_suffix(name: str) -> str | None:
    """Return what a file with this name would be.

    Args:
        name: The name of a file that need not exist.

    Returns:
        Such as "a GGUF file"; None if the name does not say it.
    """
    name = name.lower()
    for suffix, kind in _SUFFIXES.items():
        if name.endswith(suffix):
            return kind
    if name.endswith(".bin"):
        return next((kind for start, kind in _PREFIXES.items() if name.startswith(start)), None)
    return None
