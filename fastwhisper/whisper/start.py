"""The tokens that a transcript starts with, and what a network can't do of the settings.

Source:
    `DecodingTask` in `decoding.py` of openai/whisper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastwhisper.whisper.languages import LANGUAGES, count_languages, is_multilingual
from fastwhisper.whisper.options import DecodeSettings
from fastwhisper.whisper.tokenizer import read_tokenizer

if TYPE_CHECKING:
    from typing import Unpack

    from fastwhisper.whisper.options import Task, TranscribeOptions
    from fastwhisper.whisper.tokenizer import Tokenizer

__all__ = ["MAX_TOKEN_BYTES", "build_start", "read_settings"]

MAX_TOKEN_BYTES: Final = 128
"""Bytes of the longest token of the vocabularies."""


def build_start(tokenizer: Tokenizer, settings: DecodeSettings, *, n_text_ctx: int) -> list[int]:
    """Return the tokens that each transcript starts with: language, task and prefix.

    Args:
        tokenizer: The network's tokenizer, for the language and task.
        settings: How to decode.
        n_text_ctx: Decoder positions.
    """
    start = list(tokenizer.sot_sequence)
    if settings.without_timestamps:
        start.append(tokenizer.no_timestamps)
    prefix = settings.prefix or ()
    # With `sample_len`, the last (half - sample_len) tokens of the prefix are kept. Without it,
    # `room` is 0, and `prefix[-0:]` is the whole prefix, as in OpenAI's code.
    half = n_text_ctx // 2
    room = half - (settings.sample_len or half)
    if isinstance(prefix, str):
        # Encoding only the end saves seconds for a long text.
        end = f" {prefix.strip()}"[-MAX_TOKEN_BYTES * room :]
        prefix = tuple(tokenizer.encode(end))
    return [*start, *prefix[-room:]]


def read_settings(
    n_vocab: int,
    n_text_ctx: int,
    *,
    language: str | None = None,
    task: Task = "transcribe",
    seed: int | None = None,
    **options: Unpack[TranscribeOptions],
) -> DecodeSettings:
    """Check options, also against a network, and return the settings.

    Args:
        n_vocab: Tokens of the network.
        n_text_ctx: Its decoder positions.
        language: As for `DecodeSettings.from_options`.
        task: As for `DecodeSettings.from_options`.
        seed: As for `DecodeSettings.from_options`.
        **options: As for `DecodeSettings.from_options`.

    Raises:
        TypeError: An option does not exist, or has the wrong type.
        ValueError: An option is out of range, the network does not know a language or a token, it
            can't translate, a text contains a special token, or the prefix has no room.
    """
    settings = DecodeSettings.from_options(language=language, task=task, seed=seed, **options)
    _check_languages(settings, n_vocab)
    # A token beyond the embedding would read memory that is not the embedding's.
    for name in ("prefix", "suppress_tokens"):
        tokens = getattr(settings, name)
        if isinstance(tokens, tuple) and any(token >= n_vocab for token in tokens):
            raise ValueError(
                f"{name}={tokens!r}: this model has {n_vocab} tokens, the last is {n_vocab - 1}"
            )
    if not settings.initial_prompt and not settings.prefix:
        return settings
    tokenizer = read_tokenizer(n_vocab, language=settings.language or "en", task=settings.task)
    for name in ("initial_prompt", "prefix"):
        text = getattr(settings, name)
        if isinstance(text, str) and (special := tokenizer.find_special(text)) is not None:
            raise ValueError(f"{name} contains the special token {special}; remove it")
    # A longer text has too many tokens, and would take long to encode.
    is_long = settings.sample_len is None and (
        len(settings.prefix or ()) > MAX_TOKEN_BYTES * n_text_ctx
    )
    if is_long or len(build_start(tokenizer, settings, n_text_ctx=n_text_ctx)) > n_text_ctx:
        raise ValueError(
            f"the prefix has too many tokens: each window begins with it, and a window has at "
            f"most {n_text_ctx}; shorten it, or give sample_len, which keeps its end"
        )
    return settings


def _check_languages(settings: DecodeSettings, n_vocab: int) -> None:
    """Check that the network knows the languages of the settings."""
    given = settings.languages or filter(None, [settings.language])
    if not is_multilingual(n_vocab):
        if settings.task == "translate":
            raise ValueError(
                "task='translate': this model knows English only; use a multilingual one"
            )
        if (codes := list(given)) and "en" not in codes:
            names = ", ".join(LANGUAGES[code] for code in codes)
            raise ValueError(
                f"this model knows English only, not {names}; use a multilingual one, or leave the "
                "language out"
            )
        return
    known = list(LANGUAGES)[: count_languages(n_vocab)]
    for code in given:
        if code not in known:
            raise ValueError(
                f"this model does not know {LANGUAGES[code]} ({code}); it knows {', '.join(known)}"
            )
