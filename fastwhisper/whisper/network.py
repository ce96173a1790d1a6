"""Whisper's network as an MLX module.

The attributes have the names of a checkpoint's tensors. A new network has no weights: its
parameters are lazy arrays of zeros, as layers.py says.

This is the plain form of the network, and the reference for every faster form. It computes the
same operations in the same order as mlx_whisper 0.4.3, so results are equal to the last bit.

Source:
    Radford et al. 2022, section 2.2; parameter names of MLX checkpoints.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import mlx.core as mx
from mlx import nn

from fastwhisper.whisper.languages import count_languages, is_multilingual
from fastwhisper.whisper.layers import Conv1d, Embedding, Linear, Packing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastwhisper.values import Dimensions, ModulePrecision

__all__ = ["AudioEncoder", "Block", "KeyValues", "TextDecoder", "Whisper", "compute_sinusoids"]

_MAX_TIMESCALE: Final = 10_000


class KeyValues(NamedTuple):
    """The keys and values of one decoder block, which the next token needs again.

    Attributes:
        text: Keys and values of the tokens so far. Two arrays of shape (batch, tokens, state), of
            the network's dtype.
        audio: Keys and values of the encoded audio. Two arrays of shape (batch, 1500, state), of
            the network's dtype.
    """

    text: tuple[mx.array, mx.array]
    audio: tuple[mx.array, mx.array]


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
            keys: What `self.key` returned. Shape (batch, m, state).
            values: What `self.value` returned. Shape (batch, m, state).
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
        batch, length, state = query.shape
        scale = (state // self.heads) ** -0.25
        q = self._split(query).transpose(0, 2, 1, 3) * scale
        k = self._split(keys).transpose(0, 2, 3, 1) * scale
        v = self._split(values).transpose(0, 2, 1, 3)
        scores = q @ k
        if mask is not None:
            scores = scores + mask
        mixed = mx.softmax(scores, axis=-1, precise=True) @ v
        return mixed.transpose(0, 2, 1, 3).reshape(batch, length, state), scores

    def _split(self, x: mx.array) -> mx.array:
        """Split the state into heads. Returns shape (batch, n, heads, state / heads)."""
        return x.reshape(*x.shape[:2], self.heads, -1)


class Block(nn.Module):
    """One block: self-attention, in the decoder also attention to the audio, feed-forward."""

    def __init__(
        self,
        state: int,
        heads: int,
        name: str,
        packings: Mapping[str, Packing],
        *,
        is_decoder: bool,
    ) -> None:
        super().__init__()
        self.attn = Attention(state, heads, f"{name}.attn", packings)
        self.attn_ln = nn.LayerNorm(state)
        if is_decoder:
            self.cross_attn = Attention(state, heads, f"{name}.cross_attn", packings)
            self.cross_attn_ln = nn.LayerNorm(state)
        self.mlp1 = Linear(state, 4 * state, packings.get(f"{name}.mlp1"))
        self.mlp2 = Linear(4 * state, state, packings.get(f"{name}.mlp2"))
        self.mlp_ln = nn.LayerNorm(state)

    def encode(self, x: mx.array) -> mx.array:
        """Compute the block's output for audio. Shape (batch, positions, state)."""
        h = self.attn_ln(x)
        x = x + self.attn(h, self.attn.key(h), self.attn.value(h))[0]
        return x + self._feed_forward(x)

    def decode(
        self, x: mx.array, audio: mx.array, mask: mx.array, cache: KeyValues | None
    ) -> tuple[mx.array, KeyValues, mx.array]:
        """Compute the block's output for tokens. All arrays have the network's dtype.

        Args:
            x: Shape (batch, n, state).
            audio: The encoded audio. Shape (batch, 1500, state).
            mask: Hides from each token the tokens after it. Shape (n, n).
            cache: The cache of the tokens before; None at the first tokens.

        Returns:
            The output, shape (batch, n, state); the cache for the next token; and the scores of
            the attention to the audio, shape (batch, heads, n, 1500).
        """
        h = self.attn_ln(x)
        keys, values = self.attn.key(h), self.attn.value(h)
        if cache is None:
            audio_pair = self.cross_attn.key(audio), self.cross_attn.value(audio)
        else:
            keys = mx.concatenate([cache.text[0], keys], axis=1)
            values = mx.concatenate([cache.text[1], values], axis=1)
            audio_pair = cache.audio
        x = x + self.attn(h, keys, values, mask)[0]
        mixed, scores = self.cross_attn(self.cross_attn_ln(x), *audio_pair)
        x = x + mixed
        return x + self._feed_forward(x), KeyValues((keys, values), audio_pair), scores

    def _feed_forward(self, x: mx.array) -> mx.array:
        """Compute the feed-forward branch. Shape (batch, n, state)."""
        out: mx.array = self.mlp2(nn.gelu(self.mlp1(self.mlp_ln(x))))
        return out


