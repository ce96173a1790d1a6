"""Synthetic one-layer Whisper directories, in every layout that is read."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx
import numpy as np

from fastwhisper.checkpoint.expected import expected_shapes
from fastwhisper.values import Dimensions, Quantization

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

Arrays = dict[str, "np.ndarray[Any, np.dtype[Any]]"]
LayoutName = Literal[
    "weights.safetensors",
    "model.safetensors",
    "weights.safetensors.index.json",
    "model.safetensors.index.json",
    "weights.npz",
    "deflated weights.npz",
    "model.bin",
    "huggingface model.safetensors",
    "huggingface model.safetensors.index.json",
]
"""The file that holds the weights, after what is special about it."""


SMALLEST = Dimensions(
    n_mels=80,
    n_audio_ctx=16,
    n_audio_state=64,
    n_audio_head=1,
    n_audio_layer=1,
    n_vocab=96,
    n_text_ctx=8,
    n_text_state=64,
    n_text_head=1,
    n_text_layer=1,
)
"""For tests that only read and write it: about 0.3 MB."""

SPEAKING = Dimensions(
    n_mels=80,
    n_audio_ctx=1500,
    n_audio_state=64,
    n_audio_head=1,
    n_audio_layer=1,
    n_vocab=51864,
    n_text_ctx=448,
    n_text_state=64,
    n_text_head=1,
    n_text_layer=1,
)
"""For tests that transcribe with it: takes real windows and English tokens, 7 MB."""

MULTILINGUAL = replace(SPEAKING, n_vocab=51865)
"""As `SPEAKING`, with the tokens of all languages."""

CODES = {
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "int8": "I8",
    "int32": "I32",
    "int64": "I64",
    "bool": "BOOL",
    "bfloat16": "BF16",
}
_FIRST_TIME = 50363
"""The token of 0.00 s in the English vocabulary."""

_BABBLER_TOKENS = 96
"""A context of this length lets it say 48 tokens a window: it never ends by itself."""

_CT2_IDS = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def make_arrays(
    dimensions: Dimensions = SMALLEST,
    *,
    precision: str = "float16",
    group_size: int = 64,
    quantize_embedding: bool = True,
    dtype: str = "float16",
    seed: int = 0,
) -> Arrays:
    """Make random weights under MLX names, quantized as the upstream repositories are."""
    rng = np.random.default_rng(seed)
    arrays: Arrays = {
        name: (rng.standard_normal(shape, dtype=np.float32) / 8).astype(dtype)
        for name, shape in expected_shapes(dimensions).items()
    }
    bits = {Quantization.INT8: 8, Quantization.INT4: 4}.get(Quantization(precision))
    if bits is None:
        return arrays
    for name in list(arrays):
        embedding = name == "decoder.token_embedding.weight"
        if (
            arrays[name].ndim != 2
            or not name.endswith(".weight")
            or (embedding and not quantize_embedding)
        ):
            continue
        packed = mx.quantize(mx.array(arrays[name]), group_size=group_size, bits=bits)
        module = name.removesuffix(".weight")
        for part, array in zip(("weight", "scales", "biases"), packed, strict=True):
            arrays[f"{module}.{part}"] = np.array(array)
    return arrays


def make_config(dimensions: Dimensions = SMALLEST, **more: object) -> dict[str, object]:
    """Make the config of an MLX checkpoint."""
    return {"model_type": "whisper", **asdict(dimensions), **more}


def safetensors_bytes(
    arrays: Mapping[str, np.ndarray[Any, np.dtype[Any]]],
    *,
    codes: Mapping[str, str] | None = None,
) -> bytes:
    """Write a safetensors file by hand; `codes` overrides the dtype of a name."""
    header: dict[str, object] = {"__metadata__": None}
    data = io.BytesIO()
    for name, array in arrays.items():
        begin = data.tell()
        data.write(np.ascontiguousarray(array).tobytes())
        code = (codes or {}).get(name, CODES[array.dtype.name])
        header[name] = {
            "dtype": code,
            "shape": list(array.shape),
            "data_offsets": [begin, data.tell()],
        }
    return with_header(json.dumps(header).encode(), data.getvalue())


def with_header(header: bytes, data: bytes) -> bytes:
    """Join a header and the data section."""
    return struct.pack("<Q", len(header)) + header + data


def npz_bytes(arrays: Mapping[str, np.ndarray[Any, np.dtype[Any]]], *, deflate: bool) -> bytes:
    """Write an npz file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if deflate else 0) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            archive.writestr(f"{name}.npy", member.getvalue())
    return file.getvalue()


