"""The speech that int4 is calibrated on: files of the package, transcribed by the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastwhisper.engine import threads
from fastwhisper.quantizing.calibrate import CalibrationWindow
from fastwhisper.transcribing.mel import WINDOW_FRAMES, compute_mel
from fastwhisper.transcribing.samples import load_audio
from fastwhisper.transcribing.window_decoder import WindowDecoder, WindowRef
from fastwhisper.whisper.filters import SAMPLE_RATE
from fastwhisper.whisper.options import DecodeSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastwhisper.whisper.network import Whisper

__all__ = ["read_calibration_windows"]

_DATA: Final = Path(__file__).parent / "data"
_LANGUAGES: Final = ("en", "de", "es", "fr", "it")
_WINDOW_SAMPLES: Final = 30 * SAMPLE_RATE

_MAX_COMPRESSION_RATIO: Final = 2.4
"""Above this compression ratio a text repeats itself and is not used. Source: Radford et al. 2022,
section 4.5."""


def read_calibration_windows(model: Whisper) -> Iterator[CalibrationWindow]:
    """Read the package's speech, and transcribe it with a model. Runs in the compute thread.

    Args:
        model: The network, in float32. One that knows English only gets the English speech.

    Yields:
        Each window of 30 s with its text; without text where the model repeats itself.
    """
    for language in _LANGUAGES if model.is_multilingual else _LANGUAGES[:1]:
        samples = load_audio(_DATA / f"calibration.{language}.ogg", check=threads.check)
        settings = DecodeSettings.from_options(language=language, temperature=0.0)
        # The codec adds samples at the end: less than half a window is no window.
        for start in range(0, len(samples) - _WINDOW_SAMPLES // 2, _WINDOW_SAMPLES):
            window = samples[start : start + _WINDOW_SAMPLES]
            mel = compute_mel(window, n_mels=model.dims.n_mels, check=threads.check)
            decoder = WindowDecoder(model, settings, fp16=False, check=threads.check)
            decoder.begin(mel)
            features = decoder.encode([WindowRef(mel, 0, WINDOW_FRAMES)])
            [result] = decoder.decode(decoder.read(features), [()], start_frames=[0])
            text = result.tokens if result.compression_ratio <= _MAX_COMPRESSION_RATIO else []
            yield CalibrationWindow(
                mel=mel.window(0, WINDOW_FRAMES),
                features=features[0],
                tokens=(*decoder.tokenizer.sot_sequence, *text),
            )
