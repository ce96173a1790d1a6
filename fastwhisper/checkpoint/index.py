"""Sharded checkpoints: the index and the shards it names -> one plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastwhisper.checkpoint.files import RegularFile, parse_safetensors, read_json, shown
from fastwhisper.errors import InvalidModelFormatError

if TYPE_CHECKING:
    from pathlib import Path

    from fastwhisper.checkpoint.files import TensorPlan, WeightFile

__all__ = ["plan_shards"]

MAX_SHARDS: Final = 256


def plan_shards(directory: Path, where: Path) -> tuple[list[WeightFile], list[TensorPlan]]:
    """Plan a sharded checkpoint; the index and the shards must say the same.

    Args:
        directory: Where the shards are.
        where: The index.

    Returns:
        The shards as they were when they were looked at, and their tensors by stored name.

    Raises:
        InvalidModelFormatError: A shard is missing or broken, is no file of this directory by
            its name, or holds other tensors than the index says.
    """
    mapped = read_json(where).get("weight_map")
    if not isinstance(mapped, dict) or not mapped:
        raise InvalidModelFormatError(where, "weight_map", "is missing; download the index again")
    for name, shard in mapped.items():
        _check_shard_name(where, name, shard)
    shards = sorted(set(mapped.values()))
    if len(shards) > MAX_SHARDS:
        raise InvalidModelFormatError(where, "weight_map", f"names {len(shards)} shards")
    files: list[WeightFile] = []
    tensors: list[TensorPlan] = []
    for index, shard in enumerate(shards):
        with RegularFile(directory / shard) as file:
            tensors += parse_safetensors(file, index)
            files.append(file.seen)
    found: dict[str, str] = {}
    for tensor in tensors:
        shard = shards[tensor.file]
        if found.setdefault(tensor.stored, shard) != shard:
            raise InvalidModelFormatError(
                directory / shard, shown(tensor.stored), "is in two shards; download them again"
            )
    # Equal maps: nothing is in a shard the index does not name it for.
    astray = sorted(name for name in found.keys() | mapped if found.get(name) != mapped.get(name))
    if astray:
        raise InvalidModelFormatError(
            where,
            shown(astray[0]),
            f"is not where the index says, nor are {len(astray) - 1} others; "
            "index and shards don't belong together: download them again",
        )
    return files, tensors


def _check_shard_name(where: Path, name: str, shard: object) -> None:
    """Judge a shard's name lexically: Hugging Face snapshots are links that leave the folder."""
    if (
        not isinstance(shard, str)
        or not shard.endswith(".safetensors")
        or not shard.isprintable()
        or any(character in shard for character in "/\\:")
    ):
        raise InvalidModelFormatError(
            where, shown(name), f"is said to be in {shown(repr(shard))}, no file of this directory"
        )
