"""Converted copies for tests: store one, and list what an interrupted store leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastwhisper.checkpoint.read import read_shards
from fastwhisper.sources import converted

if TYPE_CHECKING:
    from pathlib import Path

    from fastwhisper.checkpoint.plan import Checkpoint

__all__ = ["list_leftovers", "store_copy"]


def store_copy(checkpoint: Checkpoint) -> Path | None:
    """Store a converted copy of a checkpoint from its own files, and return its directory."""
    return converted.store(checkpoint, read_shards(checkpoint), check=lambda: None)


def list_leftovers(root: Path) -> list[str]:
    """List the unfinished entries of a cache."""
    return [path.name for path in root.iterdir() if path.name.endswith(".tmp")]
