"""A network and speech -> the same network, quantized layer by layer.

Speech passes through the network while its layers are replaced by their rounded forms, in the
order in which it meets them. So each layer is rounded for the inputs it will really get.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import mlx.core as mx
import numpy as np
from mlx import nn

from fastwhisper.quantizing.rounding import (
    DAMPING,
    Grid,
    Moments,
    Packed,
    compensate,
    dequantize,
    pack,
    refit,
    round_to_nearest,
    search_grid,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from fastwhisper.quantizing.rounding import Codes, Floats
    from fastwhisper.values import ModulePrecision
    from fastwhisper.whisper.network import Block, Whisper

__all__ = ["EMBEDDING", "Heard", "Rounded", "calibrate", "round_plainly"]

EMBEDDING: Final = "decoder.token_embedding"

_ROWS: Final = 4096
"""Rows rounded between two looks at whether the caller has gone: a second or two."""

_STRIDE: Final = 2
"""Every second frame of audio counts: neighbours are alike, and their moments cost more than the
network itself."""

_EMBEDDING_DAMPING: Final = 0.1
"""The embedding is the first layer as well as the last, and only there is it multiplied with what
its moments describe; as the first, all its columns count the same."""


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """One window of speech, and what the network makes of it.

    Attributes:
        mel: Its log-mel input. Shape (3000, mels), float32.
        audio: The exact encoder's output for it. Shape (1500, state), float32.
        tokens: The prompt, and the tokens that the network writes.
    """

    mel: mx.array
    audio: mx.array
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """One quantized module.

    Attributes:
        name: Its name in the network.
        packed: Its weight.
        bias: Its linear bias, shape (rows,), float32; None if it has none.
    """

    name: str
    packed: Packed
    bias: Floats | None


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """One residual step of a block.

    Attributes:
        output: What it adds. Shape (1, positions, state), float32.
        inputs: The inputs of its linear layers, by the layers that share them.
    """

    output: mx.array
    inputs: dict[tuple[str, ...], mx.array]


def calibrate(
    network: Whisper,
    speech: Sequence[Heard],
    precision: Mapping[str, ModulePrecision],
    *,
    check: Callable[[], None],
) -> Iterator[Rounded]:
    """Quantize every linear layer and the token embedding of a network.

    Args:
        network: The network, in float32. Its layers are rounded in place.
        speech: What passes through it.
        precision: Bits and group size of each module by its name.
        check: Called between steps; may raise to cancel.

    Yields:
        Each module as it is done.
    """
    yield from _Calibration(network, speech, precision, check).modules()


class _Calibration:
    """The network, and what is on its way through it."""

    def __init__(
        self,
        network: Whisper,
        speech: Sequence[Heard],
        precision: Mapping[str, ModulePrecision],
        check: Callable[[], None],
    ) -> None:
        self._network = network
        self._speech = speech
        self._precision = precision
        self._check = check

    def modules(self) -> Iterator[Rounded]:
        """Go through the embedding, the encoder and the decoder."""
        encoder, decoder = self._network.encoder, self._network.decoder
        states = [self._evaluated(encoder.embed(heard.mel[None])) for heard in self._speech]
        # The embedding's inputs in the end are the exact network's: it comes first, because
        # the rounded embedding is what the decoder's layers begin with.
        yield self._embedding([self._evaluated(self._last(heard)) for heard in self._speech])
        for layer, block in enumerate(encoder.blocks):
            yield from self._block(f"encoder.blocks.{layer}", block, states)
        audio = [self._evaluated(encoder.ln_post(state)) for state in states]
        states = [decoder.embed(mx.array([heard.tokens])) for heard in self._speech]
        for layer, block in enumerate(decoder.blocks):
            yield from self._block(f"decoder.blocks.{layer}", block, states, audio)

    def _last(self, heard: Heard) -> mx.array:
        """Compute what the exact network's embedding is multiplied with in the end."""
        self._check()
        decoder = self._network.decoder
        audio = heard.audio[None]
        x = decoder.embed(mx.array([heard.tokens]))
        for block in decoder.blocks:
            for step in _steps(audio):
                x = x + step(block, x, audio).output
        last: mx.array = decoder.ln(x)
        return last[0]

    def _embedding(self, last: list[mx.array]) -> Rounded:
        rows = np.array(mx.concatenate(last))
        second = rows.T @ rows / np.float32(len(rows))
        embedding = self._network.decoder.token_embedding
        codes, grid = self._round(
            np.array(embedding.weight), EMBEDDING, second, damping=_EMBEDDING_DAMPING
        )
        embedding.weight = mx.array(dequantize(codes, grid))
        return Rounded(EMBEDDING, pack(codes, grid), None)

    def _block(
        self, name: str, block: Block, states: list[mx.array], audio: list[mx.array] | None = None
    ) -> Iterator[Rounded]:
        """Round one block step by step, and take `states` through it."""
        heard: Sequence[mx.array | None] = audio or [None] * len(states)
        for step in _steps(audio):
            sums: dict[tuple[str, ...], _Sums] = {}
            for x, xa in zip(states, heard, strict=True):
                self._check()
                for layers, inputs in step(block, x, xa).inputs.items():
                    sums.setdefault(layers, _Sums()).add(inputs[0])
            for layers, total in sums.items():
                moments = total.moments()
                for layer in layers:
                    self._check()
                    yield self._linear(f"{name}.{layer}", _find(block, layer), moments)
            for at, (x, xa) in enumerate(zip(states, heard, strict=True)):
                states[at] = self._evaluated(x + step(block, x, xa).output)

    def _linear(self, name: str, layer: Any, moments: Moments) -> Rounded:
        """Round one linear layer in its place."""
        weight = np.array(layer.weight)
        codes, grid = self._round(weight, name, moments.second, damping=DAMPING)
        restored = dequantize(codes, grid)
        layer.weight = mx.array(restored)
        bias = None
        if "bias" in layer:
            bias = np.array(layer.bias) + (weight - restored) @ moments.mean
            bias = bias.astype(np.float16).astype(np.float32)
            layer.bias = mx.array(bias)
        return Rounded(name, pack(codes, grid), bias)

    def _round(
        self, weight: Floats, name: str, second: Floats, *, damping: float
    ) -> tuple[Codes, Grid]:
        """Round a weight; its rows don't depend on each other."""
        how = self._precision[name]
        importance = np.diag(second).copy()
        parts: list[tuple[Codes, Grid]] = []
        for start in range(0, len(weight), _ROWS):
            self._check()
            part = weight[start : start + _ROWS]
            grid = search_grid(part, how, importance)
            codes = compensate(part, grid, second, damping=damping)
            parts.append((codes, refit(part, codes, grid, second, damping=damping)))
        scales = np.concatenate([grid.scales for _, grid in parts])
        biases = np.concatenate([grid.biases for _, grid in parts])
        return np.concatenate([codes for codes, _ in parts]), Grid(scales, biases, how)

    def _evaluated(self, array: mx.array) -> mx.array:
        self._check()
        mx.eval(array)
        return array


