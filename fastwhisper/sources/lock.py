"""A lock between processes, as a file; threads of one process exclude each other too."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["locked"]

_LOOK_S: Final = 0.1
"""Seconds between two looks at whether the caller has gone."""


@contextmanager
def locked(path: Path, check: Callable[[], None]) -> Iterator[None]:
    """Hold the lock that the Hugging Face client would hold at the same path.

    The operating system releases it when its holder dies, by kill -9 as well.

    Args:
        path: The lock's file; its directory is made.
        check: Called while waiting; may raise to give up.

    Raises:
        OSError: The file can't be made there.
    """
    # 70 ms, and only who writes needs it.
    from filelock import FileLock, Timeout  # noqa: PLC0415

    path.parent.mkdir(parents=True, exist_ok=True)
    # Group-writable, as the client's own: people who share a cache share its locks.
    lock = FileLock(path, mode=0o664)
    while True:
        check()
        try:
            lock.acquire(timeout=_LOOK_S)
        except Timeout:
            continue
        break
    try:
        yield
    finally:
        lock.release()
