"""Streams of one or more sessions: window by window, fair, and stoppable anywhere."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import weakref
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import mlx.core as mx
import pytest

import fastwhisper
from fastwhisper import SessionClosedError, TranscribeProgress
from fastwhisper.engine import tasks, threads
from fastwhisper.transcribing.open_audio import OpenAudio
from fastwhisper.transcribing.window_decoder import WindowDecoder
from tests.helpers.audio import noise, wav_bytes
from tests.helpers.interpreter import run_python
from tests.helpers.tiny_models import SPEAKING, write_babbler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from fastwhisper.transcribing.window_decoder import WindowRef
    from fastwhisper.values import Segment

pytestmark = pytest.mark.anyio

SHORT: Any = {"temperature": 0.0, "sample_len": 6, "without_timestamps": True}
"""Options with which a segment is a whole window of six tokens."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a one-layer model that says words."""
    return write_babbler(tmp_path_factory.mktemp("babbler") / "model", multilingual=False)


@pytest.fixture(scope="module")
def minute() -> np.ndarray:
    """Return 65 s of noise: three windows. Shape (samples,), float32."""
    return noise(65)


class Turnstile:
    """Counts the windows that are encoded, and holds one at its encoder or at a token."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered: list[tuple[int, int]] = []
        self.threads: set[str] = set()
        self.reached = threading.Event()
        self.hold_at: int | None = None
        self.hears_nothing = False  # saves the encoder's time
        self.open = threading.Event()
        self._numbers = itertools.count()
        self._streams: dict[int, int] = {}
        self._keep: list[WindowDecoder] = []
        real = WindowDecoder.encode

        def encode(decoder: WindowDecoder, windows: Sequence[WindowRef]) -> Any:
            self._keep.append(decoder)  # an id may not be used again
            stream = self._streams.setdefault(id(decoder), len(self._streams))
            self.entered += [(stream, window.start_frame) for window in windows]
            self.threads.add(threading.current_thread().name)
            if next(self._numbers) == self.hold_at:
                self.reached.set()
                while not self.open.wait(0.002):
                    threads.check()
            if self.hears_nothing:
                features = mx.zeros((len(windows), 1500, SPEAKING.n_audio_state))
                mx.eval(features)
                return features
            return real(decoder, windows)

        monkeypatch.setattr(WindowDecoder, "encode", encode)

    async def wait_until_reached(self) -> None:
        """Wait until the window to hold stands."""
        await anyio.to_thread.run_sync(self.reached.wait, abandon_on_cancel=True)

    async def open_when_waiting(self, others: int) -> None:
        """Let the held window go on once so many others stand in the compute queue."""
        compute = threads._threads.queues[threads.Lane.COMPUTE]  # type: ignore[union-attr]  # started
        while compute.qsize() < others:  # their mels are made meanwhile
            await anyio.lowlevel.checkpoint()
        self.open.set()


@pytest.fixture
def turnstile(
    monkeypatch: pytest.MonkeyPatch,
    no_window_to_warm_up: None,
) -> Iterator[Turnstile]:
    """Return a turnstile that holds nothing yet."""
    made = Turnstile(monkeypatch)
    yield made
    made.open.set()


async def test_a_segment_comes_before_the_next_window(
    model: Path, minute: np.ndarray, turnstile: Turnstile
) -> None:
    """The first segment is there while the second window has not begun, and so on."""
    async with fastwhisper.open(model) as session:
        stream = session.stream(minute, **SHORT)
        assert turnstile.entered == []
        seen = [
            (segment.start_s, len(turnstile.entered), stream.done_s) async for segment in stream
        ]
    assert seen == [(0.0, 1, 30.0), (30.0, 2, 60.0), (60.0, 3, 65.0)]
    assert stream.duration_s == 65.0


async def test_progress_after_each_window(model: Path, minute: np.ndarray) -> None:
    """`on_progress` hears of each window on the loop's thread, and before its first segment."""
    heard: list[tuple[TranscribeProgress, int]] = []

    def report(progress: TranscribeProgress) -> None:
        heard.append((progress, threading.get_ident()))

    expected = [TranscribeProgress(end_s, 65.0) for end_s in (30.0, 60.0, 65.0)]
    here = threading.get_ident()
    async with fastwhisper.open(model) as session:
        await session.transcribe(minute, on_progress=report, **SHORT)
        assert heard == [(progress, here) for progress in expected]
        heard.clear()
        stream = session.stream(minute, on_progress=report, **SHORT)
        counts = [len(heard) async for _ in stream]
    assert counts == [1, 2, 3]
    assert [progress for progress, _ in heard] == expected


