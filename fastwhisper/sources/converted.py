"""The cache of converted checkpoints: safetensors copies of layouts that are slow to read.

An entry is a directory with an MLX checkpoint in it. It is complete or not there: see `atomic.py`.
Every process that makes or removes an entry holds the cache's lock.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from fastwhisper.checkpoint.expected import ALIGNMENT_HEADS
from fastwhisper.checkpoint.inspection import CONFIG
from fastwhisper.checkpoint.plan import WIDTHS
from fastwhisper.checkpoint.safetensors import DTYPES, pad_header
from fastwhisper.errors import InvalidModelFormatError
from fastwhisper.sources.atomic import open_new_directory
from fastwhisper.sources.lock import open_lock

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
    "explain_absence",
    "find_root",
    "identify",
    "lookup",
    "store",
]

VARIABLE: Final = "FASTWHISPER_CACHE"

LIMIT_BYTES: Final = 20 << 30
"""Largest size of all entries together. The least recently used one is removed first."""

RESERVE_BYTES: Final = 1 << 30
"""Free space, in bytes, that is left for other programs."""

_VERSION: Final = 1
"""Part of every key. It is raised when the format of an entry changes, so that no old entry is
read."""

_WEIGHTS: Final = "weights.safetensors"
_SOURCE: Final = "source.json"
# The user chooses the directory, so only files with these names are ever removed.
_KEY: Final = re.compile(r"[0-9a-f]{40}")
_NOTE: Final = re.compile(r"[0-9a-f]{40}\.(sha256|confirmed)")
_UNFINISHED: Final = re.compile(r"\.[0-9a-f]{40}\.tmp")
_CODES: Final = {name: code for code, name in DTYPES.items()}

_logger = logging.getLogger("fastwhisper")


@dataclass(frozen=True, slots=True)
class Entry:
    """One converted checkpoint.

    Attributes:
        path: Its directory.
        source: The directory of the original.
        size_bytes: Its size on disk.
        used_s: When it was made or last found, in seconds since the epoch.
    """

    path: Path
    source: str
    size_bytes: int
    used_s: float


def find_root() -> Path | None:
    """Return the cache's directory.

    Returns:
        The directory, which need not exist. None when `FASTWHISPER_CACHE=off`, or where the path
        begins with `~` and no home is known: a container's user without an entry in passwd.
    """
    chosen = os.environ.get(VARIABLE, "")
    if chosen == "off":
        return None
    if not chosen:
        # 10 ms, in an engine thread and not at import.
        from platformdirs import user_cache_path  # noqa: PLC0415

        try:
            chosen = str(user_cache_path("fastwhisper") / "converted")
        except RuntimeError:
            return None
    # Without a home, `~` is left as it is; a directory of that name is nobody's wish.
    directory = os.path.expanduser(chosen)  # noqa: PTH111  Path's raises
    return None if directory.startswith("~") else Path(directory)


def explain_absence() -> str:
    """Return why `find_root` returns None, for a message."""
    if os.environ.get(VARIABLE) == "off":
        return f"{VARIABLE}=off"
    return f"no home directory is known; set {VARIABLE} to another directory"


def lookup(checkpoint: Checkpoint) -> Path | None:
    """Find the converted copy of a checkpoint. It takes less than 1 ms.

    Args:
        checkpoint: The original, as inspected. If its files or its config have changed since the
            conversion, the copy is not found.

    Returns:
        The directory of an MLX checkpoint, which must be inspected like any other; None without
        a copy.
    """
    directory = find_root()
    if directory is None:
        return None
    entry = directory / _key(checkpoint)
    # A directory that may not be looked into holds no copy: Path.is_file raises.
    if not os.path.isfile(entry / _WEIGHTS):  # noqa: PTH113
        return None
    try:
        os.utime(entry)
    except OSError as error:
        _logger.debug("the time of last use of %s can't be written: %s", entry, error)
    return entry


def store(
    checkpoint: Checkpoint,
    groups: Iterable[Mapping[str, mx.array]],
    *,
    check: Callable[[], None],
) -> Path | None:
    """Write a converted copy of a checkpoint. Blocks. A failure of the disk is only logged.

    Args:
        checkpoint: The original.
        groups: All its tensors by MLX name, evaluated and at their stored dtype, as from
            `read_shards`. Only one group is held at a time.
        check: Called between groups. It may raise to stop; then nothing is left behind.

    Returns:
        The copy's directory, or None when it could not be written.

    Raises:
        ValueError: `groups` are not the checkpoint's tensors.
    """
    directory = find_root()
    if directory is None:
        if os.environ.get(VARIABLE, "off") != "off":
            _logger.warning("no converted copy is written: %s", explain_absence())
        return None
    entry = directory / _key(checkpoint)
    try:
        with open_lock(directory / ".lock", check):
            _remove_unfinished(directory)
            if not entry.is_dir():
                _make_room(directory, checkpoint.total_bytes)
                _write(entry, checkpoint, groups, check)
    except (OSError, InvalidModelFormatError) as error:
        _logger.warning(
            "no converted copy of %s was written, so it opens as slowly next time (%s); "
            "set %s to another directory, or to off",
            checkpoint.path,
            error,
            VARIABLE,
        )
        return None
    return entry


def discard(path: Path) -> None:
    """Remove an entry that can't be read. The original is still there."""
    try:
        with open_lock(path.parent / ".lock", lambda: None):
            _remove(path)
    except OSError as error:
        _logger.warning("%s can't be removed (%s); remove it yourself", path, error)


