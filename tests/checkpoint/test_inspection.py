"""Directories, whole."""

from __future__ import annotations

import json
import os
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastwhisper.checkpoint.inspection import (
    PREFERENCE,
    confirm_checkpoint,
    fingerprint_headers,
    inspect_checkpoint,
)
from fastwhisper.checkpoint.plan import Checkpoint, TensorPlan
from fastwhisper.errors import InvalidModelFormatError
from fastwhisper.values import ModulePrecision, Quantization
from tests.helpers.tiny_models import (
    SMALLEST,
    LayoutName,
    make_arrays,
    make_config,
    safetensors_bytes,
    write_arrays,
    write_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable

LAYOUTS = get_args(LayoutName)
INDEX: Final = "model.safetensors.index.json"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_network(
    layout: LayoutName, tiny_model_dir: Callable[..., Path]
) -> None:
    """Names, shapes and dimensions don't depend on the layout."""
    found = inspect_checkpoint(tiny_model_dir(layout=layout))
    arrays = make_arrays()
    assert found.dimensions == SMALLEST
    assert {t.name: t.shape for t in found.tensors} == {n: a.shape for n, a in arrays.items()}
    assert found.total_bytes == sum(array.nbytes for array in arrays.values())
    assert found.actual is Quantization.FLOAT16
    assert found.precision == {}
    order = [(tensor.file, tensor.offset_bytes) for tensor in found.tensors]
    assert order == sorted(order)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "model.bin"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_precision_of_quantized_layouts(
    layout: LayoutName, precision: str, tiny_model_dir: Callable[..., Path]
) -> None:
    """The bits most weights have name the precision."""
    found = inspect_checkpoint(tiny_model_dir(layout=layout, precision=precision))
    assert found.actual == precision
    assert found.precision["decoder.token_embedding"].group_size == 64


def test_actual_counts_weights_and_not_modules(tiny_model_dir: Callable[..., Path]) -> None:
    """One large module at 8 bits outweighs many small ones at 4."""
    found = inspect_checkpoint(tiny_model_dir(precision="int4"))
    large = replace(found.dimensions, n_vocab=100_000)
    mixed = dict(found.precision) | {"decoder.token_embedding": ModulePrecision(8, 64)}
    assert replace(found, precision=mixed).actual is Quantization.INT4
    assert replace(found, precision=mixed, dimensions=large).actual is Quantization.INT8


def test_what_was_found_can_not_be_changed(tiny_model_dir: Callable[..., Path]) -> None:
    """The record and its precision are read-only."""
    found = inspect_checkpoint(tiny_model_dir(precision="int4"))
    with pytest.raises(FrozenInstanceError):
        found.layout = "npz"  # type: ignore[misc] # the point of the test
    with pytest.raises(TypeError):
        found.precision["x"] = ModulePrecision(4, 64)  # type: ignore[index] # the same


def test_files_are_described_as_they_are(tiny_model_dir: Callable[..., Path]) -> None:
    """Size, time and identity are those of the file."""
    directory = tiny_model_dir()
    (file,) = inspect_checkpoint(directory).files
    status = (directory / "weights.safetensors").stat()
    seen = (file.size_bytes, file.mtime_ns, file.device, file.inode)
    assert seen == (status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino)


def test_alignment_heads_come_from_the_config_of_ctranslate2(
    tiny_model_dir: Callable[..., Path],
) -> None:
    """CTranslate2 keeps alignment heads in the config only."""
    assert inspect_checkpoint(tiny_model_dir(layout="model.bin")).alignment_heads == ((0, 0),)


def test_alignment_heads_may_be_a_tensor(tmp_path: Path) -> None:
    """MLX files may hold alignment heads among the weights, as integers."""
    arrays = make_arrays() | {"alignment_heads": np.array([[0, 0]], np.int64)}
    found = inspect_checkpoint(write_arrays(tmp_path, arrays, make_config()))
    assert found.alignment_heads is None
    assert "alignment_heads" in {tensor.name for tensor in found.tensors}


def test_safetensors_is_preferred(tmp_path: Path) -> None:
    """Of several layouts the one that is read fastest is taken."""
    write_model(tmp_path, layout="model.bin")
    write_model(tmp_path, layout="weights.npz")
    assert inspect_checkpoint(tmp_path).layout == "npz"
    write_model(tmp_path, layout="model.safetensors")
    assert inspect_checkpoint(tmp_path).files[0].path.name == "model.safetensors"


def test_path_may_be_a_string(tiny_model_dir: Callable[..., Path]) -> None:
    """Anything that names a path will do."""
    directory = tiny_model_dir()
    assert inspect_checkpoint(str(directory)) == inspect_checkpoint(directory)


def test_config_with_a_byte_order_mark_and_more_keys(tiny_model_dir: Callable[..., Path]) -> None:
    """A byte order mark and unknown keys, as real repositories have them, are no error."""
    directory = tiny_model_dir()
    config = make_config(SMALLEST, x={"y": [None]})
    (directory / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(config).encode())
    assert inspect_checkpoint(directory).dimensions == SMALLEST


def test_shards_may_be_links_that_leave_the_folder(
    tmp_path: Path, tiny_model_dir: Callable[..., Path]
) -> None:
    """Hugging Face snapshots are links to blobs elsewhere."""
    real = tiny_model_dir(layout=INDEX)
    for path in real.iterdir():
        (tmp_path / path.name).symlink_to(path)
    assert len(inspect_checkpoint(tmp_path).files) == 2


def remove(name: str) -> Callable[[Path], object]:
    """Make a fault: a file is missing."""
    return lambda directory: (directory / name).unlink()


def write(name: str, data: bytes) -> Callable[[Path], object]:
    """Make a fault: a file has other content."""
    return lambda directory: (directory / name).write_bytes(data)


def cut(name: str, size: int) -> Callable[[Path], object]:
    """Make a fault: a file is cut to a size, or by one if it is negative."""

    def apply(directory: Path) -> None:
        path = directory / name
        os.truncate(path, size if size >= 0 else path.stat().st_size + size)

    return apply


def fifo(name: str) -> Callable[[Path], object]:
    """Make a fault: a FIFO in place of a file."""

    def apply(directory: Path) -> None:
        (directory / name).unlink()
        os.mkfifo(directory / name)

    return apply


def folder(name: str) -> Callable[[Path], object]:
    """Make a fault: a directory in place of a file."""

    def apply(directory: Path) -> None:
        (directory / name).unlink()
        (directory / name).mkdir()

    return apply


def shard(name: object, tensor: str = "decoder.ln.bias") -> Callable[[Path], object]:
    """Make a fault: the index names another shard for a tensor."""

    def apply(directory: Path) -> None:
        index = json.loads((directory / INDEX).read_text())
        index["weight_map"][tensor] = name
        (directory / INDEX).write_text(json.dumps(index))

    return apply


def copy_shard(directory: Path) -> None:
    """Make a fault: a tensor is in two shards."""
    arrays = make_arrays()
    third = "model-00003-of-00002.safetensors"
    (directory / third).write_bytes(
        safetensors_bytes({"extra": arrays["decoder.ln.bias"]} | arrays)
    )
    shard(third, "extra")(directory)


SAFE, NPZ, BIN = "weights.safetensors", "weights.npz", "model.bin"
FAULTS: list[tuple[LayoutName, str, Callable[[Path], object]]] = [
    ("weights.safetensors", "no config", remove("config.json")),
    ("weights.safetensors", "no weights", remove(SAFE)),
    ("weights.safetensors", "config is empty", write("config.json", b"")),
    ("weights.safetensors", "config is not JSON", write("config.json", b"{'a': 1}")),
    ("weights.safetensors", "config is a list", write("config.json", b"[]")),
    ("weights.safetensors", "config is deep", write("config.json", b"[" * 500_000)),
    ("weights.safetensors", "config is huge", write("config.json", b" " * 5_000_000)),
    ("weights.safetensors", "config in UTF-16", write("config.json", b"\xff\xfe{\0}\0")),
    ("weights.safetensors", "config is a FIFO", fifo("config.json")),
    ("weights.safetensors", "config is a directory", folder("config.json")),
    ("weights.safetensors", "weights are a FIFO", fifo(SAFE)),
    ("weights.safetensors", "weights are a directory", folder(SAFE)),
    ("weights.safetensors", "weights are empty", cut(SAFE, 0)),
    ("weights.safetensors", "cut in the length", cut(SAFE, 5)),
    ("weights.safetensors", "cut in the header", cut(SAFE, 100)),
    ("weights.safetensors", "cut in the data", cut(SAFE, 100_000)),
    ("weights.safetensors", "cut by one", cut(SAFE, -1)),
    ("weights.npz", "npz is empty", cut(NPZ, 0)),
    ("weights.npz", "npz cut by one", cut(NPZ, -1)),
    ("weights.npz", "npz is a FIFO", fifo(NPZ)),
    ("model.bin", "bin without config", remove("config.json")),
    ("model.bin", "bin is empty", cut(BIN, 0)),
    ("model.bin", "bin cut by one", cut(BIN, -1)),
    ("model.bin", "wrong heads", write("config.json", b'{"alignment_heads": [[9, 9]]}')),
    (INDEX, "missing shard", remove("model-00001-of-00002.safetensors")),
    (INDEX, "shard cut", cut("model-00002-of-00002.safetensors", -1)),
    (INDEX, "shard above", shard("../x.safetensors")),
    (INDEX, "shard absolute", shard("/etc/x.safetensors")),
    (INDEX, "shard below", shard("a/x.safetensors")),
    (INDEX, "shard with backslash", shard("a\\x.safetensors")),
    (INDEX, "shard with drive", shard("c:x.safetensors")),
    (INDEX, "shard with NUL", shard("x\0.safetensors")),
    (INDEX, "shard of another format", shard("x.bin")),
    (INDEX, "shard is a number", shard(1)),
    (INDEX, "shard is a list", shard(["x"])),
    (INDEX, "tensor in the other shard", shard("model-00002-of-00002.safetensors")),
    (INDEX, "tensor in no shard", shard("model-00001-of-00002.safetensors", "decoder.extra")),
    (INDEX, "tensor in two shards", copy_shard),
    (INDEX, "index is not JSON", write(INDEX, b"x")),
    (INDEX, "index without map", write(INDEX, b"{}")),
    (INDEX, "index with a list", write(INDEX, b'{"weight_map": []}')),
    (INDEX, "index is empty", write(INDEX, b'{"weight_map": {}}')),
    (INDEX, "index is a FIFO", fifo(INDEX)),
]


@pytest.mark.parametrize(
    ("layout", "fault"),
    [(layout, fault) for layout, _, fault in FAULTS],
    ids=[name for _, name, _ in FAULTS],
)
def test_broken_directory_is_refused_and_repaired(
    layout: LayoutName, fault: Callable[[Path], object], tmp_path: Path
) -> None:
    """A broken directory is a typed error; written again it is read in the same process."""
    directory = write_model(tmp_path / "model", layout=layout)
    fault(directory)
    with pytest.raises(InvalidModelFormatError) as caught:
        inspect_checkpoint(directory)
    assert str(directory) in str(caught.value)
    good = write_model(tmp_path / "again", layout=layout)
    assert inspect_checkpoint(good).dimensions == SMALLEST


@pytest.mark.parametrize("bits", [8, 3])
def test_config_with_other_bits_is_refused(bits: int, tiny_model_dir: Callable[..., Path]) -> None:
    """The config's quantization is checked against the shapes."""
    directory = tiny_model_dir(precision="int4")
    config = make_config(quantization={"bits": bits, "group_size": 64})
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidModelFormatError, match="bits"):
        inspect_checkpoint(directory)


