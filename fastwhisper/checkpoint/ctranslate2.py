"""CTranslate2's `model.bin` -> plans with the names of the MLX network.

The parser reads through any `read_at(offset, size)`, so tests need no disk. Every count and
length in the file is compared with the file's size before it is used.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final, NoReturn

from fastwhisper.checkpoint.config import check_dimensions
from fastwhisper.checkpoint.expected import HEAD_WIDTH
from fastwhisper.checkpoint.files import shown
from fastwhisper.checkpoint.plan import MAX_RANK, WIDTHS, TensorPlan
from fastwhisper.errors import InvalidModelFormatError
from fastwhisper.values import Dimensions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    ReadAt = Callable[[int, int], bytes]

__all__ = ["is_cut_off", "plan_ctranslate2"]

MAX_VARIABLES: Final = 1 << 14
"""Largest number of variables or aliases in a file. large-v3 has 1,300."""

MAX_NAME_BYTES: Final = 255

_VERSIONS: Final = (4, 5, 6)
_DTYPES: Final = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
"""The dtypes in the order of their numbers in the file."""

_FLOATS: Final = frozenset({"float32", "float16", "bfloat16"})

_SCALARS: Final = {
    "activation": 3,
    "alibi": 0,
    "layernorm_embedding": 0,
    "multi_query_attention": 0,
    "pre_norm": 1,
    "scale_embeddings": 0,
    "start_from_zero_embedding": 0,
}
"""The values of options that a Whisper must have (3 is GELU)."""

_NORMS: Final = {
    "self_attention": "attn_ln",
    "attention": "cross_attn_ln",
    "ffn": "mlp_ln",
}
_LINEARS: Final[dict[tuple[str, int], tuple[str, ...]]] = {
    ("self_attention", 0): ("attn.query", "attn.key", "attn.value"),
    ("self_attention", 1): ("attn.out",),
    ("attention", 0): ("cross_attn.query",),
    ("attention", 1): ("cross_attn.key", "cross_attn.value"),
    ("attention", 2): ("cross_attn.out",),
    ("ffn", 0): ("mlp1",),
    ("ffn", 1): ("mlp2",),
}
_LAYER: Final = re.compile(
    r"(encoder|decoder)/layer_(0|[1-9][0-9]{0,3})/(self_attention|attention|ffn)"
    r"/(?:(layer_norm)/(gamma|beta)|linear_([012])/(weight|bias))"
)
_ROOT: Final = {
    "encoder/conv1/weight": "encoder.conv1.weight",
    "encoder/conv1/bias": "encoder.conv1.bias",
    "encoder/conv2/weight": "encoder.conv2.weight",
    "encoder/conv2/bias": "encoder.conv2.bias",
    "encoder/layer_norm/gamma": "encoder.ln_post.weight",
    "encoder/layer_norm/beta": "encoder.ln_post.bias",
    "decoder/embeddings/weight": "decoder.token_embedding.weight",
    "decoder/position_encodings/encodings": "decoder.positional_embedding",
    "decoder/layer_norm/gamma": "decoder.ln.weight",
    "decoder/layer_norm/beta": "decoder.ln.bias",
}
_CONVOLUTIONS: Final = frozenset({"encoder/conv1/weight", "encoder/conv2/weight"})
_CONVOLUTION_AXES: Final = (0, 2, 1)
_POSITIONS: Final = "encoder/position_encodings/encodings"
_PROJECTION: Final = "decoder/projection/weight"
_AXIS: Final = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}


class _Cursor:
    """Little-endian fields of a file, read in order and never beyond its end."""

    def __init__(self, read_at: ReadAt, size: int, path: Path) -> None:
        self._read_at = read_at
        self.size = size
        self.offset = 0
        self.path = path
        self.has_ended = False
        self._block = b""
        self._begin = 0

    def take(self, size: int) -> bytes:
        """Return the next bytes; refuse the file if it has fewer."""
        at = self.offset - self._begin
        if not 0 <= at <= len(self._block) - size:
            self._block = self._read_at(self.offset, max(size, _CURSOR_BYTES))
            self._begin, at = self.offset, 0
            if len(self._block) < size:
                self.has_ended = True
                self.refuse(None, f"ends after {self.size} bytes, in the middle of a field")
        self.offset += size
        return self._block[at : at + size]

    def number(self, width: int) -> int:
        """Return the next unsigned integer of `width` bytes."""
        return int.from_bytes(self.take(width), "little")

    def count(self, what: str) -> int:
        """Return the next count of things; refuse one that is too large."""
        count = self.number(4)
        if count > MAX_VARIABLES:
            self.refuse(None, f"claims to have {count} {what}")
        return count

    def name(self) -> str:
        """Return the next name: its length, its characters and a NUL are read."""
        length = self.number(2)
        if not 1 <= length <= MAX_NAME_BYTES:
            self.refuse(None, f"has a name of {length} bytes at offset {self.offset}")
        raw = self.take(length)
        if raw[-1] or not raw.isascii():
            self.refuse(None, f"has no name at offset {self.offset}, where one is expected")
        return raw[:-1].decode("ascii")

    def refuse(self, tensor: str | None, detail: str) -> NoReturn:
        """Raise the error that names this file."""
        raise InvalidModelFormatError(self.path, tensor, detail)


_CURSOR_BYTES: Final = 512


def plan_ctranslate2(
    read_at: ReadAt, size: int, path: Path, index: int
) -> tuple[list[TensorPlan], Dimensions]:
    """Plan the tensors of a CTranslate2 Whisper with their MLX names.

    Fused projections are split by rows, which are contiguous, so each tensor is one span of
    the file. Only the convolutions are transposed, from (out, in, 3) to (out, 3, in).

    Args:
        read_at: Called with an offset and a size in bytes; returns up to so many bytes.
        size: Length of the file in bytes.
        path: Its path, for messages.
        index: Its index among the checkpoint's files.

    Returns:
        The plans by offset, and the dimensions, from the shapes and scalars.

    Raises:
        InvalidModelFormatError: It is not a CTranslate2 Whisper in floating point, or it is
            damaged.

    Source:
        CTranslate2 `src/models/model.cc`, `Model::load`; specification "WhisperSpec".
    """
    cursor = _Cursor(read_at, size, path)
    version = cursor.number(4)
    if version not in _VERSIONS:
        cursor.refuse(None, f"is not a CTranslate2 model of a version in {_VERSIONS}")
    spec = cursor.name()
    if spec != "WhisperSpec":
        cursor.refuse(None, f"holds a {shown(spec)}, not a WhisperSpec")
    cursor.number(4)  # The specification's revision.
    variables = _variables(cursor)
    _check_kinds(cursor, variables)
    dimensions = _dimensions(cursor, variables)
    check_dimensions(dimensions, path)
    plans: list[TensorPlan] = []
    for name, variable in variables.items():
        if variable.shape and name != _POSITIONS:
            plans += _tensors(cursor, name, variable, index)
    plans.sort(key=lambda plan: (plan.offset_bytes, plan.name))
    return plans, dimensions


def is_cut_off(read_at: ReadAt, size: int, path: Path) -> bool:
    """Return whether a file ends before its last entry. Other faults are not judged.

    Arguments are those of `plan_ctranslate2`. A file of another version is not judged either.
    """
    cursor = _Cursor(read_at, size, path)
    try:
        if cursor.number(4) not in _VERSIONS:
            return False
        cursor.name()
        cursor.number(4)
        for _variable in _entries(cursor):
            pass
        for _alias in _aliases(cursor):
            pass
    except InvalidModelFormatError:
        return cursor.has_ended
    return False


def _entries(cursor: _Cursor) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
    """Read the name, shape, dtype and length of each variable. The cursor is then at its data."""
    for _ in range(cursor.count("variables")):
        name = cursor.name()
        rank = cursor.number(1)
        if rank > MAX_RANK:
            cursor.refuse(shown(name), f"has {rank} axes")
        shape = tuple(cursor.number(4) for _ in range(rank))
        kind, length = cursor.number(1), cursor.number(4)
        yield name, shape, kind, length
        cursor.offset += length


def _aliases(cursor: _Cursor) -> Iterator[tuple[str, str]]:
    """Read each alias and the variable that it names; the file ends after the last one."""
    for _ in range(cursor.count("aliases")):
        yield cursor.name(), cursor.name()
    if cursor.offset != cursor.size:
        cursor.refuse(None, f"has {cursor.size - cursor.offset} bytes after its end")


def _variables(cursor: _Cursor) -> dict[str, TensorPlan]:
    """Read the entries of all variables, which are spread over the file, and resolve aliases."""
    variables: dict[str, TensorPlan] = {}
    for name, shape, kind, length in _entries(cursor):
        if kind >= len(_DTYPES):
            cursor.refuse(shown(name), f"has the unknown dtype {kind}")
        dtype = _DTYPES[kind]
        if name in variables:
            cursor.refuse(shown(name), "appears twice")
        if length != math.prod(shape) * WIDTHS[dtype]:
            cursor.refuse(shown(name), f"has {length} bytes, which do not fit its shape {shape}")
        if length > cursor.size - cursor.offset:
            cursor.refuse(shown(name), f"has {length} bytes, but the file ends before them")
        variables[name] = TensorPlan(name, name, dtype, shape, 0, cursor.offset, length)
    for alias, name in _aliases(cursor):
        if alias in variables or name not in variables:
            cursor.refuse(shown(alias), "is not an alias of another variable")
        variables[alias] = variables[name]
    # In MLX the output layer is the token embedding. If the two are tied, the projection is an
    # alias of the embedding.
    if variables.pop(_PROJECTION, None) not in (
        None,
        variables.get("decoder/embeddings/weight"),
    ):
        cursor.refuse(_PROJECTION, "is not tied to the token embedding")
    return variables


def _check_kinds(cursor: _Cursor, variables: dict[str, TensorPlan]) -> None:
    """Refuse quantized weights by name, and scalars that make this another network."""
    for name, variable in variables.items():
        if variable.shape and variable.dtype not in _FLOATS:
            raise InvalidModelFormatError(
                cursor.path,
                shown(name),
                f"is {variable.dtype}, and MLX has no counterpart of CTranslate2's quantization",
                "convert the model with --quantization float16",
            )
        wanted = None if variable.shape else _SCALARS.get(name.rpartition("/")[2])
        if wanted is not None and (found := _scalar(cursor, variable)) != wanted:
            cursor.refuse(shown(name), f"is {found}, but in a Whisper it is {wanted}")


def _scalar(cursor: _Cursor, variable: TensorPlan) -> int | None:
    """Read a scalar; return None if it is not an integer."""
    if variable.dtype in _FLOATS:
        return None
    cursor.offset = variable.offset_bytes
    return int.from_bytes(cursor.take(variable.size_bytes), "little", signed=True)


def _dimensions(cursor: _Cursor, variables: dict[str, TensorPlan]) -> Dimensions:
    """Return the dimensions, from the shapes. Layers are counted; their indices are not used."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        variable = variables.get(name)
        if variable is None:
            cursor.refuse(name, "is missing")
        if len(variable.shape) != rank:
            cursor.refuse(name, f"has the shape {variable.shape}, not {rank} axes")
        return variable.shape

    def heads(part: str, state: int) -> int:
        found = {
            _scalar(cursor, variable)
            for name, variable in variables.items()
            if name.startswith(f"{part}/") and name.endswith("/num_heads") and not variable.shape
        } or {state // HEAD_WIDTH}
        count = found.pop()
        if found or count is None:
            cursor.refuse(f"{part}/num_heads", "is not the same integer in all layers")
        return count

    layers: dict[str, set[str]] = {"encoder": set(), "decoder": set()}
    for name in variables:
        if match := _LAYER.fullmatch(name):
            layers[match[1]].add(match[2])
    state, n_mels, _ = shape("encoder/conv1/weight", 3)
    n_vocab, text_state = shape("decoder/embeddings/weight", 2)
    return Dimensions(
        n_mels=n_mels,
        n_audio_ctx=shape(_POSITIONS, 2)[0],
        n_audio_state=state,
        n_audio_head=heads("encoder", state),
        n_audio_layer=len(layers["encoder"]),
        n_vocab=n_vocab,
        n_text_ctx=shape("decoder/position_encodings/encodings", 2)[0],
        n_text_state=text_state,
        n_text_head=heads("decoder", text_state),
        n_text_layer=len(layers["decoder"]),
    )


def _tensors(cursor: _Cursor, name: str, variable: TensorPlan, index: int) -> Iterator[TensorPlan]:
    """Plan the tensors that one variable holds."""
    parts = _names(name)
    if parts is None:
        cursor.refuse(shown(name), "is not a variable of Whisper")
    shape, transpose = variable.shape, None
    if name in _CONVOLUTIONS and len(shape) == len(_CONVOLUTION_AXES):
        transpose = _CONVOLUTION_AXES
        shape = tuple(shape[axis] for axis in transpose)
    if shape[0] % len(parts):
        cursor.refuse(shown(name), f"has {shape[0]} rows for {len(parts)} projections")
    shape = (shape[0] // len(parts), *shape[1:])
    size = variable.size_bytes // len(parts)
    for number, part in enumerate(parts):
        # Whisper's keys have no bias, and CTranslate2 stores zeros: a bias would add the same
        # number to all scores of a query, and softmax cancels it.
        if part.endswith(".key.bias"):
            continue
        offset = variable.offset_bytes + number * size
        yield TensorPlan(part, name, variable.dtype, shape, index, offset, size, transpose)


def _names(name: str) -> tuple[str, ...] | None:
    """Return the MLX names of the tensors in a variable; None for an unknown variable."""
    if name in _ROOT:
        return (_ROOT[name],)
    match = _LAYER.fullmatch(name)
    if match is None:
        return None
    block = f"{match[1]}.blocks.{match[2]}"
    if match[4]:
        return (f"{block}.{_NORMS[match[3]]}.{_AXIS[match[5]]}",)
    modules = _LINEARS.get((match[3], int(match[6])))
    return modules and tuple(f"{block}.{module}.{match[7]}" for module in modules)
