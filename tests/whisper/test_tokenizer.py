"""The tokenizer: OpenAI's, token for token, and without what tiktoken needs."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlx_whisper.tokenizer import get_tokenizer

from fastwhisper.whisper.languages import LANGUAGES
from fastwhisper.whisper.tokenizer import Tokenizer, read_tokenizer
from tests.helpers.interpreter import run_python

if TYPE_CHECKING:
    from fastwhisper.whisper.options import Task

VOCABULARIES = {51864: (False, 99), 51865: (True, 99), 51866: (True, 100)}

TEXTS = [
    "",
    " ",
    "Hello <world> | <|",
    "a <|b|> c",
    "¿Qué?",
    "日本語",
    "♪♪♪",
    "\ud83d\ude00",
    "\ud83d alone",
    "don't we'll I'm",
    " \u3000\t \n\r\n x \u2028 y",
    "x\x1c\x1d\x85\xa0y",
    "٣٤ Ⅷ ² 1234567",
    "a\u0301e\u0308",
    "<|30.02|> <|0.01|>",
]


def pair(n_vocab: int, language: str = "en", task: Task = "transcribe") -> tuple[Tokenizer, Any]:
    """Return our tokenizer, and mlx_whisper's, which is OpenAI's with tiktoken."""
    multilingual, languages = VOCABULARIES[n_vocab]
    theirs = get_tokenizer(multilingual, num_languages=languages, language=language, task=task)
    return read_tokenizer(n_vocab, language=language, task=task), theirs


@pytest.mark.parametrize("n_vocab", VOCABULARIES)
@pytest.mark.parametrize("text", TEXTS)
def test_encodes_as_tiktoken_does(n_vocab: int, text: str) -> None:
    """Pieces, ranks and characters beyond ASCII are the same."""
    ours, theirs = pair(n_vocab)
    assert ours.encode(text) == theirs.encode(text)


def _is_assigned(character: str) -> bool:
    return unicodedata.category(character) not in {"Cn", "Cs"}


# What Unicode adds after this Python's version of it is left out: tiktoken may know another.
assigned = st.characters(codec="utf-8").filter(_is_assigned)
mixed = st.text(st.one_of(assigned, st.sampled_from(" '\n\tstremvdl019-♪")))


@given(mixed)
def test_encodes_any_text_as_tiktoken_does(text: str) -> None:
    """Any text without a special token gives tiktoken's tokens, and comes back from them."""
    ours, theirs = pair(51866)
    text = text.replace("<|", "")
    tokens = ours.encode(text)
    assert tokens == theirs.encode(text)
    assert ours.decode(tokens) == text


@given(st.lists(st.integers(0, 50256), max_size=40), st.sampled_from(["en", "ja"]))
@example([3376, 94, 94], "en")
def test_decodes_and_splits_any_tokens(tokens: list[int], language: str) -> None:
    """Text and words are OpenAI's, broken characters included."""
    ours, theirs = pair(51865, language)
    assert ours.decode(tokens) == theirs.decode(tokens)
    ended = [*tokens, ours.eot]
    try:
        words, parts = theirs.split_to_word_tokens(ended)
    except IndexError:  # it looks behind the end of some broken texts
        ours.split_words(ended)
        return
    assert ours.split_words(ended) == parts
    # OpenAI's joins the texts of parts, where two broken characters may be a whole one together.
    pairs = zip(parts, words, strict=True)
    assert all(ours.decode(part) == word for part, word in pairs if "\ufffd" not in word)


@pytest.mark.parametrize("n_vocab", VOCABULARIES)
@pytest.mark.parametrize("task", ["transcribe", "translate"])
def test_special_tokens_are_openais(n_vocab: int, task: Task) -> None:
    """Numbers, sequences and suppressed symbols."""
    ours, theirs = pair(n_vocab, "fr", task)
    assert ours.eot == theirs.eot
    assert ours.sot == theirs.sot
    assert ours.sot_prev == theirs.sot_prev
    assert ours.no_speech == theirs.no_speech
    assert ours.no_timestamps == theirs.no_timestamps
    assert ours.timestamp_begin == theirs.timestamp_begin
    assert ours.sot_sequence == theirs.sot_sequence
    assert ours.non_speech_tokens == theirs.non_speech_tokens
    for name, token in ours.special_tokens.items():
        assert theirs.special_tokens[f"<|{name}|>"] == token
    assert dict(ours.language_tokens) == dict(
        zip(theirs.all_language_codes, theirs.all_language_tokens, strict=True)
    )


def test_every_special_token_is_refused_in_text() -> None:
    """A prompt can't smuggle one in, a time included; what only looks like one passes."""
    ours, theirs = pair(51866)
    for special in theirs.special_tokens:
        with pytest.raises(ValueError, match="special token"):
            ours.encode(f"so {special}")
    assert ours.encode("<|xx|>")


def test_a_network_with_more_tokens_than_languages() -> None:
    """The table of languages ends before the vocabulary does."""
    assert len(read_tokenizer(52000, language="en", task="transcribe").language_tokens) == len(
        LANGUAGES
    )


def test_a_long_word_takes_no_square_of_its_length() -> None:
    """A hostile prompt of one word is encoded in steps that grow as n log n."""
    ours, _ = pair(51866)
    word = "qzxj" * 25_000
    tokens = ours.encode(word)
    assert ours.decode(tokens) == word


def test_needs_no_library() -> None:
    """Neither MLX, NumPy, tiktoken nor its engine is imported."""
    program = (
        "import sys\n"
        "from fastwhisper.whisper.tokenizer import read_tokenizer\n"
        "tokenizer = read_tokenizer(51864, language='en', task='transcribe')\n"
        "tokenizer.non_speech_tokens, tokenizer.encode('a prompt')\n"
        "names = ('mlx.core', 'numpy', 'tiktoken', 'regex', 'mlx_whisper')\n"
        "print([name for name in names if name in sys.modules])\n"
    )
    assert run_python("-c", program).stdout == "[]\n"
