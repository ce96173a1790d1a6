"""Batches: a window's text alone and among others, order, prompts, times, cancels."""

from __future__ import annotations

import itertools
import zlib
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest

from fastwhisper.transcribing.batches import Batches, decode_together
from fastwhisper.transcribing.mel import WINDOW_FRAMES, compute_mel
from fastwhisper.transcribing.parts import Part
from fastwhisper.transcribing.samples import never_cancel
from fastwhisper.transcribing.window_decoder import WindowDecoder, WindowRef
from fastwhisper.whisper.attention import take_windows
from fastwhisper.whisper.decoding import Decoder
from fastwhisper.whisper.network import TextDecoder
from fastwhisper.whisper.options import DecodeSettings
from fastwhisper.whisper.tokenizer import read_tokenizer
from tests.helpers.audio import SAMPLE_RATE, noise
from tests.helpers.modules import load_by_hand
from tests.helpers.tiny_models import write_babbler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastwhisper.transcribing.windows import Window
    from fastwhisper.values import Segment
    from fastwhisper.whisper.network import Whisper

SHORT: dict[str, Any] = {
    "sample_len": 12,
    "temperature": 0.0,
    "compression_ratio_threshold": None,
    "no_speech_threshold": None,
}
"""Few tokens, and every window is used."""

