"""The network: mlx_whisper's to the last bit in its plain form, nearly in its fast forms."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import mlx.core as mx
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_whisper.whisper import ModelDimensions
from mlx_whisper.whisper import Whisper as UpstreamWhisper

from fastwhisper.checkpoint.expected import expected_shapes
from fastwhisper.loading.compute import find_device
from fastwhisper.values import Dimensions, ModulePrecision
from fastwhisper.whisper.attention import DecoderCache
from fastwhisper.whisper.network import Whisper, compute_sinusoids
from fastwhisper.whisper.params import apply_params

DIMENSIONS = Dimensions(
    n_mels=80,
    n_audio_ctx=50,
    n_audio_state=128,
    n_audio_head=2,
    n_audio_layer=2,
    n_vocab=51865,
    n_text_ctx=32,
    n_text_state=128,
    n_text_head=2,
    n_text_layer=3,
)
EMBEDDING = "decoder.token_embedding"
LAYERS = [
    name.removesuffix(".weight")
    for name, shape in expected_shapes(DIMENSIONS).items()
    if len(shape) == 2 and name.endswith(".weight")
]


def mixed() -> dict[str, ModulePrecision]:
    """Return bits of its own for every second layer, and none for some."""
    bits = (2, 3, 4, 5, 6, 8)
    # MLX 0.32.4 with CUDA multiplies wrongly where a row is one group, of 128 numbers here.
    groups = (32, 64, 128) if find_device() == "cpu" else (32, 64)
    found = {
        name: ModulePrecision(bits[at % len(bits)], groups[at % len(groups)])
        for at, name in enumerate(LAYERS)
        if at % 4
    }
    return found | {EMBEDDING: ModulePrecision(8, 32)}


PRECISIONS = {
    "plain": {},
    "int8": dict.fromkeys(LAYERS, ModulePrecision(8, 64)),
    "int4": dict.fromkeys(LAYERS, ModulePrecision(4, 64)),
    "int4, plain embedding": dict.fromkeys(
        [name for name in LAYERS if name != EMBEDDING], ModulePrecision(4, 64)
    ),
    "mixed": mixed(),
}
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def pair(precision: str, dtype: mx.Dtype, **options: Any) -> tuple[Whisper, Any]:
    """Return our network and mlx_whisper's, with the same random weights."""
    packed = PRECISIONS[precision]
    mx.random.seed(3)
    theirs = UpstreamWhisper(ModelDimensions(**asdict(DIMENSIONS)), dtype)
    theirs.decoder.positional_embedding = mx.random.normal((32, 128))
    theirs.set_dtype(dtype)
    if packed:
        nn.quantize(
            theirs,
            class_predicate=lambda name, _: asdict(packed[name]) if name in packed else False,
        )
    mx.eval(theirs.parameters())
    ours = Whisper(DIMENSIONS, precision=packed, dtype=dtype, **options)
    apply_params(ours, dict(tree_flatten(theirs.parameters())))
    return ours, theirs


def assert_equal(ours: Any, theirs: Any) -> None:
    """Compare all arrays of two results to the last bit."""
    pairs = list(zip(tree_flatten(ours), tree_flatten(theirs), strict=True))
    assert pairs
    for (_, one), (name, other) in pairs:
        assert one.dtype == other.dtype, name
        assert mx.array_equal(one, other).item(), name