def test_quantized_weights_without_a_word_in_the_config(
    tiny_model_dir: Callable[..., Path],
) -> None:
    """Quantized weights open without an entry in the config, by their shapes."""
    directory = tiny_model_dir(precision="int4")
    (directory / "config.json").write_text(json.dumps(make_config()))
    assert inspect_checkpoint(directory).actual is Quantization.INT4


def test_directory_without_weights_says_what_it_found(tmp_path: Path) -> None:
    """The error lists what is there and what would have worked."""
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(InvalidModelFormatError) as caught:
        inspect_checkpoint(tmp_path)
    assert "pytorch_model.bin" in caught.value.detail
    assert all(name in caught.value.advice for name in PREFERENCE)


@pytest.mark.parametrize("path", ["does/not/exist", "a\0b", ""])
def test_path_that_is_no_directory(path: str, tmp_path: Path) -> None:
    """Missing directories and impossible paths are typed errors."""
    with pytest.raises(InvalidModelFormatError):
        inspect_checkpoint(f"{tmp_path}/file/{path}" if path else tmp_path)


def test_rust_must_agree(tiny_model_dir: Callable[..., Path]) -> None:
    """If safetensors' own reader sees other tensors, neither is believed."""
    found = inspect_checkpoint(tiny_model_dir(), confirm=False)
    confirm_checkpoint(found)
    first = replace(found.tensors[0], dtype="float32")
    for tensors in ((first, *found.tensors[1:]), found.tensors[1:]):
        with pytest.raises(InvalidModelFormatError, match="differently"):
            confirm_checkpoint(replace(found, tensors=tensors))


