"""Repositories for tests of downloads: small files of each format, and a fetch without progress."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from typing import TYPE_CHECKING

from fastwhisper.sources import find
from fastwhisper.values import LoadOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.helpers.hub_server import HubServer

__all__ = [
    "CONFIG",
    "DEFAULT",
    "FILES",
    "REPO",
    "SCRIPT",
    "WEIGHTS",
    "Gone",
    "build_environment",
    "ctranslate2",
    "fetch",
    "npz",
    "safetensors",
    "table",
]

REPO = "org/whisper-x"
CONFIG = b'{"n_mels": 80}'
DEFAULT = LoadOptions.DEFAULT
SCRIPT = """
from fastwhisper.sources import find
from fastwhisper.values import LoadOptions
found = find.locate("org/whisper-x", LoadOptions.DEFAULT)
print(found.path)
"""
"""A program that fetches `REPO` and prints its directory."""


def safetensors(size: int, seed: int = 0) -> bytes:
    """Build a safetensors file with one tensor of `size` bytes."""
    header = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
    data = bytes((seed + i * i) % 251 for i in range(256)) * (size // 256 + 1)
    return struct.pack("<Q", len(header)) + header.encode() + data[:size]


def npz() -> bytes:
    """Build a zip with one stored member."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("x.npy", bytes(1000))
    return out.getvalue()


def ctranslate2() -> bytes:
    """Build a CTranslate2 file with one variable and no alias."""
    head = struct.pack("<IH", 6, 12) + b"WhisperSpec\0" + struct.pack("<II", 3, 1)
    variable = struct.pack("<H", 2) + b"x\0" + struct.pack("<BIBI", 1, 250, 0, 1000)
    return head + variable + bytes(1000) + struct.pack("<I", 0)


WEIGHTS = safetensors(100_000)
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS}


def table(name: str) -> str:
    """Return a repository of the table's organization."""
    return f"mlx-community/whisper-{name}"


class Gone(BaseException):
    """What `check` raises when its caller has gone."""


def fetch(
    model: str = REPO,
    options: LoadOptions = DEFAULT,
    *,
    on_bytes: Callable[[int, int | None], object] = lambda *_: None,
    check: Callable[[], None] = lambda: None,
) -> find.Location:
    """Fetch with nothing to report to."""
    return find.fetch(model, options, on_bytes=on_bytes, check=check)


def build_environment(server: HubServer, cache: Path) -> dict[str, str]:
    """Build the variables of a process that knows only the test's Hub and its cache."""
    return {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(cache.parent),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
