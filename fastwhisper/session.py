"""The open model: an async context manager, and what can be done inside it."""

from __future__ import annotations

import sys
from collections import deque
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack
from weakref import WeakSet

import anyio

from fastwhisper.engine import tasks, threads
from fastwhisper.engine.threads import Lane
from fastwhisper.errors import ModelNotReadyError, SessionClosedError
from fastwhisper.loading.load import Load
from fastwhisper.values import LoadOptions

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator

    from fastwhisper.loading.readiness import LoadResult
    from fastwhisper.transcribing.samples import AudioSource
    from fastwhisper.transcribing.windows import Window
    from fastwhisper.values import (
        LoadingState,
        LoadOverrides,
        LoadStats,
        Progress,
        Segment,
        Transcription,
        WhisperModel,
    )
    from fastwhisper.whisper.network import Whisper
    from fastwhisper.whisper.options import DecodeSettings, Task, TranscribeOptions

__all__ = ["Session", "open"]

T = TypeVar("T")


@asynccontextmanager
@tasks.uninterrupted
async def open(
    model: WhisperModel | str | os.PathLike[str],
    *,
    options: LoadOptions = LoadOptions.DEFAULT,
    on_progress: Callable[[Progress], object] | None = None,
    **overrides: Unpack[LoadOverrides],
) -> AsyncGenerator[Session]:
    """Open a Whisper model for as long as the `async with` block lasts.

    Without `background` the block begins when the model is ready. With it the block begins
    at once, and `Session.wait_until_ready` waits. Leaving the block cancels what still
    loads or transcribes, waits for it, and gives the memory back.

    Args:
        model: A name of the repository table, a directory, or a repository as `org/name`.
        options: How to load.
        on_progress: Called on the event loop's thread; what it raises fails the load.
        **overrides: Single fields of `options`.

    Raises:
        ModelNotFoundError: No model goes by this name.
        QuantizedModelNotAvailableError: The model is not to be had at this precision.
        HubUnavailableError: It is not on disk, and the Hub can't be reached.
        InvalidModelFormatError: A file of it is broken.
        TokenizationFailedError: The bundled tokenizer doesn't fit its vocabulary.
        BackendMissingError: MLX has no backend here.
    """
    job = await Load.prepare(model, options, on_progress, overrides)
    session = Session(job)
    failure: BaseException | None = None
    try:
        async with anyio.create_task_group() as group:
            # The body's exception is kept from the task group, which would wrap it.
            try:
                if job.options.background:
                    group.start_soon(_load_in_background, job, name=f"load {job.model_name}")
                else:
                    await job.locate()
                    await job.finish()
                    group.start_soon(job.follow_up, name=f"follow up {job.model_name}")
                yield session
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # noqa: BLE001  raised again below
                failure = error
            finally:
                session.close()
                group.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        # No error of a load comes this way: KeyboardInterrupt, in a task that trio ran just then.
        failure = tasks.first_error(errors)
    finally:
        await session.settle()
    if failure is not None:
        try:
            raise failure
        finally:
            del failure


@tasks.uninterrupted
async def _load_in_background(job: Load) -> None:
    await job.finish_in_background()
    if job.readiness.is_ready:
        await job.follow_up()


