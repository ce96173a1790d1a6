"""What is known about files and takes long to find out again, noted beside the converted copies."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING

from fastwhisper.sources import converted

if TYPE_CHECKING:
    from fastwhisper.checkpoint.files import WeightFile

__all__ = ["note_confirmed", "note_sha256", "recall_confirmed", "recall_sha256"]


def recall_sha256(file: WeightFile) -> str | None:
    """Tell the checksum that a file had when it was last computed, unless it has changed since."""
    return _recall(_name_sha256(file))


def note_sha256(file: WeightFile, digest: str) -> None:
    """Remember a file's checksum, if there is anywhere to: it takes a second for a gigabyte."""
    # A checksum that was cut off is not the expected one, so this need not be atomic.
    _note(_name_sha256(file), digest)


def recall_confirmed(fingerprint: str) -> bool:
    """Tell whether safetensors' own reader has agreed to headers with this fingerprint."""
    return _recall(_name_confirmed(fingerprint)) is not None


def note_confirmed(fingerprint: str) -> None:
    """Remember that it has, if there is anywhere to: asking it imports NumPy, 0.05 s."""
    _note(_name_confirmed(fingerprint), "")


def _name_sha256(file: WeightFile) -> str:
    return f"{hashlib.sha256(converted.identify(file)).hexdigest()[:40]}.sha256"


def _name_confirmed(fingerprint: str) -> str:
    return f"{fingerprint[:40]}.confirmed"


def _recall(name: str) -> str | None:
    directory = converted.root()
    if directory is None:
        return None
    try:
        return (directory / name).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None


def _note(name: str, text: str) -> None:
    directory = converted.root()
    if directory is None:
        return
    with suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="ascii")
