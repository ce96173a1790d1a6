"""What a Whisper network of given dimensions consists of, and whether tensors are that.

Nothing but names, shapes and dtypes is looked at, so a checkpoint is judged in about a
millisecond, before any of its weights is read.
"""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Final

from fastwhisper.checkpoint.files import shown
from fastwhisper.errors import InvalidModelFormatError
from fastwhisper.values import Dimensions, ModulePrecision

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = [
    "ALIGNMENT_HEADS",
    "FLOATS",
    "HEAD_WIDTH",
    "INTEGERS",
    "Findings",
    "brief",
    "check_dimensions",
    "check_quantization",
    "check_tensors",
    "expected_shapes",
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
"""The most each dimension may be: at least four times large-v3's (128, 1500, 1280, 20, 32,
51866, 448, 1280, 20, 32), so any fine-tune opens, and small enough that what is computed from
them alone (the encoder's positions, the decoder's mask) is at most 200 MB."""

KEYS: Final = {name: name for name in LIMITS}
"""Where an MLX config has the dimensions."""

MAX_ELEMENTS: Final = 1 << 32
"""The most weights of a network, nearly three times large-v3's 1.5 billion: what fits no memory
is refused by its dimensions, before MLX, which dies of an allocation that fails, is asked."""

HEAD_WIDTH: Final = 64
"""Width of an attention head. Source: Radford et al. 2022, table 1, state by heads; it holds for
every later Whisper and for distil-whisper."""

ALIGNMENT_HEADS: Final = "alignment_heads"
"""The one tensor a file may leave out; the network has a default for it."""

FLOATS: Final = frozenset({"float16", "bfloat16", "float32"})
"""Dtypes a plain weight may have."""

INTEGERS: Final = frozenset(
    {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
)
"""Dtypes the alignment heads may have."""

BITS: Final = (2, 3, 4, 5, 6, 8)
GROUP_SIZES: Final = (32, 64, 128)
"""What MLX's affine kernels know. Source: `mlx.core.quantize`."""

_MATRIX: Final = 2
_SHOWN_NAMES: Final = 8
_AGAIN: Final = "the files don't belong together or are damaged: download the model again"


class Findings:
    """Everything that is wrong with a set of tensors, for one error that names it all."""

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[str, str]]] = {}

    def add(self, flaw: str, name: str, detail: str = "") -> None:
        """Note that the tensor `name` has a flaw, such as "missing"."""
        self._found.setdefault(flaw, []).append((name, detail))

    def raise_for(self, path: Path) -> None:
        """Raise one error that names all tensors with a flaw, if there are any.

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
        raise InvalidModelFormatError(path, shown(first), f"{'; '.join(parts)}; {_AGAIN}")


def parse_dimensions(
    config: Mapping[str, object], path: Path, *, keys: Mapping[str, str] = KEYS
) -> Dimensions:
    """Take the dimensions from a config; its other keys are left alone.

    Args:
        config: The parsed `config.json`.
        path: Where it is, for the message.
        keys: The config's key by dimension; those of an MLX checkpoint if not given.

    Returns:
        The dimensions, within the limits.

    Raises:
        InvalidModelFormatError: A dimension is missing, no integer, or out of bounds.
    """
    values: dict[str, int] = {}
    for field in fields(Dimensions):
        key = keys[field.name]
        value = config.get(key)
        if type(value) is not int:
            flaw = f"is {brief(value)}, no integer" if key in config else "is missing"
            wanted = ", ".join(dict.fromkeys(keys.values()))
            raise InvalidModelFormatError(
                path, key, f"{flaw}; the config of such a Whisper has all of {wanted}"
            )
        values[field.name] = value
    dimensions = Dimensions(**values)
    check_dimensions(dimensions, path, keys=keys)
    return dimensions


def check_dimensions(dimensions: Dimensions, path: Path, *, keys: Mapping[str, str] = KEYS) -> None:
    """Refuse dimensions that no Whisper network can have.

    Args:
        dimensions: The network's sizes.
        path: Where they are from, for the message.
        keys: What they are called there.

    Raises:
        InvalidModelFormatError: One is out of bounds, or two contradict each other.
    """
    for name, value in asdict(dimensions).items():
        if not 1 <= value <= LIMITS[name]:
            raise InvalidModelFormatError(
                path,
                keys[name],
                f"is {shown(str(value))}, not within 1 to {LIMITS[name]}; {_AGAIN}",
            )
    # No shape shows the number of heads, and a wrong one gives a wrong model without a word
    # (nothing is trusted): the width that all Whispers share is the only check there is.
    for part in ("audio", "text"):
        state = getattr(dimensions, f"n_{part}_state")
        heads = getattr(dimensions, f"n_{part}_head")
        if heads * HEAD_WIDTH != state:
            raise InvalidModelFormatError(
                path,
                keys[f"n_{part}_head"],
                f"is {heads} for a state of {state}, which makes heads {state / heads:g} wide; "
                f"those of every Whisper are {HEAD_WIDTH} wide; {_AGAIN}",
            )
    if dimensions.n_audio_state != dimensions.n_text_state:
        raise InvalidModelFormatError(
            path,
            keys["n_text_state"],
            f"is {dimensions.n_text_state}, the encoder's is {dimensions.n_audio_state}; {_AGAIN}",
        )
    elements = sum(math.prod(shape) for shape in expected_shapes(dimensions).values())
    if elements > MAX_ELEMENTS:
        raise InvalidModelFormatError(
            path, None, f"describes {elements} weights, more than {MAX_ELEMENTS}; {_AGAIN}"
        )


def expected_shapes(dimensions: Dimensions) -> dict[str, tuple[int, ...]]:
    """List the tensors of a network whose weights are not quantized.

    Args:
        dimensions: The network's sizes.

    Returns:
        Shape by MLX name, the optional alignment heads left out.

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
    """Demand exactly the tensors of the network, plain or quantized module by module.

    Args:
        dimensions: The network's sizes.
        tensors: Dtype and shape by MLX name.
        path: The file or directory they are in, for the message.

    Returns:
        Bits and group size of every quantized module, as its shapes say.

    Raises:
        InvalidModelFormatError: Tensors are missing, unknown, mis-shaped or of a dtype that
            doesn't fit; it names them all.
    """
    wanted = expected_shapes(dimensions)
    findings = Findings()
    precision = _packings(wanted, tensors, findings)
    packed = {f"{module}.weight" for module in precision}
    for module, how in precision.items():
        rows, columns = wanted[f"{module}.weight"]
        wanted[f"{module}.weight"] = (rows, columns * how.bits // 32)
        wanted[f"{module}.scales"] = (rows, columns // how.group_size)
        wanted[f"{module}.biases"] = (rows, columns // how.group_size)
    for name, shape in wanted.items():
        dtype, found = tensors.get(name, ("", ()))
        if not dtype:
            findings.add("missing", name)
        elif found != shape:
            findings.add("mis-shaped", name, f" {found} for {shape}")
        elif dtype not in (("uint32",) if name in packed else FLOATS):
            findings.add("of a dtype that doesn't fit", name, f" {dtype}")
    for name, tensor in tensors.items():
        if name == ALIGNMENT_HEADS:
            _check_heads_tensor(dimensions, tensor, findings)
        elif name not in wanted:
            findings.add("unknown", name)
    findings.raise_for(path)
    return precision


def check_quantization(
    config: Mapping[str, object], precision: Mapping[str, ModulePrecision], path: Path
) -> None:
    """Compare what the config says of quantization with what the shapes say.

    Args:
        config: The parsed `config.json`.
        precision: Bits and group size by module, from the shapes.
        path: Where the config is, for the message.

    Raises:
        InvalidModelFormatError: They contradict each other.
    """
    for key in ("quantization", "quantization_config"):  # The second is mlx-audio's copy.
        said = config.get(key)
        if said is None:
            continue
        if not isinstance(said, dict):
            raise InvalidModelFormatError(path, key, f"is no object; {_AGAIN}")
        _check_said(key, said, path)
        _check_modules(key, said, precision, path)


def _check_modules(
    name: str, said: dict[str, object], precision: Mapping[str, ModulePrecision], path: Path
) -> None:
    """Compare the settings, and those of modules that have their own, with the shapes."""
    for module, packed in precision.items():
        local = said.get(module, said)
        if local is True:
            local = said
        if not isinstance(local, dict):
            raise InvalidModelFormatError(path, module, f"is plain by its config; {_AGAIN}")
        _check_said(module, local, path)
        for key in ("bits", "group_size"):
            value = local.get(key, getattr(packed, key))
            if value != getattr(packed, key):
                raise InvalidModelFormatError(
                    path,
                    f"{name}.{key}",
                    f"is {value}, but {module} has {getattr(packed, key)} by its shapes; {_AGAIN}",
                )


def _packings(
    wanted: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    findings: Findings,
) -> dict[str, ModulePrecision]:
    """Find the modules that have scales, and how they are packed."""
    precision = {}
    for name, (_, scales) in tensors.items():
        module = name.removesuffix(".scales")
        whole = wanted.get(f"{module}.weight", ())
        # A name without the suffix, or of what can't be quantized: judged as a plain tensor.
        if module == name or len(whole) != _MATRIX:
            continue
        packed = _packing(whole, tensors.get(f"{module}.weight", ("", ()))[1], scales)
        if packed is None:
            findings.add("packed in no way MLX knows", name, f" {scales}")
            packed = ModulePrecision(BITS[-1], GROUP_SIZES[0])
        precision[module] = packed
    return precision


def _packing(
    whole: tuple[int, ...], weight: tuple[int, ...], scales: tuple[int, ...]
) -> ModulePrecision | None:
    """Solve for bits and group size; None if no packing MLX knows has these shapes."""
    rows, columns = whole
    if len(weight) != _MATRIX or len(scales) != _MATRIX or not weight[1] or not scales[1]:
        return None
    bits, group_size = weight[1] * 32 // columns, columns // scales[1]
    if bits not in BITS or group_size not in GROUP_SIZES:
        return None
    # Multiplied back, so that a division with a remainder is refused.
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
    if len(shape) != _MATRIX or shape[1] != 2 or not 1 <= shape[0] <= most:  # noqa: PLR2004 - pairs
        findings.add("mis-shaped", ALIGNMENT_HEADS, f" {shape} for at most ({most}, 2)")
    elif dtype not in INTEGERS:
        findings.add("of a dtype that doesn't fit", ALIGNMENT_HEADS, f" {dtype}")


def _check_said(where: str, said: Mapping[str, object], path: Path) -> None:
    """Refuse quantization settings that MLX's affine kernels don't have."""
    for key, allowed in (("bits", BITS), ("group_size", GROUP_SIZES), ("mode", ("affine",))):
        value = said.get(key)
        if key in said and (isinstance(value, bool) or value not in allowed):
            raise InvalidModelFormatError(
                path, f"{shown(where)}.{key}", f"is {brief(value)}, none of {allowed}; {_AGAIN}"
            )


def brief(value: object) -> str:
    """Show a value from a config; a nested one by its type, its repr may be anything."""
    return type(value).__name__ if isinstance(value, (list, dict)) else shown(repr(value))


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
