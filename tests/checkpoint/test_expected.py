"""Dimensions, expected tensors, precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastwhisper.checkpoint.config import (
    LIMITS,
    check_dimensions,
    check_quantization,
    parse_dimensions,
)
from fastwhisper.checkpoint.expected import check_tensors, expected_shapes
from fastwhisper.errors import InvalidModelFormatError
from fastwhisper.values import Dimensions, ModulePrecision
from tests.helpers.tiny_models import SMALLEST, make_arrays, make_config

if TYPE_CHECKING:
    from collections.abc import Callable

WHERE = Path("config.json")
TURBO = Dimensions(128, 1500, 1280, 20, 32, 51866, 448, 1280, 20, 4)
Tensors = dict[str, tuple[str, tuple[int, ...]]]


def described(**options: Any) -> Tensors:
    """Describe the tensors of the smallest model."""
    return {name: (array.dtype.name, array.shape) for name, array in make_arrays(**options).items()}


def test_config_gives_the_dimensions() -> None:
    """Unknown keys are left alone."""
    assert parse_dimensions(make_config(SMALLEST, whatever=[1]), WHERE) == SMALLEST


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize(
    "value", [None, "80", 80.0, True, [80], {}, -1, 0, 1 << 31, 10**4000, float("nan")]
)
def test_wrong_dimension_is_refused_by_its_name(name: str, value: object) -> None:
    """Each dimension must be an integer within its limits; the error names it."""
    with pytest.raises(InvalidModelFormatError) as caught:
        parse_dimensions(make_config(SMALLEST) | {name: value}, WHERE)
    assert caught.value.tensor == name
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", LIMITS)
def test_missing_dimension_is_refused_by_its_name(name: str) -> None:
    """Each dimension must be there; the error names it."""
    config = make_config(SMALLEST)
    del config[name]
    with pytest.raises(InvalidModelFormatError) as caught:
        parse_dimensions(config, WHERE)
    assert caught.value.tensor == name


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {
                "n_audio_state": 8192,
                "n_text_state": 8192,
                "n_audio_head": 128,
                "n_text_head": 128,
                "n_text_layer": 256,
            },
            "None",
        ),
        ({"n_audio_head": 2}, "n_audio_head"),
        ({"n_text_head": 64}, "n_text_head"),
        ({"n_text_state": 128}, "n_text_head"),
        ({"n_text_state": 128, "n_text_head": 2}, "n_text_state"),
        ({"n_audio_state": 65, "n_text_state": 65}, "n_audio_head"),
    ],
)
def test_contradicting_dimensions_are_refused(changes: dict[str, int], named: str) -> None:
    """Heads are 64 wide, the decoder is as wide as the encoder, and all of it fits a memory."""
    with pytest.raises(InvalidModelFormatError) as caught:
        check_dimensions(replace(SMALLEST, **changes), WHERE)
    assert str(caught.value.tensor).startswith(named)


def test_known_models_are_far_within_the_limits() -> None:
    """large-v3-turbo and a fine-tune with a larger vocabulary pass."""
    check_dimensions(TURBO, WHERE)
    check_dimensions(replace(TURBO, n_vocab=60_000, n_text_layer=2), WHERE)


def test_expected_shapes_of_turbo() -> None:
    """The count and a few exact shapes of large-v3-turbo."""
    shapes = expected_shapes(TURBO)
    assert len(shapes) == 10 + 32 * 15 + 4 * 24
    assert shapes["encoder.conv1.weight"] == (1280, 3, 128)
    assert shapes["decoder.blocks.3.cross_attn.out.bias"] == (1280,)
    assert shapes["encoder.blocks.31.mlp2.weight"] == (1280, 5120)
    assert "encoder.blocks.0.attn.key.bias" not in shapes


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_plain_tensors_pass(dtype: str) -> None:
    """Nothing is quantized, so there is no precision."""
    assert check_tensors(SMALLEST, described(dtype=dtype), WHERE) == {}


@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("int4", 4)])
@pytest.mark.parametrize("group_size", [32, 64])
def test_precision_follows_from_the_shapes(precision: str, bits: int, group_size: int) -> None:
    """Bits and group size of each module are solved from its shapes."""
    tensors = described(precision=precision, group_size=group_size, quantize_embedding=False)
    found = check_tensors(SMALLEST, tensors, WHERE)
    assert set(found.values()) == {ModulePrecision(bits, group_size)}
    assert len(found) == 6 + 10
    assert "decoder.token_embedding" not in found


def test_mixed_bits_pass() -> None:
    """Every module may have bits of its own."""
    tensors = described(precision="int4")
    for part in ("weight", "scales", "biases"):
        name = f"decoder.token_embedding.{part}"
        tensors[name] = described(precision="int8", group_size=32)[name]
    found = check_tensors(SMALLEST, tensors, WHERE)
    assert found["decoder.token_embedding"] == ModulePrecision(8, 32)
    assert found["encoder.blocks.0.mlp1"] == ModulePrecision(4, 64)


@given(
    bits=st.sampled_from([2, 3, 4, 5, 6, 8]),
    group_size=st.sampled_from([32, 64, 128]),
    groups=st.integers(1, 4),
)
def test_every_packing_of_mlx_is_recognized(bits: int, group_size: int, groups: int) -> None:
    """All bits and group sizes are told apart, whatever the width."""
    state = 4 * group_size * groups
    dimensions = replace(SMALLEST, n_audio_state=state, n_text_state=state)
    tensors: Tensors = {n: ("float16", shape) for n, shape in expected_shapes(dimensions).items()}
    module = "encoder.blocks.0.mlp1"
    rows = 4 * state
    tensors[f"{module}.weight"] = ("uint32", (rows, state * bits // 32))
    tensors[f"{module}.scales"] = ("float16", (rows, state // group_size))
    tensors[f"{module}.biases"] = ("float16", (rows, state // group_size))
    found = check_tensors(dimensions, tensors, WHERE)
    assert found == {module: ModulePrecision(bits, group_size)}


def change(name: str, dtype: str | None = None, shape: tuple[int, ...] | None = None) -> Any:
    """Make a function that changes or adds a tensor."""

    def apply(tensors: Tensors) -> None:
        old_dtype, old_shape = tensors.get(name, ("float16", (1,)))
        tensors[name] = (dtype or old_dtype, old_shape if shape is None else shape)

    return apply


PLAIN_FAULTS: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "missing": (lambda t: t.pop("decoder.ln.bias"), "missing: decoder.ln.bias"),
    "unknown": (change("decoder.extra"), "unknown: decoder.extra"),
    "absurd block": (change("decoder.blocks.3000000000.attn.out.bias"), "unknown: decoder.blocks"),
    "another layer": (change("encoder.blocks.1.mlp1.bias"), "unknown: encoder.blocks.1"),
    "scalar bias": (
        change("encoder.ln_post.bias", shape=()),
        "of the wrong shape: encoder.ln_post.bias",
    ),
    "bias of one": (change("encoder.ln_post.bias", shape=(1,)), "of the wrong shape"),
    "transposed": (change("encoder.conv1.weight", shape=(64, 80, 3)), "of the wrong shape"),
    "other vocabulary": (
        change("decoder.token_embedding.weight", shape=(97, 64)),
        "of the wrong shape",
    ),
    "integer weight": (change("encoder.conv1.weight", "int32"), "int32"),
    "packed without scales": (change("encoder.conv1.weight", "uint32"), "uint32"),
    "bool bias": (change("encoder.ln_post.bias", "bool"), "bool"),
    "float64": (change("encoder.ln_post.bias", "float64"), "float64"),
    "float8": (change("encoder.ln_post.bias", "float8_e4m3"), "float8_e4m3"),
    "key bias": (change("encoder.blocks.0.attn.key.bias", shape=(64,)), "unknown"),
    "scales of a norm": (change("encoder.ln_post.scales", shape=(64, 1)), "unknown"),
    "heads of floats": (change("alignment_heads", "float16", (1, 2)), "alignment_heads float16"),
    "heads in threes": (change("alignment_heads", "int64", (1, 3)), "alignment_heads (1, 3)"),
    "no heads": (change("alignment_heads", "int64", (0, 2)), "alignment_heads (0, 2)"),
    "too many heads": (change("alignment_heads", "int64", (3, 2)), "alignment_heads (3, 2)"),
}
MLP = "encoder.blocks.0.mlp1"
PACKED_FAULTS: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "no biases": (lambda t: t.pop(f"{MLP}.biases"), f"missing: {MLP}.biases"),
    "no weight": (
        lambda t: t.pop(f"{MLP}.weight"),
        f"of a packing that MLX does not support: {MLP}.scales",
    ),
    "group size 16": (change(f"{MLP}.scales", shape=(256, 4)), "of a packing"),
    "group size 0": (change(f"{MLP}.scales", shape=(256, 0)), "of a packing"),
    "scales in a vector": (change(f"{MLP}.scales", shape=(256,)), "of a packing"),
    "7 bits": (change(f"{MLP}.weight", shape=(256, 14)), "of a packing"),
    "1 bit": (change(f"{MLP}.weight", shape=(256, 2)), "of a packing"),
    "no columns": (change(f"{MLP}.weight", shape=(256, 0)), "of a packing"),
    "other rows": (change(f"{MLP}.weight", shape=(255, 8)), "of a packing"),
    "biases of another size": (change(f"{MLP}.biases", shape=(256, 2)), "of the wrong shape"),
    "packed in float16": (change(f"{MLP}.weight", "float16"), f"{MLP}.weight float16"),
    "packed in int32": (change(f"{MLP}.weight", "int32"), f"{MLP}.weight int32"),
    "integer scales": (change(f"{MLP}.scales", "uint8"), f"{MLP}.scales uint8"),
}


@pytest.mark.parametrize(
    ("precision", "fault", "said"),
    [("float16", *fault) for fault in PLAIN_FAULTS.values()]
    + [("int4", *fault) for fault in PACKED_FAULTS.values()],
    ids=[*PLAIN_FAULTS, *PACKED_FAULTS],
)
def test_wrong_tensor_is_refused_by_name(
    precision: str, fault: Callable[[Tensors], object], said: str
) -> None:
    """A tensor that doesn't belong there as it is, is named with what is wrong."""
    tensors = described(precision=precision)
    fault(tensors)
    with pytest.raises(InvalidModelFormatError) as caught:
        check_tensors(SMALLEST, tensors, WHERE)
    assert said in str(caught.value)


