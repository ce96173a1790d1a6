"""The layers of the network that hold weights: linear layers, the token embedding, convolutions.

A weight is plain or packed (quantized), as the checkpoint has it. A new layer has no weights: each
parameter is a lazy array of zeros, which takes no memory until it is replaced.

Source:
    `mlx.nn.Linear`, `QuantizedLinear`, `QuantizedEmbedding` and `Conv1d` of MLX: the same
    operations in the same order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import mlx.core as mx
from mlx import nn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "UNPACK_ROWS",
    "Conv1d",
    "Device",
    "Embedding",
    "Linear",
    "Packing",
    "choose_gelu",
    "gelu",
]

Device: TypeAlias = Literal["cpu", "cuda", "metal"]
"""What MLX computes on."""

UNPACK_ROWS: Final = MappingProxyType[Device, int | None]({"cpu": 32, "cuda": 512, "metal": None})
"""From this many input rows on, a product is faster with unpacked weights. On a CPU MLX's packed
product uses no BLAS: measured on 2 cores, it is as fast at 16 to 40 rows, by shape and bits, and
50 to 80 times slower at 1500. On an H100 the encoder of large-v3-turbo at int4 takes 20.6 ms for
a window with packed products and 13.0 ms with unpacked weights. On Metal it was not measured."""

_KERNEL_POSITIONS: Final = 3


@dataclass(frozen=True, slots=True)
class Packing:
    """How a quantized weight is packed into words of 32 bits.

    Attributes:
        bits: Bits of one element.
        group_size: Elements that share a scale and a bias.
        unpack_rows: From this many input rows on, the weight is unpacked before the product; None
            never unpacks it.
    """

    bits: int
    group_size: int
    unpack_rows: int | None


class _WeightLayer(nn.Module):
    """A layer with one weight: plain, or packed words with scales and biases."""

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
        """Return x @ weight.T + bias. Shapes (..., columns) and (..., rows), of the dtype of x."""
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
        if bias is None:
            return x @ weight.T
        if x.size == x.shape[-1]:
            # One row: CUDA's product of a vector adds no bias. Its product of matrices, which does,
            # takes 40 us to prepare: half of the time of a token of large-v3-turbo on an H100.
            return x @ weight.T + bias
        # One operation: in float16, rounding the product before the sum gives another sum.
        return mx.addmm(bias, x, weight.T)


class Linear(_WeightLayer):
    """A linear layer."""

    def __init__(
        self, inputs: int, outputs: int, packing: Packing | None, *, bias: bool = True
    ) -> None:
        super().__init__(outputs, inputs, packing)
        if bias:
            self.bias = mx.zeros((outputs,))

    def __call__(self, x: mx.array) -> mx.array:
        """Compute the outputs. Shapes (..., inputs) and (..., outputs), of the dtype of x."""
        return self.multiply(x, self.get("bias"))


class Embedding(_WeightLayer):
    """The token embedding, which is also the output layer."""

    def __call__(self, tokens: mx.array) -> mx.array:
        """Look up the rows of tokens. Shapes (batch, n), int32, and (batch, n, state)."""
        rows = self.weight[tokens]
        if self.packing is None:
            return rows
        return _unpack(rows, self.scales[tokens], self.biases[tokens], self.packing)

    def as_linear(self, x: mx.array) -> mx.array:
        """Compute logits. Shapes (..., state) and (..., n_vocab), of the dtype of x."""
        return self.multiply(x)


class Conv1d(nn.Module):
    """A convolution over three positions. With stride 1 it keeps the number of positions."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.weight = mx.zeros((outputs, _KERNEL_POSITIONS, inputs))
        self.bias = mx.zeros((outputs,))
        self.stride = stride

    def __call__(self, x: mx.array) -> mx.array:
        """Convolve. Shapes (batch, n, inputs) and (batch, n / stride, outputs)."""
        padding = _KERNEL_POSITIONS // 2
        return mx.conv1d(x, self.weight, stride=self.stride, padding=padding) + self.bias


def gelu(x: mx.array) -> mx.array:
    """Return x Φ(x), where Φ is the normal distribution function. Equals `nn.gelu` to the last bit.

    `nn.gelu` is compiled. On a CPU that takes the system's C++ compiler, 1.4 s once, and a folder
    for temporary files: where that can't be written, it fails. This form takes as long there.
    """
    return x * (1 + mx.erf(x / math.sqrt(2))) / 2


def choose_gelu(device: Device) -> Callable[[mx.array], mx.array]:
    """Return the form of `gelu` for a device. On a GPU one kernel is faster than five."""
    return gelu if device == "cpu" else nn.gelu


def _unpack(weight: mx.array, scales: mx.array, biases: mx.array, packing: Packing) -> mx.array:
    """Return a packed weight as a plain one. Shape (..., columns), of the dtype of the scales."""
    return mx.dequantize(weight, scales, biases, group_size=packing.group_size, bits=packing.bits)
