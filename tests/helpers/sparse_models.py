"""Models of real sizes as sparse files: every weight is zero, and they take no space on disk."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import asdict
from typing import TYPE_CHECKING

from fastwhisper.checkpoint.expected import expected_shapes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from fastwhisper.values import Dimensions

__all__ = ["Tensor", "write_sparse_npz", "write_sparse_safetensors", "write_zeros"]

Tensor = tuple[str, str, tuple[int, ...]]
"""The name, the safetensors code of the dtype, F16 or U32, and the shape."""


def write_zeros(directory: Path, dimensions: Dimensions) -> Path:
    """Write an MLX model of zeros in float16 into a directory that exists; return it."""
    shapes = expected_shapes(dimensions).items()
    write_sparse_safetensors(
        directory / "weights.safetensors", [(name, "F16", shape) for name, shape in shapes]
    )
    config = {"model_type": "whisper", **asdict(dimensions)}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def write_sparse_safetensors(path: Path, tensors: Iterable[Tensor]) -> None:
    """Write a safetensors header, and a hole in place of the data."""
    header: dict[str, object] = {}
    end = 0
    for name, dtype, shape in tensors:
        begin, end = end, end + _count_bytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + end)


def write_sparse_npz(path: Path, tensors: Iterable[Tensor]) -> None:
    """Write a zip without compression, by hand: each member is a npy header and a hole."""
    directory = b""
    count = 0
    with path.open("wb") as file:
        for name, dtype, shape in tensors:
            count += 1
            member = f"{name}.npy".encode()
            descr = {"U32": "<u4", "F16": "<f2"}[dtype]
            text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
            text += " " * (-(10 + len(text) + 1) % 64) + "\n"
            npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()
            hole = _count_bytes(dtype, shape)
            size, offset = len(npy) + hole, file.tell()
            fields = struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 33, 0, size, size, len(member), 0)
            file.write(b"PK\x03\x04" + fields + member + npy)
            file.seek(hole, 1)
            directory += b"PK\x01\x02" + struct.pack("<H", 20) + fields
            directory += struct.pack("<HHHII", 0, 0, 0, 0, offset) + member
        begin = file.tell()
        file.write(directory)
        file.write(
            b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), begin, 0)
        )


def _count_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return {"U32": 4, "F16": 2}[dtype] * math.prod(shape)
