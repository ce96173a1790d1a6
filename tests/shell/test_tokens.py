"""The tokenizer: mlx_whisper's, token for token."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import tiktoken
from mlx_whisper.tokenizer import get_tokenizer

from fastwhisper.tokens import tokenizer_of

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
    "don't",
]


@pytest.mark.parametrize("n_vocab", VOCABULARIES)
@pytest.mark.parametrize("text", TEXTS)
def test_encodes_as_tiktoken_does(n_vocab: int, text: str) -> None:
    """What looks for special tokens only where one can be finds the same tokens."""
    encoding = tokenizer_of(n_vocab, language="en", task="transcribe").encoding
    assert encoding.encode(text) == tiktoken.Encoding.encode(encoding, text)


@pytest.mark.parametrize("n_vocab", VOCABULARIES)
def test_is_the_tokenizer_that_mlx_whisper_decodes_with(n_vocab: int) -> None:
    """One for each language and task, which mlx_whisper keeps."""
    multilingual, languages = VOCABULARIES[n_vocab]
    ours = tokenizer_of(n_vocab, language="en", task="transcribe")
    theirs = get_tokenizer(multilingual, num_languages=languages, language="en", task="transcribe")
    assert ours is theirs
    assert ours.encoding.n_vocab == n_vocab


def test_special_tokens_are_refused_and_allowed_as_ever() -> None:
    """Each begins with what text is searched for."""
    encoding = tokenizer_of(51866, language="en", task="transcribe").encoding
    assert all(token.startswith("<|") for token in encoding.special_tokens_set)
    special = "<|startoftranscript|>"
    with pytest.raises(ValueError, match="disallowed special token"):
        encoding.encode(f"so {special}")
    (token,) = encoding.encode(special, allowed_special={special})
    assert token == encoding.encode_single_token(special)
    assert encoding.encode(special, allowed_special="all") == [token]
    assert len(encoding.encode(special, disallowed_special=())) > 1
    with pytest.raises(ValueError, match="disallowed special token"):
        encoding.encode("some text", disallowed_special={"text"})


def test_whoever_comes_while_it_is_built_waits() -> None:
    """Eight threads at once get one tokenizer."""
    found: list[object] = []

    def ask() -> None:
        found.append(tokenizer_of(51866, language="fo", task="translate"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in found}) == 1


def test_needs_no_mlx_and_compiles_no_expression() -> None:
    """The engine that tiktoken compiles its expression with is not even imported."""
    program = (
        "import sys\n"
        "from fastwhisper import upstream\n"
        "upstream.import_tokens()\n"
        "from fastwhisper.tokens import tokenizer_of\n"
        "tokenizer_of(51864, language='en', task='transcribe').non_speech_tokens\n"
        "print([name for name in ('mlx.core', 'numpy', 'regex') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"
