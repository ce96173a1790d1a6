"""Reading weights."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import mlx.core as mx
import numpy as np
import pytest

from fastwhisper.checkpoint import read as shards
from fastwhisper.checkpoint.inspection import inspect_checkpoint
from fastwhisper.checkpoint.read import read_shards
from fastwhisper.engine.blocks import allocate
from fastwhisper.errors import InvalidModelFormatError
from tests.helpers.interpreter import run_python
from tests.helpers.tiny_models import (
    LayoutName,
    file_name,
    make_arrays,
    make_config,
    npz_bytes,
    safetensors_bytes,
    write_arrays,
    write_model,
)
from tests.helpers.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastwhisper.checkpoint.plan import Checkpoint

LAYOUTS = get_args(LayoutName)
FILES = [name for name in LAYOUTS if not name.endswith("index.json")]
Arrays = dict[str, "np.ndarray[Any, np.dtype[Any]]"]


@pytest.fixture(params=["mlx", "blocks"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Read with MLX's own reader, and into blocks, which only a CPU does."""
    if request.param == "blocks":
        if mx.default_device() != mx.cpu or sys.platform != "linux":
            pytest.skip("blocks are for a Linux CPU")
        with_blocks = partial(read_shards, allocate=allocate)
        monkeypatch.setattr(sys.modules[__name__], "read_shards", with_blocks)
    return str(request.param)


def read(checkpoint: Checkpoint, prefix: str = "") -> dict[str, mx.array]:
    """Read everything."""
    found: dict[str, mx.array] = {}
    for group in read_shards(checkpoint, prefix=prefix):
        assert not found.keys() & group.keys()
        found |= group
    return found


def same(found: dict[str, mx.array], wanted: Arrays) -> None:
    """Check for equal names, dtypes, shapes and values."""
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert np.array(found[name]).dtype == array.dtype
        np.testing.assert_array_equal(np.array(found[name]), array)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_layout_gives_the_arrays(
    layout: LayoutName, dtype: str, tiny_model_dir: Callable[..., Path]
) -> None:
    """Names, dtypes and values are those that were written."""
    directory = tiny_model_dir(layout=layout, dtype=dtype, seed=5)
    same(read(inspect_checkpoint(directory)), make_arrays(dtype=dtype, seed=5))


