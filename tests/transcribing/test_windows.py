"""The window loop: mlx_whisper's segments, one window at a time, stoppable at any token."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest

from fastwhisper.transcribing.batches import transcribe_windows
from fastwhisper.transcribing.mel import compute_mel
from fastwhisper.transcribing.window_decoder import WindowDecoder
from fastwhisper.transcribing.windows import Window, summarize
from fastwhisper.values import Segment, Transcription
from fastwhisper.whisper.options import DecodeSettings
from fastwhisper.whisper.tokenizer import Tokenizer, read_tokenizer
from tests.helpers.audio import noise
from tests.helpers.modules import load_by_hand
from tests.helpers.reference import import_reference, leave_out_bounds
from tests.helpers.tiny_models import write_babbler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fastwhisper.transcribing.mel import MelAudio
    from fastwhisper.whisper.network import Whisper


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Return the babbling models by whether they are multilingual."""
    root = tmp_path_factory.mktemp("babblers")
    return {
        multilingual: write_babbler(root / str(multilingual), multilingual=multilingual)
        for multilingual in (False, True)
    }


@pytest.fixture(scope="module")
def models(directories: dict[bool, Path]) -> dict[bool, Whisper]:
    """Load the babbling models, in float32."""
    return {key: load_by_hand(path, "float32") for key, path in directories.items()}


@pytest.fixture(scope="module")
def english(models: dict[bool, Whisper]) -> Whisper:
    """Return the one that knows no language tokens."""
    return models[False]


def go_on() -> None:
    """Never cancel."""


def windows_of(
    model: Whisper,
    audio: MelAudio,
    *,
    fp16: bool = False,
    check: Callable[[], None] = go_on,
    **options: Any,
) -> Iterator[Window]:
    """Run our loop."""
    settings = DecodeSettings.from_options(**options)
    return transcribe_windows(model, audio, settings, fp16=fp16, check=check)


def as_upstream(transcription: Transcription) -> dict[str, Any]:
    """Turn our result into the form of upstream's."""
    return {
        "text": transcription.text,
        "segments": [_segment(i, s) for i, s in enumerate(transcription.segments)],
        "language": transcription.language,
    }