class _Sums:
    """Sums over inputs, of which moments are made."""

    def __init__(self) -> None:
        self._count = 0
        self._shift: mx.array | None = None
        self._sums: list[mx.array] = []

    def add(self, inputs: mx.array) -> None:
        """Count inputs. Shape (positions, columns), float32."""
        if len(inputs) >= _LONG:
            inputs = inputs[::_STRIDE]
        if self._shift is None:
            # About the right mean from the start: nothing is lost to large sums.
            self._shift = inputs.mean(axis=0)
        inputs = inputs - self._shift
        self._count += len(inputs)
        sums = [inputs.sum(axis=0), inputs.T @ inputs]
        if self._sums:
            sums = [one + other for one, other in zip(self._sums, sums, strict=True)]
        mx.eval(sums, self._shift)
        self._sums = sums

    def moments(self) -> Moments:
        """Give the moments of everything counted."""
        mean, second = (np.array(total).astype(np.float64) / self._count for total in self._sums)
        second -= np.outer(mean, mean)
        mean += np.array(self._shift)
        return Moments(mean.astype(np.float32), second.astype(np.float32))


_LONG: Final = 1000
"""Positions from which on inputs are audio and no text: a text has at most 448."""


def _steps(audio: object) -> tuple[Callable[[Block, mx.array, Any], _Step], ...]:
    return (_attend, _think) if audio is None else (_attend_before, _attend_audio, _think)


def _attend(block: Block, x: mx.array, _: object, mask: mx.array | None = None) -> _Step:
    attn, x = block.attn, block.attn_ln(x)
    mixed, _ = attn.mix(attn.query(x), attn.key(x), attn.value(x), mask)
    shared = ("attn.query", "attn.key", "attn.value")
    return _Step(attn.out(mixed), {shared: x, ("attn.out",): mixed})


def _attend_before(block: Block, x: mx.array, _: object) -> _Step:
    length = x.shape[1]
    return _attend(block, x, None, mx.triu(mx.full((length, length), float("-inf")), k=1))


def _attend_audio(block: Block, x: mx.array, audio: mx.array) -> _Step:
    attn, x = block.cross_attn, block.cross_attn_ln(x)
    mixed, _ = attn.mix(attn.query(x), attn.key(audio), attn.value(audio))
    inputs = {
        ("cross_attn.query",): x,
        ("cross_attn.key", "cross_attn.value"): audio,
        ("cross_attn.out",): mixed,
    }
    return _Step(attn.out(mixed), inputs)


def _think(block: Block, x: mx.array, _: object) -> _Step:
    x = block.mlp_ln(x)
    hidden = nn.gelu(block.mlp1(x))
    return _Step(block.mlp2(hidden), {("mlp1",): x, ("mlp2",): hidden})


def _find(block: Any, path: str) -> Any:
    for name in path.split("."):
        block = block[int(name)] if name.isdigit() else getattr(block, name)
    return block


def round_plainly(
    network: Whisper, precision: Mapping[str, ModulePrecision], *, check: Callable[[], None]
) -> Iterator[Rounded]:
    """Quantize without speech: every weight to the nearest step of its group's grid.

    Args:
        network: The network, in float32.
        precision: Bits and group size of each module by its name.
        check: Called between modules; may raise to cancel.

    Yields:
        Each module as it is done.
    """
    for name, how in precision.items():
        check()
        weight = np.array(_find(network, name).weight)
        grid = search_grid(weight, how)
        yield Rounded(name, pack(round_to_nearest(weight, grid), grid), None)
