"""Attention, and the keys and values that a decoder keeps.

Attention has a plain form, which also returns the scores, and fast forms for the encoder and for
the decoder's steps.

Source:
    Vaswani et al. 2017, section 3.2; `mx.fast.scaled_dot_product_attention`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import mlx.core as mx
from mlx import nn

from fastwhisper.whisper.layers import Linear, Packing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Attention", "DecoderCache", "KeyValues", "take_windows"]

KeyValues: TypeAlias = tuple[mx.array, mx.array]


def take_windows(audio: Sequence[KeyValues], windows: Sequence[int]) -> Sequence[KeyValues]:
    """Return the keys and values of some windows; see `DecoderCache.audio`."""
    if list(windows) == list(range(len(audio[0][0]))):
        return audio
    chosen = mx.array(list(windows))
    return [(keys[chosen], values[chosen]) for keys, values in audio]


class DecoderCache:
    """What the next token of each text needs again: keys and values, computed once.

    A text is a row. Rows may share a window: the rows of one window are adjacent.

    Attributes:
        audio: Keys and values of the encoded windows, for each block. Two arrays of shape
            (windows, heads, 1500, state / heads).
        text: Keys and values of the tokens so far, for each block. Two arrays of fixed shape
            (rows, heads, capacity, state / heads); `length` of their positions are used.
        length: Tokens so far.
    """

    def __init__(self, audio: Sequence[KeyValues], capacity: int) -> None:
        self.audio = audio
        self.length = 0
        self.text = [
            (mx.zeros(shape, keys.dtype), mx.zeros(shape, keys.dtype))
            for keys, _ in audio
            for shape in [(*keys.shape[:2], capacity, keys.shape[3])]
        ]

    def repeat(self, samples: int) -> None:
        """Make several rows of each row."""
        self.text = [
            (mx.repeat(keys, samples, axis=0), mx.repeat(values, samples, axis=0))
            for keys, values in self.text
        ]


class Attention(nn.Module):
    """Multi-head attention."""

    def __init__(self, state: int, heads: int, name: str, packings: Mapping[str, Packing]) -> None:
        super().__init__()
        self.heads = heads
        for part in ("query", "key", "value", "out"):
            self[part] = Linear(state, state, packings.get(f"{name}.{part}"), bias=part != "key")

    def __call__(
        self, x: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        """Compute the attention of `x` to keys and values. All arrays have the network's dtype.

        Args:
            x: Shape (batch, n, state).
            keys: Split into heads. Shape (batch or 1, heads, m, state / heads).
            values: Split into heads. Shape (batch or 1, heads, m, state / heads).
            mask: Is added to the scores. Shape (n, m).

        Returns:
            The output, shape (batch, n, state), and the scores before the softmax, shape
            (batch, heads, n, m).
        """
        mixed, scores = self.mix(self.query(x), keys, values, mask)
        out: mx.array = self.out(mixed)
        return out, scores

    def mix(
        self, query: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        """Return the weighted values, before the output layer, and the scores; see `__call__`."""
        scale = (query.shape[-1] // self.heads) ** -0.25
        q = self.split(query) * scale
        scores = q @ (keys * scale).swapaxes(2, 3)
        if mask is not None:
            scores = scores + mask
        mixed = mx.softmax(scores, axis=-1, precise=True) @ values
        return _join(mixed), scores

    def attend(
        self, x: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None = None
    ) -> mx.array:
        """Compute the attention of `x` to keys and values that are split into heads.

        Args:
            x: Shape (batch, n, state).
            keys: Shape (batch, heads, m, state / heads).
            values: Shape (batch, heads, m, state / heads).
            mask: Is added to the scores. Shape (n, m).

        Returns:
            The output. Shape (batch, n, state).
        """
        q = self.split(self.query(x))
        scale = q.shape[-1] ** -0.5
        if q.shape[2] == 1:
            mixed = mx.fast.scaled_dot_product_attention(q, keys, values, scale=scale)
        else:
            # Not fused: CUDA prepares the fused kernel again for each number of tokens, 0.1 s.
            scores = (q * scale) @ keys.swapaxes(2, 3)
            if mask is not None:
                scores = scores + mask
            mixed = mx.softmax(scores, axis=-1, precise=True) @ values
        out: mx.array = self.out(_join(mixed))
        return out

    def encode(self, x: mx.array) -> mx.array:
        """Compute the attention of audio to itself. Shape (batch, positions, state)."""
        q, k, v = (self.split(part(x)) for part in (self.query, self.key, self.value))
        scale = q.shape[-1] ** -0.5
        # Window by window: CUDA prepares the fused kernel again for each number of windows, 0.1 s.
        mixed = [
            mx.fast.scaled_dot_product_attention(
                q[n : n + 1], k[n : n + 1], v[n : n + 1], scale=scale
            )
            for n in range(len(x))
        ]
        out: mx.array = self.out(_join(mixed[0] if len(x) == 1 else mx.concatenate(mixed)))
        return out

    def split(self, x: mx.array) -> mx.array:
        """Split (batch, n, state) into heads. Returns shape (batch, heads, n, state / heads)."""
        batch, length, _ = x.shape
        if length == 1:
            return x.reshape(batch, self.heads, 1, -1)  # needs no transposition
        return x.reshape(batch, length, self.heads, -1).transpose(0, 2, 1, 3)


def _join(x: mx.array) -> mx.array:
    """Join the heads. Shapes (batch, heads, n, state / heads) and (batch, n, state)."""
    if x.shape[2] == 1:
        return x.reshape(len(x), 1, -1)
    return x.transpose(0, 2, 1, 3).flatten(2)
