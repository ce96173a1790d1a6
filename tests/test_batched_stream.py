"""Batches of a session: text, progress, memory, and a cancel at every check, on both loops."""

from __future__ import annotations

import gc
import itertools
import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import mlx.core as mx
import numpy as np
import pytest

import fastwhisper
from fastwhisper import AudioError, SessionClosedError, TranscribeProgress
from fastwhisper.engine import tasks, threads
from fastwhisper.transcribing import cuts, parts
from fastwhisper.transcribing.mel import MelAudio
from fastwhisper.transcribing.window_decoder import WindowDecoder
from tests.helpers.audio import SAMPLE_RATE, wav_bytes
from tests.helpers.tiny_models import SPEAKING, write_babbler
from tests.helpers.tones import ToneDetector, alternate, silence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from fastwhisper.stream import SegmentStream
    from fastwhisper.transcribing.window_decoder import WindowRef
    from fastwhisper.values import Segment, Transcription

pytestmark = pytest.mark.anyio

SHORT: Any = {"temperature": 0.9, "seed": 1, "sample_len": 4, "without_timestamps": True}
"""Options with which a segment is a whole window, and each window says something else."""

TALK = alternate(1, 4, 3, 5, 3, 6, 3, 2, 3, 5, 4)
"""Speech at 1 to 5, 8 to 13, 16 to 22, 25 to 27 and 30 to 35 s. Shape (39 s,), float32."""

STARTS = [0.6, 7.6, 15.6, 24.6, 29.6]
"""Where each part of it begins with `vad_filter`, in seconds."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a one-layer model that says words."""
    return write_babbler(tmp_path_factory.mktemp("babbler") / "model", multilingual=False)


@pytest.fixture(autouse=True)
def tones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tones be speech, so that a test says exactly where speech is."""
    monkeypatch.setattr(cuts, "VoiceDetector", ToneDetector)


@pytest.fixture(autouse=True)
def encoded(
    monkeypatch: pytest.MonkeyPatch,
    no_window_to_warm_up: None,
) -> list[int]:
    """Save the encoder's time, and return how many windows are encoded together from now on."""
    seen: list[int] = []

    def encode(decoder: WindowDecoder, windows: Sequence[WindowRef]) -> mx.array:
        for window in windows:
            decoder.check()
            mx.eval(window.audio.window(window.start_frame, window.frames))
        seen.append(len(windows))
        features = mx.zeros((len(windows), SPEAKING.n_audio_ctx, SPEAKING.n_audio_state))
        mx.eval(features)
        return features

    monkeypatch.setattr(WindowDecoder, "encode", encode)
    return seen


@pytest.mark.parametrize("batch_size", [2, 4, 16])
async def test_batches_say_what_single_windows_say(
    model: Path, encoded: list[int], batch_size: int
) -> None:
    """The same segments at any size, at their times in the audio."""
    one: Any = {**SHORT, "vad_filter": True, "condition_on_previous_text": False}
    async with fastwhisper.open(model) as session:
        single = await session.transcribe(TALK, **one)
        assert encoded == [1] * 5
        encoded.clear()
        batched = await session.transcribe(TALK, vad_filter=True, batch_size=batch_size, **SHORT)
    assert encoded[0] == min(batch_size, 5)
    assert sum(encoded) == 5
    assert batched.text == single.text
    assert [segment.tokens for segment in batched.segments] == [
        segment.tokens for segment in single.segments
    ]
    assert len({segment.tokens for segment in batched.segments}) == 5
    for found in (single, batched):
        assert [segment.start_s for segment in found.segments] == pytest.approx(STARTS, abs=0.05)
        assert found.duration_s == len(TALK) / SAMPLE_RATE


async def test_progress_after_each_batch(model: Path) -> None:
    """What is done and what is read grow, and at the end both are known."""
    heard: list[TranscribeProgress] = []
    async with fastwhisper.open(model) as session:
        await session.transcribe(
            TALK, on_progress=heard.append, vad_filter=True, batch_size=2, **SHORT
        )
    done = [now.done_s for now in heard]
    assert len(heard) == 3
    assert done == sorted(done)
    assert all(now.done_s <= now.duration_s <= 39 for now in heard)
    # The silence behind the last text is done too.
    assert heard[-1] == TranscribeProgress(39.0, 39.0)


async def test_silence_has_no_text(model: Path, encoded: list[int]) -> None:
    """Nothing is decoded, the length is known, and the end is progress too."""
    heard: list[TranscribeProgress] = []
    async with fastwhisper.open(model) as session:
        for options in ({"vad_filter": True}, {"batch_size": 4}):
            found = await session.transcribe(
                silence(100), on_progress=heard.append, language="en", **options
            )
            assert (found.text, found.segments, found.language) == ("", (), "en")
            assert found.duration_s == 100
    assert encoded == []
    assert heard == [TranscribeProgress(100.0, 100.0)] * 2


