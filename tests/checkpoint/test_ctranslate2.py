"""CTranslate2's model.bin."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastwhisper.checkpoint.config import parse_alignment_heads
from fastwhisper.checkpoint.ctranslate2 import MAX_VARIABLES, plan_ctranslate2
from fastwhisper.checkpoint.expected import check_tensors
from fastwhisper.errors import InvalidModelFormatError
from tests.helpers.tiny_models import (
    SMALLEST,
    ctranslate2_bytes,
    ctranslate2_variables,
    make_arrays,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastwhisper.checkpoint.plan import TensorPlan
    from fastwhisper.values import Dimensions

WHERE = Path("model.bin")
Variables = dict[str, "np.ndarray[Any, np.dtype[Any]]"]


def plan(data: bytes) -> tuple[list[TensorPlan], Dimensions]:
    """Plan from memory."""
    return plan_ctranslate2(lambda at, size: data[at : at + size], len(data), WHERE, 0)


def smallest(dtype: str = "float16") -> Variables:
    """Return the variables of the smallest model."""
    return ctranslate2_variables(make_arrays(dtype=dtype), SMALLEST)


WHOLE = ctranslate2_bytes(smallest())


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_tensor_is_found_by_its_bytes(dtype: str) -> None:
    """Fused rows are split and convolutions transposed: each plan gives the MLX array."""
    arrays = make_arrays(dtype=dtype)
    data = ctranslate2_bytes(ctranslate2_variables(arrays, SMALLEST))
    plans, dimensions = plan(data)
    assert dimensions == SMALLEST
    assert {tensor.name for tensor in plans} == set(arrays)
    for tensor in plans:
        span = data[tensor.offset_bytes : tensor.offset_bytes + tensor.size_bytes]
        array = np.frombuffer(span, tensor.dtype).reshape(tensor.stored_shape)
        if tensor.transpose:
            array = array.transpose(tensor.transpose)
        assert array.shape == tensor.shape
        np.testing.assert_array_equal(array, arrays[tensor.name])


def test_plans_are_what_the_network_needs() -> None:
    """Names, shapes and dtypes pass the same check as MLX files."""
    plans, dimensions = plan(WHOLE)
    found = {tensor.name: (tensor.dtype, tensor.shape) for tensor in plans}
    assert check_tensors(dimensions, found, WHERE) == {}


@pytest.mark.parametrize("version", [4, 5, 6])
def test_versions_with_dtypes_are_read(version: int) -> None:
    """The layout has been the same since version 4."""
    assert plan(ctranslate2_bytes(smallest(), version=version))[1] == SMALLEST


def test_without_heads_a_head_is_64_wide() -> None:
    """A file without `num_heads` has Whisper's width of a head."""
    variables = smallest()
    del variables["encoder/num_heads"], variables["decoder/num_heads"]
    dimensions = plan(ctranslate2_bytes(variables))[1]
    assert (dimensions.n_audio_head, dimensions.n_text_head) == (1, 1)


def test_aliases_share_bytes() -> None:
    """The converter stores equal variables once; both names are planned."""
    variables = smallest()
    alias, target = "encoder/layer_norm/beta", "decoder/layer_norm/beta"
    del variables[alias]
    plans = {tensor.name: tensor for tensor in plan(tied(variables, (alias, target)))[0]}
    shared = plans["encoder.ln_post.bias"], plans["decoder.ln.bias"]
    assert shared[0].offset_bytes == shared[1].offset_bytes


def tied(variables: Variables, *aliases: tuple[str, str]) -> bytes:
    """Serialize with these aliases and no others."""
    return ctranslate2_bytes(variables, aliases=aliases)


def altered(change: Callable[[Variables], object], **options: Any) -> bytes:
    """Serialize the smallest model after a change."""
    variables = smallest()
    change(variables)
    return ctranslate2_bytes(variables, **options)


