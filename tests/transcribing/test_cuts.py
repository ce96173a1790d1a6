"""Cutting at silences: where cuts begin and end, block by block, and what is kept meanwhile."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastwhisper.transcribing import cuts as cuts_module
from fastwhisper.transcribing.cuts import MAX_SAMPLES, Cut, cut_at_silences
from fastwhisper.transcribing.samples import load_audio, never_cancel
from tests.helpers.audio import SAMPLE, SAMPLE_RATE, tone
from tests.helpers.tones import ToneDetector, alternate, silence

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def tones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tones be speech, so that a test says exactly where speech is."""
    monkeypatch.setattr(cuts_module, "VoiceDetector", ToneDetector)


WHITE_NOISE = np.random.default_rng(3).normal(0, 0.05, 33 * SAMPLE_RATE)


def cut(*blocks: np.ndarray, skip: bool = False) -> list[Cut]:
    """Return all cuts of an audio that comes in blocks."""
    blocks = tuple(block.astype(np.float32) for block in blocks)
    return list(cut_at_silences(iter(blocks), skip_silence=skip, check=never_cancel))


def spans(found: list[Cut]) -> list[tuple[float, float, bool]]:
    """Return begin and end in seconds, and whether there may be speech, of cuts."""
    return [
        (
            round(each.start_sample / SAMPLE_RATE, 1),
            round((each.start_sample + len(each.samples)) / SAMPLE_RATE, 1),
            each.has_speech,
        )
        for each in found
    ]


def check_against(found: list[Cut], samples: np.ndarray, *, covers: bool) -> None:
    """Check that cuts hold the audio's samples, in order, and all of them if `covers`."""
    end = 0
    for each in found:
        assert 0 < len(each.samples) <= MAX_SAMPLES
        assert each.samples.dtype == np.float32
        if covers:
            assert each.start_sample == end
        assert each.start_sample >= end
        end = each.start_sample + len(each.samples)
        np.testing.assert_array_equal(each.samples, samples[each.start_sample : end])
    assert end <= len(samples)
    if covers:
        assert end == len(samples)


def test_full_cut_ends_in_the_middle_of_a_pause(tones: None) -> None:
    """Speech of 25 s, a pause of 0.5 s and more speech is cut in the pause."""
    found = cut(alternate(0, 25, 0.5, 20))
    assert [each.start_sample for each in found] == [0, pytest.approx(25.25 * SAMPLE_RATE, abs=600)]


def test_full_cut_ends_in_the_longest_pause(tones: None) -> None:
    """Of several pauses in the last 10 s the longest is taken, and none before."""
    found = cut(alternate(0, 15, 1.5, 5, 0.3, 2, 0.5, 2, 0.3, 20))
    assert spans(found)[0][1] == pytest.approx(24.05, abs=0.1)


def test_of_long_pauses_the_last_is_taken(tones: None) -> None:
    """Pauses of 1.1 s and of 1.5 s are equally good: the fuller cut wins."""
    found = cut(alternate(0, 20.5, 1.5, 5, 1.1, 20))
    assert spans(found)[0][1] == pytest.approx(27.4, abs=0.1)


def test_pause_at_30_s_is_seen(tones: None) -> None:
    """A pause of which only the begin is in the first 30 s is used."""
    found = cut(alternate(0, 21, 0.3, 8.5, 1, 20))
    assert spans(found)[0][1] == pytest.approx(30.0, abs=0.1)


@pytest.mark.parametrize("gap_s", [0.15, 0.2, 0.3])
def test_speech_without_pause_is_cut_where_it_is_quietest(
    monkeypatch: pytest.MonkeyPatch, gap_s: float
) -> None:
    """A gap that the detector does not see is found by its level."""

    class Deaf(ToneDetector):
        def push(self, samples: np.ndarray) -> np.ndarray:
            return np.ones_like(super().push(samples))

    monkeypatch.setattr(cuts_module, "VoiceDetector", Deaf)
    found = cut(alternate(0, 23, gap_s, 20))
    assert 23 * SAMPLE_RATE <= found[1].start_sample <= (23 + gap_s) * SAMPLE_RATE


def test_speech_without_any_gap_makes_full_cuts(tones: None) -> None:
    """Nothing is quieter than the rest: cuts stay nearly full."""
    found = cut(tone(95))
    assert len(found) == 4
    assert all(len(each.samples) > 29 * SAMPLE_RATE for each in found[:-1])


