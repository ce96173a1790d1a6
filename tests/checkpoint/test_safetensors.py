"""Regular files, JSON and safetensors headers."""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastwhisper.checkpoint.files import (
    MAX_JSON_BYTES,
    RegularFile,
    list_directory,
    parse_json,
    read_json,
    shown,
)
from fastwhisper.checkpoint.plan import WIDTHS, TensorPlan
from fastwhisper.checkpoint.safetensors import MAX_HEADER_BYTES, parse_header
from fastwhisper.errors import InvalidModelFormatError
from tests.helpers.tiny_models import with_header

if TYPE_CHECKING:
    from collections.abc import Callable

WHERE = Path("somewhere")


@pytest.fixture
def parse(tmp_path: Path) -> Callable[[bytes], list[TensorPlan]]:
    """Return a function that parses bytes as a safetensors file."""
    path = tmp_path / "weights.safetensors"

    def parse(data: bytes) -> list[TensorPlan]:
        path.write_bytes(data)
        with RegularFile(path) as file:
            return parse_header(file, 3)

    return parse


def test_exact_bytes_of_one_case(parse: Callable[[bytes], list[TensorPlan]]) -> None:
    """Two tensors, an odd header length and no metadata give exactly these plans."""
    data = (
        b"\x73\x00\x00\x00\x00\x00\x00\x00"
        b'{"__metadata__":null,"b":{"dtype":"F16","shape":[3],"data_offsets":[4,10]},'
        b'"a":{"dtype":"U32","shape":[],"data_offsets":[0,4]}}'
        b"0123456789"
    )
    header = len(data) - 18
    data = struct.pack("<Q", header) + data[8:]
    assert header % 2 == 1
    assert parse(data) == [
        TensorPlan("a", "a", "uint32", (), 3, header + 8, 4),
        TensorPlan("b", "b", "float16", (3,), 3, header + 12, 6),
    ]


def entry(dtype: object = "F16", shape: object = (2,), span: object = (0, 4)) -> dict[str, object]:
    """Make an entry of a header; the default is right for four bytes of data."""
    return {"dtype": dtype, "shape": shape, "data_offsets": span}


def text(header: object) -> bytes:
    """Serialize a header."""
    return json.dumps(header).encode()


RIGHT = text({"a": entry()})
BROKEN: dict[str, bytes] = {
    "empty file": b"",
    "half a length": b"\x01\x02",
    "length alone": struct.pack("<Q", 20),
    "length beyond the file": struct.pack("<Q", 1000) + RIGHT + bytes(4),
    "length 2^63": struct.pack("<Q", 1 << 63) + RIGHT + bytes(4),
    "length 2^64-1": b"\xff" * 8 + RIGHT + bytes(4),
    "length 0": struct.pack("<Q", 0) + bytes(4),
    "not JSON": with_header(b"{nonsense" + b" " * 20, bytes(4)),
    "not an object": with_header(b"[1, 2, 3]", bytes(4)),
    "leading blank": with_header(b" " + RIGHT, bytes(4)),
    "byte order mark": with_header(b"\xef\xbb\xbf" + RIGHT, bytes(4)),
    "not UTF-8": with_header(RIGHT.replace(b"a", b"\xff"), bytes(4)),
    "UTF-16": with_header(RIGHT.decode().encode("utf-16-le"), bytes(4)),
    "two objects": with_header(RIGHT + RIGHT, bytes(4)),
    "deep nesting": with_header(b'{"a":' * 100_000, bytes(4)),
    "deep lists": with_header(b'{"a":' + b"[" * 1_000_000, bytes(4)),
    "duplicate names": with_header(RIGHT[:-1] + b"," + RIGHT[1:], bytes(4)),
    "duplicate keys": with_header(
        b'{"a":{"dtype":"F16","dtype":"F16","shape":[2],"data_offsets":[0,4]}}', bytes(4)
    ),
    "number of 5000 digits": with_header(
        RIGHT.replace(b"[2]", b"[" + b"9" * 5000 + b"]"), bytes(4)
    ),
    "truncated data": with_header(RIGHT, bytes(3)),
    "trailing bytes": with_header(RIGHT, bytes(5)),
    "no data": with_header(RIGHT, b""),
}
BROKEN |= {
    name: with_header(text(header), bytes(data))
    for name, header, data in [
        ("entry is no object", {"a": [1]}, 4),
        ("entry without dtype", {"a": {"shape": [2], "data_offsets": [0, 4]}}, 4),
        ("entry with more", {"a": entry() | {"x": 1}}, 4),
        ("unknown dtype", {"a": entry("F15")}, 4),
        ("dtype is a list", {"a": entry(["F16"])}, 4),
        ("dtype in small letters", {"a": entry("f16")}, 4),
        ("shape is no list", {"a": entry(shape=2)}, 4),
        ("shape of floats", {"a": entry(shape=[2.0])}, 4),
        ("shape of bools", {"a": entry("I32", [True])}, 4),
        ("shape of strings", {"a": entry(shape=["2"])}, 4),
        ("negative shape", {"a": entry(shape=[-1, -2])}, 4),
        ("shape that wraps 2^64", {"a": entry(shape=[1 << 32, 1 << 32, 2])}, 4),
        ("shape that wraps to right", {"a": entry(shape=[(1 << 63) + 2])}, 4),
        ("too many axes", {"a": entry(shape=[1] * 99 + [2])}, 4),
        ("shape smaller than span", {"a": entry(shape=[1])}, 4),
        ("span of one", {"a": entry(span=[0])}, 4),
        ("span of three", {"a": entry(span=[0, 4, 4])}, 4),
        ("span backwards", {"a": entry(span=[4, 0])}, 4),
        ("negative span", {"a": entry(span=[-4, 0])}, 4),
        ("span of bools", {"a": entry("U8", [1], [False, True])}, 1),
        ("span beyond the file", {"a": entry(shape=[8], span=[0, 16])}, 4),
        ("span far beyond", {"a": entry(span=[1 << 62, (1 << 62) + 4])}, 4),
        ("gap at the start", {"a": entry(span=[2, 6])}, 6),
        ("gap between", {"a": entry(), "b": entry(span=[6, 10])}, 10),
        ("overlap", {"a": entry(), "b": entry(span=[2, 6])}, 6),
        ("same span twice", {"a": entry(), "b": entry()}, 4),
        ("metadata is a list", {"__metadata__": [], "a": entry()}, 4),
        ("metadata of numbers", {"__metadata__": {"x": 1}, "a": entry()}, 4),
    ]
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=list(BROKEN))
def test_broken_header_is_refused(data: bytes, parse: Callable[[bytes], list[TensorPlan]]) -> None:
    """Whatever the format does not allow is a typed error."""
    with pytest.raises(InvalidModelFormatError):
        parse(data)


