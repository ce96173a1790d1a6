"""The network of a checkpoint, and putting weights into it."""

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

__all__ = ["UNPACK_ROWS", "apply_params", "build_module"]

UNPACK_ROWS: Final = 32
"""Rows from which on unpacking a weight pays on a CPU, where MLX's packed product uses no BLAS.
Measured on 2 cores with OpenBLAS: as fast as the packed product at 16 to 40 rows, by shape and
bits, and 50 to 80 times as fast at 1500."""

_FLOATS: Final = (mx.float16, mx.bfloat16, mx.float32)

_Slot = tuple["dict[str, object] | list[object]", "str | int", mx.array]


def build_module(
    checkpoint: Checkpoint, *, dtype: DtypeName = "float32", unpack_rows: int | None = None
) -> Whisper:
    """Build the network of a checkpoint: the right classes and bits, and no weights yet.

    The parameters are lazy placeholders that are never evaluated and so take no memory. What
    is no parameter (the encoder's positions, the decoder's mask) is evaluated here, because a
    lazy array works only in the thread that made it.

    Args:
        checkpoint: Its dimensions, precision and alignment heads are used.
        dtype: The type of the encoder's positions and the decoder's mask.
        unpack_rows: Multiply inputs of this many rows and more with unpacked weights; None
            never unpacks. Only the order of sums changes. See `UNPACK_ROWS`.

    Returns:
        A network whose parameters `apply_params` must set.
    """
    module = Whisper(
        checkpoint.dimensions,
        precision=checkpoint.precision,
        dtype=getattr(mx, dtype),
        unpack_rows=unpack_rows,
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
    """Set all parameters of a network, or of a part of it; check them all first.

    Parameters are not cast. Afterwards nothing in `module` is lazy, names with an underscore
    included, so it may be used in any thread.

    Args:
        module: The network, or a part such as `module.encoder`; changed in place.
        params: Every parameter of `module` by its name in it; `alignment_heads` may be left
            out. Floating parameters may be of any of float16, bfloat16 and float32.
        path: Where they come from, for the message.

    Raises:
        InvalidModelFormatError: Parameters are unknown, missing, of the wrong shape or of the wrong
            kind of dtype; it names them all and `module` is as it was.
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
    # Evaluated before the first is set, so that a failure leaves the module as it was.
    mx.eval(list(params.values()))
    for name, array in params.items():
        container, key, _ = slots[name]
        container[key] = array  # type: ignore[index] # a key of the very container it came from
    mx.eval([array for _, (_, _, array) in _slots(module)])


def _slots(
    container: dict[str, object] | list[object], prefix: str = ""
) -> Iterator[tuple[str, _Slot]]:
    """Walk over all arrays of a module: the name, and where it is kept.

    `Module.parameters` leaves out names that begin with an underscore; this doesn't.
    """
    pairs = container.items() if isinstance(container, dict) else enumerate(container)
    for key, value in pairs:
        if isinstance(value, mx.array):
            yield f"{prefix}{key}", (container, key, value)
        elif isinstance(value, (dict, list)):
            yield from _slots(value, f"{prefix}{key}.")


def _is_hidden(name: str) -> bool:
    """Tell whether MLX takes an array for an attribute and not for a parameter."""
    return any(part.startswith("_") for part in name.split("."))


def _check_heads(module: nn.Module, heads: mx.array, findings: Findings) -> None:
    """Demand (layer, head) pairs that exist: MLX reads beyond an array without a word."""
    dims = getattr(module, "dims", None)
    if heads.ndim != 2 or heads.shape[1] != 2 or not heads.size:  # noqa: PLR2004 - pairs
        findings.add("of the wrong shape", ALIGNMENT_HEADS, f" {heads.shape}, not (n, 2)")
    elif not mx.issubdtype(heads.dtype, mx.integer):
        findings.add("of the wrong dtype", ALIGNMENT_HEADS, f" {_short(heads.dtype)}")
    elif dims is not None:
        for layer, head in cast("list[tuple[int, int]]", heads.tolist()):
            if not (0 <= layer < dims.n_text_layer and 0 <= head < dims.n_text_head):
                findings.add("naming heads that don't exist", ALIGNMENT_HEADS, f" {layer, head}")


def _both_float(one: mx.array, other: mx.array) -> bool:
    return one.dtype in _FLOATS and other.dtype in _FLOATS


def _short(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")
