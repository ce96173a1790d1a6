"""The expected tensors of a Whisper network, and the check of a checkpoint's tensors against them.

Only names, shapes and dtypes are compared, so the check takes about a millisecond. No weight is
read for it.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Final

from fastwhisper.checkpoint.files import shown
from fastwhisper.errors import InvalidModelFormatError
from fastwhisper.values import ModulePrecision

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from fastwhisper.values import Dimensions

__all__ = [
    "ALIGNMENT_HEADS",
    "BITS",
    "EMBEDDING",
    "FLOATS",
    "GROUP_SIZES",
    "HEAD_WIDTH",
    "INTEGERS",
    "Findings",
    "check_tensors",
    "expected_shapes",
    "find_main_bits",
]

HEAD_WIDTH: Final = 64
"""Width of an attention head, in every Whisper and in distil-whisper. Source: Radford et al.
2022, table 1, state divided by heads."""

EMBEDDING: Final = "decoder.token_embedding"
"""The module of the token embedding, which is the output layer too."""

ALIGNMENT_HEADS: Final = "alignment_heads"
"""The only optional tensor. The network has a default for it."""

FLOATS: Final = frozenset({"float16", "bfloat16", "float32"})
"""Allowed dtypes of a weight that is not quantized."""

INTEGERS: Final = frozenset(
    {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
)
"""Allowed dtypes of the alignment heads."""

BITS: Final = (2, 3, 4, 5, 6, 8)
GROUP_SIZES: Final = (32, 64, 128)
"""What MLX's affine kernels support. Source: `mlx.core.quantize`."""

_MATRIX: Final = 2
_PAIR: Final = 2
_SHOWN_NAMES: Final = 8


class Findings:
    """Everything that is wrong with a set of tensors, collected for one error."""

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[str, str]]] = {}

    def add(self, flaw: str, name: str, detail: str = "") -> None:
        """Record that the tensor `name` has a flaw, such as "missing"."""
        self._found.setdefault(flaw, []).append((name, detail))

    def raise_for(self, path: Path) -> None:
        """Raise one error that names all tensors with a flaw; return if there are none.

        Raises:
            InvalidModelFormatError: There is a finding.
        """
        if not self._found:
            return
        parts = []
        for flaw, found in self._found.items():
            names = [shown(name) + detail for name, detail in found[:_SHOWN_NAMES]]
            more = len(found) - len(names)
            parts.append(f"{flaw}: {', '.join(names)}{f' and {more} more' if more else ''}")
        first = next(iter(self._found.values()))[0][0]
        raise InvalidModelFormatError(path, shown(first), "; ".join(parts))


def expected_shapes(dimensions: Dimensions) -> dict[str, tuple[int, ...]]:
    """Return the expected tensors of a network that is not quantized.

    Args:
        dimensions: The network's sizes.

    Returns:
        Shape by MLX name, without the optional alignment heads.

    Source:
        The parameters of `mlx_whisper.whisper.Whisper`.
    """
    d = dimensions
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.conv1.weight": (d.n_audio_state, 3, d.n_mels),
        "encoder.conv1.bias": (d.n_audio_state,),
        "encoder.conv2.weight": (d.n_audio_state, 3, d.n_audio_state),
        "encoder.conv2.bias": (d.n_audio_state,),
        "decoder.token_embedding.weight": (d.n_vocab, d.n_text_state),
        "decoder.positional_embedding": (d.n_text_ctx, d.n_text_state),
    }
    shapes.update(_norm("encoder.ln_post", d.n_audio_state))
    shapes.update(_norm("decoder.ln", d.n_text_state))
    for layer in range(d.n_audio_layer):
        shapes.update(_block(f"encoder.blocks.{layer}", d.n_audio_state, ("attn",)))
    for layer in range(d.n_text_layer):
        shapes.update(_block(f"decoder.blocks.{layer}", d.n_text_state, ("attn", "cross_attn")))
    return shapes