async def test_progress_in_silence(model: Path, minute: np.ndarray) -> None:
    """Windows without a segment are progress too."""
    heard: list[float] = []
    silence: Any = {**SHORT, "no_speech_threshold": 0.0, "logprob_threshold": None}
    async with fastwhisper.open(model) as session:
        stream = session.stream(minute, on_progress=lambda now: heard.append(now.done_s), **silence)
        assert [segment async for segment in stream] == []
    assert heard == [30.0, 60.0, 65.0]


async def test_what_on_progress_raises_fails_the_transcription(
    model: Path, minute: np.ndarray, turnstile: Turnstile
) -> None:
    """The very exception comes out, bare; no further window is decoded; the session goes on."""
    mine = ZeroDivisionError("mine")

    def fail(progress: TranscribeProgress) -> None:
        if progress.done_s > 30:
            raise mine

    async with fastwhisper.open(model) as session:
        with pytest.raises(ZeroDivisionError) as caught:
            await session.transcribe(minute, on_progress=fail, **SHORT)
        assert caught.value is mine
        assert len(turnstile.entered) == 2
        stream = session.stream(minute, on_progress=fail, **SHORT)
        await anext(stream)
        with pytest.raises(ZeroDivisionError) as caught:
            await anext(stream)
        assert caught.value is mine
        assert (await session.transcribe(minute[:16_000], **SHORT)).segments


async def test_an_mlx_array_is_heard_as_it_was_given(model: Path) -> None:
    """Items that are assigned later, which makes the array lazy again, are another array's."""
    samples = mx.array(noise(2))
    async with fastwhisper.open(model) as session:
        expected = await session.transcribe(noise(2), **SHORT)
        stream = session.stream(samples, **SHORT)
        samples[:16_000] = 0
        assert [segment async for segment in stream] == list(expected.segments)


async def test_a_second_task_is_refused(
    model: Path, minute: np.ndarray, turnstile: Turnstile
) -> None:
    """Only one task may wait for a stream. It gets every segment, and then another one may wait."""
    turnstile.hold_at = 0
    segments: list[Segment] = []

    async with fastwhisper.open(model) as session:
        stream = session.stream(minute, **SHORT)

        async def first() -> None:
            segments.append(await anext(stream))

        async with anyio.create_task_group() as group:
            group.start_soon(first)
            await turnstile.wait_until_reached()
            with pytest.raises(anyio.BusyResourceError, match="already waiting for"):
                await anext(stream)
            turnstile.open.set()
        segments += [segment async for segment in stream]
    assert [segment.start_s for segment in segments] == [0.0, 30.0, 60.0]


async def test_a_translation_with_words_warns_its_caller(tmp_path: Path) -> None:
    """As upstream, word times of a translation come with a warning: at the line that asks."""
    options: Any = {**SHORT, "task": "translate", "word_timestamps": True}
    multilingual = write_babbler(tmp_path / "model", multilingual=True)
    async with fastwhisper.open(multilingual) as session:
        with pytest.warns(UserWarning, match="translation") as caught:
            await session.transcribe(noise(1), **options)
        with pytest.warns(UserWarning, match="translation") as streamed:
            session.stream(noise(1), **options)
    for warning in (*caught, *streamed):
        assert Path(warning.filename) == Path(__file__)


async def test_nothing_runs_between_two_segments(
    model: Path, minute: np.ndarray, turnstile: Turnstile
) -> None:
    """Whatever else the loop and the engine do, the next window waits to be asked for."""
    async with fastwhisper.open(model) as session:
        stream = session.stream(minute, **SHORT)
        await anext(stream)
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        # The compute lane runs one job after another: it is idle once this one is done.
        await threads.run(lambda: None, threads.Lane.COMPUTE)
        assert turnstile.entered == [(0, 0)]