def test_all_faults_are_in_one_error() -> None:
    """Missing, unknown and mis-shaped tensors are named together."""
    tensors = described()
    for fault in ("missing", "unknown", "scalar bias", "float64"):
        PLAIN_FAULTS[fault][0](tensors)
    tensors["encoder.ln_post.weight"] = ("float16", (3,))
    with pytest.raises(InvalidModelFormatError) as caught:
        check_tensors(SMALLEST, tensors, WHERE)
    for name in ("decoder.ln.bias", "decoder.extra", "encoder.ln_post.weight"):
        assert name in caught.value.detail


def test_long_lists_are_cut() -> None:
    """A config of a larger model names some of what is missing, and counts the rest."""
    with pytest.raises(InvalidModelFormatError, match=r"and \d+ more") as caught:
        check_tensors(TURBO, described(), WHERE)
    assert len(str(caught.value)) < 4000


@pytest.mark.parametrize(
    "said",
    [
        None,
        {"bits": 4, "group_size": 64},
        {"bits": 4, "group_size": 64, "mode": "affine"},
        {"bits": 8, "group_size": 32, "m": {"bits": 4, "group_size": 64}},
        {"bits": 4, "group_size": 64, "m": True, "other": False},
        {},
    ],
)
def test_config_may_agree_or_say_nothing(said: object) -> None:
    """The config may hold a global setting, one of the module's own, or none."""
    check_quantization({"quantization": said}, {"m": ModulePrecision(4, 64)}, WHERE)


