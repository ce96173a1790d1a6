"""Times of a window's segments and words: bounded by the audio, in order, each with a length."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from fastwhisper.transcribing.times import bound_times, move_segment
from fastwhisper.values import Segment, Word

if TYPE_CHECKING:
    from collections.abc import Sequence

Spans = list[tuple[float, float]]


def make_segment(
    start_s: float, end_s: float, text: str = " a", words: Sequence[tuple[float, float]] | None = ()
) -> Segment:
    """Make a segment of which only times, text and words are of interest."""
    return Segment(
        start_s=start_s,
        end_s=end_s,
        text=text,
        tokens=(1,) if text else (),
        avg_logprob=0.0,
        no_speech_prob=0.0,
        compression_ratio=1.0,
        temperature=0.0,
        words=None if words is None else tuple(Word(" a", *span, 0.5) for span in words),
        seek_frames=0,
    )


def spans_of(segments: Sequence[Segment]) -> Spans:
    """Return the times of segments."""
    return [(segment.start_s, segment.end_s) for segment in segments]


def words_of(segments: Sequence[Segment]) -> Spans:
    """Return the times of all words."""
    return [(word.start_s, word.end_s) for segment in segments for word in segment.words or ()]


def bound_spans(spans: Spans, *, end_s: float) -> Spans:
    """Bound segments with text in a window that begins at 0 and is the last one."""
    segments = [make_segment(*span, words=None) for span in spans]
    return spans_of(bound_times(segments, begin_s=0, end_s=end_s, next_s=end_s))


def bound_words(spans: Spans, *, end_s: float, next_s: float | None = None) -> Spans:
    """Bound the words of one segment of a window that begins at 0."""
    segment = make_segment(spans[0][0], spans[-1][1], words=spans)
    found = bound_times(
        [segment], begin_s=0, end_s=end_s, next_s=end_s if next_s is None else next_s
    )
    assert spans_of(found) == [(words_of(found)[0][0], words_of(found)[-1][1])]
    return words_of(found)


def test_segment_ends_with_the_audio() -> None:
    """Only the end changes, to whole milliseconds."""
    assert bound_spans([(0.0, 24.74)], end_s=7.7) == [(0.0, 7.7)]
    assert bound_spans([(0.0, 1.0), (5.2, 9.0)], end_s=7.7006) == [(0.0, 1.0), (5.2, 7.7)]


def test_text_behind_the_end_is_the_last_of_the_audio() -> None:
    """It gets a shortest length, and what is before it ends before it."""
    found = bound_spans([(0.0, 8.0), (8.0, 9.0), (9.0, 12.0)], end_s=7.7)
    assert found == [(0.0, 7.66), (7.66, 7.68), (7.68, 7.7)]


def test_text_has_room_in_the_shortest_audio() -> None:
    """In 10 ms the shortest length is shorter."""
    found = bound_spans([(n / 10, n / 10 + 0.1) for n in range(4)], end_s=0.01)
    assert found == [(0.0, 0.0025), (0.0025, 0.005), (0.005, 0.0075), (0.0075, 0.01)]


def test_segment_without_text_behind_the_end_is_left_out() -> None:
    """One that begins before the end is kept, and ends with the audio."""
    segments = [make_segment(6, 9, ""), make_segment(7, 7, ""), make_segment(8, 9, "")]
    found = bound_times(segments, begin_s=0, end_s=7, next_s=7)
    assert spans_of(found) == [(6, 7)]


def test_word_without_a_length_gets_one() -> None:
    """It has 0.02 s, but not more than there is up to the next word."""
    found = bound_words([(1.0, 1.0), (1.01, 1.5), (1.5, 1.5), (2.0, 2.4)], end_s=9)
    assert found == [(1.0, 1.01), (1.01, 1.5), (1.5, 1.52), (2.0, 2.4)]


def test_words_at_one_time_follow_one_another() -> None:
    """The word that begins with them and has a length gives them room."""
    found = bound_words([(1.0, 1.0), (1.0, 1.0), (1.0, 1.5), (1.5, 2.0)], end_s=9)
    assert found == [(1.0, 1.02), (1.02, 1.04), (1.04, 1.5), (1.5, 2.0)]


def test_word_at_the_end_ends_there() -> None:
    """It takes its time from the word before it."""
    assert bound_words([(1.0, 2.0), (2.0, 2.0)], end_s=2.0) == [(1.0, 1.98), (1.98, 2.0)]
    assert bound_words([(1.0, 2.5), (3.0, 3.2)], end_s=2.0) == [(1.0, 1.98), (1.98, 2.0)]


def test_last_word_ends_before_the_next_window() -> None:
    """The next window begins where the last word of this one ends."""
    found = bound_words([(1.0, 2.0), (2.0, 2.0)], end_s=9, next_s=2.0)
    assert found == [(1.0, 1.98), (1.98, 2.0)]


def test_segment_has_the_edges_of_its_words() -> None:
    """A last word that becomes longer does not reach into the next segment."""
    segments = [
        make_segment(0.0, 1.0, words=[(0.0, 1.0), (1.0, 1.0)]),
        make_segment(1.0, 2.0, words=[(1.0, 2.0)]),
    ]
    found = bound_times(segments, begin_s=0, end_s=9, next_s=9)
    assert spans_of(found) == [(0.0, 1.02), (1.02, 2.0)]
    assert words_of(found) == [(0.0, 1.0), (1.0, 1.02), (1.02, 2.0)]


def test_times_inside_stay_as_they_are() -> None:
    """To the last bit, whatever their rounding."""
    segments = [
        make_segment(0.1 + 0.2, 1.1 * 1.1, words=[(0.1 + 0.2, 0.7), (0.7, 1.1 * 1.1)]),
        make_segment(1.1 * 1.1, 1.1 * 1.1, "", words=()),
        make_segment(1.1 * 1.1, 3.3 * 1.1, words=None),
    ]
    assert bound_times(segments, begin_s=0, end_s=30, next_s=3) == segments


times = st.floats(0, 40).map(lambda time_s: round(time_s, 2))
spans = st.tuples(times, times)
segments = st.lists(
    st.builds(
        lambda span, text, words: make_segment(
            span[0], span[1], text, sorted(words) if text else ()
        ),
        spans,
        st.sampled_from(["", " a"]),
        st.lists(spans, max_size=8),
    ),
    max_size=12,
)


@given(segments, st.integers(1, 4000), st.integers(0, 3999), st.integers(0, 5000))
def test_whatever_a_network_says(found: list[Segment], frames: int, first: int, then: int) -> None:
    """No text is lost, every time is inside, and nothing overlaps or has no length."""
    begin_s, end_s = min(first, frames - 1) / 100, frames / 100
    bounded = bound_times(found, begin_s=begin_s, end_s=end_s, next_s=then / 100)
    assert [s.tokens for s in bounded if s.text] == [s.tokens for s in found if s.text]
    assert len(words_of(bounded)) == len(words_of(found))
    assert all(segment.end_s <= end_s for segment in bounded)
    for all_spans in (spans_of([s for s in bounded if s.text]), words_of(bounded)):
        assert all(0 <= start_s < stop_s <= end_s for start_s, stop_s in all_spans)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(all_spans))


def test_moved_segment_has_the_times_of_the_file() -> None:
    """Times are whole milliseconds, and frames too."""
    moved = move_segment(make_segment(0.5, 1.5, words=[(0.5, 0.7)]), 12.34567)
    assert spans_of([moved]) == [(12.846, 13.846)]
    assert words_of([moved]) == [(12.846, 13.046)]
    assert moved.seek_frames == 1235
