"""Real weights, real speech: segments, times and words are mlx_whisper's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from mlx_whisper.transcribe import ModelHolder, transcribe

from fastwhisper.transcribing.batches import transcribe_windows
from fastwhisper.transcribing.mel import compute_mel
from fastwhisper.transcribing.samples import load_audio
from fastwhisper.transcribing.windows import summarize
from fastwhisper.whisper.options import DecodeSettings
from tests.helpers.audio import SENTENCE
from tests.helpers.modules import load_by_hand
from tests.helpers.reference import leave_out_bounds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fastwhisper.values import Transcription

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _leave_model_holder_alone() -> Iterator[None]:
    """Put back the model that upstream keeps for the process."""
    before = ModelHolder.model, ModelHolder.model_path
    yield
    ModelHolder.model, ModelHolder.model_path = before


def both(
    directory: Path, audio: Path | np.ndarray, options: dict[str, Any]
) -> tuple[Transcription, dict[str, Any]]:
    """Transcribe with our network from the source itself, and with upstream from samples."""
    model = load_by_hand(directory)
    mel = compute_mel(audio, n_mels=80)
    settings = DecodeSettings.from_options(**options)
    with leave_out_bounds():
        windows = list(transcribe_windows(model, mel, settings, fp16=False, check=lambda: None))
    theirs = transcribe(load_audio(audio), path_or_hf_repo=str(directory), fp16=False, **options)
    return summarize(windows, duration_s=mel.duration_s), theirs


def assert_same(ours: Transcription, theirs: dict[str, Any]) -> None:
    """Compare texts, tokens and times."""
    assert ours.text == theirs["text"]
    assert ours.language == theirs["language"]
    assert [(s.start_s, s.end_s, s.text, list(s.tokens), s.temperature) for s in ours.segments] == [
        (s["start"], s["end"], s["text"], s["tokens"], s["temperature"]) for s in theirs["segments"]
    ]
    assert [s.avg_logprob for s in ours.segments] == pytest.approx(
        [s["avg_logprob"] for s in theirs["segments"]], abs=1e-3
    )


def test_words_of_a_file_equal_upstreams(
    tiny_en_directory: Callable[..., Path], sample: Path
) -> None:
    """A compressed file, decoded as a stream, gives upstream's words and their times."""
    directory = tiny_en_directory("float16", "weights.safetensors")
    ours, theirs = both(directory, sample, {"word_timestamps": True, "temperature": 0.0})
    assert_same(ours, theirs)
    our_words = [word for segment in ours.segments for word in segment.words or ()]
    their_words = [word for segment in theirs["segments"] for word in segment["words"]]
    assert [(w.word, w.start_s, w.end_s) for w in our_words] == [
        (w["word"], w["start"], w["end"]) for w in their_words
    ]
    assert [w.probability for w in our_words] == pytest.approx(
        [w["probability"] for w in their_words], abs=1e-3
    )
    assert [word.word.strip() for word in our_words] == SENTENCE.split()


def test_a_prompted_second_window_equals_upstreams(
    tiny_en_directory: Callable[..., Path], sample: Path
) -> None:
    """Speech over more than one window: conditioned on an initial prompt and the text before."""
    directory = tiny_en_directory("float16", "weights.safetensors")
    spoken = load_audio(sample)
    samples = np.concatenate([spoken, np.zeros(20 * 16_000, np.float32), spoken])
    options = {"initial_prompt": "The weather.", "temperature": 0.0, "sample_len": 60}
    ours, theirs = both(directory, samples, options)
    assert_same(ours, theirs)
    assert ours.duration_s > 30
    assert {segment.seek_frames for segment in ours.segments} > {0}


@pytest.mark.parametrize("options", [{}, {"word_timestamps": True}, {"clip_timestamps": "1,3.3"}])
@pytest.mark.parametrize("seconds", [0.1, 2.5, 7.7])
def test_text_ends_with_the_audio(
    tiny_en_directory: Callable[..., Path], sample: Path, seconds: float, options: dict[str, Any]
) -> None:
    """Where speech is cut off, a network says that it goes on: times are bounded."""
    model = load_by_hand(tiny_en_directory("float16", "weights.safetensors"))
    mel = compute_mel(load_audio(sample)[: round(seconds * 16_000)], n_mels=80)
    options = {"temperature": 0.0, "no_speech_threshold": None, **options}
    settings = DecodeSettings.from_options(**options)
    end_s = min(seconds, 3.3) if "clip_timestamps" in options else seconds
    for window in transcribe_windows(model, mel, settings, fp16=False, check=lambda: None):
        for segment in window.segments:
            assert segment.start_s <= segment.end_s <= end_s
            for word in segment.words or ():
                assert word.start_s < word.end_s <= end_s