def test_a_fingerprint_is_of_headers_and_lengths(tiny_model_dir: Callable[..., Path]) -> None:
    """Other weights under the same header have the same; a file that changed has none."""
    directory = tiny_model_dir()
    weights = directory / "weights.safetensors"
    found = inspect_checkpoint(directory, confirm=False)
    first = fingerprint_headers(found)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InvalidModelFormatError, match="changed"):
        fingerprint_headers(found)
    assert fingerprint_headers(inspect_checkpoint(directory, confirm=False)) == first
    other = inspect_checkpoint(tiny_model_dir(precision="int4"), confirm=False)
    assert fingerprint_headers(other) != first


def test_confirmation_notices_another_file(tiny_model_dir: Callable[..., Path]) -> None:
    """The file that Rust reads must be the one that was inspected."""
    directory = tiny_model_dir()
    found = inspect_checkpoint(directory, confirm=False)
    path = directory / "weights.safetensors"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    os.utime(path, ns=(0, 0))
    with pytest.raises(InvalidModelFormatError, match="changed"):
        confirm_checkpoint(found)


def checkpoint_of(sizes: list[int]) -> Checkpoint:
    """Make a checkpoint of tensors of these sizes; nothing is on disk."""
    tensors = tuple(
        TensorPlan(f"t{i}", f"t{i}", "uint8", (size,), 0, sum(sizes[:i]), size)
        for i, size in enumerate(sizes)
    )
    return Checkpoint(Path("x"), "safetensors", SMALLEST, {}, None, (), tensors)