@pytest.mark.parametrize(
    "header",
    [
        {"__metadata__": {"format": "mlx"}, "a": entry()},
        {"__metadata__": {}, "a": entry()},
        {"a": entry(), "empty": entry(shape=[0], span=[4, 4])},
        {"é\n": entry()},
    ],
)
def test_odd_header_is_read(header: object, parse: Callable[[bytes], list[TensorPlan]]) -> None:
    """Metadata, tensors without elements and odd names are no error of the format."""
    assert parse(with_header(text(header) + b"   ", bytes(4)))


def test_header_above_the_cap_is_refused_unread(tmp_path: Path) -> None:
    """A header longer than any Whisper needs is refused by its length."""
    path = tmp_path / "weights.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
        file.truncate(MAX_HEADER_BYTES + 100)
    with RegularFile(path) as opened, pytest.raises(InvalidModelFormatError, match="more than"):
        parse_header(opened, 0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F16", "F32", "BOOL", "F99"]) | json_values,
        "shape": st.lists(st.integers(-1, 1 << 65), max_size=4) | json_values,
        "data_offsets": st.lists(st.integers(-1, 64), min_size=2, max_size=2) | json_values,
    }
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.dictionaries(st.text(max_size=8), entries | json_values, max_size=4).map(text)
    | st.binary(max_size=64),
    data=st.binary(max_size=64),
    cut=st.integers(0, 32),
)
def test_any_header_is_a_plan_that_covers_the_data_or_a_typed_error(
    header: bytes, data: bytes, cut: int, parse: Callable[[bytes], list[TensorPlan]]
) -> None:
    """Fuzzed headers are refused, or their spans cover the data exactly."""
    whole = with_header(header, data)
    whole = whole[: len(whole) - cut]
    try:
        plans = parse(whole)
    except InvalidModelFormatError:
        return
    assert sum(plan.size_bytes for plan in plans) == len(whole) - 8 - len(header)


TWO: dict[str, object] = {"a": entry(), "b": entry("F32", (2, 1), (4, 12))}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    at=st.integers(0, len(text(TWO)) - 1),
    character=st.sampled_from('0123456789,[]{}"- .eFIU'),
    size=st.integers(10, 14),
)
def test_any_respelled_header_keeps_to_its_shapes(
    at: int, character: str, size: int, parse: Callable[[bytes], list[TensorPlan]]
) -> None:
    """A good header with another character is refused, or every span fits its shape."""
    good = text(TWO)
    whole = with_header(good[:at] + character.encode() + good[at + 1 :], bytes(size))
    try:
        plans = parse(whole)
    except InvalidModelFormatError:
        return
    for plan in plans:
        assert plan.size_bytes == math.prod(plan.shape) * WIDTHS[plan.dtype]
    assert sum(plan.size_bytes for plan in plans) == size