def test_silence_is_a_cut_without_speech(tones: None) -> None:
    """Silence of more than 2 s is not decoded, but for 0.4 s beside speech."""
    found = cut(alternate(0, 5, 40, 5))
    assert spans(found) == [
        (0.0, 5.4, True),
        (5.4, 35.4, False),
        (35.4, 44.6, False),
        (44.6, 50.0, True),
    ]


def test_short_silence_before_speech_stays_with_it(tones: None) -> None:
    """Silence of 2 s at the begin costs nothing, so it is no cut."""
    assert spans(cut(alternate(2, 5))) == [(0.0, 7.0, True)]


def test_uncertain_silence_is_decoded(tones: None) -> None:
    """With a probability of 0.2, or one frame of it, a cut may have speech."""
    click = np.concatenate([silence(4), 0.4 * tone(0.01), silence(4)])
    assert [each.has_speech for each in cut(0.4 * tone(8))] == [True]
    assert [each.has_speech for each in cut(click)] == [False, True]
    assert [each.has_speech for each in cut(0.2 * tone(8))] == [False]


def test_skipping_leaves_out_long_silence(tones: None) -> None:
    """Only speech is left, with 0.4 s around it."""
    found = cut(alternate(3, 5, 4, 6, 10), skip=True)
    assert spans(found) == [(2.6, 8.4, True), (11.6, 18.4, True)]


def test_skipping_keeps_short_pauses(tones: None) -> None:
    """Pauses of up to 2 s stay inside a cut, so that its times are the file's."""
    found = cut(alternate(0.2, 5, 1.9, 6, 1.9, 3, 0.2), skip=True)
    assert spans(found) == [(0.0, 18.2, True)]


def test_skipping_cuts_long_speech_in_a_pause(tones: None) -> None:
    """Speech of more than 30 s is cut in its pauses, and nothing of it is lost."""
    found = cut(alternate(5, 24, 0.5, 24, 0.5, 9, 9), skip=True)
    assert spans(found) == [(4.6, 29.2, True), (29.2, 53.7, True), (53.7, 63.4, True)]


@pytest.mark.parametrize("spoken_s", [29.2, 29.5, 29.7, 29.99, 30.0, 30.2, 30.8])
@pytest.mark.parametrize("skip", [False, True])
def test_speech_of_about_30_s_is_kept(tones: None, skip: bool, spoken_s: float) -> None:  # noqa: FBT001  a parameter
    """Nothing is lost where speech and its margins just fit, or just don't."""
    samples = alternate(3, spoken_s, 3)
    found = cut(samples, skip=skip)
    check_against(found, samples, covers=not skip)
    heard = np.concatenate([each.samples for each in found if each.has_speech])
    assert np.count_nonzero(heard) == np.count_nonzero(samples)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 400), max_size=8),
    st.lists(st.integers(0, 100 * SAMPLE_RATE), max_size=8),
    st.booleans(),
)
def test_nothing_of_speech_is_lost(
    tenths: list[int],
    splits: list[int],
    skip: bool,  # noqa: FBT001  hypothesis gives it
) -> None:
    """Cuts are the same however the audio is split, and hold all speech of it."""
    samples = alternate(*(each / 10 for each in tenths), 0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts_module, "VoiceDetector", ToneDetector)
        found = cut(*np.split(samples, sorted(splits)), skip=skip)
        whole = cut(samples, skip=skip)
    assert spans(found) == spans(whole)
    check_against(found, samples, covers=not skip)
    heard = [each.samples for each in found if each.has_speech]
    assert np.count_nonzero(np.concatenate([*heard, silence(0)])) == np.count_nonzero(samples)
    if skip:
        assert all(each.has_speech for each in found)


@pytest.mark.parametrize("skip", [False, True])
def test_cuts_come_as_early_as_they_can(tones: None, skip: bool) -> None:  # noqa: FBT001  a parameter
    """A cut waits for no more than the pause after it, or half a second after 30 s."""
    read = 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal read
        for block in np.split(alternate(0, 10, 40, 40), range(0, 90 * SAMPLE_RATE, 4000)):
            read += len(block)
            yield block

    found = cut_at_silences(blocks(), skip_silence=skip, check=never_cancel)
    next(found)
    assert read <= (12.5 if skip else 30.5) * SAMPLE_RATE


