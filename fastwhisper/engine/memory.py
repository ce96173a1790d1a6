"""The memory that this process uses, and the most that its container allows."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["find_huge_page_bytes", "find_limit_bytes", "find_resident_bytes", "is_short"]

CONTROL_GROUPS: Final = Path("/sys/fs/cgroup")
MEMBERSHIP: Final = Path("/proc/self/cgroup")
STATISTICS: Final = Path("/proc/self/statm")
MAPPINGS: Final = Path("/proc/self/smaps_rollup")

PRESSURE: Final = Path("/proc/pressure/memory")

_SHORT_PERCENT: Final = 10.0
"""Memory is short if some task waited for it in so much of the last 10 s."""

_NO_LIMIT_BYTES: Final = 1 << 60
"""A larger number is none: version 1 writes 2^63 less a page."""


def find_limit_bytes() -> int | None:
    """Return the smallest limit of the control groups of this process; None if there is none.

    A process that exceeds it is killed, without an exception.

    Source:
        Linux, Documentation/admin-guide/cgroup-v2.rst, `memory.max`; cgroup-v1/memory.rst.
    """
    limits_bytes = []
    for group, name in _list_groups():
        for folder in (group, *group.parents):
            # OSError: not mounted here, as the parents of a container. ValueError: "max".
            with suppress(OSError, ValueError):
                limits_bytes.append(int((folder / name).read_text()))
            if folder == CONTROL_GROUPS:
                break
    return min((limit for limit in limits_bytes if limit < _NO_LIMIT_BYTES), default=None)


def _list_groups() -> Iterator[tuple[Path, str]]:
    """List the folders of the control groups that may limit memory, and the name of the limit."""
    with suppress(OSError):
        for line in MEMBERSHIP.read_text(errors="replace").splitlines():
            _, controllers, path = line.split(":", 2)
            # A group outside of the container's own begins with "..", and is not mounted.
            parts = [part for part in PurePosixPath(path).parts if part not in {"/", ".."}]
            if not controllers:
                yield CONTROL_GROUPS.joinpath(*parts), "memory.max"
            elif "memory" in controllers.split(","):
                yield CONTROL_GROUPS.joinpath("memory", *parts), "memory.limit_in_bytes"


def find_resident_bytes() -> int:
    """Return the memory that this process uses; 0 where the system does not say it so."""
    try:
        pages = int(STATISTICS.read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0


def find_huge_page_bytes() -> int:
    """Return the memory of this process in huge pages; 0 where the system does not say it."""
    try:
        _, _, sizes = MAPPINGS.read_text().partition("AnonHugePages:")
        return int(sizes.split()[0]) << 10
    except (OSError, ValueError, IndexError):
        return 0


def is_short() -> bool:
    """Return whether tasks of this machine or this container wait for memory.

    False where the system does not say it: before Linux 4.20, without pressure stall information,
    and elsewhere.

    Source:
        Linux, Documentation/accounting/psi.rst.
    """
    groups = [group / "memory.pressure" for group, name in _list_groups() if name == "memory.max"]
    return any(_read_pressure(file) >= _SHORT_PERCENT for file in [PRESSURE, *groups])


def _read_pressure(file: Path) -> float:
    """Return the share of the last 10 s in which some task waited, in percent."""
    with suppress(OSError, ValueError):
        some, _, _ = file.read_text(errors="replace").partition("\n")
        fields = dict(field.partition("=")[::2] for field in some.split())
        return float(fields.get("avg10", 0.0))
    return 0.0
