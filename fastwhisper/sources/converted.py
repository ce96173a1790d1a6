"""Converted checkpoints: what is slow to read is read once, and from here ever after.

An entry is a directory with an MLX checkpoint in it. It is made beside its place and then
renamed, so that it is complete or not there; who makes or removes one holds the lock.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import struct
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from fastwhisper.checkpoint.expected import ALIGNMENT_HEADS
from fastwhisper.checkpoint.inspection import CONFIG
from fastwhisper.checkpoint.safetensors import DTYPES
from fastwhisper.errors import InvalidModelFormatError
from fastwhisper.sources.lock import locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import mlx.core as mx

    from fastwhisper.checkpoint.files import WeightFile
    from fastwhisper.checkpoint.plan import Checkpoint

__all__ = [
    "VARIABLE",
    "Entry",
    "clear",
    "discard",
    "entries",
    "identify",
    "lookup",
    "root",
    "store",
]

VARIABLE: Final = "FASTWHISPER_CACHE"

LIMIT_BYTES: Final = 20 << 30
"""Most bytes of all entries; the one that was used least recently goes first."""

RESERVE_BYTES: Final = 1 << 30
"""Free space, in bytes, that is left to others."""

_VERSION: Final = 1
"""Part of every key: raised when what an entry must be changes, so that no old one is read."""

_WEIGHTS: Final = "weights.safetensors"
_SOURCE: Final = "source.json"
# The directory is the user's choice, so nothing is removed but what bears these names.
_KEY: Final = re.compile(r"[0-9a-f]{40}")
_NOTE: Final = re.compile(r"[0-9a-f]{40}\.(sha256|confirmed)")
_UNFINISHED: Final = re.compile(r"\.[0-9a-f]{40}\.tmp")
_CODES: Final = {name: code for code, name in DTYPES.items()}
_ALIGN_BYTES: Final = 64

_logger = logging.getLogger("fastwhisper")


@dataclass(frozen=True, slots=True)
class Entry:
    """One converted checkpoint.

    Attributes:
        path: Its directory.
        source: The directory it was converted from.
        size_bytes: What it takes on disk.
        used_s: When it was made or last looked up, in seconds since the epoch.
    """

    path: Path
    source: str
    size_bytes: int
    used_s: float


def root() -> Path | None:
    """Name the cache's directory; None when `FASTWHISPER_CACHE=off`."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen == "off":
        return None
    if chosen:
        return Path(os.path.expanduser(chosen))  # noqa: PTH111  Path's raises without a home
    from platformdirs import user_cache_path  # noqa: PLC0415  20 ms

    return user_cache_path("fastwhisper") / "converted"


def lookup(checkpoint: Checkpoint) -> Path | None:
    """Find the converted copy of a checkpoint. Costs less than 1 ms.

    Args:
        checkpoint: The original, as inspected: a copy of anything that has changed since, its
            config included, is not found.

    Returns:
        The directory of an MLX checkpoint, to be inspected like any other.
    """
    directory = root()
    if directory is None:
        return None
    entry = directory / _key(checkpoint)
    if not (entry / _WEIGHTS).is_file():
        return None
    try:
        os.utime(entry)
    except OSError as error:
        _logger.debug("%s can't be marked as used: %s", entry, error)
    return entry


def store(
    checkpoint: Checkpoint,
    groups: Iterable[Mapping[str, mx.array]],
    *,
    check: Callable[[], None],
) -> Path | None:
    """Keep a converted copy of a checkpoint. Blocks; never fails for want of a disk.

    Args:
        checkpoint: The original.
        groups: All its tensors by MLX name, evaluated, at the dtype they are stored in: what
            `read_shards` gives. Only one group is held at a time.
        check: Called between groups; may raise to stop, and leaves nothing behind then.

    Returns:
        The copy's directory, or None when it could not be kept, which is logged.

    Raises:
        ValueError: `groups` are not the checkpoint's tensors.
    """
    directory = root()
    if directory is None:
        return None
    entry = directory / _key(checkpoint)
    try:
        with locked(directory / ".lock", check):
            _remove_unfinished(directory)
            if not entry.is_dir():
                _make_room(directory, checkpoint.total_bytes)
                _write(entry, checkpoint, groups, check)
    except (OSError, InvalidModelFormatError) as error:
        _logger.warning(
            "no converted copy of %s is kept, so that it opens as slowly next time (%s); "
            "set %s to another directory, or to off",
            checkpoint.path,
            error,
            VARIABLE,
        )
        return None
    return entry


