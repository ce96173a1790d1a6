"""Live text without a loop: agreement of hypotheses, chunks, and passes over real speech."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastwhisper
from fastwhisper import AudioError, LiveText, Word
from fastwhisper.transcribing import live
from fastwhisper.transcribing.agreement import Agreement, count_repeats
from fastwhisper.transcribing.live import LiveDecoder
from fastwhisper.transcribing.mel import compute_blocks_mel
from fastwhisper.transcribing.samples import never_cancel, read_blocks, read_chunk
from fastwhisper.transcribing.window_decoder import WindowDecoder, WindowRef
from fastwhisper.whisper.start import read_settings
from fastwhisper.whisper.tokenizer import read_tokenizer
from tests.helpers.audio import SAMPLE, SAMPLE_RATE, SENTENCE, make_music, noise, spell, tone
from tests.helpers.tones import silence

if TYPE_CHECKING:
    from pathlib import Path

    from fastwhisper.transcribing.words import Draft
    from fastwhisper.whisper.network import Whisper


def words(text: str, *, begin_s: float = 0.0) -> list[Word]:
    """Return words of 0.5 s each."""
    return [
        Word(f" {word}", begin_s + n / 2, begin_s + (n + 1) / 2, 1.0)
        for n, word in enumerate(text.split())
    ]


def said(found: list[Word]) -> str:
    """Return the text of words."""
    return "".join(word.word for word in found).strip()


def test_what_two_hypotheses_begin_with_is_final() -> None:
    """Case and punctuation make no difference; the newer text counts."""
    agreement = Agreement()
    assert agreement.add(words("So in")) == []
    assert said(agreement.add(words("so in, college I"))) == "so in,"
    assert said(list(agreement.tail)) == "college I"
    assert agreement.end_s == 1.0
    assert said(agreement.add(words("college, I was", begin_s=1.0))) == "college, I"


def test_the_last_word_before_two_hypotheses_part_is_not_final() -> None:
    """What follows it is heard in two ways, and so may it be."""
    agreement = Agreement()
    agreement.add(words("I would have it all"))
    assert said(agreement.add(words("I would, uh, I"))) == "I"
    assert said(agreement.add(words("will have", begin_s=0.5))) == ""
    assert said(agreement.add(words("will have it", begin_s=0.5))) == "will have"


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("", 0),
        ("no no no", 0),
        ("he said no no no no", 3),
        ("Thank you. thank you, Thank you. Thank you.", 6),
        ("we are we are we are here", 0),
        ("a b c a b c a b c a b c", 9),
    ],
)
def test_counts_what_only_repeats(text: str, repeats: int) -> None:
    """From four times on, whatever its case and punctuation."""
    assert count_repeats(words(text)) == repeats


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=8),
            st.floats(0, 5),
            st.integers(0, 3),
        ),
        max_size=12,
    )
)
def test_final_words_only_grow_and_their_times_too(
    steps: list[tuple[list[str], float, int]],
) -> None:
    """Whatever hypotheses come."""
    agreement = Agreement()
    end_s = 0.0
    for texts, begin_s, accepted in steps:
        final = agreement.add(words(" ".join(texts), begin_s=begin_s)) + agreement.accept(accepted)
        assert agreement.end_s >= end_s
        assert all(word.end_s <= agreement.end_s for word in final)
        end_s = agreement.end_s


def test_chunks_of_bytes_and_of_floats_are_the_same_sound() -> None:
    """16-bit little-endian integers, and float32 of NumPy and MLX."""
    integers = np.array([0, 1, -1, 32767, -32768], "<i2")
    expected = integers.astype(np.float32) / 32768
    for chunk in (integers.tobytes(), expected, mx.array(expected)):
        assert read_chunk(chunk).tolist() == expected.tolist()
        assert read_chunk(chunk).dtype == np.float32


@pytest.mark.parametrize(
    "chunk", [np.zeros(3), np.array([np.nan], np.float32), np.zeros((2, 2), np.float32), "text"]
)
def test_other_chunks_are_refused(chunk: object) -> None:
    """With an error that says what to give."""
    with pytest.raises(AudioError, match="give"):
        read_chunk(chunk)


@pytest.fixture(scope="module")
def model(tiny_en_ct2: Path) -> Whisper:
    """Return the real tiny.en."""
    return anyio.run(fastwhisper.load, tiny_en_ct2).model


def make_decoder(
    model: Whisper, *, temperature: tuple[float, ...] = (0.0, 0.4), **options: float
) -> LiveDecoder:
    """Make a decoder with the settings of `listen`."""
    settings = read_settings(
        model.dims.n_vocab, model.dims.n_text_ctx, word_timestamps=True, temperature=temperature
    )
    times = {"min_chunk_s": 1.0, "pause_s": 1.0, **options}
    return LiveDecoder(model, settings, fp16=False, check=never_cancel, **times)


def feed(
    decoder: LiveDecoder, samples: np.ndarray, *, is_last: bool = True, size: int = 1600
) -> list[LiveText]:
    """Feed samples in chunks, decode when a pass is due, and check the rules."""
    found: list[LiveText] = []
    chunks = range(0, len(samples), size)
    for start in chunks:
        decoder.push(samples[start : start + size])
        found += decoder.decode(is_last=is_last and start == chunks[-1])
    end_s = 0.0
    for text in found:
        assert end_s <= text.start_s <= text.end_s or not text.text
        end_s = text.end_s if text.is_final else end_s
    return found


def read_sample() -> np.ndarray:
    """Read the recorded sentences. Shape (samples,), float32."""
    return np.concatenate(list(read_blocks(SAMPLE, check=never_cancel)))


def test_what_is_known_is_not_decoded_again(model: Whisper) -> None:
    """The result goes on behind it, and is the rest of what is decoded without it."""
    mel = compute_blocks_mel(iter([read_sample()]), n_mels=model.dims.n_mels)
    settings = read_settings(model.dims.n_vocab, model.dims.n_text_ctx, temperature=0)
    decoder = WindowDecoder(model, settings, fp16=False, check=never_cancel)
    decoder.begin(mel)
    audio = decoder.read(decoder.encode([WindowRef(mel, 0, mel.content_frames)]))
    [whole] = decoder.decode(audio, [[]], start_frames=[0])
    for count in (2, 4, 9, len(whole.tokens)):
        known = whole.tokens[:count]
        [rest] = decoder.decode(audio, [[]], start_frames=[0], known=known)
        assert [*known, *rest.tokens] == whole.tokens


@pytest.mark.slow
def test_a_tentative_pass_does_not_write_on_and_on(model: Whisper) -> None:
    """A text that never ends is cut by its sound. The last pass hears it again, to its end."""
    end = read_tokenizer(model.dims.n_vocab, language="en", task="transcribe").eot
    settings = read_settings(
        model.dims.n_vocab,
        model.dims.n_text_ctx,
        word_timestamps=True,
        temperature=0,
        suppress_tokens=[end],
    )
    tokens = [0]

    def check() -> None:
        tokens[0] += 1

    decoder = LiveDecoder(model, settings, fp16=False, min_chunk_s=1, pause_s=1, check=check)
    decoder.push(np.concatenate([read_sample()[: 2 * SAMPLE_RATE], silence(0.6)]))
    decoder.decode(is_last=False)
    assert decoder.passes == 1
    assert 50 < tokens[0] < 60  # 2.6 s
    decoder.decode(is_last=True)
    assert decoder.passes == 2
    assert tokens[0] > 50 + 224


def test_recorded_speech_becomes_its_text(model: Whisper) -> None:
    """Every word once, in order, at times inside of the audio; tentative text comes before."""
    samples = read_sample()
    decoder = make_decoder(model)
    found = feed(decoder, samples)
    assert spell("".join(text.text for text in found if text.is_final)) == spell(SENTENCE)
    assert not found[0].is_final
    assert found[-1].is_final
    assert found[-1].end_s <= len(samples) / SAMPLE_RATE + 0.1
    assert 3 <= decoder.passes <= 10


@pytest.mark.slow
def test_times_count_from_the_first_sample(model: Whisper) -> None:
    """A long silence before speech moves the times and costs no pass."""
    decoder = make_decoder(model)
    assert feed(decoder, silence(65), is_last=False) == []
    assert decoder.passes == 0
    found = feed(decoder, read_sample())
    first = next(text for text in found if text.is_final)
    assert first.start_s == pytest.approx(65.0, abs=0.6)


@pytest.mark.slow
def test_a_pause_makes_everything_final(model: Whisper) -> None:
    """Nothing stays tentative, and the silence after it costs no more passes."""
    decoder = make_decoder(model)
    found = feed(decoder, np.concatenate([read_sample(), silence(3)]), is_last=False)
    assert found[-1].is_final
    passes = decoder.passes
    assert feed(decoder, silence(20), is_last=False) == []
    assert decoder.passes == passes


@pytest.mark.parametrize(
    "sound",
    [
        silence(20),
        noise(20),
        0.001 * noise(20),
        tone(20),
        tone(5, hertz=220) + tone(5, hertz=330),
        0.1 * make_music(60 * SAMPLE_RATE),
    ],
    ids=["silence", "noise", "faint noise", "tone", "chord", "music"],
)
def test_what_is_no_speech_has_no_text_and_no_pass(model: Whisper, sound: np.ndarray) -> None:
    """The detector hears nobody."""
    decoder = make_decoder(model)
    assert feed(decoder, sound.astype(np.float32)) == []
    assert decoder.passes == 0


@pytest.mark.parametrize("size", [1, 128, 160, 511])
def test_short_chunks_are_heard_as_loud_as_long_ones(model: Whisper, size: int) -> None:
    """A chunk may be shorter than a frame of the detector: faint noise stays no speech."""
    decoder = make_decoder(model)
    assert feed(decoder, (0.01 * noise(3)).astype(np.float32), size=size) == []
    assert decoder.passes == 0


def test_a_cough_is_heard_once(model: Whisper) -> None:
    """What seems to be speech and has no words keeps nobody busy, and is dropped as silence."""
    decoder = make_decoder(model)
    decoder._align = lambda *_: []  # type: ignore[method-assign]
    assert feed(decoder, read_sample()[:SAMPLE_RATE], is_last=False) == []
    feed(decoder, silence(1.2), is_last=False)
    passes = decoder.passes
    assert passes
    assert not decoder.is_due(is_last=False)
    feed(decoder, silence(20), is_last=False)
    assert decoder.passes == passes
    assert decoder.room > 25 * SAMPLE_RATE


@pytest.mark.slow
def test_speech_without_a_pause_is_cut_at_thirty_seconds(model: Whisper) -> None:
    """The buffer never holds more; the text goes on after each cut."""
    sentence = read_sample()[: 8 * SAMPLE_RATE]
    samples = np.concatenate([sentence] * 8)
    # What is said again and again passes for a loop, and is sampled: never twice alike.
    decoder = make_decoder(model, temperature=(0.0,), pause_s=30)
    found: list[LiveText] = []
    start = 0
    while start < len(samples):
        count = min(decoder.room, len(samples) - start)
        decoder.push(samples[start : start + count])
        start += count
        found += decoder.decode(is_last=start == len(samples))
        assert decoder.room > 0
    text = spell("".join(part.text for part in found if part.is_final))
    assert text.count("weather") == pytest.approx(8, abs=1)
    assert decoder.end == len(samples)


@pytest.mark.parametrize(("heard", "expected"), [("So we go", "So we go"), ("", "no")])
def test_a_loop_at_the_end_is_not_final(model: Whisper, heard: str, expected: str) -> None:
    """The text of the pass before is, or the loop's words once if there is none."""
    decoder = make_decoder(model)
    texts = iter([words(heard)] * bool(heard) + [words("no no no no no no")])
    decoder._align = lambda *_: next(texts)  # type: ignore[method-assign]
    samples = read_sample()[: 2 * SAMPLE_RATE]
    decoder.push(samples)
    found = decoder.decode(is_last=False) if heard else []
    decoder.push(samples[: SAMPLE_RATE // 2])
    found += decoder.decode(is_last=True)
    assert said([Word(t.text, t.start_s, t.end_s, 1.0) for t in found if t.is_final]) == expected


@pytest.mark.parametrize("before", [[], ["So we go"]], ids=["at first", "after a pause"])
def test_a_pass_that_heard_a_loop_is_no_pass(model: Whisper, before: list[str]) -> None:
    """The pause decodes the same speech again, and has its words, with or without earlier text."""
    decoder = make_decoder(model)
    texts = iter([*map(words, before), words("no no no no no"), words("no no no no not now")])
    decoder._align = lambda *_: next(texts)  # type: ignore[method-assign]
    speech = read_sample()[: round(1.4 * SAMPLE_RATE)]
    if before:
        decoder.push(np.concatenate([speech, silence(1.2)]))
        assert "".join(text.text for text in decoder.decode(is_last=False)) == " So we go"
    decoder.push(np.concatenate([speech, silence(0.3)]))
    assert decoder.decode(is_last=False) == []
    decoder.push(silence(1))
    found = decoder.decode(is_last=False)
    assert [(text.text, text.is_final) for text in found] == [(" no no no no not now", True)]
    assert next(texts, None) is None


def test_a_pass_needs_new_sound(model: Whisper) -> None:
    """Also where `min_chunk_s` is less than a sample."""
    decoder = make_decoder(model, min_chunk_s=1e-5)
    decoder.push(read_sample()[: 2 * SAMPLE_RATE])
    decoder.decode(is_last=False)
    assert decoder.passes == 1
    assert not decoder.is_due(is_last=False)


@pytest.mark.parametrize(
    ("heard", "expected"),
    [([" I'm", " here"], ["'m", " here"]), ([" I,", " am"], [" am"]), ([" I", " am"], [" am"])],
)
def test_an_ending_of_the_known_text_is_new(
    model: Whisper, monkeypatch: pytest.MonkeyPatch, heard: list[str], expected: list[str]
) -> None:
    """A comma there is not: it comes and goes from pass to pass."""

    def add_words(drafts: list[Draft], **_: object) -> None:
        drafts[0].words = tuple(Word(word, n, n + 1, 1.0) for n, word in enumerate(heard))

    monkeypatch.setattr(live, "add_words", add_words)
    decoder = make_decoder(model)
    decoder._decoder.language = "en"
    known = decoder._decoder.tokenizer.encode(" I")
    new = decoder._align(known, [], [], 300)
    assert [word.word for word in new] == expected


def test_a_pass_that_is_cancelled_loses_nothing(model: Whisper) -> None:
    """The next call decodes the same sound again."""
    settings = read_settings(model.dims.n_vocab, model.dims.n_text_ctx, word_timestamps=True)
    stops = [0]

    def check() -> None:
        stops[0] += 1
        if stops[0] in {1, 9, 25}:
            raise InterruptedError

    decoder = LiveDecoder(model, settings, fp16=False, min_chunk_s=1, pause_s=1, check=check)
    decoder.push(read_sample())
    for _ in range(3):
        with pytest.raises(InterruptedError):
            decoder.decode(is_last=True)
    found = decoder.decode(is_last=True)
    assert all(text.is_final for text in found)
    assert spell("".join(text.text for text in found)) == spell(SENTENCE)
