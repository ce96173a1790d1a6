"""The voice detector: split anyhow, recorded speech, noise, and samples out of range."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastwhisper
from fastwhisper.transcribing.samples import load_audio
from fastwhisper.transcribing.voice import FRAME_SAMPLES, FRAMES_PER_SECOND, VoiceDetector
from tests.helpers.audio import SAMPLE, SAMPLE_RATE, noise, tone
from tests.helpers.interpreter import run_python

CALIBRATION = Path(fastwhisper.__file__).parent / "quantizing" / "data"
"""Synthesized speech in five languages."""


def detect(*pieces: np.ndarray) -> np.ndarray:
    """Return the probabilities of a stream that comes in pieces. Shape (frames,), float32."""
    detector = VoiceDetector()
    found = [detector.push(piece.astype(np.float32)) for piece in pieces]
    return np.concatenate([*found, detector.finish()])


@pytest.fixture(scope="module")
def sentence() -> np.ndarray:
    """Return the recorded sentence between two seconds of silence."""
    silence = np.zeros(2 * SAMPLE_RATE, np.float32)
    return np.concatenate([silence, load_audio(SAMPLE), silence])


# Frames of `sentence`, and what Silero's own network computes for them: silero_vad.onnx of the
# package silero-vad 6.2.3.
SILERO = {
    60: 0.003, 62: 0.087, 63: 0.432, 64: 0.798, 65: 0.990, 66: 0.996, 80: 1.000, 88: 0.989,
    89: 0.431, 90: 0.059, 91: 0.027, 98: 0.004, 313: 0.977, 314: 0.902, 315: 0.261, 316: 0.048,
    330: 0.010,
}  # fmt: skip


def test_probabilities_are_those_of_silero(sentence: np.ndarray) -> None:
    """Where speech begins and ends, the probabilities are those of Silero's own network."""
    found = detect(sentence)
    assert found[list(SILERO)] == pytest.approx(list(SILERO.values()), abs=0.02)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3 * SAMPLE_RATE), max_size=12), st.integers(1, 4 * SAMPLE_RATE))
def test_split_does_not_matter(splits: list[int], length: int) -> None:
    """However a stream is split, the probabilities are the same."""
    samples = (load_audio(SAMPLE) + 0.1 * noise(9)[: len(load_audio(SAMPLE))])[:length]
    pieces = np.split(samples, sorted(min(split, length) for split in splits))
    np.testing.assert_allclose(detect(*pieces), detect(samples), atol=1e-5)


@pytest.mark.parametrize("length", [0, 1, 511, 512, 513, 1024, 33_000])
def test_each_sample_is_in_one_frame(length: int) -> None:
    """There is a probability for each whole frame at once, and for the rest at the end."""
    detector = VoiceDetector()
    assert detector.push(tone(3)[:length]).shape == (length // FRAME_SAMPLES,)
    assert detector.finish().shape == (int(length % FRAME_SAMPLES > 0),)


@pytest.mark.parametrize("gain", [1.0, 0.1, 0.01, 3.0])
def test_speech_is_found_at_any_level(sentence: np.ndarray, gain: float) -> None:
    """The sentence has speech, the silence around it has none."""
    found = detect(gain * sentence)
    edge = round(1.9 * FRAMES_PER_SECOND)
    assert found[:edge].max() < 0.15
    assert found[-edge:].max() < 0.15
    assert (found[2 * edge : -2 * edge] > 0.5).mean() > 0.75


@pytest.mark.parametrize("language", ["de", "en", "es", "fr", "it"])
def test_speech_is_found_in_other_languages(language: str) -> None:
    """Synthesized speech in several voices is found."""
    samples = load_audio(CALIBRATION / f"calibration.{language}.ogg")[: 20 * SAMPLE_RATE]
    assert (detect(samples) > 0.5).mean() > 0.6


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(5 * SAMPLE_RATE),
        np.full(5 * SAMPLE_RATE, 1e30),
        np.full(5 * SAMPLE_RATE, 1e-42),
        np.resize([1e30, -1e30], 5 * SAMPLE_RATE),
        noise(5),
        1000 * noise(5),
        0.001 * noise(5),
        tone(5),
        tone(5, hertz=120),
    ],
    ids=["zeros", "huge", "tiny", "alternating", "noise", "loud", "quiet", "tone", "hum"],
)
def test_what_is_no_speech_has_a_low_probability(samples: np.ndarray) -> None:
    """Silence, noise, tones and samples out of range give finite, low probabilities."""
    found = detect(samples)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() < 0.15


def test_detectors_in_two_threads_do_not_meet(sentence: np.ndarray) -> None:
    """Two streams at once, in two threads, have the results of one after the other."""
    alone = detect(sentence)
    found: list[np.ndarray] = []

    def run() -> None:
        found.append(detect(*np.split(sentence, range(0, len(sentence), 5000))))

    others = [threading.Thread(target=run) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert len(found) == 2
    for result in found:
        np.testing.assert_allclose(result, alone, atol=1e-5)


def test_import_is_light() -> None:
    """Neither MLX nor FFmpeg is imported."""
    run_python(
        "-c",
        "import sys, fastwhisper.transcribing.cuts;"
        "sys.exit(bool({'mlx', 'mlx.core', 'av', 'anyio'} & set(sys.modules)))",
    )
