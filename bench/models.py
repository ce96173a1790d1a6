"""Synthetic checkpoints of real sizes, made on demand outside the repository."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import platformdirs

from fastwhisper.values import Dimensions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["DIMENSIONS", "PRECISIONS", "model_directory", "tensors"]


def _dimensions(
    mels: int, width: int, heads: int, layers: tuple[int, int], vocab: int
) -> Dimensions:
    return Dimensions(
        n_mels=mels,
        n_audio_ctx=1500,
        n_audio_state=width,
        n_audio_head=heads,
        n_audio_layer=layers[0],
        n_vocab=vocab,
        n_text_ctx=448,
        n_text_state=width,
        n_text_head=heads,
        n_text_layer=layers[1],
    )


# Radford et al. 2022, table 1; large-v3 and its turbo: their config.json.
DIMENSIONS = {
    "tiny": _dimensions(80, 384, 6, (4, 4), 51865),
    "base": _dimensions(80, 512, 8, (6, 6), 51865),
    "small": _dimensions(80, 768, 12, (12, 12), 51865),
    "medium": _dimensions(80, 1024, 16, (24, 24), 51865),
    "large-v3-turbo": _dimensions(128, 1280, 20, (32, 4), 51866),
    "large-v3": _dimensions(128, 1280, 20, (32, 32), 51866),
}
PRECISIONS = {"float16": None, "int8": 8, "int4": 4}
_GROUP_SIZE = 64


def model_directory(name: str, quant: str, root: Path | None = None) -> Path:
    """Give a directory with random weights of a model's real sizes, made if it is missing.

    Args:
        name: A key of `DIMENSIONS`.
        quant: A key of `PRECISIONS`.
        root: Where the directories are kept; None is the user's cache.

    Returns:
        A directory with `weights.safetensors`, which mlx_whisper opens as well.
    """
    root = root or platformdirs.user_cache_path("fastwhisper-bench")
    directory = root / f"{name}-{quant}"
    if (directory / "config.json").exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    bits = PRECISIONS[quant]
    config: dict[str, object] = asdict(DIMENSIONS[name])
    if bits is not None:
        config["quantization"] = {"group_size": _GROUP_SIZE, "bits": bits}
    _write_safetensors(directory / "weights.safetensors", list(tensors(DIMENSIONS[name], bits)))
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def tensors(
    dims: Dimensions, bits: int | None, *, quantize_embedding: bool = True
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name every tensor of a network with its dtype and shape, in the order of a file."""
    width = dims.n_audio_state

    def linear(
        name: str, out: int, into: int, *, bias: bool = True, packed: bool = True
    ) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        if bits is None or not packed:
            yield f"{name}.weight", "F16", (out, into)
        else:
            yield f"{name}.weight", "U32", (out, into * bits // 32)
            yield f"{name}.scales", "F16", (out, into // _GROUP_SIZE)
            yield f"{name}.biases", "F16", (out, into // _GROUP_SIZE)
        if bias:
            yield f"{name}.bias", "F16", (out,)

    def norm(name: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        yield f"{name}.weight", "F16", (width,)
        yield f"{name}.bias", "F16", (width,)

    def block(name: str, attentions: tuple[str, ...]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        for attention in attentions:
            for part in ("query", "key", "value", "out"):
                yield from linear(f"{name}.{attention}.{part}", width, width, bias=part != "key")
            yield from norm(f"{name}.{attention}_ln")
        yield from linear(f"{name}.mlp1", 4 * width, width)
        yield from linear(f"{name}.mlp2", width, 4 * width)
        yield from norm(f"{name}.mlp_ln")

    yield "encoder.conv1.weight", "F16", (width, 3, dims.n_mels)
    yield "encoder.conv1.bias", "F16", (width,)
    yield "encoder.conv2.weight", "F16", (width, 3, width)
    yield "encoder.conv2.bias", "F16", (width,)
    for number in range(dims.n_audio_layer):
        yield from block(f"encoder.blocks.{number}", ("attn",))
    yield from norm("encoder.ln_post")
    yield from linear(
        "decoder.token_embedding", dims.n_vocab, width, bias=False, packed=quantize_embedding
    )
    yield "decoder.positional_embedding", "F16", (dims.n_text_ctx, width)
    for number in range(dims.n_text_layer):
        yield from block(f"decoder.blocks.{number}", ("attn", "cross_attn"))
    yield from norm("decoder.ln")


def _write_safetensors(path: Path, tensors: list[tuple[str, str, tuple[int, ...]]]) -> None:
    header: dict[str, object] = {}
    end = 0
    for name, dtype, shape in tensors:
        size = int(np.prod(shape)) * (4 if dtype == "U32" else 2)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    # Small numbers, so that running the network overflows nowhere; real bytes, not holes.
    generator = np.random.default_rng(0)
    block = generator.normal(0, 0.02, 8 << 20).astype(np.float16).tobytes()
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        left = end
        while left:
            left -= file.write(block[: min(left, len(block))])
    os.replace(temporary, path)  # noqa: PTH105  atomic on every platform