@given(st.binary(max_size=200) | json_values.map(text))
def test_any_json_is_an_object_or_a_typed_error(data: bytes) -> None:
    """Fuzzed JSON gives an object or a typed error."""
    with contextlib.suppress(InvalidModelFormatError):
        assert isinstance(parse_json(data, WHERE), dict)


def test_json_with_a_byte_order_mark_is_read() -> None:
    """A byte order mark is no error."""
    assert parse_json(b'\xef\xbb\xbf{"a": 1}', WHERE) == {"a": 1}


def test_large_json_is_refused(tmp_path: Path) -> None:
    """A config of more than a megabyte is refused before it is parsed."""
    path = tmp_path / "config.json"
    path.write_bytes(b" " * (MAX_JSON_BYTES + 1))
    with pytest.raises(InvalidModelFormatError, match="more than"):
        read_json(path)


def make_fifo(path: Path) -> None:
    """Put a FIFO there."""
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    """Put a link to itself there."""
    path.symlink_to(path)


def make_secret(path: Path) -> None:
    """Put a file there that nobody may read."""
    path.write_bytes(b"{}")
    path.chmod(0)
    if os.geteuid() == 0:
        pytest.skip("root reads everything")


@pytest.mark.parametrize(
    "make",
    [
        Path.mkdir,
        make_fifo,
        make_loop,
        make_secret,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("nowhere"),
        lambda _: None,
    ],
    ids=["directory", "FIFO", "loop", "no permission", "device", "dangling", "missing"],
)
def test_what_is_no_readable_regular_file_is_refused(
    make: Callable[[Path], object], tmp_path: Path
) -> None:
    """A directory, FIFO, device, loop, secret or missing file is a typed error, at once."""
    path = tmp_path / "file"
    make(path)
    with pytest.raises(InvalidModelFormatError) as caught:
        RegularFile(path)
    assert caught.value.path == path


def test_refused_file_leaves_no_descriptor(tmp_path: Path) -> None:
    """A directory that was opened and refused is closed again."""
    before = os.listdir("/dev/fd")  # noqa: PTH208 - descriptors, no files
    for _ in range(3):
        with pytest.raises(InvalidModelFormatError):
            RegularFile(tmp_path)
    assert os.listdir("/dev/fd") == before  # noqa: PTH208 - descriptors, no files


@pytest.mark.parametrize("path", ["a\0b", "\0"])
def test_path_with_nul_is_refused(path: str) -> None:
    """A path that the system can't take says so."""
    with pytest.raises(InvalidModelFormatError):
        RegularFile(Path(path))
    with pytest.raises(InvalidModelFormatError):
        list_directory(Path(path))


def test_read_beyond_the_end_is_refused(tmp_path: Path) -> None:
    """Filling a buffer from fewer bytes is an error, not zeros."""
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    with RegularFile(path) as file, pytest.raises(InvalidModelFormatError, match="ends before"):
        file.read_into(bytearray(6), 0)


def test_replaced_file_is_noticed(tmp_path: Path) -> None:
    """The open file is still the one that was seen; the one at the path is not."""
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_bytes(b"12345")
    other.write_bytes(b"12345")
    with RegularFile(path) as file:
        other.replace(path)
        file.must_be(file.seen)
        with pytest.raises(InvalidModelFormatError, match="changed"):
            file.must_be(file.seen, at_path=True)


def test_rewritten_file_is_noticed(tmp_path: Path) -> None:
    """Writing in place changes the time of the file."""
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    os.utime(path, ns=(0, 0))
    with RegularFile(path) as file:
        path.write_bytes(b"54321")
        with pytest.raises(InvalidModelFormatError, match="changed"):
            file.must_be(file.seen)


def test_shown_is_short_and_printable() -> None:
    """Names from hostile files can't flood or forge a message."""
    assert shown("a" * 10_000) == "a" * 120 + "…"
    assert shown("a\nb\x1b") == r"'a\nb\x1b'"


def test_directory_must_be_one(tmp_path: Path) -> None:
    """A file in place of a directory is a typed error."""
    path = tmp_path / "file"
    path.write_bytes(b"")
    with pytest.raises(InvalidModelFormatError):
        list_directory(path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_path_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    """A name of arbitrary bytes is opened like any other."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.json"))
    path.write_bytes(b'{"a": 1}')
    assert read_json(path) == {"a": 1}
