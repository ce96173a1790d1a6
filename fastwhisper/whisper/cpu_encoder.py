"""The encoder in NumPy, for a CPU: the same network as `AudioEncoder`, four times as fast.

On a CPU, MLX computes exponentials and error functions in one thread with narrow vectors, and its
products depend on the BLAS of the system. NumPy has wide vectors, and its wheel contains OpenBLAS,
which uses all cores: so no thread is made here. Threads of our own for the exponentials were not
faster on 2 cores, because OpenBLAS's threads keep a core busy between products. Weights of float32
are used where MLX has them; others, packed ones too, are converted layer by layer.

Measured on 2 cores, one window of tiny.en: 0.30 s; MLX 1.3 s with OpenBLAS, 9 to 12 s without. The
distance from a computation in float64 is a half of MLX's.

Source:
    Radford et al. 2022, section 2.2; `AudioEncoder` in network.py is the reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import mlx.core as mx
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlx import nn

    from fastwhisper.whisper.layers import Conv1d, Linear
    from fastwhisper.whisper.network import AudioEncoder, Block

    Floats: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

__all__ = ["attend", "encode", "gelu"]

_QUERY_ROWS: Final = 500
"""Queries whose scores are computed together. Scores of 1500 positions are then 3 MB and stay in
the cache. With all queries at once a window takes 6 % longer, with 125 as well."""

_CHUNK: Final = 1 << 16
"""Elements that `gelu` takes through all steps together, so that they stay in the cache. It needs
0.8 MB of memory for that; with all elements at once a layer of tiny.en would take 28 MB, and 2 %
more time."""

_ERFC_SLOPE: Final = 0.3275911
_ERFC_TERMS: Final = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
"""Abramowitz and Stegun 1964, formula 7.1.26, highest power first: wrong by at most 1.5e-7."""


@np.errstate(all="ignore")  # as MLX: broken weights give NaN, and no warning
def encode(encoder: AudioEncoder, mel: mx.array) -> mx.array:
    """Encode windows. All arithmetic is float32.

    Args:
        encoder: The network's encoder, with weights of any floating dtype, plain or packed.
        mel: Scaled log10 energies. Shape (batch, 3000, n_mels), of any floating dtype.

    Returns:
        The features. Shape (batch, 1500, state), of the dtype of `mel`.
    """
    # Each window has products of its own, so its features depend on no other window, to the last
    # bit. The layers are outside of that loop, so weights are unpacked once for all windows.
    windows = list(_view(mel))
    for convolution in (encoder.conv1, encoder.conv2):
        windows = [gelu(_convolve(convolution, x)) for x in windows]
    positions = _view(encoder._positional_embedding)  # noqa: SLF001  no parameter, so MLX hides it
    windows = [x + positions for x in windows]
    for block in encoder.blocks:
        advance = _prepare_block(block)
        windows = [advance(x) for x in windows]
    features = np.stack([_normalize(encoder.ln_post, x) for x in windows])
    return mx.array(features).astype(mel.dtype)


def gelu(x: Floats) -> Floats:
    """Replace each element by x Φ(x), where Φ is the normal distribution function.

    Args:
        x: Any shape, contiguous, float32; changed in place.

    Returns:
        The same array.
    """
    flat = x.reshape(-1)
    work = np.empty((3, min(_CHUNK, flat.size)), np.float32)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        size, t, product = work[:, : part.size]
        # x Φ(x) = max(x, 0) - |x| erfc(|x| / √2) / 2, and erfc(z) = polynomial(t) exp(-z²) with
        # t = 1 / (1 + slope z).
        np.abs(part, out=size)
        np.multiply(size, _ERFC_SLOPE * 0.5**0.5, out=t)
        t += 1
        np.reciprocal(t, out=t)
        np.multiply(t, _ERFC_TERMS[0] / 2, out=product)
        for term in _ERFC_TERMS[1:]:
            product += term / 2
            product *= t
        product *= size
        size *= size
        size *= -0.5
        product *= np.exp(size, out=size)
        np.maximum(part, 0, out=part)
        part -= product
    return x


def attend(query: Floats, keys: Floats, values: Floats, *, heads: int) -> Floats:
    """Compute attention: softmax(query @ keys.T / √size) @ values, for each head.

    Args:
        query: Shape (n, state), float32.
        keys: Shape (m, state), float32.
        values: Shape (m, state), float32.
        heads: Parts of equal size that the state consists of.

    Returns:
        Shape (n, state), float32.
    """
    scaled = query * (query.shape[1] // heads) ** -0.5
    out = np.empty_like(query)
    # All scores use the same memory: new memory would have to be mapped page by page (9 %).
    memory = np.empty((_QUERY_ROWS, len(keys)), np.float32)
    ones = np.ones((len(keys), 1), np.float32)
    for q, k, v, mixed in zip(
        *(np.split(array, heads, axis=1) for array in (scaled, keys, values, out)), strict=True
    ):
        for start in range(0, len(q), _QUERY_ROWS):
            rows = q[start : start + _QUERY_ROWS]
            scores = np.matmul(rows, k.T, out=memory[: len(rows)])
            scores -= scores.max(axis=1, keepdims=True)
            np.exp(scores, out=scores)
            # A product with ones is the sum of each row, and faster than `sum` (4 %).
            mixed[start : start + _QUERY_ROWS] = scores @ v / (scores @ ones)
    return out


def _prepare_block(block: Block) -> Callable[[Floats], Floats]:
    """Unpack the weights of a block, and return a function that computes the block's output."""
    attention = block.attn
    query, key, value, out, widen, narrow = map(
        _prepare_linear,
        (attention.query, attention.key, attention.value, attention.out, block.mlp1, block.mlp2),
    )

    def advance(x: Floats) -> Floats:
        h = _normalize(block.attn_ln, x)
        x = x + out(attend(query(h), key(h), value(h), heads=attention.heads))
        return x + narrow(gelu(widen(_normalize(block.mlp_ln, x))))

    return advance


def _prepare_linear(layer: Linear) -> Callable[[Floats], Floats]:
    """Unpack the weight of a layer, and return a function that computes the layer's output."""
    weight, packing = layer.weight, layer.packing
    if packing is not None:
        weight = mx.dequantize(
            weight, layer.scales, layer.biases, group_size=packing.group_size, bits=packing.bits
        )
    matrix = _view(weight).T
    bias = _view(layer.bias) if "bias" in layer else np.float32(0)

    def multiply(x: Floats) -> Floats:
        out: Floats = x @ matrix
        out += bias
        return out

    return multiply


def _convolve(layer: Conv1d, x: Floats) -> Floats:
    """Convolve as one product, of each three neighbours with the weights of three positions."""
    padded = np.pad(x, ((1, 1), (0, 0)))
    neighbours = [padded[position : position + len(x)] for position in range(3)]
    weight = _view(layer.weight)
    columns = np.concatenate([rows[:: layer.stride] for rows in neighbours], axis=1)
    out: Floats = columns @ weight.reshape(len(weight), -1).T
    out += _view(layer.bias)
    return out


def _normalize(layer: nn.LayerNorm, x: Floats) -> Floats:
    out: Floats = x - x.mean(axis=1, keepdims=True)
    variance = np.einsum("ij,ij->i", out, out)[:, None] / x.shape[1]
    out /= np.sqrt(variance + layer.eps)
    out *= _view(layer.weight)
    out += _view(layer.bias)
    return out


def _view(array: mx.array) -> Floats:
    """Return an array for NumPy, without a copy if it is float32."""
    view: Floats = np.asarray(array.astype(mx.float32))
    return view