@pytest.mark.parametrize("layout", ["weights.safetensors", "weights.npz", "deflated weights.npz"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_packed_weights_are_not_touched(
    layout: LayoutName, precision: str, tiny_model_dir: Callable[..., Path]
) -> None:
    """Quantized weights, scales and biases are read as they are."""
    directory = tiny_model_dir(layout=layout, precision=precision)
    same(read(inspect_checkpoint(directory)), make_arrays(precision=precision))


def test_bfloat16_of_safetensors(tmp_path: Path) -> None:
    """Bfloat16 stays bfloat16."""
    arrays = make_arrays(dtype="float32")
    halves = {
        name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in arrays.items()
    }
    directory = write_arrays(tmp_path, arrays, make_config())
    codes = dict.fromkeys(halves, "BF16")
    stored = {name: half.view(np.float16) for name, half in halves.items()}
    (directory / "weights.safetensors").write_bytes(safetensors_bytes(stored, codes=codes))
    found = read(inspect_checkpoint(directory))
    for name, half in halves.items():
        assert found[name].dtype == mx.bfloat16
        np.testing.assert_array_equal(np.array(found[name].view(mx.uint16)), half)


def test_npz_of_mlx_with_bfloat16(tmp_path: Path) -> None:
    """What `mx.savez` writes is read back, bfloat16 included."""
    arrays = {name: mx.array(a).astype(mx.bfloat16) for name, a in make_arrays().items()}
    write_arrays(tmp_path, make_arrays(), make_config(), layout="weights.npz")
    mx.savez(str(tmp_path / "weights.npz"), **arrays)
    found = read(inspect_checkpoint(tmp_path))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == mx.bfloat16
        assert mx.array_equal(found[name], array).item()


def test_fortran_order_of_npz(tmp_path: Path) -> None:
    """Arrays in Fortran order are transposed back."""
    arrays = {name: np.asfortranarray(array) for name, array in make_arrays().items()}
    write_arrays(tmp_path, arrays, make_config(), layout="weights.npz")
    same(read(inspect_checkpoint(tmp_path)), make_arrays())


@pytest.mark.parametrize("layout", ["weights.safetensors", "weights.npz", "model.bin"])
def test_prefix_selects(layout: LayoutName, tiny_model_dir: Callable[..., Path]) -> None:
    """Only names that begin with the prefix are read; the names stay full."""
    found = inspect_checkpoint(tiny_model_dir(layout=layout))
    wanted = {n: a for n, a in make_arrays().items() if n.startswith("decoder.")}
    same(read(found, "decoder."), wanted)
    assert read(found, "nothing.") == {}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lanes_together_read_everything(
    layout: LayoutName, tiny_model_dir: Callable[..., Path]
) -> None:
    """Shares read in threads are usable here, and complete."""
    found = inspect_checkpoint(tiny_model_dir(layout=layout))
    with ThreadPoolExecutor(3) as pool:
        parts = list(pool.map(read, found.split(3)))
    assert sum(len(part) for part in parts) == len(found.tensors)
    same({name: array for part in parts for name, array in part.items()}, make_arrays())


def test_groups_are_bounded(
    tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group has at most so many bytes, unless a single tensor has more."""
    monkeypatch.setattr(shards, "GROUP_BYTES", 50_000)
    groups = list(read_shards(inspect_checkpoint(tiny_model_dir())))
    assert len(groups) > 3
    for group in groups:
        assert len(group) == 1 or sum(array.nbytes for array in group.values()) <= 50_000


@pytest.mark.parametrize("layout", FILES)
def test_nothing_lazy_is_yielded(layout: LayoutName, tiny_model_dir: Callable[..., Path]) -> None:
    """Arrays read in a thread that has ended can be computed with here."""
    found = inspect_checkpoint(tiny_model_dir(layout=layout))
    arrays: dict[str, mx.array] = {}
    thread = threading.Thread(target=lambda: arrays.update(read(found)))
    thread.start()
    thread.join()
    mx.eval([array + 1 for array in arrays.values()])


def groups_of(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Start to read in small groups, and take the first."""
    monkeypatch.setattr(shards, "GROUP_BYTES", 50_000)
    groups = read_shards(inspect_checkpoint(directory))
    next(groups)
    return groups


def overwrite(path: Path) -> None:
    """Overwrite in place with other bytes of the same length."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(os.urandom(1000))
    os.utime(path, ns=(1, 1))


def replace_file(path: Path) -> None:
    """Put another file in its place."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def truncate(path: Path) -> None:
    """Cut it in half."""
    os.truncate(path, path.stat().st_size // 2)


def grow(path: Path) -> None:
    """Append a byte."""
    with path.open("ab") as file:
        file.write(b"\0")


def delete(path: Path) -> None:
    """Delete it."""
    path.unlink()


def to_fifo(path: Path) -> None:
    """Put a FIFO there."""
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("layout", FILES)
@pytest.mark.parametrize("change", [overwrite, replace_file, truncate, grow, delete, to_fifo])
def test_change_after_the_inspection_is_noticed(
    layout: LayoutName, change: Callable[[Path], None], tiny_model_dir: Callable[..., Path]
) -> None:
    """A file that is no longer the one that was inspected is refused before it is read."""
    found = inspect_checkpoint(tiny_model_dir(layout=layout))
    os.utime(found.files[0].path, ns=(0, 0))
    found = inspect_checkpoint(found.path)
    change(found.files[0].path)
    with pytest.raises(InvalidModelFormatError):
        read(found)


@pytest.mark.parametrize("layout", FILES)
@pytest.mark.parametrize("change", [overwrite, truncate, grow])
def test_change_between_groups_is_noticed(
    layout: LayoutName,
    change: Callable[[Path], None],
    tiny_model_dir: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file that changes in place while it is read fails the load."""
    directory = tiny_model_dir(layout=layout)
    groups = groups_of(directory, monkeypatch)
    change(directory / file_name(layout))
    with pytest.raises(InvalidModelFormatError):
        next(groups)
    with pytest.raises(StopIteration):
        next(groups)


@pytest.mark.parametrize("layout", FILES)
@pytest.mark.parametrize("change", [replace_file, delete])
def test_open_file_is_read_to_its_end(
    layout: LayoutName,
    change: Callable[[Path], None],
    tiny_model_dir: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file that is replaced or deleted while it is open is still the old one, whole."""
    directory = tiny_model_dir(layout=layout)
    monkeypatch.setattr(shards, "GROUP_BYTES", 50_000)
    found: dict[str, mx.array] = {}
    for number, group in enumerate(read_shards(inspect_checkpoint(directory))):
        if not number:
            change(directory / file_name(layout))
        found |= group
    same(found, make_arrays())


def test_error_of_mlx_is_typed_and_drops_the_arrays(
    tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed read MLX takes the arrays for evaluated, so none may be reachable."""
    found = inspect_checkpoint(tiny_model_dir())
    seen: list[list[mx.array]] = []

    def fail(arrays: list[mx.array]) -> None:
        seen.append(arrays)
        raise RuntimeError("[read] Unable to read 1 bytes from file.")

    monkeypatch.setattr(mx, "eval", fail)
    with pytest.raises(InvalidModelFormatError, match="Unable to read") as caught:
        read(found)
    frames = []
    trace = caught.value.__traceback__
    while trace:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    held = [value for frame in frames for value in frame.f_locals.values()]
    assert not [value for value in held if isinstance(value, dict) and value and _arrays(value)]


def _arrays(value: dict[Any, Any]) -> bool:
    return any(isinstance(item, mx.array) for item in value.values())


def test_file_with_another_header_is_noticed(way: str, tiny_model_dir: Callable[..., Path]) -> None:
    """A plan that differs from what MLX finds in the file is refused."""
    if way == "blocks":
        pytest.skip("MLX does not look at the file")
    found = inspect_checkpoint(tiny_model_dir())
    wrong = replace(found.tensors[3], shape=(1, 2, 3))
    with pytest.raises(InvalidModelFormatError, match="differently"):
        read(replace(found, tensors=(wrong,)))


@pytest.mark.parametrize("layout", ["weights.npz", "deflated weights.npz"])
def test_flipped_bit_of_npz_is_noticed(layout: LayoutName, tmp_path: Path) -> None:
    """A flipped bit is noticed by the checksum of the zip."""
    directory = write_model(tmp_path, layout=layout)
    path = directory / "weights.npz"
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(InvalidModelFormatError):
        read(inspect_checkpoint(directory))


@pytest.mark.parametrize("extra", [-2, 2])
def test_deflated_member_of_another_length_is_noticed(extra: int, tmp_path: Path) -> None:
    """A stream that holds less or more than the directory says is refused."""
    arrays = make_arrays()
    name = "decoder.token_embedding.weight"
    longer = arrays | {name: np.zeros((96 + extra, 64), np.float16)}
    right, wrong = npz_bytes(arrays, deflate=True), npz_bytes(longer, deflate=True)
    assert right != wrong
    directory = write_arrays(tmp_path, arrays, make_config(), layout="deflated weights.npz")
    (directory / "weights.npz").write_bytes(wrong)
    with pytest.raises(InvalidModelFormatError):
        inspect_checkpoint(directory)
    plans = [
        replace(tensor, shape=(96, 64), size_bytes=96 * 64 * 2) if tensor.name == name else tensor
        for tensor in _plan(directory)
    ]
    found = inspect_checkpoint(write_arrays(tmp_path / "b", arrays, make_config()))
    file = _seen(directory)
    lying = replace(found, layout="npz", files=(file,), tensors=tuple(plans))
    with pytest.raises(InvalidModelFormatError, match="inflate"):
        read(lying, name)


def _plan(directory: Path) -> Any:
    from fastwhisper.checkpoint.npz import plan_npz  # noqa: PLC0415 - for this helper only

    data = (directory / "weights.npz").read_bytes()
    path = directory / "weights.npz"
    return plan_npz(lambda at, size: data[at : at + size], len(data), path, 0)


def _seen(directory: Path) -> Any:
    from fastwhisper.checkpoint.files import RegularFile  # noqa: PLC0415 - for this helper only

    with RegularFile(directory / "weights.npz") as file:
        return file.seen


@pytest.mark.parametrize("layout", FILES)
def test_reading_leaves_no_descriptor(
    layout: LayoutName, tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that ends, and one that is given up, close their files."""
    directory = tiny_model_dir(layout=layout)
    read(inspect_checkpoint(directory))
    before = {*os.listdir("/dev/fd")}  # noqa: PTH208 - descriptors, no files
    read(inspect_checkpoint(directory))
    groups_of(directory, monkeypatch).close()
    # MLX lets go of a file in a thread of its own, just after the last of its arrays is there.
    wait_until(lambda: {*os.listdir("/dev/fd")} <= before)  # noqa: PTH208 - descriptors, no files


@pytest.mark.parametrize("layout", FILES)
def test_reading_works_with_stdin_closed(
    layout: LayoutName, tiny_model_dir: Callable[..., Path]
) -> None:
    """MLX's open fails with descriptor 0, so we never leave it free, nor hold it for a while."""
    code = (
        "import os, sys\n"
        "os.close(0)\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from fastwhisper.checkpoint.inspection import inspect_checkpoint\n"
        "from fastwhisper.checkpoint.read import read_shards\n"
        "found = inspect_checkpoint(sys.argv[1])\n"
        "def read(share): return sum(map(len, read_shards(share)))\n"
        "with ThreadPoolExecutor(4) as pool:\n"
        "    counts = [sum(pool.map(read, found.split(4))) for _ in range(20)]\n"
        "sys.exit(set(counts) != {len(found.tensors)})\n"
    )
    directory = tiny_model_dir(layout=layout)
    run_python("-c", code, directory)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("layout", FILES)
def test_reading_works_from_a_path_that_is_not_utf8(layout: LayoutName, tmp_path: Path) -> None:
    """MLX takes no such path, so it gets the path of the open descriptor."""
    directory = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    same(read(inspect_checkpoint(write_model(directory, layout=layout))), make_arrays())
