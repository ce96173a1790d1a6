"""Word times of segments, and the silence around words that the network probably invented.

All functions work on `Draft`s: segments whose times may still change.

Source:
    `add_word_timestamps` and `transcribe` of openai/whisper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from fastwhisper.transcribing.mel import FRAMES_PER_SECOND
from fastwhisper.values import Word
from fastwhisper.whisper.alignment import align_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastwhisper.whisper.alignment import AlignedWord
    from fastwhisper.whisper.attention import KeyValues
    from fastwhisper.whisper.network import Whisper
    from fastwhisper.whisper.options import DecodeSettings
    from fastwhisper.whisper.tokenizer import Tokenizer

__all__ = [
    "Draft",
    "WindowBounds",
    "add_words",
    "drop_hallucinations",
    "find_speech_end_s",
    "skip_leading_silence",
]

_PUNCTUATION: Final = "\"'“¿([{-\"'.。,，!！?？:：”)]}、"  # noqa: RUF001  punctuation of Chinese and Japanese
_SENTENCE_ENDS: Final = ".。!！?？"  # noqa: RUF001  punctuation of Chinese and Japanese

# The numbers are those of openai/whisper.
_MAX_TYPICAL_WORD_S: Final = 0.7
_MAX_EDGE_SHIFT_S: Final = 0.5
_SCORED_WORDS: Final = 8
_WINDOW_EDGE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class WindowBounds:
    """The part of the audio that one window covers.

    Attributes:
        start_frame: First mel frame; one frame is 10 ms.
        frames: Mel frames of audio in the window, at most 3000.
        start_s: Start, in seconds of the audio.
        duration_s: Length in seconds.
        window_end_s: End of a full window of 30 s, in seconds of the audio.
    """

    start_frame: int
    frames: int
    start_s: float
    duration_s: float
    window_end_s: float


@dataclass(slots=True)
class Draft:
    """A segment whose times may still change.

    Attributes:
        start_s: Start, in seconds of the audio.
        end_s: End, in seconds of the audio.
        text: The spoken text.
        tokens: Its tokens, with the timestamp tokens.
        words: Its words; None unless word times are wanted.
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
    audio: Sequence[KeyValues],
    bounds: WindowBounds,
    settings: DecodeSettings,
    last_speech_s: float,
) -> None:
    """Set the words of drafts, and change the drafts' times to agree with them.

    Args:
        drafts: The segments of one window; changed in place.
        model: The network; its decoder and alignment heads are used.
        tokenizer: The tokenizer that the window was decoded with.
        audio: The window, as `WindowDecoder.read` returned it.
        bounds: The part of the audio that the window covers.
        settings: `prepend_punctuations` and `append_punctuations` are used.
        last_speech_s: End of the last word before the window, in seconds of the audio.
    """
    texts = [[token for token in draft.tokens if token < tokenizer.eot] for draft in drafts]
    tokens = [token for text in texts for token in text]
    words = align_words(model, audio, tokenizer, tokens, frames=bounds.frames)
    typical_s = _typical_duration_s(words)
    _shorten_at_sentence_ends(words, longest_s=2 * typical_s)
    _merge_punctuation(
        words, before=settings.prepend_punctuations, after=settings.append_punctuations
    )
    offset_s = bounds.start_frame / FRAMES_PER_SECOND
    used = 0
    for draft, text in zip(drafts, texts, strict=True):
        found: list[AlignedWord] = []
        covered = 0
        while used < len(words) and covered < len(text):
            word = words[used]
            if word.word:
                start_s, end_s = (round(offset_s + t, 2) for t in (word.start_s, word.end_s))
                found.append(replace(word, start_s=start_s, end_s=end_s))
            covered += len(word.tokens)
            used += 1
        if found:
            _shorten_after_pause(found, last_speech_s=last_speech_s, typical_s=typical_s)
            _fit_edges(draft, found, typical_s=typical_s)
            last_speech_s = draft.end_s
        draft.words = tuple(Word(w.word, w.start_s, w.end_s, w.probability) for w in found)


def _typical_duration_s(words: Sequence[AlignedWord]) -> float:
    """Return the median duration of words in seconds: at most 0.7, and 0 without words."""
    durations_s = [word.end_s - word.start_s for word in words if word.end_s != word.start_s]
    return min(_MAX_TYPICAL_WORD_S, float(np.median(durations_s))) if durations_s else 0.0


def _shorten_at_sentence_ends(words: Sequence[AlignedWord], *, longest_s: float) -> None:
    """Shorten a long sentence mark, and a long word after one: they contain a pause."""
    if not longest_s:
        return
    for previous, word in pairwise(words):
        if word.end_s - word.start_s > longest_s:
            if word.word in _SENTENCE_ENDS:
                word.end_s = word.start_s + longest_s
            elif previous.word in _SENTENCE_ENDS:
                word.start_s = word.end_s - longest_s


