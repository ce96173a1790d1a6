"""Files and directories that are complete or not there.

They are written under a temporary name in the same directory, and renamed when they are complete.
A rename is one step for every process, also in a crash.
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
    """Write a file under a temporary name, which is renamed to `place` when the block ends.

    Args:
        place: The path of the finished file. An older file there is replaced.
        unfinished: The temporary path; None chooses one that no other task uses.

    Yields:
        The temporary path. The block makes a file, a link or a directory there. It is removed if
        the block raises.

    Raises:
        OSError: It can't be renamed.
    """
    if unfinished is None:
        unfinished = place.with_name(f".{place.name}.{os.urandom(4).hex()}.tmp")
    try:
        yield unfinished
        unfinished.replace(place)
    except BaseException:
        # rmtree does not remove a link to a directory.
        shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def open_new_directory(place: Path, *, unfinished: Path | None = None) -> Iterator[Path]:
    """Make a directory under a temporary name, which is renamed to `place` when the block ends.

    Its files are on the disk before the rename, so a power failure leaves no incomplete directory.

    Args:
        place: The path of the finished directory. Only an empty directory may be there before.
        unfinished: The temporary path; None chooses one that no other task uses.

    Yields:
        The temporary directory, for the files. It is removed if the block raises.

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
