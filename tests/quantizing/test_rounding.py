"""Rounding into MLX's affine groups: its exact bits, and errors that cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastwhisper.checkpoint.expected import BITS, GROUP_SIZES
from fastwhisper.quantizing.grid import (
    Grid,
    dequantize,
    pack,
    round_to_nearest,
    search_grid,
)
from fastwhisper.quantizing.rounding import compensate, refit
from fastwhisper.values import ModulePrecision

if TYPE_CHECKING:
    from fastwhisper.quantizing.grid import Floats

PRECISIONS = [ModulePrecision(bits, size) for bits in BITS for size in GROUP_SIZES]


@pytest.fixture(params=PRECISIONS, ids=lambda how: f"{how.bits}g{how.group_size}")
def precision(request: pytest.FixtureRequest) -> ModulePrecision:
    """Return every precision that MLX has."""
    how: ModulePrecision = request.param
    return how


def normal(*shape: int, seed: int = 0) -> Floats:
    """Draw numbers. Returns `shape`, float32."""
    numbers: Floats = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return numbers


def correlated(columns: int, *, seed: int = 1) -> Floats:
    """Make second moments of inputs that are far from independent."""
    inputs = normal(3 * columns, columns, seed=seed) @ normal(columns, columns, seed=seed + 1)
    moments: Floats = (inputs.T @ inputs / len(inputs)).astype(np.float32)
    return moments


def loss(weight: Floats, other: Floats, second: Floats) -> float:
    """Compute how far a layer's output is off, squared."""
    error = (weight - other).astype(np.float64)
    return float(np.einsum("ij,jk,ik->", error, second, error))


def as_mlx(packed: Any, precision: ModulePrecision) -> Floats:
    """Let MLX unpack a weight."""
    return np.array(
        mx.dequantize(
            mx.array(packed.weight),
            mx.array(packed.scales).astype(mx.float32),
            mx.array(packed.biases).astype(mx.float32),
            group_size=precision.group_size,
            bits=precision.bits,
        )
    )


def test_mlx_unpacks_what_was_packed(precision: ModulePrecision) -> None:
    """MLX reads the weights that our codes stand for, at every precision it has."""
    weight = normal(5, 256)
    grid = search_grid(weight, precision)
    codes = round_to_nearest(weight, grid)
    packed = pack(codes, grid)
    np.testing.assert_allclose(as_mlx(packed, precision), dequantize(codes, grid), atol=1e-6)


def test_packs_mlx_own_codes_into_mlx_own_words(precision: ModulePrecision) -> None:
    """MLX's own codes, packed here, are bit for bit what MLX packed."""
    words, scales, biases = mx.quantize(
        mx.array(normal(4, 128)), group_size=precision.group_size, bits=precision.bits
    )
    scale, bias = np.array(scales), np.array(biases)
    grid = Grid(scale, bias, precision)
    plain = np.array(mx.dequantize(words, scales, biases, precision.group_size, precision.bits))
    groups = plain.reshape(4, -1, precision.group_size)
    codes = np.rint((groups - bias[:, :, None]) / scale[:, :, None]).astype(np.uint8)
    assert np.array_equal(pack(codes.reshape(4, 128), grid).weight, np.array(words))


def test_exact_words_of_a_tiny_case() -> None:
    """Codes 0 to 31 at five bits are one stream, lowest bits first."""
    grid = Grid(np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32), ModulePrecision(5, 32))
    codes = np.arange(32, dtype=np.uint8)[None]
    stream = sum(code << (5 * at) for at, code in enumerate(range(32)))
    assert pack(codes, grid).weight.tobytes() == stream.to_bytes(20, "little")


def test_nothing_is_further_than_half_a_step_unless_it_was_clipped() -> None:
    """A weight inside the grid is rounded to the nearest of its steps."""
    weight = normal(8, 64)
    grid = search_grid(weight, ModulePrecision(4, 64))
    error = np.abs(weight - dequantize(round_to_nearest(weight, grid), grid))
    inside = (weight >= grid.biases) & (weight <= grid.biases + 15 * grid.scales)
    assert (error <= np.where(inside, grid.scales * 0.5001, np.inf)).all()


