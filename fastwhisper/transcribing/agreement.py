"""Hypotheses of what was said -> words that are final: LocalAgreement-2.

Source:
    Macháček et al. 2023, "Turning Whisper into Real-Time Transcription System".
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastwhisper.values import Word

__all__ = [
    "JITTER_S",
    "SENTENCE_ENDS",
    "Agreement",
    "count_repeats",
    "ends_sentence",
    "split_sentences",
]

SENTENCE_ENDS: Final = (".", "!", "?", "…", "。", "！", "？", "।", "؟", "۔")  # noqa: RUF001
JITTER_S: Final = 0.1
"""Times of the same word differ so much between two passes."""

_REPEATED: Final = 4
"""So many times the same words at the end of a text are a loop."""


class Agreement:
    """LocalAgreement-2: words are final when two hypotheses in a row begin with them.

    But for the last of these words, if the hypotheses differ in the next one: "I would, uh" and "I
    would have" part behind a word that is heard in two ways. Without that word a talk has an eighth
    fewer wrong words, and final text comes as soon (docs/benchmarks.md).

    Attributes:
        end_s: End of the last final word in seconds.
    """

    def __init__(self) -> None:
        self.end_s = 0.0
        self._tail: Sequence[Word] = []

    @property
    def tail(self) -> Sequence[Word]:
        """The words of the last hypothesis that are not final."""
        return self._tail

    def add(self, words: Sequence[Word], *, sure_s: float = math.inf) -> list[Word]:
        """Compare a hypothesis with the one before, and return the words that became final.

        Args:
            words: The hypothesis of what follows the final words.
            sure_s: Words that end later do not become final: the end of the sound cuts them.
        """
        pairs = [*zip(self._tail, words, strict=False)]
        agreed = sum(1 for _ in takewhile(lambda pair: _is_same(*pair), pairs))
        if agreed < len(pairs):  # the word before the first that differs is uncertain too
            agreed -= 1
        sure = sum(1 for _ in takewhile(lambda word: word.end_s <= sure_s, words))
        self._tail = words
        return self.accept(max(0, min(agreed, sure)))

    def accept(self, count: int) -> list[Word]:
        """Make the first words of the tail final, and return them."""
        accepted: list[Word] = []
        for word in self._tail[:count]:
            # A word is heard where the one before it ended, whatever its pass says.
            start_s = max(word.start_s, self.end_s)
            self.end_s = max(word.end_s, start_s)
            accepted.append(replace(word, start_s=start_s, end_s=self.end_s))
        self._tail = self._tail[count:]
        return accepted


def _normalize(word: Word) -> str:
    """Return a word as it is compared: without case and punctuation."""
    letters = "".join(letter for letter in word.word.casefold() if letter.isalnum())
    return letters or word.word.strip()


def ends_sentence(word: Word) -> bool:
    """Return whether a sentence ends with a word."""
    return word.word.rstrip().endswith(SENTENCE_ENDS)


def split_sentences(words: Sequence[Word]) -> Iterator[Sequence[Word]]:
    """Split words behind the end of each sentence."""
    begin = 0
    for end, word in enumerate(words, 1):
        if ends_sentence(word) or end == len(words):
            yield words[begin:end]
            begin = end


def _is_same(one: Word, other: Word) -> bool:
    return _normalize(one) == _normalize(other)


def count_repeats(words: Sequence[Word]) -> int:
    """Return how many words at the end of a text are a loop: they repeat those before them."""
    spoken = [_normalize(word) for word in words]
    for size in range(1, len(spoken) // _REPEATED + 1):
        last = spoken[-size:]
        times = 1
        while spoken[len(spoken) - (times + 1) * size : len(spoken) - times * size] == last:
            times += 1
        if times >= _REPEATED:
            return (times - 1) * size
    return 0