def _segment(number: int, segment: Segment) -> dict[str, Any]:
    form = {
        "id": number,
        "seek": segment.seek_frames,
        "start": segment.start_s,
        "end": segment.end_s,
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": segment.temperature,
        "avg_logprob": pytest.approx(segment.avg_logprob, abs=1e-4, nan_ok=True),
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": pytest.approx(segment.no_speech_prob, abs=1e-4),
    }
    if segment.words is not None:
        form["words"] = [
            {
                "word": word.word,
                "start": word.start_s,
                "end": word.end_s,
                "probability": pytest.approx(word.probability, abs=1e-4),
            }
            for word in segment.words
        ]
    return form


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return the prompts of the windows that are decoded from now on."""
    seen: list[list[int]] = []
    real = WindowDecoder.decode

    def decode(self: WindowDecoder, audio: Any, prompts: Any, **more: Any) -> Any:
        seen.extend(map(list, prompts))
        return real(self, audio, prompts, **more)

    monkeypatch.setattr(WindowDecoder, "decode", decode)
    return seen


LONG: list[dict[str, Any]] = [
    {},
    {"condition_on_previous_text": False},
    {"initial_prompt": " A list of names. "},
    {"initial_prompt": "Names", "condition_on_previous_text": False},
    {"clip_timestamps": "1,5,9,12.5"},
    {"clip_timestamps": [20.0, 100.0]},
    {"without_timestamps": True},
]
SHORT: list[dict[str, Any]] = [
    {"temperature": 0.0, "logprob_threshold": None},
    {"temperature": (0.0, 0.0), "logprob_threshold": 0.0, "compression_ratio_threshold": None},
    {"compression_ratio_threshold": 0.1, "temperature": (0.0, 0.0)},
    {"no_speech_threshold": None},
    {"no_speech_threshold": 0.0, "logprob_threshold": None},
    {"no_speech_threshold": 0.0, "logprob_threshold": -100.0},
    {"clip_timestamps": "3.2"},
    {"clip_timestamps": ""},
    {"max_initial_timestamp": None},
    {"max_initial_timestamp": 0.1},
    {"suppress_tokens": ""},
    {"suppress_tokens": None},
    {"suppress_tokens": [-1, 50, 257]},
    {"suppress_blank": False},
    {"prefix": "And then"},
    {"prefix": [400, 500]},
    {"length_penalty": 0.5},
    {"best_of": 3},
    {"language": "en"},
    {"word_timestamps": True},
    {"word_timestamps": True, "hallucination_silence_threshold": 0.2},
    {"word_timestamps": True, "hallucination_silence_threshold": 4.0},
    {"word_timestamps": True, "prepend_punctuations": "", "append_punctuations": ""},
    {"word_timestamps": True, "clip_timestamps": "1,3"},
]
MULTILINGUAL_SHORT: list[dict[str, Any]] = [
    {},
    {"language": "es"},
    {"task": "translate"},
    {"task": "translate", "language": "de"},
    {"initial_prompt": "日本語"},
    {"word_timestamps": True, "language": "ja"},
]


CASES = (
    [(False, 34, options) for options in LONG]
    + [(False, 4, options) for options in SHORT]
    + [(True, 4, options) for options in MULTILINGUAL_SHORT]
    + [(True, 31, {})]
    + [(False, 80, options) for options in LONG[:2]]
    + [(True, 80, options) for options in ({"language": "de"}, {"without_timestamps": True})]
)
FAST: tuple[tuple[bool, int, dict[str, Any]], ...] = (
    (False, 34, {}),
    (False, 4, {"prefix": "And then"}),
    (True, 4, {"task": "translate", "language": "de"}),
)
"""The cases that are not slow: two windows, a prompt, another language."""


@pytest.mark.parametrize(
    ("multilingual", "seconds", "options"),
    [pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow) for case in CASES],
    ids=str,
)
def test_segments_equal_upstreams(
    directories: dict[bool, Path],
    models: dict[bool, Whisper],
    multilingual: bool,  # noqa: FBT001  a parameter
    seconds: float,
    options: dict[str, Any],
) -> None:
    """For the same options the result is `mlx_whisper.transcribe`'s, field for field."""
    # Above temperature 0 upstream's result depends on what ran before; see the seed tests.
    options = {"sample_len": 24, "temperature": 0.0, **options}
    samples = noise(seconds)
    expected = import_reference().transcribe(
        samples, path_or_hf_repo=str(directories[multilingual]), fp16=False, **options
    )
    audio = compute_mel(samples, n_mels=80)
    with leave_out_bounds():
        windows = list(windows_of(models[multilingual], audio, **options))
    assert as_upstream(summarize(windows, duration_s=seconds)) == expected


def test_the_babbler_says_something(english: Whisper) -> None:
    """The comparison above is about several windows and segments with text and times."""
    audio = compute_mel(noise(34), n_mels=80)
    windows = list(windows_of(english, audio, sample_len=24, temperature=0.0))
    segments = [segment for window in windows for segment in window.segments]
    assert len(windows) > 1
    assert len(segments) > len(windows)
    assert all(segment.text.strip() for segment in segments[:2])
    assert all(segment.end_s > segment.start_s for segment in segments[:2])


MAX_PROMPT = 47
"""Tokens of the babbler's prompts: half of its context of 96, less one."""


def encode(text: str) -> list[int]:
    """Encode text with the English tokenizer."""
    return read_tokenizer(51864, language="en", task="transcribe").encode(text)


