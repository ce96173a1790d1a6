"""Quantizing a network layer by layer, on a network small enough to compare its outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest

from fastwhisper.quantizing.calibrate import (
    CalibrationWindow,
    QuantizedLayer,
    calibrate,
    round_layers,
)
from fastwhisper.quantizing.recipe import choose_precision
from fastwhisper.values import Dimensions, ModulePrecision, Quantization
from tests.helpers.modules import load_by_hand, name_parameters
from tests.helpers.tiny_models import write_model

if TYPE_CHECKING:
    from pathlib import Path

    from fastwhisper.whisper.network import Whisper

SMALL = Dimensions(
    n_mels=80,
    n_audio_ctx=64,
    n_audio_state=64,
    n_audio_head=1,
    n_audio_layer=2,
    n_vocab=96,
    n_text_ctx=32,
    n_text_state=64,
    n_text_head=1,
    n_text_layer=2,
)
THREE_BITS = {
    name: ModulePrecision(3, 64)
    for name in choose_precision(SMALL, Quantization.INT4, size_ratio=0.9)
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a model of random weights."""
    return write_model(tmp_path / "model", dimensions=SMALL, dtype="float32")


def windows(network: Whisper, count: int, *, seed: int = 0) -> list[CalibrationWindow]:
    """Make noise, and tokens that have nothing to do with it."""
    rng = np.random.default_rng(seed)
    heard = []
    for _ in range(count):
        mel = mx.array(rng.standard_normal((2 * SMALL.n_audio_ctx, 80)).astype(np.float32))
        tokens = tuple(rng.integers(0, SMALL.n_vocab, 24).tolist())
        heard.append(CalibrationWindow(mel, network.encoder(mel[None])[0], tokens))
    return heard


def logits(network: Whisper, heard: CalibrationWindow) -> mx.array:
    """Compute what the network thinks of each token. Shape (1, tokens, vocabulary)."""
    return network(heard.mel[None], mx.array([heard.tokens]))


def off(network: Whisper, exact: Whisper) -> float:
    """Compute how far a network is off on windows it was not calibrated on."""
    return sum(
        float(((logits(network, heard) - logits(exact, heard)) ** 2).mean())
        for heard in windows(exact, 4, seed=9)
    )


def restored(rounded: QuantizedLayer) -> mx.array:
    """Let MLX unpack a module's weight. Shape (rows, columns), float32."""
    packed = rounded.packed
    return mx.dequantize(
        mx.array(packed.weight),
        mx.array(packed.scales).astype(mx.float32),
        mx.array(packed.biases).astype(mx.float32),
        group_size=64,
        bits=3,
    )


def go_on() -> None:
    """Never cancel."""


def test_every_module_comes_once(directory: Path) -> None:
    """All modules that have a precision are given, each once, in their shapes."""
    network = load_by_hand(directory)
    given = list(calibrate(network, windows(network, 2), THREE_BITS, check=go_on))
    assert sorted(rounded.name for rounded in given) == sorted(THREE_BITS)
    for rounded in given:
        rows = len(rounded.packed.weight)
        assert rounded.packed.scales.shape == rounded.packed.biases.shape
        assert rounded.bias is None or rounded.bias.shape == (rows,)
        assert (rounded.bias is None) == (
            rounded.name.endswith("key") or rounded.name == "decoder.token_embedding"
        )


def test_the_network_becomes_what_is_given(directory: Path) -> None:
    """After calibration the network's weights are what MLX unpacks of the given ones."""
    network = load_by_hand(directory)
    given = list(calibrate(network, windows(network, 2), THREE_BITS, check=go_on))
    weights = name_parameters(network)
    for rounded in given:
        np.testing.assert_allclose(weights[f"{rounded.name}.weight"], restored(rounded), atol=1e-5)
        if rounded.bias is not None:
            assert np.array_equal(np.array(weights[f"{rounded.name}.bias"]), rounded.bias)


def test_calibrating_beats_plain_rounding(directory: Path) -> None:
    """On other noise than it was calibrated on, the network is nearer to the exact one."""
    exact, calibrated, plain = (load_by_hand(directory) for _ in range(3))
    for _ in calibrate(calibrated, windows(exact, 24), THREE_BITS, check=go_on):
        pass
    for rounded in round_layers(load_by_hand(directory), THREE_BITS, check=go_on):
        layer: Any = plain
        for name in rounded.name.split("."):
            layer = layer[int(name)] if name.isdigit() else getattr(layer, name)
        layer.weight = restored(rounded)
    assert off(calibrated, exact) < 0.7 * off(plain, exact)


def test_it_asks_before_each_step(directory: Path) -> None:
    """What `check` raises ends the work within a module."""
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked == 40:
            raise KeyboardInterrupt

    given: list[QuantizedLayer] = []
    network = load_by_hand(directory)
    heard = windows(network, 2)
    with pytest.raises(KeyboardInterrupt):
        given.extend(calibrate(network, heard, THREE_BITS, check=check))
    assert 0 < len(given) < len(THREE_BITS)


def test_noise_of_nothing_is_taken(directory: Path) -> None:
    """Silence, whose inputs hardly vary, calibrates without a number that is not finite."""
    network = load_by_hand(directory)
    mel = mx.zeros((2 * SMALL.n_audio_ctx, 80))
    silence = [CalibrationWindow(mel, network.encoder(mel[None])[0], (0, 0, 0))]
    for rounded in calibrate(network, silence, THREE_BITS, check=go_on):
        assert np.isfinite(rounded.packed.scales).all()
        assert np.isfinite(rounded.packed.biases).all()