def discard(path: Path) -> None:
    """Remove an entry that turned out to be unreadable; its original is still there."""
    try:
        with locked(path.parent / ".lock", lambda: None):
            _remove(path)
    except OSError as error:
        _logger.warning("%s can't be removed (%s); remove it yourself", path, error)


def entries() -> list[Entry]:
    """List what is in the cache, the most recently used first."""
    directory = root()
    found = [] if directory is None else list(_entries(directory))
    return sorted(found, key=lambda entry: entry.used_s, reverse=True)


def clear() -> int:
    """Remove every entry.

    Returns:
        The bytes that were freed.

    Raises:
        OSError: An entry can't be removed.
    """
    directory = root()
    if directory is None or not directory.is_dir():
        return 0
    with locked(directory / ".lock", lambda: None):
        _remove_unfinished(directory)
        freed_bytes = 0
        for entry in _entries(directory):
            _remove(entry.path)
            freed_bytes += entry.size_bytes
        for note in directory.iterdir():
            if _NOTE.fullmatch(note.name):
                note.unlink()
    return freed_bytes


def _key(checkpoint: Checkpoint) -> str:
    """Name what a checkpoint came from: its files as they were, and what its configs say."""
    digest = hashlib.sha256(f"{_VERSION}\n".encode())
    for file in checkpoint.files:
        digest.update(identify(file))
    # What the configs came to, and so not their unknown keys.
    parsed = [asdict(checkpoint.dimensions), checkpoint.layout, checkpoint.alignment_heads]
    precision = [(k, v.bits, v.group_size) for k, v in sorted(checkpoint.precision.items())]
    digest.update(json.dumps([*parsed, precision]).encode())
    return digest.hexdigest()[:40]


def identify(file: WeightFile) -> bytes:
    """Sum up what tells a file from what it was before it changed."""
    # Not the device's number, which may be another one after a restart.
    seen = [os.path.realpath(file.path), file.size_bytes, file.mtime_ns, file.inode]
    return json.dumps(seen).encode()


def _entries(directory: Path) -> Iterator[Entry]:
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if not _KEY.fullmatch(path.name) or path.is_symlink():
            continue
        try:
            size_bytes = sum(file.stat().st_size for file in path.iterdir())
            used_s = path.stat().st_mtime
            source = json.loads((path / _SOURCE).read_text(encoding="utf-8"))["path"]
        except FileNotFoundError:
            continue  # another process has just removed it
        except (ValueError, KeyError, TypeError):
            source = "?"
        yield Entry(path, str(source), size_bytes, used_s)


def _remove(path: Path) -> None:
    """Remove an entry as a whole: under its name it is complete or not there."""
    unfinished = _unfinished(path)
    path.rename(unfinished)
    shutil.rmtree(unfinished)


def _unfinished(entry: Path) -> Path:
    return entry.with_name(f".{entry.name}.tmp")


def _remove_unfinished(directory: Path) -> None:
    """Remove what a process that was killed has left. The lock is held: nobody is at it."""
    for path in directory.iterdir():
        if _UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path)