class AudioEncoder(nn.Module):
    """The encoder: log-mel audio -> features."""

    def __init__(self, dims: Dimensions, packings: Mapping[str, Packing], dtype: mx.Dtype) -> None:
        super().__init__()
        state = dims.n_audio_state
        self.conv1 = Conv1d(dims.n_mels, state)
        self.conv2 = Conv1d(state, state, stride=2)
        self._positional_embedding = compute_sinusoids(dims.n_audio_ctx, state).astype(dtype)
        # Computing the sines takes longer than the rest of this method, so it starts now.
        mx.async_eval(self._positional_embedding)  # type: ignore[no-untyped-call]
        self.blocks = [
            Block(state, dims.n_audio_head, f"encoder.blocks.{layer}", packings, is_decoder=False)
            for layer in range(dims.n_audio_layer)
        ]
        self.ln_post = nn.LayerNorm(state)

    def __call__(self, mel: mx.array) -> mx.array:
        """Encode windows.

        Args:
            mel: Scaled log10 energies. Shape (batch, 3000, n_mels), of the network's dtype.

        Returns:
            The features. Shape (batch, 1500, state), of the same dtype.
        """
        x = self.embed(mel)
        for block in self.blocks:
            x = block.encode(x)
        features: mx.array = self.ln_post(x)
        return features

    def embed(self, mel: mx.array) -> mx.array:
        """Compute the input of the first block. Shapes and dtype as in `__call__`."""
        x: mx.array = nn.gelu(self.conv2(nn.gelu(self.conv1(mel))))
        return x + self._positional_embedding


class TextDecoder(nn.Module):
    """The decoder: tokens and features -> logits."""

    def __init__(self, dims: Dimensions, packings: Mapping[str, Packing], dtype: mx.Dtype) -> None:
        super().__init__()
        state = dims.n_text_state
        self.token_embedding = Embedding(
            dims.n_vocab, state, packings.get("decoder.token_embedding")
        )
        self.positional_embedding = mx.zeros((dims.n_text_ctx, state))
        self.blocks = [
            Block(state, dims.n_text_head, f"decoder.blocks.{layer}", packings, is_decoder=True)
            for layer in range(dims.n_text_layer)
        ]
        self.ln = nn.LayerNorm(state)
        mask = nn.MultiHeadAttention.create_additive_causal_mask(dims.n_text_ctx)
        self._mask = mask.astype(dtype)

    def __call__(
        self, tokens: mx.array, audio: mx.array, cache: list[KeyValues] | None = None
    ) -> tuple[mx.array, list[KeyValues], list[mx.array]]:
        """Compute the logits of the tokens that may come next.

        Args:
            tokens: The first tokens of a text, or the next token. Shape (batch, n), int32.
            audio: The encoded audio. Shape (batch or 1, 1500, state), of the network's dtype.
            cache: What the call for the tokens before returned; None at the first tokens.

        Returns:
            Logits, shape (batch, n, n_vocab); the cache for the next call; and for each block the
            scores of the attention to the audio, shape (batch, heads, n, 1500). All have the
            network's dtype.
        """
        length = tokens.shape[1]
        x = self.embed(tokens, start=0 if cache is None else cache[0].text[0].shape[1])
        mask = self._mask[:length, :length]
        following: list[KeyValues] = []
        scores: list[mx.array] = []
        for layer, block in enumerate(self.blocks):
            before = None if cache is None else cache[layer]
            x, key_values, audio_scores = block.decode(x, audio, mask, before)
            following.append(key_values)
            scores.append(audio_scores)
        logits: mx.array = self.token_embedding.as_linear(self.ln(x))
        return logits, following, scores

    def embed(self, tokens: mx.array, *, start: int = 0) -> mx.array:
        """Compute the input of the first block.

        Args:
            tokens: Shape (batch, n), int32.
            start: Position of the first of them in the text.

        Returns:
            Shape (batch, n, state), of the network's dtype.
        """
        positions = self.positional_embedding[start : start + tokens.shape[1]]
        x: mx.array = self.token_embedding(tokens) + positions
        return x


