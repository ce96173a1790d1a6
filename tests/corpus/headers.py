"""Cases: safetensors files whose headers and lengths lie."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any, Final

from tests.corpus.case import OPENS, Case, fault, put_bytes, truncate
from tests.helpers.tiny_models import SMALLEST, make_arrays, safetensors_bytes, with_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["header_cases"]

WEIGHTS: Final = "weights.safetensors"
TERABYTE: Final = 1 << 40
_Header = dict[str, Any]


def whole() -> tuple[_Header, bytes]:
    """Take a good file apart: its header, parsed, and its data."""
    raw = safetensors_bytes(make_arrays())
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def altered(
    change: Callable[[_Header], object], *, pad: bytes = b"", data: bytes = b""
) -> Callable[[Path], None]:
    """Build a good model whose header is changed; `data` comes after its own."""

    def make() -> bytes:
        header, good = whole()
        change(header)
        return with_header(json.dumps(header).encode() + pad, good + data)

    return fault(put_bytes(WEIGHTS, make))


def respelled(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Build a good model whose header's text is changed."""

    def make() -> bytes:
        header, data = whole()
        return with_header(change(json.dumps(header).encode()), data)

    return fault(put_bytes(WEIGHTS, make))


def reentry(**changes: object) -> Callable[[_Header], object]:
    """Make a change: fields of one tensor's entry."""
    return lambda header: header["decoder.ln.bias"].update(changes)


def with_length(length: int) -> Callable[[Path], None]:
    """Build a good model whose header has another length than it says."""

    def make() -> bytes:
        return struct.pack("<Q", length) + safetensors_bytes(make_arrays())[8:]

    return fault(put_bytes(WEIGHTS, make))


def _shift(name: str, by: int) -> Callable[[_Header], object]:
    """Make a change: a tensor lies elsewhere."""

    def change(header: _Header) -> None:
        header[name]["data_offsets"] = [at + by for at in header[name]["data_offsets"]]

    return change


def _swap(header: _Header) -> None:
    one, other = header["decoder.ln.bias"], header["decoder.ln.weight"]
    one["data_offsets"] = list(other["data_offsets"])


