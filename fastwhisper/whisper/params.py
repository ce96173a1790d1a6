"""A checkpoint -> its network, and the network's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

import mlx.core as mx

from fastwhisper.checkpoint.expected import ALIGNMENT_HEADS, Findings
from fastwhisper.checkpoint.files import to_path
from fastwhisper.whisper.network import Whisper

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from mlx import nn

    from fastwhisper.checkpoint.plan import Checkpoint
    from fastwhisper.values import DtypeName
    from fastwhisper.whisper.layers import Device

__all__ = ["apply_params", "build_module"]

_FLOATS: Final = (mx.float16, mx.bfloat16, mx.float32)

_Slot = tuple["dict[str, object] | list[object]", "str | int", mx.array]
"""Where a module keeps one array: the container, the key in it, and the array."""


def build_module(
    checkpoint: Checkpoint, *, dtype: DtypeName = "float32", device: Device = "metal"
) -> Whisper:
    """Build the network of a checkpoint, with its classes and bits, but without weights.

    The parameters are lazy arrays that are never evaluated, so they take no memory. The encoder's
    positions and the decoder's mask are not parameters. They are evaluated here, because a lazy
    array works only in the thread that made it.

    Args:
        checkpoint: Its dimensions, precision and alignment heads are used.
        dtype: The dtype of the encoder's positions and the decoder's mask.
        device: What it computes on; see `Whisper`.

    Returns:
        A network whose parameters `apply_params` must set.
    """
    module = Whisper(
        checkpoint.dimensions,
        precision=checkpoint.precision,
        dtype=getattr(mx, dtype),
        device=device,
    )
    if checkpoint.alignment_heads:
        heads = [list(pair) for pair in checkpoint.alignment_heads]
        module.alignment_heads = mx.array(heads, dtype=mx.int64)
    hidden = [array for name, (_, _, array) in _slots(module) if _is_hidden(name)]
    mx.eval([*hidden, module.alignment_heads])
    return module


def apply_params(
    module: nn.Module, params: Mapping[str, mx.array], *, path: Path | None = None
) -> None:
    """Check all parameters of a network, or of a part of it, then set them.

    Parameters are not cast. Afterwards no array of `module` is lazy, so any thread may use it.

    Args:
        module: The network, or a part such as `module.encoder`; changed in place.
        params: Every parameter of `module` by its name in `module`; `alignment_heads` may be
            missing. Floating parameters are float16, bfloat16 or float32.
        path: The file or directory that they come from, for the message.

    Raises:
        InvalidModelFormatError: Parameters are unknown, missing, of the wrong shape or of the wrong
            dtype. The message names them all, and `module` is unchanged.
    """
    slots = {name: slot for name, slot in _slots(module) if not _is_hidden(name)}
    findings = Findings()
    for name, (_, _, array) in slots.items():
        given = params.get(name)
        if name == ALIGNMENT_HEADS:
            if given is not None:
                _check_heads(module, given, findings)
        elif given is None:
            findings.add("missing", name)
        elif given.shape != array.shape:
            findings.add("of the wrong shape", name, f" {given.shape}, not {array.shape}")
        elif given.dtype != array.dtype and not _both_float(given, array):
            findings.add("of the wrong dtype", name, f" {_short(given.dtype)}")
    for name in params:
        if name not in slots:
            findings.add("unknown", name)
    findings.raise_for(path or to_path("parameters"))
    # Evaluated before the first one is set, so that a failure leaves the module unchanged.
    mx.eval(list(params.values()))
    for name, array in params.items():
        container, key, _ = slots[name]
        container[key] = array  # type: ignore[index]  # the key is one of this container
    mx.eval([array for _, (_, _, array) in _slots(module)])


def _slots(
    container: dict[str, object] | list[object], prefix: str = ""
) -> Iterator[tuple[str, _Slot]]:
    """Find all arrays of a module: yield each name, and where the array is kept.

    `Module.parameters` leaves out names that begin with an underscore; this function does not.
    """
    pairs = container.items() if isinstance(container, dict) else enumerate(container)
    for key, value in pairs:
        if isinstance(value, mx.array):
            yield f"{prefix}{key}", (container, key, value)
        elif isinstance(value, (dict, list)):
            yield from _slots(value, f"{prefix}{key}.")


def _is_hidden(name: str) -> bool:
    """Return whether an array is no parameter for MLX: a part of its name begins with "_"."""
    return any(part.startswith("_") for part in name.split("."))


def _check_heads(module: nn.Module, heads: mx.array, findings: Findings) -> None:
    """Check that alignment heads are (layer, head) pairs that exist.

    MLX does not check indices: a wrong one would read memory outside of the array.
    """
    dims = getattr(module, "dims", None)
    if heads.ndim != 2 or heads.shape[1] != 2 or not heads.size:  # noqa: PLR2004  pairs
        findings.add("of the wrong shape", ALIGNMENT_HEADS, f" {heads.shape}, not (n, 2)")
    elif not mx.issubdtype(heads.dtype, mx.integer):
        findings.add("of the wrong dtype", ALIGNMENT_HEADS, f" {_short(heads.dtype)}")
    elif dims is not None:
        for layer, head in cast("list[tuple[int, int]]", heads.tolist()):
            if not (0 <= layer < dims.n_text_layer and 0 <= head < dims.n_text_head):
                findings.add("naming heads that don't exist", ALIGNMENT_HEADS, f" {layer, head}")


def _both_float(one: mx.array, other: mx.array) -> bool:
    """Return whether two arrays have a floating dtype each."""
    return one.dtype in _FLOATS and other.dtype in _FLOATS


def _short(dtype: mx.Dtype) -> str:
    """Return the name of a dtype without its module."""
    return str(dtype).removeprefix("mlx.core.")
