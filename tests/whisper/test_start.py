"""The first tokens of a transcript, and what a network can't do."""

from __future__ import annotations

from typing import Any

import pytest

from fastwhisper.whisper.options import DecodeSettings
from fastwhisper.whisper.start import build_start, read_settings
from fastwhisper.whisper.tokenizer import read_tokenizer

ENGLISH, MULTILINGUAL, LATEST = 51864, 51865, 51866


def check(n_vocab: int, **options: Any) -> None:
    """Check options against a network of Whisper's size."""
    assert read_settings(n_vocab, 448, **options) == DecodeSettings.from_options(**options)


@pytest.mark.parametrize(
    ("n_vocab", "options", "message"),
    [
        (ENGLISH, {"language": "es"}, "knows English only, not spanish"),
        (ENGLISH, {"languages": ("de", "fr")}, "knows English only, not german, french"),
        (ENGLISH, {"task": "translate"}, "task='translate'.* knows English only"),
        (MULTILINGUAL, {"language": "yue"}, "does not know cantonese"),
        (MULTILINGUAL, {"languages": "en,yue"}, "does not know cantonese"),
        (ENGLISH, {"prefix": [51864]}, "prefix=.*51864 tokens"),
        (ENGLISH, {"suppress_tokens": [-1, 51864]}, "suppress_tokens=.*51864 tokens"),
        (ENGLISH, {"initial_prompt": "a <|endoftext|> b"}, r"initial_prompt .*<\|endoftext\|>"),
        (MULTILINGUAL, {"prefix": "<|es|>"}, r"prefix .*<\|es\|>"),
        (MULTILINGUAL, {"prefix": "<|1.00|>"}, r"prefix .*<\|1.00\|>"),
        (LATEST, {"prefix": "one two " * 300}, "prefix has too many tokens"),
        (LATEST, {"prefix": "one two " * 10_000_000}, "prefix has too many tokens"),
        (LATEST, {"prefix": [50] * 446}, "prefix has too many tokens"),
    ],
)
def test_what_a_network_can_not_do_is_refused(
    n_vocab: int, options: dict[str, Any], message: str
) -> None:
    """The message is one line, names the option, and says why."""
    with pytest.raises(ValueError, match=message) as caught:
        check(n_vocab, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("n_vocab", "options"),
    [
        (ENGLISH, {"language": "English"}),
        (ENGLISH, {"languages": ("de", "en")}),
        (MULTILINGUAL, {"language": "es", "task": "translate"}),
        (LATEST, {"language": "yue"}),
        (ENGLISH, {"suppress_tokens": [-1, 51863], "prefix": [51863]}),
        (ENGLISH, {"initial_prompt": "<|speaker|> <|es|", "prefix": "<| |> <|31.00|>"}),
        (LATEST, {"prefix": [50] * 445}),
        (LATEST, {"prefix": "one two " * 1_000_000, "sample_len": 200}),
        (LATEST, {"prefix": "one two " * 1_000_000, "sample_len": 1}),
        (LATEST, {"initial_prompt": "one two " * 1_000_000}),
    ],
)
def test_what_a_network_can_do_is_accepted(n_vocab: int, options: dict[str, Any]) -> None:
    """What only looks like a special token is text, and a long prompt keeps its end."""
    check(n_vocab, **options)


def test_the_start_has_language_task_and_prefix() -> None:
    """With `sample_len` the end of a long prefix is kept."""
    tokenizer = read_tokenizer(MULTILINGUAL, language="es", task="translate")
    plain = [tokenizer.sot, tokenizer.special_tokens["es"], tokenizer.special_tokens["translate"]]
    for options, expected in (
        ({}, plain),
        ({"without_timestamps": True}, [*plain, tokenizer.no_timestamps]),
        ({"prefix": " Hola "}, [*plain, *tokenizer.encode(" Hola")]),
        ({"prefix": list(range(100)), "sample_len": 220}, [*plain, *range(96, 100)]),
    ):
        settings = DecodeSettings.from_options(**dict[str, Any](options))
        assert build_start(tokenizer, settings, n_text_ctx=448) == expected