def assert_close(ours: mx.array, theirs: mx.array) -> None:
    """Compare arrays that may differ in rounding: by 1e-5 of the largest, in 16 bits by more."""
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    tolerance = {mx.float32: 1e-5, mx.float16: 1e-2, mx.bfloat16: 8e-2}[ours.dtype]
    assert (mx.abs(ours - theirs).max() <= tolerance * mx.abs(theirs).max()).item()


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        # A CPU takes seconds for products in half precision.
        pytest.param(
            name,
            dtype,
            marks=[] if dtype == "float32" and name in {"plain", "mixed"} else pytest.mark.slow,
        )
        for name in PRECISIONS
        for dtype in DTYPES
    ],
)
def test_equals_mlx_whisper(precision: str, dtype: str) -> None:
    """Parameters are equal, logits and scores to the last bit, features up to the order of sums."""
    ours, theirs = pair(precision, DTYPES[dtype])
    assert (
        dict(tree_flatten(ours.parameters())).keys()
        == dict(tree_flatten(theirs.parameters())).keys()
    )
    assert_equal(ours.parameters(), theirs.parameters())
    mel = mx.random.normal((2, 100, 80)).astype(DTYPES[dtype])
    features = theirs.encoder(mel)
    assert_close(ours.encoder(mel), features)
    first = mx.array([[50258, 50259, 7, 90], [50258, 50260, 300, 4]])
    one, scores = ours.decoder(first, features)
    other, cache, their_scores = theirs.decoder(first, features)
    assert_equal([one, scores], [other, their_scores])
    # The fast form computes the same, first from two tokens, then token by token.
    keep = DecoderCache(ours.decoder.read(features), 8)
    stepped = [ours.decoder.step(first[:, :2], keep)]
    stepped += [ours.decoder.step(first[:, n : n + 1], keep) for n in (2, 3)]
    assert_close(ours.decoder.project(mx.concatenate(stepped, axis=1)), other)
    following = mx.array([[11], [400]])
    expected = theirs.decoder(following, features, cache)[0]
    assert_close(ours.decoder.project(ours.decoder.step(following, keep)), expected)
    assert keep.length == 5
    assert_close(ours(mel, first), other)


def test_rows_share_a_window() -> None:
    """Several texts of one window attend to the same features; other windows' rows do not."""
    ours, _ = pair("plain", mx.float32)
    features = ours.encoder(mx.random.normal((2, 100, 80)))
    cache = DecoderCache(ours.decoder.read(features), 4)
    first = mx.array([[1, 2], [3, 4]])
    ours.decoder.step(first, cache)
    cache.repeat(3)
    following = mx.array([[5], [6], [7], [8], [9], [10]])
    found = ours.decoder.project(ours.decoder.step(following, cache))[:, 0]
    for row, window in enumerate([0, 0, 0, 1, 1, 1]):
        text = mx.concatenate([first[window : window + 1], following[row : row + 1]], axis=1)
        expected = ours.decoder(text, features[window : window + 1])[0][0, -1]
        assert mx.allclose(found[row], expected, rtol=1e-4, atol=1e-4).item()


def test_unpacking_changes_only_the_order_of_sums() -> None:
    """On a CPU long inputs are multiplied with unpacked weights."""
    ours, theirs = pair("int4", mx.float32, device="cpu")
    mel = mx.random.normal((1, 100, 80))
    assert mx.allclose(ours.encoder(mel), theirs.encoder(mel), rtol=1e-3, atol=1e-4).item()


def test_a_new_network_draws_nothing_and_takes_no_memory() -> None:
    """Its parameters are lazy zeros: no random key is split, nothing is allocated."""
    mx.random.seed(9)
    expected = mx.random.uniform()
    mx.eval(expected)
    mx.random.seed(9)
    before = mx.get_active_memory()
    network = Whisper(replace(DIMENSIONS, n_vocab=1 << 20))
    assert network.decoder.token_embedding.weight.nbytes >= 1 << 28
    assert mx.get_active_memory() - before < 1 << 20
    assert mx.random.uniform().item() == expected.item()


def test_sinusoids_are_those_of_the_paper() -> None:
    """Sines first, then cosines, from one step a position to one in 10,000."""
    found = compute_sinusoids(3, 4)
    position = mx.array([0.0, 1.0, 2.0])
    slow = position / 10_000
    expected = mx.stack([mx.sin(position), mx.sin(slow), mx.cos(position), mx.cos(slow)], axis=1)
    assert mx.allclose(found, expected, atol=1e-6).item()
