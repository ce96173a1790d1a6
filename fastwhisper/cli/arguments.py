"""The arguments of each command of `fastwhisper`, and how their values are read."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING, Final

from fastwhisper.cli.writers import FORMATS, LIVE_FORMATS
from fastwhisper.sources.table import suggest
from fastwhisper.values import Quantization, WhisperModel
from fastwhisper.whisper.languages import LANGUAGES, find_language_code

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["COMMANDS"]

_MODELS: Final = (
    f"{', '.join(WhisperModel)} (turbo and large are aliases), a directory, "
    "or a repository as org/name"
)
_TRUE_OR_FALSE: Final = "{True,False}"


def _add_transcribe(parser: argparse.ArgumentParser) -> None:
    """Add the options that a user of mlx_whisper's command types, with the same names."""
    parser.add_argument("audio", nargs="+", metavar="AUDIO", help="audio or video file; - is stdin")
    _add_model(parser.add_argument_group("model"))
    text = parser.add_argument_group("text")
    _add_speech(text)
    _add_decoding(text)
    _add_times(parser.add_argument_group("times"))
    _add_output(parser.add_argument_group("output"))


def _add_listen(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="?",
        choices=["-"],
        metavar="-",
        help="stdin: 16-bit little-endian mono samples at 16 kHz (default: the microphone)",
    )
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="microphone, by its number or a part of its name (default: the system's)",
    )
    _add_model(parser.add_argument_group("model"))
    text = parser.add_argument_group("text")
    _add_speech(text)
    for name, default, purpose in (
        ("min-chunk", 1.0, "new sound after which the text is corrected"),
        ("pause", 1.0, "silence after which the text is final"),
    ):
        text.add_argument(
            f"--{name}",
            type=float,
            default=default,
            metavar="SECONDS",
            help=f"{purpose} (default: {default:g})",
        )
    parser.add_argument_group("output").add_argument(
        "--output-format",
        "-f",
        choices=LIVE_FORMATS,
        default="txt",
        help="what is printed when a line is final; json prints an object per line (default: txt)",
    )


def _add_model(group: argparse._ArgumentGroup) -> None:
    default = str(WhisperModel.LARGE_TURBO)
    group.add_argument("--model", default=default, help=f"{_MODELS} (default: {default})")
    _add_precision(group)
    group.add_argument("--offline", action="store_true", help="never use the network")
    group.add_argument("--memory-map", action="store_true", help="map the weights (only on a Mac)")
    group.add_argument(
        "--fp16",
        type=_parse_flag,
        metavar=_TRUE_OR_FALSE,
        help="compute in float16, or in float32 (default: True on a GPU, False on a CPU)",
    )


def _add_speech(group: argparse._ArgumentGroup) -> None:
    """Add the options of what is said, which files and live sound have alike."""
    group.add_argument(
        "--task",
        choices=["transcribe", "translate"],
        default="transcribe",
        help="write in the language that is spoken, or in English (default: transcribe)",
    )
    group.add_argument(
        "--language",
        type=_parse_language,
        metavar="NAME",
        help="language that is spoken, such as en or English (default: detected)",
    )
    group.add_argument(
        "--initial-prompt",
        default=argparse.SUPPRESS,
        metavar="TEXT",
        help="prompt of the first window (default: no prompt)",
    )


def _add_decoding(group: argparse._ArgumentGroup) -> None:
    # What is not given is left to the session's defaults.
    add = partial(group.add_argument, default=argparse.SUPPRESS)
    add(
        "--languages",
        type=_parse_languages,
        metavar="LIST",
        help="languages to detect among, such as en,de (default: all that the model knows)",
    )
    add(
        "--seed",
        type=int,
        metavar="N",
        help="makes sampling above temperature 0 repeatable (default: no seed)",
    )
    add(
        "--temperature",
        type=float,
        metavar="T",
        help="temperature of sampling (default: 0, and up to 1 for a window that fails)",
    )
    add(
        "--best-of",
        type=_optional(int),
        metavar="N",
        help="samples to choose from above temperature 0 (default: 1)",
    )
    add(
        "--patience",
        type=_optional(float),
        metavar="X",
        help="accepted as by mlx_whisper, without effect: there is no beam search (default: none)",
    )
    add(
        "--length-penalty",
        type=float,
        metavar="X",
        help="exponent of the length by which samples are ranked (default: the plain length)",
    )
    add(
        "--suppress-tokens",
        metavar="LIST",
        help="tokens that are never sampled, as 1,2,3; -1 is all symbols that are not speech "
        "(default: -1)",
    )
    add(
        "--carry-initial-prompt",
        type=_parse_flag,
        metavar=_TRUE_OR_FALSE,
        help="begin the prompt of every window with the initial prompt (default: False)",
    )
    add(
        "--condition-on-previous-text",
        type=_parse_flag,
        metavar=_TRUE_OR_FALSE,
        help="prompt each window with the text before it (default: True)",
    )
    add(
        "--compression-ratio-threshold",
        type=_optional(float),
        metavar="X",
        help="a window of a higher ratio repeats itself, and fails (default: 2.4)",
    )
    add(
        "--logprob-threshold",
        type=_optional(float),
        metavar="X",
        help="a window of a lower mean log-probability fails (default: -1)",
    )
    add(
        "--no-speech-threshold",
        type=_optional(float),
        metavar="X",
        help="a window of a higher probability of silence is skipped (default: 0.6)",
    )
    add(
        "--batch-size",
        type=int,
        metavar="N",
        help="windows to decode together, long audio cut at silences: faster, but no window is "
        "prompted with the text before it (default: 1)",
    )
    add(
        "--vad-filter",
        type=_parse_flag,
        metavar=_TRUE_OR_FALSE,
        help="skip silence of more than 2 s, found by a voice detector (default: False)",
    )


