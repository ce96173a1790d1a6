"""Whisper's tokenizer: byte pairs for text, and special tokens after them.

Tokens are decoded with a table. Only a prompt, a prefix and a few symbols are ever encoded.

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
from functools import cache, cached_property, lru_cache
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
"""Symbols that are not speech: speaker names, remarks, music."""

_NOTES: Final = "♩♪♫♬♭♮♯"
"""Musical notes. A note may be several tokens. All notes begin with the same token, which is
suppressed."""

_UNSPACED: Final = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
"""Languages that are written without spaces between words."""

_PUNCTUATION: Final = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
_REPLACEMENT: Final = "\ufffd"
"""The character that incomplete or wrong UTF-8 bytes are decoded to."""

_PIECES: Final = re.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII
)
"""Pieces of text that are encoded one by one. It is applied to the result of `_to_ascii`."""


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """The tokens of one network, for one language and task.

    Attributes:
        vocabulary: The bytes of each text token, in the order of the tokens' numbers.
        num_languages: Number of languages that the network has tokens for.
        language: Code of the spoken language; None for a network that knows English only.
        task: Transcribe or translate; None for a network that knows English only.
    """

    vocabulary: tuple[bytes, ...]
    num_languages: int
    language: str | None
    task: Task | None

    @cached_property
    def eot(self) -> int:
        """The token that ends a text. All smaller tokens are text."""
        return len(self.vocabulary)

    @cached_property
    def special_tokens(self) -> Mapping[str, int]:
        """The special tokens by name, without the timestamps."""
        languages = list(LANGUAGES)[: self.num_languages]
        names = (*_SPECIAL_BEFORE, *languages, *_SPECIAL_AFTER)
        return {name: self.eot + number for number, name in enumerate(names)}

    @cached_property
    def language_tokens(self) -> Mapping[str, int]:
        """The token of each language that the network knows, by the language's code."""
        codes = list(LANGUAGES)[: self.num_languages]
        return {code: self.special_tokens[code] for code in codes}

    @cached_property
    def sot(self) -> int:
        """The token that starts a transcript."""
        return self.special_tokens["startoftranscript"]

    @cached_property
    def sot_prev(self) -> int:
        """The token before the text of earlier windows (the prompt)."""
        return self.special_tokens["startofprev"]

    @cached_property
    def no_speech(self) -> int:
        """The token whose probability is that of no speech."""
        return self.special_tokens["nospeech"]

    @cached_property
    def no_timestamps(self) -> int:
        """The token that asks for text without timestamps."""
        return self.special_tokens["notimestamps"]

    @cached_property
    def timestamp_begin(self) -> int:
        """The timestamp of 0.00 s. Each token after it means 0.02 s more."""
        return self.no_timestamps + 1

    @cached_property
    def sot_sequence(self) -> tuple[int, ...]:
        """The first tokens of every transcript: its start, the language, the task."""
        names = [name for name in (self.language, self.task) if name is not None]
        return (self.sot, *(self.special_tokens[name] for name in names))

    @cached_property
    def non_speech_tokens(self) -> tuple[int, ...]:
        """Tokens of symbols that are not speech, in order: speaker names, remarks, notes."""
        # A hyphen and an apostrophe may be inside a word, but no word begins with them.
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
        """The bytes of all tokens before the timestamps; those of a special token are its name."""
        return self.vocabulary + tuple(f"<|{name}|>".encode() for name in self.special_tokens)

    def encode(self, text: str) -> list[int]:
        """Encode text as tokens.

        Raises:
            ValueError: The text contains a special token.
        """
        if (special := self.find_special(text)) is not None:
            raise ValueError(f"the text contains the special token {special}; remove it")
        # A pair of surrogates becomes its character, a lone surrogate is replaced.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        tokens: list[int] = []
        for match in _PIECES.finditer(_to_ascii(text)):
            tokens += _merge(text[match.start() : match.end()].encode(), self._ranks)
        return tokens

    def find_special(self, text: str) -> str | None:
        """Return the first special token that is written out in a text, such as <|en|>, or None."""
        for match in _SPECIAL.finditer(text):
            if match[1] in self.special_tokens or _TIME.fullmatch(match[1]):
                return match[0]
        return None

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """Return the bytes of tokens. Timestamps have none; a special token's are its name."""
        return b"".join(self._pieces[token] for token in tokens if token < self.timestamp_begin)

    def decode(self, tokens: Iterable[int]) -> str:
        """Decode tokens as text. Bytes of an incomplete character become U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    def split_words(self, tokens: Sequence[int]) -> list[list[int]]:
        """Split tokens into words: at spaces, or at characters if the language has no spaces.

        Punctuation is a word of its own. Tokens of an incomplete character at the end are left
        out.
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
        """Split tokens at the ends of characters."""
        whole = self.decode(tokens)
        parts: list[list[int]] = []
        part: list[int] = []
        done = 0
        for token in tokens:
            part.append(token)
            text = self.decode(part)
            incomplete = text.find(_REPLACEMENT)
            at = done + incomplete
            # Where the whole text has U+FFFD too, no later token completes the character.
            if incomplete < 0 or whole[at : at + 1] == _REPLACEMENT:
                parts.append(part)
                done += len(text)
                part = []
        return parts


