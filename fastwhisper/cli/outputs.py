"""The text files of `fastwhisper transcribe`: their names, what is wrong with them, writing."""

from __future__ import annotations

import os
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from fastwhisper.cli.writers import FORMATS, LAYOUT_OPTIONS, write

if TYPE_CHECKING:
    import argparse

    from fastwhisper.cli.writers import Format
    from fastwhisper.values import Transcription

__all__ = ["STDIN", "find_conflict", "write_files"]

STDIN: Final = "-"
"""The AUDIO that stands for stdin."""

_STDIN_NAME: Final = "content"  # mlx_whisper's


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
                return f"{audio!r} is given twice, and would write '{path}' twice; give it once"
            return (
                f"{other!r} and {audio!r} would both write '{path}'; "
                "transcribe them one by one, each with an --output-dir of its own"
            )
    return None


def _identify(path: str | Path) -> str:
    """Return a string that is the same for all names of one file."""
    resolved = os.path.realpath(path)
    if sys.platform in {"darwin", "win32"}:  # where a.txt and A.txt are one file
        return unicodedata.normalize("NFC", resolved).casefold()
    return resolved


def _list_paths(audio: str, options: argparse.Namespace) -> dict[Format, Path]:
    """Return the path of each file that one AUDIO becomes; none if no file was asked for."""
    if not (options.output_format or options.output_dir or options.output_name):
        return {}
    directory = Path(options.output_dir or ".")
    chosen = options.output_format or "txt"
    formats = FORMATS if chosen == "all" else (cast("Format", chosen),)
    # Unlike mlx_whisper, which cuts the name at its last dot once more: talk.1.wav becomes
    # talk.1.txt, so that talk.2.wav does not overwrite it.
    name = _STDIN_NAME if audio == STDIN else Path(audio).stem
    if options.output_name:
        name = str(Path(options.output_name).with_suffix(""))
    return {kind: directory / f"{name}.{kind}" for kind in formats}


def write_files(result: Transcription, audio: str, options: argparse.Namespace) -> None:
    """Write a transcription in the chosen formats, if any was chosen."""
    layout = {option: getattr(options, option) for option in LAYOUT_OPTIONS}
    for kind, path in _list_paths(audio, options).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            write(result, kind, file, **layout)