def entries() -> list[Entry]:
    """List the entries of the cache, the most recently used first."""
    directory = find_root()
    found = [] if directory is None else list(_entries(directory))
    return sorted(found, key=lambda entry: entry.used_s, reverse=True)


def clear() -> int:
    """Remove every entry.

    Returns:
        The number of bytes that were freed.

    Raises:
        OSError: An entry can't be removed.
    """
    directory = find_root()
    if directory is None or not directory.is_dir():
        return 0
    with open_lock(directory / ".lock", lambda: None):
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
    """Compute the name of a checkpoint's entry, from its files and the values of its configs."""
    digest = hashlib.sha256(f"{_VERSION}\n".encode())
    for file in checkpoint.files:
        digest.update(identify(file))
    # The values that were read from the configs, and so not their unknown keys.
    parsed = [asdict(checkpoint.dimensions), checkpoint.layout, checkpoint.alignment_heads]
    precision = [(k, v.bits, v.group_size) for k, v in sorted(checkpoint.precision.items())]
    digest.update(json.dumps([*parsed, precision]).encode())
    return digest.hexdigest()[:40]


def identify(file: WeightFile) -> bytes:
    """Return bytes that change when a file changes."""
    # The device's number is left out: it may change when the machine restarts.
    seen = [os.path.realpath(file.path), file.size_bytes, file.mtime_ns, file.inode]
    return json.dumps(seen).encode()


def _entries(directory: Path) -> Iterator[Entry]:
    """List the entries of a directory in any order."""
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
            continue  # Another process has just removed it.
        except (ValueError, KeyError, TypeError):
            source = "?"
        yield Entry(path, str(source), size_bytes, used_s)


def _remove(path: Path) -> None:
    """Remove an entry in one step: with its name it is complete or not there."""
    unfinished = _unfinished(path)
    path.rename(unfinished)
    shutil.rmtree(unfinished)


def _unfinished(entry: Path) -> Path:
    """Return the path of an entry that is being made or removed."""
    return entry.with_name(f".{entry.name}.tmp")


def _remove_unfinished(directory: Path) -> None:
    """Remove unfinished entries of killed processes. The lock is held, so no other process runs."""
    for path in directory.iterdir():
        if _UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path)