def ctranslate2_variables(arrays: Arrays, dimensions: Dimensions) -> Arrays:
    """Turn MLX arrays into CTranslate2's fused and transposed variables."""
    get = arrays.__getitem__
    found: Arrays = {
        "decoder/activation": np.int8(3),  # type: ignore[dict-item] # a scalar behaves as one
        "decoder/num_heads": np.int16(dimensions.n_text_head),  # type: ignore[dict-item]
        "encoder/num_heads": np.int16(dimensions.n_audio_head),  # type: ignore[dict-item]
        "decoder/embeddings/weight": get("decoder.token_embedding.weight"),
        "decoder/position_encodings/encodings": get("decoder.positional_embedding"),
        "encoder/position_encodings/encodings": np.zeros(
            (dimensions.n_audio_ctx, dimensions.n_audio_state),
            get("encoder.conv1.bias").dtype,
        ),
    }
    for conv in ("conv1", "conv2"):
        found[f"encoder/{conv}/weight"] = get(f"encoder.{conv}.weight").transpose(0, 2, 1)
        found[f"encoder/{conv}/bias"] = get(f"encoder.{conv}.bias")

    def norm(theirs: str, ours: str) -> None:
        found[f"{theirs}/gamma"] = get(f"{ours}.weight")
        found[f"{theirs}/beta"] = get(f"{ours}.bias")

    def linear(theirs: str, *ours: str) -> None:
        found[f"{theirs}/weight"] = np.concatenate([get(f"{name}.weight") for name in ours])
        zeros = np.zeros_like(get(f"{ours[-1]}.bias"))
        found[f"{theirs}/bias"] = np.concatenate(
            [arrays.get(f"{name}.bias", zeros) for name in ours]
        )

    norm("encoder/layer_norm", "encoder.ln_post")
    norm("decoder/layer_norm", "decoder.ln")
    for part, layers in (
        ("encoder", dimensions.n_audio_layer),
        ("decoder", dimensions.n_text_layer),
    ):
        for layer in range(layers):
            theirs, ours = f"{part}/layer_{layer}", f"{part}.blocks.{layer}"
            norm(f"{theirs}/self_attention/layer_norm", f"{ours}.attn_ln")
            qkv = [f"{ours}.attn.{name}" for name in ("query", "key", "value")]
            linear(f"{theirs}/self_attention/linear_0", *qkv)
            linear(f"{theirs}/self_attention/linear_1", f"{ours}.attn.out")
            norm(f"{theirs}/ffn/layer_norm", f"{ours}.mlp_ln")
            linear(f"{theirs}/ffn/linear_0", f"{ours}.mlp1")
            linear(f"{theirs}/ffn/linear_1", f"{ours}.mlp2")
            if part == "decoder":
                norm(f"{theirs}/attention/layer_norm", f"{ours}.cross_attn_ln")
                linear(f"{theirs}/attention/linear_0", f"{ours}.cross_attn.query")
                kv = [f"{ours}.cross_attn.{name}" for name in ("key", "value")]
                linear(f"{theirs}/attention/linear_1", *kv)
                linear(f"{theirs}/attention/linear_2", f"{ours}.cross_attn.out")
    return found


def ctranslate2_bytes(
    variables: Mapping[str, np.ndarray[Any, np.dtype[Any]]],
    *,
    version: int = 6,
    spec: str = "WhisperSpec",
    aliases: Iterable[tuple[str, str]] = (
        ("decoder/projection/weight", "decoder/embeddings/weight"),
    ),
) -> bytes:
    """Write a `model.bin`."""

    def name(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    parts = [struct.pack("<I", version), name(spec), struct.pack("<II", 3, len(variables))]
    for key, array in variables.items():
        raw = array.tobytes()
        parts += [
            name(key),
            struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape),
            struct.pack("<BI", _CT2_IDS[array.dtype.name], len(raw)),
            raw,
        ]
    pairs = list(aliases)
    parts.append(struct.pack("<I", len(pairs)))
    parts += [name(alias) + name(target) for alias, target in pairs]
    return b"".join(parts)


def huggingface_arrays(arrays: Arrays, dimensions: Dimensions, *, prefix: str = "model.") -> Arrays:
    """Rename MLX arrays as transformers does, with what it stores besides."""
    modules = {
        "attn_ln": "self_attn_layer_norm",
        "cross_attn_ln": "encoder_attn_layer_norm",
        "mlp_ln": "final_layer_norm",
        "attn": "self_attn",
        "cross_attn": "encoder_attn",
        "query": "q_proj",
        "key": "k_proj",
        "value": "v_proj",
        "out": "out_proj",
        "mlp1": "fc1",
        "mlp2": "fc2",
        "blocks": "layers",
        "ln_post": "layer_norm",
        "ln": "layer_norm",
        "token_embedding": "embed_tokens",
        "positional_embedding": "embed_positions.weight",
    }
    found: Arrays = {}
    for name, array in arrays.items():
        renamed = ".".join(modules.get(part, part) for part in name.split("."))
        conv = renamed.endswith(("conv1.weight", "conv2.weight"))
        found[f"{prefix}{renamed}"] = array.transpose(0, 2, 1) if conv else array
    dtype = arrays["encoder.conv1.bias"].dtype
    positions = (dimensions.n_audio_ctx, dimensions.n_audio_state)
    found[f"{prefix}encoder.embed_positions.weight"] = np.zeros(positions, dtype)
    return found