async def test_left_after_a_segment_nothing_is_left(
    model: Path, minute: np.ndarray, turnstile: Turnstile
) -> None:
    """Breaking out frees the mel at once, without the session being left."""
    async with fastwhisper.open(model) as session:
        stream = session.stream(minute, **SHORT)
        async for _ in stream:
            break
        gone = weakref.ref(stream)
        turnstile._keep.clear()
        del stream
        gc.collect()
        assert gone() is None
        assert (await session.transcribe(minute[:16_000], **SHORT)).segments
    assert [start for _, start in turnstile.entered] == [0, 0]


async def test_cancelled_between_two_windows(
    model: Path, minute: np.ndarray, turnstile: Turnstile
) -> None:
    """A task cancelled while it holds a segment decodes no further window."""
    seen: list[float] = []
    arrived = anyio.Event()

    async def listen(session: fastwhisper.Session) -> None:
        async for segment in session.stream(minute, **SHORT):
            seen.append(segment.start_s)
            arrived.set()
            await anyio.sleep_forever()

    async with fastwhisper.open(model) as session:
        async with anyio.create_task_group() as group:
            group.start_soon(listen, session)
            await arrived.wait()
            group.cancel_scope.cancel()
        await threads.run(lambda: None, threads.Lane.COMPUTE)
        assert seen == [0.0]
        assert len(turnstile.entered) == 1
        assert session.is_ready


@pytest.mark.parametrize("window", [pytest.param(0, marks=pytest.mark.slow), 1])
async def test_cancelled_within_a_window_and_asked_again(
    model: Path, minute: np.ndarray, turnstile: Turnstile, window: int
) -> None:
    """What was cut short is decoded anew: no segment is lost, and none comes twice."""
    async with fastwhisper.open(model) as session:
        whole = await session.transcribe(minute, **SHORT)
        turnstile.hold_at = len(turnstile.entered) + window
        stream = session.stream(minute, **SHORT)
        segments = [await anext(stream) for _ in range(window)]
        async with anyio.create_task_group() as group:
            group.start_soon(anext, stream)
            await turnstile.wait_until_reached()
            group.cancel_scope.cancel()
        segments += [segment async for segment in stream]
        assert tuple(segments) == whole.segments
        assert stream.so_far == whole