def _make_room(directory: Path, size_bytes: int) -> None:
    """Remove the least recently used entries until a new one fits.

    Raises:
        OSError: It does not fit into an empty cache, or not on the disk.
    """
    kept = sorted(_entries(directory), key=lambda entry: entry.used_s, reverse=True)
    total_bytes = sum(entry.size_bytes for entry in kept)
    while kept and total_bytes + size_bytes > LIMIT_BYTES:
        entry = kept.pop()
        _logger.info("removing %s, converted from %s, to make room", entry.path, entry.source)
        _remove(entry.path)
        total_bytes -= entry.size_bytes
    free_bytes = shutil.disk_usage(directory).free
    if size_bytes > LIMIT_BYTES or size_bytes + RESERVE_BYTES > free_bytes:
        raise OSError(f"{size_bytes} bytes are too many for {directory}: {free_bytes} are free")


def _write(
    entry: Path,
    checkpoint: Checkpoint,
    groups: Iterable[Mapping[str, mx.array]],
    check: Callable[[], None],
) -> None:
    """Write an entry as a whole."""
    config = {"model_type": "whisper", **asdict(checkpoint.dimensions)}
    with open_new_directory(entry, unfinished=_unfinished(entry)) as directory:
        for name, content in ((CONFIG, config), (_SOURCE, {"path": str(checkpoint.path)})):
            (directory / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
        with (directory / _WEIGHTS).open("wb") as file:
            _write_weights(file, checkpoint, groups, check)


def _write_weights(
    file: IO[bytes],
    checkpoint: Checkpoint,
    groups: Iterable[Mapping[str, mx.array]],
    check: Callable[[], None],
) -> None:
    """Write a safetensors file group by group. The plan already gives its header.

    Each tensor is aligned to its item size, so that the file can be mapped: the widest come first.

    Source:
        safetensors, README "Format".
    """
    plans = {plan.name: plan for plan in checkpoint.tensors}
    # Other layouts list the heads in a config. An MLX checkpoint has them as a tensor.
    heads = b""
    header: dict[str, object] = {}
    if checkpoint.alignment_heads and ALIGNMENT_HEADS not in plans:
        flat = [index for pair in checkpoint.alignment_heads for index in pair]
        heads = struct.pack(f"<{len(flat)}q", *flat)
        header[ALIGNMENT_HEADS] = _describe_tensor("int64", (len(flat) // 2, 2), 0, len(heads))
    begins: dict[str, int] = {}
    end = len(heads)
    for plan in sorted(checkpoint.tensors, key=lambda plan: -WIDTHS[plan.dtype]):
        begins[plan.name] = end
        header[plan.name] = _describe_tensor(plan.dtype, plan.shape, end, plan.size_bytes)
        end += plan.size_bytes
    front = pad_header(json.dumps(header).encode())
    file.write(front + heads)
    start = len(front)
    for group in groups:
        check()
        for name, data in _as_bytes(group).items():
            if len(data) != plans[name].size_bytes:
                raise ValueError(f"{name} has {len(data)} bytes, not {plans[name].size_bytes}")
            file.seek(start + begins.pop(name))
            file.write(data)
        # After each group, so that leaving waits for one group at most to reach the disk.
        file.flush()
        os.fsync(file.fileno())
    if begins:
        raise ValueError(f"groups lack {len(begins)} tensors of the checkpoint: {min(begins)}")


def _describe_tensor(dtype: str, shape: tuple[int, ...], begin: int, size_bytes: int) -> object:
    """Build a tensor's entry of a safetensors header."""
    return {
        "dtype": _CODES[dtype],
        "shape": list(shape),
        "data_offsets": [begin, begin + size_bytes],
    }


def _as_bytes(group: Mapping[str, mx.array]) -> dict[str, memoryview]:
    """Return views of evaluated arrays as bytes. Buffers of bfloat16 do not exist in Python."""
    # find.py imports this module before the engine imports MLX.
    import mlx.core as mx  # noqa: PLC0415

    flat = {name: array.reshape(-1).view(mx.uint8) for name, array in group.items()}
    mx.eval(list(flat.values()))
    # MLX's stub lacks the buffer protocol of arrays.
    return {name: memoryview(array) for name, array in flat.items()}  # type: ignore[arg-type]
