"""converted.py: converted checkpoints, complete or not there."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal

import mlx.core as mx
import pytest

from fastwhisper.checkpoint.chunks import describe_mapping
from fastwhisper.checkpoint.files import RegularFile
from fastwhisper.checkpoint.inspection import inspect_checkpoint
from fastwhisper.checkpoint.plan import TensorPlan
from fastwhisper.checkpoint.read import read_shards
from fastwhisper.checkpoint.safetensors import check_with_safetensors, parse_header
from fastwhisper.sources import converted
from tests.helpers.copies import list_leftovers, store_copy
from tests.helpers.interpreter import WATCHDOG_S, start_python
from tests.helpers.tiny_models import write_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from fastwhisper.checkpoint.plan import Checkpoint

pytestmark = pytest.mark.usefixtures("root")

Slow = Literal["weights.npz", "deflated weights.npz", "model.bin"]


def read(checkpoint: Checkpoint) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Read every tensor of a checkpoint as its dtype, shape and bytes."""
    return {
        name: (
            str(array.dtype),
            array.shape,
            bytes(memoryview(array.reshape(-1).view(mx.uint8))),  # type: ignore[arg-type]  # MLX's stub lacks buffers
        )
        for group in read_shards(checkpoint)
        for name, array in group.items()
    }


# What is kept is what was there.


@pytest.mark.parametrize(
    ("layout", "precision"),
    [
        ("weights.npz", "float16"),
        ("weights.npz", "int4"),
        ("deflated weights.npz", "int8"),
        ("model.bin", "float16"),
    ],
)
def test_copy_equals_its_original(tmp_path: Path, layout: Slow, precision: str) -> None:
    """A copy has every tensor, dtype and byte, and the precision of its original."""
    directory = write_model(tmp_path / "model", layout=layout, precision=precision)
    original = inspect_checkpoint(directory)
    path = store_copy(original)
    assert path is not None
    copy = inspect_checkpoint(path)
    tensors = read(copy)
    tensors.pop("alignment_heads", None)
    assert tensors == read(original)
    assert (copy.layout, copy.dimensions) == ("safetensors", original.dimensions)
    assert (copy.precision, copy.actual) == (original.precision, original.actual)


def test_bfloat16_is_kept_as_it_is(tmp_path: Path) -> None:
    """A dtype that NumPy has not is copied bit by bit."""
    directory = write_model(tmp_path / "model")
    weights = str(directory / "weights.safetensors")
    arrays = mx.load(weights)
    assert isinstance(arrays, dict)
    cast = {name: array.astype(mx.bfloat16) for name, array in arrays.items()}
    mx.eval(list(cast.values()))
    mx.save_safetensors(weights, cast)
    original = inspect_checkpoint(directory)
    path = store_copy(original)
    assert path is not None
    assert read(inspect_checkpoint(path)) == read(original)


@pytest.mark.parametrize(
    ("layout", "precision"), [("weights.npz", "int4"), ("model.bin", "float16")]
)
def test_copy_can_be_mapped(tmp_path: Path, layout: Slow, precision: str) -> None:
    """The data begins at a page of Apple silicon, and each tensor at its item size."""
    directory = write_model(tmp_path / "model", layout=layout, precision=precision)
    path = store_copy(inspect_checkpoint(directory))
    assert path is not None
    copy = inspect_checkpoint(path)
    assert min(plan.offset_bytes for plan in copy.tensors) % (16 << 10) == 0
    assert describe_mapping(copy.tensors, "float16") == "yes"