def test_the_grid_is_no_worse_than_mlx_own(precision: ModulePrecision) -> None:
    """Searching pays: the squared error is at most that of `mx.quantize`."""
    weight = normal(16, 256)
    ours = dequantize(round_to_nearest(weight, grid := search_grid(weight, precision)), grid)
    parts = mx.quantize(mx.array(weight), precision.group_size, precision.bits)
    theirs = np.array(mx.dequantize(*parts, precision.group_size, precision.bits))
    assert ((weight - ours) ** 2).sum() <= ((weight - theirs) ** 2).sum() * 1.001


def test_what_counts_more_is_closer() -> None:
    """Columns of weight a thousand have a smaller error than without."""
    weight = normal(32, 64)
    importance = np.ones(64, np.float32)
    importance[::8] = 1000
    errors = []
    for given_importance in (None, importance):
        grid = search_grid(weight, ModulePrecision(3, 64), given_importance)
        off = weight - dequantize(round_to_nearest(weight, grid), grid)
        errors.append(float((off[:, ::8] ** 2).sum()))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("value", [0.0, 1.5, -3.25])
def test_equal_weights_are_kept(value: float) -> None:
    """A group of one value, zero included, divides nothing by zero and comes back."""
    weight = np.full((2, 64), value, np.float32)
    grid = search_grid(weight, ModulePrecision(4, 64))
    assert np.array_equal(dequantize(round_to_nearest(weight, grid), grid), weight)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_compensating_beats_rounding_and_refitting_beats_both(bits: int) -> None:
    """On correlated inputs each step brings the layer's output nearer."""
    weight, second = normal(24, 128), correlated(128)
    grid = search_grid(weight, ModulePrecision(bits, 64), np.diag(second).copy())
    plain = loss(weight, dequantize(round_to_nearest(weight, grid), grid), second)
    codes = compensate(weight, grid, second)
    compensated = loss(weight, dequantize(codes, grid), second)
    fitted = refit(weight, codes, grid, second)
    assert compensated < plain / 2
    assert loss(weight, dequantize(codes, fitted), second) < compensated


def test_an_input_that_never_comes_harms_nothing() -> None:
    """Columns that are always zero, and fewer inputs than columns, are taken."""
    weight, second = normal(4, 64), correlated(64)
    second[:, 5] = second[5, :] = 0
    inputs = normal(3, 64)
    for moments in (second, inputs.T @ inputs, np.zeros((64, 64), np.float32)):
        grid = search_grid(weight, ModulePrecision(4, 32), np.diag(moments).copy())
        codes = compensate(weight, grid, moments)
        fitted = refit(weight, codes, grid, moments)
        assert np.isfinite(dequantize(codes, fitted)).all()
        assert codes.max() <= 15


def test_inputs_that_are_not_finite_are_refused() -> None:
    """NaN in the network is an error and no endless search."""
    weight = normal(2, 32)
    grid = search_grid(weight, ModulePrecision(4, 32))
    with pytest.raises(FloatingPointError, match="not finite"):
        compensate(weight, grid, np.full((32, 32), np.nan, np.float32))


@given(st.integers(0, 2**32 - 1), st.sampled_from(PRECISIONS), st.floats(1e-4, 1e3))
def test_any_weights_stay_near(seed: int, precision: ModulePrecision, size: float) -> None:
    """Whatever the numbers, no weight is off by more than the group's range."""
    weight = normal(3, 128, seed=seed) * np.float32(size)
    grid = search_grid(weight, precision)
    restored = dequantize(round_to_nearest(weight, grid), grid)
    groups = weight.reshape(3, -1, precision.group_size)
    extent = np.repeat(np.ptp(groups, axis=2), precision.group_size, axis=1)
    assert (np.abs(weight - restored) <= extent * 1.01 + 1e-3).all()