async def test_stream_gives_a_batch_after_the_other(model: Path, encoded: list[int]) -> None:
    """The segments of a batch come before the next batch is decoded."""
    async with fastwhisper.open(model) as session:
        stream = session.stream(TALK, vad_filter=True, batch_size=2, **SHORT)
        seen = [len(encoded) async for _ in stream]
        assert seen == [1, 1, 2, 2, 3]
        for _ in range(2):
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
    with pytest.raises(SessionClosedError):
        await anext(stream)
    assert stream.so_far is not None
    assert len(stream.so_far.segments) == 5


async def test_leaving_the_session_between_batches(model: Path) -> None:
    """The segments of the batch are still given, and then the stream is closed."""
    async with fastwhisper.open(model) as session:
        stream = session.stream(TALK, vad_filter=True, batch_size=2, **SHORT)
        await anext(stream)
    assert await anext(stream)
    with pytest.raises(SessionClosedError):
        await anext(stream)
    assert stream.done_s > 0


async def test_audio_that_breaks_off(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text before the broken place comes first. Then the stream fails, at each call."""
    mine = AudioError("talk.wav", "broken")
    real = cuts.cut_at_silences

    def break_off(*args: Any, **options: Any) -> Iterator[cuts.Cut]:
        yield from itertools.islice(real(*args, **options), 7)
        raise mine

    monkeypatch.setattr(parts, "cut_at_silences", break_off)
    long = np.concatenate([TALK] * 4)
    for batch_size in (1, 2, 8):
        async with fastwhisper.open(model) as session:
            options: Any = {**SHORT, "vad_filter": True, "batch_size": batch_size}
            stream = session.stream(long, **options)
            segments: list[Segment] = []
            for _ in range(2):
                with pytest.raises(AudioError) as caught:
                    await collect(stream, segments)
                assert caught.value is mine
            assert len(segments) == 7
            assert stream.so_far is not None
            assert stream.so_far.segments == tuple(segments)
            assert (await session.transcribe(TALK, **SHORT)).segments


class Alarm:
    """Cancels a scope at one of the checks, and waits there until it is told to stop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.cancel_at = 0
        self.cancel: Callable[[], object] = lambda: None
        self._lock = threading.Lock()
        real = threads.check
        never = threading.Event()

        def check() -> None:
            with self._lock:
                self.calls += 1
                is_mine = self.calls == self.cancel_at
            if is_mine:
                self.cancel()
                while not never.wait(0.002):
                    real()
            real()

        monkeypatch.setattr(threads, "check", check)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["samples", "path"])
async def test_cancelled_anywhere_nothing_is_lost(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Whatever ran when the cancel came, the stream goes on, and its segments are the same."""
    audio: Any = TALK
    if source == "path":
        audio = tmp_path / "talk.wav"
        audio.write_bytes(wav_bytes(TALK))
    options: Any = {**SHORT, "vad_filter": True, "batch_size": 2}
    async with fastwhisper.open(model, dtype="float32") as session:
        alarm = Alarm(monkeypatch)
        expected = await session.transcribe(audio, **options)
        checks = alarm.calls
        post = tasks.on_this_loop()
        for cancel_at in range(1, checks + 1, 1 if source == "samples" else 20):
            stream = session.stream(audio, **options)
            segments: list[Segment] = []
            with anyio.CancelScope() as scope:
                alarm.calls, alarm.cancel_at = 0, cancel_at
                alarm.cancel = partial(post, scope.cancel)
                await collect(stream, segments)
            alarm.cancel_at = 0
            await collect(stream, segments)
            so_far = stream.so_far
            assert so_far is not None
            assert repr(tuple(segments)) == repr(so_far.segments)
            assert repr(round_sums(so_far)) == repr(round_sums(expected))


def round_sums(result: Transcription) -> Transcription:
    """Round what the size of a batch changes: a product of more rows may add in another order."""
    segments = (
        replace(
            segment,
            avg_logprob=round(segment.avg_logprob, 3),
            no_speech_prob=round(segment.no_speech_prob, 3),
        )
        for segment in result.segments
    )
    return replace(result, segments=tuple(segments))


async def collect(stream: SegmentStream, segments: list[Segment]) -> None:
    """Append what is left of a stream, segment by segment: a cancel keeps those before it."""
    async for segment in stream:
        segments.append(segment)  # noqa: PERF401  kept when the stream raises


async def test_few_parts_are_kept(model: Path) -> None:
    """However long an audio is, the mel of two batches is in memory, and little more."""
    kept: list[int] = []

    def count(_: TranscribeProgress) -> None:
        kept.append(sum(type(each) is MelAudio for each in gc.get_objects()))

    long = np.concatenate([TALK] * 8)
    async with fastwhisper.open(model) as session:
        found = await session.transcribe(
            long, on_progress=count, vad_filter=True, batch_size=4, **SHORT
        )
    assert len(found.segments) == 40
    assert len(kept) == 11  # a batch each, and the silence at the end
    assert max(kept) <= 9
