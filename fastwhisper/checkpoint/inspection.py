"""A directory -> the plan of everything a load will do, without reading a weight."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from fastwhisper.checkpoint.expected import (
    check_quantization,
    check_tensors,
    expected_shapes,
    parse_dimensions,
)
from fastwhisper.checkpoint.files import (
    DTYPES,
    RegularFile,
    TensorPlan,
    WeightFile,
    list_directory,
    parse_safetensors,
    read_header,
    read_json,
    shown,
    to_path,
)
from fastwhisper.checkpoint.huggingface import (
    has_huggingface_names,
    is_huggingface_config,
    parse_huggingface_dimensions,
    translate,
)
from fastwhisper.checkpoint.index import plan_shards
from fastwhisper.errors import InvalidModelFormatError
from fastwhisper.values import Quantization

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from fastwhisper.values import Dimensions, ModulePrecision

__all__ = [
    "Checkpoint",
    "Layout",
    "TensorPlan",
    "WeightFile",
    "confirm_checkpoint",
    "inspect_checkpoint",
]

Layout = Literal["safetensors", "huggingface", "npz", "ctranslate2"]

CONFIG: Final = "config.json"
GENERATION_CONFIG: Final = "generation_config.json"
SAFETENSORS: Final = frozenset[Layout]({"safetensors", "huggingface"})
"""The layouts whose files are safetensors."""

PREFERENCE: Final = (
    "weights.safetensors",
    "model.safetensors",
    "weights.safetensors.index.json",
    "model.safetensors.index.json",
    "weights.npz",
    "model.bin",
)
"""The files that hold weights, the one to take first: what is read fastest."""

_SHOWN_NAMES: Final = 12
_MOST_BITS_OF_INT4: Final = 5
"""Five bits in groups of 128 are 34 % of float16's bytes: the int4 of `fastwhisper quantize`."""
_AGAIN: Final = "download the file again, or convert the model again"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A Whisper checkpoint on disk: checked, planned, and not yet read.

    Attributes:
        path: The directory.
        layout: How its weights are stored: "safetensors" under MLX's names, which is read
            fastest, or under those of "huggingface", "npz" or "ctranslate2".
        dimensions: The network's sizes.
        precision: Bits and group size by module name, for the quantized modules only.
        alignment_heads: (layer, head) pairs for word times where the config has them, else
            None. A tensor of that name may be among `tensors` then.
        files: The files of weights as they were when they were inspected.
        tensors: Where every tensor of the network lies, by file and offset.
        left_out: Where those of the files lie that the network has no need of.
    """

    path: Path
    layout: Layout
    dimensions: Dimensions
    precision: Mapping[str, ModulePrecision] = field(hash=False)
    alignment_heads: tuple[tuple[int, int], ...] | None
    files: tuple[WeightFile, ...]
    tensors: tuple[TensorPlan, ...]
    left_out: tuple[TensorPlan, ...] = ()

    @property
    def actual(self) -> Quantization:
        """The precision by the bits that most quantized weights have."""
        return _main_precision(self.dimensions, self.precision)

    @property
    def total_bytes(self) -> int:
        """Bytes of all weights, as stored and unpacked."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    def select(self, prefix: str) -> Checkpoint:
        """Leave only the tensors whose names begin with `prefix`."""
        return self._with(tensor for tensor in self.tensors if tensor.name.startswith(prefix))

    def split(self, lanes: int) -> tuple[Checkpoint, ...]:
        """Cut the tensors into shares of about the same bytes, to be read side by side.

        Every share is one stretch of the files, so each lane reads forward.

        Args:
            lanes: How many shares there may be.

        Returns:
            At most `lanes` checkpoints, none of them empty; their tensors are disjoint and
            together all of them.

        Raises:
            ValueError: `lanes` is less than one.
        """
        if lanes < 1:
            raise ValueError(f"lanes must be at least 1, not {lanes}")
        ends = list(accumulate(tensor.size_bytes for tensor in self.tensors))
        # The smallest share that lets `lanes` of them hold everything, by bisection.
        low = max((tensor.size_bytes for tensor in self.tensors), default=0)
        high = ends[-1] if ends else 0
        while low < high:
            middle = (low + high) // 2
            if len(_cuts(ends, middle)) - 1 <= lanes:
                high = middle
            else:
                low = middle + 1
        return tuple(self._with(self.tensors[a:b]) for a, b in pairwise(_cuts(ends, low)))

    def _with(self, tensors: Iterable[TensorPlan]) -> Checkpoint:
        return replace(self, tensors=tuple(tensors))


def inspect_checkpoint(path: str | os.PathLike[str], *, confirm: bool = True) -> Checkpoint:
    """Look at a directory and plan its load: config, headers, names, shapes, precision.

    Nothing is trusted and no weight is read: what this returns, `read_shards` can read and
    `apply_params` will take, unless a file changes in between.

    Args:
        path: The directory.
        confirm: Also ask safetensors' own reader, which imports NumPy; with False,
            `confirm_checkpoint` must pass before a weight is used.

    Returns:
        The checkpoint.

    Raises:
        InvalidModelFormatError: The directory, its config or its weights are no Whisper that
            can be opened; it names the file and the tensor or field.
    """
    directory = to_path(path)
    names = list_directory(directory)
    chosen = next((name for name in PREFERENCE if name in names), None)
    if chosen is None:
        raise InvalidModelFormatError(
            directory,
            None,
            f"holds no weights: found {_listing(names)}; needs one of {', '.join(PREFERENCE)}",
        )
    config = read_json(directory / CONFIG)
    where = directory / chosen
    if chosen == "model.bin":
        checkpoint = _inspect_ctranslate2(directory, where, config)
    else:
        checkpoint = _inspect_named(directory, where, config, names)
    if confirm:
        confirm_checkpoint(checkpoint)
    return checkpoint


