"""Cases: whole files whose tensors are not those of the network, and configs that lie."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tests.corpus.case import OPENS, Case, change_config, fault, write_config
from tests.helpers.sparse_models import write_zeros
from tests.helpers.tiny_models import (
    SMALLEST,
    make_arrays,
    make_config,
    safetensors_bytes,
    write_arrays,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.helpers.tiny_models import Arrays

__all__ = ["config_cases", "tensor_cases"]

BIAS: Final = "decoder.ln.bias"
MLP: Final = "encoder.blocks.0.mlp1"
HEADS: Final = "alignment_heads"


def with_tensors(
    change: Callable[[Arrays], object], *, codes: dict[str, str] | None = None, **options: Any
) -> Callable[[Path], None]:
    """Build a model of changed arrays; `codes` overrides dtypes in the header."""

    def build(directory: Path) -> None:
        arrays = make_arrays(**options)
        change(arrays)
        config = make_config()
        if options:
            config["quantization"] = {"bits": 4, "group_size": 64}
        write_arrays(directory, arrays, config)
        data = safetensors_bytes(arrays, codes=codes)
        (directory / "weights.safetensors").write_bytes(data)

    return build


def put(name: str, array: Any) -> Callable[[Arrays], object]:
    """Make a change: one array is another, or new."""
    return lambda arrays: arrays.__setitem__(name, array)


def retype(name: str, dtype: str) -> Callable[[Arrays], object]:
    """Make a change: one array has another dtype."""
    return lambda arrays: arrays.__setitem__(name, arrays[name].astype(dtype))


def tensor_cases() -> Iterator[Case]:
    """List the cases of tensors."""
    half = np.float16
    for name, change, about in (
        ("missing", lambda arrays: arrays.pop(BIAS), BIAS),
        ("missing in the encoder", lambda arrays: arrays.pop(f"{MLP}.weight"), MLP),
        ("all missing", lambda arrays: arrays.clear(), "missing"),
        ("extra", put("decoder.extra", np.zeros(3, half)), "decoder.extra"),
        ("extra with an empty name", put("", np.zeros(3, half)), "unknown"),
        ("extra with dots for a name", put("...", np.zeros(3, half)), "..."),
        ("without elements", put("decoder.extra", np.zeros(0, half)), "decoder.extra"),
        ("bias of a key", put("encoder.blocks.0.attn.key.bias", np.zeros(64, half)), "key.bias"),
        ("another layer", put("decoder.blocks.1.mlp1.bias", np.zeros(256, half)), "blocks.1"),
        ("absurd block", put("decoder.blocks.3000000.x", np.zeros(1, half)), "blocks.3000000"),
        ("block of 30 digits", put(f"decoder.blocks.{9**31}.x", np.zeros(1, half)), "blocks"),
        ("negative block", put("decoder.blocks.-1.mlp1.bias", np.zeros(256, half)), "blocks.-1"),
        ("block twice", put("decoder.blocks.00.mlp1.bias", np.zeros(256, half)), "blocks.00"),
        ("hidden name", put("decoder._mask", np.zeros((8, 8), half)), "_mask"),
        ("method's name", put("decoder.parameters", np.zeros(1, half)), "decoder.parameters"),
        ("module as a tensor", put("decoder.ln", np.zeros(64, half)), "decoder.ln"),
        ("scalar bias", put(BIAS, np.zeros((), half)), BIAS),
        ("bias of one", put(BIAS, np.zeros(1, half)), BIAS),
        ("bias as a matrix", put(BIAS, np.zeros((1, 64), half)), BIAS),
        ("bias of another length", put(BIAS, np.zeros(65, half)), BIAS),
        (
            "conv in PyTorch's order",
            put("encoder.conv1.weight", np.zeros((64, 80, 3), half)),
            "conv",
        ),
        (
            "matrix transposed",
            put(f"{MLP}.weight", np.zeros((64, 256), half)),
            MLP,
        ),
        ("float64", retype(BIAS, "float64"), BIAS),
        ("int32", retype(BIAS, "int32"), BIAS),
        ("bool", retype(BIAS, "bool"), BIAS),
        ("uint32 without scales", retype(f"{MLP}.weight", "uint32"), MLP),
    ):
        yield Case(f"tensor {name}", with_tensors(change), about=(about,))
    for code in ("F8_E4M3", "F8_E5M2", "U8", "I8"):
        flat = put(BIAS, np.zeros(64, np.uint8))
        yield Case(f"tensor of {code}", with_tensors(flat, codes={BIAS: code}), about=(BIAS,))
    for name, heads in (
        ("floats", np.zeros((1, 2), half)),
        ("of a layer that is not there", np.array([[1, 0]])),
        ("of a head that is not there", np.array([[0, 1]])),
        ("negative", np.array([[0, -1]])),
        ("in threes", np.zeros((1, 3), np.int64)),
        ("empty", np.zeros((0, 2), np.int64)),
        ("a scalar", np.array(0)),
    ):
        yield Case(f"alignment heads {name}", with_tensors(put(HEADS, heads)), about=(HEADS,))
    for dtype in ("int64", "int32", "uint8"):
        kind = with_tensors(put(HEADS, np.array([[0, 0]], dtype)))
        yield Case(f"alignment heads as {dtype}", kind, OPENS)
    yield from _packed_cases()
    yield Case("tensors of float32", with_tensors(_all("float32")), OPENS, wanted=_wide)


def _all(dtype: str) -> Callable[[Arrays], object]:
    return lambda arrays: arrays.update({n: a.astype(dtype) for n, a in arrays.items()})


def _wide() -> Arrays:
    return {name: array.astype("float32") for name, array in make_arrays().items()}


def _int4() -> Arrays:
    return make_arrays(precision="int4")


def _packed_cases() -> Iterator[Case]:
    for name, change in (
        ("without biases", lambda arrays: arrays.pop(f"{MLP}.biases")),
        ("without scales", lambda arrays: arrays.pop(f"{MLP}.scales")),
        ("without weight", lambda arrays: arrays.pop(f"{MLP}.weight")),
        (
            "in int32",
            lambda arrays: put(f"{MLP}.weight", arrays[f"{MLP}.weight"].view("i4"))(arrays),
        ),
        ("with integer scales", retype(f"{MLP}.scales", "int32")),
        ("with scales of another group", put(f"{MLP}.scales", np.zeros((256, 2), np.float16))),
        ("with scales of no group", put(f"{MLP}.scales", np.zeros((256, 0), np.float16))),
        ("with a scalar for scales", put(f"{MLP}.scales", np.zeros((), np.float16))),
        ("with 7 bits", put(f"{MLP}.weight", np.zeros((256, 14), np.uint32))),
        ("with scales of a norm", put("decoder.ln.scales", np.zeros((64, 1), np.float16))),
        (
            "with scales of a convolution",
            put("encoder.conv1.scales", np.zeros((64, 1), np.float16)),
        ),
    ):
        built = with_tensors(change, precision="int4")
        yield Case(f"quantized {name}", built, about=(MLP, "scales"))
    for name, said in (
        ("other bits", {"bits": 8, "group_size": 64}),
        ("other group size", {"bits": 4, "group_size": 32}),
        ("group size 0", {"bits": 4, "group_size": 0}),
        ("negative group size", {"bits": 4, "group_size": -64}),
        ("huge group size", {"bits": 4, "group_size": 1 << 40}),
        ("no such bits", {"bits": 7, "group_size": 64}),
        ("bits 0", {"bits": 0, "group_size": 64}),
        ("bits as a string", {"bits": "4", "group_size": 64}),
        ("bits as a list", {"bits": [4], "group_size": 64}),
        ("another mode", {"bits": 4, "group_size": 64, "mode": "mxfp4"}),
        ("a list", [4, 64]),
        ("a number", 4),
    ):
        built = fault(change_config(quantization=said), precision="int4")
        yield Case(
            f"quantization in config: {name}", built, about=("bits", "group_size", "group size")
        )
    yield Case(
        "quantized as it should be",
        fault(lambda directory: directory, precision="int4"),
        OPENS,
        wanted=_int4,
    )
    yield Case(
        "quantized, and the config says nothing",
        fault(change_config("quantization"), precision="int4"),
        OPENS,
        wanted=_int4,
    )
    yield Case(
        "quantized, plain embedding",
        fault(lambda directory: directory, precision="int4", quantize_embedding=False),
        OPENS,
        wanted=lambda: make_arrays(precision="int4", quantize_embedding=False),
    )


def _dimensions_that_fit_no_memory(directory: Path) -> None:
    """Describe a network of terabytes, each dimension within its limit, and a file as long."""
    huge = replace(
        SMALLEST,
        n_audio_state=8192,
        n_text_state=8192,
        n_audio_head=128,
        n_text_head=128,
        n_audio_layer=256,
        n_text_layer=256,
    )
    write_zeros(directory, huge)


def config_cases() -> Iterator[Case]:
    """List the cases of configs."""
    for name, data in (
        ("empty", b""),
        ("not JSON", b"{'n_mels': 80}"),
        ("cut", json.dumps(make_config()).encode()[:-5]),
        ("a list", b"[]"),
        ("null", b"null"),
        ("an empty object", b"{}"),
        ("UTF-16", json.dumps(make_config()).encode("utf-16")),
        ("not UTF-8", json.dumps(make_config()).encode().replace(b"whisper", b"whis\xffer")),
        ("deep", b'{"a":' * 100_000),
        ("of deep lists", b"[" * 500_000),
        ("8 MB", b" " * (8 << 20)),
        ("with a key twice", b'{"n_mels": 80,' + json.dumps(make_config()).encode()[1:]),
        ("zeros", bytes(300)),
    ):
        yield Case(f"config is {name}", fault(write_config(data)), about=("config.json",))
    yield Case("config is missing", fault(lambda d: (d / "config.json").unlink()))
    yield Case("config has a number of 5000 digits", fault(write_config(_many_digits())))
    for key in asdict(SMALLEST):
        built = fault(change_config(key))
        yield Case(f"config without {key}", built, about=(key,))
        for value in (-1, 0, 1 << 40, "64", None, 64.5, True):
            built = fault(change_config(**{key: value}))
            yield Case(f"config with {key} of {value!r}", built, about=(key,))
    for name, changes in (
        ("more encoder layers than the file", {"n_audio_layer": 2}),
        ("more decoder layers than the file", {"n_text_layer": 2}),
        ("another vocabulary", {"n_vocab": 97}),
        ("another context", {"n_text_ctx": 9}),
        ("another state", {"n_audio_state": 128, "n_audio_head": 2}),
        ("another state in both", dict.fromkeys(("n_audio_state", "n_text_state"), 128)),
        ("other mels", {"n_mels": 128}),
        ("two encoder heads of 32", {"n_audio_head": 2}),
        ("two decoder heads of 32", {"n_text_head": 2}),
        ("three heads", {"n_audio_head": 3}),
    ):
        yield Case(f"config with {name}", fault(change_config(**changes)), about=tuple(changes))
    yield Case("config of terabytes", fault(_dimensions_that_fit_no_memory), about=("weights",))
    good = json.dumps(make_config()).encode()
    yield Case("config with a BOM", fault(write_config(b"\xef\xbb\xbf" + good)), OPENS)
    yield Case("config with unknown keys", fault(change_config(x={"y": [None]}, z=1)), OPENS)
    yield Case("config without model_type", fault(change_config("model_type")), OPENS)
    yield Case("config with blanks around", fault(write_config(b"\n \t" + good + b"\r\n")), OPENS)


def _many_digits() -> bytes:
    return json.dumps(make_config()).encode().replace(b"96", b"9" * 5000)
