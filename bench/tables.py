"""The tables that `bench.text` prints, in the form of docs/benchmarks.md."""

from __future__ import annotations

import datetime as dt
import os
import platform
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import mlx.core as mx

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.contestants import Contestant

__all__ = ["Times", "compute_ratio", "print_head", "print_row", "print_table"]

Times: TypeAlias = dict[str, dict[str, list[float]]]
"""Seconds of each round, by row and by contestant."""


def print_head(contestants: Sequence[Contestant]) -> None:
    """Print the command without its paths, the date, the machine and the versions."""
    words = (
        "=".join(Path(part).name if _is_path(part) else part for part in word.split("="))
        for word in sys.argv[1:]
    )
    name = mx.device_info().get("device_name", "unknown device")
    kind = "" if mx.default_device().type == mx.gpu else "CPU "
    machine = f"{platform.system()}, {kind}{name}, {os.cpu_count()} cores"
    print(f"\n- **Command:** `python -m bench.text {' '.join(words)}`")
    print(f"- **Date and machine:** {dt.datetime.now(dt.UTC):%Y-%m-%d}, {machine}")
    print(f"- **Version:** {', '.join(f'{one.name} {one.version}' for one in contestants)}\n")


def print_table(
    contestants: Sequence[Contestant], first: str, times: Times, digits: int = 2
) -> None:
    """Print the medians of each row, and the ratio of each peer to fastwhisper.

    Args:
        contestants: fastwhisper, then its peers.
        first: Head of the first column.
        times: The rows.
        digits: Digits of the seconds.
    """
    names = [one.name for one in contestants]
    ours, *peers = names
    print_row(first, *names, *(f"{peer} / {ours}" for peer in peers))
    print_row(*("---" for _ in range(len(names) + len(peers) + 1)))
    for row, by_name in times.items():
        medians = (f"{statistics.median(by_name[name]):.{digits}f} s" for name in names)
        ratios = (f"{compute_ratio(by_name[peer], by_name[ours]):.2f}" for peer in peers)
        print_row(row, *medians, *ratios)
    print(flush=True)


def print_row(*cells: object) -> None:
    """Print one row of a table."""
    print("|", " | ".join(map(str, cells)), "|")


def compute_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the median of the ratios round by round, which a drifting machine leaves alone."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def _is_path(word: str) -> bool:
    return "/" in word and Path(word).exists()