def huggingface_config(dimensions: Dimensions = SMALLEST, **more: object) -> dict[str, object]:
    """Make the config of a Hugging Face checkpoint."""
    return {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "activation_function": "gelu",
        "d_model": dimensions.n_audio_state,
        "decoder_attention_heads": dimensions.n_text_head,
        "decoder_ffn_dim": 4 * dimensions.n_text_state,
        "decoder_layers": dimensions.n_text_layer,
        "encoder_attention_heads": dimensions.n_audio_head,
        "encoder_ffn_dim": 4 * dimensions.n_audio_state,
        "encoder_layers": dimensions.n_audio_layer,
        "max_source_positions": dimensions.n_audio_ctx,
        "max_target_positions": dimensions.n_text_ctx,
        "num_hidden_layers": dimensions.n_audio_layer,
        "num_mel_bins": dimensions.n_mels,
        "scale_embedding": False,
        "vocab_size": dimensions.n_vocab,
    } | more


def write_model(
    directory: Path,
    *,
    layout: LayoutName = "weights.safetensors",
    dimensions: Dimensions = SMALLEST,
    precision: str = "float16",
    group_size: int = 64,
    quantize_embedding: bool = True,
    dtype: str = "float16",
    seed: int = 0,
) -> Path:
    """Write a one-layer Whisper into a directory, which is made."""
    arrays = make_arrays(
        dimensions,
        precision=precision,
        group_size=group_size,
        quantize_embedding=quantize_embedding,
        dtype=dtype,
        seed=seed,
    )
    config = (huggingface_config if _is_huggingface(layout) else make_config)(dimensions)
    bits = {"int8": 8, "int4": 4}.get(precision)
    if bits:
        config["quantization"] = {"group_size": group_size, "bits": bits}
    if layout == "model.bin":
        config = {"alignment_heads": [[0, 0]], "lang_ids": [50259]}
    return write_arrays(directory, arrays, config, layout=layout, dimensions=dimensions)


def write_babbler(
    directory: Path, *, multilingual: bool, dtype: str = "float32", seed: int = 0
) -> Path:
    """Write a one-layer model of random weights that says words and times in turn.

    With plain random weights no token is likely, so times would always win: the rules compare
    the sum of all times with the likeliest word. A larger norm and embedding make single tokens
    likely, larger rows for times let some of them win, and larger positions keep the model from
    saying one token again and again.
    """
    dimensions = replace(MULTILINGUAL if multilingual else SPEAKING, n_text_ctx=_BABBLER_TOKENS)
    arrays = make_arrays(dimensions, dtype="float32", seed=seed)
    arrays["decoder.ln.weight"] *= 8
    arrays["decoder.token_embedding.weight"] *= 3
    arrays["decoder.positional_embedding"] *= 30
    arrays["decoder.token_embedding.weight"][_FIRST_TIME:] *= 1.25
    arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    return write_arrays(directory, arrays, make_config(dimensions), dimensions=dimensions)


def write_arrays(
    directory: Path,
    arrays: Arrays,
    config: Mapping[str, object],
    *,
    layout: LayoutName = "weights.safetensors",
    dimensions: Dimensions = SMALLEST,
) -> Path:
    """Write given arrays, by MLX names, in a layout, and a config, into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    if _is_huggingface(layout):
        arrays = huggingface_arrays(arrays, dimensions)
        generation = json.dumps({"alignment_heads": [[0, 0]], "lang_to_id": {"<|en|>": 50259}})
        (directory / "generation_config.json").write_text(generation)
    if layout == "model.bin":
        data = ctranslate2_bytes(ctranslate2_variables(arrays, dimensions))
    elif layout.endswith(".npz"):
        data = npz_bytes(arrays, deflate=layout.startswith("deflated"))
    elif layout.endswith(".index.json"):
        data = _write_shards(directory, arrays)
    else:
        data = safetensors_bytes(arrays)
    (directory / file_name(layout)).write_bytes(data)
    return directory


def file_name(layout: LayoutName) -> str:
    """Return the name of the file that holds the weights, or their index."""
    return layout.rpartition(" ")[2]


def _is_huggingface(layout: LayoutName) -> bool:
    return layout.startswith("huggingface")


def _write_shards(directory: Path, arrays: Arrays) -> bytes:
    """Write two shards; return their index."""
    names = list(arrays)
    where: dict[str, str] = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        shard = f"model-{number:05}-of-00002.safetensors"
        (directory / shard).write_bytes(safetensors_bytes({name: arrays[name] for name in part}))
        where |= dict.fromkeys(part, shard)
    return json.dumps({"metadata": {"total_size": 0}, "weight_map": where}).encode()