def check_tensors(
    dimensions: Dimensions, tensors: Mapping[str, tuple[str, tuple[int, ...]]], path: Path
) -> dict[str, ModulePrecision]:
    """Check that tensors are exactly those of the network, each module plain or quantized.

    Args:
        dimensions: The network's sizes.
        tensors: Dtype and shape by MLX name.
        path: Their file or directory, for messages.

    Returns:
        Bits and group size of every quantized module, from its shapes.

    Raises:
        InvalidModelFormatError: Tensors are missing, unknown, or of the wrong shape or dtype.
            The error names them all.
    """
    expected = expected_shapes(dimensions)
    findings = Findings()
    precision = _packings(expected, tensors, findings)
    packed = {f"{module}.weight" for module in precision}
    for module, how in precision.items():
        rows, columns = expected[f"{module}.weight"]
        expected[f"{module}.weight"] = (rows, columns * how.bits // 32)
        expected[f"{module}.scales"] = (rows, columns // how.group_size)
        expected[f"{module}.biases"] = (rows, columns // how.group_size)
    for name, shape in expected.items():
        dtype, found = tensors.get(name, ("", ()))
        if not dtype:
            findings.add("missing", name)
        elif found != shape:
            findings.add("of the wrong shape", name, f" {found}, not {shape}")
        elif dtype not in (("uint32",) if name in packed else FLOATS):
            findings.add("of the wrong dtype", name, f" {dtype}")
    for name, tensor in tensors.items():
        if name == ALIGNMENT_HEADS:
            _check_heads_tensor(dimensions, tensor, findings)
        elif name not in expected:
            findings.add("unknown", name)
    findings.raise_for(path)
    return precision


def find_main_bits(dimensions: Dimensions, precision: Mapping[str, ModulePrecision]) -> int:
    """Return the bits that most quantized weights of a network have.

    Args:
        dimensions: The network's sizes.
        precision: Bits and group size by module name, of at least one module.
    """
    shapes = expected_shapes(dimensions)
    weights = Counter[int]()
    for module, packed in precision.items():
        weights[packed.bits] += math.prod(shapes[f"{module}.weight"])
    return max(weights, key=lambda bits: (weights[bits], bits))


def _packings(
    expected: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    findings: Findings,
) -> dict[str, ModulePrecision]:
    """Return bits and group size of the modules that have scales."""
    precision = {}
    for name, (_, scales) in tensors.items():
        module = name.removesuffix(".scales")
        whole = expected.get(f"{module}.weight", ())
        # Without the suffix, or where nothing can be quantized, it is checked as a plain tensor.
        if module == name or len(whole) != _MATRIX:
            continue
        packed = _packing(whole, tensors.get(f"{module}.weight", ("", ()))[1], scales)
        if packed is None:
            findings.add("of a packing that MLX does not support", name, f" {scales}")
            packed = ModulePrecision(BITS[-1], GROUP_SIZES[0])
        precision[module] = packed
    return precision


def _packing(
    whole: tuple[int, ...], weight: tuple[int, ...], scales: tuple[int, ...]
) -> ModulePrecision | None:
    """Compute bits and group size; None if no packing of MLX has these shapes."""
    rows, columns = whole
    if len(weight) != _MATRIX or len(scales) != _MATRIX or not weight[1] or not scales[1]:
        return None
    bits, group_size = weight[1] * 32 // columns, columns // scales[1]
    if bits not in BITS or group_size not in GROUP_SIZES:
        return None
    # Multiplied back, to refuse a division with a remainder.
    if (rows, columns * bits) != (weight[0], weight[1] * 32):
        return None
    if (rows, columns) == (scales[0], scales[1] * group_size):
        return ModulePrecision(bits, group_size)
    return None


def _check_heads_tensor(
    dimensions: Dimensions, tensor: tuple[str, tuple[int, ...]], findings: Findings
) -> None:
    dtype, shape = tensor
    most = dimensions.n_text_layer * dimensions.n_text_head
    if len(shape) != _MATRIX or shape[1] != _PAIR or not 1 <= shape[0] <= most:
        findings.add("of the wrong shape", ALIGNMENT_HEADS, f" {shape}, not at most ({most}, 2)")
    elif dtype not in INTEGERS:
        findings.add("of the wrong dtype", ALIGNMENT_HEADS, f" {dtype}")


def _norm(name: str, state: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (state,)
    yield f"{name}.bias", (state,)


def _block(
    name: str, state: int, attentions: tuple[str, ...]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for attention in attentions:
        yield from _norm(f"{name}.{attention}_ln", state)
        for part in ("query", "key", "value", "out"):
            yield f"{name}.{attention}.{part}.weight", (state, state)
            if part != "key":
                yield f"{name}.{attention}.{part}.bias", (state,)
    yield from _norm(f"{name}.mlp_ln", state)
    yield f"{name}.mlp1.weight", (4 * state, state)
    yield f"{name}.mlp1.bias", (4 * state,)
    yield f"{name}.mlp2.weight", (state, 4 * state)
    yield f"{name}.mlp2.bias", (state,)
