"""MLX's affine group format: grids, codes, and how they are packed.

Each row of a weight is cut into groups of columns. A group has a scale and a bias, and each of its
weights is stored as a code: `weight = scale * code + bias`.

Source:
    `mlx.core.quantize`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from fastwhisper.values import ModulePrecision

    Floats: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    Codes: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

__all__ = [
    "RIDGE",
    "ROWS_AT_ONCE",
    "Grid",
    "Packed",
    "dequantize",
    "pack",
    "round_to_float16",
    "round_to_nearest",
    "search_grid",
]

ROWS_AT_ONCE: Final = 2048
"""Rows that are computed at once, so that their arrays stay in the processor's cache."""

RIDGE: Final = 1e-6
"""Fraction that is added where a divisor or a matrix's diagonal could be zero."""

_CLIPS: Final = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Fractions of a group's range that are tried. Clipping the extremes makes the steps smaller."""

_TINY: Final = np.float32(1e-30)


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The values that the weights of each group can have: `scale * code + bias`.

    Attributes:
        scales: Shape (rows, groups), float32 with values that float16 holds exactly.
        biases: Shape (rows, groups), float32 with values that float16 holds exactly.
        precision: Bits of a code, and columns of a group.
    """

    scales: Floats
    biases: Floats
    precision: ModulePrecision


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """One quantized weight as MLX stores it.

    Attributes:
        weight: Shape (rows, columns * bits / 32), uint32.
        scales: Shape (rows, groups), float16.
        biases: Shape (rows, groups), float16.
    """

    weight: np.ndarray[tuple[int, ...], np.dtype[np.uint32]]
    scales: np.ndarray[tuple[int, ...], np.dtype[np.float16]]
    biases: np.ndarray[tuple[int, ...], np.dtype[np.float16]]


def pack(codes: Codes, grid: Grid) -> Packed:
    """Pack codes into MLX's words: one stream of bits for each row, lowest bits first.

    Args:
        codes: Shape (rows, columns), uint8; each is less than two to the power of the bits.
        grid: The grid of the codes.

    Returns:
        The weight as MLX stores it.

    Source:
        `mlx.core.quantize`; MLX's `pack_and_quantize` for bits that don't divide 32.
    """
    bits = grid.precision.bits
    rows, columns = codes.shape
    weight = np.empty((rows, columns * bits // 32), np.uint32)
    for start in range(0, rows, ROWS_AT_ONCE):
        part = codes[start : start + ROWS_AT_ONCE, :, None]
        stream = np.unpackbits(part, axis=2, bitorder="little")[:, :, :bits]
        packed = np.packbits(stream.reshape(len(part), -1), axis=1, bitorder="little")
        weight[start : start + ROWS_AT_ONCE] = packed.view("<u4")
    return Packed(weight, grid.scales.astype(np.float16), grid.biases.astype(np.float16))


def dequantize(codes: Codes, grid: Grid) -> Floats:
    """Compute the weights from their codes.

    Args:
        codes: Shape (rows, columns), uint8.
        grid: The grid of the codes.

    Returns:
        Shape (rows, columns), float32.
    """
    groups = codes.reshape(*grid.scales.shape, grid.precision.group_size).astype(np.float32)
    groups *= grid.scales[:, :, None]
    groups += grid.biases[:, :, None]
    return groups.reshape(codes.shape)


def round_to_nearest(weight: Floats, grid: Grid) -> Codes:
    """Compute the code of the nearest value for each weight.

    Args:
        weight: Shape (rows, columns), float32.
        grid: The grid of the weight.

    Returns:
        Shape (rows, columns), uint8.
    """
    top = (1 << grid.precision.bits) - 1
    codes = np.empty(weight.shape, np.uint8)
    for start in range(0, len(weight), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        scales, biases = grid.scales[rows], grid.biases[rows]
        groups = weight[rows].reshape(*scales.shape, -1) - biases[:, :, None]
        groups /= scales[:, :, None]
        codes[rows] = np.clip(np.rint(groups), 0, top).reshape(len(scales), -1)
    return codes


def search_grid(
    weight: Floats, precision: ModulePrecision, importance: Floats | None = None
) -> Grid:
    """Find the grid of each group with the smallest squared error of its rounded weights.

    Several clippings of the range are tried. Each is improved by a least-squares fit of the weights
    to their codes.

    Args:
        weight: Shape (rows, columns), float32.
        precision: Bits and group size; the columns are a multiple of the group size.
        importance: Weight of the squared error of each column; None weighs all alike. Shape
            (columns,), float32.

    Returns:
        The grid.
    """
    rows, columns = weight.shape
    groups = columns // precision.group_size
    column_weights = np.ones((groups, precision.group_size), np.float32)
    if importance is not None:
        # Without the ridge, a column that is never used could get any value.
        column_weights = (
            importance.reshape(column_weights.shape) + np.float32(RIDGE) * importance.max() + _TINY
        )
        column_weights /= column_weights.mean(axis=1, keepdims=True)
    scales = np.empty((rows, groups), np.float32)
    biases = np.empty((rows, groups), np.float32)
    for start in range(0, rows, ROWS_AT_ONCE):
        part = weight[start : start + ROWS_AT_ONCE].reshape(-1, groups, precision.group_size)
        found = _search(part, column_weights, precision.bits)
        scales[start : start + ROWS_AT_ONCE], biases[start : start + ROWS_AT_ONCE] = found
    return Grid(scales, biases, precision)


def _search(part: Floats, column_weights: Floats, bits: int) -> tuple[Floats, Floats]:
    """Find the grids of some rows.

    Args:
        part: The weights. Shape (rows, groups, group size), float32.
        column_weights: Shape (groups, group size), float32.
        bits: Bits of a code.

    Returns:
        Scales and biases. Two arrays of shape (rows, groups), float32.
    """
    top = np.float32((1 << bits) - 1)
    low, high = part.min(axis=2), part.max(axis=2)
    best = np.full(low.shape, np.inf, np.float32)
    scales, biases = np.ones_like(low), low.copy()
    for clip in _CLIPS:
        scale, bias = round_to_float16(
            (high - low) * (np.float32(clip) / top), low * np.float32(clip)
        )
        for refined in (False, True):
            codes = part - bias[:, :, None]
            codes /= scale[:, :, None]
            codes = np.clip(np.rint(codes, out=codes), 0, top, out=codes)
            if refined:
                error = codes * scale[:, :, None]
                error += bias[:, :, None]
                error -= part
                loss = np.einsum("rgk,rgk,gk->rg", error, error, column_weights, optimize=False)
                better = loss < best
                best = np.where(better, loss, best)
                scales = np.where(better, scale, scales)
                biases = np.where(better, bias, biases)
            else:
                scale, bias = _least_squares(part, codes, column_weights, scale, bias)
    return scales, biases


def _least_squares(
    part: Floats, codes: Floats, column_weights: Floats, scale: Floats, bias: Floats
) -> tuple[Floats, Floats]:
    """Fit scale and bias of each group to its codes. A group that has no fit keeps its own.

    Args:
        part: The weights. Shape (rows, groups, group size), float32.
        codes: Shape (rows, groups, group size), float32.
        column_weights: Shape (groups, group size), float32.
        scale: Shape (rows, groups), float32.
        bias: Shape (rows, groups), float32.

    Returns:
        Scales and biases. Two arrays of shape (rows, groups), float32.
    """
    total = column_weights.sum(axis=1)
    mean_code = np.einsum("rgk,gk->rg", codes, column_weights, optimize=False) / total
    mean_part = np.einsum("rgk,gk->rg", part, column_weights, optimize=False) / total
    spread = np.einsum("rgk,rgk,gk->rg", codes, codes, column_weights, optimize=False) / total
    slope = np.einsum("rgk,rgk,gk->rg", codes, part, column_weights, optimize=False) / total
    spread -= mean_code**2
    slope -= mean_code * mean_part
    usable = (spread > RIDGE) & (slope > 0)
    fitted = np.where(usable, slope / np.where(usable, spread, 1), scale)
    return round_to_float16(fitted, np.where(usable, mean_part - fitted * mean_code, bias))


def round_to_float16(scale: Floats, bias: Floats) -> tuple[Floats, Floats]:
    """Round to float16, as the file holds them. A scale of zero (equal weights) becomes one."""
    held = scale.astype(np.float16).astype(np.float32)
    held = np.where(held > 0, held, np.float32(1))
    return held, bias.astype(np.float16).astype(np.float32)