def _merge_punctuation(words: Sequence[AlignedWord], *, before: str, after: str) -> None:
    """Join punctuation to its word. A mark that was joined is left without text and tokens."""
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
    """Shorten the first two words of a segment if their times contain a pause before them."""
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
    """Set a segment's times to those of its words.

    If the first or the last word is too long, its time is set from the segment instead.
    """
    first, last = words[0], words[-1]
    if draft.start_s < first.end_s and draft.start_s - _MAX_EDGE_SHIFT_S > first.start_s:
        first.start_s = max(0.0, min(first.end_s - typical_s, draft.start_s))
    else:
        draft.start_s = first.start_s
    if draft.end_s > last.start_s and draft.end_s + _MAX_EDGE_SHIFT_S < last.end_s:
        last.end_s = max(last.start_s + typical_s, draft.end_s)
    else:
        draft.end_s = last.end_s


def find_speech_end_s(drafts: list[Draft]) -> float | None:
    """Return the end of the last word in seconds; without words, the end of the last segment."""
    for draft in reversed(drafts):
        if draft.words:
            return draft.words[-1].end_s
    return drafts[-1].end_s if drafts else None


def skip_leading_silence(
    drafts: list[Draft], *, bounds: WindowBounds, threshold_s: float
) -> int | None:
    """Return where a window should begin instead, if its first words are probably invented.

    Args:
        drafts: The segments of one window, with words.
        bounds: The part of the audio that the window covers.
        threshold_s: Silence longer than this is skipped, in seconds.

    Returns:
        The mel frame to decode again from; None if the window is right.
    """
    first = _first_with_words(drafts)
    if first is None or not _is_anomaly(first):
        return None
    gap_s = first.start_s - bounds.start_s
    if gap_s <= threshold_s:
        return None
    return bounds.start_frame + round(gap_s * FRAMES_PER_SECOND)


def drop_hallucinations(
    drafts: list[Draft],
    *,
    bounds: WindowBounds,
    threshold_s: float,
    last_speech_s: float,
    content_frames: int,
) -> int | None:
    """Remove a segment that is probably invented, between silences, and all segments after it.

    Args:
        drafts: The segments of one window, with words; changed in place.
        bounds: The part of the audio that the window covers.
        threshold_s: Silence longer than this is skipped, in seconds.
        last_speech_s: End of the last word before the window, in seconds of the audio.
        content_frames: Mel frames of the whole audio.

    Returns:
        The mel frame to go on from; None if no segment was removed.
    """
    previous_end_s = last_speech_s
    for index, draft in enumerate(drafts):
        if not draft.words:
            continue
        following = _first_with_words(drafts[index + 1 :])
        if _is_anomaly(draft) and _is_isolated(
            draft, following, bounds=bounds, threshold_s=threshold_s, previous_end_s=previous_end_s
        ):
            del drafts[index:]
            if content_frames / FRAMES_PER_SECOND - draft.end_s < threshold_s:
                return content_frames
            return round(max(bounds.start_s + 1, draft.start_s) * FRAMES_PER_SECOND)
        previous_end_s = draft.end_s
    return None


def _first_with_words(drafts: list[Draft]) -> Draft | None:
    """Return the first segment that has words, if there is one."""
    return next((draft for draft in drafts if draft.words), None)


def _is_isolated(
    draft: Draft,
    following: Draft | None,
    *,
    bounds: WindowBounds,
    threshold_s: float,
    previous_end_s: float,
) -> bool:
    """Return whether silence, an anomaly or the window's edge is on both sides of a segment."""
    if following is not None and following.words:
        next_start_s = following.words[0].start_s
    else:
        next_start_s = bounds.start_s + bounds.duration_s
    silence_before = (
        draft.start_s - previous_end_s > threshold_s
        or draft.start_s < threshold_s
        or draft.start_s - bounds.start_s < _WINDOW_EDGE_S
    )
    silence_after = (
        next_start_s - draft.end_s > threshold_s
        or _is_anomaly(following)
        or bounds.window_end_s - draft.end_s < _WINDOW_EDGE_S
    )
    return silence_before and silence_after


def _is_anomaly(draft: Draft | None) -> bool:
    """Return whether most of a segment's first words are improbable, too short or too long."""
    if draft is None or not draft.words:
        return False
    words = [word for word in draft.words if word.word not in _PUNCTUATION][:_SCORED_WORDS]
    score = sum(_anomaly_score(word) for word in words)
    return score >= 3 or score + 0.01 >= len(words)  # noqa: PLR2004  numbers of openai/whisper


def _anomaly_score(word: Word) -> float:
    """Return how unusual a word is; the numbers are those of openai/whisper."""
    duration_s = word.end_s - word.start_s
    score = 1.0 if word.probability < 0.15 else 0.0  # noqa: PLR2004
    if duration_s < 0.133:  # noqa: PLR2004
        score += (0.133 - duration_s) * 15
    if duration_s > 2.0:  # noqa: PLR2004
        score += duration_s - 2.0
    return score
