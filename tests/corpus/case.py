"""What a case of the hostile corpus is, and the faults that cases are made of."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tests.helpers.tiny_models import make_arrays, write_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.helpers.tiny_models import Arrays, LayoutName

__all__ = [
    "INVALID",
    "OPENS",
    "Case",
    "change_config",
    "fault",
    "instead",
    "put_bytes",
    "truncate",
    "write_config",
]

OPENS: Final = "opens"
INVALID: Final = "InvalidModelFormatError"


@dataclass(frozen=True, slots=True)
class Case:
    """One directory that a loader is given.

    Attributes:
        name: What is odd or wrong about it; unique.
        build: Makes it, in a directory that does not exist yet; returns the path to open where
            that is another, as a `Path` or string.
        right: "opens", or the name of the error.
        about: Words of which an error's message must have one, besides the path, to count as
            clear.
        wanted: The arrays of the network that opens.
        upstream_layout: Whether mlx_whisper has a reader for files of these names.
        stdin_closed: File descriptor 0 is free while it is opened.
    """

    name: str
    build: Callable[[Path], object]
    right: str = INVALID
    about: tuple[str, ...] = ()
    wanted: Callable[[], Arrays] = field(default=make_arrays)
    upstream_layout: bool = True
    stdin_closed: bool = False


def fault(
    change: Callable[[Path], object], *, layout: LayoutName = "weights.safetensors", **options: Any
) -> Callable[[Path], None]:
    """Build a good model, then change something in its directory."""

    def build(directory: Path) -> None:
        write_model(directory, layout=layout, **options)
        change(directory)

    return build


def put_bytes(name: str, data: bytes | Callable[[], bytes]) -> Callable[[Path], None]:
    """Make a fault: a file has other content."""

    def change(directory: Path) -> None:
        (directory / name).write_bytes(data() if callable(data) else data)

    return change


def instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Make a fault: something else stands where a file was."""

    def change(directory: Path) -> None:
        (directory / name).unlink()
        make(directory / name)

    return change


def truncate(name: str, size: int) -> Callable[[Path], None]:
    """Make a fault: a file is cut to a size, or by one if it is negative; it may grow."""

    def change(directory: Path) -> None:
        path = directory / name
        os.truncate(path, size if size >= 0 else path.stat().st_size + size)

    return change


def write_config(data: bytes) -> Callable[[Path], None]:
    """Make a fault: the config has other content."""
    return put_bytes("config.json", data)


def change_config(remove: str = "", /, **changes: object) -> Callable[[Path], None]:
    """Make a fault: keys of the config are changed or added, and one removed."""

    def change(directory: Path) -> None:
        path = directory / "config.json"
        config = json.loads(path.read_text()) | changes
        if remove:
            del config[remove]
        path.write_text(json.dumps(config))

    return change