# A tokenizer takes 5 ms to prepare and 4 MB. A session asks for one or two, again and again.
@lru_cache(maxsize=4)
def read_tokenizer(n_vocab: int, *, language: str, task: Task) -> Tokenizer:
    """Read the tokenizer of a network.

    Args:
        n_vocab: Number of tokens of the network; the languages that it knows follow from it.
        language: Code of the spoken language; ignored for a network that knows English only.
        task: Transcribe or translate; ignored for a network that knows English only.
    """
    if is_multilingual(n_vocab):
        return Tokenizer(_read("multilingual"), count_languages(n_vocab), language, task)
    return Tokenizer(_read("gpt2"), count_languages(n_vocab), None, None)


@cache
def _read(name: str) -> tuple[bytes, ...]:
    """Read a vocabulary file. Each line has the bytes of one token in base64, and its number."""
    lines = (_DATA / f"{name}.tiktoken").read_bytes().splitlines()
    return tuple(a2b_base64(line.partition(b" ")[0]) for line in lines)


_SPECIAL: Final = re.compile(r"<\|([a-z]+|[0-9.]+)\|>")
_TIME: Final = re.compile(r"[12]?[0-9]\.[0-9][02468]|30\.00")


def _to_ascii(text: str) -> str:
    """Replace each non-ASCII character by an ASCII character of its kind.

    The kinds are letter, number, white space, and other. `re` can't match Unicode's letters (L) and
    numbers (N), by which text is split into pieces.
    """
    return text if text.isascii() else "".join(c if c < "\x80" else _kind(c) for c in text)


def _kind(character: str) -> str:
    """Return an ASCII character of the same kind."""
    if character.isspace():
        return "\t"
    return {"L": "a", "N": "0"}.get(unicodedata.category(character)[0], "!")


def _merge(piece: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """Encode one piece of text: join the pair of lowest rank until there is no pair left.

    The pairs are kept in a heap, so a piece of n bytes takes n log n steps and not n².
    """
    if piece in ranks:
        return [ranks[piece]]
    end = len(piece)
    parts = [piece[at : at + 1] for at in range(end)]  # b"" when joined to the part before
    before, after = list(range(-1, end - 1)), list(range(1, end + 1))
    heap: list[tuple[int, int]] = []

    def push(at: int) -> None:
        if at >= 0 and after[at] < end:
            rank = ranks.get(parts[at] + parts[after[at]])
            if rank is not None:
                heapq.heappush(heap, (rank, at))

    for at in range(end):
        push(at)
    while heap:
        rank, at = heapq.heappop(heap)
        other = after[at]
        # Skip the pair if one of its parts was joined to another part meanwhile.
        if other >= end or not parts[at] or ranks.get(parts[at] + parts[other]) != rank:
            continue
        parts[at] += parts[other]
        parts[other] = b""
        after[at] = after[other]
        if after[at] < end:
            before[after[at]] = at
        push(before[at])
        push(at)
    return [ranks[part] for part in parts if part]
