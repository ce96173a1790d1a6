"""A lock between processes, which is a file. It excludes threads of one process too."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["open_lock"]

_CHECK_S: Final = 0.1
"""Seconds between two calls of `check` while waiting."""


@contextmanager
def open_lock(path: Path, check: Callable[[], None]) -> Iterator[None]:
    """Hold a lock while the block runs. The Hugging Face client uses the same kind of lock.

    The operating system releases it when its process dies, also by kill -9.

    Args:
        path: The lock's file. Its directory is made.
        check: Called while waiting. It may raise to give up.

    Raises:
        OSError: The file can't be made.
    """
    # 60 ms that only writers need.
    from filelock import FileLock, Timeout  # noqa: PLC0415

    path.parent.mkdir(parents=True, exist_ok=True)
    # Writable for the group, as the client's: users who share a cache share its locks.
    lock = FileLock(path, mode=0o664)
    while True:
        check()
        try:
            lock.acquire(timeout=_CHECK_S)
        except Timeout:
            continue
        break
    try:
        yield
    finally:
        lock.release()
