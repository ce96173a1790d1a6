"""Cases: npz archives and CTranslate2 files that lie, and every good layout."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np

from tests.corpus.case import (
    INVALID,
    OPENS,
    Case,
    change_config,
    fault,
    instead,
    put_bytes,
    truncate,
    write_config,
)
from tests.helpers.tiny_models import (
    SMALLEST,
    LayoutName,
    ctranslate2_bytes,
    ctranslate2_variables,
    huggingface_arrays,
    make_arrays,
    npz_bytes,
    safetensors_bytes,
    write_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.helpers.tiny_models import Arrays

__all__ = ["format_cases"]

NPZ: Final = "weights.npz"
BIN: Final = "model.bin"
BIAS: Final = "decoder.ln.bias"
_CENTRAL: Final = b"PK\x01\x02"
_END: Final = b"PK\x05\x06"


def npz(change: Callable[[Arrays], object], *, deflate: bool = False) -> Callable[[Path], None]:
    """Build an npz of changed arrays."""

    def make() -> bytes:
        arrays = make_arrays()
        change(arrays)
        return npz_bytes(arrays, deflate=deflate)

    return fault(put_bytes(NPZ, make), layout="weights.npz")


def members(change: Callable[[dict[str, bytes]], object], how: int = 0) -> Callable[[Path], None]:
    """Build an npz whose members are changed as bytes."""

    def make() -> bytes:
        with zipfile.ZipFile(io.BytesIO(npz_bytes(make_arrays(), deflate=False))) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        change(parts)
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", how) as archive:
            for name, data in parts.items():
                archive.writestr(name, data)
        return file.getvalue()

    return fault(put_bytes(NPZ, make), layout="weights.npz")


def patched(marker: bytes, at: int, raw: bytes) -> Callable[[Path], None]:
    """Build an npz, and overwrite bytes after the first marker."""

    def make() -> bytes:
        whole = bytearray(npz_bytes(make_arrays(), deflate=False))
        begin = whole.index(marker) + at
        whole[begin : begin + len(raw)] = raw
        return bytes(whole)

    return fault(put_bytes(NPZ, make), layout="weights.npz")


def _head(text: str) -> Callable[[dict[str, bytes]], object]:
    """Make a change: the header of one array."""

    def change(parts: dict[str, bytes]) -> None:
        data = parts[f"{BIAS}.npy"][-128:]
        raw = text.encode()
        head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw
        parts[f"{BIAS}.npy"] = head + data

    return change


def _flip(directory: Path) -> None:
    path = directory / NPZ
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)


def _objects(parts: dict[str, bytes]) -> None:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.array([print], dtype=object), allow_pickle=True)
    parts[f"{BIAS}.npy"] = file.getvalue()


def _npz_cases() -> Iterator[Case]:
    for name, size in (("empty", 0), ("cut in half", 120_000), ("cut by one byte", -1)):
        yield Case(f"npz {name}", fault(truncate(NPZ, size), layout="weights.npz"))
    huge = b"\xff\xff\xff\xff"
    for name, at, raw in (
        ("size in the directory of 4 GB", 24, huge),
        ("packed size in the directory of 4 GB", 20, huge),
        ("packed size of 0", 20, bytes(4)),
        ("offset beyond the file", 42, b"\xff\xff\xff\x7f"),
        ("offset of another member", 42, struct.pack("<I", 0x1234)),
        ("wrong checksum", 16, b"\1\2\3\4"),
        ("encrypted member", 8, b"\1\0"),
        ("unknown compression", 10, b"\x63\0"),
    ):
        yield Case(f"npz: {name}", patched(_CENTRAL, at, raw), about=("encoder.conv1.weight",))
    for name, at, raw in (
        ("directory of 4 GB", 12, huge),
        ("directory beyond the file", 16, b"\xff\xff\xff\x7f"),
    ):
        yield Case(f"npz: {name}", patched(_END, at, raw))
    # The directory itself is whole, and every array agrees with it.
    for name, at, raw in (
        ("end record counts 0 members", 8, bytes(4)),
        ("end record has a comment beyond the file", 20, b"\xff\xff"),
    ):
        yield Case(f"npz: {name}", patched(_END, at, raw), OPENS)
    yield Case("npz with a flipped bit", fault(_flip, layout="weights.npz"))
    yield Case("npz with a flipped bit, deflated", fault(_flip, layout="deflated weights.npz"))
    for name, text in (
        ("of more than there is", "{'descr': '<f2', 'fortran_order': False, 'shape': (99,), }"),
        ("of 2^62", "{'descr': '<f2', 'fortran_order': False, 'shape': (4611686018427387904,), }"),
        ("that wraps", "{'descr': '<f2', 'fortran_order': False, 'shape': (2**63,), }"),
        ("negative", "{'descr': '<f2', 'fortran_order': False, 'shape': (-64,), }"),
        ("of an object", "{'descr': '|O', 'fortran_order': False, 'shape': (64,), }"),
        ("big-endian", "{'descr': '>f2', 'fortran_order': False, 'shape': (64,), }"),
        ("that is code", "{'descr': __import__('os').getpid(), 'shape': (64,)}"),
        ("that is deep", "{'descr': " + "(" * 5000),
        ("without a shape", "{'descr': '<f2', 'fortran_order': False}"),
        ("of complex numbers", "{'descr': '<c8', 'fortran_order': False, 'shape': (16,), }"),
    ):
        yield Case(f"npz: array header {name}", members(_head(text)), about=(BIAS,))
    yield Case("npz with pickled objects", members(_objects), about=(BIAS,))
    yield Case(
        "npz that is a pickle", fault(put_bytes(NPZ, pickle.dumps([1])), layout="weights.npz")
    )
    yield Case("npz with a text file", members(lambda parts: parts.update(readme=b"hello")))
    yield Case("npz with a path above", members(lambda parts: parts.update({"../x.npy": b"x"})))
    yield Case("npz compressed with bzip2", members(lambda parts: parts, zipfile.ZIP_BZIP2))
    bomb = npz(lambda arrays: arrays.update({BIAS: np.zeros(1 << 27, np.float16)}), deflate=True)
    yield Case("npz with a bomb", bomb, about=(BIAS,))
    for name, change in (
        ("missing", lambda arrays: arrays.pop(BIAS)),
        ("extra", lambda arrays: arrays.update(x=np.zeros(3, np.float16))),
        ("scalar", lambda arrays: arrays.update({BIAS: np.zeros((), np.float16)})),
        ("float64", lambda arrays: arrays.update({BIAS: arrays[BIAS].astype("float64")})),
    ):
        yield Case(f"npz with a tensor {name}", npz(change), about=(BIAS, "unknown"))
    yield Case("npz in Fortran order", npz(_fortran), OPENS)


def _fortran(arrays: Arrays) -> None:
    arrays.update({name: np.asfortranarray(array) for name, array in arrays.items()})


def ct2(change: Callable[[Arrays], object], **options: Any) -> Callable[[Path], None]:
    """Build a CTranslate2 file of changed variables."""

    def make() -> bytes:
        variables = ctranslate2_variables(make_arrays(), SMALLEST)
        change(variables)
        return ctranslate2_bytes(variables, **options)

    return fault(put_bytes(BIN, make), layout="model.bin")


def ct2_patched(at: int, raw: bytes) -> Callable[[Path], None]:
    """Build a CTranslate2 file and overwrite bytes of it."""

    def make() -> bytes:
        whole = bytearray(ctranslate2_bytes(ctranslate2_variables(make_arrays(), SMALLEST)))
        whole[at : at + len(raw)] = raw
        return bytes(whole)

    return fault(put_bytes(BIN, make), layout="model.bin")


def _append(directory: Path) -> None:
    with (directory / BIN).open("ab") as file:
        file.write(bytes(4))


def _ct2_cases() -> Iterator[Case]:
    count, first = 22, 26
    rank = first + 2 + len("decoder/activation") + 1
    qkv = "encoder/layer_0/self_attention/linear_0"
    half = np.float16
    faults: list[tuple[str, Callable[[Path], None]]] = [
        (f"cut to {size}", fault(truncate(BIN, size), layout="model.bin"))
        for size in (0, 3, 20, 30, 1000, 100_000, -1)
    ]
    faults += [
        ("with a count of 2^32", ct2_patched(count, b"\xff" * 4)),
        ("with a count too large", ct2_patched(count, struct.pack("<I", 999))),
        ("with a count too small", ct2_patched(count, struct.pack("<I", 3))),
        ("with a name of 65535 bytes", ct2_patched(first, b"\xff\xff")),
        ("with a name of no bytes", ct2_patched(first, b"\0\0")),
        ("with 255 axes", ct2_patched(rank, b"\xff")),
        ("with an unknown dtype", ct2_patched(rank + 1, b"\x63")),
        ("with a length of 4 GB", ct2_patched(rank + 2, b"\xff" * 4)),
        ("with a length of 0", ct2_patched(rank + 2, bytes(4))),
        ("of version 99", ct2(lambda v: v, version=99)),
        ("of another network", ct2(lambda v: v, spec="TransformerSpec")),
        ("with an alias of nothing", ct2(lambda v: v, aliases=[("a", "b")])),
        ("with an alias of itself", ct2(lambda v: v, aliases=[("x", "x")])),
        ("with bytes after its end", fault(_append, layout="model.bin")),
        ("in int8", ct2(lambda v: v.update({f"{qkv}/weight": np.zeros((192, 64), np.int8)}))),
        ("without a tensor", ct2(lambda v: v.pop(f"{qkv}/weight"))),
        ("with another", ct2(lambda v: v.update({"decoder/x": np.zeros(3, half)}))),
        ("with rows not in thirds", ct2(lambda v: v.update({f"{qkv}/bias": np.zeros(9, half)}))),
        ("with two heads", ct2(lambda v: v.update({"encoder/num_heads": np.array(2, np.int16)}))),
        (
            "with another activation",
            ct2(lambda v: v.update({"decoder/activation": np.array(0, np.int8)})),
        ),
        (
            "with heads that are not there",
            fault(write_config(b'{"alignment_heads": [[0, 9]]}'), layout=BIN),
        ),
    ]
    teacher = fault(write_config(b'{"alignment_heads": [[10, 0]]}'), layout=BIN)
    yield Case("CTranslate2 with a teacher's heads", teacher, OPENS, upstream_layout=False)
    for name, build in faults:
        yield Case(f"CTranslate2 {name}", build, INVALID, upstream_layout=False)


def huggingface(
    change: Callable[[Arrays], object], *, after: Callable[[Path], object] = lambda path: path
) -> Callable[[Path], None]:
    """Build a model of transformers, its arrays changed, and then its directory."""

    def make() -> bytes:
        arrays = huggingface_arrays(make_arrays(), SMALLEST)
        change(arrays)
        return safetensors_bytes(arrays)

    def build(directory: Path) -> None:
        write_model(directory, layout="huggingface model.safetensors")
        put_bytes("model.safetensors", make)(directory)
        after(directory)

    return build


def _huggingface_cases() -> Iterator[Case]:
    half = np.float16
    embedding = "model.decoder.embed_tokens.weight"
    faults: list[tuple[str, Callable[[Arrays], object]]] = [
        ("without a tensor", lambda arrays: arrays.pop("model.decoder.layers.0.fc1.bias")),
        ("with another", lambda arrays: arrays.update({"model.x": np.zeros(3, half)})),
        (
            "with an absurd layer",
            lambda a: a.update({"model.decoder.layers.3000000.fc1.bias": HALVES}),
        ),
        ("with a name twice", lambda a: a.update({embedding[6:]: a[embedding]})),
        ("with another output layer", lambda a: a.update({"proj_out.weight": HALVES})),
        ("with MLX's convolution", lambda a: a.update({"model.encoder.conv1.weight": CONV})),
    ]
    for name, change in faults:
        yield Case(f"transformers {name}", huggingface(change), upstream_layout=False)
    for key, value in (
        ("encoder_attention_heads", 2),
        ("decoder_layers", 2),
        ("encoder_layers", 1 << 40),
        ("d_model", "64"),
        ("d_model", 0),
        ("vocab_size", 97),
        ("activation_function", "relu"),
        ("scale_embedding", True),
        ("model_type", "moonshine"),
        ("quantization_config", {"bits": 4, "group_size": 0}),
    ):
        after = change_config(**{key: value})
        built = huggingface(lambda arrays: arrays, after=after)
        yield Case(f"transformers config with {key} of {value!r}", built, upstream_layout=False)
    generation = "generation_config.json"
    for name, data, right in (
        ("not JSON", b"{", INVALID),
        ("a list", b"[]", INVALID),
        ("with wrong heads", b'{"alignment_heads": [[0, 7]]}', INVALID),
        ("with heads of a teacher", b'{"alignment_heads": [[20, 0]]}', OPENS),
        ("empty", b"{}", OPENS),
    ):
        built = huggingface(lambda arrays: arrays, after=put_bytes(generation, data))
        yield Case(f"generation config {name}", built, right, upstream_layout=False)
    for name, make in (("a FIFO", os.mkfifo), ("a directory", Path.mkdir)):
        built = huggingface(lambda arrays: arrays, after=instead(generation, make))
        yield Case(f"generation config is {name}", built, upstream_layout=False)
    tied = huggingface(lambda arrays: arrays.update({"proj_out.weight": arrays[embedding]}))
    yield Case("transformers with a tied output layer", tied, OPENS, upstream_layout=False)
    short = huggingface(lambda a: [a.update({n.removeprefix("model."): a.pop(n)}) for n in list(a)])
    yield Case("transformers without the prefix", short, OPENS, upstream_layout=False)


HALVES: Final = np.zeros((96, 63), np.float16)
CONV: Final = np.zeros((64, 3, 80), np.float16)


def format_cases() -> Iterator[Case]:
    """List the cases."""
    yield from _npz_cases()
    yield from _ct2_cases()
    yield from _huggingface_cases()
    for layout in get_args(LayoutName):
        read_upstream = layout.endswith(("weights.safetensors", ".npz"))
        good = fault(lambda path: path, layout=layout)
        yield Case(f"good {layout}", good, OPENS, upstream_layout=read_upstream)