class Whisper(nn.Module):
    """The whole network.

    Attributes:
        dims: Its sizes.
        encoder: Log-mel audio -> features.
        decoder: Tokens and features -> logits.
        alignment_heads: (block, head) pairs of the cross-attention heads that attend to each word
            at the time it is spoken. Word times are computed from them. Shape (n, 2), int64.
    """

    dims: Dimensions
    encoder: AudioEncoder
    decoder: TextDecoder
    alignment_heads: mx.array

    def __init__(
        self,
        dims: Dimensions,
        *,
        precision: Mapping[str, ModulePrecision] | None = None,
        dtype: mx.Dtype = mx.float32,
        unpack_rows: int | None = None,
    ) -> None:
        """Build a network without weights.

        Args:
            dims: Its sizes.
            precision: Bits and group size by the name of each quantized module.
            dtype: The dtype of the encoder's positions and of the decoder's mask, which no
                checkpoint holds.
            unpack_rows: From this many input rows on, a quantized weight is unpacked before the
                product; None never unpacks.
        """
        super().__init__()
        packings = {
            name: Packing(packed.bits, packed.group_size, unpack_rows)
            for name, packed in (precision or {}).items()
        }
        self.dims = dims
        self.encoder = AudioEncoder(dims, packings, dtype)
        self.decoder = TextDecoder(dims, packings, dtype)
        # The default for a checkpoint that names none: all heads of the upper half of the blocks.
        layers = range(dims.n_text_layer // 2, dims.n_text_layer)
        heads = [[layer, head] for layer in layers for head in range(dims.n_text_head)]
        self.alignment_heads = mx.array(heads, dtype=mx.int64)

    def __call__(self, mel: mx.array, tokens: mx.array) -> mx.array:
        """Compute the logits of first tokens.

        Args:
            mel: Shape (batch, 3000, n_mels), of the network's dtype.
            tokens: Shape (batch, n), int32.

        Returns:
            Shape (batch, n, n_vocab), of the network's dtype.
        """
        return self.decoder(tokens, self.encoder(mel))[0]

    @property
    def is_multilingual(self) -> bool:
        """Whether the network knows languages other than English."""
        return is_multilingual(self.dims.n_vocab)

    @property
    def num_languages(self) -> int:
        """Number of languages that the network has tokens for."""
        return count_languages(self.dims.n_vocab)


def compute_sinusoids(length: int, channels: int) -> mx.array:
    """Compute the encoder's positional embedding.

    Returns:
        Sines in the first half of the channels, cosines in the second half. Shape (length,
        channels), float32, not evaluated.

    Source:
        Vaswani et al. 2017, section 3.5, in the arrangement of openai/whisper.
    """
    step = math.log(_MAX_TIMESCALE) / (channels // 2 - 1)
    rates = mx.exp(-step * mx.arange(channels // 2))
    angles = mx.arange(length)[:, None] * rates[None, :]
    return mx.concatenate([mx.sin(angles), mx.cos(angles)], axis=1)