def test_a_carried_prompt_begins_every_prompt(english: Whisper, prompts: list[list[int]]) -> None:
    """The end of the text before follows it, as far as there is room."""
    audio = compute_mel(noise(95), n_mels=80)
    options: dict[str, Any] = {"temperature": 0.0, "sample_len": 40, "without_timestamps": True}
    names: dict[str, Any] = {"initial_prompt": " Siobhan, Xochitl ", "carry_initial_prompt": True}
    windows = list(windows_of(english, audio, **options, **names))
    carried = encode(" Siobhan, Xochitl")
    text = [[t for segment in window.segments for t in segment.tokens] for window in windows]
    room = MAX_PROMPT - len(carried)
    assert len(text[0] + text[1]) > room
    assert prompts == [
        carried,
        carried + text[0][-room:],
        carried + (text[0] + text[1])[-room:],
        carried + (text[0] + text[1] + text[2])[-room:],
    ]


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.0, "condition_on_previous_text": False}, {"temperature": 0.9, "seed": 1}],
    ids=["not conditioned", "hot"],
)
@pytest.mark.parametrize("carry", [True, False])
def test_a_carried_prompt_outlives_the_text_before(
    english: Whisper, prompts: list[list[int]], options: dict[str, Any], *, carry: bool
) -> None:
    """Where the text before is no prompt, the carried prompt is; otherwise nothing is."""
    audio = compute_mel(noise(65), n_mels=80)
    options = {"sample_len": 5, "without_timestamps": True, **options}
    names: dict[str, Any] = {"initial_prompt": "Siobhan", "carry_initial_prompt": carry}
    list(windows_of(english, audio, **options, **names))
    later = encode(" Siobhan") if carry else []
    assert prompts == [encode(" Siobhan"), later, later]


@pytest.mark.parametrize("carry", [True, False])
def test_the_end_of_a_huge_prompt_is_kept(
    english: Whisper, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch, *, carry: bool
) -> None:
    """Megabytes are cut before they are encoded, to the tokens that the decoder takes."""
    text = "Names of people, and of places. " * 100_000
    expected = encode(" " + text[-3200:].strip())[-MAX_PROMPT:]
    lengths: list[int] = []
    real = Tokenizer.encode

    def count(tokenizer: Tokenizer, text: str) -> list[int]:
        lengths.append(len(text))
        return real(tokenizer, text)

    monkeypatch.setattr(Tokenizer, "encode", count)
    audio = compute_mel(noise(34), n_mels=80)
    options: dict[str, Any] = {"temperature": 0.0, "sample_len": 5, "without_timestamps": True}
    windows = list(
        windows_of(english, audio, initial_prompt=text, carry_initial_prompt=carry, **options)
    )
    assert max(lengths) < 10_000
    said = list(windows[0].segments[0].tokens)
    assert prompts == [expected, expected if carry else (expected + said)[-MAX_PROMPT:]]


@pytest.mark.parametrize("n_vocab", [51864, 51865])
def test_no_token_is_longer_than_the_cut_assumes(n_vocab: int) -> None:
    """So the end of a prompt that is encoded has all the tokens that the decoder takes."""
    tokenizer = read_tokenizer(n_vocab, language="en", task="transcribe")
    assert max(map(len, tokenizer.vocabulary)) <= 128


def test_each_next_is_one_window(english: Whisper) -> None:
    """The first window comes before the second is decoded, and says how far it went."""
    checks: list[None] = []
    windows = windows_of(
        english,
        compute_mel(noise(65), n_mels=80),
        check=lambda: checks.append(None),
        temperature=0.0,
        sample_len=5,
        without_timestamps=True,
    )
    assert checks == []
    ends, counts = [], []
    for window in windows:
        counts.append(len(checks))
        checks.clear()
        ends.append(window.end_s)
    assert ends == [30.0, 60.0, 65.0]
    # The mel of the audio once, then for each window the encoder and five tokens.
    assert counts == [7, 6, 6]


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_what_check_raises_stops_at_once(english: Whisper, calls: int) -> None:
    """Cancelling acts before the next token, or before the encoder, and nothing runs on."""
    checks: list[None] = []

    def check() -> None:
        checks.append(None)
        if len(checks) == calls:
            raise InterruptedError

    audio = compute_mel(noise(5), n_mels=80)
    options: dict[str, Any] = {"sample_len": 8, "temperature": 0.0}
    windows = windows_of(english, audio, check=check, **options)
    with pytest.raises(InterruptedError):
        next(windows)
    assert len(checks) == calls


def test_a_model_is_as_good_as_new_after_cancelling(english: Whisper) -> None:
    """Nothing of a cancelled transcription is left in the model."""
    audio = compute_mel(noise(5), n_mels=80)
    expected = list(windows_of(english, audio, sample_len=8, temperature=0.0))
    test_what_check_raises_stops_at_once(english, 5)
    assert list(windows_of(english, audio, sample_len=8, temperature=0.0)) == expected


