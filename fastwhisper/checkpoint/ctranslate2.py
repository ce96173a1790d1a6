"""CTranslate2's `model.bin` -> plans under the names of the MLX network.

The names of transformers are in `huggingface.py`. The file is parsed from any
`read_at(offset, size)`, so the tests need no disk. Nothing it says of counts or lengths is
believed before it is compared with the file's size.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from fastwhisper.checkpoint.expected import ALIGNMENT_HEADS, HEAD_WIDTH, brief, check_dimensions
from fastwhisper.checkpoint.files import MAX_RANK, TensorPlan, shown
from fastwhisper.errors import InvalidModelFormatError
from fastwhisper.values import Dimensions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    ReadAt = Callable[[int, int], bytes]

__all__ = ["parse_alignment_heads", "plan_ctranslate2"]

MAX_VARIABLES: Final = 1 << 14
"""Most variables or aliases of a file. large-v3 has 1,300."""

MAX_NAME_BYTES: Final = 255
MAX_HEADS: Final = 1 << 10
"""Most alignment heads, and most layers they may be of. large-v3 has 640 heads in 32 layers."""

_AGAIN: Final = "download the file again, or convert the model again"

_CT2_VERSIONS: Final = (4, 5, 6)
_CT2_DTYPES: Final = (
    ("float32", 4),
    ("int8", 1),
    ("int16", 2),
    ("int32", 4),
    ("float16", 2),
    ("bfloat16", 2),
)
_CT2_FLOATS: Final = frozenset({"float32", "float16", "bfloat16"})

_CT2_SCALARS: Final = {
    "activation": 3,
    "alibi": 0,
    "layernorm_embedding": 0,
    "multi_query_attention": 0,
    "pre_norm": 1,
    "scale_embeddings": 0,
    "start_from_zero_embedding": 0,
}
"""What the options that would make it another network than Whisper must be (3 is GELU)."""

_CT2_NORMS: Final = {
    "self_attention": "attn_ln",
    "attention": "cross_attn_ln",
    "ffn": "mlp_ln",
}
_CT2_LINEARS: Final[dict[tuple[str, int], tuple[str, ...]]] = {
    ("self_attention", 0): ("attn.query", "attn.key", "attn.value"),
    ("self_attention", 1): ("attn.out",),
    ("attention", 0): ("cross_attn.query",),
    ("attention", 1): ("cross_attn.key", "cross_attn.value"),
    ("attention", 2): ("cross_attn.out",),
    ("ffn", 0): ("mlp1",),
    ("ffn", 1): ("mlp2",),
}
_CT2_LAYER: Final = re.compile(
    r"(encoder|decoder)/layer_(0|[1-9][0-9]{0,3})/(self_attention|attention|ffn)"
    r"/(?:(layer_norm)/(gamma|beta)|linear_([012])/(weight|bias))"
)
_CT2_ROOT: Final = {
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
_CT2_POSITIONS: Final = "encoder/position_encodings/encodings"
_CT2_PROJECTION: Final = "decoder/projection/weight"
_AXIS: Final = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}


@dataclass(frozen=True, slots=True)
class _Variable:
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


class _Cursor:
    """Reads little-endian fields in order, never beyond the end."""

    def __init__(self, read_at: ReadAt, size: int, path: Path) -> None:
        self._read_at = read_at
        self.size = size
        self.offset = 0
        self.path = path
        self._block = b""
        self._begin = 0

    def take(self, size: int) -> bytes:
        """Take the next bytes; refuse the file if it has fewer."""
        at = self.offset - self._begin
        if not 0 <= at <= len(self._block) - size:
            self._block = self._read_at(self.offset, max(size, _CURSOR_BYTES))
            self._begin, at = self.offset, 0
            if len(self._block) < size:
                self.refuse(None, f"ends after {self.size} bytes, in the middle of a field")
        self.offset += size
        return self._block[at : at + size]

    def number(self, width: int) -> int:
        """Take an unsigned integer of `width` bytes."""
        return int.from_bytes(self.take(width), "little")

    def count(self, what: str) -> int:
        """Take a number of things to come, which must be believable."""
        count = self.number(4)
        if count > MAX_VARIABLES:
            self.refuse(None, f"claims {count} {what}")
        return count

    def name(self) -> str:
        """Take a name: its length, its characters and a NUL."""
        length = self.number(2)
        if not 1 <= length <= MAX_NAME_BYTES:
            self.refuse(None, f"has a name of {length} bytes at {self.offset}")
        raw = self.take(length)
        if raw[-1] or not raw.isascii():
            self.refuse(None, f"has no name where one belongs, at {self.offset}")
        return raw[:-1].decode("ascii")

    def refuse(self, tensor: str | None, detail: str) -> NoReturn:
        """Raise the error that names this file."""
        raise InvalidModelFormatError(self.path, tensor, f"{detail}; {_AGAIN}")


_CURSOR_BYTES: Final = 512


def plan_ctranslate2(
    read_at: ReadAt, size: int, path: Path, index: int
) -> tuple[list[TensorPlan], Dimensions]:
    """Plan the tensors of a CTranslate2 Whisper under their MLX names.

    Fused projections are split by rows, which are contiguous, so every tensor is one span of
    the file; only the convolutions must be transposed, from (out, in, 3) to (out, 3, in).

    Args:
        read_at: Reads up to so many bytes at an offset of the file.
        size: Length of the file in bytes.
        path: Where it is, for the message.
        index: Its place among the checkpoint's files.

    Returns:
        The plans by offset, and the dimensions that the shapes and scalars give.

    Raises:
        InvalidModelFormatError: It is no CTranslate2 Whisper in floating point, or is damaged.

    Source:
        CTranslate2 `src/models/model.cc`, `Model::load`; specification "WhisperSpec".
    """
    cursor = _Cursor(read_at, size, path)
    version = cursor.number(4)
    if version not in _CT2_VERSIONS:
        cursor.refuse(None, f"is no CTranslate2 model of version {_CT2_VERSIONS}")
    spec = cursor.name()
    if spec != "WhisperSpec":
        cursor.refuse(None, f"holds a {shown(spec)}, no WhisperSpec")
    cursor.number(4)  # The specification's revision.
    variables = _ct2_variables(cursor)
    _ct2_check_kinds(cursor, variables)
    dimensions = _ct2_dimensions(cursor, variables)
    check_dimensions(dimensions, path)
    plans: list[TensorPlan] = []
    for name, variable in variables.items():
        if variable.shape and name != _CT2_POSITIONS:
            plans += _ct2_tensors(cursor, name, variable, index)
    plans.sort(key=lambda plan: (plan.offset_bytes, plan.name))
    return plans, dimensions


def parse_alignment_heads(
    config: Mapping[str, object], dimensions: Dimensions, path: Path
) -> tuple[tuple[int, int], ...] | None:
    """Take the alignment heads from a config that lists them as (layer, head).

    Args:
        config: The parsed `config.json` of CTranslate2, or `generation_config.json`.
        dimensions: The network's sizes.
        path: Where the config is, for the message.

    Returns:
        The pairs in the config's order; None if it has none, or those of another network:
        many distilled models list the layers of their teacher, which they don't have.

    Raises:
        InvalidModelFormatError: A pair is none, or names a head that no layer has.
    """
    listed = config.get(ALIGNMENT_HEADS)
    if listed is None:
        return None
    layers, heads = dimensions.n_text_layer, dimensions.n_text_head
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_HEADS:
        raise InvalidModelFormatError(path, ALIGNMENT_HEADS, f"is no list of pairs; {_AGAIN}")
    pairs = []
    for pair in listed:
        match pair:
            case [layer, head] if type(layer) is type(head) is int:
                pairs.append((layer, head))
            case _:
                raise InvalidModelFormatError(
                    path, ALIGNMENT_HEADS, f"has {brief(pair)} for a pair of integers; {_AGAIN}"
                )
    for layer, head in pairs:
        if not (0 <= layer < MAX_HEADS and 0 <= head < heads):
            raise InvalidModelFormatError(
                path,
                ALIGNMENT_HEADS,
                f"names head {shown(str(head))} of layer {shown(str(layer))}; "
                f"there are {layers} layers of {heads} heads; {_AGAIN}",
            )
    return tuple(pairs) if all(layer < layers for layer, _ in pairs) else None


def _ct2_variables(cursor: _Cursor) -> dict[str, _Variable]:
    """Read the directory that is spread over the file, aliases resolved."""
    variables: dict[str, _Variable] = {}
    for _ in range(cursor.count("variables")):
        name = cursor.name()
        rank = cursor.number(1)
        if rank > MAX_RANK:
            cursor.refuse(shown(name), f"has {rank} axes")
        shape = tuple(cursor.number(4) for _ in range(rank))
        kind, length = cursor.number(1), cursor.number(4)
        if kind >= len(_CT2_DTYPES):
            cursor.refuse(shown(name), f"has the unknown dtype {kind}")
        dtype, width = _CT2_DTYPES[kind]
        if name in variables:
            cursor.refuse(shown(name), "appears twice")
        if length != math.prod(shape) * width or length > cursor.size - cursor.offset:
            cursor.refuse(shown(name), f"has {length} bytes, which its shape {shape} doesn't fit")
        variables[name] = _Variable(dtype, shape, cursor.offset, length)
        cursor.offset += length
    for _ in range(cursor.count("aliases")):
        alias, name = cursor.name(), cursor.name()
        if alias in variables or name not in variables:
            cursor.refuse(shown(alias), "is no alias of another variable")
        variables[alias] = variables[name]
    if cursor.offset != cursor.size:
        cursor.refuse(None, f"has {cursor.size - cursor.offset} bytes after its end")
    # The output layer is the token embedding in MLX; tied, it is a second name for its bytes.
    if variables.pop(_CT2_PROJECTION, None) not in (
        None,
        variables.get("decoder/embeddings/weight"),
    ):
        cursor.refuse(_CT2_PROJECTION, "is not tied to the token embedding")
    return variables


def _ct2_check_kinds(cursor: _Cursor, variables: dict[str, _Variable]) -> None:
    """Refuse quantized weights by name, and scalars that make it another network."""
    for name, variable in variables.items():
        if variable.shape and variable.dtype not in _CT2_FLOATS:
            raise InvalidModelFormatError(
                cursor.path,
                shown(name),
                f"is {variable.dtype}; CTranslate2's quantization has no MLX counterpart: "
                "convert the model with --quantization float16",
            )
        wanted = None if variable.shape else _CT2_SCALARS.get(name.rpartition("/")[2])
        if wanted is not None and (found := _ct2_scalar(cursor, variable)) != wanted:
            cursor.refuse(shown(name), f"is {found}, in a Whisper it is {wanted}")


def _ct2_scalar(cursor: _Cursor, variable: _Variable) -> int | None:
    """Read a scalar; None if it is no integer."""
    if variable.dtype in _CT2_FLOATS:
        return None
    cursor.offset = variable.offset
    return int.from_bytes(cursor.take(variable.size), "little", signed=True)


def _ct2_dimensions(cursor: _Cursor, variables: dict[str, _Variable]) -> Dimensions:
    """Read the dimensions off the shapes. Absurd layer numbers stay counts of layers."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        variable = variables.get(name)
        if variable is None:
            cursor.refuse(name, "is missing")
        if len(variable.shape) != rank:
            cursor.refuse(name, f"has the shape {variable.shape}, not {rank} axes")
        return variable.shape

    def heads(part: str, state: int) -> int:
        found = {
            _ct2_scalar(cursor, variable)
            for name, variable in variables.items()
            if name.startswith(f"{part}/") and name.endswith("/num_heads") and not variable.shape
        } or {state // HEAD_WIDTH}
        count = found.pop()
        if found or count is None:
            cursor.refuse(f"{part}/num_heads", "is not one integer for all layers")
        return count

    layers: dict[str, set[str]] = {"encoder": set(), "decoder": set()}
    for name in variables:
        if match := _CT2_LAYER.fullmatch(name):
            layers[match[1]].add(match[2])
    state, n_mels, _ = shape("encoder/conv1/weight", 3)
    n_vocab, text_state = shape("decoder/embeddings/weight", 2)
    return Dimensions(
        n_mels=n_mels,
        n_audio_ctx=shape(_CT2_POSITIONS, 2)[0],
        n_audio_state=state,
        n_audio_head=heads("encoder", state),
        n_audio_layer=len(layers["encoder"]),
        n_vocab=n_vocab,
        n_text_ctx=shape("decoder/position_encodings/encodings", 2)[0],
        n_text_state=text_state,
        n_text_head=heads("decoder", text_state),
        n_text_layer=len(layers["decoder"]),
    )


def _ct2_tensors(
    cursor: _Cursor, name: str, variable: _Variable, index: int
) -> Iterator[TensorPlan]:
    """Turn one variable into the tensors it holds."""
    parts = _ct2_names(name)
    if parts is None:
        cursor.refuse(shown(name), "belongs to no Whisper")
    shape, transpose = variable.shape, None
    if name in {"encoder/conv1/weight", "encoder/conv2/weight"} and len(shape) == 3:  # noqa: PLR2004 - out, in, width
        shape, transpose = (shape[0], shape[2], shape[1]), (0, 2, 1)
    if shape[0] % len(parts):
        cursor.refuse(shown(name), f"has {shape[0]} rows for {len(parts)} projections")
    shape = (shape[0] // len(parts), *shape[1:])
    size = variable.size // len(parts)
    for number, part in enumerate(parts):
        # A key's bias adds the same to every score of a query, which softmax cancels: Whisper
        # has none, and CTranslate2 stores zeros.
        if part.endswith(".key.bias"):
            continue
        offset = variable.offset + number * size
        yield TensorPlan(part, name, variable.dtype, shape, index, offset, size, transpose)


def _ct2_names(name: str) -> tuple[str, ...] | None:
    """Translate a variable's name: one MLX name, or those fused in it."""
    if name in _CT2_ROOT:
        return (_CT2_ROOT[name],)
    match = _CT2_LAYER.fullmatch(name)
    if match is None:
        return None
    block = f"{match[1]}.blocks.{match[2]}"
    if match[4]:
        return (f"{block}.{_CT2_NORMS[match[3]]}.{_AXIS[match[5]]}",)
    modules = _CT2_LINEARS.get((match[3], int(match[6])))
    return modules and tuple(f"{block}.{module}.{match[7]}" for module in modules)
