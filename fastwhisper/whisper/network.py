"""Whisper's network as an MLX module.

The attributes have the names of a checkpoint's tensors. A new network has no weights: its
parameters are lazy arrays of zeros, as layers.py says.

The decoder has two forms. A call computes whole texts and returns the scores of the attention: it
is the plain form, which word times need, and equals mlx_whisper 0.4.3 to the last bit. `step` adds
tokens to a cache. It is the fast form, which writes text: each step computes only what is new.

Source:
    Radford et al. 2022, section 2.2; parameter names of MLX checkpoints.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import mlx.core as mx
from mlx import nn

from fastwhisper.whisper.attention import Attention
from fastwhisper.whisper.languages import count_languages, is_multilingual
from fastwhisper.whisper.layers import (
    UNPACK_ROWS,
    Conv1d,
    Embedding,
    Linear,
    Packing,
    choose_gelu,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fastwhisper.values import Dimensions, ModulePrecision
    from fastwhisper.whisper.attention import DecoderCache, KeyValues
    from fastwhisper.whisper.layers import Device

__all__ = ["AudioEncoder", "Block", "TextDecoder", "Whisper", "compute_sinusoids"]

_MAX_TIMESCALE: Final = 10_000


class Block(nn.Module):
    """One block: self-attention, in the decoder also attention to the audio, feed-forward."""

    def __init__(
        self,
        state: int,
        heads: int,
        name: str,
        packings: Mapping[str, Packing],
        gelu: Callable[[mx.array], mx.array],
        *,
        is_decoder: bool,
    ) -> None:
        super().__init__()
        self._gelu = gelu
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
        x = x + self.attn.encode(self.attn_ln(x))
        return x + self._feed_forward(x)

    def decode(self, x: mx.array, audio: KeyValues, mask: mx.array) -> tuple[mx.array, mx.array]:
        """Compute the block's output for a whole text. All arrays have the network's dtype.

        Args:
            x: Shape (batch, n, state).
            audio: What `read` returned, for `batch` windows or one.
            mask: Hides from each token the tokens after it. Shape (n, n).

        Returns:
            The output, shape (batch, n, state), and the scores of the attention to the audio,
            shape (batch, heads, n, 1500).
        """
        attn, h = self.attn, self.attn_ln(x)
        x = x + attn(h, attn.split(attn.key(h)), attn.split(attn.value(h)), mask)[0]
        mixed, scores = self.cross_attn(self.cross_attn_ln(x), *audio)
        x = x + mixed
        return x + self._feed_forward(x), scores

    def read(self, audio: mx.array) -> KeyValues:
        """Compute the keys and values of encoded windows; see `DecoderCache.audio`."""
        cross = self.cross_attn
        return (
            mx.contiguous(cross.split(cross.key(audio))),
            mx.contiguous(cross.split(cross.value(audio))),
        )

    def step(self, x: mx.array, cache: DecoderCache, layer: int, mask: mx.array | None) -> mx.array:
        """Compute the block's output for the next tokens, and add them to the cache.

        Args:
            x: Shape (rows, n, state).
            cache: The cache. Its `length` does not change.
            layer: Which block of the decoder this is.
            mask: Hides from each token the tokens after it; None for one token. Shape (n, n).

        Returns:
            Shape (rows, n, state).
        """
        start, end = cache.length, cache.length + x.shape[1]
        h = self.attn_ln(x)
        keys, values = cache.text[layer]
        keys[:, :, start:end] = self.attn.split(self.attn.key(h))
        values[:, :, start:end] = self.attn.split(self.attn.value(h))
        x = x + self.attn.attend(h, keys[:, :, :end], values[:, :, :end], mask)
        audio_keys, audio_values = cache.audio[layer]
        h = self.cross_attn_ln(x)
        if len(h) > len(audio_keys):
            # The rows of one window attend to the same audio, as if they were one text.
            h = h.reshape(len(audio_keys), -1, x.shape[2])
        mixed = self.cross_attn.attend(h, audio_keys, audio_values)
        x = x + (mixed if mixed.shape == x.shape else mixed.reshape(x.shape))
        return x + self._feed_forward(x)

    def _feed_forward(self, x: mx.array) -> mx.array:
        """Compute the feed-forward branch. Shape (batch, n, state)."""
        out: mx.array = self.mlp2(self._gelu(self.mlp1(self.mlp_ln(x))))
        return out


class AudioEncoder(nn.Module):
    """The encoder: log-mel audio -> features."""

    def __init__(
        self,
        dims: Dimensions,
        packings: Mapping[str, Packing],
        gelu: Callable[[mx.array], mx.array],
        dtype: mx.Dtype,
    ) -> None:
        super().__init__()
        self._gelu = gelu
        state = dims.n_audio_state
        self.conv1 = Conv1d(dims.n_mels, state)
        self.conv2 = Conv1d(state, state, stride=2)
        self._positional_embedding = compute_sinusoids(dims.n_audio_ctx, state).astype(dtype)
        # Computing the sines takes longer than the rest of this method, so it starts now.
        mx.async_eval(self._positional_embedding)  # type: ignore[no-untyped-call]
        self.blocks = [
            Block(
                state,
                dims.n_audio_head,
                f"encoder.blocks.{layer}",
                packings,
                gelu,
                is_decoder=False,
            )
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
        x: mx.array = self._gelu(self.conv2(self._gelu(self.conv1(mel))))
        return x + self._positional_embedding


class TextDecoder(nn.Module):
    """The decoder: tokens and features -> logits."""

    def __init__(
        self,
        dims: Dimensions,
        packings: Mapping[str, Packing],
        gelu: Callable[[mx.array], mx.array],
        dtype: mx.Dtype,
    ) -> None:
        super().__init__()
        state = dims.n_text_state
        self.token_embedding = Embedding(
            dims.n_vocab, state, packings.get("decoder.token_embedding")
        )
        self.positional_embedding = mx.zeros((dims.n_text_ctx, state))
        self.blocks = [
            Block(
                state,
                dims.n_text_head,
                f"decoder.blocks.{layer}",
                packings,
                gelu,
                is_decoder=True,
            )
            for layer in range(dims.n_text_layer)
        ]
        self.ln = nn.LayerNorm(state)
        mask = nn.MultiHeadAttention.create_additive_causal_mask(dims.n_text_ctx)
        self._mask = mask.astype(dtype)

    def __call__(self, tokens: mx.array, audio: mx.array) -> tuple[mx.array, list[mx.array]]:
        """Compute the logits after each token of whole texts, and the unfused scores.

        Args:
            tokens: Shape (batch, n), int32.
            audio: The encoded audio. Shape (batch or 1, 1500, state), of the network's dtype.

        Returns:
            Logits, shape (batch, n, n_vocab); and for each block the scores of the attention to
            the audio, shape (batch, heads, n, 1500). Both have the network's dtype.
        """
        return self.score(tokens, self.read(audio))

    def score(
        self, tokens: mx.array, audio: Sequence[KeyValues]
    ) -> tuple[mx.array, list[mx.array]]:
        """Compute what a call computes, of audio that is read.

        Args:
            tokens: Shape (batch, n), int32.
            audio: What `read` returned, for `batch` windows or one.
        """
        length = tokens.shape[1]
        x = self.embed(tokens)
        mask = self._mask[:length, :length]
        scores: list[mx.array] = []
        for block, keys_values in zip(self.blocks, audio, strict=True):
            x, audio_scores = block.decode(x, keys_values, mask)
            scores.append(audio_scores)
        return self.project(x), scores

    def read(self, audio: mx.array) -> list[KeyValues]:
        """Compute the keys and values of encoded windows, which every token attends to.

        Args:
            audio: Shape (windows, 1500, state), of the network's dtype.

        Returns:
            For each block two arrays; see `DecoderCache.audio`.
        """
        return [block.read(audio) for block in self.blocks]

    def step(self, tokens: mx.array, cache: DecoderCache) -> mx.array:
        """Compute the last block's output for the next tokens of each row.

        Args:
            tokens: The first tokens of a new cache, or the next token. Shape (rows, n), int32.
            cache: Is changed: the tokens are added to it.

        Returns:
            The input of `project`. Shape (rows, n, state), of the network's dtype.
        """
        length = tokens.shape[1]
        x = self.embed(tokens, start=cache.length)
        mask = self._mask[:length, :length] if length > 1 else None
        for layer, block in enumerate(self.blocks):
            x = block.step(x, cache, layer, mask)
        cache.length += length
        return x

    def project(self, x: mx.array) -> mx.array:
        """Compute logits. Shapes (..., state) and (..., n_vocab), of the network's dtype."""
        logits: mx.array = self.token_embedding.as_linear(self.ln(x))
        return logits

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
        device: What it computes on.
        encoder: Log-mel audio -> features.
        decoder: Tokens and features -> logits.
        alignment_heads: (block, head) pairs of the cross-attention heads that attend to each word
            at the time it is spoken. Word times are computed from them. Shape (n, 2), int64.
    """

    dims: Dimensions
    device: Device
    encoder: AudioEncoder
    decoder: TextDecoder
    alignment_heads: mx.array

    def __init__(
        self,
        dims: Dimensions,
        *,
        precision: Mapping[str, ModulePrecision] | None = None,
        dtype: mx.Dtype = mx.float32,
        device: Device = "metal",
    ) -> None:
        """Build a network without weights.

        Args:
            dims: Its sizes.
            precision: Bits and group size by the name of each quantized module.
            dtype: The dtype of the encoder's positions and of the decoder's mask, which no
                checkpoint holds.
            device: What it computes on. Packed weights are unpacked for long inputs where that is
                faster; only the order of sums changes.
        """
        super().__init__()
        packings = {
            name: Packing(packed.bits, packed.group_size, UNPACK_ROWS[device])
            for name, packed in (precision or {}).items()
        }
        self.dims = dims
        self.device = device
        gelu = choose_gelu(device)
        self.encoder = AudioEncoder(dims, packings, gelu, dtype)
        self.decoder = TextDecoder(dims, packings, gelu, dtype)
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
