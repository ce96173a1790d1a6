"""A directory -> the plan of its load, without reading a weight."""

from __future__ import annotations

import hashlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from fastwhisper.checkpoint.config import (
    check_quantization,
    parse_alignment_heads,
    parse_dimensions,
)
from fastwhisper.checkpoint.ctranslate2 import plan_ctranslate2
from fastwhisper.checkpoint.expected import check_tensors
from fastwhisper.checkpoint.files import (
    RegularFile,
    list_directory,
    read_json,
    shown,
    to_path,
)
from fastwhisper.checkpoint.foreign import name_by_bytes, name_by_suffix
from fastwhisper.checkpoint.huggingface import (
    has_huggingface_names,
    is_huggingface_config,
    parse_huggingface_dimensions,
    translate,
)
from fastwhisper.checkpoint.npz import plan_npz
from fastwhisper.checkpoint.plan import Checkpoint
from fastwhisper.checkpoint.safetensors import (
    check_with_safetensors,
    parse_header,
    plan_shards,
    read_header,
)
from fastwhisper.errors import InvalidModelFormatError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable
    from pathlib import Path

    from fastwhisper.checkpoint.plan import Layout, TensorPlan
    from fastwhisper.values import Dimensions, ModulePrecision

__all__ = [
    "CONFIG",
    "PREFERENCE",
    "confirm_checkpoint",
    "fingerprint_headers",
    "inspect_checkpoint",
]

CONFIG: Final = "config.json"
GENERATION_CONFIG: Final = "generation_config.json"

PREFERENCE: Final = (
    "weights.safetensors",
    "model.safetensors",
    "weights.safetensors.index.json",
    "model.safetensors.index.json",
    "weights.npz",
    "model.bin",
)
"""The names of files with weights. The first one that exists is taken: it is read fastest."""

_SHOWN_NAMES: Final = 12


def inspect_checkpoint(path: str | os.PathLike[str], *, confirm: bool = True) -> Checkpoint:
    """Plan the load of a directory: check its config, headers, names, shapes and precision.

    No weight is read. `read_shards` can read what this returns and `apply_params` accepts it,
    unless a file changes in between.

    Args:
        path: The directory.
        confirm: Also ask safetensors' own reader, which imports NumPy. With False,
            `confirm_checkpoint` must pass before a weight is used.

    Returns:
        The checkpoint.

    Raises:
        InvalidModelFormatError: The directory, its config or its weights are not a Whisper that
            can be opened. The error names the file and the tensor or field.
    """
    directory = to_path(path)
    names = list_directory(directory)
    chosen = next((name for name in PREFERENCE if name in names), None)
    if chosen is None:
        foreign = (
            f"; {name} is {kind}" for name in sorted(names) if (kind := name_by_suffix(name))
        )
        raise InvalidModelFormatError(
            directory,
            None,
            f"holds no weights that are read, only {_listing(names)}{next(foreign, '')}",
            f"one of these is needed: {', '.join(PREFERENCE)}",
        )
    where = directory / chosen
    try:
        config = read_json(directory / CONFIG)
        if chosen == "model.bin":
            checkpoint = _inspect_ctranslate2(directory, where, config)
        else:
            checkpoint = _inspect_named(directory, where, config, names)
    except InvalidModelFormatError as error:
        kind = name_by_bytes(error.path)
        if kind is None:
            raise
        raise InvalidModelFormatError(error.path, None, f"is {kind}") from error
    if confirm:
        confirm_checkpoint(checkpoint)
    return checkpoint


def confirm_checkpoint(checkpoint: Checkpoint) -> None:
    """Check that safetensors' own reader (Rust) sees the tensors that were planned.

    Args:
        checkpoint: A whole checkpoint, not a share. Other layouts need no confirmation.

    Raises:
        InvalidModelFormatError: The reader disagrees, or a file has changed.
    """
    if not checkpoint.is_safetensors:
        return
    plans = checkpoint.tensors + checkpoint.left_out
    for index, file in enumerate(checkpoint.files):
        with RegularFile(file.path) as opened:
            opened.must_be(file)
            check_with_safetensors(file, [tensor for tensor in plans if tensor.file == index])
            opened.must_be(file, at_path=True)