class Session:
    """An open model. Made by `open`; used from any number of tasks of its event loop."""

    def __init__(self, job: Load) -> None:
        self._job = job
        self._running: set[anyio.CancelScope] = set()
        self._idle = anyio.Event()
        self._streams: WeakSet[SegmentStream] = WeakSet()
        self._given_up: list[Whisper] = []

    @property
    def result(self) -> LoadResult:
        """What was opened, as soon as its files are located and inspected.

        Raises:
            ModelNotReadyError: They are not yet.
            LoadingFailedError: They could not be, `__cause__` says why.
            SessionClosedError: The session was left before.
        """
        if self._job.result is None:
            self._job.readiness.model()
            raise ModelNotReadyError(self._job.model_name)
        return self._job.result

    @property
    def state(self) -> LoadingState:
        """Where the load stands; may be read from any thread."""
        return self._job.readiness.state

    @property
    def is_ready(self) -> bool:
        """Whether the model can be used; may be read from any thread."""
        return self._job.readiness.is_ready

    async def wait_until_ready(self, timeout: float | None = 30.0) -> LoadStats:  # noqa: ASYNC109  the contract
        """Wait until the model can be used. Always a checkpoint.

        Args:
            timeout: Seconds to wait; None waits for ever, 0 only looks.

        Raises:
            LoadingTimeoutError: The load goes on; wait again.
            LoadingFailedError: The load has failed, `__cause__` says why.
            SessionClosedError: The session was left.
        """
        return await self._job.readiness.wait(timeout)

    async def transcribe(
        self,
        audio: AudioSource,
        *,
        language: str | None = None,
        task: Task = "transcribe",
        seed: int | None = None,
        **options: Unpack[TranscribeOptions],
    ) -> Transcription:
        """Turn speech into text. Always a checkpoint.

        Args:
            audio: A media file, a binary file object, or mono samples in [-1, 1] at
                16 kHz: shape (samples,), float32, NumPy or MLX.
            language: Code or name of the spoken language; None detects it.
            task: Write down what is said, or translate it to English.
            seed: Makes sampling above temperature 0 repeatable.
            **options: As in `mlx_whisper.transcribe`; see `TranscribeOptions`.

        Returns:
            The text and its segments, equal to mlx_whisper's.

        Raises:
            ModelNotReadyError: The model is still loading.
            LoadingFailedError: The load has failed, `__cause__` says why.
            SessionClosedError: The session was left, before or meanwhile.
            AudioError: The audio can't be used.
            TypeError: An option that does not exist, or of the wrong type.
            ValueError: An option out of range, or an unknown language.
        """
        stream = self.stream(audio, language=language, task=task, seed=seed, **options)
        while await stream.decode_window():
            pass
        result = stream.so_far
        if result is None:
            raise RuntimeError("an audio has at least one window")
        return result

    def stream(
        self,
        audio: AudioSource,
        *,
        language: str | None = None,
        task: Task = "transcribe",
        seed: int | None = None,
        **options: Unpack[TranscribeOptions],
    ) -> SegmentStream:
        """Give the segments of an audio as each window of 30 s is done.

        Nothing runs between two segments; a stream left at any point leaves nothing
        behind. One whose `anext` was cancelled may be asked again: the window that was
        cut short is decoded anew. Arguments and errors are those of `transcribe`; what
        can be refused by its form is refused here, the rest at the first segment.
        """
        from fastwhisper.whisper.options import DecodeSettings  # noqa: PLC0415  a load does without it

        self._job.readiness.model()
        settings = DecodeSettings.from_options(language=language, task=task, seed=seed, **options)
        stream = SegmentStream(self._job, self._run, _detach(audio), settings)
        self._streams.add(stream)
        return stream

    @tasks.uninterrupted
    async def _run(self, function: Callable[[], T], lane: Lane) -> T:
        """Run a job of this session, until the session is left."""
        self._job.readiness.model()
        with anyio.CancelScope() as scope:
            self._running.add(scope)
            try:
                return await threads.run(function, lane)
            finally:
                self._running.discard(scope)
                if not self._running:
                    self._idle.set()
        raise SessionClosedError(self._job.model_name)

    def close(self) -> None:
        """Give the weights up, wake every waiter and stop what runs."""
        self._given_up += self._job.readiness.close()
        for scope in self._running:
            scope.cancel()

    async def settle(self) -> None:
        """Wait for what still runs, and give the memory back. Not to be cancelled."""
        with anyio.CancelScope(shield=True):
            while self._running:
                self._idle = anyio.Event()
                await self._idle.wait()
            for stream in self._streams:
                stream.close()
            await threads.release(self._given_up)


class SegmentStream:
    """The segments of one audio, one window at a time. Made by `Session.stream`."""

    def __init__(
        self,
        job: Load,
        run: Callable[[Callable[[], Any], Lane], Awaitable[Any]],
        audio: AudioSource,
        settings: DecodeSettings,
    ) -> None:
        self._job = job
        self._run = run
        self._audio = audio
        self._settings = settings
        self._windows: Iterator[Window] | None = None
        self._segments: deque[Segment] = deque()
        self._done: list[Window] = []
        self._duration_s = 0.0

    @property
    def duration_s(self) -> float:
        """Length of the audio in seconds; 0 until the first segment."""
        return self._duration_s

    @property
    def done_s(self) -> float:
        """How far the audio is decoded, in seconds."""
        return self._done[-1].end_s if self._done else 0.0

    @property
    def so_far(self) -> Transcription | None:
        """Everything that is decoded, as one transcription; None before the first window."""
        if not self._done:
            return None
        from fastwhisper.transcribing.windows import summarize  # noqa: PLC0415  imports MLX

        return summarize(self._done, duration_s=self._duration_s)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Segment:
        """Give the next segment, decoding a window when there is none left."""
        while not self._segments:
            if not await self.decode_window():
                raise StopAsyncIteration
        return self._segments.popleft()

    def close(self) -> None:
        """Let go of the model; what was decoded may still be read."""
        self._windows = None

    async def decode_window(self) -> bool:
        """Decode the next window of 30 s, if there is one. Always a checkpoint."""
        if self._windows is None:
            self._windows = await self._run(self._open_windows, Lane.READ)
        more: bool = await self._run(partial(self._keep_next, self._windows), Lane.COMPUTE)
        return more

    def _keep_next(self, windows: Iterator[Window]) -> bool:
        """Decode and keep a window, in one job: a cancel that comes just after loses nothing."""
        window = next(windows, None)
        if window is None:
            return False
        self._done.append(window)
        self._segments.extend(window.segments)
        return True

    def _open_windows(self) -> Iterator[Window]:
        # Imported here, in one of the engine's threads: NumPy, and what decodes.
        from fastwhisper.transcribing.mel import open_mel  # noqa: PLC0415
        from fastwhisper.transcribing.windows import transcribe_windows  # noqa: PLC0415

        model = self._job.readiness.model()
        mel = open_mel(self._audio, n_mels=model.dims.n_mels, check=threads.check)
        self._duration_s = mel.duration_s
        return transcribe_windows(
            model, mel, self._settings, fp16=self._job.dtype == "float16", check=threads.check
        )


def _detach(audio: AudioSource) -> AudioSource:
    """Turn an MLX array, which may be lazy, into samples that may cross threads."""
    mlx = sys.modules.get("mlx.core")
    if mlx is not None and isinstance(audio, mlx.array):
        from fastwhisper.transcribing.samples import to_samples  # noqa: PLC0415  imports NumPy

        return to_samples(audio)
    return audio