def _terabyte(directory: Path) -> None:
    """Make the token embedding a terabyte, and the file as long: no byte of it is stored."""
    header, data = whole()
    name = "decoder.token_embedding.weight"
    header[name]["shape"] = [TERABYTE // 2 // SMALLEST.n_text_state, SMALLEST.n_text_state]
    header[name]["data_offsets"] = [len(data), len(data) + TERABYTE]
    raw = with_header(json.dumps(header).encode(), data)
    path = directory / WEIGHTS
    path.write_bytes(raw)
    truncate(WEIGHTS, len(raw) + TERABYTE)(directory)


def header_cases() -> Iterator[Case]:
    """List the cases."""
    for name, size in (
        ("empty", 0),
        ("cut in the length", 5),
        ("cut after the length", 8),
        ("cut in the header", 100),
        ("cut in the first tensor", 10_000),
        ("cut in the data", 150_000),
        ("cut by one byte", -1),
    ):
        yield Case(f"safetensors {name}", fault(truncate(WEIGHTS, size)))
    for length in (0, 1, 50, 1 << 20, 1 << 31, 1 << 62, 1 << 63, (1 << 64) - 8, (1 << 64) - 1):
        yield Case(f"safetensors header of {length} bytes", with_length(length))
    yield Case("safetensors with bytes after its end", altered(lambda h: h, data=b"\0" * 8))
    yield Case("safetensors with one byte after its end", altered(lambda h: h, data=b"\0"))
    yield from _texts()
    yield from _entries()
    yield from _odd()
    yield Case("safetensors of a terabyte", fault(_terabyte))


def _texts() -> Iterator[Case]:
    for name, text in (
        ("not JSON", lambda raw: raw.replace(b":", b"=")),
        ("half of it", lambda raw: raw[: len(raw) // 2]),
        ("not UTF-8", lambda raw: raw.replace(b"decoder.ln.bias", b"decoder.ln.bi\xffs")),
        ("a list", lambda _: b"[1, 2, 3]"),
        ("null", lambda _: b"null"),
        ("of zeros", lambda raw: bytes(len(raw))),
        ("empty object", lambda _: b"{}"),
        ("deep lists", lambda raw: b'{"x":' + b"[" * 500_000 + raw),
        ("deep objects", lambda _: b'{"x":' * 200_000),
        ("deep closed lists", lambda raw: raw[:-1] + b',"x":' + b"[" * 9999 + b"]" * 9999 + b"}"),
        ("20 MB of brackets", lambda _: b"[" * 20_000_000),
        ("a name twice", lambda raw: raw[:-1] + b"," + raw[1:]),
        ("a dtype twice", lambda raw: raw.replace(b'{"dtype"', b'{"dtype": "F32", "dtype"', 2)),
        ("number of 5000 digits", lambda raw: raw.replace(b"[64]", b"[" + b"9" * 5000 + b"]", 1)),
        ("NaN as a shape", lambda raw: raw.replace(b"[64]", b"[NaN]", 1)),
        ("UTF-16", lambda raw: raw.decode().encode("utf-16-le")),
        ("control characters", lambda raw: raw.replace(b"decoder.ln.bias", b"decoder.\n\x1b[2J")),
    ):
        yield Case(f"safetensors header is {name}", respelled(text))


def _entries() -> Iterator[Case]:
    changes: list[tuple[str, Callable[[_Header], object]]] = [
        ("overlapping spans", _shift("decoder.ln.bias", -16)),
        ("spans of two tensors swapped for one", _swap),
        ("a gap", _shift("encoder.ln_post.bias", 2)),
        ("span beyond the file", _shift("decoder.ln.bias", 1 << 30)),
        ("span far beyond the file", _shift("decoder.ln.bias", 1 << 62)),
        ("span that wraps 2^64", _shift("decoder.ln.bias", (1 << 64) - 128)),
        ("span into the header", _shift("encoder.conv1.weight", -64)),
        ("span backwards", reentry(data_offsets=[128, 0])),
        ("span of one number", reentry(data_offsets=[0])),
        ("span of three", reentry(data_offsets=[0, 128, 128])),
        ("span of strings", reentry(data_offsets=["0", "128"])),
        ("span of floats", reentry(data_offsets=[0.0, 128.0])),
        ("no span", lambda header: header["decoder.ln.bias"].pop("data_offsets")),
        ("shape too small for the span", reentry(shape=[63])),
        ("shape too large for the span", reentry(shape=[65])),
        ("shape of a million axes", reentry(shape=[1] * 1_000_000)),
        ("shape that wraps 2^64 to 0", reentry(shape=[1 << 32, 1 << 32])),
        ("shape that wraps to right", reentry(shape=[(1 << 63) + 64])),
        ("shape of 2^31", reentry(shape=[1 << 31])),
        ("negative shape", reentry(shape=[-64])),
        ("shape of two negatives", reentry(shape=[-8, -8])),
        ("shape of floats", reentry(shape=[64.0])),
        ("shape of strings", reentry(shape=["64"])),
        ("shape is null", reentry(shape=None)),
        ("no shape", lambda header: header["decoder.ln.bias"].pop("shape")),
        ("unknown dtype", reentry(dtype="F15")),
        ("dtype of another width", reentry(dtype="F64")),
        ("dtype of another kind", reentry(dtype="I16")),
        ("dtype in small letters", reentry(dtype="f16")),
        ("dtype is a number", reentry(dtype=16)),
        ("dtype of 4 bits", reentry(dtype="F4", shape=[256])),
        ("no dtype", lambda header: header["decoder.ln.bias"].pop("dtype")),
        ("entry is a list", lambda header: header.update({"decoder.ln.bias": [1]})),
        ("entry is null", lambda header: header.update({"decoder.ln.bias": None})),
        ("metadata is a list", lambda header: header.update(__metadata__=[1])),
        ("metadata of numbers", lambda header: header.update(__metadata__={"a": 1})),
    ]
    for name, change in changes:
        yield Case(f"safetensors: {name}", altered(change), about=("decoder.ln.bias",))


def _odd() -> Iterator[Case]:
    yield Case("safetensors with null for metadata", fault(lambda directory: directory), OPENS)
    for blanks in range(1, 4):
        yield Case(
            f"safetensors header with {blanks} blanks",
            altered(lambda h: h, pad=b" " * blanks),
            OPENS,
        )
    yield Case("safetensors without metadata", altered(lambda h: h.pop("__metadata__")), OPENS)
    yield Case(
        "safetensors with metadata",
        altered(lambda h: h.update(__metadata__={"format": "mlx"})),
        OPENS,
    )
    yield Case(
        "safetensors with names out of order",
        altered(lambda h: [h.update({name: h.pop(name)}) for name in sorted(h)]),
        OPENS,
    )
