"""Times of a window's segments and words: moved into the file, inside of the audio, in order.

A network may place text behind the end of the audio, and its words may have no length.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastwhisper.values import Segment, Word

    Span: TypeAlias = tuple[float, float]
    """Start and end in seconds."""

__all__ = ["bound_times", "move_segment"]

_SHORTEST_S: Final = 0.02
"""Length of what has none: the step of the network's times."""


def move_segment(segment: Segment, offset_s: float) -> Segment:
    """Return a segment of a part at its times in the file.

    Args:
        segment: Its times are seconds from the begin of the part.
        offset_s: When the part begins in the file, in seconds.
    """

    def move(time_s: float) -> float:
        return round(offset_s + time_s, 3)

    words = segment.words and tuple(
        replace(word, start_s=move(word.start_s), end_s=move(word.end_s)) for word in segment.words
    )
    return replace(
        segment,
        start_s=move(segment.start_s),
        end_s=move(segment.end_s),
        words=words,
        seek_frames=segment.seek_frames + round(100 * offset_s),
    )


def bound_times(
    segments: Sequence[Segment], *, begin_s: float, end_s: float, next_s: float
) -> list[Segment]:
    """Bound the times of a window by the end of the audio, or of the clip or part.

    Segments with text, and words, have a length and follow one another. A text that is placed
    behind the end is the last of the audio: it gets a shortest length before the end. Times that
    are inside and in order stay as they are, to the last bit.

    Args:
        segments: The segments of a window in order.
        begin_s: Begin of the window in seconds.
        end_s: End of the audio, clip or part in seconds.
        next_s: Begin of the next window. What comes last, and has no length or is placed behind
            the end, ends there.

    Returns:
        The segments, without those that have no text and begin at or after the end.
    """
    # Whole milliseconds, as other times, and not after the end.
    end_s = math.floor(round(1000 * end_s, 6)) / 1000
    words = [word for segment in segments for word in segment.words or ()]
    word_spans = _fit(
        [(word.start_s, word.end_s) for word in words],
        begin_s=begin_s,
        end_s=end_s,
        next_s=next_s,
    )
    placed = iter(
        replace(word, start_s=start_s, end_s=stop_s)
        for word, (start_s, stop_s) in zip(words, word_spans, strict=True)
    )
    bounded: list[Segment] = []
    for segment in segments:
        if segment.text or segment.start_s < end_s:
            own = segment.words and tuple(next(placed) for _ in segment.words)
            bounded.append(_hold_words(segment, own) if own else segment)
    spans = iter(
        _fit(
            [(segment.start_s, segment.end_s) for segment in bounded if segment.text],
            begin_s=begin_s,
            end_s=end_s,
            next_s=next_s,
        )
    )
    for n, segment in enumerate(bounded):
        start_s, stop_s = next(spans) if segment.text else (segment.start_s, segment.end_s)
        bounded[n] = replace(segment, start_s=start_s, end_s=min(stop_s, end_s))
    return bounded


def _hold_words(segment: Segment, words: tuple[Word, ...]) -> Segment:
    """Return a segment with other times of its words, and the same edges as these."""
    if words == segment.words or not segment.words:
        return segment
    first, last = segment.words[0], segment.words[-1]
    start_s, end_s = segment.start_s, segment.end_s
    is_first = start_s == first.start_s
    return replace(
        segment,
        start_s=words[0].start_s if is_first else min(start_s, words[0].start_s),
        end_s=words[-1].end_s if end_s == last.end_s else max(end_s, words[-1].end_s),
        words=words,
    )


def _fit(spans: Sequence[Span], *, begin_s: float, end_s: float, next_s: float) -> list[Span]:
    """Return spans with a length each, in order, without overlap, and none after `end_s`."""
    if not spans:
        return []
    lowest_s = min(begin_s, spans[0][0])
    next_s = next_s if lowest_s < next_s < end_s else end_s
    # So short that all of them have room.
    share_s = math.floor(1e6 * (next_s - lowest_s) / len(spans)) / 1e6
    shortest_s = min(_SHORTEST_S, share_s)
    fitted: list[Span] = []
    cursor_s = lowest_s
    is_placed = False
    for n, (start_s, stop_s) in enumerate(spans):
        following_s = spans[n + 1][0] if n + 1 < len(spans) else math.inf
        start = max(start_s, cursor_s)
        # What begins here or before is moved behind it.
        room_s = following_s if following_s > start else math.inf
        stop = min(stop_s, room_s)
        if stop <= start:
            stop = min(round(start + shortest_s, 6), room_s)
            is_placed = True
        else:
            is_placed = start >= end_s
        fitted.append((start, stop))
        cursor_s = stop
    # A last one that is placed by us ends where the next window begins.
    limit_s = next_s if is_placed else end_s
    for n in reversed(range(len(fitted))):
        start, stop = fitted[n]
        stop = min(stop, limit_s)
        if stop <= start:
            start = round(stop - shortest_s, 6)
        fitted[n] = start, stop
        limit_s = start
    return fitted