def test_tensors_of_odd_lengths_are_aligned_in_a_copy(tmp_path: Path) -> None:
    """The widest come first, whatever the order of the original."""
    original = inspect_checkpoint(write_model(tmp_path / "model", layout="weights.npz"))
    arrays = {
        "a": mx.array([1], dtype=mx.uint8),
        "b": mx.array([1, 2, 3], dtype=mx.uint32),
        "c": mx.array([1, 2, 3], dtype=mx.float16),
        "d": mx.array([1], dtype=mx.int64),
    }
    tensors = tuple(
        TensorPlan(name, name, str(each.dtype).rpartition(".")[2], each.shape, 0, 0, each.nbytes)
        for name, each in arrays.items()
    )
    mx.eval(arrays)
    path = converted.store(replace(original, tensors=tensors), [arrays], check=lambda: None)
    assert path is not None
    with RegularFile(path / "weights.safetensors") as file:
        plans = parse_header(file, 0)
        check_with_safetensors(file.seen, plans)
    assert [plan.name for plan in plans] == ["d", "b", "c", "a"]
    assert describe_mapping(plans, None) == "yes"
    found = mx.load(str(path / "weights.safetensors"))
    assert isinstance(found, dict)
    assert all(mx.array_equal(found[name], each).item() for name, each in arrays.items())


def test_alignment_heads_of_a_config_become_a_tensor(tmp_path: Path) -> None:
    """Heads that only the config knows are not lost."""
    original = inspect_checkpoint(write_model(tmp_path / "model", layout="model.bin"))
    assert original.alignment_heads == ((0, 0),)
    path = store_copy(original)
    assert path is not None
    tensors = mx.load(str(path / "weights.safetensors"))
    assert isinstance(tensors, dict)
    assert tensors["alignment_heads"].tolist() == [[0, 0]]
    assert tensors["alignment_heads"].dtype == mx.int64


# Finding it again.


def test_nothing_is_found_before_it_is_stored(original: Checkpoint, root: Path) -> None:
    """A lookup in a cache that does not exist finds nothing, and makes nothing."""
    assert converted.lookup(original) is None
    assert not root.exists()


def test_copy_is_found_by_its_original(original: Checkpoint, tmp_path: Path) -> None:
    """The same files, inspected anew, find the copy."""
    path = store_copy(original)
    assert path is not None
    assert converted.lookup(inspect_checkpoint(tmp_path / "original")) == path


def test_links_to_one_file_share_a_copy(original: Checkpoint, tmp_path: Path) -> None:
    """Two snapshots of the same blob are the same model."""
    path = store_copy(original)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in (tmp_path / "original").iterdir():
        (snapshot / file.name).symlink_to(file)
    assert converted.lookup(inspect_checkpoint(snapshot)) == path


def test_rewritten_original_is_another_one(original: Checkpoint, tmp_path: Path) -> None:
    """A file that was written again has no copy yet, even with the same bytes."""
    store_copy(original)
    weights = tmp_path / "original" / "weights.npz"
    data = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(data)
    os.utime(weights, ns=(1, 1))
    assert converted.lookup(inspect_checkpoint(tmp_path / "original")) is None


def test_other_heads_in_the_config_are_another_model(tmp_path: Path) -> None:
    """A config that says something else makes another key."""
    directory = write_model(tmp_path / "model", layout="model.bin")
    store_copy(inspect_checkpoint(directory))
    (directory / "config.json").write_text("{}")
    assert converted.lookup(inspect_checkpoint(directory)) is None


def test_second_store_writes_nothing(original: Checkpoint) -> None:
    """What is there already is not read again."""
    path = store_copy(original)
    assert converted.store(original, iter(()), check=lambda: None) == path


def test_discarded_copy_is_gone(original: Checkpoint, root: Path) -> None:
    """A copy that can't be read is removed, so that the next store makes it anew."""
    path = store_copy(original)
    assert path is not None
    converted.discard(path)
    assert converted.lookup(original) is None
    assert list_leftovers(root) == []


# Switched off, full, read-only.


