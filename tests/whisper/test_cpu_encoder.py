"""The encoder in NumPy: equal to the plain network and to a computation in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_map

from fastwhisper.checkpoint.expected import expected_shapes
from fastwhisper.values import Dimensions, ModulePrecision
from fastwhisper.whisper.cpu_encoder import attend, encode, gelu
from fastwhisper.whisper.network import Whisper
from fastwhisper.whisper.params import apply_params

if TYPE_CHECKING:
    Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

DIMENSIONS = Dimensions(
    n_mels=80,
    n_audio_ctx=50,
    n_audio_state=128,
    n_audio_head=2,
    n_audio_layer=2,
    n_vocab=96,
    n_text_ctx=8,
    n_text_state=64,
    n_text_head=1,
    n_text_layer=1,
)


def build(dims: Dimensions, *, bits: int | None = None, dtype: mx.Dtype = mx.float32) -> Whisper:
    """Return a network with random weights, packed ones if bits are given."""
    names = [
        name.removesuffix(".weight")
        for name, shape in expected_shapes(dims).items()
        if len(shape) == 2 and name.endswith(".weight") and name.startswith("encoder")
    ]
    packed = {} if bits is None else dict.fromkeys(names, ModulePrecision(bits, 64))
    model = Whisper(dims, precision=packed, dtype=dtype)
    mx.random.seed(5)

    def fill(array: mx.array) -> mx.array:
        if not mx.issubdtype(array.dtype, mx.floating):
            words = mx.random.randint(0, 1 << 16, array.shape) * 40_503
            return words.astype(array.dtype) if array.dtype == mx.uint32 else array
        return (mx.random.normal(array.shape) * 0.1).astype(dtype)

    apply_params(model, dict(tree_flatten(tree_map(fill, model.parameters()))))
    return model


def make_mel(dims: Dimensions, windows: int = 1) -> mx.array:
    """Return a random mel of windows."""
    mel = mx.random.normal((windows, 2 * dims.n_audio_ctx, dims.n_mels), key=mx.random.key(1))
    mx.eval(mel)
    return mel


def attend_in_float64(query: Array, keys: Array, values: Array, heads: int) -> Array:
    """Compute attention by its definition."""
    parts = []
    for q, k, v in zip(
        *(np.split(array.astype(np.float64), heads, axis=1) for array in (query, keys, values)),
        strict=True,
    ):
        scores = q @ k.T / math.sqrt(q.shape[1])
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        parts.append(weights / weights.sum(axis=1, keepdims=True) @ v)
    return np.concatenate(parts, axis=1)


@given(
    context=st.integers(1, 40),
    heads=st.integers(1, 3),
    layers=st.integers(1, 2),
    n_mels=st.sampled_from([80, 128]),
    windows=st.integers(1, 3),
)
@settings(max_examples=25, deadline=None)
def test_equals_the_plain_network(
    context: int, heads: int, layers: int, n_mels: int, windows: int
) -> None:
    """Features differ by rounding alone, for any sizes."""
    dims = replace(
        DIMENSIONS,
        n_mels=n_mels,
        n_audio_ctx=context,
        n_audio_state=64 * heads,
        n_audio_head=heads,
        n_audio_layer=layers,
    )
    encoder = build(dims).encoder
    mel = make_mel(dims, windows)
    plain = np.asarray(encoder(mel))
    features = np.asarray(encode(encoder, mel))
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, plain, rtol=0, atol=2e-5 * np.abs(plain).max())


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_unpacks_packed_weights(bits: int) -> None:
    """A quantized network has the features of the plain form."""
    encoder = build(DIMENSIONS, bits=bits).encoder
    mel = make_mel(DIMENSIONS)
    plain = np.asarray(encoder(mel))
    np.testing.assert_allclose(
        np.asarray(encode(encoder, mel)), plain, rtol=0, atol=1e-4 * np.abs(plain).max()
    )


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=["float16", "bfloat16"])
def test_computes_half_precision_in_float32(dtype: mx.Dtype) -> None:
    """Weights of half precision are converted, and the features converted back."""
    encoder = build(DIMENSIONS, dtype=dtype).encoder
    mel = make_mel(DIMENSIONS).astype(dtype)
    features = encode(encoder, mel)
    assert features.dtype == dtype
    encoder.update(tree_map(lambda array: array.astype(mx.float32), encoder.parameters()))
    exact = encode(encoder, mel.astype(mx.float32))
    assert mx.array_equal(features, exact.astype(dtype)).item()


def test_a_window_depends_on_no_other() -> None:
    """A window has the same features, to the last bit, alone, in a batch, and again."""
    encoder = build(DIMENSIONS).encoder
    mel = make_mel(DIMENSIONS, windows=3)
    together = encode(encoder, mel)
    for number in range(3):
        alone = encode(encoder, mel[number : number + 1])
        assert mx.array_equal(alone[0], together[number]).item()
    assert mx.array_equal(encode(encoder, mel), together).item()


def test_broken_weights_give_nan_without_a_warning() -> None:
    """As with MLX: overflow and invalid values are no errors of the arithmetic."""
    encoder = build(DIMENSIONS).encoder
    encoder.blocks[0].mlp1.weight = mx.full(encoder.blocks[0].mlp1.weight.shape, 3e38)
    assert mx.isnan(encode(encoder, make_mel(DIMENSIONS))).any().item()


def test_changes_neither_its_input_nor_the_weights() -> None:
    """Arrays that NumPy shares with MLX are only read."""
    encoder = build(DIMENSIONS, bits=8).encoder
    mel = make_mel(DIMENSIONS)
    arrays = [mel, encoder["_positional_embedding"]]
    arrays += [array for _, array in tree_flatten(encoder.parameters())]
    before = [np.array(array) for array in arrays]
    encode(encoder, mel)
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(np.asarray(array), copy)


@given(
    rows=st.integers(1, 40) | st.sampled_from([499, 500, 501, 1001]),
    positions=st.integers(1, 70),
    heads=st.integers(1, 4),
    size=st.integers(1, 9),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 10.0]),
)
@settings(max_examples=60, deadline=None)
def test_attention_is_what_float64_gives(
    rows: int, positions: int, heads: int, size: int, scale: float
) -> None:
    """Outputs differ by rounding alone, also for rows that are not a multiple of the chunk."""
    random = np.random.default_rng(rows + 41 * positions)
    query, keys, values = (
        random.normal(size=(length, heads * size)).astype(np.float32)
        for length in (rows, positions, positions)
    )
    query *= np.float32(scale)
    before = query.copy(), keys.copy(), values.copy()
    out = attend(query, keys, values, heads=heads)
    assert out.dtype == np.float32
    exact = attend_in_float64(query, keys, values, heads)
    # A score of size s is rounded by s times 6e-8, and so is the logarithm of its weight.
    np.testing.assert_allclose(out, exact, rtol=0, atol=1e-5 * max(1.0, scale))
    for array, copy in zip((query, keys, values), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("score", [1e4, -1e4, 3e30])
def test_attention_to_one_huge_score_is_that_value(score: float) -> None:
    """Exponentials neither overflow nor all vanish."""
    query = np.full((3, 1), score, np.float32)
    keys = np.array([[0.0], [1.0], [-1.0]], np.float32)
    values = np.array([[5.0], [7.0], [9.0]], np.float32)
    highest = 7.0 if score > 0 else 9.0
    np.testing.assert_array_equal(attend(query, keys, values, heads=1), np.full((3, 1), highest))


@pytest.mark.parametrize("score", [0.0, 1e4])
def test_attention_to_equal_scores_is_the_mean(score: float) -> None:
    """Positions of equal scores have equal weights."""
    query = np.full((2, 1), score, np.float32)
    values = np.arange(1500, dtype=np.float32)[:, None]
    out = attend(query, np.ones_like(values), values, heads=1)
    np.testing.assert_allclose(out, np.full((2, 1), 749.5), rtol=1e-6)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=50))
def test_gelu_is_exact_to_float32(numbers: list[float]) -> None:
    """It is x Φ(x) with the exact Φ, within the rounding of float32."""
    exact = [x * math.erfc(-x / math.sqrt(2)) / 2 for x in numbers]
    x = np.array(numbers, np.float32)
    with np.errstate(over="ignore"):
        found = gelu(x)
    assert found is x
    np.testing.assert_allclose(found, exact, rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("size", [1, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, 3 << 16])
def test_gelu_covers_every_chunk(size: int) -> None:
    """Each element is replaced once, whatever the length."""
    x = np.linspace(-6, 6, size, dtype=np.float32).reshape(1, size)
    exact = [v * math.erfc(-v / math.sqrt(2)) / 2 for v in x.ravel().tolist()]
    np.testing.assert_allclose(gelu(x).ravel(), exact, rtol=3e-7, atol=3e-7)