@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=30), shares=st.integers(1, 10))
def test_split_is_a_balanced_partition(sizes: list[int], shares: int) -> None:
    """Shares are disjoint, complete, in order, not empty, and none is needlessly large."""
    whole = checkpoint_of(sizes)
    parts = whole.split(shares)
    assert 1 <= len(parts) <= shares
    assert all(part.tensors for part in parts)
    assert tuple(tensor for part in parts for tensor in part.tensors) == whole.tensors
    assert sum(part.total_bytes for part in parts) == whole.total_bytes
    assert max(part.total_bytes for part in parts) <= sum(sizes) / shares + max(sizes)


def test_split_into_equal_shares() -> None:
    """Four equal tensors in two shares are two each."""
    assert [part.total_bytes for part in checkpoint_of([5] * 4).split(2)] == [10, 10]


@pytest.mark.parametrize("shares", [0, -1])
def test_split_needs_a_share(shares: int) -> None:
    """Less than one lane is a mistake of the caller."""
    with pytest.raises(ValueError, match="shares"):
        checkpoint_of([1]).split(shares)


def test_select_by_prefix(tiny_model_dir: Callable[..., Path]) -> None:
    """Encoder and decoder are disjoint and complete."""
    found = inspect_checkpoint(tiny_model_dir())
    parts = [found.select(prefix) for prefix in ("encoder.", "decoder.")]
    assert sum(len(part.tensors) for part in parts) == len(found.tensors)
    assert all(tensor.name.startswith("encoder.") for tensor in parts[0].tensors)