PLAIN: dict[str, Any] = {**SHORT, "sample_len": 5, "without_timestamps": True}
"""Options with which a segment is a whole window."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Whisper]:
    """Load models that say words, by whether they are multilingual."""
    root = tmp_path_factory.mktemp("babblers")
    return {
        multilingual: load_by_hand(
            write_babbler(root / str(multilingual), multilingual=multilingual), "float32"
        )
        for multilingual in (False, True)
    }


@pytest.fixture(scope="module")
def model(models: dict[bool, Whisper]) -> Whisper:
    """Return the one that knows English only."""
    return models[False]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[list[WindowRef]]:
    """Let each window sound different, and return the batches that are encoded from now on.

    The encoder of a network of random weights makes nearly the same of all audio. This one makes
    a random vector of each mel.
    """
    seen: list[list[WindowRef]] = []

    def encode(decoder: WindowDecoder, windows: Sequence[WindowRef]) -> mx.array:
        decoder.check()
        seen.append(list(windows))
        features = mx.stack([listen(decoder.model, window) for window in windows])
        mx.eval(features)
        return features

    monkeypatch.setattr(WindowDecoder, "encode", encode)
    return seen


def listen(model: Whisper, window: WindowRef) -> mx.array:
    """Make features of a window that depend on its mel. Shape (1500, state), float32."""
    mel = np.array(window.audio.window(window.start_frame, window.frames))
    key = mx.random.key(zlib.crc32(mel.tobytes()))
    vector = 3 * mx.random.normal((1, model.dims.n_audio_state), key=key)
    # Word times need positions that differ.
    return vector + mx.random.normal((model.dims.n_audio_ctx, model.dims.n_audio_state), key=key)


NOISE = noise(100)


def make_part(number: int, seconds: float | None = None, *, has_speech: bool = True) -> Part:
    """Make a part of 2 to 5 s, or of a given length, at 50 s times its number."""
    seconds = 2.0 + number % 4 + number / 100 if seconds is None else seconds
    samples = NOISE[number * SAMPLE_RATE :][: round(seconds * SAMPLE_RATE)]
    return Part(compute_mel(samples, n_mels=80), 50.0 * number, has_speech)


PARTS = [make_part(number) for number in range(8)]


def make_batches(
    model: Whisper,
    parts: Sequence[Part],
    *,
    check: Callable[[], None] = never_cancel,
    **options: Any,
) -> Batches:
    """Make batches of parts."""
    settings = DecodeSettings.from_options(**options)
    batches = Batches(model, settings, fp16=False, check=check)
    for part in parts:
        batches.add(part)
    return batches


def decode_all(
    model: Whisper, parts: Sequence[Part], *, batch_size: int = 2, **options: Any
) -> list[Window]:
    """Decode all parts."""
    batches = make_batches(model, parts, batch_size=batch_size, **options)
    windows: list[Window] = []
    while not batches.is_idle:
        windows += batches.decode()
    return windows + batches.finish()


def segments_of(windows: Sequence[Window]) -> list[Segment]:
    """Return the segments of all windows."""
    return [segment for window in windows for segment in window.segments]


def tokens_of(windows: Sequence[Window]) -> list[tuple[int, ...]]:
    """Return the tokens of each window."""
    return [tuple(t for segment in window.segments for t in segment.tokens) for window in windows]


def as_rounded(windows: Sequence[Window]) -> list[Any]:
    """Return windows without the digits that depend on the order of additions."""
    return [
        (
            window.end_s,
            window.text_utf8,
            [
                (segment.start_s, segment.end_s, segment.tokens, segment.temperature, segment.words)
                for segment in window.segments
            ],
        )
        for window in windows
    ]


# A window among others

COLD: dict[str, Any] = {}
HOT: dict[str, Any] = {"temperature": 0.9, "seed": 3}
BEST: dict[str, Any] = {"temperature": 0.9, "seed": 3, "best_of": 2}
LADDER: dict[str, Any] = {"temperature": (0.0, 0.5, 1.0), "logprob_threshold": -1.4, "seed": 3}


@pytest.mark.slow
@pytest.mark.parametrize("options", [COLD, HOT, BEST, LADDER], ids=str)
def test_windows_text_depends_on_no_other(
    model: Whisper, encoded: list[list[WindowRef]], options: dict[str, Any]
) -> None:
    """Alone, in a batch of 2, 3 and 8, among other neighbours: the same segments."""
    options = {**SHORT, **options}
    alone = [decode_all(model, [part], **options) for part in PARTS]
    texts = [tokens_of(windows) for windows in alone]
    assert len({str(text) for text in texts}) == len(PARTS)
    expected = as_rounded(list(itertools.chain(*alone)))
    for batch_size in (2, 3, 8):
        found = decode_all(model, PARTS, batch_size=batch_size, **options)
        assert as_rounded(found) == expected
        np.testing.assert_allclose(
            [segment.avg_logprob for segment in segments_of(found)],
            [segment.avg_logprob for windows in alone for segment in segments_of(windows)],
            atol=1e-4,
        )
    assert max(map(len, encoded)) == 8
    order = [5, 0, 7, 2, 1, 6, 3, 4]
    found = decode_all(model, [PARTS[n] for n in order], batch_size=3, **options)
    assert as_rounded(found) == as_rounded([window for n in order for window in alone[n]])


@pytest.mark.slow
def test_encoder_hears_each_window_as_alone(model: Whisper) -> None:
    """The features of a window are those that it has alone, with the real encoder."""
    settings = DecodeSettings()
    decoder = WindowDecoder(model, settings, fp16=False, check=never_cancel)
    refs = [WindowRef(part.audio, 0, part.audio.content_frames) for part in PARTS[:3]]
    together = decoder.encode(refs)
    for row, ref in enumerate(refs):
        np.testing.assert_allclose(together[row], decoder.encode([ref])[0], atol=1e-4)


def test_only_windows_that_fail_are_decoded_again(
    model: Whisper, encoded: list[list[WindowRef]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each window climbs the temperatures by itself."""
    cold = segments_of(decode_all(model, PARTS, batch_size=8, **PLAIN))
    threshold = float(np.median([segment.avg_logprob for segment in cold]))
    failing = [segment.avg_logprob < threshold for segment in cold]
    assert 0 < sum(failing) < len(PARTS)

    rows: list[int] = []
    real = TextDecoder.step

    def step(network: TextDecoder, tokens: mx.array, *more: Any) -> mx.array:
        rows.append(tokens.shape[0])
        return real(network, tokens, *more)

    monkeypatch.setattr(TextDecoder, "step", step)
    ladder: dict[str, Any] = {"temperature": (0.0, 0.0), "logprob_threshold": threshold}
    found = segments_of(decode_all(model, PARTS, batch_size=8, **{**PLAIN, **ladder}))
    assert [segment.tokens for segment in found] == [segment.tokens for segment in cold]
    changes = [count for count, _ in itertools.groupby(rows)]
    assert changes == [len(PARTS), sum(failing)]
    ladder["temperature"] = (0.0, 0.7)
    found = segments_of(decode_all(model, PARTS, batch_size=8, **{**PLAIN, **ladder}))
    assert [segment.temperature for segment in found] == [0.7 * fails for fails in failing]


def test_each_window_of_a_batch_may_be_cancelled_before_a_token(model: Whisper) -> None:
    """The keys and values of many windows take seconds on a CPU: one window at a time."""
    calls: list[None] = []
    decoder = WindowDecoder(model, DecodeSettings(), fp16=False, check=lambda: calls.append(None))
    for windows, count in [(1, 0), (2, 2), (5, 5)]:
        calls.clear()
        audio = decoder.read(mx.zeros((windows, 1500, model.dims.n_audio_state)))
        assert [len(keys) for keys, _ in audio] == [windows] * model.dims.n_text_layer
        assert len(calls) == count


