"""Configs -> dimensions and alignment heads; the check of their quantization settings."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Final

from fastwhisper.checkpoint.expected import (
    ALIGNMENT_HEADS,
    BITS,
    GROUP_SIZES,
    HEAD_WIDTH,
    expected_shapes,
)
from fastwhisper.checkpoint.files import shown
from fastwhisper.errors import InvalidModelFormatError
from fastwhisper.values import Dimensions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fastwhisper.values import ModulePrecision

__all__ = [
    "brief",
    "check_dimensions",
    "check_quantization",
    "parse_alignment_heads",
    "parse_dimensions",
]

LIMITS: Final = {
    "n_mels": 1024,
    "n_audio_ctx": 6000,
    "n_audio_state": 8192,
    "n_audio_head": 512,
    "n_audio_layer": 256,
    "n_vocab": 1 << 20,
    "n_text_ctx": 4096,
    "n_text_state": 8192,
    "n_text_head": 512,
    "n_text_layer": 256,
}
"""The limit of each dimension. It is at least four times large-v3's (128, 1500, 1280, 20, 32,
51866, 448, 1280, 20, 32), so every fine-tune opens. It is small enough that what is computed from
dimensions alone (the encoder's positions, the decoder's mask) takes at most 200 MB."""

KEYS: Final = {name: name for name in LIMITS}
"""The keys of the dimensions in an MLX config."""

MAX_ELEMENTS: Final = 1 << 32
"""The limit of a network's weights, nearly three times large-v3's 1.5 billion. A network that
fits in no memory is refused by its dimensions: MLX ends the process when an allocation fails."""

MAX_HEADS: Final = 1 << 10
"""Largest number of alignment heads, and of layers that they may name. large-v3 has 640 heads in
32 layers."""


def parse_dimensions(
    config: Mapping[str, object], path: Path, *, keys: Mapping[str, str] = KEYS
) -> Dimensions:
    """Read the dimensions from a config; ignore its other keys.

    Args:
        config: The parsed `config.json`.
        path: Its path, for messages.
        keys: The config's key of each dimension; by default those of an MLX checkpoint.

    Returns:
        The dimensions, within the limits.

    Raises:
        InvalidModelFormatError: A dimension is missing, not an integer, or out of bounds.
    """
    values: dict[str, int] = {}
    for field in fields(Dimensions):
        key = keys[field.name]
        value = config.get(key)
        if type(value) is not int:
            flaw = f"is {brief(value)}, not an integer" if key in config else "is missing"
            expected = ", ".join(dict.fromkeys(keys.values()))
            raise InvalidModelFormatError(
                path, key, flaw, f"the config of a Whisper has integers for {expected}"
            )
        values[field.name] = value
    dimensions = Dimensions(**values)
    check_dimensions(dimensions, path, keys=keys)
    return dimensions


def check_dimensions(dimensions: Dimensions, path: Path, *, keys: Mapping[str, str] = KEYS) -> None:
    """Refuse dimensions that no Whisper network can have.

    Args:
        dimensions: The network's sizes.
        path: The file they come from, for messages.
        keys: Their names in that file.

    Raises:
        InvalidModelFormatError: One is out of bounds, or two contradict each other.
    """
    for name, value in asdict(dimensions).items():
        if not 1 <= value <= LIMITS[name]:
            raise InvalidModelFormatError(
                path,
                keys[name],
                f"is {shown(str(value))}, not within 1 to {LIMITS[name]}",
            )
    # No shape depends on the number of heads, and a wrong number gives wrong text without an
    # error. The width that all Whispers share is the only check there is.
    for part in ("audio", "text"):
        state = getattr(dimensions, f"n_{part}_state")
        heads = getattr(dimensions, f"n_{part}_head")
        if heads * HEAD_WIDTH != state:
            raise InvalidModelFormatError(
                path,
                keys[f"n_{part}_head"],
                f"is {heads} for a state of {state}, so each head is {state / heads:g} wide; "
                f"in every Whisper a head is {HEAD_WIDTH} wide",
            )
    if dimensions.n_audio_state != dimensions.n_text_state:
        raise InvalidModelFormatError(
            path,
            keys["n_text_state"],
            f"is {dimensions.n_text_state}, but the encoder's is {dimensions.n_audio_state}",
        )
    elements = sum(math.prod(shape) for shape in expected_shapes(dimensions).values())
    if elements > MAX_ELEMENTS:
        raise InvalidModelFormatError(
            path, None, f"describes {elements} weights, more than {MAX_ELEMENTS}"
        )


def check_quantization(
    config: Mapping[str, object], precision: Mapping[str, ModulePrecision], path: Path
) -> None:
    """Check that the config and the shapes agree about quantization.

    Args:
        config: The parsed `config.json`.
        precision: Bits and group size by module, from the shapes.
        path: The config's path, for messages.

    Raises:
        InvalidModelFormatError: They disagree.
    """
    for key in ("quantization", "quantization_config"):  # The second is mlx-audio's copy.
        said = config.get(key)
        if said is None:
            continue
        if not isinstance(said, dict):
            raise InvalidModelFormatError(path, key, "is not an object")
        _check_said(key, said, path)
        _check_modules(key, said, precision, path)


def parse_alignment_heads(
    config: Mapping[str, object], dimensions: Dimensions, path: Path
) -> tuple[tuple[int, int], ...] | None:
    """Read the alignment heads from a config that lists them as (layer, head).

    Args:
        config: The parsed `config.json` of CTranslate2, or `generation_config.json`.
        dimensions: The network's sizes.
        path: The config's path, for messages.

    Returns:
        The pairs in the config's order. None if it lists none, or those of another network:
        many distilled models list layers of their teacher that they do not have.

    Raises:
        InvalidModelFormatError: An item is not a pair, or names a head that no layer has.
    """
    listed = config.get(ALIGNMENT_HEADS)
    if listed is None:
        return None
    layers, heads = dimensions.n_text_layer, dimensions.n_text_head
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_HEADS:
        raise InvalidModelFormatError(path, ALIGNMENT_HEADS, "is not a list of pairs")
    pairs = []
    for pair in listed:
        match pair:
            case [layer, head] if type(layer) is type(head) is int:
                pairs.append((layer, head))
            case _:
                raise InvalidModelFormatError(
                    path, ALIGNMENT_HEADS, f"has {brief(pair)} for a pair of integers"
                )
    for layer, head in pairs:
        if not (0 <= layer < MAX_HEADS and 0 <= head < heads):
            raise InvalidModelFormatError(
                path,
                ALIGNMENT_HEADS,
                f"names head {shown(str(head))} of layer {shown(str(layer))}, "
                f"but there are {layers} layers of {heads} heads",
            )
    return tuple(pairs) if all(layer < layers for layer, _ in pairs) else None


def _check_modules(
    name: str, said: dict[str, object], precision: Mapping[str, ModulePrecision], path: Path
) -> None:
    """Check the settings, and those of modules that have their own, against the shapes."""
    for module, packed in precision.items():
        local = said.get(module, said)
        if local is True:
            local = said
        if not isinstance(local, dict):
            raise InvalidModelFormatError(
                path, module, "is quantized by its shapes, but not by the config"
            )
        _check_said(module, local, path)
        for key in ("bits", "group_size"):
            value = local.get(key, getattr(packed, key))
            if value != getattr(packed, key):
                raise InvalidModelFormatError(
                    path,
                    f"{name}.{key}",
                    f"is {value}, but the shapes of {module} say {getattr(packed, key)}",
                )


def _check_said(where: str, said: Mapping[str, object], path: Path) -> None:
    """Refuse quantization settings that MLX's affine kernels do not support."""
    for key, allowed in (("bits", BITS), ("group_size", GROUP_SIZES), ("mode", ("affine",))):
        value = said.get(key)
        if key in said and (isinstance(value, bool) or value not in allowed):
            raise InvalidModelFormatError(
                path, f"{shown(where)}.{key}", f"is {brief(value)}, not one of {allowed}"
            )


def brief(value: object) -> str:
    """Return a config's value in a form that is safe to show in a message."""
    return type(value).__name__ if isinstance(value, (list, dict)) else shown(repr(value))
