"""Results of checks that take long, stored in files in the directory of the converted copies.

The name of such a file says what was checked; `converted.clear` removes the names that it knows.
Without a cache directory nothing is stored, and every check is done again.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING

from fastwhisper.sources import converted

if TYPE_CHECKING:
    from fastwhisper.checkpoint.files import WeightFile

__all__ = ["note_confirmed", "note_sha256", "recall_confirmed", "recall_sha256"]


def recall_sha256(file: WeightFile) -> str | None:
    """Return the stored checksum of a file; None if there is none, or the file has changed."""
    return _recall(_name_sha256(file))


def note_sha256(file: WeightFile, digest: str) -> None:
    """Store the checksum of a file. Computing it takes one second for a gigabyte."""
    # This need not be atomic: a checksum that is cut off never equals the expected one.
    _note(_name_sha256(file), digest)


def recall_confirmed(fingerprint: str) -> bool:
    """Return whether safetensors' own reader has confirmed headers with this fingerprint."""
    return _recall(_name_confirmed(fingerprint)) is not None


def note_confirmed(fingerprint: str) -> None:
    """Store that safetensors' own reader has confirmed headers.

    The next load then need not import that reader and NumPy, which takes 50 ms.
    """
    _note(_name_confirmed(fingerprint), "")


def _name_sha256(file: WeightFile) -> str:
    return f"{hashlib.sha256(converted.identify(file)).hexdigest()[:40]}.sha256"


def _name_confirmed(fingerprint: str) -> str:
    return f"{fingerprint[:40]}.confirmed"


def _recall(name: str) -> str | None:
    directory = converted.find_root()
    if directory is None:
        return None
    try:
        return (directory / name).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None


def _note(name: str, text: str) -> None:
    directory = converted.find_root()
    if directory is None:
        return
    with suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="ascii")