@pytest.mark.parametrize(
    "said",
    [
        [],
        4,
        {"bits": 8, "group_size": 64},
        {"bits": 4, "group_size": 32},
        {"bits": 4, "group_size": 0},
        {"bits": 0, "group_size": 64},
        {"bits": True, "group_size": 64},
        {"bits": "4", "group_size": 64},
        {"bits": [[4]], "group_size": 64},
        {"bits": 4, "group_size": 64, "mode": "mxfp4"},
        {"bits": 4, "group_size": 64, "m": False},
        {"bits": 4, "group_size": 64, "m": {"bits": 8}},
        {"bits": 4, "group_size": 64, "m": {"group_size": -64}},
    ],
)
def test_config_that_contradicts_the_shapes_is_refused(said: object) -> None:
    """Bits, group size and mode must be what the shapes say."""
    with pytest.raises(InvalidModelFormatError):
        check_quantization({"quantization": said}, {"m": ModulePrecision(4, 64)}, WHERE)


values = (
    st.integers(1, 99).map(float)
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.lists(st.none())
)


@given(st.dictionaries(st.sampled_from([*LIMITS, "quantization", "x"]), values, max_size=2))
def test_any_config_gives_dimensions_or_a_typed_error(config: dict[str, object]) -> None:
    """Fuzzed configs are within the limits or refused."""
    try:
        found = parse_dimensions(make_config(SMALLEST) | config, WHERE)
    except InvalidModelFormatError:
        return
    for name, limit in LIMITS.items():
        value = getattr(found, name)
        assert type(value) is int
        assert 1 <= value <= limit
