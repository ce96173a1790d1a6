"""How an audio is decoded: the options of `Session.transcribe`, checked before any work.

Plain data, importable without MLX. Names, defaults and meaning are mlx_whisper's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from numbers import Integral, Real
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypedDict, Unpack, cast

from fastwhisper.whisper.languages import language_code

if TYPE_CHECKING:
    from typing import Self

__all__ = ["DecodeSettings", "Task", "TranscribeOptions"]

Task: TypeAlias = Literal["transcribe", "translate"]

_Check: TypeAlias = Callable[[str, object], object]


class TranscribeOptions(TypedDict, total=False):
    """Keyword options of `Session.transcribe` and `Session.stream`; see `DecodeSettings`."""

    temperature: float | Sequence[float]
    compression_ratio_threshold: float | None
    logprob_threshold: float | None
    no_speech_threshold: float | None
    condition_on_previous_text: bool
    initial_prompt: str | None
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


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSettings:
    """Every option of one transcription. Build it with `from_options`, which checks them.

    Attributes:
        language: Code of the spoken language; None detects it in the first 30 s.
        task: Write down what is said, or translate it to English.
        seed: Makes sampling above temperature 0 repeatable.
        temperature: Tried in turn until a window passes the thresholds.
        compression_ratio_threshold: Above it a window repeats itself: next temperature.
        logprob_threshold: Below it a window is too uncertain: next temperature.
        no_speech_threshold: Above it a window is silent, unless its log-probability is
            above `logprob_threshold`.
        condition_on_previous_text: Prompt each window with the text before it.
        initial_prompt: Prompt of the first window.
        word_timestamps: Also give the time of each word.
        prepend_punctuations: Punctuation that belongs to the word after it.
        append_punctuations: Punctuation that belongs to the word before it.
        clip_timestamps: Start, end, start, end … in seconds; the last end may be left
            out. As upstream, decoding begins at the first start and does not jump over
            the gap between two clips.
        hallucination_silence_threshold: With word times, skip silence longer than this
            many seconds around what may be invented.
        sample_len: Most tokens of one window; None is half the decoder's context.
        best_of: Samples to choose from above temperature 0.
        length_penalty: Exponent 0 to 1 of the length by which samples are ranked; None
            ranks by plain length.
        prefix: Text or tokens each window begins with.
        suppress_tokens: Tokens never to sample; -1 stands for symbols speech lacks.
        suppress_blank: Never begin a window with a blank.
        without_timestamps: Sample text only; a segment is then a whole window.
        max_initial_timestamp: The first segment of a window begins by then, in seconds.
    """

    language: str | None = None
    task: Task = "transcribe"
    seed: int | None = None
    temperature: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio_threshold: float | None = 2.4
    logprob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    condition_on_previous_text: bool = True
    initial_prompt: str | None = None
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

    @classmethod
    def from_options(
        cls,
        *,
        language: str | None = None,
        task: Task = "transcribe",
        seed: int | None = None,
        **options: Unpack[TranscribeOptions],
    ) -> Self:
        """Check options and fill in the defaults.

        Raises:
            TypeError: An option that does not exist, or of the wrong type.
            ValueError: An option out of range, or an unknown language or task.
        """
        given: dict[str, object] = {"language": language, "task": task, "seed": seed, **options}
        names = [field.name for field in fields(cls)]
        if unknown := sorted(given.keys() - set(names)):
            raise TypeError(f"unknown option {unknown[0]!r}; the options are {', '.join(names)}")
        # The checks make each value what its field says.
        checked = {name: _CHECKS[name](name, value) for name, value in given.items()}
        return cls(**cast("dict[str, Any]", checked))


def _wrong_type(name: str, value: object, expected: str) -> TypeError:
    return TypeError(f"{name}={value!r}: give {expected}")


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type(name, value, "True or False")
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong_type(name, value, "a string")
    return value


def _integer(name: str, value: object, *, low: int, high: int = 2**31 - 1) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise _wrong_type(name, value, "an integer")
    number = int(value)
    if not low <= number <= high:
        raise ValueError(f"{name}={value!r}: not between {low} and {high}")
    return number


def _number(name: str, value: object, *, low: float = -math.inf, high: float = math.inf) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise _wrong_type(name, value, "a number")
    number = float(value)
    if not low <= number <= high:
        raise ValueError(f"{name}={value!r}: not between {low:g} and {high:g}")
    return number


def _optional(check: _Check) -> _Check:
    return lambda name, value: None if value is None else check(name, value)


def _all(name: str, value: object, check: _Check) -> tuple[object, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise _wrong_type(name, value, "a sequence")
    return tuple(check(name, item) for item in value)


def _temperatures(name: str, value: object) -> tuple[object, ...]:
    check = partial(_number, low=0, high=_MAX_TEMPERATURE)
    temperatures = (check(name, value),) if isinstance(value, Real) else _all(name, value, check)
    if not temperatures:
        raise ValueError(f"{name}={value!r}: give at least one")
    return temperatures


def _seconds(name: str, value: object) -> tuple[object, ...]:
    if isinstance(value, str):
        try:
            value = [float(part) for part in value.split(",")] if value else []
        except ValueError as error:
            raise ValueError(f"{name}={value!r}: give seconds, separated by commas") from error
    # Finite, as they become frame numbers.
    return _all(name, value, partial(_number, low=0, high=_MAX_SECONDS))


def _tokens(name: str, value: object, *, low: int) -> tuple[object, ...]:
    if isinstance(value, str):
        try:
            value = [int(part) for part in value.split(",")] if value else []
        except ValueError as error:
            raise ValueError(f"{name}={value!r}: give tokens, separated by commas") from error
    return _all(name, value, partial(_integer, low=low))


def _prefix(name: str, value: object) -> object:
    return value if isinstance(value, str) else _tokens(name, value, low=0)


def _language(name: str, value: object) -> str:
    return language_code(_text(name, value))


def _task(name: str, value: object) -> str:
    if value not in {"transcribe", "translate"}:
        raise ValueError(f"{name}={value!r}: give 'transcribe' or 'translate'")
    return _text(name, value)


_MAX_SECONDS: Final = 1e9
_MAX_TEMPERATURE: Final = 1e9

_CHECKS: Final = MappingProxyType[str, _Check](
    {
        "language": _optional(_language),
        "task": _task,
        "seed": _optional(partial(_integer, low=0, high=2**64 - 1)),
        "temperature": _temperatures,
        "compression_ratio_threshold": _optional(_number),
        "logprob_threshold": _optional(_number),
        "no_speech_threshold": _optional(_number),
        "condition_on_previous_text": _flag,
        "initial_prompt": _optional(_text),
        "word_timestamps": _flag,
        "prepend_punctuations": _text,
        "append_punctuations": _text,
        "clip_timestamps": _seconds,
        "hallucination_silence_threshold": _optional(partial(_number, low=0)),
        "sample_len": _optional(partial(_integer, low=1)),
        "best_of": _optional(partial(_integer, low=1)),
        "length_penalty": _optional(partial(_number, low=0, high=1)),
        "prefix": _optional(_prefix),
        "suppress_tokens": _optional(partial(_tokens, low=-1)),
        "suppress_blank": _flag,
        "without_timestamps": _flag,
        "max_initial_timestamp": _optional(partial(_number, low=0, high=_MAX_SECONDS)),
    }
)
