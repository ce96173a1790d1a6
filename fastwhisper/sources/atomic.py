"""Files and directories that are complete or not there.

They are made beside their place, with another name, and renamed when they are complete. A rename
is one step for every process, and for a crash.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["open_new", "open_new_directory", "sync"]


@contextmanager
def open_new(place: Path, *, unfinished: Path | None = None) -> Iterator[Path]:
    """Open a path beside `place`, whose file takes the place when the block ends.

    Args:
        place: Where the file is to be. A file that is there is replaced.
        unfinished: The path beside it; None chooses one that no other task uses.

    Yields:
        The path beside it, where the block makes a file, a link or a directory. It is removed
        if the block raises.

    Raises:
        OSError: It can't be renamed.
    """
    if unfinished is None:
        unfinished = place.with_name(f".{place.name}.{os.urandom(4).hex()}.tmp")
    try:
        yield unfinished
        unfinished.replace(place)
    except BaseException:
        # A link to a directory is no directory for rmtree.
        shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def open_new_directory(place: Path, *, unfinished: Path | None = None) -> Iterator[Path]:
    """Open a directory beside `place`, which takes the place when the block ends.

    Its files are on the disk before it has its name, so that a power failure leaves nothing that
    is incomplete.

    Args:
        place: Where the directory is to be. Nothing but an empty directory may be there.
        unfinished: The path beside it; None chooses one that no other task uses.

    Yields:
        The directory beside it, where the block makes files. It is removed if the block raises.

    Raises:
        OSError: It can't be made or renamed, or the disk is full.
    """
    with open_new(place, unfinished=unfinished) as directory:
        directory.mkdir()
        yield directory
        for path in directory.iterdir():
            sync(path)
        sync(directory)
    sync(place.parent)


def sync(path: Path) -> None:
    """Wait until a file or a directory is on the disk, and not only in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
