"""Options of a transcription: refused by name before any work, with upstream's defaults."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, asdict, fields
from typing import Any, get_type_hints

import numpy as np
import pytest
from mlx_whisper import tokenizer as upstream_tokenizer
from mlx_whisper.decoding import DecodingOptions
from mlx_whisper.transcribe import transcribe

from fastwhisper.whisper.languages import LANGUAGES, find_language_code
from fastwhisper.whisper.options import DecodeSettings, TranscribeOptions
from tests.helpers.interpreter import run_python


def test_defaults_are_upstreams() -> None:
    """Without options everything is as in `mlx_whisper.transcribe`."""
    theirs = {
        name: parameter.default
        for name, parameter in inspect.signature(transcribe).parameters.items()
    } | asdict(DecodingOptions())
    theirs["temperature"] = inspect.signature(transcribe).parameters["temperature"].default
    theirs["clip_timestamps"] = (float(theirs["clip_timestamps"]),)
    theirs["suppress_tokens"] = (int(theirs["suppress_tokens"]),)
    ours = asdict(DecodeSettings())
    # OpenAI's, which mlx_whisper lacks, and ours.
    assert ours.pop("carry_initial_prompt") is False
    assert ours.pop("languages") is None
    assert ours.pop("seed") is None
    assert ours.pop("batch_size") == 1
    assert ours.pop("vad_filter") is False
    assert ours == {name: theirs[name] for name in ours}


def test_the_typed_options_are_the_fields() -> None:
    """No option lacks a type for type checkers, or a field."""
    named = {"language", "task", "seed"}
    assert set(get_type_hints(TranscribeOptions)) | named == {
        field.name for field in fields(DecodeSettings)
    }


def test_no_options_are_the_defaults() -> None:
    """Checking changes no default."""
    assert DecodeSettings.from_options() == DecodeSettings()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"language": "Spanish"}, {"language": "es"}),
        ({"language": "JA"}, {"language": "ja"}),
        ({"language": "castilian"}, {"language": "es"}),
        ({"languages": ("en", "German", "DE")}, {"languages": ("en", "de")}),
        ({"languages": "en, castilian"}, {"languages": ("en", "es")}),
        ({"languages": ["ja"]}, {"languages": ("ja",)}),
        ({"languages": ["ja"], "language": None}, {"languages": ("ja",)}),
        ({"languages": None, "language": "ja"}, {"language": "ja"}),
        ({"carry_initial_prompt": True}, {"carry_initial_prompt": True}),
        ({"temperature": 0}, {"temperature": (0.0,)}),
        ({"temperature": [0, 0.5]}, {"temperature": (0.0, 0.5)}),
        ({"temperature": np.float32(0.5)}, {"temperature": (0.5,)}),
        ({"clip_timestamps": "1,2.5"}, {"clip_timestamps": (1.0, 2.5)}),
        ({"clip_timestamps": ""}, {"clip_timestamps": ()}),
        ({"clip_timestamps": [0, 3]}, {"clip_timestamps": (0.0, 3.0)}),
        ({"suppress_tokens": "-1,50"}, {"suppress_tokens": (-1, 50)}),
        ({"suppress_tokens": ""}, {"suppress_tokens": ()}),
        ({"suppress_tokens": None}, {"suppress_tokens": None}),
        ({"suppress_tokens": range(3)}, {"suppress_tokens": (0, 1, 2)}),
        ({"prefix": "And"}, {"prefix": "And"}),
        ({"prefix": [1, 2]}, {"prefix": (1, 2)}),
        ({"no_speech_threshold": None}, {"no_speech_threshold": None}),
        ({"task": "translate", "seed": np.int64(4)}, {"task": "translate", "seed": 4}),
    ],
)
def test_options_take_the_forms_upstream_takes(
    options: dict[str, Any], expected: dict[str, object]
) -> None:
    """Numbers, sequences and comma-separated strings become plain values."""
    assert DecodeSettings.from_options(**options) == DecodeSettings(**expected)  # type: ignore[arg-type]  # any field


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"beam_size": 5}, TypeError),
        ({"tempreature": 0}, TypeError),
        ({"language": 3}, TypeError),
        ({"language": "klingon"}, ValueError),
        ({"languages": "en,klingon"}, ValueError),
        ({"languages": ("en", "")}, ValueError),
        ({"languages": ()}, ValueError),
        ({"languages": ""}, ValueError),
        ({"languages": ("en", 3)}, TypeError),
        ({"languages": 3}, TypeError),
        ({"carry_initial_prompt": "yes"}, TypeError),
        ({"task": "sing"}, ValueError),
        ({"task": None}, ValueError),
        ({"seed": 1.5}, TypeError),
        ({"seed": True}, TypeError),
        ({"seed": -1}, ValueError),
        ({"seed": 1 << 64}, ValueError),
        ({"temperature": "0"}, TypeError),
        ({"temperature": None}, TypeError),
        ({"temperature": ()}, ValueError),
        ({"temperature": -0.1}, ValueError),
        ({"temperature": float("nan")}, ValueError),
        ({"temperature": float("inf")}, ValueError),
        ({"logprob_threshold": "x"}, TypeError),
        ({"no_speech_threshold": float("nan")}, ValueError),
        ({"condition_on_previous_text": 1}, TypeError),
        ({"word_timestamps": None}, TypeError),
        ({"initial_prompt": b"x"}, TypeError),
        ({"prepend_punctuations": None}, TypeError),
        ({"clip_timestamps": "a"}, ValueError),
        ({"clip_timestamps": [-1.0]}, ValueError),
        ({"clip_timestamps": [float("inf")]}, ValueError),
        ({"clip_timestamps": 3}, TypeError),
        ({"hallucination_silence_threshold": -1}, ValueError),
        ({"sample_len": 0}, ValueError),
        ({"best_of": 0}, ValueError),
        ({"best_of": 1.0}, TypeError),
        ({"length_penalty": 1.1}, ValueError),
        ({"prefix": 3}, TypeError),
        ({"prefix": [-1]}, ValueError),
        ({"suppress_tokens": "a"}, ValueError),
        ({"suppress_tokens": [1.5]}, TypeError),
        ({"suppress_tokens": [-2]}, ValueError),
        ({"suppress_blank": "yes"}, TypeError),
        ({"batch_size": 0}, ValueError),
        ({"batch_size": 1025}, ValueError),
        ({"batch_size": 2.0}, TypeError),
        ({"vad_filter": 1}, TypeError),
        ({"max_initial_timestamp": -1}, ValueError),
        ({"max_initial_timestamp": float("inf")}, ValueError),
    ],
    ids=str,
)
def test_a_wrong_option_is_named(options: dict[str, Any], error: type[Exception]) -> None:
    """The message says which option, and what it was."""
    (name,) = options
    with pytest.raises(error, match=name):
        DecodeSettings.from_options(**options)


def test_a_language_is_given_or_detected() -> None:
    """The language that is spoken and the languages to detect among exclude each other."""
    with pytest.raises(ValueError, match=r"language='en' and languages=\('en',\) are both given"):
        DecodeSettings.from_options(language="en", languages=("en",))


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"vad_filter": True}], ids=str)
@pytest.mark.parametrize("clips", ["8,11,0,2", "1,5,4,9", "5,1", "0,5,3"])
def test_clips_that_go_back_are_refused(options: dict[str, Any], clips: str) -> None:
    """Text is in the order of the audio: clips that go back or overlap are named."""
    assert DecodeSettings.from_options(clip_timestamps="1,5,5,9,12", **options)
    with pytest.raises(ValueError, match=f"clip_timestamps='{clips}' go back in time"):
        DecodeSettings.from_options(clip_timestamps=clips, **options)


def test_an_unknown_language_lists_the_known_ones() -> None:
    """Whoever mistypes a language sees what to type."""
    with pytest.raises(ValueError, match=r"'klingon'.*en \(english\).*yue \(cantonese\)"):
        find_language_code("klingon")


def test_languages_are_upstreams() -> None:
    """Codes, names, aliases and their order are those of the tokenizer."""
    assert list(LANGUAGES.items()) == list(upstream_tokenizer.LANGUAGES.items())
    for name, code in upstream_tokenizer.TO_LANGUAGE_CODE.items():
        assert find_language_code(name) == find_language_code(name.title()) == code


def test_settings_can_not_be_changed() -> None:
    """Checked once is checked for good."""
    with pytest.raises(FrozenInstanceError):
        DecodeSettings().seed = 3  # type: ignore[misc]  # the point


def test_importing_it_imports_no_mlx() -> None:
    """Options are checked before anything heavy is imported."""
    program = (
        "import sys, fastwhisper.whisper.options, fastwhisper.cli.writers\n"
        "print([m for m in ('mlx', 'numpy', 'mlx_whisper') if m in sys.modules])"
    )
    assert run_python("-c", program).stdout == "[]\n"
