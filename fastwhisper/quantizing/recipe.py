"""Which module gets how many bits: what was measured to keep the most words at a size."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from fastwhisper.checkpoint.expected import expected_shapes
from fastwhisper.values import ModulePrecision, Quantization

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastwhisper.values import Dimensions

__all__ = [
    "INT4_SHARE",
    "apply_recipe",
    "choose_precision",
    "describe_precision",
    "share_of_float16",
]

INT4_SHARE: Final = 0.35
"""What int4 means here: at most this share of float16's bytes."""

_MATRIX: Final = 2

INT8: Final = ModulePrecision(8, 64)
"""Bits and group size that mlx_whisper's own int8 repositories have."""

LADDER: Final = (
    INT8,
    ModulePrecision(6, 64),
    ModulePrecision(6, 128),
    ModulePrecision(5, 64),
    ModulePrecision(5, 128),
    ModulePrecision(4, 64),
    ModulePrecision(4, 128),
)
"""Bits and group size of all modules, the one that keeps most words first. At the size of int4,
five bits for every module keep more words than six for the embedding and four for the rest: on
tiny.en the divergence from float16's distribution is half as large, at fewer bytes."""


def choose_precision(
    dimensions: Dimensions, quant: Quantization, *, share: float = INT4_SHARE
) -> dict[str, ModulePrecision]:
    """Choose bits and group size for every module of a network.

    Args:
        dimensions: The network's sizes.
        quant: int8, or int4.
        share: The most bytes that int4 may take, as a share of float16's.

    Returns:
        Bits and group size by module name.

    Raises:
        ValueError: No recipe has so small a share.
    """
    if quant is Quantization.INT8:
        return apply_recipe(dimensions, (INT8, INT8, INT8))
    for how in LADDER:
        precision = apply_recipe(dimensions, (how, how, how))
        found = share_of_float16(dimensions, precision)
        if found <= share:
            return precision
    raise ValueError(f"a share of {share:.1%} is too small: this network needs {found:.1%}")


_EMBEDDING: Final = "decoder.token_embedding"


def share_of_float16(dimensions: Dimensions, precision: Mapping[str, ModulePrecision]) -> float:
    """Compute the bytes of a quantized network's weights, as a share of float16's."""
    float16 = packed = 0
    for name, shape in expected_shapes(dimensions).items():
        count = math.prod(shape)
        float16 += 2 * count
        how = precision.get(name.removesuffix(".weight"))
        if how is None or not name.endswith(".weight"):
            packed += 2 * count
        else:
            packed += count * how.bits // 8 + 4 * count // how.group_size
    return packed / float16


def describe_precision(precision: Mapping[str, ModulePrecision]) -> dict[str, object]:
    """Say it as an MLX config does: one setting for most modules, exceptions by name.

    mlx_whisper 0.4.3 understands it where there are no exceptions.
    """
    kinds = list(precision.values())
    most = max(set(kinds), key=lambda kind: (kinds.count(kind), kind.bits))
    said: dict[str, object] = {"group_size": most.group_size, "bits": most.bits}
    for module, kind in precision.items():
        if kind != most:
            said[module] = {"group_size": kind.group_size, "bits": kind.bits}
    return said


def apply_recipe(
    dimensions: Dimensions, recipe: tuple[ModulePrecision, ModulePrecision, ModulePrecision]
) -> dict[str, ModulePrecision]:
    """Give every module of a network its part of a recipe.

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
        if len(shape) == _MATRIX and module != name:
            how = encoder if module.startswith("encoder.") else decoder
            if module == _EMBEDDING:
                how = embedding
            # A width that is no multiple of the group size needs smaller groups.
            found[module] = replace(how, group_size=math.gcd(how.group_size, shape[1]))
    return found
