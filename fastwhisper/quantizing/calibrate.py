"""A network and speech -> the same network, quantized layer by layer.

Speech passes through the network while its layers are quantized, in the order of computation. So
each layer is rounded for the inputs that it gets from the quantized layers before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import mlx.core as mx
import numpy as np

from fastwhisper.checkpoint.expected import EMBEDDING
from fastwhisper.quantizing.grid import (
    Grid,
    Packed,
    dequantize,
    pack,
    round_to_nearest,
    search_grid,
)
from fastwhisper.quantizing.rounding import DAMPING, Moments, compensate, refit
from fastwhisper.whisper.layers import gelu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from fastwhisper.quantizing.grid import Codes, Floats
    from fastwhisper.values import ModulePrecision
    from fastwhisper.whisper.network import Block, Whisper

__all__ = ["CalibrationWindow", "QuantizedLayer", "calibrate", "round_layers"]

_ROWS: Final = 4096
"""Rows that are rounded between two calls of `check`: one or two seconds."""

_MIN_AUDIO_POSITIONS: Final = 1000
"""Inputs with at least this many positions are audio; a text has at most 448."""

_AUDIO_STRIDE: Final = 2
"""Every second position of audio is counted: neighbours are alike, and counting them all would take
longer than the network itself."""

_EMBEDDING_DAMPING: Final = 0.1
"""Damping of the embedding. The moments describe it only as the output layer. It is also the input
layer, where it looks up rows and all columns are equally important. So it gets more damping."""


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationWindow:
    """One window of speech, and what the network computes from it before it is quantized.

    Attributes:
        mel: Log-mel input. Shape (3000, n_mels), float32.
        features: The encoded window. Shape (1500, state), float32.
        tokens: The first tokens of a transcript, and the text that the network writes.
    """

    mel: mx.array
    features: mx.array
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedLayer:
    """One quantized linear layer, or the token embedding.

    Attributes:
        name: Its module name in the network.
        packed: Its weight.
        bias: Its linear bias, shape (rows,), float32; None if the layer has none or keeps it.
    """

    name: str
    packed: Packed
    bias: Floats | None


@dataclass(frozen=True, slots=True, eq=False)
class _BranchResult:
    """What one residual branch of a block computes: attention, or the feed-forward layers.

    Attributes:
        output: What is added to the state. Shape (1, positions, state), float32.
        inputs: The input of each linear layer, shape (1, positions, columns), float32. The key is
            the names of the layers that share the input.
    """

    output: mx.array
    inputs: dict[tuple[str, ...], mx.array]


def calibrate(
    network: Whisper,
    windows: Sequence[CalibrationWindow],
    precision: Mapping[str, ModulePrecision],
    *,
    check: Callable[[], None],
) -> Iterator[QuantizedLayer]:
    """Quantize every linear layer and the token embedding of a network, calibrated on speech.

    Args:
        network: The network, in float32. Its weights are replaced by the rounded ones.
        windows: The speech.
        precision: Bits and group size of each module by its name.
        check: Called between steps; may raise to cancel.

    Yields:
        Each layer as soon as it is quantized.

    Raises:
        FloatingPointError: The inputs of a layer are not finite.
    """
    yield from _Calibration(network, windows, precision, check).quantize()


class _Calibration:
    """The network, and the speech that passes through it."""

    def __init__(
        self,
        network: Whisper,
        windows: Sequence[CalibrationWindow],
        precision: Mapping[str, ModulePrecision],
        check: Callable[[], None],
    ) -> None:
        self._network = network
        self._windows = windows
        self._precision = precision
        self._check = check

    def quantize(self) -> Iterator[QuantizedLayer]:
        """Quantize the embedding, the encoder and the decoder."""
        encoder, decoder = self._network.encoder, self._network.decoder
        states = [self._evaluate(encoder.embed(window.mel[None])) for window in self._windows]
        # The embedding comes first: the decoder begins with the quantized embedding. Its inputs
        # as the last layer are those of the network that is not quantized yet.
        yield self._quantize_embedding(
            [self._evaluate(self._compute_last_state(window)) for window in self._windows]
        )
        for layer, block in enumerate(encoder.blocks):
            yield from self._quantize_block(f"encoder.blocks.{layer}", block, states)
        features = [self._evaluate(encoder.ln_post(state)) for state in states]
        states = [decoder.embed(mx.array([window.tokens])) for window in self._windows]
        for layer, block in enumerate(decoder.blocks):
            yield from self._quantize_block(f"decoder.blocks.{layer}", block, states, features)

    def _compute_last_state(self, window: CalibrationWindow) -> mx.array:
        """Return the input of the output layer. Shape (tokens, state), float32."""
        self._check()
        decoder = self._network.decoder
        features = window.features[None]
        x = decoder.embed(mx.array([window.tokens]))
        for block in decoder.blocks:
            for branch in _DECODER_BRANCHES:
                x = x + branch(block, x, features).output
        last: mx.array = decoder.ln(x)
        return last[0]

    def _quantize_embedding(self, last_states: list[mx.array]) -> QuantizedLayer:
        """Quantize the token embedding for its inputs as the output layer."""
        rows = np.array(mx.concatenate(last_states))
        second = rows.T @ rows / np.float32(len(rows))
        embedding = self._network.decoder.token_embedding
        codes, grid = self._round(
            np.array(embedding.weight), EMBEDDING, second, damping=_EMBEDDING_DAMPING
        )
        embedding.weight = mx.array(dequantize(codes, grid))
        return QuantizedLayer(EMBEDDING, pack(codes, grid), None)

    def _quantize_block(
        self,
        name: str,
        block: Block,
        states: list[mx.array],
        features: list[mx.array] | None = None,
    ) -> Iterator[QuantizedLayer]:
        """Quantize one block branch by branch, and replace each state by the block's output.

        Args:
            name: Its module name.
            block: The block.
            states: Its input for each window. Shape (1, positions, state), float32.
            features: The encoded windows for a decoder's block; None for an encoder's.
        """
        encoded: Sequence[mx.array | None] = features or [None] * len(states)
        for branch in _ENCODER_BRANCHES if features is None else _DECODER_BRANCHES:
            sums: dict[tuple[str, ...], _MomentSums] = {}
            for x, xa in zip(states, encoded, strict=True):
                self._check()
                for layers, inputs in branch(block, x, xa).inputs.items():
                    sums.setdefault(layers, _MomentSums()).add(inputs[0])
            for layers, total in sums.items():
                moments = total.moments()
                for layer in layers:
                    self._check()
                    yield self._quantize_linear(f"{name}.{layer}", _find(block, layer), moments)
            for at, (x, xa) in enumerate(zip(states, encoded, strict=True)):
                states[at] = self._evaluate(x + branch(block, x, xa).output)

    def _quantize_linear(self, name: str, layer: Any, moments: Moments) -> QuantizedLayer:
        """Quantize one linear layer, and replace its weight and bias in the network."""
        weight = np.array(layer.weight)
        codes, grid = self._round(weight, name, moments.second, damping=DAMPING)
        rounded = dequantize(codes, grid)
        layer.weight = mx.array(rounded)
        bias = None
        if "bias" in layer:
            bias = np.array(layer.bias) + (weight - rounded) @ moments.mean
            bias = bias.astype(np.float16).astype(np.float32)
            layer.bias = mx.array(bias)
        return QuantizedLayer(name, pack(codes, grid), bias)

    def _round(
        self, weight: Floats, name: str, second: Floats, *, damping: float
    ) -> tuple[Codes, Grid]:
        """Round a weight in parts, which is possible because its rows are independent."""
        kind = self._precision[name]
        importance = np.diag(second).copy()
        parts: list[tuple[Codes, Grid]] = []
        for start in range(0, len(weight), _ROWS):
            self._check()
            part = weight[start : start + _ROWS]
            grid = search_grid(part, kind, importance)
            codes = compensate(part, grid, second, damping=damping)
            parts.append((codes, refit(part, codes, grid, second, damping=damping)))
        scales = np.concatenate([grid.scales for _, grid in parts])
        biases = np.concatenate([grid.biases for _, grid in parts])
        return np.concatenate([codes for codes, _ in parts]), Grid(scales, biases, kind)

    def _evaluate(self, array: mx.array) -> mx.array:
        """Evaluate an array and return it."""
        self._check()
        mx.eval(array)
        return array


class _MomentSums:
    """Sums over the inputs of a layer, from which its moments are computed."""

    def __init__(self) -> None:
        self._count = 0
        self._shift: mx.array | None = None
        self._sums: list[mx.array] = []

    def add(self, inputs: mx.array) -> None:
        """Add inputs. Shape (positions, columns), float32."""
        if len(inputs) >= _MIN_AUDIO_POSITIONS:
            inputs = inputs[::_AUDIO_STRIDE]
        if self._shift is None:
            # Sums of values near zero lose the least precision. So an approximate mean, that of
            # the first inputs, is subtracted.
            self._shift = inputs.mean(axis=0)
        inputs = inputs - self._shift
        self._count += len(inputs)
        sums = [inputs.sum(axis=0), inputs.T @ inputs]
        if self._sums:
            sums = [one + other for one, other in zip(self._sums, sums, strict=True)]
        mx.eval(sums, self._shift)
        self._sums = sums

    def moments(self) -> Moments:
        """Return the moments of all inputs that were added."""
        mean, second = (np.array(total).astype(np.float64) / self._count for total in self._sums)
        second -= np.outer(mean, mean)
        mean += np.array(self._shift)
        return Moments(mean.astype(np.float32), second.astype(np.float32))


def _encoder_attention(
    block: Block, x: mx.array, _: object, mask: mx.array | None = None
) -> _BranchResult:
    """Compute self-attention. The mask has shape (positions, positions)."""
    attn, x = block.attn, block.attn_ln(x)
    mixed, _ = attn.mix(attn.query(x), attn.split(attn.key(x)), attn.split(attn.value(x)), mask)
    shared = ("attn.query", "attn.key", "attn.value")
    return _BranchResult(attn.out(mixed), {shared: x, ("attn.out",): mixed})


def _decoder_attention(block: Block, x: mx.array, _: object) -> _BranchResult:
    """Compute self-attention in which a token does not see the tokens after it."""
    length = x.shape[1]
    mask = mx.triu(mx.full((length, length), float("-inf")), k=1)
    return _encoder_attention(block, x, None, mask)


def _cross_attention(block: Block, x: mx.array, features: mx.array) -> _BranchResult:
    """Compute the attention of tokens to the encoded window. Its shape is (1, 1500, state)."""
    attn, x = block.cross_attn, block.cross_attn_ln(x)
    mixed, _ = attn.mix(attn.query(x), *block.read(features))
    inputs = {
        ("cross_attn.query",): x,
        ("cross_attn.key", "cross_attn.value"): features,
        ("cross_attn.out",): mixed,
    }
    return _BranchResult(attn.out(mixed), inputs)


def _feed_forward(block: Block, x: mx.array, _: object) -> _BranchResult:
    """Compute the feed-forward layers."""
    x = block.mlp_ln(x)
    hidden = gelu(block.mlp1(x))
    return _BranchResult(block.mlp2(hidden), {("mlp1",): x, ("mlp2",): hidden})


_Branch: TypeAlias = "Callable[[Block, mx.array, Any], _BranchResult]"
_ENCODER_BRANCHES: Final[tuple[_Branch, ...]] = (_encoder_attention, _feed_forward)
_DECODER_BRANCHES: Final[tuple[_Branch, ...]] = (
    _decoder_attention, _cross_attention, _feed_forward,
)  # fmt: skip


def _find(module: Any, path: str) -> Any:
    """Return the part of a module that a dotted name stands for, such as "attn.query"."""
    for name in path.split("."):
        module = module[int(name)] if name.isdigit() else getattr(module, name)
    return module


def round_layers(
    network: Whisper, precision: Mapping[str, ModulePrecision], *, check: Callable[[], None]
) -> Iterator[QuantizedLayer]:
    """Quantize every layer without speech: each weight becomes the nearest value of its group.

    Args:
        network: The network, in float32. It is not changed.
        precision: Bits and group size of each module by its name.
        check: Called between modules; may raise to cancel.

    Yields:
        Each layer as soon as it is quantized.
    """
    for name, kind in precision.items():
        check()
        weight = np.array(_find(network, name).weight)
        grid = search_grid(weight, kind)
        yield QuantizedLayer(name, pack(round_to_nearest(weight, grid), grid), None)
