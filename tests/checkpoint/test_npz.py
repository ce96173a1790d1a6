"""NumPy's npz."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastwhisper.checkpoint.npz import plan_npz
from fastwhisper.errors import InvalidModelFormatError
from tests.helpers.tiny_models import npz_bytes

if TYPE_CHECKING:
    from fastwhisper.checkpoint.plan import TensorPlan

WHERE = Path("weights.npz")


def plan(data: bytes) -> list[TensorPlan]:
    """Plan from memory."""
    return plan_npz(lambda at, size: data[at : at + size], len(data), WHERE, 0)


def member(array: Any, *, version: tuple[int, int] = (1, 0)) -> bytes:
    """Serialize one array."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """Zip any bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return file.getvalue()


def head(text: str, data: bytes = b"", *, version: int = 1) -> bytes:
    """Make an npy file with any header."""
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(text)) + text.encode() + data


ARRAYS: dict[str, np.ndarray[Any, np.dtype[Any]]] = {
    "a.weight": np.arange(6, dtype=np.float16).reshape(2, 3),
    "b": np.asfortranarray(np.arange(24, dtype=np.uint32).reshape(2, 3, 4)),
    "c": np.array(5, dtype=np.int64),
    "d": np.arange(4, dtype=np.float32),
}
STORED = npz_bytes(ARRAYS, deflate=False)
DEFLATED = npz_bytes(ARRAYS, deflate=True)


@pytest.mark.parametrize("data", [STORED, DEFLATED], ids=["stored", "deflated"])
def test_every_array_is_found_by_its_bytes(data: bytes) -> None:
    """Offsets, shapes, dtypes and Fortran order give the arrays back."""
    plans = plan(data)
    assert {tensor.name for tensor in plans} == set(ARRAYS)
    for tensor in plans:
        raw = data[tensor.offset_bytes :]
        if tensor.packed_bytes is not None:
            raw = zlib.decompressobj(-15).decompress(raw[: tensor.packed_bytes])
        span = raw[tensor.head_bytes : tensor.head_bytes + tensor.size_bytes]
        array = np.frombuffer(span, tensor.dtype).reshape(tensor.stored_shape)
        if tensor.transpose:
            array = array.transpose(tensor.transpose)
        np.testing.assert_array_equal(array, ARRAYS[tensor.name])
        assert tensor.crc32 is not None
        assert zlib.crc32(span, tensor.crc32[0]) == tensor.crc32[1]


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_versions_of_the_header_are_read(version: tuple[int, int]) -> None:
    """All three versions of NumPy's header are read."""
    (tensor,) = plan(archive({"a.npy": member(ARRAYS["d"], version=version)}))
    assert (tensor.dtype, tensor.shape) == ("float32", (4,))


def test_bfloat16_as_mlx_writes_it() -> None:
    """An array of type V2 is bfloat16, as MLX writes it."""
    text = "{'descr': '<V2', 'fortran_order': True, 'shape': (3, )}  \n"
    (tensor,) = plan(archive({"a.npy": head(text, bytes(6))}))
    assert (tensor.dtype, tensor.shape, tensor.size_bytes) == ("bfloat16", (3,), 6)


