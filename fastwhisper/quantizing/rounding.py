"""A weight and the moments of its inputs -> the weight in MLX's affine group format.

Rounding each weight to the nearest value does not give the smallest error of a layer's output: the
inputs are correlated, so other columns can compensate the error of one column. That needs only the
second moments of the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from fastwhisper.quantizing.grid import RIDGE, ROWS_AT_ONCE, Grid, dequantize, round_to_float16

if TYPE_CHECKING:
    from fastwhisper.quantizing.grid import Codes, Floats

__all__ = ["DAMPING", "Moments", "compensate", "refit"]

DAMPING: Final = 0.01
"""Added to the diagonal of the second moments, as a fraction of the diagonal's mean. Source:
Frantar et al. 2022, section 3.3."""

_BLOCK_COLUMNS: Final = 64
_SWEEPS: Final = 2
"""How often every code is chosen again."""


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """The moments of a layer's inputs.

    Attributes:
        mean: Mean of each column. Shape (columns,), float32.
        second: Second moments about the mean; the layer's bias compensates the mean itself. Shape
            (columns, columns), float32.
    """

    mean: Floats
    second: Floats


def compensate(weight: Floats, grid: Grid, second: Floats, *, damping: float = DAMPING) -> Codes:
    """Round column by column, and compensate the error of each column in the columns after it.

    The columns with the largest inputs come first. Then each code is chosen again while the other
    codes stay as they are, twice for every column.

    Args:
        weight: Shape (rows, columns), float32.
        grid: The grid of the weight.
        second: Second moments of the inputs. Shape (columns, columns), float32.
        damping: Added to the moments' diagonal, as a fraction of the diagonal's mean.

    Returns:
        The codes. Shape (rows, columns), uint8.

    Raises:
        FloatingPointError: `second` is not finite.

    Source:
        Frantar et al. 2022, "GPTQ", section 3.3 and its later "act order"; Chee et al. 2023,
        "QuIP", supplement B.2, for choosing codes again.
    """
    order = np.argsort(-np.diag(second), kind="stable")
    moments, upper = _invert(second[np.ix_(order, order)], damping)
    # The arrays are transposed, so that a column of the weight is contiguous in memory.
    codes = np.empty(weight.shape, np.uint8)
    group = order // grid.precision.group_size
    top = np.float32((1 << grid.precision.bits) - 1)
    for start in range(0, len(weight), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        scales = np.ascontiguousarray(grid.scales[rows].T[group])
        biases = np.ascontiguousarray(grid.biases[rows].T[group])
        wanted = np.ascontiguousarray(weight[rows].T[order])
        columns = _ColumnGrid(scales, biases, top)
        found = _round_columns(wanted.copy(), columns, upper)
        for _ in range(_SWEEPS):
            _choose_again(found, wanted, columns, moments)
        codes[rows, order] = found.T
    return codes


def _invert(second: Floats, damping: float) -> tuple[Floats, Floats]:
    """Compute damped moments, and the upper Cholesky factor of their inverse."""
    if not np.isfinite(second).all():
        raise FloatingPointError("the inputs of a layer are not finite")
    while True:
        damped = _add_damping(second, damping)
        try:
            upper = np.linalg.cholesky(np.linalg.inv(damped)).T
        except np.linalg.LinAlgError:
            # Rounding errors made small eigenvalues negative. Enough damping makes all positive.
            damping *= 10
            continue
        return damped.astype(np.float32), upper.astype(np.float32)


def _add_damping(
    second: Floats, damping: float
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return moments with damping on their diagonal. Shape (columns, columns), float64."""
    damped = second.astype(np.float64)
    diagonal = np.diag(damped)
    # Where all inputs are zero, the ridge keeps the matrix invertible.
    damped[np.diag_indices_from(damped)] += damping * max(float(diagonal.mean()), RIDGE)
    return damped


class _ColumnGrid(NamedTuple):
    """The grid of each weight, transposed: scales and biases of shape (columns, rows), float32."""

    scales: Floats
    biases: Floats
    top: np.float32


def _round_columns(wanted: Floats, grid: _ColumnGrid, upper: Floats) -> Floats:
    """Round column by column, and compensate each error. Changes `wanted`.

    Args:
        wanted: The transposed weight. Shape (columns, rows), float32.
        grid: Its grid.
        upper: Cholesky factor of the inverse moments. Shape (columns, columns), float32.

    Returns:
        The codes. Shape (columns, rows), float32.
    """
    scales, biases, top = grid
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


