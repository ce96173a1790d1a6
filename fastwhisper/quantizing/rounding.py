"""Weights and what they are multiplied with -> weights in MLX's affine group format.

Rounding every weight to the nearest step of its grid is not the rounding that changes a layer's
output least: its inputs are correlated, so the error of one column can be taken back by the next
ones. That needs nothing but the second moments of the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from fastwhisper.values import ModulePrecision

    Floats: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    Codes: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

__all__ = [
    "DAMPING",
    "Grid",
    "Moments",
    "Packed",
    "compensate",
    "dequantize",
    "pack",
    "refit",
    "round_to_nearest",
    "search_grid",
]

DAMPING: Final = 0.01
"""Added to the diagonal of second moments, as a share of its mean. Source: Frantar et al. 2022,
section 3.3."""

_CLIPS: Final = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Shares of a group's range that are tried: clipping its extremes makes the other steps finer."""

_BLOCK_COLUMNS: Final = 64
_ROWS: Final = 2048
"""Rows handled at once, so that what is worked on stays in the processor's cache."""

_SWEEPS: Final = 2
_RIDGE: Final = 1e-6
_TINY: Final = np.float32(1e-30)


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """The values that the weights of each group may take: `scale * code + bias`.

    Attributes:
        scales: Shape (rows, groups), float32 that float16 holds exactly.
        biases: Shape (rows, groups), float32 that float16 holds exactly.
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


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """What is known of a layer's inputs.

    Attributes:
        mean: Shape (columns,), float32.
        second: Moments about the mean, which a bias takes care of. Shape (columns, columns),
            float32.
    """

    mean: Floats
    second: Floats


def pack(codes: Codes, grid: Grid) -> Packed:
    """Pack codes into MLX's words: one stream of bits for each row, lowest bits first.

    Args:
        codes: Shape (rows, columns), uint8, each below two to the power of the bits.
        grid: The grid they belong to.

    Source:
        `mlx.core.quantize`; MLX's `pack_and_quantize` for bits that don't divide 32.
    """
    bits = grid.precision.bits
    rows, columns = codes.shape
    weight = np.empty((rows, columns * bits // 32), np.uint32)
    for start in range(0, rows, _ROWS):
        part = codes[start : start + _ROWS, :, None]
        stream = np.unpackbits(part, axis=2, bitorder="little")[:, :, :bits]
        packed = np.packbits(stream.reshape(len(part), -1), axis=1, bitorder="little")
        weight[start : start + _ROWS] = packed.view("<u4")
    return Packed(weight, grid.scales.astype(np.float16), grid.biases.astype(np.float16))


def dequantize(codes: Codes, grid: Grid) -> Floats:
    """Give the weights that codes stand for. Returns shape (rows, columns), float32."""
    groups = codes.reshape(*grid.scales.shape, grid.precision.group_size).astype(np.float32)
    groups *= grid.scales[:, :, None]
    groups += grid.biases[:, :, None]
    return groups.reshape(codes.shape)


def round_to_nearest(weight: Floats, grid: Grid) -> Codes:
    """Give each weight the nearest code of its grid.

    Args:
        weight: Shape (rows, columns), float32.
        grid: Its grid.

    Returns:
        Shape (rows, columns), uint8.
    """
    top = (1 << grid.precision.bits) - 1
    codes = np.empty(weight.shape, np.uint8)
    for start in range(0, len(weight), _ROWS):
        rows = slice(start, start + _ROWS)
        scales, biases = grid.scales[rows], grid.biases[rows]
        groups = weight[rows].reshape(*scales.shape, -1) - biases[:, :, None]
        groups /= scales[:, :, None]
        codes[rows] = np.clip(np.rint(groups), 0, top).reshape(len(scales), -1)
    return codes


def search_grid(
    weight: Floats, precision: ModulePrecision, importance: Floats | None = None
) -> Grid:
    """Find the grid of each group on which its weights, rounded, are off least.

    Several clippings of the range are tried; each is improved by least squares of the weights
    over their codes.

    Args:
        weight: Shape (rows, columns), float32.
        precision: Bits and group size; the columns are a multiple of the group size.
        importance: How much an error in a column counts. Shape (columns,), float32.

    Returns:
        The grid.
    """
    rows, columns = weight.shape
    groups = columns // precision.group_size
    share = np.ones((groups, precision.group_size), np.float32)
    if importance is not None:
        # A column that is never used must not be free to take any value.
        share = importance.reshape(share.shape) + np.float32(_RIDGE) * importance.max() + _TINY
        share /= share.mean(axis=1, keepdims=True)
    scales = np.empty((rows, groups), np.float32)
    biases = np.empty((rows, groups), np.float32)
    for start in range(0, rows, _ROWS):
        part = weight[start : start + _ROWS].reshape(-1, groups, precision.group_size)
        found = _search(part, share, precision.bits)
        scales[start : start + _ROWS], biases[start : start + _ROWS] = found
    return Grid(scales, biases, precision)


def _search(part: Floats, share: Floats, bits: int) -> tuple[Floats, Floats]:
    """Search the grids of some rows. `part` has shape (rows, groups, group size)."""
    top = np.float32((1 << bits) - 1)
    low, high = part.min(axis=2), part.max(axis=2)
    best = np.full(low.shape, np.inf, np.float32)
    scales, biases = np.ones_like(low), low.copy()
    for clip in _CLIPS:
        scale, bias = _as_float16((high - low) * (np.float32(clip) / top), low * np.float32(clip))
        for refined in (False, True):
            codes = part - bias[:, :, None]
            codes /= scale[:, :, None]
            codes = np.clip(np.rint(codes, out=codes), 0, top, out=codes)
            if refined:
                error = codes * scale[:, :, None]
                error += bias[:, :, None]
                error -= part
                loss = np.einsum("rgk,rgk,gk->rg", error, error, share, optimize=False)
                better = loss < best
                best = np.where(better, loss, best)
                scales = np.where(better, scale, scales)
                biases = np.where(better, bias, biases)
            else:
                scale, bias = _least_squares(part, codes, share, scale, bias)
    return scales, biases


def _least_squares(
    part: Floats, codes: Floats, share: Floats, scale: Floats, bias: Floats
) -> tuple[Floats, Floats]:
    """Fit each group's weights as a line over their codes; keep what can't be fitted."""
    total = share.sum(axis=1)
    mean_code = np.einsum("rgk,gk->rg", codes, share, optimize=False) / total
    mean_part = np.einsum("rgk,gk->rg", part, share, optimize=False) / total
    spread = np.einsum("rgk,rgk,gk->rg", codes, codes, share, optimize=False) / total
    slope = np.einsum("rgk,rgk,gk->rg", codes, part, share, optimize=False) / total
    spread -= mean_code**2
    slope -= mean_code * mean_part
    usable = (spread > _RIDGE) & (slope > 0)
    fitted = np.where(usable, slope / np.where(usable, spread, 1), scale)
    return _as_float16(fitted, np.where(usable, mean_part - fitted * mean_code, bias))


def _as_float16(scale: Floats, bias: Floats) -> tuple[Floats, Floats]:
    """Round to what the file will hold; a scale of zero, of equal weights, would divide by it."""
    held = scale.astype(np.float16).astype(np.float32)
    held = np.where(held > 0, held, np.float32(1))
    return held, bias.astype(np.float16).astype(np.float32)


def compensate(weight: Floats, grid: Grid, second: Floats, *, damping: float = DAMPING) -> Codes:
    """Round column by column, and let the columns to come take back the error of each.

    The columns with the largest inputs go first. The result is then improved by choosing each
    code anew, the others given, until that has been done twice for every column.

    Args:
        weight: Shape (rows, columns), float32.
        grid: Its grid.
        second: Second moments of the inputs. Shape (columns, columns), float32.
        damping: Share of their mean diagonal that is added to it.

    Returns:
        Shape (rows, columns), uint8.

    Source:
        Frantar et al. 2022, "GPTQ", section 3.3 and its later "act order"; Chee et al. 2023,
        "QuIP", supplement B.2, for the improvement.
    """
    order = np.argsort(-np.diag(second), kind="stable")
    moments, upper = _inverted(second[np.ix_(order, order)], damping)
    # Rows of what is worked on are columns of the weight, so that each is one stretch.
    codes = np.empty(weight.shape, np.uint8)
    group = order // grid.precision.group_size
    top = np.float32((1 << grid.precision.bits) - 1)
    for start in range(0, len(weight), _ROWS):
        rows = slice(start, start + _ROWS)
        scales = np.ascontiguousarray(grid.scales[rows].T[group])
        biases = np.ascontiguousarray(grid.biases[rows].T[group])
        wanted = np.ascontiguousarray(weight[rows].T[order])
        lines = _Lines(scales, biases, top)
        found = _compensate(wanted.copy(), lines, upper)
        for _ in range(_SWEEPS):
            _descend(found, wanted, lines, moments)
        codes[rows, order] = found.T
    return codes


def _inverted(second: Floats, damping: float) -> tuple[Floats, Floats]:
    """Give damped moments, and the upper Cholesky factor of their inverse."""
    if not np.isfinite(second).all():
        raise FloatingPointError("a layer's inputs are not finite")
    while True:
        damped = _damped(second, damping)
        try:
            upper = np.linalg.cholesky(np.linalg.inv(damped)).T
        except np.linalg.LinAlgError:
            # Rounding has made tiny moments negative; with enough damping none is.
            damping *= 10
            continue
        return damped.astype(np.float32), upper.astype(np.float32)


def _damped(second: Floats, damping: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    damped = second.astype(np.float64)
    diagonal = np.diag(damped)
    # A column that is always zero may take any code: its row and column are the unit's.
    damped[np.diag_indices_from(damped)] += damping * max(float(diagonal.mean()), _RIDGE)
    return damped


class _Lines(NamedTuple):
    """A grid by columns: the scale and bias of each weight, and the largest code."""

    scales: Floats
    biases: Floats
    top: np.float32


def _compensate(wanted: Floats, lines: _Lines, upper: Floats) -> Floats:
    """Do what `compensate` says, on transposed and ordered arrays. Changes `wanted`."""
    scales, biases, top = lines
    columns = len(wanted)
    codes = np.empty_like(wanted)
    errors = np.empty((_BLOCK_COLUMNS, wanted.shape[1]), np.float32)
    for start in range(0, columns, _BLOCK_COLUMNS):
        end = min(start + _BLOCK_COLUMNS, columns)
        for at in range(start, end):
            codes[at] = np.clip(np.rint((wanted[at] - biases[at]) / scales[at]), 0, top)
            error = (wanted[at] - codes[at] * scales[at] - biases[at]) / upper[at, at]
            wanted[at + 1 : end] -= upper[at, at + 1 : end, None] * error
            errors[at - start] = error
        wanted[end:] -= upper[start:end, end:].T @ errors[: end - start]
    return codes


def _descend(codes: Floats, wanted: Floats, lines: _Lines, moments: Floats) -> None:
    """Choose each code anew, the others given. Changes `codes`."""
    scales, biases, top = lines
    columns = len(wanted)
    pull = moments @ (wanted - codes * scales - biases)
    steps = np.empty((_BLOCK_COLUMNS, wanted.shape[1]), np.float32)
    for start in range(0, columns, _BLOCK_COLUMNS):
        end = min(start + _BLOCK_COLUMNS, columns)
        for at in range(start, end):
            shift = np.rint(pull[at] / (moments[at, at] * scales[at]))
            chosen = np.clip(codes[at] + shift, 0, top)
            step = (chosen - codes[at]) * scales[at]
            pull[at + 1 : end] -= moments[at + 1 : end, at, None] * step
            steps[at - start] = step
            codes[at] = chosen
        pull[end:] -= moments[end:, start:end] @ steps[: end - start]


def refit(
    weight: Floats, codes: Codes, grid: Grid, second: Floats, *, damping: float = DAMPING
) -> Grid:
    """Choose scales and biases anew, all groups of a row together, the codes given.

    Args:
        weight: Shape (rows, columns), float32.
        codes: Shape (rows, columns), uint8.
        grid: The grid they were chosen on.
        second: Second moments of the inputs. Shape (columns, columns), float32.
        damping: Share of their mean diagonal that is added to it.

    Returns:
        The grid with which the layer's output is off least.
    """
    damped = _damped(second, damping).astype(np.float32)
    size = grid.precision.group_size
    rows, groups = grid.scales.shape
    starts = range(0, len(damped), size)
    scales, biases = np.empty_like(grid.scales), np.empty_like(grid.biases)
    ones = np.add.reduceat(damped, starts, axis=0)
    both = np.add.reduceat(ones, starts, axis=1)
    batch = max(1, _ROWS // groups)
    for start in range(0, rows, batch):
        part = slice(start, start + batch)
        code = codes[part].astype(np.float32)
        count = len(code)
        error = weight[part] - dequantize(codes[part], _rows(grid, part))
        pull = error @ damped
        # The normal equations of a correction, in (scales, biases) of all groups.
        left = np.empty((count, 2 * groups, 2 * groups), np.float32)
        right = np.empty((count, 2 * groups), np.float32)
        right[:, :groups] = np.add.reduceat(pull * code, starts, axis=1)
        right[:, groups:] = np.add.reduceat(pull, starts, axis=1)
        left[:, groups:, groups:] = both
        for at in range(groups):
            inside = slice(at * size, (at + 1) * size)
            left[:, at, :groups] = np.add.reduceat(
                (code[:, inside] @ damped[inside]) * code, starts, axis=1
            )
            left[:, at, groups:] = code[:, inside] @ ones[:, inside].T
        left[:, groups:, :groups] = left[:, :groups, groups:].transpose(0, 2, 1)
        diagonal = np.einsum("rii->ri", left)
        diagonal += _RIDGE * diagonal.max(axis=1, keepdims=True)
        change = np.linalg.solve(left.astype(np.float64), right[:, :, None])[:, :, 0]
        scale = (grid.scales[part] + change[:, :groups]).astype(np.float32)
        bias = (grid.biases[part] + change[:, groups:]).astype(np.float32)
        fitted = _as_float16(scale, bias)
        # A scale that turned negative, or that float16 can't hold, is no improvement.
        sound = (scale > 0) & np.isfinite(fitted[0]) & np.isfinite(fitted[1])
        sound = np.logical_and.reduce(sound, axis=1, keepdims=True)
        scales[part] = np.where(sound, fitted[0], grid.scales[part])
        biases[part] = np.where(sound, fitted[1], grid.biases[part])
    return Grid(scales, biases, grid.precision)


def _rows(grid: Grid, part: slice) -> Grid:
    return Grid(grid.scales[part], grid.biases[part], grid.precision)
