"""Audio for tests: tones and noise made here, and one recorded sentence."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import av
import numpy as np

__all__ = ["SAMPLE", "SAMPLE_RATE", "SENTENCE", "encode", "noise", "tone", "wav_bytes"]

SAMPLE_RATE: Final = 16_000
"""Samples a second of what Whisper hears."""

SAMPLE: Final = Path(__file__).parent.parent / "data" / "sample.ogg"
"""A recording of `SENTENCE`, between 8 and 9 s long."""

SENTENCE: Final = (
    "Good morning. Today we will talk about the weather. "
    "It is going to rain in the north and the sun will shine in the south."
)


def tone(seconds: float, *, rate: int = SAMPLE_RATE, hertz: float = 440.0) -> np.ndarray:
    """Return a sine tone at half of full scale. Shape (samples,), float32."""
    time_s = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * time_s)).astype(np.float32)


def noise(seconds: float) -> np.ndarray:
    """Return noise that swells and fades, the same at each call. Shape (samples,), float32."""
    samples = np.random.default_rng(7).normal(0, 0.1, round(seconds * SAMPLE_RATE))
    return (samples * np.sin(np.arange(len(samples)) / 9000)).astype(np.float32)


def encode(
    file: Path | io.BytesIO,
    samples: np.ndarray,
    *,
    codec: str = "pcm_s16le",
    container: str = "wav",
    rate: int = SAMPLE_RATE,
    layout: str = "mono",
) -> None:
    """Write samples as a media file.

    Args:
        file: Where to write.
        samples: Samples in [-1, 1]. Shape (samples,), float32, for every channel; or (samples,
            channels).
        codec: FFmpeg's name of the codec.
        container: FFmpeg's name of the file format.
        rate: Samples a second.
        layout: FFmpeg's name of the channel layout.
    """
    target = file if isinstance(file, io.BytesIO) else str(file)
    with av.open(target, "w", format=container) as output:
        # FFmpeg's own Vorbis encoder is marked as experimental.
        options = {"strict": "experimental"}
        stream = output.add_stream(codec, rate=rate, layout=layout, options=options)
        assert isinstance(stream, av.AudioStream)
        channels = stream.layout.nb_channels
        values = (samples * 32767).astype(np.int16)
        packed = (np.repeat(values, channels) if samples.ndim == 1 else values).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(
            stream.format, layout, rate, frame_size=stream.codec_context.frame_size or 1024
        )
        for source in (frame, None):
            for part in resampler.resample(source):
                output.mux(stream.encode(part))
        output.mux(stream.encode(None))


def wav_bytes(samples: np.ndarray) -> bytes:
    """Return samples as a WAV file of 16 bits. Shape (samples,), float32."""
    buffer = io.BytesIO()
    encode(buffer, samples)
    return buffer.getvalue()
