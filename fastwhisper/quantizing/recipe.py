"""The recipes of quantization: which module gets how many bits, as measured to keep most words."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from fastwhisper.checkpoint.expected import EMBEDDING, expected_shapes
from fastwhisper.values import ModulePrecision, Quantization

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastwhisper.values import Dimensions

__all__ = [
    "INT4_SIZE_RATIO",
    "apply_recipe",
    "choose_precision",
    "compute_size_ratio",
    "describe_precision",
]

INT4_SIZE_RATIO: Final = 0.35
"""Largest size of an int4 model, as a fraction of float16's bytes."""

_INT8: Final = ModulePrecision(8, 64)
"""Bits and group size of mlx_whisper's own int8 repositories."""

_INT4_RECIPES: Final = (
    _INT8,
    ModulePrecision(6, 64),
    ModulePrecision(6, 128),
    ModulePrecision(5, 64),
    ModulePrecision(5, 128),
    ModulePrecision(4, 64),
    ModulePrecision(4, 128),
)
"""Bits and group size of all modules; the recipe that keeps most words comes first. At the size of
int4, five bits for every module keep more words than six for the embedding and four for the rest:
on tiny.en the divergence from float16's distribution is half as large, at fewer bytes."""

_MATRIX_RANK: Final = 2


def choose_precision(
    dimensions: Dimensions, quant: Quantization, *, size_ratio: float = INT4_SIZE_RATIO
) -> dict[str, ModulePrecision]:
    """Choose bits and group size for every module of a network.

    Args:
        dimensions: The network's sizes.
        quant: int8, or int4.
        size_ratio: Largest size of an int4 model, as a fraction of float16's bytes.

    Returns:
        Bits and group size by module name.

    Raises:
        ValueError: No recipe makes a model as small as `size_ratio`.
    """
    if quant is Quantization.INT8:
        return apply_recipe(dimensions, (_INT8, _INT8, _INT8))
    for kind in _INT4_RECIPES:
        precision = apply_recipe(dimensions, (kind, kind, kind))
        found = compute_size_ratio(dimensions, precision)
        if found <= size_ratio:
            return precision
    raise ValueError(
        f"no recipe makes this model as small as {size_ratio:.1%} of float16's bytes; the smallest "
        f"needs {found:.1%}"
    )


def apply_recipe(
    dimensions: Dimensions, recipe: tuple[ModulePrecision, ModulePrecision, ModulePrecision]
) -> dict[str, ModulePrecision]:
    """Return the precision of every module by a recipe.

    Args:
        dimensions: The network's sizes.
        recipe: Bits and group size of the embedding, the encoder and the decoder.

    Returns:
        Bits and group size by module name.
    """
    embedding, encoder, decoder = recipe
    found = {}
    for name, shape in expected_shapes(dimensions).items():
        module = name.removesuffix(".weight")
        if len(shape) == _MATRIX_RANK and module != name:
            kind = encoder if module.startswith("encoder.") else decoder
            if module == EMBEDDING:
                kind = embedding
            # A width that is not a multiple of the group size needs smaller groups.
            found[module] = replace(kind, group_size=math.gcd(kind.group_size, shape[1]))
    return found


def compute_size_ratio(dimensions: Dimensions, precision: Mapping[str, ModulePrecision]) -> float:
    """Return the bytes of a quantized network, as a fraction of float16's."""
    float16 = packed = 0
    for name, shape in expected_shapes(dimensions).items():
        count = math.prod(shape)
        float16 += 2 * count
        kind = precision.get(name.removesuffix(".weight"))
        if kind is None or not name.endswith(".weight"):
            packed += 2 * count
        else:
            packed += count * kind.bits // 8 + 4 * count // kind.group_size
    return packed / float16


def describe_precision(precision: Mapping[str, ModulePrecision]) -> dict[str, object]:
    """Return the field `quantization` of an MLX config.

    It has the bits and group size of most modules, and by name those of every other module.
    mlx_whisper 0.4.3 can read it only where all modules are alike.
    """
    kinds = list(precision.values())
    most = max(set(kinds), key=lambda kind: (kinds.count(kind), kind.bits))
    field: dict[str, object] = {"group_size": most.group_size, "bits": most.bits}
    for module, kind in precision.items():
        if kind != most:
            field[module] = {"group_size": kind.group_size, "bits": kind.bits}
    return field