def test_word_times_need_no_second_look_at_the_audio(
    model: Whisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keys and values of a window are computed once, for its text and its word times."""
    reads: list[int] = []
    real = TextDecoder.read

    def read(network: TextDecoder, features: mx.array) -> Any:
        reads.append(len(features))
        return real(network, features)

    monkeypatch.setattr(TextDecoder, "read", read)
    windows = decode_all(model, PARTS[:3], batch_size=2, word_timestamps=True, **SHORT)
    assert any(segment.words for segment in segments_of(windows))
    assert reads == [1] * len(windows)


@pytest.mark.parametrize("sample_len", [1, 6])
def test_prompts_of_different_lengths(model: Whisper, sample_len: int) -> None:
    """Windows with more or fewer tokens before their text are decoded as alone, in their order."""
    tokenizer = read_tokenizer(51864, language="en", task="transcribe")
    prompts = [[], [262, 286], [314], [], [290, 340], [290] * 200]
    settings = DecodeSettings.from_options(**{**SHORT, "sample_len": sample_len})
    decoder = Decoder(model, tokenizer, settings, check=never_cancel)
    audio = model.decoder.read(
        mx.stack([listen(model, WindowRef(PARTS[n].audio, 0, 100)) for n in range(len(prompts))])
    )
    keys = [mx.random.key(n) for n in range(len(prompts))]
    together = decoder.decode(audio, prompts, keys)
    assert len({str(result.tokens) for result in together}) > 2
    for n, result in enumerate(together):
        one = take_windows(audio, [n])
        (alone,) = decoder.decode(one, prompts[n : n + 1], keys[n : n + 1])
        assert result.tokens == alone.tokens
        assert result.avg_logprob == pytest.approx(alone.avg_logprob, abs=1e-4)
        assert result.no_speech_prob == pytest.approx(alone.no_speech_prob, abs=1e-4)


# Which windows, and in which order


def test_windows_come_in_order(model: Whisper, encoded: list[list[WindowRef]]) -> None:
    """A part of two windows holds back what comes after it, and a free place is filled."""
    parts = [make_part(0, 40), make_part(1), make_part(2), make_part(3, 35), make_part(4)]
    batches = make_batches(model, parts, batch_size=2, **PLAIN)
    ends = []
    while not batches.is_idle:
        ends.append([window.end_s for window in batches.decode()])
    assert ends == [
        [30.0],
        [40.0, pytest.approx(53.01), pytest.approx(104.02)],
        [180.0],
        [185.0, pytest.approx(202.04)],
    ]
    assert [len(windows) for windows in encoded] == [2, 2, 2, 1]
    assert batches.finish() == []


def test_part_without_speech_is_not_decoded(model: Whisper, encoded: list[list[WindowRef]]) -> None:
    """A silent part, or one of less than a frame, takes no place in a batch."""
    silent = [make_part(1, has_speech=False), make_part(3, 0.005), make_part(4, has_speech=False)]
    parts = [silent[0], PARTS[0], silent[1], PARTS[5], silent[2]]
    found, expected = (
        decode_all(model, parts, **PLAIN),
        decode_all(model, [PARTS[0], PARTS[5]], **PLAIN),
    )
    assert tokens_of(found) == tokens_of(expected)
    assert [(s.start_s, s.end_s) for s in segments_of(found)] == [
        (s.start_s, s.end_s) for s in segments_of(expected)
    ]
    refs = {ref.audio for batch in encoded for ref in batch}
    assert refs == {PARTS[0].audio, PARTS[5].audio}


@pytest.mark.parametrize("multilingual", [False, True])
@pytest.mark.parametrize("parts", [[], [make_part(1, has_speech=False)]], ids=["none", "silent"])
def test_audio_without_speech_has_an_empty_window(
    models: dict[bool, Whisper],
    encoded: list[list[WindowRef]],
    parts: list[Part],
    *,
    multilingual: bool,
) -> None:
    """There is one window, in a language that the network knows, and nothing is decoded."""
    batches = make_batches(models[multilingual], parts, batch_size=2)
    assert batches.is_idle
    assert batches.decode() == []
    (window,) = batches.finish()
    assert window.segments == ()
    assert window.text_utf8 == b""
    assert window.language == "en" if not multilingual else window.language
    assert batches.finish() == []
    given = make_batches(models[True], parts, batch_size=2, language="de").finish()
    assert [window.language for window in given] == ["de"]


def test_language_is_detected_in_the_first_part_with_speech(
    models: dict[bool, Whisper], encoded: list[list[WindowRef]]
) -> None:
    """All parts have one language, and the silence before them does not decide."""
    parts = [make_part(1, has_speech=False), *PARTS[2:5]]
    languages = {window.language for window in decode_all(models[True], parts, **PLAIN)}
    assert encoded[0] == [WindowRef(PARTS[2].audio, 0, WINDOW_FRAMES)]
    alone = decode_all(models[True], PARTS[2:3], **PLAIN)
    assert languages == {alone[0].language}


# Prompts


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """Return the prompts of each batch that is decoded from now on."""
    seen: list[list[list[int]]] = []
    real = WindowDecoder.decode

    def decode(self: WindowDecoder, audio: Any, prompts: Any, **more: Any) -> Any:
        seen.append(list(map(list, prompts)))
        return real(self, audio, prompts, **more)

    monkeypatch.setattr(WindowDecoder, "decode", decode)
    return seen


NAMES = read_tokenizer(51864, language="en", task="transcribe").encode(" Siobhan")


@pytest.mark.parametrize("carry", [False, True])
def test_initial_prompt_of_a_batch(
    model: Whisper,
    encoded: list[list[WindowRef]],
    prompts: list[list[list[int]]],
    *,
    carry: bool,
) -> None:
    """It holds for the first window, or for each if it is carried."""
    options = {**PLAIN, "initial_prompt": "Siobhan", "carry_initial_prompt": carry}
    decode_all(model, PARTS[:3], **options)
    later: list[int] = NAMES if carry else []
    assert prompts == [[NAMES, later], [later]]


def test_no_window_of_a_batch_has_the_text_before_as_its_prompt(
    model: Whisper, encoded: list[list[WindowRef]], prompts: list[list[list[int]]]
) -> None:
    """Neither the next part nor the second window of a part waits for a text."""
    decode_all(model, [make_part(0, 40), make_part(1)], **PLAIN)
    assert prompts == [[[], []], [[]]]


def test_filter_alone_keeps_the_prompt(
    model: Whisper, encoded: list[list[WindowRef]], prompts: list[list[list[int]]]
) -> None:
    """Parts that are decoded one after the other go on with the text before."""
    windows = decode_all(model, PARTS[:3], batch_size=1, vad_filter=True, **PLAIN)
    one, two, _ = map(list, tokens_of(windows))
    assert prompts == [[[]], [one], [one + two]]


# Times


@pytest.mark.parametrize("options", [SHORT, {**SHORT, "temperature": 0.9, "seed": 1}], ids=str)
def test_times_are_the_whole_files(
    model: Whisper, encoded: list[list[WindowRef]], options: dict[str, Any]
) -> None:
    """Segments and words lie within their part, wherever it is, and in order."""
    for part in PARTS[1:5]:
        windows = decode_all(model, [part], word_timestamps=True, **options)
        assert part.offset_s is not None
        end_s = round(part.offset_s + part.audio.duration_s, 3)
        spans = [(segment.start_s, segment.end_s) for segment in segments_of(windows)]
        words = [word for segment in segments_of(windows) for word in segment.words or ()]
        assert words
        for start_s, stop_s in spans + [(word.start_s, word.end_s) for word in words]:
            assert part.offset_s <= start_s <= stop_s <= end_s
        assert {segment.seek_frames // 5000 for segment in segments_of(windows)} == {
            int(part.offset_s) // 50
        }
        assert windows[-1].end_s == pytest.approx(end_s, abs=0.01)


@pytest.mark.parametrize("seconds", [0.1, 1.2345])
@pytest.mark.parametrize("words", [False, True])
def test_text_behind_the_end_of_a_part_has_a_length(
    model: Whisper, encoded: list[list[WindowRef]], seconds: float, *, words: bool
) -> None:
    """A network says times of up to 30 s. Its text lies inside of the part, in order."""
    parts = [make_part(1, seconds), make_part(2, seconds), make_part(3, seconds)]
    options = {**SHORT, "sample_len": 40, "word_timestamps": words}
    spoken = [s for s in segments_of(decode_all(model, parts, **options)) if s.text]
    spans = [(segment.start_s, segment.end_s) for segment in spoken]
    assert {int(start_s) // 50 for start_s, _ in spans} == {1, 2, 3}
    assert all(50 <= start_s < end_s for start_s, end_s in spans)
    assert all(end_s <= 50 * (end_s // 50) + seconds for _, end_s in spans)
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))


def test_part_says_the_same_wherever_it_is(model: Whisper, encoded: list[list[WindowRef]]) -> None:
    """At another offset a segment has other times, and nothing else."""
    here = PARTS[3]
    there = Part(here.audio, 1234.567, has_speech=True)
    options = {**SHORT, "word_timestamps": True}
    pairs = zip(
        segments_of(decode_all(model, [here], **options)),
        segments_of(decode_all(model, [there], **options)),
        strict=True,
    )
    for one, other in pairs:
        assert one.tokens == other.tokens
        assert other.start_s - one.start_s == pytest.approx(1234.567 - 150, abs=2e-3)
        assert other.end_s - one.end_s == pytest.approx(1234.567 - 150, abs=2e-3)
        assert other.seek_frames - one.seek_frames == 123457 - 15000
        for word, moved in zip(one.words or (), other.words or (), strict=True):
            assert moved.start_s - word.start_s == pytest.approx(1234.567 - 150, abs=2e-3)


# Cancelled


@pytest.mark.parametrize(
    ("batch_size", "options"),
    [
        (1, {}),
        (2, {}),
        (2, HOT),
        pytest.param(2, {"word_timestamps": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_cancelled_anywhere_nothing_is_lost(
    model: Whisper, encoded: list[list[WindowRef]], batch_size: int, options: dict[str, Any]
) -> None:
    """An exception from any check ends that call, and the next one decodes the same windows."""
    options = {**SHORT, "sample_len": 4, **options, "batch_size": batch_size, "vad_filter": True}
    calls = 0

    def run(stop_at: int) -> list[Window]:
        nonlocal calls
        calls = 0

        def check() -> None:
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise InterruptedError

        batches = make_batches(model, PARTS[:3], check=check, **options)
        windows: list[Window] = []
        while not batches.is_idle:
            try:
                windows += batches.decode()
            except InterruptedError:
                assert calls == stop_at
        return windows + batches.finish()

    expected = run(0)
    assert len(segments_of(expected)) >= 3
    for stop_at in range(1, calls + 1):
        assert as_rounded(run(stop_at)) == as_rounded(expected)


def test_cancelled_detection_of_the_language(
    models: dict[bool, Whisper], encoded: list[list[WindowRef]]
) -> None:
    """A cancel before the first window loses neither the part nor its prompt."""
    stops = iter([True, True])

    def check() -> None:
        if next(stops, False):
            raise InterruptedError

    options = {**PLAIN, "initial_prompt": "Siobhan"}
    batches = make_batches(models[True], PARTS[:2], check=check, batch_size=2, **options)
    for _ in range(2):
        with pytest.raises(InterruptedError):
            batches.decode()
    expected = decode_all(models[True], PARTS[:2], **options)
    assert as_rounded(batches.decode()) == as_rounded(expected)
    silent = make_batches(models[True], [], check=check, batch_size=2)
    stops = iter([True])
    with pytest.raises(InterruptedError):
        silent.finish()
    assert len(silent.finish()) == 1


# Several audios


def test_windows_of_several_audios_are_one_batch(
    models: dict[bool, Whisper], encoded_together: list[int]
) -> None:
    """The first audio comes first; each has its own windows, as if it were alone."""
    model = models[True]
    options = {**PLAIN, "language": "en"}
    alone = [decode_all(model, PARTS[n : n + 2], **options) for n in (0, 2)]
    encoded_together.clear()
    audios = [make_batches(model, PARTS[n : n + 2], batch_size=3, **options) for n in (0, 2)]
    together: list[list[Any]] = [[], []]
    while not all(audio.is_idle for audio in audios):
        for n, found in enumerate(decode_together(audios)):
            together[n] += found
    assert encoded_together[0] == 3
    assert max(encoded_together) <= 3
    assert [as_rounded(windows) for windows in together] == [as_rounded(each) for each in alone]


def test_audios_of_several_languages_are_one_batch(models: dict[bool, Whisper]) -> None:
    """The encoder takes them together; each is decoded in its own language."""
    model = models[True]
    audios = [
        make_batches(model, [part], batch_size=4, **{**PLAIN, "language": language})
        for part, language in zip(PARTS[:3], ("en", "de", "en"), strict=True)
    ]
    found = decode_together(audios)
    assert [windows[0].language for windows in found if windows] == ["en", "de", "en"]