def _make_room(directory: Path, size_bytes: int) -> None:
    """Remove what was used least recently until there is room for a new entry."""
    kept = sorted(_entries(directory), key=lambda entry: entry.used_s, reverse=True)
    total_bytes = sum(entry.size_bytes for entry in kept)
    while kept and total_bytes + size_bytes > LIMIT_BYTES:
        entry = kept.pop()
        _logger.info("removing %s, converted from %s, to make room", entry.path, entry.source)
        _remove(entry.path)
        total_bytes -= entry.size_bytes
    free_bytes = shutil.disk_usage(directory).free
    if size_bytes > LIMIT_BYTES or size_bytes + RESERVE_BYTES > free_bytes:
        raise OSError(f"{size_bytes} bytes are too many for {directory}, with {free_bytes} free")


def _write(
    entry: Path,
    checkpoint: Checkpoint,
    groups: Iterable[Mapping[str, mx.array]],
    check: Callable[[], None],
) -> None:
    unfinished = _unfinished(entry)
    unfinished.mkdir()
    try:
        config = {"model_type": "whisper", **asdict(checkpoint.dimensions)}
        for name, content in ((CONFIG, config), (_SOURCE, {"path": str(checkpoint.path)})):
            with _synced(unfinished / name) as file:
                file.write(json.dumps(content, indent=1).encode())
        with _synced(unfinished / _WEIGHTS) as file:
            _write_weights(file, checkpoint, groups, check)
        _sync_directory(unfinished)
        unfinished.rename(entry)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    _sync_directory(entry.parent)


def _write_weights(
    file: IO[bytes],
    checkpoint: Checkpoint,
    groups: Iterable[Mapping[str, mx.array]],
    check: Callable[[], None],
) -> None:
    """Write a safetensors file group by group; its header is known from the plan.

    Source:
        safetensors, README "Format".
    """
    plans = {plan.name: plan for plan in checkpoint.tensors}
    # Config files of other layouts list the heads; an MLX checkpoint has them as a tensor.
    heads = b""
    header: dict[str, object] = {}
    if checkpoint.alignment_heads and ALIGNMENT_HEADS not in plans:
        flat = [index for pair in checkpoint.alignment_heads for index in pair]
        heads = struct.pack(f"<{len(flat)}q", *flat)
        header[ALIGNMENT_HEADS] = _describe("int64", (len(flat) // 2, 2), 0, len(heads))
    begins: dict[str, int] = {}
    end = len(heads)
    for plan in checkpoint.tensors:
        begins[plan.name] = end
        header[plan.name] = _describe(plan.dtype, plan.shape, end, plan.size_bytes)
        end += plan.size_bytes
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN_BYTES)
    file.write(struct.pack("<Q", len(text)) + text + heads)
    start = 8 + len(text)
    for group in groups:
        check()
        for name, data in _as_bytes(group).items():
            if len(data) != plans[name].size_bytes:
                raise ValueError(f"{name} has {len(data)} bytes, not {plans[name].size_bytes}")
            file.seek(start + begins.pop(name))
            file.write(data)
        # Now, so that leaving never waits for more than a group to reach the disk.
        _sync(file)
    if begins:
        raise ValueError(f"groups lack {len(begins)} of the checkpoint's tensors: {min(begins)}")


def _describe(dtype: str, shape: tuple[int, ...], begin: int, size_bytes: int) -> object:
    return {
        "dtype": _CODES[dtype],
        "shape": list(shape),
        "data_offsets": [begin, begin + size_bytes],
    }


def _as_bytes(group: Mapping[str, mx.array]) -> dict[str, memoryview]:
    """See evaluated arrays as bytes, whatever their dtype: Python has no bfloat16."""
    import mlx.core as mx  # noqa: PLC0415 - blas.py acts before MLX is imported

    flat = {name: array.reshape(-1).view(mx.uint8) for name, array in group.items()}
    mx.eval(list(flat.values()))
    # MLX's stub does not say that arrays are buffers.
    return {name: memoryview(array) for name, array in flat.items()}  # type: ignore[arg-type]


@contextmanager
def _synced(path: Path) -> Iterator[IO[bytes]]:
    """Make a file that is on the disk, and not only in memory, when it is closed."""
    with path.open("wb") as file:
        yield file
        _sync(file)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