def fingerprint_headers(checkpoint: Checkpoint) -> str:
    """Compute a digest of all that `confirm_checkpoint` depends on: headers and file lengths.

    Args:
        checkpoint: A whole checkpoint, not a share.

    Returns:
        A SHA-256, as 64 hexadecimal digits.

    Raises:
        InvalidModelFormatError: A file has changed.
    """
    digest = hashlib.sha256()
    for file in checkpoint.files:
        with RegularFile(file.path) as opened:
            opened.must_be(file)
            digest.update(b"%d\n" % file.size_bytes)
            digest.update(read_header(opened))
            opened.must_be(file, at_path=True)
    return digest.hexdigest()


def _inspect_named(
    directory: Path, where: Path, config: dict[str, object], names: frozenset[str]
) -> Checkpoint:
    """Plan a checkpoint of MLX or Hugging Face, whose config lists the dimensions.

    Names and config are judged apart: the `-asr-` repositories have MLX's names and a config
    of Hugging Face.
    """
    is_foreign = is_huggingface_config(config)
    parse = parse_huggingface_dimensions if is_foreign else parse_dimensions
    dimensions = parse(config, directory / CONFIG)
    layout: Layout = "safetensors"
    left_out: list[TensorPlan] = []
    if where.suffix == ".json":
        files, tensors = plan_shards(directory, where)
    else:
        with RegularFile(where) as file:
            files = [file.seen]
            if where.suffix == ".npz":
                layout = "npz"
                tensors = plan_npz(file.read_at, file.seen.size_bytes, where, 0)
            else:
                tensors = parse_header(file, 0)
    if layout == "safetensors" and has_huggingface_names(tensors):
        layout = "huggingface"
        tensors, left_out = translate(tensors, dimensions, config, where)
    precision = _check(dimensions, tensors, where)
    check_quantization(config, precision, directory / CONFIG)
    heads = None
    if is_foreign and GENERATION_CONFIG in names:
        generation = read_json(directory / GENERATION_CONFIG)
        heads = parse_alignment_heads(generation, dimensions, directory / GENERATION_CONFIG)
    return Checkpoint(
        path=directory,
        layout=layout,
        dimensions=dimensions,
        precision=MappingProxyType(precision),
        alignment_heads=heads,
        files=tuple(files),
        tensors=tuple(tensors),
        left_out=tuple(left_out),
    )


def _inspect_ctranslate2(directory: Path, where: Path, config: dict[str, object]) -> Checkpoint:
    """Plan a CTranslate2 checkpoint, whose config has no dimensions."""
    with RegularFile(where) as file:
        tensors, dimensions = plan_ctranslate2(file.read_at, file.seen.size_bytes, where, 0)
        files = (file.seen,)
    _check(dimensions, tensors, where)
    heads = parse_alignment_heads(config, dimensions, directory / CONFIG)
    return Checkpoint(
        directory, "ctranslate2", dimensions, MappingProxyType({}), heads, files, tuple(tensors)
    )


def _check(
    dimensions: Dimensions, tensors: list[TensorPlan], where: Path
) -> dict[str, ModulePrecision]:
    """Check names, dtypes and shapes; return the precision of the quantized modules."""
    found = {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}
    if len(found) != len(tensors):
        raise InvalidModelFormatError(where, None, "holds a tensor twice")
    return check_tensors(dimensions, found, where)


def _listing(names: Iterable[str]) -> str:
    ordered = sorted(names)
    listed = ", ".join(shown(name) for name in ordered[:_SHOWN_NAMES]) or "nothing"
    more = len(ordered) - _SHOWN_NAMES
    return f"{listed} and {more} more" if more > 0 else listed