def sampled(model: Whisper, seed: int | None) -> str:
    """Return the text of a hot transcription."""
    audio = compute_mel(noise(3), n_mels=80)
    options: dict[str, Any] = {"temperature": 0.9, "sample_len": 12, "seed": seed}
    return summarize(list(windows_of(model, audio, **options)), duration_s=3).text


def test_a_seed_decides_what_is_sampled(english: Whisper) -> None:
    """One seed gives one text, whatever else is random; another gives another."""
    first = sampled(english, 1)
    mx.random.seed(99)
    assert sampled(english, 1) == first
    assert sampled(english, 2) != first


def test_without_a_seed_texts_differ(english: Whisper) -> None:
    """Sampling is not secretly repeatable, as upstream's is."""
    assert len({sampled(english, None) for _ in range(4)}) > 1


def test_a_seed_leaves_mlx_alone(english: Whisper) -> None:
    """The host's random numbers are not touched."""
    mx.random.seed(5)
    expected = mx.random.uniform().item()
    mx.random.seed(5)
    sampled(english, 1)
    assert mx.random.uniform().item() == expected


@pytest.mark.slow
def test_every_token_has_a_key_of_its_own(
    directories: dict[bool, Path], english: Whisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any temperature and best of several, the text is that of mlx_whisper with such keys."""
    reference = import_reference()
    monkeypatch.setattr(reference, "SEED", 3)
    samples = noise(34)
    options: dict[str, Any] = {
        "sample_len": 12,
        "temperature": (0.9, 0.5),
        "logprob_threshold": 0.0,
        "no_speech_threshold": None,
        "best_of": 2,
    }
    expected = reference.transcribe(
        samples, path_or_hf_repo=str(directories[False]), fp16=False, **options
    )
    with leave_out_bounds():
        windows = list(windows_of(english, compute_mel(samples, n_mels=80), seed=3, **options))
    assert as_upstream(summarize(windows, duration_s=34)) == expected


@pytest.mark.slow
def test_a_window_is_sampled_alike_wherever_it_is_reached(english: Whisper) -> None:
    """What a window says depends on the seed and its place, on nothing sampled before."""
    options: dict[str, Any] = {
        "sample_len": 8,
        "temperature": 0.9,
        "seed": 1,
        "condition_on_previous_text": False,
        "without_timestamps": True,
    }
    audio = compute_mel(noise(65), n_mels=80)
    _, second, _ = windows_of(english, audio, **options)
    alone, _ = windows_of(english, audio, clip_timestamps=[30.0], **options)
    assert alone.segments[0].tokens == second.segments[0].tokens


@pytest.mark.parametrize("word_timestamps", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_any_thread_may_decode(english: Whisper, word_timestamps: bool) -> None:  # noqa: FBT001  a parameter
    """A mel made here and a model loaded here are used in another thread."""
    audio = compute_mel(noise(3), n_mels=80)
    options: dict[str, Any] = {"sample_len": 8, "temperature": 0.9, "seed": 1}
    options["word_timestamps"] = word_timestamps
    found: list[Window] = []
    thread = threading.Thread(target=lambda: found.extend(windows_of(english, audio, **options)))
    thread.start()
    thread.join()
    assert found == list(windows_of(english, audio, **options))


@pytest.mark.slow
def test_float16_equals_upstreams(tmp_path: Path) -> None:
    """A float16 network is computed in float16. Its steps round in another order."""
    directory = write_babbler(tmp_path / "model", multilingual=False, dtype="float16")
    samples = noise(5)
    options: dict[str, Any] = {"sample_len": 10, "temperature": 0.0}
    expected = import_reference().transcribe(
        samples, path_or_hf_repo=str(directory), fp16=True, **options
    )
    model = load_by_hand(directory, "float16")
    with leave_out_bounds():
        windows = list(windows_of(model, compute_mel(samples, n_mels=80), fp16=True, **options))
    found = as_upstream(summarize(windows, duration_s=5))
    for segment in expected["segments"]:
        segment["avg_logprob"] = pytest.approx(segment["avg_logprob"], abs=2e-3)
        segment["no_speech_prob"] = pytest.approx(segment["no_speech_prob"], abs=2e-3)
    assert found == expected


def test_bfloat16_is_computed_in_float32(english: Whisper) -> None:
    """A bfloat16 network takes float32 input: the only way upstream's decoder allows."""
    model = type(english)(english.dims, dtype=mx.bfloat16)
    model.update(english.parameters())
    model.set_dtype(mx.bfloat16)
    mx.eval(model.parameters())
    window = next(windows_of(model, compute_mel(noise(3), n_mels=80), sample_len=5, temperature=0))
    assert window.segments[0].text


def test_a_language_is_detected_among_those_given(models: dict[bool, Whisper]) -> None:
    """The most probable one of them is taken, although others are more probable."""
    audio = compute_mel(noise(4), n_mels=80)
    decoder = WindowDecoder(models[True], DecodeSettings(), fp16=False, check=go_on)
    found = decoder.detect_language(audio)
    *_, third, second, last = sorted(found, key=lambda code: found[code], reverse=True)
    options: dict[str, Any] = {"sample_len": 3, "temperature": 0.0}
    for among, expected in (((last, second), second), ((last, second, third), third)):
        window = next(windows_of(models[True], audio, languages=among, **options))
        assert window.language == expected
        alone = next(windows_of(models[True], audio, language=expected, **options))
        assert window == alone


@pytest.mark.parametrize(
    ("before", "decides_frame"),
    [
        (np.zeros(0), 0),
        (np.zeros(27 * 16_000), 0),
        (np.zeros(65 * 16_000), 6000),
        (0.001 * noise(65), 6000),
        (np.concatenate([noise(0.5), np.zeros(65 * 16_000)]), 6000),
    ],
    ids=["speech", "late", "silence", "a quiet room", "a click"],
)
def test_language_is_detected_where_there_is_sound(
    models: dict[bool, Whisper],
    monkeypatch: pytest.MonkeyPatch,
    before: np.ndarray,
    decides_frame: int,
) -> None:
    """The first 30 s with a second of sound decide, and the text begins at the begin."""
    frames: list[int] = []
    real = WindowDecoder.encode

    def encode(decoder: WindowDecoder, windows: Any) -> mx.array:
        frames.extend(window.start_frame for window in windows)
        return real(decoder, windows)

    monkeypatch.setattr(WindowDecoder, "encode", encode)
    audio = compute_mel(np.concatenate([before, noise(20)]).astype(np.float32), n_mels=80)
    next(windows_of(models[True], audio, sample_len=3, temperature=0.0))
    assert frames == [decides_frame, 0]


def test_an_english_model_says_english(english: Whisper) -> None:
    """No language is detected where there is only one."""
    (window,) = windows_of(english, compute_mel(noise(1), n_mels=80), sample_len=3)
    assert window.language == "en"


@pytest.mark.parametrize(
    ("samples", "clips"), [(100, "0"), (16_000, "5"), (16_000, "0,0"), (16_000, "2,3")]
)
def test_audio_without_a_window_gives_an_empty_one(
    english: Whisper, samples: int, clips: str
) -> None:
    """Less than a frame of audio, or clips outside of it, are transcribed to nothing."""
    audio = compute_mel(np.zeros(samples, np.float32), n_mels=80)
    windows = list(windows_of(english, audio, clip_timestamps=clips))
    assert [window.segments for window in windows] == [()]
    assert summarize(windows, duration_s=1) == Transcription("", (), "en", 1)


@pytest.mark.parametrize(
    ("clips", "expected"),
    [
        ("0,2,8,11", [(0, 2), (8, 11)]),
        ("0,2,2,4,35,70", [(0, 2), (2, 4), (35, 65), (65, 70)]),
        ("1.5,3,64", [(1.5, 3), (64, 71)]),
    ],
)
def test_each_clip_is_decoded_where_it_is(
    english: Whisper,
    monkeypatch: pytest.MonkeyPatch,
    clips: str,
    expected: list[tuple[float, float]],
) -> None:
    """Every window is the sound of a clip and then silence; between two clips nothing is heard."""
    seen: list[tuple[float, float]] = []
    real = WindowDecoder.encode

    def encode(self: WindowDecoder, windows: Any) -> Any:
        for ref in windows:
            seen.append((ref.start_frame / 100, (ref.start_frame + ref.frames) / 100))
            mel = np.array(ref.audio.window(ref.start_frame, ref.frames))
            np.testing.assert_array_equal(mel[ref.frames :], 0)
        return real(self, windows)

    monkeypatch.setattr(WindowDecoder, "encode", encode)
    audio = compute_mel(noise(71), n_mels=80)
    options: dict[str, Any] = {"sample_len": 3, "temperature": 0.0, "without_timestamps": True}
    windows = list(windows_of(english, audio, clip_timestamps=clips, **options))
    segments = [segment for window in windows for segment in window.segments]
    assert seen == expected
    assert [window.end_s for window in windows] == [end_s for _, end_s in expected]
    assert [(segment.start_s, segment.end_s) for segment in segments] == expected


def test_a_clip_beyond_the_end_ends_with_the_audio(english: Whisper) -> None:
    """Where upstream would decode nothing for ever, the audio's end is the clip's."""
    audio = compute_mel(noise(2), n_mels=80)
    windows = list(windows_of(english, audio, clip_timestamps="0,50,60", sample_len=3))
    assert windows[-1].end_s == 2.0


def check_times(windows: list[Window], end_s: float) -> None:
    """Check that texts and words have a length, follow one another and end with the audio."""
    segments = [segment for window in windows for segment in window.segments]
    words = [word for segment in segments for word in segment.words or ()]
    assert all(segment.end_s <= end_s for segment in segments)
    for spans in (
        [(segment.start_s, segment.end_s) for segment in segments if segment.text],
        [(word.start_s, word.end_s) for word in words],
    ):
        assert all(0 <= start_s < stop_s <= end_s for start_s, stop_s in spans)
        assert all(stop_s <= start_s for (_, stop_s), (start_s, _) in itertools.pairwise(spans))


@pytest.mark.parametrize("seconds", [0.01, 0.1, 7.7, 30.0, 31.5])
@pytest.mark.parametrize("options", [{}, {"word_timestamps": True}], ids=str)
def test_no_time_is_after_the_end_of_the_audio(
    english: Whisper, seconds: float, options: dict[str, Any]
) -> None:
    """A network says times of 30 s for any sound. They are bounded, and all of its text is kept."""
    audio = compute_mel(noise(seconds), n_mels=80)
    options = {"temperature": 0.0, "no_speech_threshold": None, "sample_len": 40, **options}
    with leave_out_bounds():
        plain = list(windows_of(english, audio, **options))
    windows = list(windows_of(english, audio, **options))
    assert any(segment.text for window in windows for segment in window.segments)
    if seconds < 30:
        assert any(segment.end_s > seconds for window in plain for segment in window.segments)
    check_times(windows, seconds)
    assert [window.text_utf8 for window in windows] == [window.text_utf8 for window in plain]


@pytest.mark.parametrize("options", [{}, {"word_timestamps": True}], ids=str)
def test_no_time_is_after_the_end_of_its_clip(english: Whisper, options: dict[str, Any]) -> None:
    """What is said of the first clip ends before the second one begins."""
    audio = compute_mel(noise(20), n_mels=80)
    options = {"temperature": 0.0, "no_speech_threshold": None, "sample_len": 40, **options}
    windows = list(windows_of(english, audio, clip_timestamps="1.005,2.125,9,9.5", **options))
    is_first = [window.end_s < 5 for window in windows]
    assert is_first == sorted(is_first, reverse=True)
    check_times(windows[: sum(is_first)], 2.125)
    check_times(windows, 9.5)


def test_a_character_cut_by_a_window_is_whole_in_the_text() -> None:
    """Tokens are bytes: two windows may share a character."""
    first, second = "né".encode()[:2], "né".encode()[2:]
    windows = [Window((), "fr", part, 0.0) for part in (first, second)]
    assert summarize(windows, duration_s=0).text == "né"


def test_a_window_that_would_begin_again_where_it_began_is_left(
    english: Whisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the rules of word times say, every window ends later than the one before."""
    monkeypatch.setattr(
        "fastwhisper.transcribing.windows.skip_leading_silence",
        lambda *_, bounds, **__: bounds.start_frame,
    )
    audio = compute_mel(noise(65), n_mels=80)
    windows = list(
        windows_of(
            english, audio, sample_len=5, temperature=0.0,
            word_timestamps=True, hallucination_silence_threshold=1.0,
        )
    )  # fmt: skip
    assert [window.end_s for window in windows] == [30.0, 60.0, 65.0]
