"""The text files of `fastwhisper transcribe`: their names, what is wrong with them, writing."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from fastwhisper.cli.writers import FORMATS, LAYOUT_OPTIONS, write

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from fastwhisper.cli.writers import Format
    from fastwhisper.values import Transcription

__all__ = ["STDIN", "are_wanted", "check_files", "find_conflict", "write_files"]

STDIN: Final = "-"
"""The AUDIO that stands for stdin."""

_STDIN_NAME: Final = "content"  # mlx_whisper's
_SUFFIX: Final = re.compile(r"(?=.*[a-z])[a-z0-9]{1,5}", re.ASCII | re.IGNORECASE)


def find_conflict(options: argparse.Namespace) -> str | None:
    """Return which file would be written twice, or which AUDIO would be overwritten, or None."""
    inputs = {_identify(audio): audio for audio in options.audio}
    writers: dict[str, str] = {}
    for audio in options.audio:
        for path in _list_paths(audio, options).values():
            if (overwritten := inputs.get(_identify(path))) is not None:
                return (
                    f"the text of {audio!r} would overwrite the recording {overwritten!r}; "
                    "choose another --output-dir"
                )
            other = writers.get(_identify(path))
            writers[_identify(path)] = audio
            if other is None:
                continue
            if other == audio:
                return (
                    f"{audio!r} is given twice, and would write {str(path)!r} twice; give it once"
                )
            return (
                f"{other!r} and {audio!r} would both write {str(path)!r}; "
                "transcribe them one by one, each with an --output-dir of its own"
            )
    return None


def _identify(path: str | Path) -> str:
    """Return a string that is the same for all names of one file, hard links too."""
    with suppress(OSError, ValueError):  # it does not exist, or it is no path
        status = os.stat(path)  # noqa: PTH116  Path refuses some names
        return f"{status.st_dev}:{status.st_ino}"
    resolved = os.path.realpath(path)
    if sys.platform in {"darwin", "win32"}:  # where a.txt and A.txt are one file
        return unicodedata.normalize("NFC", resolved).casefold()
    return resolved


def are_wanted(options: argparse.Namespace) -> bool:
    """Return whether text files are written, and not only stdout."""
    return bool(options.output_format or options.output_dir or options.output_name)


def _list_paths(audio: str, options: argparse.Namespace) -> dict[Format, Path]:
    """Return the path of each file that one AUDIO becomes; none if no file was asked for."""
    if not are_wanted(options):
        return {}
    directory = Path(options.output_dir or ".")
    chosen = options.output_format or "txt"
    formats = FORMATS if chosen == "all" else (cast("Format", chosen),)
    # Unlike mlx_whisper, which cuts a name at its last dot: of "Dr. Smith" it keeps "Dr".
    if options.output_name:
        name = str(options.output_name)
        return {
            kind: directory / (name if name.endswith(f".{kind}") else f"{name}.{kind}")
            for kind in formats
        }
    name = _STDIN_NAME if audio == STDIN else _cut_suffix(Path(audio).name)
    return {kind: directory / f"{name}.{kind}" for kind in formats}


def _cut_suffix(name: str) -> str:
    """Return the name of a recording without its suffix; a date or a title is no suffix."""
    stem, _, suffix = name.rpartition(".")
    return stem if stem and _SUFFIX.fullmatch(suffix) else name


def check_files(options: argparse.Namespace) -> None:
    """Make the folders of the text files, and check that each file can be written.

    Raises:
        OSError: One can't be written. The message names it.
    """
    for audio in options.audio:
        for path in _list_paths(audio, options).values():
            with _naming(path):
                _check_file(path)


def _check_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() or path.is_dir():
        os.close(os.open(path, os.O_WRONLY))
    elif path.is_fifo():
        raise OSError("it is a pipe")  # opening it waits for a reader, without end
    elif path.is_symlink():
        _create_and_remove(Path(os.path.realpath(path)))
    else:
        _create_and_remove(path)


def _create_and_remove(path: Path) -> None:
    """Create a file that does not exist, and remove it."""
    if not os.path.lexists(path):
        # Only the file system knows which names it takes.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        path.unlink()


def write_files(result: Transcription, audio: str, options: argparse.Namespace) -> None:
    """Write a transcription in the chosen formats, if any was chosen.

    Raises:
        OSError: A file can't be written. The others are written.
    """
    layout = {option: getattr(options, option) for option in LAYOUT_OPTIONS}
    failure: OSError | None = None
    for kind, path in _list_paths(audio, options).items():
        try:
            with _naming(path), path.open("w", encoding="utf-8") as file:
                write(result, kind, file, **layout)
        except OSError as error:
            failure = failure or error
    if failure is not None:
        raise failure


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Raise an error that names the file, also where Python's names none or a folder of it."""
    try:
        yield
    except FileExistsError as error:
        raise OSError(f"can't write {str(path)!r}: {error.filename!r} is no directory") from error
    except OSError as error:
        raise OSError(f"can't write {str(path)!r}: {error.strerror or error}") from error