def test_off_keeps_nothing(
    original: Checkpoint, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`FASTWHISPER_CACHE=off` neither stores nor finds, lists or clears."""
    store_copy(original)
    monkeypatch.setenv(converted.VARIABLE, "off")
    assert (converted.find_root(), store_copy(original), converted.lookup(original)) == (
        None,
        None,
        None,
    )
    assert (converted.entries(), converted.clear()) == ([], 0)
    assert root.exists()


def test_default_is_the_platforms_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the variable, the cache is where the platform has its caches."""
    monkeypatch.delenv(converted.VARIABLE)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    assert converted.find_root() == tmp_path / "fastwhisper" / "converted"


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A tilde in the variable is the home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(converted.VARIABLE, "~/models")
    assert converted.find_root() == tmp_path / "models"


def test_full_disk_costs_the_copy_alone(
    original: Checkpoint,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without room nothing is written, and one line is logged."""
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=1000))
    assert store_copy(original) is None
    assert len(caplog.records) == 1
    assert "no converted copy" in caplog.text
    assert list_leftovers(root) == []


def test_disk_that_fills_up_leaves_nothing(
    original: Checkpoint,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A write that fails midway is cleaned up and logged once."""

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    assert store_copy(original) is None
    assert "No space left" in caplog.text
    assert list_leftovers(root) == []
    assert converted.lookup(original) is None


def test_home_that_can_not_be_written_costs_the_copy_alone(
    original: Checkpoint, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A cache that can't be made is logged, and not an error."""
    root.write_bytes(b"")
    assert store_copy(original) is None
    assert len(caplog.records) == 1
    assert converted.lookup(original) is None


def test_original_that_vanishes_costs_the_copy_alone(
    original: Checkpoint, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An original that changes under the conversion leaves no copy."""
    (tmp_path / "original" / "weights.npz").unlink()
    assert store_copy(original) is None
    assert len(caplog.records) == 1
    assert list_leftovers(root) == []


def test_missing_tensors_are_the_callers_error(original: Checkpoint, root: Path) -> None:
    """A copy that would lack a tensor is never made."""
    groups = list(read_shards(original.select("encoder.")))
    with pytest.raises(ValueError, match="lack"):
        converted.store(original, groups, check=lambda: None)
    assert converted.lookup(original) is None
    assert list_leftovers(root) == []


# Interrupted.


class Gone(BaseException):
    """What `check` raises when its caller has gone."""


def test_cancelled_store_leaves_nothing(original: Checkpoint, root: Path) -> None:
    """`check` stops a store between groups, and what was written is removed."""
    written: list[int] = []

    def groups() -> Iterator[Mapping[str, mx.array]]:
        for group in read_shards(original):
            yield group
            written.append(1)

    def check() -> None:
        if any(root.glob(".*.tmp/weights.safetensors")):
            raise Gone

    with pytest.raises(Gone):
        converted.store(original, groups(), check=check)
    assert list_leftovers(root) == []
    assert converted.lookup(original) is None


def test_two_threads_store_once(original: Checkpoint) -> None:
    """Who comes second waits, and takes what the first one has made."""
    begun, go_on = threading.Event(), threading.Event()
    reads: list[int] = []

    def groups() -> Iterator[Mapping[str, mx.array]]:
        reads.append(1)
        begun.set()
        go_on.wait(WATCHDOG_S)
        yield from read_shards(original)

    paths: list[Path | None] = []
    threads = [
        threading.Thread(
            target=lambda: paths.append(converted.store(original, groups(), check=lambda: None))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    begun.wait(WATCHDOG_S)
    go_on.set()
    for thread in threads:
        thread.join(WATCHDOG_S)
    assert paths[0] == paths[1] is not None
    assert reads == [1]


SCRIPT = """
import sys, time
from fastwhisper.sources import converted
from fastwhisper.checkpoint.inspection import inspect_checkpoint
from fastwhisper.checkpoint.read import read_shards

def groups():
    yield from read_shards(checkpoint.select("encoder."))
    print("half", flush=True)
    sys.stdin.read()

checkpoint = inspect_checkpoint(sys.argv[1])
converted.store(checkpoint, groups(), check=lambda: None)
"""


def test_killed_store_leaves_nothing_that_passes_for_complete(
    original: Checkpoint, root: Path, tmp_path: Path
) -> None:
    """After kill -9 nothing is found; the next store cleans up and succeeds."""
    with start_python("-c", SCRIPT, tmp_path / "original") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert len(list_leftovers(root)) == 1
    assert converted.lookup(original) is None
    assert converted.entries() == []
    assert store_copy(original) is not None
    assert list_leftovers(root) == []
