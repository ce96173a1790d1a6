"""What type checkers see of the public surface. Read by mypy, never run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, assert_type

import mlx.core as mx
import numpy as np

import fastwhisper
from fastwhisper import (
    Checkpoint,
    Closed,
    Failed,
    LiveText,
    Loading,
    LoadingState,
    LoadOptions,
    LoadResult,
    LoadStats,
    ModulePrecision,
    Quantization,
    Ready,
    Segment,
    Session,
    TranscribeProgress,
    Transcription,
    WhisperModel,
)
from fastwhisper.whisper.network import Whisper

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager


async def microphone() -> AsyncGenerator[bytes | np.ndarray]:
    """Sound, in either form."""
    yield b""
    yield np.zeros(1600, np.float32)


async def opening() -> None:
    """open() and what is inside its block."""
    opened: AbstractAsyncContextManager[Session] = fastwhisper.open(
        "large-v3-turbo", quant="int4", background=True, memory_map=False
    )
    async with opened as session:
        assert_type(session, Session)
        assert_type(session.result, LoadResult)
        assert_type(session.state, LoadingState)
        assert_type(session.is_ready, bool)
        assert_type(await session.wait_until_ready(timeout=None), LoadStats)
        assert_type(await session.transcribe("a.wav", language="en", seed=1), Transcription)
        assert_type(
            await session.transcribe(np.zeros(16_000, np.float32), temperature=(0.0, 0.2)),
            Transcription,
        )
        async for segment in session.stream(Path("a.wav"), word_timestamps=True):
            assert_type(segment, Segment)
        async for heard in session.listen(microphone(), language="en", min_chunk_s=0.5):
            assert_type(heard, LiveText)
        assert_type(await session.detect_language("a.wav"), Mapping[str, float])
        await session.transcribe(
            "a.wav",
            carry_initial_prompt=True,
            languages=("en", "de"),
            on_progress=lambda progress: assert_type(progress, TranscribeProgress),
        )
        match session.state:
            case Loading() | Closed():
                pass
            case Ready(stats):
                assert_type(stats, LoadStats)
            case Failed(error):
                assert_type(error, BaseException)


async def loading() -> None:
    """load() and its result."""
    result = await fastwhisper.load(WhisperModel.TINY, options=LoadOptions.FAST, fallback=None)
    assert_type(result, LoadResult)
    assert_type(result.model, Whisper)
    assert_type(result.actual, Quantization)
    assert_type(result.precision, Mapping[str, ModulePrecision])
    assert_type(result.did_fallback, bool)
    assert_type(result.raise_for_fallback(), LoadResult)


def core() -> None:
    """The pure functions."""
    assert_type(fastwhisper.resolve_repo("tiny", Quantization.INT8), str)
    checkpoint = fastwhisper.inspect_checkpoint("model")
    assert_type(checkpoint, Checkpoint)
    assert_type(fastwhisper.build_module(checkpoint), Whisper)
    assert_type(
        fastwhisper.read_shards(checkpoint, prefix="encoder."), Iterator[Mapping[str, mx.array]]
    )
    module: object = fastwhisper.load_model(
        "model", mx.float16
    )  # mlx_whisper's, which has no types
    assert module is not None
