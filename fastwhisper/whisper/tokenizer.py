"""Whisper's tokenizer: byte pairs of text, and special tokens after them.

Decoding is a look-up. Only a prompt, a prefix and a few symbols are ever encoded.

Source:
    Radford et al. 2022, section 2.2; `tokenizer.py` of openai/whisper, whose vocabularies these
    are; Radford et al. 2019, section 2.2, for the byte pairs.
"""

from __future__ import annotations

import heapq
import re
import unicodedata
from binascii import a2b_base64
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastwhisper.whisper.languages import LANGUAGES, count_languages, is_multilingual

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fastwhisper.whisper.options import Task

__all__ = ["Tokenizer", "read_tokenizer"]

_DATA: Final = Path(__file__).parent / "data"

_SPECIAL_BEFORE: Final = ("endoftext", "startoftranscript")
_SPECIAL_AFTER: Final = (
    "translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps",
)  # fmt: skip
"""Names of the special tokens before and after those of the languages, in order."""

_SYMBOLS: Final = (
    *'"#()*+/:;<=>@[\\]^_`{|}~「」『』',
    *("<<", ">>", "<<<", ">>>", "--", "---", "-(", "-[", "('", '("'),
    *("((", "))", "(((", ")))", "[[", "]]", "{{", "}}", "♪♪", "♪♪♪"),
)
"""Symbols that stand for no speech: speakers, remarks, music."""

_NOTES: Final = "♩♪♫♬♭♮♯"
"""Symbols of which the first token is suppressed too; they share their first two bytes."""

_UNSPACED: Final = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
"""Languages that are written without spaces between words."""

_PUNCTUATION: Final = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
_BROKEN: Final = "\ufffd"
"""What bytes are decoded to that are no whole character."""