def put(name: str, array: Any) -> Callable[[Variables], object]:
    """Make a function that sets a variable."""
    return lambda variables: variables.__setitem__(name, array)


def patch(offset: int, raw: bytes) -> bytes:
    """Overwrite bytes of the whole file."""
    return WHOLE[:offset] + raw + WHOLE[offset + len(raw) :]


HALF = np.float16
QKV = "encoder/layer_0/self_attention/linear_0"
COUNT_AT = 4 + 2 + 12 + 4
LENGTH_AT = COUNT_AT + 4 + 2 + len("decoder/activation") + 1 + 1 + 1
BROKEN: dict[str, bytes] = {
    "empty": b"",
    "three bytes": WHOLE[:3],
    "old version": altered(lambda _: None, version=3),
    "later version": altered(lambda _: None, version=7),
    "other network": altered(lambda _: None, spec="TransformerSpec"),
    "huge count": patch(COUNT_AT, b"\xff" * 4),
    "count above the cap": patch(COUNT_AT, struct.pack("<I", MAX_VARIABLES + 1)),
    "count too large": patch(COUNT_AT, struct.pack("<I", 1000)),
    "count too small": patch(COUNT_AT, struct.pack("<I", 3)),
    "name of no bytes": patch(COUNT_AT + 4, struct.pack("<H", 0)),
    "name of 65535 bytes": patch(COUNT_AT + 4, b"\xff\xff"),
    "name without NUL": patch(COUNT_AT + 4, struct.pack("<H", 4)),
    "name not ASCII": patch(COUNT_AT + 6, b"\xc3\xa4"),
    "rank 255": patch(LENGTH_AT - 2, b"\xff"),
    "unknown dtype": patch(LENGTH_AT - 1, b"\x09"),
    "length that lies": patch(LENGTH_AT, struct.pack("<I", 2)),
    "length of 4 GB": patch(LENGTH_AT, b"\xff" * 4),
    "trailing bytes": WHOLE + b"\0",
    "truncated by one": WHOLE[:-1],
    "truncated in the data": WHOLE[: len(WHOLE) // 2],
    "alias of nothing": tied(smallest(), ("a", "b")),
    "alias of a name that exists": tied(smallest(), ("encoder/conv1/bias", "encoder/conv2/bias")),
    "missing convolution": altered(lambda v: v.pop("encoder/conv1/weight")),
    "missing positions": altered(lambda v: v.pop("decoder/position_encodings/encodings")),
    "int8": altered(put(f"{QKV}/weight", np.zeros((192, 64), np.int8))),
    "int16": altered(put(f"{QKV}/weight", np.zeros((192, 64), np.int16))),
    "int8 scales": altered(put(f"{QKV}/weight_scale", np.zeros(192, np.int8))),
    "unknown weight": altered(put("decoder/extra", np.zeros(3, HALF))),
    "own output layer": altered(
        put("decoder/projection/weight", np.ones((96, 64), HALF)), aliases=()
    ),
    "rows not in thirds": altered(put(f"{QKV}/weight", np.zeros((191, 64), HALF))),
    "flat convolution": altered(put("encoder/conv1/weight", np.zeros(99, HALF))),
    "flat embedding": altered(put("decoder/embeddings/weight", np.zeros(96, HALF)), aliases=()),
    "no vocabulary": altered(put("decoder/embeddings/weight", np.zeros((0, 64), HALF))),
    "wrong number of heads": altered(put("encoder/num_heads", np.int16(7))),
    "no heads": altered(put("encoder/num_heads", np.int16(0))),
    "negative heads": altered(put("encoder/num_heads", np.int16(-2))),
    "heads as float": altered(put("encoder/num_heads", np.float32(2))),
    "heads that differ": altered(put("encoder/layer_0/num_heads", np.int16(4))),
    "other activation": altered(put("decoder/activation", np.int8(0))),
    "post-norm": altered(put("decoder/pre_norm", np.int8(0))),
    "scaled embeddings": altered(put("decoder/scale_embeddings", np.int8(1))),
    "encoder cross-attention": altered(
        put("encoder/layer_0/attention/linear_3/bias", np.zeros(64, HALF))
    ),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=list(BROKEN))
def test_broken_file_is_refused(data: bytes) -> None:
    """Lying counts and lengths, and other networks, are typed errors."""
    with pytest.raises(InvalidModelFormatError):
        plan(data)


def test_int8_is_refused_by_name_with_a_way_out() -> None:
    """The error names the tensor, the dtype and what to do."""
    with pytest.raises(InvalidModelFormatError) as caught:
        plan(BROKEN["int8"])
    assert caught.value.tensor == f"{QKV}/weight"
    assert "int8" in caught.value.detail
    assert "--quantization float16" in caught.value.advice


@settings(max_examples=300)
@given(at=st.integers(0, len(WHOLE) - 1), raw=st.binary(min_size=1, max_size=8))
def test_patched_file_keeps_within_its_bytes(at: int, raw: bytes) -> None:
    """Whatever bytes are overwritten: a typed error, or spans that lie in the file."""
    data = patch(at, raw)[: len(WHOLE)]
    try:
        plans, _ = plan(data)
    except InvalidModelFormatError:
        return
    assert all(p.offset_bytes + p.size_bytes <= len(data) for p in plans)


@given(data=st.binary(max_size=300), spec=st.booleans())
def test_any_bytes_are_a_typed_error(data: bytes, spec: bool) -> None:  # noqa: FBT001 - a draw
    """Fuzzed files, with and without a right start."""
    with pytest.raises(InvalidModelFormatError):
        plan((WHOLE[:COUNT_AT] if spec else b"") + data)


def test_directory_is_read_in_few_reads() -> None:
    """The parser reads about once a variable, however large the weights are."""
    reads: list[int] = []

    def read_at(at: int, size: int) -> bytes:
        reads.append(size)
        return WHOLE[at : at + size]

    plan_ctranslate2(read_at, len(WHOLE), WHERE, 0)
    assert len(reads) < 3 * len(smallest())
    assert max(reads) <= 512


@pytest.mark.parametrize("listed", [None, [[0, 0]], [[0, 1], [1, 0]]])
def test_alignment_heads_are_taken_from_the_config(listed: list[list[int]] | None) -> None:
    """Pairs of layer and head, in order; none if the config has none."""
    wide = replace(SMALLEST, n_text_head=2, n_text_layer=2)
    wanted = listed and tuple((layer, head) for layer, head in listed)
    assert parse_alignment_heads({"alignment_heads": listed}, wide, WHERE) == wanted
    assert parse_alignment_heads({}, SMALLEST, WHERE) is None


@pytest.mark.parametrize("listed", [[[1, 0]], [[0, 0], [25, 0]], [[31, 0]] * 20])
def test_alignment_heads_of_a_teacher_are_left_out(listed: list[list[int]]) -> None:
    """Distilled models list heads in layers they don't have; the network has a default."""
    assert parse_alignment_heads({"alignment_heads": listed}, SMALLEST, WHERE) is None


@pytest.mark.parametrize(
    "listed",
    [
        [],
        {},
        "x",
        1,
        [1],
        [[0]],
        [[0, 1, 2]],
        [["0", 0]],
        [[0, False]],
        [[0, 1]],
        [[1, 1]],
        [[1 << 40, 0]],
        [[0, 0]] * 2000,
        [[-1, 0]],
    ],
)
def test_wrong_alignment_heads_are_refused(listed: object) -> None:
    """Alignment heads that are no pairs, or that no layer has, are refused."""
    with pytest.raises(InvalidModelFormatError) as caught:
        parse_alignment_heads({"alignment_heads": listed}, SMALLEST, WHERE)
    assert caught.value.tensor == "alignment_heads"
