"""Audio for tests: tones and noise made here, and one recorded sentence."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np

__all__ = [
    "SAMPLE", "SAMPLE_RATE", "SENTENCE", "encode", "encode_at", "make_music", "noise", "spell",
    "to_bytes", "tone", "wav_bytes",
]  # fmt: skip

SAMPLE_RATE: Final = 16_000
"""Samples a second of what Whisper hears."""

SAMPLE: Final = Path(__file__).parent.parent / "data" / "sample.ogg"
"""A recording of `SENTENCE`, between 8 and 9 s long."""

SENTENCE: Final = (
    "Good morning. Today we will talk about the weather. "
    "It is going to rain in the north and the sun will shine in the south."
)


def spell(text: str) -> list[str]:
    """Return the words of a text without case and punctuation."""
    return "".join(c for c in text.casefold() if c.isalnum() or c.isspace()).split()


def to_bytes(samples: np.ndarray) -> bytes:
    """Return samples in [-1, 1] as 16-bit little-endian integers."""
    return (samples * 32767).astype("<i2").tobytes()


def tone(seconds: float, *, rate: int = SAMPLE_RATE, hertz: float = 440.0) -> np.ndarray:
    """Return a sine tone at half of full scale. Shape (samples,), float32."""
    time_s = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * time_s)).astype(np.float32)


def noise(seconds: float) -> np.ndarray:
    """Return noise that swells and fades, the same at each call. Shape (samples,), float32."""
    samples = np.random.default_rng(7).normal(0, 0.1, round(seconds * SAMPLE_RATE))
    return (samples * np.sin(np.arange(len(samples)) / 9000)).astype(np.float32)


def make_music(length: int) -> np.ndarray:
    """Make chords of plucked, vibrating tones, a bass and drums. Shape (samples,), float32."""
    random = np.random.default_rng(2)
    beat = SAMPLE_RATE // 2
    time_s = np.arange(2 * beat) / SAMPLE_RATE
    out = np.zeros(240 * beat + len(time_s))
    for index in range(240):
        start = index * beat
        root = 110 * 2 ** (random.choice([0, 3, 5, 7]) / 12)
        for ratio in (0.5, 1, 1.25, 1.5, random.choice([2, 2.25, 2.5, 3])):
            vibrato = 0.004 * np.sin(2 * np.pi * 5.5 * time_s)
            phase = 2 * np.pi * root * ratio * (time_s + vibrato / 5.5)
            for harmonic in range(1, 7):
                fade = np.exp(-time_s * (1.5 + harmonic / 2))
                out[start : start + len(time_s)] += fade * np.sin(harmonic * phase) / harmonic
        drum = random.normal(size=beat // 4) * np.exp(-np.arange(beat // 4) / 600)
        out[start : start + len(drum)] += drum
    return np.resize(out.astype(np.float32), length)


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


def encode_at(
    path: Path, pieces: dict[float, float], *, codec: str, container: str, picture: bool = False
) -> None:
    """Write tones at chosen times, and nothing between them.

    Args:
        path: Where to write.
        pieces: Begin and length of each tone in seconds.
        codec: FFmpeg's name of an audio codec that takes 48 kHz.
        container: FFmpeg's name of the file format.
        picture: Whether there is a video too, which begins at 0 s.
    """
    rate = 48_000
    with av.open(str(path), "w", format=container) as output:
        video = output.add_stream("mpeg4", rate=5, width=32, height=32) if picture else None
        stream = output.add_stream(codec, rate=rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        size = stream.codec_context.frame_size or 960
        if video is not None:
            black = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            black.pts, black.time_base = 0, Fraction(1, 5)
            output.mux(video.encode(black.reformat(format="yuv420p")))
            output.mux(video.encode(None))
        for start_s, seconds in pieces.items():
            values = (tone(seconds, rate=rate) * 32767).astype(np.int16)
            for first in range(0, len(values) - size + 1, size):
                frame = av.AudioFrame.from_ndarray(
                    values[None, first : first + size], format="s16", layout="mono"
                )
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                frame.pts = round(start_s * rate) + first
                for part in av.AudioResampler(stream.format, "mono", rate).resample(frame):
                    output.mux(stream.encode(part))
        output.mux(stream.encode(None))


def wav_bytes(samples: np.ndarray) -> bytes:
    """Return samples as a WAV file of 16 bits. Shape (samples,), float32."""
    buffer = io.BytesIO()
    encode(buffer, samples)
    return buffer.getvalue()
