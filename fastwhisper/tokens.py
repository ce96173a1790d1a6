"""Whisper's tokenizer: mlx_whisper's, without what its first use would compile.

Imported after `upstream.import_tokens`; does without MLX.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, Literal

import tiktoken
from mlx_whisper.tokenizer import get_tokenizer

from fastwhisper.languages import VOCAB_WITHOUT_LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Collection
    from collections.abc import Set as AbstractSet

    from mlx_whisper.tokenizer import Tokenizer

    from fastwhisper.decoding import Task

__all__ = ["tokenizer_of"]

_MULTILINGUAL_VOCAB: Final = 51865

_lock = threading.Lock()


def tokenizer_of(n_vocab: int, *, language: str, task: Task) -> Tokenizer:
    """Give the tokenizer of a network; who comes while it is built waits for it.

    Args:
        n_vocab: Tokens of the network, by which mlx_whisper counts its languages.
        language: Code of the spoken language.
        task: Write down what is said, or translate it to English.

    Source:
        `Whisper.is_multilingual` and `.num_languages` of mlx_whisper 0.4.3.
    """
    multilingual = n_vocab >= _MULTILINGUAL_VOCAB
    languages = n_vocab - VOCAB_WITHOUT_LANGUAGES - int(multilingual)
    with _lock:
        tokenizer = get_tokenizer(
            multilingual, num_languages=languages, language=language, task=task
        )
        if type(tokenizer.encoding) is tiktoken.Encoding:
            tokenizer.encoding.__class__ = _Encoding
    return tokenizer


class _Encoding(tiktoken.Encoding):
    """Looks for special tokens only in text that may hold one: they all begin with "<|".

    tiktoken compiles an expression of all 1,600 of them at the first text, with an engine that it
    imports for that: 0.07 s, and 0.15 s where Python compiles what it imports.
    """

    def encode(
        self,
        text: str,
        *,
        allowed_special: Literal["all"] | AbstractSet[str] = frozenset(),
        disallowed_special: Literal["all"] | Collection[str] = "all",
    ) -> list[int]:
        if disallowed_special == "all" and "<|" not in text:
            disallowed_special = ()
        return super().encode(
            text, allowed_special=allowed_special, disallowed_special=disallowed_special
        )