def test_recorded_sentences_are_cut_between_them() -> None:
    """The real detector: sentences in noise are cut in the pauses between them."""
    sentence = load_audio(SAMPLE)
    gap = silence(0.6)
    samples = np.concatenate([sentence, gap] * 10)
    samples += 0.01 * np.random.default_rng(3).normal(size=len(samples)).astype(np.float32)
    found = cut(samples)
    check_against(found, samples, covers=True)
    assert 3 < len(found) <= 5
    period = len(sentence) + len(gap)
    for each in found[1:]:
        # The recording itself ends with 0.4 s of silence, and has pauses of 0.4 s.
        assert each.start_sample % period > len(sentence) - 0.5 * SAMPLE_RATE


def test_recorded_sentence_is_found_in_silence() -> None:
    """The real detector: of a minute with one sentence, the sentence is left."""
    sentence = load_audio(SAMPLE)
    samples = np.concatenate([silence(31.7), sentence, silence(20)])
    (found,) = cut(samples, skip=True)
    assert found.start_sample <= 31.7 * SAMPLE_RATE
    assert found.start_sample + len(found.samples) >= 31.7 * SAMPLE_RATE + len(sentence) - 8000
    assert len(found.samples) < len(sentence) + SAMPLE_RATE


@pytest.mark.parametrize(
    "samples",
    [silence(33), WHITE_NOISE, np.full(33 * SAMPLE_RATE, 1e30), np.ones(1)],
    ids=["zeros", "noise", "huge", "one sample"],
)
def test_audio_without_speech_is_not_decoded(samples: np.ndarray) -> None:
    """Silence, noise and samples out of range are covered without speech, or skipped."""
    found = cut(samples)
    check_against(found, samples.astype(np.float32), covers=True)
    assert not any(each.has_speech for each in found)
    assert cut(samples, skip=True) == []


def test_no_samples_make_no_cut() -> None:
    """No block, and blocks without samples, end at once."""
    assert cut() == []
    assert cut(silence(0), silence(0), skip=True) == []


@pytest.mark.parametrize("skip", [False, True])
def test_exception_of_check_ends_one_next(tones: None, skip: bool) -> None:  # noqa: FBT001  a parameter
    """After a cancelled `next` the same iterator gives the same cuts."""
    samples = alternate(1, 25, 0.5, 20, 5, 10)
    expected = cut(samples, skip=skip)
    calls = itertools.count()

    def check() -> None:
        if next(calls) % 2 == 0:
            raise KeyboardInterrupt

    cutter = cut_at_silences(iter(np.split(samples, 30)), skip_silence=skip, check=check)
    found: list[Cut] = []
    while True:
        try:
            found.append(next(cutter))
        except KeyboardInterrupt:
            continue
        except StopIteration:
            break
    assert spans(found) == spans(expected)
    assert next(calls) >= 30


def test_long_block_is_checked_every_30_s(tones: None) -> None:
    """A whole recording as one block can be cancelled too."""
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1

    list(cut_at_silences(iter([tone(300)]), skip_silence=False, check=check))
    assert calls >= 10


@pytest.mark.parametrize("skip", [False, True])
def test_memory_does_not_grow(tones: None, skip: bool) -> None:  # noqa: FBT001  a parameter
    """Three hours take no more memory than three minutes."""
    block = alternate(0.1, 20, 0.4, 5, 4.5)

    def measure(minutes: int) -> int:
        cutter = cut_at_silences(
            itertools.repeat(block, 2 * minutes), skip_silence=skip, check=never_cancel
        )
        tracemalloc.start()
        assert sum(1 for _ in cutter) >= 2 * minutes - 1
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    assert measure(180) < measure(3) + 1_000_000


@pytest.mark.parametrize("level_db", [-40, -50, -65])
def test_quiet_speech_is_speech(level_db: float) -> None:
    """A sentence in 16 bits is found at any level, and the noise of a quiet room is not speech."""
    samples = load_audio(SAMPLE)
    loud = cut(samples, skip=True)
    quiet = cut(np.round(samples * 10 ** (level_db / 20) * 2**15) / 2**15, skip=True)
    assert len(quiet) == len(loud)
    for ours, theirs in zip(quiet, loud, strict=True):
        assert ours.start_sample == pytest.approx(theirs.start_sample, abs=SAMPLE_RATE)
        assert len(ours.samples) > 0.8 * len(theirs.samples)
    assert cut(10 ** (level_db / 20) * WHITE_NOISE, skip=True) == []
