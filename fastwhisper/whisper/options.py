"""The options of `Session.transcribe`, and the settings that they become when they are checked.

Importing this module imports no MLX. Names, defaults and meaning of the options are mlx_whisper's.
`carry_initial_prompt` is OpenAI's, and `languages` is fastwhisper's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from numbers import Integral, Real
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypedDict, Unpack, cast

from fastwhisper.whisper.languages import find_language_code

if TYPE_CHECKING:
    from typing import Self

__all__ = ["DecodeSettings", "Task", "TranscribeOptions"]

Task: TypeAlias = Literal["transcribe", "translate"]

_Check: TypeAlias = Callable[[str, object], object]


class TranscribeOptions(TypedDict, total=False):
    """The keyword options of `Session.transcribe` and `Session.stream`; see `DecodeSettings`."""

    temperature: float | Sequence[float]
    compression_ratio_threshold: float | None
    logprob_threshold: float | None
    no_speech_threshold: float | None
    condition_on_previous_text: bool
    initial_prompt: str | None
    carry_initial_prompt: bool
    languages: str | Sequence[str] | None
    word_timestamps: bool
    prepend_punctuations: str
    append_punctuations: str
    clip_timestamps: str | Sequence[float]
    hallucination_silence_threshold: float | None
    sample_len: int | None
    best_of: int | None
    length_penalty: float | None
    prefix: str | Sequence[int] | None
    suppress_tokens: str | Sequence[int] | None
    suppress_blank: bool
    without_timestamps: bool
    max_initial_timestamp: float | None
    batch_size: int
    vad_filter: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSettings:
    """The checked options of one transcription, with a value for each. `from_options` builds it.

    Attributes:
        language: Code of the spoken language; None detects it in the first 30 s with sound.
        languages: Codes of the languages to detect among; None detects among all that the network
            knows.
        task: "transcribe" writes in the spoken language, "translate" in English.
        seed: Makes sampling above temperature 0 repeatable.
        temperature: Temperatures that are tried in this order until a window passes the thresholds.
        compression_ratio_threshold: A window with a higher compression ratio repeats itself, and
            the next temperature is tried.
        logprob_threshold: A window with a lower mean log-probability is too uncertain, and the next
            temperature is tried.
        no_speech_threshold: A window with a higher probability of no speech is silent, unless its
            mean log-probability is above `logprob_threshold`.
        condition_on_previous_text: Use the text so far as the prompt of the next window.
        initial_prompt: Prompt of the first window. Its last tokens are used if it is longer than
            half of the decoder's context.
        carry_initial_prompt: Begin the prompt of every window with `initial_prompt`, so that names
            and terms hold for the whole audio. The text before the window has the room that is
            left.
        word_timestamps: Compute the times of each word.
        prepend_punctuations: Punctuation that belongs to the word after it.
        append_punctuations: Punctuation that belongs to the word before it.
        clip_timestamps: Start, end, start, end … of clips in seconds; the last end may be missing.
            Only the clips are decoded, and no window goes beyond the end of its clip.
        hallucination_silence_threshold: With word times, skip silence longer than this many
            seconds around text that is probably invented.
        sample_len: Largest number of tokens of one window; None is half of the decoder's context.
        best_of: Number of samples above temperature 0, of which the best is chosen.
        length_penalty: Exponent from 0 to 1 of the length by which samples are ranked; None ranks
            by the mean log-probability.
        prefix: Text or tokens that each window begins with.
        suppress_tokens: Tokens that are never sampled; -1 stands for all symbols that are not
            speech.
        suppress_blank: Never begin a window with a space or the end.
        without_timestamps: Sample text only; a segment is then a whole window.
        max_initial_timestamp: Latest start of the first segment of a window, in seconds.
        batch_size: Windows that are decoded together. With more than one an audio of more
            than 30 s is cut at silences, and no window has the text before it as its prompt.
        vad_filter: Do not decode silence of more than 2 s. Times stay those of the whole audio.
    """

    language: str | None = None
    languages: tuple[str, ...] | None = None
    task: Task = "transcribe"
    seed: int | None = None
    temperature: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio_threshold: float | None = 2.4
    logprob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    condition_on_previous_text: bool = True
    initial_prompt: str | None = None
    carry_initial_prompt: bool = False
    word_timestamps: bool = False
    prepend_punctuations: str = "\"'“¿([{-"
    append_punctuations: str = "\"'.。,，!！?？:：”)]}、"  # noqa: RUF001  punctuation of Chinese and Japanese
    clip_timestamps: tuple[float, ...] = (0.0,)
    hallucination_silence_threshold: float | None = None
    sample_len: int | None = None
    best_of: int | None = None
    length_penalty: float | None = None
    prefix: str | tuple[int, ...] | None = None
    suppress_tokens: tuple[int, ...] | None = (-1,)
    suppress_blank: bool = True
    without_timestamps: bool = False
    max_initial_timestamp: float | None = 1.0
    batch_size: int = 1
    vad_filter: bool = False

    @classmethod
    def from_options(
        cls,
        *,
        language: str | None = None,
        task: Task = "transcribe",
        seed: int | None = None,
        **options: Unpack[TranscribeOptions],
    ) -> Self:
        """Check options, and return the settings.

        Args:
            language: Code or English name of the spoken language; None detects it.
            task: "transcribe" or "translate".
            seed: Makes sampling above temperature 0 repeatable.
            **options: See the attributes. An option that is left out has its default.

        Raises:
            TypeError: An option does not exist, or has the wrong type.
            ValueError: An option is out of range, a language or task is unknown, `language` and
                `languages` are both given, or clips go back in time or overlap.
        """
        given: dict[str, object] = {"language": language, "task": task, "seed": seed, **options}
        names = [field.name for field in fields(cls)]
        if unknown := sorted(given.keys() - set(names)):
            raise TypeError(f"unknown option {unknown[0]!r}; the options are {', '.join(names)}")
        # Each check returns a value of its field's type.
        checked = {name: _CHECKS[name](name, value) for name, value in given.items()}
        settings = cls(**cast("dict[str, Any]", checked))
        if settings.language is not None and settings.languages is not None:
            raise ValueError(
                f"language={language!r} and languages={options['languages']!r} are both given; "
                "give the one that is spoken, or those to detect among"
            )
        clips = settings.clip_timestamps
        if list(clips) != sorted(clips):
            raise ValueError(
                f"clip_timestamps={options['clip_timestamps']!r} go back in time; give clips in "
                "order that do not overlap"
            )
        return settings


def _type_error(name: str, value: object, expected: str) -> TypeError:
    """Return the error for a value of the wrong type."""
    return TypeError(f"{name}={value!r} has the wrong type; give {expected}")


def _check_flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _type_error(name, value, "True or False")
    return value


def _check_text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _type_error(name, value, "a string")
    return value


def _check_integer(name: str, value: object, *, low: int, high: int = 2**31 - 1) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise _type_error(name, value, "an integer")
    number = int(value)
    if not low <= number <= high:
        raise ValueError(f"{name}={value!r} is out of range; give {low} to {high}")
    return number


def _check_number(
    name: str, value: object, *, low: float = -math.inf, high: float = math.inf
) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise _type_error(name, value, "a number")
    number = float(value)
    if not low <= number <= high:
        raise ValueError(f"{name}={value!r} is out of range; give {low:g} to {high:g}")
    return number


def _allow_none(check: _Check) -> _Check:
    """Return a check that also accepts None."""
    return lambda name, value: None if value is None else check(name, value)


def _check_items(name: str, value: object, check: _Check) -> tuple[object, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise _type_error(name, value, "a sequence")
    return tuple(check(name, item) for item in value)


def _check_temperatures(name: str, value: object) -> tuple[object, ...]:
    check = partial(_check_number, low=0, high=_MAX_TEMPERATURE)
    temperatures = (
        (check(name, value),) if isinstance(value, Real) else _check_items(name, value, check)
    )
    if not temperatures:
        raise ValueError(f"{name}={value!r} is empty; give at least one temperature")
    return temperatures


def _split(name: str, value: object, read: Callable[[str], object], what: str) -> object:
    """Return the parts of a string that commas separate; return any other value unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return [read(part) for part in value.split(",")] if value else []
    except ValueError as error:
        raise ValueError(f"wrong {name}={value!r}; give {what}, separated by commas") from error


