"""Cases: directories, links, pipes, devices and names, and indices of shards."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.corpus.case import (
    INVALID,
    OPENS,
    Case,
    change_config,
    fault,
    instead,
    put_bytes,
    truncate,
)
from tests.helpers.tiny_models import make_arrays, safetensors_bytes, write_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["index_cases", "place_cases"]

WEIGHTS: Final = "weights.safetensors"
INDEX: Final = "model.safetensors.index.json"
FIRST: Final = "model-00001-of-00002.safetensors"
SECOND: Final = "model-00002-of-00002.safetensors"


def link_to(target: str) -> Callable[[Path], object]:
    """Make a maker of links."""
    return lambda path: path.symlink_to(target)


def _loop_of_two(path: Path) -> None:
    other = path.with_name("other")
    path.symlink_to(other)
    other.symlink_to(path)


def _socket(path: Path) -> None:
    # A socket's path may have 108 bytes only, so it is made where we stand.
    with socket.socket(socket.AF_UNIX) as made:
        here = os.open(path.parent, os.O_RDONLY)
        try:
            made.bind(f"/proc/self/fd/{here}/{path.name}")
        finally:
            os.close(here)


def place_cases() -> Iterator[Case]:
    """List the cases of files that are none, and of odd places."""
    makers: list[tuple[str, Callable[[Path], object]]] = [
        ("a directory", Path.mkdir),
        ("a FIFO", os.mkfifo),
        ("a link to itself", lambda path: path.symlink_to(path)),
        ("a loop of two links", _loop_of_two),
        ("a link to nothing", link_to("nowhere")),
        ("a link to /dev/zero", link_to("/dev/zero")),
        ("a link to /dev/null", link_to("/dev/null")),
        ("a link to /dev/tty", link_to("/dev/tty")),
        ("a link to a directory", link_to(".")),
    ]
    if sys.platform == "linux":
        makers += [
            ("a socket", _socket),
            ("a link to /proc/self/mem", link_to("/proc/self/mem")),
            ("a link to /proc/self/environ", link_to("/proc/self/environ")),
        ]
    if os.geteuid() != 0:
        makers.append(("a file nobody may read", lambda path: path.touch(mode=0)))
    for name in (WEIGHTS, "config.json"):
        for what, make in makers:
            yield Case(f"{name} is {what}", fault(instead(name, make)))
    yield from _odd_places()
    yield from _no_model()


def _odd_places() -> Iterator[Case]:
    yield Case("weights are a link", fault(_linked), OPENS)
    yield Case("directory is a link", _link_to_model, OPENS)
    yield Case("file descriptor 0 is free", fault(lambda path: path), OPENS, stdin_closed=True)
    yield Case("path with blanks and quotes", _named("a 'b' \"c\"\n"), OPENS)
    yield Case("path in Chinese", _named("语音"), OPENS)
    if sys.platform == "linux":
        yield Case("path not in UTF-8", _named(os.fsdecode(b"\xff\xfe")), OPENS)
        closed = _named(os.fsdecode(b"\xff\xfe"))
        yield Case("path not in UTF-8, descriptor 0 free", closed, OPENS, stdin_closed=True)
    yield Case("files beside it that are no model", fault(_clutter), OPENS)
    yield Case("config of 900 kB", fault(change_config(x="y" * 900_000)), OPENS)


def _no_model() -> Iterator[Case]:
    missing = "ModelNotFoundError"
    yield Case("an empty directory", lambda path: path.mkdir(), about=("weights",))
    yield Case("only a config", fault(lambda path: (path / WEIGHTS).unlink()), about=("weights",))
    yield Case("pickled weights only", fault(_pickled), about=("weights",))
    yield Case("a file and no directory", Path.touch, missing)
    yield Case("the file of weights itself", _weights_themselves, missing)
    yield Case("no such directory", lambda path: path / "a" / "b", missing)
    yield Case("a path with NUL", lambda path: f"{path}\0x", missing)
    yield Case("a path of NUL", lambda _: "\0", missing)
    yield Case("an empty path", lambda _: "", missing)
    yield Case("a path of 5000 characters", lambda path: path / ("x/" * 2500), missing)
    yield Case("a name of 5000 characters", lambda path: path / ("x" * 5000), missing)
    yield Case("a FIFO for a directory", os.mkfifo, missing)
    yield Case("/dev/null", lambda _: "/dev/null", missing)


def _linked(directory: Path) -> None:
    blobs = directory.with_name(f"{directory.name}.blobs")
    blobs.mkdir()
    for path in list(directory.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(blobs / path.name)


def _link_to_model(directory: Path) -> None:
    real = write_model(directory.with_name(f"{directory.name}.real"))
    directory.symlink_to(real)


def _named(name: str) -> Callable[[Path], Path]:
    return lambda directory: write_model(directory / name)


def _clutter(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"no model")
    (directory / "weights.npz").write_bytes(b"nor this")
    (directory / "pytorch_model.bin").mkdir()
    os.mkfifo(directory / "pipe")
    (directory / "link").symlink_to("link")


def _pickled(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")


def _weights_themselves(directory: Path) -> Path:
    return write_model(directory) / WEIGHTS


def sharded(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """Build a model in two shards and change something."""
    return fault(change, layout=INDEX)


def said(tensor: str, shard: object) -> Callable[[Path], None]:
    """Make a fault: the index names another shard for a tensor."""

    def change(directory: Path) -> None:
        index = json.loads((directory / INDEX).read_text())
        index["weight_map"][tensor] = shard
        (directory / INDEX).write_text(json.dumps(index))

    return change


def _unsaid(directory: Path) -> None:
    index = json.loads((directory / INDEX).read_text())
    del index["weight_map"]["decoder.ln.bias"]
    (directory / INDEX).write_text(json.dumps(index))


def _in_both(directory: Path) -> None:
    arrays = make_arrays()
    (directory / SECOND).write_bytes(safetensors_bytes(arrays))


def _outside(directory: Path) -> None:
    outside = directory.with_name(f"{directory.name}.safetensors")
    (directory / FIRST).rename(outside)
    index = json.loads((directory / INDEX).read_text())
    shards = index["weight_map"]
    for tensor, shard in shards.items():
        if shard == FIRST:
            shards[tensor] = f"../{outside.name}"
    (directory / INDEX).write_text(json.dumps(index))


def index_cases() -> Iterator[Case]:
    """List the cases of sharded checkpoints."""
    bias = "decoder.ln.bias"
    changes: list[tuple[str, Callable[[Path], object]]] = [
        ("first shard is missing", lambda path: (path / FIRST).unlink()),
        ("second shard is missing", lambda path: (path / SECOND).unlink()),
        ("shard is cut", truncate(FIRST, -1)),
        ("shard is empty", truncate(SECOND, 0)),
        ("shard is a FIFO", instead(FIRST, os.mkfifo)),
        ("shard is a directory", instead(FIRST, Path.mkdir)),
        ("shard is a loop of links", instead(FIRST, lambda path: path.symlink_to(path))),
        ("shard is a link to /dev/zero", instead(FIRST, link_to("/dev/zero"))),
        ("index names a shard that is not there", said(bias, "model-3.safetensors")),
        ("index names /etc/passwd", said(bias, "/etc/passwd")),
        ("index names an absolute path", said(bias, "/tmp/x.safetensors")),
        ("index names a path above", said(bias, "../x.safetensors")),
        ("index names a good shard above", _outside),
        ("index names a path below", said(bias, "a/x.safetensors")),
        ("index names a Windows path", said(bias, "C:\\x.safetensors")),
        ("index names a path with NUL", said(bias, "x\0.safetensors")),
        ("index names itself", said(bias, INDEX)),
        ("index names the config", said(bias, "config.json")),
        ("index names the directory", said(bias, ".")),
        ("index names nothing", said(bias, "")),
        ("index names a number", said(bias, 1)),
        ("index names null", said(bias, None)),
        ("index names a list", said(bias, [FIRST])),
        ("index names the other shard", said("encoder.conv1.weight", SECOND)),
        ("index names a tensor that is not there", said("decoder.extra", FIRST)),
        ("index lacks a tensor", _unsaid),
        ("tensor in both shards", _in_both),
        ("index is a FIFO", instead(INDEX, os.mkfifo)),
        ("index is a directory", instead(INDEX, Path.mkdir)),
        ("index is empty", put_bytes(INDEX, b"")),
        ("index is not JSON", put_bytes(INDEX, b"{")),
        ("index is a list", put_bytes(INDEX, b"[]")),
        ("index without a map", put_bytes(INDEX, b"{}")),
        ("index with a list for a map", put_bytes(INDEX, b'{"weight_map": ["x"]}')),
        ("index with an empty map", put_bytes(INDEX, b'{"weight_map": {}}')),
        ("index is deep", put_bytes(INDEX, b'{"weight_map":' + b"[" * 500_000)),
    ]
    for name, change in changes:
        yield Case(name, sharded(change), INVALID, upstream_layout=False)
    for name, change in (
        ("shards as they should be", lambda path: path),
        ("shards are links", _linked),
    ):
        yield Case(name, sharded(change), OPENS, upstream_layout=False)