def _add_times(group: argparse._ArgumentGroup) -> None:
    # What is not given is left to the session's defaults.
    add = partial(group.add_argument, default=argparse.SUPPRESS)
    add(
        "--clip-timestamps",
        metavar="LIST",
        help="start,end,start,end,... in seconds (default: the whole audio)",
    )
    add(
        "--word-timestamps",
        type=_parse_flag,
        metavar=_TRUE_OR_FALSE,
        help="find the time of each word (default: False)",
    )
    add(
        "--prepend-punctuations",
        metavar="MARKS",
        help="punctuation that belongs to the word after it (default: opening marks, such as ( )",
    )
    add(
        "--append-punctuations",
        metavar="MARKS",
        help="punctuation that belongs to the word before it "
        "(default: closing marks, such as ) and ,)",
    )
    add(
        "--hallucination-silence-threshold",
        type=_optional(float),
        metavar="SECONDS",
        help="with word times: skip longer silence around invented text (default: no skipping)",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--output-format",
        "-f",
        choices=[*FORMATS, "all"],
        help="write files of this format (default: no file; txt if -o or --output-name is given)",
    )
    group.add_argument(
        "--output-dir",
        "-o",
        metavar="DIR",
        help="directory of the files (default: the working directory)",
    )
    group.add_argument(
        "--output-name",
        metavar="NAME",
        help="file name, to which the suffix is added (default: the recording's)",
    )
    group.add_argument(
        "--verbose",
        type=_parse_flag,
        default=True,
        metavar=_TRUE_OR_FALSE,
        help="print the text while it is decoded (default: True)",
    )
    group.add_argument(
        "--highlight-words",
        type=_parse_flag,
        default=False,
        metavar=_TRUE_OR_FALSE,
        help="subtitles: underline each word while it is spoken (default: False)",
    )
    for name, purpose in (
        ("max-line-width", "characters in a line"),
        ("max-line-count", "lines in a subtitle"),
        ("max-words-per-line", "words in a subtitle"),
    ):
        group.add_argument(
            f"--{name}",
            type=int,
            metavar="N",
            help=f"subtitles: maximum number of {purpose} (default: no limit)",
        )


def _add_describe(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model")
    model.add_argument("model", metavar="MODEL", help=_MODELS)
    _add_precision(model)
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print the description as JSON")


def _add_quantize(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model")
    model.add_argument("model", metavar="MODEL", help=_MODELS)
    model.add_argument(
        "--quant", choices=["int4", "int8"], default="int4", help="precision (default: int4)"
    )
    model.add_argument(
        "--share",
        type=float,
        metavar="X",
        help="int4: maximum size, as a fraction of float16's (default: 0.35)",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", required=True, metavar="DIR", help="directory to make")


def _add_cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clear", action="store_true", help="remove all of them")


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model")
    model.add_argument("--model", help=f"{_MODELS} (default: the smallest that is here)")
    model.add_argument(
        "--quant",
        choices=[str(quant) for quant in Quantization],
        help="precision (default: the smallest that is here)",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print the page as JSON")


def _add_precision(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--quant",
        choices=[str(quant) for quant in Quantization],
        default=argparse.SUPPRESS,
        help="precision (default: int4 for a name of the table, otherwise what the files hold)",
    )
    group.add_argument(
        "--revision", metavar="NAME", help="branch, tag or commit of a repository (default: main)"
    )


def _parse_flag(text: str) -> bool:
    """Return True or False, written as for mlx_whisper's command."""
    if text not in {"True", "False"}:
        raise argparse.ArgumentTypeError(f"unknown value {text!r}; give True or False")
    return text == "True"


def _parse_language(text: str) -> str:
    """Return the name of a language as it is; refuse an unknown one."""
    try:
        find_language_code(text)
    except ValueError as error:
        names = [*LANGUAGES.values(), *LANGUAGES]
        nearest = suggest(text.lower(), names, otherwise="")
        detail = f"unknown language {text!r}; {nearest}" if nearest else str(error)
        raise argparse.ArgumentTypeError(detail) from error
    return text


def _parse_languages(text: str) -> str:
    """Return names of languages, separated by commas, as they are; refuse an unknown one."""
    for name in text.split(","):
        _parse_language(name.strip())
    return text


def _optional(kind: Callable[[str], float]) -> Callable[[str], float | None]:
    """Build a parser of a number or None, written as for mlx_whisper's command."""

    def parse(text: str) -> float | None:
        return None if text == "None" else kind(text)

    return parse


COMMANDS: Final = (
    ("transcribe", _add_transcribe, "write down what is said in audio files"),
    ("listen", _add_listen, "write down what is said, while it is said"),
    ("pull", _add_describe, "download a model, so that it opens without a network"),
    ("inspect", _add_describe, "describe a model that is on this machine"),
    ("quantize", _add_quantize, "make an int4 or int8 model of a float16 one"),
    ("cache", _add_cache, "list or remove the converted checkpoints"),
    ("doctor", _add_doctor, "check this machine and a model on it, for a bug report"),
)
"""Name, function that adds the arguments, and purpose of each command."""