def _read_seconds(name: str, value: object) -> tuple[object, ...]:
    # Finite, because they become frame numbers.
    check = partial(_check_number, low=0, high=_MAX_SECONDS)
    return _check_items(name, _split(name, value, float, "seconds"), check)


def _read_tokens(name: str, value: object, *, low: int) -> tuple[object, ...]:
    check = partial(_check_integer, low=low)
    return _check_items(name, _split(name, value, int, "tokens"), check)


def _read_prefix(name: str, value: object) -> object:
    return value if isinstance(value, str) else _read_tokens(name, value, low=0)


def _read_language(name: str, value: object) -> str:
    return find_language_code(_check_text(name, value))


def _read_languages(name: str, value: object) -> tuple[object, ...]:
    parts = _split(name, value, str.strip, "languages")
    try:
        # The same language twice counts once.
        codes = tuple(dict.fromkeys(_check_items(name, parts, _read_language)))
    except ValueError as error:
        raise ValueError(f"wrong {name}={value!r}: {error}") from error
    if not codes:
        raise ValueError(f"{name}={value!r} is empty; give at least one language")
    return codes


def _check_task(name: str, value: object) -> str:
    if value not in {"transcribe", "translate"}:
        raise ValueError(f"unknown {name}={value!r}; give 'transcribe' or 'translate'")
    return _check_text(name, value)


_MAX_SECONDS: Final = 1e9
_MAX_TEMPERATURE: Final = 1e9
_MAX_BATCH: Final = 1024

_CHECKS: Final = MappingProxyType[str, _Check](
    {
        "language": _allow_none(_read_language),
        "languages": _allow_none(_read_languages),
        "task": _check_task,
        "seed": _allow_none(partial(_check_integer, low=0, high=2**64 - 1)),
        "temperature": _check_temperatures,
        "compression_ratio_threshold": _allow_none(_check_number),
        "logprob_threshold": _allow_none(_check_number),
        "no_speech_threshold": _allow_none(_check_number),
        "condition_on_previous_text": _check_flag,
        "initial_prompt": _allow_none(_check_text),
        "carry_initial_prompt": _check_flag,
        "word_timestamps": _check_flag,
        "prepend_punctuations": _check_text,
        "append_punctuations": _check_text,
        "clip_timestamps": _read_seconds,
        "hallucination_silence_threshold": _allow_none(partial(_check_number, low=0)),
        "sample_len": _allow_none(partial(_check_integer, low=1)),
        "best_of": _allow_none(partial(_check_integer, low=1)),
        "length_penalty": _allow_none(partial(_check_number, low=0, high=1)),
        "prefix": _allow_none(_read_prefix),
        "suppress_tokens": _allow_none(partial(_read_tokens, low=-1)),
        "suppress_blank": _check_flag,
        "without_timestamps": _check_flag,
        "batch_size": partial(_check_integer, low=1, high=_MAX_BATCH),
        "vad_filter": _check_flag,
        "max_initial_timestamp": _allow_none(partial(_check_number, low=0, high=_MAX_SECONDS)),
    }
)