RIGHT = "{'descr': '<f2', 'fortran_order': False, 'shape': (2,), }"
BROKEN: dict[str, bytes] = {
    "empty": b"",
    "no zip": b"\0" * 100,
    "no members": archive({}),
    "truncated directory": STORED[:-10],
    "truncated data": STORED[200:],
    "not an npy": archive({"a.npy": b"hello"}),
    "empty member": archive({"a.npy": b""}),
    "another file": archive({"a.txt": b"hello"}),
    "bzip2": archive({"a.npy": member(ARRAYS["d"])}, zipfile.ZIP_BZIP2),
    "header alone": archive({"a.npy": head(RIGHT)}),
    "data too short": archive({"a.npy": head(RIGHT, bytes(3))}),
    "data too long": archive({"a.npy": head(RIGHT, bytes(5))}),
    "header longer than the member": archive({"a.npy": head(RIGHT, bytes(4))[:30]}),
    "unknown version": archive({"a.npy": head(RIGHT, bytes(4), version=9)}),
}
BROKEN |= {
    f"header {text[:60]}": archive({"a.npy": head(text, bytes(4))})
    for text in (
        "",
        "{}",
        "[" * 200,
        "{" * 2000,
        RIGHT.replace("<f2", "|O"),
        RIGHT.replace("<f2", ">f2"),
        RIGHT.replace("<f2", "<c8"),
        RIGHT.replace("'<f2'", "[('a', '<f2')]"),
        RIGHT.replace("False", "0"),
        RIGHT.replace("(2,)", "(-2,)"),
        RIGHT.replace("(2,)", "[2]"),
        RIGHT.replace("(2,)", f"({2**64 + 2},)"),
        RIGHT.replace("(2,)", f"({2**32},{2**32},2)"),
        RIGHT.replace("(2,)", "(1,1,1,1,1,1,1,1,2)"),
        RIGHT.replace("(2,)", "(" + "9" * 3000 + ",)"),
        RIGHT.replace("(2,)", "(" + "1 " * 1500 + "!"),
        RIGHT.replace("}", "'x': 1}"),
        RIGHT.replace("}", "'shape': (2,)}"),
        RIGHT.replace("'shape': (2,), ", ""),
        RIGHT.replace("}", "} import os"),
        "__import__('os')",
    )
}


def lying(offset: int, raw: bytes) -> bytes:
    """Change the directory's record of the only member."""
    data = archive({"a.npy": member(ARRAYS["d"])})
    at = data.index(b"PK\1\2") + offset
    return data[:at] + raw + data[at + len(raw) :]


BROKEN |= {
    "lying compressed size": lying(20, struct.pack("<I", 1 << 30)),
    "lying size": lying(24, struct.pack("<I", 1 << 30)),
    "lying sizes": lying(20, struct.pack("<II", 1 << 30, 1 << 30)),
    "lying offset": lying(42, struct.pack("<I", 5)),
    "offset beyond": lying(42, struct.pack("<I", 1 << 31)),
    "encrypted": lying(8, struct.pack("<H", 1)),
    "deflate that is none": lying(10, struct.pack("<H", 8)),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=list(BROKEN))
def test_broken_archive_is_refused(data: bytes) -> None:
    """Nothing is unpickled or evaluated, and no length is believed."""
    with pytest.raises(InvalidModelFormatError):
        plan(data)


def test_same_name_twice_is_refused() -> None:
    """Two members of one name are ambiguous."""
    data = archive({"a.npy": member(ARRAYS["d"]), "b.npy": member(ARRAYS["d"])})
    with pytest.raises(InvalidModelFormatError, match="twice"):
        plan(data.replace(b"b.npy", b"a.npy"))


def test_bomb_is_refused_by_its_ratio() -> None:
    """A member that claims more than deflate can shrink is refused unread."""
    data = archive({"a.npy": member(np.zeros(1 << 20, np.float32))}, zipfile.ZIP_DEFLATED)
    at = data.index(b"PK\1\2") + 24
    with pytest.raises(InvalidModelFormatError):
        plan(data[:at] + struct.pack("<I", 0xFFFFFFF0) + data[at + 4 :])


@settings(max_examples=300)
@given(
    whole=st.sampled_from([STORED, DEFLATED]),
    at=st.integers(0, len(STORED)),
    raw=st.binary(min_size=1, max_size=8),
)
def test_patched_archive_keeps_within_its_bytes(whole: bytes, at: int, raw: bytes) -> None:
    """Whatever bytes are overwritten: a typed error, or spans that lie in the file."""
    data = (whole[:at] + raw + whole[at + len(raw) :])[: len(whole)]
    try:
        plans = plan(data)
    except InvalidModelFormatError:
        return
    for tensor in plans:
        stored = tensor.size_bytes if tensor.packed_bytes is None else tensor.packed_bytes
        assert 0 <= tensor.offset_bytes <= tensor.offset_bytes + stored <= len(data)


@given(st.text(alphabet="{}'():, <f2descrshapefortran_orderTrueFalse09", max_size=80))
def test_any_array_header_is_read_or_refused(text: str) -> None:
    """Fuzzed headers of arrays."""
    try:
        plan(archive({"a.npy": head(text, bytes(4))}))
    except InvalidModelFormatError:
        return
