"""Word times: what is done about words that look invented."""

from __future__ import annotations

import pytest

from fastwhisper.transcribing.words import (
    Draft,
    WindowBounds,
    drop_hallucinations,
    find_speech_end_s,
    skip_leading_silence,
)
from fastwhisper.values import Word

BOUNDS = WindowBounds(
    start_frame=1000, frames=3000, start_s=10.0, duration_s=30.0, window_end_s=40.0
)
CONTENT_FRAMES = 10_000


def make_draft(start_s: float, end_s: float, *, probability: float = 0.9) -> Draft:
    """Make a segment of four words of equal length."""
    step_s = (end_s - start_s) / 4
    words = tuple(
        Word(f" w{i}", start_s + i * step_s, start_s + (i + 1) * step_s, probability)
        for i in range(4)
    )
    return Draft(start_s, end_s, "".join(word.word for word in words), [1, 2, 3, 4], words)


def real(start_s: float, end_s: float) -> Draft:
    """Make a segment whose words are likely."""
    return make_draft(start_s, end_s)


def invented(start_s: float, end_s: float) -> Draft:
    """Make a segment whose words are unlikely."""
    return make_draft(start_s, end_s, probability=0.1)


def drop(
    drafts: list[Draft],
    *,
    last_speech_s: float = 10.0,
    content_frames: int = CONTENT_FRAMES,
) -> int | None:
    """Drop what looks invented between silences of more than 3 s."""
    return drop_hallucinations(
        drafts,
        bounds=BOUNDS,
        threshold_s=3.0,
        last_speech_s=last_speech_s,
        content_frames=content_frames,
    )


# The silence before the first words


def test_a_window_begins_again_after_leading_silence() -> None:
    """Unlikely first words after a long gap: the window moves to where they begin."""
    assert skip_leading_silence([invented(15.0, 17.0)], bounds=BOUNDS, threshold_s=3.0) == 1500


def test_likely_words_keep_their_silence() -> None:
    """A long gap before likely words moves nothing."""
    assert skip_leading_silence([real(15.0, 17.0)], bounds=BOUNDS, threshold_s=3.0) is None


def test_a_short_gap_is_no_silence() -> None:
    """Unlikely words after a short gap are kept."""
    assert skip_leading_silence([invented(12.0, 14.0)], bounds=BOUNDS, threshold_s=3.0) is None


def test_segments_without_words_are_passed_over() -> None:
    """The first words decide, not the first segment."""
    drafts = [Draft(10.0, 11.0, "", [], ()), invented(15.0, 17.0)]
    assert skip_leading_silence(drafts, bounds=BOUNDS, threshold_s=3.0) == 1500
    assert skip_leading_silence(drafts[:1], bounds=BOUNDS, threshold_s=3.0) is None


# Between silences


def test_what_is_invented_between_silences_is_dropped() -> None:
    """Decoding goes on where the dropped segment began, and nothing after it is kept."""
    drafts = [real(10.0, 12.0), invented(20.0, 22.0), real(30.0, 32.0)]
    kept = drafts[:1]
    assert drop(drafts) == 2000
    assert drafts == kept


def test_unlikely_words_amid_speech_are_kept() -> None:
    """Words that touch likely ones on a side are no hallucination."""
    drafts = [real(12.5, 20.0), invented(20.0, 22.0), real(22.5, 32.0)]
    kept = list(drafts)
    assert drop(drafts) is None
    assert drafts == kept


def test_two_hallucinations_vouch_for_each_other() -> None:
    """Unlikely words are followed by unlikely ones: that counts as silence."""
    drafts = [real(12.5, 14.0), invented(20.0, 22.0), invented(22.0, 24.0), real(24.0, 32.0)]
    assert drop(drafts) == 2000
    assert len(drafts) == 1


def test_the_window_goes_on_by_a_second_at_least() -> None:
    """A hallucination at the begin of the window can't hold it there."""
    drafts = [invented(10.2, 12.2), real(30.0, 32.0)]
    assert drop(drafts) == 1100


def test_a_hallucination_at_the_end_of_the_audio_ends_it() -> None:
    """Less silence than the threshold is left: there is nothing more to decode."""
    drafts = [real(10.0, 12.0), invented(36.0, 38.5)]
    assert drop(drafts, content_frames=4000) == 4000


def test_the_last_words_of_the_window_before_count() -> None:
    """Silence reaches back over the window's edge, but is none if speech does."""
    drafts = [invented(13.0, 15.0), real(30.0, 32.0)]
    assert drop(list(drafts), last_speech_s=9.0) == 1300
    assert drop(list(drafts), last_speech_s=12.0) is None


@pytest.mark.parametrize(
    ("start_s", "end_s", "kept"),
    [
        (20.0, 24.0, True),  # a second a word
        (20.0, 20.04, False),  # ten milliseconds a word
        (20.0, 40.0, False),  # five seconds a word
    ],
)
def test_words_of_odd_length_are_as_suspicious_as_unlikely_ones(
    start_s: float,
    end_s: float,
    kept: bool,  # noqa: FBT001  a parameter
) -> None:
    """Words that are too short or too long count like unlikely ones."""
    drafts = [real(10.0, 12.0), real(start_s, end_s)]
    assert (drop(drafts) is None) == kept


def test_punctuation_is_not_judged() -> None:
    """Punctuation does not count, as it has no length."""
    draft = real(20.0, 24.0)
    marks = tuple(Word(mark, 24.0, 24.0, 0.0) for mark in ".,?!")
    draft.words = (*(draft.words or ()), *marks)
    assert drop([real(10.0, 12.0), draft]) is None


# The end of speech


def test_speech_ends_with_the_last_word() -> None:
    """The last segment that has words decides."""
    silent = Draft(25.0, 30.0, "", [], ())
    assert find_speech_end_s([real(10.0, 12.0), silent]) == 12.0


def test_without_words_speech_ends_with_the_last_segment() -> None:
    """A segment's end stands in for a word's."""
    assert find_speech_end_s([Draft(10.0, 11.0, "a", [1], None)]) == 11.0


def test_no_segments_no_end() -> None:
    """An empty window says nothing about where speech ends."""
    assert find_speech_end_s([]) is None
