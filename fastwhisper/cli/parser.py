"""The `fastwhisper` command: what can be typed. What is done is in `commands`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import TYPE_CHECKING, Final

from fastwhisper.cli.writers import FORMATS, LAYOUT_OPTIONS
from fastwhisper.errors import FastWhisperError
from fastwhisper.values import Quantization, WhisperModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["main"]

_INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and leave the interpreter with its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(format="fastwhisper: %(message)s", level=logging.WARNING)
    if options.command == "transcribe":
        _refuse_wrong(options, parser)
    try:
        from fastwhisper.cli import commands  # noqa: PLC0415  `--help` needs none of it

        status = getattr(commands, options.command)(options)
    except KeyboardInterrupt:
        status = _INTERRUPTED
    except BrokenPipeError:
        # Who read our output has gone; Python must not try to flush into the pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except (FastWhisperError, OSError, ValueError) as error:
        print(f"fastwhisper: {error}", file=sys.stderr)
        status = 1
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastwhisper", description="Open a Whisper model fast, and transcribe speech with it."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_transcribe(_command(commands, "transcribe", "write down what is said in audio files"))
    pull = _command(commands, "pull", "download a model, so that it opens without a network")
    _add_model(pull, default=None)
    pull.add_argument("--json", action="store_true", help="print the result as JSON")
    inspect = _command(commands, "inspect", "say what a model on this machine is")
    _add_model(inspect, default=None)
    inspect.add_argument("--json", action="store_true", help="print the result as JSON")
    cache = _command(commands, "cache", "list or clear the converted checkpoints")
    cache.add_argument("--clear", action="store_true", help="remove them all")
    quantize = _command(commands, "quantize", "make an int4 or int8 model of a float16 one")
    quantize.add_argument("model", help="a name of the table, a directory, or org/name")
    quantize.add_argument("--quant", choices=["int4", "int8"], default="int4", help="precision")
    quantize.add_argument("--out", required=True, help="directory to make")
    quantize.add_argument("--share", type=float, help="most bytes, as a share of float16's (0.35)")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, purpose: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=purpose,
        description=purpose.capitalize() + ".",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def _add_model(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    purpose = f"{', '.join(WhisperModel)}; or a directory, or a repository as org/name"
    if default is None:
        parser.add_argument("model", help=purpose)
    else:
        parser.add_argument("--model", default=default, help=purpose)
    parser.add_argument(
        "--quant",
        choices=[str(quant) for quant in Quantization],
        default=argparse.SUPPRESS,
        help="precision (default: int4 for a name of the table, else what the files hold)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the repository")


def _add_transcribe(parser: argparse.ArgumentParser) -> None:
    """Add the flags that a user of mlx_whisper types, under the same names."""
    add = parser.add_argument
    add("audio", nargs="+", metavar="AUDIO", help="audio or video files; - reads stdin")
    _add_model(parser, default=str(WhisperModel.LARGE_TURBO))
    add("--offline", action="store_true", help="never touch the network")
    add("--output-format", "-f", choices=[*FORMATS, "all"], help="write files of this format")
    add("--output-dir", "-o", help="write files into this directory")
    add("--output-name", help="name of the written files, before the suffix")
    add("--verbose", type=_flag, default=True, help="print the text while it is decoded")
    add("--task", choices=["transcribe", "translate"], default="transcribe", help="what to write")
    add("--language", help="language spoken, such as en or English; detected if not given")
    add("--fp16", type=_flag, help="compute in float16 (default: on a GPU)")
    add("--seed", type=int, help="makes sampling above temperature 0 repeatable")
    # What follows is left to the session when it is not given: its defaults are upstream's.
    for name, kind, purpose in (
        ("temperature", float, "sample at this temperature only"),
        ("best-of", _maybe(int), "samples to choose from above temperature 0"),
        ("length-penalty", float, "exponent of the length by which samples are ranked"),
        ("suppress-tokens", str, "tokens never to sample, separated by commas"),
        ("initial-prompt", str, "text to prompt the first window with"),
        ("condition-on-previous-text", _flag, "prompt each window with the text before it"),
        ("compression-ratio-threshold", _maybe(float), "above it a window repeats itself"),
        ("logprob-threshold", _maybe(float), "below it a window is too uncertain"),
        ("no-speech-threshold", _maybe(float), "above it a window is silent"),
        ("word-timestamps", _flag, "also give the time of each word"),
        ("prepend-punctuations", str, "punctuation that belongs to the word after it"),
        ("append-punctuations", str, "punctuation that belongs to the word before it"),
        ("hallucination-silence-threshold", _maybe(float), "skip silence longer than this, in s"),
        ("clip-timestamps", str, "start,end,start,end,... in seconds"),
    ):
        add(f"--{name}", type=kind, default=argparse.SUPPRESS, help=purpose)
    words = parser.add_argument_group("subtitles (with --word-timestamps True)")
    words.add_argument("--highlight-words", type=_flag, default=False, help="underline each word")
    words.add_argument("--max-line-width", type=int, help="characters of a line")
    words.add_argument("--max-line-count", type=int, help="lines of a subtitle")
    words.add_argument("--max-words-per-line", type=int, help="words of a subtitle")


def _refuse_wrong(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse before a model is opened what argparse lets through."""
    from fastwhisper.whisper.options import DecodeSettings  # noqa: PLC0415  see main

    known = DecodeSettings.__dataclass_fields__
    try:
        DecodeSettings.from_options(**{k: v for k, v in vars(options).items() if k in known})
    except ValueError as error:
        parser.error(str(error))
    if not getattr(options, "word_timestamps", False):
        for name in LAYOUT_OPTIONS:
            if getattr(options, name):
                parser.error(f"--{name.replace('_', '-')} needs --word-timestamps True")
    if options.output_name and len(options.audio) > 1:
        parser.error("--output-name names the files of one AUDIO; leave it out for several")


def _flag(text: str) -> bool:
    """Read True or False, as mlx_whisper's command does."""
    if text not in {"True", "False"}:
        raise argparse.ArgumentTypeError(f"{text!r}: give True or False")
    return text == "True"


def _maybe(kind: Callable[[str], float]) -> Callable[[str], float | None]:
    """Read a number or None, as mlx_whisper's command does."""

    def read(text: str) -> float | None:
        return None if text == "None" else kind(text)

    return read
