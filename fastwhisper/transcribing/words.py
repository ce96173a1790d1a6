"""Word times, and the silence around what may be invented.

What is decided about here are `Draft`s: segments whose times may still move.

Source:
    `add_word_timestamps` and `transcribe` of openai/whisper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from fastwhisper.values import Word
from fastwhisper.whisper.alignment import align_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    import mlx.core as mx

    from fastwhisper.whisper.alignment import AlignedWord
    from fastwhisper.whisper.network import Whisper
    from fastwhisper.whisper.options import DecodeSettings
    from fastwhisper.whisper.tokenizer import Tokenizer

__all__ = [
    "FRAMES_PER_SECOND",
    "Draft",
    "Span",
    "add_words",
    "drop_hallucinations",
    "end_of_speech_s",
    "skip_leading_silence",
]

FRAMES_PER_SECOND: Final = 100

_PUNCTUATION: Final = "\"'“¿([{-\"'.。,，!！?？:：”)]}、"  # noqa: RUF001  punctuation of Chinese and Japanese
_SENTENCE_ENDS: Final = ".。!！?？"  # noqa: RUF001  punctuation of Chinese and Japanese
_LONGEST_TYPICAL_S: Final = 0.7
_EDGE_WORD_S: Final = 0.5
_SCORED_WORDS: Final = 8
_EDGE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Span:
    """The part of the audio one window covers.

    Attributes:
        start_frame: Its first frame, 10 ms each.
        frames: Frames of audio in it, at most 3000.
        start_s: Its begin, in seconds of the audio.
        duration_s: Its length in seconds.
        window_end_s: Where a full window would end, in seconds of the audio.
    """

    start_frame: int
    frames: int
    start_s: float
    duration_s: float
    window_end_s: float


@dataclass(slots=True)
class Draft:
    """A segment whose times may still move.

    Attributes:
        start_s: Begin, in seconds of the audio.
        end_s: End, in seconds of the audio.
        text: What was said.
        tokens: The tokens, timestamps among them.
        words: The words; None unless word times were asked for.
    """

    start_s: float
    end_s: float
    text: str
    tokens: list[int]
    words: tuple[Word, ...] | None = None


def add_words(
    drafts: list[Draft],
    *,
    model: Whisper,
    tokenizer: Tokenizer,
    features: mx.array,
    span: Span,
    settings: DecodeSettings,
    last_speech_s: float,
) -> None:
    """Give drafts their words, and times that agree with them.

    Args:
        drafts: The segments of one window; changed in place.
        model: The network, for its decoder and alignment heads.
        tokenizer: The tokenizer the window was decoded with.
        features: The encoded window. Shape (1500, state), float16 or float32.
        span: The part of the audio the window covers.
        settings: Says which punctuation belongs to which word.
        last_speech_s: End of the last word before the window, in seconds.
    """
    texts = [[token for token in draft.tokens if token < tokenizer.eot] for draft in drafts]
    tokens = [token for text in texts for token in text]
    words = align_words(model, features, tokenizer, tokens, frames=span.frames)
    typical_s = _typical_duration_s(words)
    _shorten_at_sentence_ends(words, longest_s=2 * typical_s)
    _merge_punctuation(
        words, before=settings.prepend_punctuations, after=settings.append_punctuations
    )
    offset_s = span.start_frame / FRAMES_PER_SECOND
    used = 0
    for draft, text in zip(drafts, texts, strict=True):
        mine: list[AlignedWord] = []
        covered = 0
        while used < len(words) and covered < len(text):
            word = words[used]
            if word.word:
                start_s, end_s = (round(offset_s + t, 2) for t in (word.start_s, word.end_s))
                mine.append(replace(word, start_s=start_s, end_s=end_s))
            covered += len(word.tokens)
            used += 1
        if mine:
            _shorten_after_pause(mine, last_speech_s=last_speech_s, typical_s=typical_s)
            _fit_edges(draft, mine, typical_s=typical_s)
            last_speech_s = draft.end_s
        draft.words = tuple(Word(w.word, w.start_s, w.end_s, w.probability) for w in mine)


def _typical_duration_s(words: Sequence[AlignedWord]) -> float:
    """Return the median duration of words, in seconds: 0 without words, 0.7 at most."""
    durations_s = [word.end_s - word.start_s for word in words if word.end_s != word.start_s]
    return min(_LONGEST_TYPICAL_S, float(np.median(durations_s))) if durations_s else 0.0


def _shorten_at_sentence_ends(words: Sequence[AlignedWord], *, longest_s: float) -> None:
    """Shorten a long mark that ends a sentence, and a long word after one: a pause is in them."""
    if not longest_s:
        return
    for previous, word in pairwise(words):
        if word.end_s - word.start_s > longest_s:
            if word.word in _SENTENCE_ENDS:
                word.end_s = word.start_s + longest_s
            elif previous.word in _SENTENCE_ENDS:
                word.start_s = word.end_s - longest_s


def _merge_punctuation(words: Sequence[AlignedWord], *, before: str, after: str) -> None:
    """Join punctuation to the word that it belongs to. What was joined is left without text."""
    following = len(words) - 1
    for at in range(len(words) - 2, -1, -1):
        mark, word = words[at], words[following]
        if mark.word.startswith(" ") and mark.word.strip() in before:
            word.word = mark.word + word.word
            word.tokens = mark.tokens + word.tokens
            mark.word, mark.tokens = "", []
        else:
            following = at
    previous = 0
    for at in range(1, len(words)):
        word, mark = words[previous], words[at]
        if not word.word.endswith(" ") and mark.word in after:
            word.word += mark.word
            word.tokens = word.tokens + mark.tokens
            mark.word, mark.tokens = "", []
        else:
            previous = at


def _shorten_after_pause(
    words: Sequence[AlignedWord], *, last_speech_s: float, typical_s: float
) -> None:
    """Shorten the first two words of a segment where a pause before them is in their time."""
    longest_s = 2 * typical_s
    first = words[0]
    if first.end_s - last_speech_s <= 2 * longest_s:
        return
    second = words[1] if len(words) > 1 else None
    if first.end_s - first.start_s > longest_s or (
        second is not None and second.end_s - first.start_s > 2 * longest_s
    ):
        if second is not None and second.end_s - second.start_s > longest_s:
            first.end_s = second.start_s = max(second.end_s / 2, second.end_s - longest_s)
        first.start_s = max(0.0, first.end_s - longest_s)


def _fit_edges(draft: Draft, words: Sequence[AlignedWord], *, typical_s: float) -> None:
    """Let a segment begin and end with its words, or where a word is too long, the reverse."""
    first, last = words[0], words[-1]
    if draft.start_s < first.end_s and draft.start_s - _EDGE_WORD_S > first.start_s:
        first.start_s = max(0.0, min(first.end_s - typical_s, draft.start_s))
    else:
        draft.start_s = first.start_s
    if draft.end_s > last.start_s and draft.end_s + _EDGE_WORD_S < last.end_s:
        last.end_s = max(last.start_s + typical_s, draft.end_s)
    else:
        draft.end_s = last.end_s


def end_of_speech_s(drafts: list[Draft]) -> float | None:
    """Return where the last word ends, in seconds; without words, the last segment."""
    for draft in reversed(drafts):
        if draft.words:
            return draft.words[-1].end_s
    return drafts[-1].end_s if drafts else None


def skip_leading_silence(drafts: list[Draft], *, span: Span, threshold_s: float) -> int | None:
    """Find where the window should begin instead when its first words look invented.

    Args:
        drafts: The segments of one window, with words.
        span: The part of the audio the window covers.
        threshold_s: Silence longer than this is skipped, in seconds.

    Returns:
        The frame to decode again from, or None when the window stands.
    """
    first = _next_with_words(drafts)
    if first is None or not _is_anomaly(first):
        return None
    gap_s = first.start_s - span.start_s
    if gap_s <= threshold_s:
        return None
    return span.start_frame + round(gap_s * FRAMES_PER_SECOND)


def drop_hallucinations(
    drafts: list[Draft],
    *,
    span: Span,
    threshold_s: float,
    last_speech_s: float,
    content_frames: int,
) -> int | None:
    """Remove what looks invented between silences, and all after it.

    Args:
        drafts: The segments of one window, with words; changed in place.
        span: The part of the audio the window covers.
        threshold_s: Silence longer than this is skipped, in seconds.
        last_speech_s: End of the last word before the window, in seconds.
        content_frames: Frames of the whole audio.

    Returns:
        The frame to go on from, or None when nothing was removed.
    """
    previous_end_s = last_speech_s
    for index, draft in enumerate(drafts):
        if not draft.words:
            continue
        following = _next_with_words(drafts[index + 1 :])
        if _is_anomaly(draft) and _is_isolated(
            draft, following, span=span, threshold_s=threshold_s, previous_end_s=previous_end_s
        ):
            del drafts[index:]
            if content_frames / FRAMES_PER_SECOND - draft.end_s < threshold_s:
                return content_frames
            return round(max(span.start_s + 1, draft.start_s) * FRAMES_PER_SECOND)
        previous_end_s = draft.end_s
    return None


def _next_with_words(drafts: list[Draft]) -> Draft | None:
    return next((draft for draft in drafts if draft.words), None)


def _is_isolated(
    draft: Draft,
    following: Draft | None,
    *,
    span: Span,
    threshold_s: float,
    previous_end_s: float,
) -> bool:
    if following is not None and following.words:
        next_start_s = following.words[0].start_s
    else:
        next_start_s = span.start_s + span.duration_s
    silence_before = (
        draft.start_s - previous_end_s > threshold_s
        or draft.start_s < threshold_s
        or draft.start_s - span.start_s < _EDGE_S
    )
    silence_after = (
        next_start_s - draft.end_s > threshold_s
        or _is_anomaly(following)
        or span.window_end_s - draft.end_s < _EDGE_S
    )
    return silence_before and silence_after


def _is_anomaly(draft: Draft | None) -> bool:
    """Tell whether a segment's first words are mostly improbable, too short or too long."""
    if draft is None or not draft.words:
        return False
    words = [word for word in draft.words if word.word not in _PUNCTUATION][:_SCORED_WORDS]
    score = sum(_anomaly_score(word) for word in words)
    return score >= 3 or score + 0.01 >= len(words)  # noqa: PLR2004  upstream's numbers


def _anomaly_score(word: Word) -> float:
    # The numbers are upstream's.
    duration_s = word.end_s - word.start_s
    score = 1.0 if word.probability < 0.15 else 0.0  # noqa: PLR2004
    if duration_s < 0.133:  # noqa: PLR2004
        score += (0.133 - duration_s) * 15
    if duration_s > 2.0:  # noqa: PLR2004
        score += duration_s - 2.0
    return score