@pytest.mark.slow
async def test_cancelled_as_a_window_ends(
    model: Path, minute: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window that was done when the cancel came is not lost."""
    async with fastwhisper.open(model) as session:
        whole = await session.transcribe(minute, **SHORT)
        stream = session.stream(minute, **SHORT)
        with anyio.CancelScope() as scope:
            real = OpenAudio.decode

            def cancel_at_the_end(audio: OpenAudio, *others: Any, are_read: list[bool]) -> None:
                real(audio, *others, are_read=are_read)
                # Handled by the loop before it hears that the job has finished.
                post(scope.cancel)

            with monkeypatch.context() as patched:
                post = tasks.on_this_loop()
                patched.setattr(OpenAudio, "decode", cancel_at_the_end)
                await anext(stream)
        assert scope.cancelled_caught
        segments = [segment async for segment in stream]
    assert tuple(segments) == whole.segments


async def test_leaving_the_session_within_a_window(
    model: Path, minute: np.ndarray, turnstile: Turnstile
) -> None:
    """A stream of another task ends with a typed error, not with fewer segments."""
    turnstile.hold_at = 1
    outcome: list[object] = []

    async def listen(session: fastwhisper.Session) -> None:
        try:
            async for segment in session.stream(minute, **SHORT):
                outcome.append(segment.start_s)  # noqa: PERF401  kept when the stream raises
        except SessionClosedError:
            outcome.append("closed")

    async with anyio.create_task_group() as group:
        async with fastwhisper.open(model) as session:
            group.start_soon(listen, session)
            await turnstile.wait_until_reached()
        await anyio.wait_all_tasks_blocked()
    assert outcome == [0.0, "closed"]


async def test_a_generator_around_a_stream_closes(model: Path, minute: np.ndarray) -> None:
    """A stream inside the user's own generator spans no yield with a cancel scope."""

    async def texts(session: fastwhisper.Session) -> Any:
        async for segment in session.stream(minute, **SHORT):
            yield segment.text

    async with fastwhisper.open(model) as session, aclosing(texts(session)) as generator:
        assert await anext(generator)


@pytest.mark.slow
async def test_twenty_tasks_take_turns(
    model: Path, minute: np.ndarray, turnstile: Turnstile
) -> None:
    """Nobody's second window comes before everybody's first."""
    turnstile.hold_at = 0
    turnstile.hears_nothing = True
    done: list[fastwhisper.Transcription] = []

    async def listen(session: fastwhisper.Session) -> None:
        done.append(await session.transcribe(minute[: 31 * 16_000], **{**SHORT, "sample_len": 1}))

    async with fastwhisper.open(model) as session, anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(listen, session)
        await turnstile.wait_until_reached()
        await turnstile.open_when_waiting(19)
    assert len(done) == 20
    rounds = [sorted(stream for stream, _ in turnstile.entered[i : i + 20]) for i in (0, 20)]
    assert rounds == [list(range(20))] * 2
    assert [start for _, start in turnstile.entered] == [0] * 20 + [3000] * 20


@pytest.mark.slow
async def test_sessions_share_one_compute_lane(
    model: Path, minute: np.ndarray, turnstile: Turnstile
) -> None:
    """Two open models take turns in one thread, so a machine computes one window at a time."""
    turnstile.hold_at = 0
    async with (
        fastwhisper.open(model) as one,
        fastwhisper.open(model) as other,
        anyio.create_task_group() as group,
    ):
        for session in (one, other):
            group.start_soon(partial(session.transcribe, minute, **SHORT))
        await turnstile.wait_until_reached()
        await turnstile.open_when_waiting(1)
    assert len(turnstile.threads) == 1
    assert [start for _, start in turnstile.entered] == [0, 0, 3000, 3000, 6000, 6000]


async def test_a_closed_session_leaves_the_other_one_running(
    model: Path, minute: np.ndarray, turnstile: Turnstile
) -> None:
    """Sharing a lane is all that sessions share."""
    async with fastwhisper.open(model) as one:
        stream = one.stream(minute, **SHORT)
        await anext(stream)
        async with fastwhisper.open(model) as other:
            await anext(other.stream(minute, **SHORT))
        assert len([segment async for segment in stream]) == 2


async def test_a_silent_pipe_can_be_left(model: Path) -> None:
    """Who waits for a pipe whose writer says nothing is free once cancelled."""
    read, write = os.pipe()
    with open(read, "rb") as pipe, open(write, "wb") as writer:  # noqa: ASYNC230, PTH123  pipes
        async with fastwhisper.open(model) as session:
            async with anyio.create_task_group() as group:
                group.start_soon(session.transcribe, pipe)
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()
            # The same session then hears what does come.
            writer.write(wav_bytes(noise(1)))
            writer.close()
            assert (await session.transcribe(pipe, **SHORT)).duration_s == 1.0


_IMPORTS = """
import sys, anyio, numpy, fastwhisper
async def main():
    async with fastwhisper.open(sys.argv[1]) as session:
        samples = numpy.zeros(16000, numpy.float32)
        options = {"sample_len": 3, "temperature": 0, "no_speech_threshold": None}
        for word_timestamps in (False, True):
            await session.transcribe(samples, word_timestamps=word_timestamps, **options)
    roots = {name.partition(".")[0] for name in sys.modules}
    print(sorted({"mlx_whisper", "numba", "scipy", "tiktoken", "torch"} & roots))
anyio.run(main)
"""


def test_text_and_word_times_need_nothing_of_mlx_whisper(model: Path) -> None:
    """Neither it nor what it brings is imported, although all is installed."""
    assert run_python("-W", "ignore", "-c", _IMPORTS, model).stdout == "[]\n"