_PIECES: Final = re.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII
)
"""Pieces of text that are encoded one by one; for text that `_to_ascii` has mapped."""


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """The tokens of one network, for one language and task.

    Attributes:
        vocabulary: The bytes of each token of text, in the order of their numbers.
        num_languages: How many languages the network has tokens for.
        language: Code of the spoken language; None for a network that knows English only.
        task: Write down what is said, or translate it; None for such a network.
    """

    vocabulary: tuple[bytes, ...]
    num_languages: int
    language: str | None
    task: Task | None

    @cached_property
    def eot(self) -> int:
        """The token that ends a text. All tokens below it are text."""
        return len(self.vocabulary)

    @cached_property
    def special_tokens(self) -> Mapping[str, int]:
        """The special tokens by their names, without those of times."""
        languages = list(LANGUAGES)[: self.num_languages]
        names = (*_SPECIAL_BEFORE, *languages, *_SPECIAL_AFTER)
        return {name: self.eot + number for number, name in enumerate(names)}

    @cached_property
    def language_tokens(self) -> Mapping[str, int]:
        """The token of each language that the network knows, by its code."""
        codes = list(LANGUAGES)[: self.num_languages]
        return {code: self.special_tokens[code] for code in codes}

    @cached_property
    def sot(self) -> int:
        """The token that starts a transcript."""
        return self.special_tokens["startoftranscript"]

    @cached_property
    def sot_prev(self) -> int:
        """The token that starts the text before."""
        return self.special_tokens["startofprev"]

    @cached_property
    def no_speech(self) -> int:
        """The token whose probability says that nobody speaks."""
        return self.special_tokens["nospeech"]

    @cached_property
    def no_timestamps(self) -> int:
        """The token that asks for text without times."""
        return self.special_tokens["notimestamps"]

    @cached_property
    def timestamp_begin(self) -> int:
        """The token of 0.00 s. Each one after it stands for 0.02 s more."""
        return self.no_timestamps + 1

    @cached_property
    def sot_sequence(self) -> tuple[int, ...]:
        """The tokens that every transcript begins with: its start, the language, the task."""
        names = [name for name in (self.language, self.task) if name is not None]
        return (self.sot, *(self.special_tokens[name] for name in names))

    @cached_property
    def non_speech_tokens(self) -> tuple[int, ...]:
        """Tokens of symbols that nobody says, in order: speaker tags, remarks, notes."""
        # A hyphen and an apostrophe may be inside a word, but begin none.
        found = {self.encode(" -")[0], self.encode(" '")[0]}
        for symbol in (*_SYMBOLS, *_NOTES):
            for tokens in (self.encode(symbol), self.encode(f" {symbol}")):
                if len(tokens) == 1 or symbol in _NOTES:
                    found.add(tokens[0])
        return tuple(sorted(found))

    @cached_property
    def _ranks(self) -> Mapping[bytes, int]:
        return {piece: rank for rank, piece in enumerate(self.vocabulary)}

    @cached_property
    def _pieces(self) -> tuple[bytes, ...]:
        """The bytes of all tokens below the times; a special one shows its name."""
        return self.vocabulary + tuple(f"<|{name}|>".encode() for name in self.special_tokens)

    def encode(self, text: str) -> list[int]:
        """Turn text into tokens.

        Raises:
            ValueError: The text holds a special token.
        """
        if "<|" in text:
            named = (f"<|{name}|>" for name in self.special_tokens)
            special = next((name for name in named if name in text), None)
            if special is not None or _TIME.search(text):
                shown = special or "a time"
                raise ValueError(f"the text holds the special token {shown}: take it out")
        # Surrogates are joined to the character that they stand for, or replaced.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        tokens: list[int] = []
        for match in _PIECES.finditer(_to_ascii(text)):
            tokens += _merge(text[match.start() : match.end()].encode(), self._ranks)
        return tokens

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """Join the bytes of tokens. Times have none, special tokens show their names."""
        return b"".join(self._pieces[token] for token in tokens if token < self.timestamp_begin)

    def decode(self, tokens: Iterable[int]) -> str:
        """Turn tokens into text. Bytes that are no whole character become U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    def split_words(self, tokens: Sequence[int]) -> list[list[int]]:
        """Split tokens into words: at spaces, or where a language has none, at characters.

        Punctuation is a word of its own. Bytes at the end that are no whole character belong
        to none.
        """
        parts = self._split_characters(tokens)
        if self.language in _UNSPACED:
            return parts
        words: list[list[int]] = []
        for part in parts:
            text = self.decode(part)
            begins = part[0] >= self.eot or text.startswith(" ") or text.strip() in _PUNCTUATION
            if begins or not words:
                words.append(part)
            else:
                words[-1] += part
        return words

    def _split_characters(self, tokens: Sequence[int]) -> list[list[int]]:
        """Split tokens wherever a character ends."""
        whole = self.decode(tokens)
        parts: list[list[int]] = []
        part: list[int] = []
        done = 0
        for token in tokens:
            part.append(token)
            text = self.decode(part)
            broken = text.find(_BROKEN)
            at = done + broken
            # A broken character is complete if it is broken in the whole text too.
            if broken < 0 or whole[at : at + 1] == _BROKEN:
                parts.append(part)
                done += len(text)
                part = []
        return parts


def read_tokenizer(n_vocab: int, *, language: str, task: Task) -> Tokenizer:
    """Read the tokenizer of a network.

    Args:
        n_vocab: Tokens of the network, which say how many languages it knows.
        language: Code of the spoken language. A network that knows English only ignores it.
        task: Write down what is said, or translate it to English. Ignored likewise.
    """
    if is_multilingual(n_vocab):
        return Tokenizer(_read("multilingual"), count_languages(n_vocab), language, task)
    return Tokenizer(_read("gpt2"), count_languages(n_vocab), None, None)


@cache
def _read(name: str) -> tuple[bytes, ...]:
    """Read a vocabulary: a line for each token, its bytes in base64 and its number."""
    lines = (_DATA / f"{name}.tiktoken").read_bytes().splitlines()
    return tuple(a2b_base64(line.partition(b" ")[0]) for line in lines)


_TIME: Final = re.compile(r"<\|(?:[12]?[0-9]\.[0-9][02468]|30\.00)\|>")


def _to_ascii(text: str) -> str:
    """Map each character beyond ASCII to one of its kind: a letter, a digit, a space or neither.

    `re` knows the kinds of Unicode that byte pairs are split by (L, N, white space) only so.
    """
    return text if text.isascii() else "".join(c if c < "\x80" else _kind(c) for c in text)


def _kind(character: str) -> str:
    if character.isspace():
        return "\t"
    return {"L": "a", "N": "0"}.get(unicodedata.category(character)[0], "!")


def _merge(piece: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """Turn one piece of text into tokens: join the pair of lowest rank until none is left.

    The candidates are kept in a heap, so that a long piece takes n log n steps and not n².
    """
    if piece in ranks:
        return [ranks[piece]]
    end = len(piece)
    parts = [piece[at : at + 1] for at in range(end)]  # b"" when joined to the part before
    before, after = list(range(-1, end - 1)), list(range(1, end + 1))
    heap: list[tuple[int, int]] = []

    def consider(at: int) -> None:
        if at >= 0 and after[at] < end:
            rank = ranks.get(parts[at] + parts[after[at]])
            if rank is not None:
                heapq.heappush(heap, (rank, at))

    for at in range(end):
        consider(at)
    while heap:
        rank, at = heapq.heappop(heap)
        other = after[at]
        # Out of date when one of the two has been joined to something else since.
        if other >= end or not parts[at] or ranks.get(parts[at] + parts[other]) != rank:
            continue
        parts[at] += parts[other]
        parts[other] = b""
        after[at] = after[other]
        if after[at] < end:
            before[after[at]] = at
        consider(before[at])
        consider(at)
    return [ranks[part] for part in parts if part]
