"""An mlx_whisper app."""

from __future__ import annotations

import mlx.core as mx
from mlx_whisper.audio import log_mel_spectrogram, pad_or_trim
from mlx_whisper.decoding import DecodingOptions, DecodingTask
from mlx_whisper.load_models import load_model


def first_words(directory: str, samples: mx.array) -> str:
    """Transcribe the first 30 s of samples at 16 kHz. Shape (samples,), float32."""
    model = load_model(directory, dtype=mx.float32)
    mel = log_mel_spectrogram(pad_or_trim(samples), n_mels=model.dims.n_mels)
    options = DecodingOptions(language="en", fp16=False, sample_len=8)
    (result,) = DecodingTask(model, options).run(mel[None])
    text: str = result.text
    return text
