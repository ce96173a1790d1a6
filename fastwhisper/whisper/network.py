"""Whisper's network as an MLX module.

The attributes have the names of a checkpoint's tensors. A new network has no weights: each
parameter is a lazy array of zeros, which takes no memory until it is replaced.

This is the plain form of the network, and the reference for every faster one: the same operations
in the same order as mlx_whisper 0.4.3, so that results are equal to the last bit.

Source:
    Radford et al. 2022, section 2.2; parameter names of MLX checkpoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx
from mlx import nn

from fastwhisper.whisper.languages import count_languages, is_multilingual

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastwhisper.values import Dimensions, ModulePrecision

__all__ = ["KeyValues", "Whisper"]


@dataclass(frozen=True, slots=True)
class Packing:
    """How a weight is packed into words of 32 bits.

    Attributes:
        bits: Bits of one element.
        group_size: Elements that share a scale and a bias.
        unpack_rows: Inputs of this many rows and more are multiplied with the unpacked weight;
            None never unpacks.
    """

    bits: int
    group_size: int
    unpack_rows: int | None


class KeyValues(NamedTuple):
    """What one decoder layer computed and needs again for the next token.

    Attributes:
        text: Keys and values of the tokens so far. Two arrays of shape (batch, tokens, state).
        audio: Keys and values of the encoded audio. Two arrays of shape (batch, 1500, state).
    """

    text: tuple[mx.array, mx.array]
    audio: tuple[mx.array, mx.array]


class _Matrix(nn.Module):
    """A weight, plain or packed: itself, or its packed words with their scales and biases."""

    weight: mx.array
    scales: mx.array
    biases: mx.array

    def __init__(self, rows: int, columns: int, packing: Packing | None) -> None:
        super().__init__()
        self.packing = packing
        if packing is None:
            self.weight = mx.zeros((rows, columns))
        else:
            self.weight = mx.zeros((rows, columns * packing.bits // 32), mx.uint32)
            self.scales = mx.zeros((rows, columns // packing.group_size))
            self.biases = mx.zeros((rows, columns // packing.group_size))

    def multiply(self, x: mx.array, bias: mx.array | None = None) -> mx.array:
        """Compute x @ weight.T + bias. Shapes (..., columns) and (..., rows)."""
        packing = self.packing
        weight = self.weight
        if packing is not None:
            if packing.unpack_rows is None or x.size // x.shape[-1] < packing.unpack_rows:
                product = mx.quantized_matmul(
                    x,
                    weight,
                    self.scales,
                    self.biases,
                    group_size=packing.group_size,
                    bits=packing.bits,
                )
                return product if bias is None else product + bias
            weight = _unpack(weight, self.scales, self.biases, packing)
        # One operation: in float16 a product that is rounded before the sum is another sum.
        return x @ weight.T if bias is None else mx.addmm(bias, x, weight.T)


class Linear(_Matrix):
    """A linear layer with a plain or a packed weight."""

    def __init__(
        self, inputs: int, outputs: int, packing: Packing | None, *, bias: bool = True
    ) -> None:
        super().__init__(outputs, inputs, packing)
        if bias:
            self.bias = mx.zeros((outputs,))

    def __call__(self, x: mx.array) -> mx.array:
        """Map inputs to outputs. Shapes (..., inputs) and (..., outputs)."""
        return self.multiply(x, self.get("bias"))


class Embedding(_Matrix):
    """The token embedding, which is also the output layer."""

    def __call__(self, tokens: mx.array) -> mx.array:
        """Look tokens up. Shapes (batch, n), int32, and (batch, n, state)."""
        rows = self.weight[tokens]
        if self.packing is None:
            return rows
        return _unpack(rows, self.scales[tokens], self.biases[tokens], self.packing)

    def as_linear(self, x: mx.array) -> mx.array:
        """Compute logits. Shapes (..., state) and (..., vocabulary)."""
        return self.multiply(x)


class Conv1d(nn.Module):
    """A convolution of width 3 that keeps the length, but for its stride."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.weight = mx.zeros((outputs, _WIDTH, inputs))
        self.bias = mx.zeros((outputs,))
        self.stride = stride

    def __call__(self, x: mx.array) -> mx.array:
        """Convolve. Shapes (batch, n, inputs) and (batch, n / stride, outputs)."""
        return mx.conv1d(x, self.weight, stride=self.stride, padding=_WIDTH // 2) + self.bias


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
        """Attend from `x` to keys and values.

        Args:
            x: Shape (batch, n, state).
            keys: What `self.key` returned. Shape (batch, m, state).
            values: What `self.value` returned. Shape (batch, m, state).
            mask: Added to the scores. Shape (n, m).

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
        """Mix the values, without the output layer. Shapes as in `__call__`."""
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
        """Split the state into heads. Returns shape (batch, n, heads, 64)."""
        return x.reshape(*x.shape[:2], self.heads, -1)


class Block(nn.Module):
    """One layer: self-attention, in the decoder attention to the audio, feed-forward."""

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
        """Pass audio through the layer. Shape (batch, positions, state)."""
        h = self.attn_ln(x)
        x = x + self.attn(h, self.attn.key(h), self.attn.value(h))[0]
        return x + self._feed_forward(x)

    def decode(
        self, x: mx.array, audio: mx.array, mask: mx.array, cache: KeyValues | None
    ) -> tuple[mx.array, KeyValues, mx.array]:
        """Pass tokens through the layer.

        Args:
            x: Shape (batch, n, state).
            audio: The encoded audio. Shape (batch, 1500, state).
            mask: Keeps a token from those after it. Shape (n, n).
            cache: Of the tokens before; None at the first token.

        Returns:
            The output, shape (batch, n, state); the cache for the next token; and the scores of
            the audio, shape (batch, heads, n, 1500).
        """
        h = self.attn_ln(x)
        keys, values = self.attn.key(h), self.attn.value(h)
        if cache is None:
            heard = self.cross_attn.key(audio), self.cross_attn.value(audio)
        else:
            keys = mx.concatenate([cache.text[0], keys], axis=1)
            values = mx.concatenate([cache.text[1], values], axis=1)
            heard = cache.audio
        x = x + self.attn(h, keys, values, mask)[0]
        mixed, scores = self.cross_attn(self.cross_attn_ln(x), *heard)
        x = x + mixed
        return x + self._feed_forward(x), KeyValues((keys, values), heard), scores

    def _feed_forward(self, x: mx.array) -> mx.array:
        out: mx.array = self.mlp2(nn.gelu(self.mlp1(self.mlp_ln(x))))
        return out


class AudioEncoder(nn.Module):
    """Log-mel audio to features."""

    def __init__(self, dims: Dimensions, packings: Mapping[str, Packing], dtype: mx.Dtype) -> None:
        super().__init__()
        state = dims.n_audio_state
        self.conv1 = Conv1d(dims.n_mels, state)
        self.conv2 = Conv1d(state, state, stride=2)
        self._positional_embedding = compute_sinusoids(dims.n_audio_ctx, state).astype(dtype)
        # Its sines take longer than all else here, so they begin now.
        mx.async_eval(self._positional_embedding)  # type: ignore[no-untyped-call]
        self.blocks = [
            Block(state, dims.n_audio_head, f"encoder.blocks.{layer}", packings, is_decoder=False)
            for layer in range(dims.n_audio_layer)
        ]
        self.ln_post = nn.LayerNorm(state)

    def __call__(self, mel: mx.array) -> mx.array:
        """Encode windows.

        Args:
            mel: Scaled log10 energies, as `log_mel` returns them. Shape (batch, 3000, n_mels),
                of the network's dtype.

        Returns:
            Shape (batch, 1500, state), of the same dtype.
        """
        x = self.embed(mel)
        for block in self.blocks:
            x = block.encode(x)
        features: mx.array = self.ln_post(x)
        return features

    def embed(self, mel: mx.array) -> mx.array:
        """Compute the input of the first block. Shapes as in `__call__`."""
        x: mx.array = nn.gelu(self.conv2(nn.gelu(self.conv1(mel))))
        return x + self._positional_embedding


class TextDecoder(nn.Module):
    """Tokens and audio features to logits."""

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
            tokens: The first tokens of a text, or one more. Shape (batch, n), int32.
            audio: The encoded audio. Shape (batch or 1, 1500, state).
            cache: What the call for the tokens before returned; None at the first tokens.

        Returns:
            Logits, shape (batch, n, n_vocab); the cache for the next call; and of each layer the
            scores of the audio, shape (batch, heads, n, 1500). All of the dtype of `audio`.
        """
        length = tokens.shape[1]
        x = self.embed(tokens, start=0 if cache is None else cache[0].text[0].shape[1])
        mask = self._mask[:length, :length]
        following: list[KeyValues] = []
        scores: list[mx.array] = []
        for layer, block in enumerate(self.blocks):
            x, kept, heard = block.decode(x, audio, mask, None if cache is None else cache[layer])
            following.append(kept)
            scores.append(heard)
        logits: mx.array = self.token_embedding.as_linear(self.ln(x))
        return logits, following, scores

    def embed(self, tokens: mx.array, *, start: int = 0) -> mx.array:
        """Compute the input of the first block for tokens that begin at position `start`."""
        positions = self.positional_embedding[start : start + tokens.shape[1]]
        x: mx.array = self.token_embedding(tokens) + positions
        return x


class Whisper(nn.Module):
    """The whole network.

    Attributes:
        dims: Its sizes.
        encoder: Log-mel audio to features.
        decoder: Tokens and features to logits.
        alignment_heads: Layer and head of the decoder's attention that follows the speech. Shape
            (n, 2), int64.
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
            precision: Bits and group size by the name of each packed module.
            dtype: Type of what is computed and not read: the encoder's positions, the mask.
            unpack_rows: Multiply inputs of this many rows and more with unpacked weights.
        """
        super().__init__()
        packings = {
            name: Packing(packed.bits, packed.group_size, unpack_rows)
            for name, packed in (precision or {}).items()
        }
        self.dims = dims
        self.encoder = AudioEncoder(dims, packings, dtype)
        self.decoder = TextDecoder(dims, packings, dtype)
        # Unless the checkpoint names some: all heads of the upper half of the layers.
        layers = range(dims.n_text_layer // 2, dims.n_text_layer)
        heads = [[layer, head] for layer in layers for head in range(dims.n_text_head)]
        self.alignment_heads = mx.array(heads, dtype=mx.int64)

    def __call__(self, mel: mx.array, tokens: mx.array) -> mx.array:
        """Compute logits. Shapes (batch, 3000, n_mels), (batch, n) and (batch, n, n_vocab)."""
        return self.decoder(tokens, self.encoder(mel))[0]

    @property
    def is_multilingual(self) -> bool:
        """Whether the network knows other languages than English."""
        return is_multilingual(self.dims.n_vocab)

    @property
    def num_languages(self) -> int:
        """How many languages the network has tokens for."""
        return count_languages(self.dims.n_vocab)


_WIDTH = 3
"""Positions that a convolution covers."""

_MAX_TIMESCALE = 10_000


def compute_sinusoids(length: int, channels: int) -> mx.array:
    """Compute the encoder's positional embedding.

    Returns:
        Sines in the first half of the channels, cosines in the second. Shape (length, channels),
        float32, not evaluated.

    Source:
        Vaswani et al. 2017, section 3.5, in the arrangement of openai/whisper.
    """
    step = math.log(_MAX_TIMESCALE) / (channels // 2 - 1)
    rates = mx.exp(-step * mx.arange(channels // 2))
    angles = mx.arange(length)[:, None] * rates[None, :]
    return mx.concatenate([mx.sin(angles), mx.cos(angles)], axis=1)


def _unpack(weight: mx.array, scales: mx.array, biases: mx.array, packing: Packing) -> mx.array:
    return mx.dequantize(weight, scales, biases, group_size=packing.group_size, bits=packing.bits)