def _choose_again(codes: Floats, wanted: Floats, grid: _ColumnGrid, moments: Floats) -> None:
    """Choose each code again while the other codes stay as they are. Changes `codes`.

    Args:
        codes: Shape (columns, rows), float32.
        wanted: The transposed weight. Shape (columns, rows), float32.
        grid: Its grid.
        moments: Damped second moments. Shape (columns, columns), float32.
    """
    scales, biases, top = grid
    columns = len(wanted)
    gradient = moments @ (wanted - codes * scales - biases)
    steps = np.empty((_BLOCK_COLUMNS, wanted.shape[1]), np.float32)
    for start in range(0, columns, _BLOCK_COLUMNS):
        end = min(start + _BLOCK_COLUMNS, columns)
        for at in range(start, end):
            shift = np.rint(gradient[at] / (moments[at, at] * scales[at]))
            chosen = np.clip(codes[at] + shift, 0, top)
            step = (chosen - codes[at]) * scales[at]
            gradient[at + 1 : end] -= moments[at + 1 : end, at, None] * step
            steps[at - start] = step
            codes[at] = chosen
        gradient[end:] -= moments[end:, start:end] @ steps[: end - start]


def refit(
    weight: Floats, codes: Codes, grid: Grid, second: Floats, *, damping: float = DAMPING
) -> Grid:
    """Compute new scales and biases for given codes, for all groups of a row together.

    Args:
        weight: Shape (rows, columns), float32.
        codes: Shape (rows, columns), uint8.
        grid: The grid that the codes were chosen on.
        second: Second moments of the inputs. Shape (columns, columns), float32.
        damping: Added to the moments' diagonal, as a fraction of the diagonal's mean.

    Returns:
        The grid with the smallest error of the layer's output.
    """
    damped = _add_damping(second, damping).astype(np.float32)
    size = grid.precision.group_size
    rows, groups = grid.scales.shape
    starts = range(0, len(damped), size)
    scales, biases = np.empty_like(grid.scales), np.empty_like(grid.biases)
    ones = np.add.reduceat(damped, starts, axis=0)
    both = np.add.reduceat(ones, starts, axis=1)
    batch = max(1, ROWS_AT_ONCE // groups)
    for start in range(0, rows, batch):
        part = slice(start, start + batch)
        code = codes[part].astype(np.float32)
        count = len(code)
        old = Grid(grid.scales[part], grid.biases[part], grid.precision)
        error = weight[part] - dequantize(codes[part], old)
        gradient = error @ damped
        # The normal equations of the change of the scales and biases of all groups.
        left = np.empty((count, 2 * groups, 2 * groups), np.float32)
        right = np.empty((count, 2 * groups), np.float32)
        right[:, :groups] = np.add.reduceat(gradient * code, starts, axis=1)
        right[:, groups:] = np.add.reduceat(gradient, starts, axis=1)
        left[:, groups:, groups:] = both
        for at in range(groups):
            inside = slice(at * size, (at + 1) * size)
            left[:, at, :groups] = np.add.reduceat(
                (code[:, inside] @ damped[inside]) * code, starts, axis=1
            )
            left[:, at, groups:] = code[:, inside] @ ones[:, inside].T
        left[:, groups:, :groups] = left[:, :groups, groups:].transpose(0, 2, 1)
        diagonal = np.einsum("rii->ri", left)
        diagonal += RIDGE * diagonal.max(axis=1, keepdims=True)
        change = np.linalg.solve(left.astype(np.float64), right[:, :, None])[:, :, 0]
        scale = (grid.scales[part] + change[:, :groups]).astype(np.float32)
        bias = (grid.biases[part] + change[:, groups:]).astype(np.float32)
        fitted = round_to_float16(scale, bias)
        # A row keeps its grid where a scale became negative, or where float16 can't hold a value.
        usable = (scale > 0) & np.isfinite(fitted[0]) & np.isfinite(fitted[1])
        usable = np.logical_and.reduce(usable, axis=1, keepdims=True)
        scales[part] = np.where(usable, fitted[0], grid.scales[part])
        biases[part] = np.where(usable, fitted[1], grid.biases[part])
    return Grid(scales, biases, grid.precision)