def confirm_checkpoint(checkpoint: Checkpoint) -> None:
    """Make sure that safetensors' own reader (Rust) sees the tensors that were planned.

    Args:
        checkpoint: A whole checkpoint, no share of one. Other layouts need no confirmation.

    Raises:
        InvalidModelFormatError: It disagrees, or a file has changed.
    """
    if checkpoint.layout not in SAFETENSORS:
        return
    plans = checkpoint.tensors + checkpoint.left_out
    for index, file in enumerate(checkpoint.files):
        with RegularFile(file.path) as opened:
            opened.must_be(file)
            _confirm_header(file, [tensor for tensor in plans if tensor.file == index])
            opened.must_be(file, at_path=True)


def fingerprint_headers(checkpoint: Checkpoint) -> str:
    """Sum up all that the verdict of `confirm_checkpoint` depends on: headers and lengths.

    Args:
        checkpoint: A whole checkpoint, no share of one.

    Returns:
        The SHA-256 of them, as 64 hexadecimal digits.

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
    """Plan a checkpoint whose config has dimensions: names and config of MLX or Hugging Face.

    Any of the two names goes with any of the two configs: the `-asr-` repositories have MLX's
    names under a config of Hugging Face.
    """
    foreign = is_huggingface_config(config)
    parse = parse_huggingface_dimensions if foreign else parse_dimensions
    dimensions = parse(config, directory / CONFIG)
    layout: Layout = "safetensors"
    left_out: list[TensorPlan] = []
    if where.suffix == ".npz":
        from fastwhisper.checkpoint.npz import plan_npz  # noqa: PLC0415  for this layout alone

        layout = "npz"
        with RegularFile(where) as file:
            tensors = plan_npz(file.read_at, file.seen.size_bytes, where, 0)
            files = [file.seen]
    elif where.suffix == ".json":
        files, tensors = plan_shards(directory, where)
    else:
        with RegularFile(where) as file:
            tensors = parse_safetensors(file, 0)
            files = [file.seen]
    if layout == "safetensors" and has_huggingface_names(tensors):
        layout = "huggingface"
        tensors, left_out = translate(tensors, dimensions, config, where)
    precision = _check(dimensions, tensors, where)
    check_quantization(config, precision, directory / CONFIG)
    heads = None
    if foreign and GENERATION_CONFIG in names:
        from fastwhisper.checkpoint.ctranslate2 import parse_alignment_heads  # noqa: PLC0415  as above

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
    """Plan a CTranslate2 checkpoint; its config has no dimensions."""
    from fastwhisper.checkpoint.ctranslate2 import parse_alignment_heads, plan_ctranslate2  # noqa: PLC0415

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
    found = {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}
    if len(found) != len(tensors):
        raise InvalidModelFormatError(where, None, "holds a tensor twice; download it again")
    return check_tensors(dimensions, found, where)


def _main_precision(
    dimensions: Dimensions, precision: Mapping[str, ModulePrecision]
) -> Quantization:
    """Name the precision of a checkpoint: by the bits that most quantized weights have.

    Args:
        dimensions: The network's sizes.
        precision: Bits and group size of its quantized modules.

    Returns:
        float16 if no module is quantized, int4 up to five bits, int8 above.

    """
    if not precision:
        return Quantization.FLOAT16
    shapes = expected_shapes(dimensions)
    weights: dict[int, int] = {}
    for module, packed in precision.items():
        count = math.prod(shapes.get(f"{module}.weight", ()))
        weights[packed.bits] = weights.get(packed.bits, 0) + count
    most = max(weights, key=lambda bits: (weights[bits], bits))
    return Quantization.INT4 if most <= _MOST_BITS_OF_INT4 else Quantization.INT8


def _confirm_header(file: WeightFile, plans: Iterable[TensorPlan]) -> None:
    """Make sure that safetensors' own reader sees the same tensors.

    Args:
        file: A safetensors file.
        plans: All tensors we see in it.

    Raises:
        InvalidModelFormatError: The two readers disagree, so neither is believed.
    """
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - it imports numpy

    ours = {plan.stored: (plan.dtype, plan.stored_shape) for plan in plans}
    try:
        with safe_open(file.path, framework="numpy") as reader:
            slices = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118 - it is no mapping
            theirs = {
                name: (DTYPES.get(part.get_dtype(), ("",))[0], tuple(part.get_shape()))
                for name, part in slices.items()
            }
    except (SafetensorError, OSError, ValueError) as error:
        raise InvalidModelFormatError(
            file.path, None, f"is refused by safetensors ({shown(str(error))}); {_AGAIN}"
        ) from error
    if ours != theirs:
        raise InvalidModelFormatError(
            file.path, None, f"reads differently through safetensors; {_AGAIN}"
        )


def _cuts(ends: list[int], most: int) -> list[int]:
    """Cut greedily into stretches of at most `most` bytes: the indices between them."""
    cuts = [0]
    begin = 0
    for index, end in enumerate(ends):
        if end - begin > most:
            cuts.append(index)
            begin = ends[index - 1]
    return [*cuts, len(ends)] if ends else cuts


def _listing(names: Iterable[str]) -> str:
    ordered = sorted(names)
    listed = ", ".join(shown(name) for name in ordered[:_SHOWN_NAMES]) or "nothing"
    more = len(ordered) - _SHOWN_NAMES
    return f"{listed} and {more} more" if more > 0 else listed
