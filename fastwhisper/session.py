"""The open model: `open()` and `Session`."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, Unpack
from weakref import WeakSet

import anyio

from fastwhisper.engine import backend, tasks, threads
from fastwhisper.engine.threads import Lane
from fastwhisper.errors import ModelNotReadyError, SessionClosedError
from fastwhisper.listen import LiveStream
from fastwhisper.stream import SegmentStream, detach, detect_language, warn_caller
from fastwhisper.values import Closed, LoadOptions, Ready

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator, Mapping

    from fastwhisper.listen import SoundChunk
    from fastwhisper.loading.load import LoadTask
    from fastwhisper.loading.readiness import LoadResult
    from fastwhisper.transcribing.samples import AudioSource
    from fastwhisper.values import (
        LoadingState,
        LoadOverrides,
        LoadStats,
        Progress,
        TranscribeProgress,
        Transcription,
        WhisperModel,
    )
    from fastwhisper.whisper.network import Whisper
    from fastwhisper.whisper.options import Task, TranscribeOptions

__all__ = ["Session", "open"]

T = TypeVar("T")
_LONGEST_CHUNK_S: Final = 30
_RULE: Final = (
    "open(background=True) was left in another task than the one that entered it; leave it in the "
    "same task, or open without background"
)


@asynccontextmanager
@tasks.uninterrupted
async def open(
    model: WhisperModel | str | os.PathLike[str],
    *,
    options: LoadOptions = LoadOptions.DEFAULT,
    on_progress: Callable[[Progress], object] | None = None,
    **overrides: Unpack[LoadOverrides],
) -> AsyncGenerator[Session]:
    """Open a Whisper model for the time of an `async with` block.

    Without `background` the block begins when the model is ready. It may be entered and left in
    different tasks. With `background` the block begins at once, `Session.wait_until_ready` waits,
    and the task that entered the block must leave it, as with a task group. Leaving the block
    cancels all work of the session, waits for it, and returns the memory.

    Args:
        model: A name of the repository table, a directory, or a repository as `org/name`.
        options: How to load.
        on_progress: Called on the event loop's thread. An exception from it fails the load.
        **overrides: Single fields of `options`.

    Raises:
        ModelNotFoundError: No model has this name.
        QuantizedModelNotAvailableError: No repository has this model at this precision.
        HubUnavailableError: The model is not on disk, and the Hub can't be reached.
        InvalidModelFormatError: A file of the model is broken.
        TokenizationFailedError: The bundled tokenizer does not fit the vocabulary.
        BackendMissingError: MLX has no backend on this machine.
        NotEnoughMemoryError: The weights exceed the limit of the container.
        RuntimeError: With `background`, another task has left the block.
    """
    tasks.hold_interrupts()
    task = await prepare_load(model, options, on_progress, overrides)
    session = Session(task)
    try:
        if task.options.background:
            load = partial(task.run_in_background, owned=True)
            async with tasks.Beside(load, name=f"load {task.model_name}", rule=_RULE):
                try:
                    yield session
                finally:
                    task.readiness.close()
                    session.leave()
        else:
            await task.run(owned=True)
            yield session
    finally:
        task.readiness.close()
        session.leave()
        await session.settle()
        await task.release()


async def prepare_load(
    model: WhisperModel | str | os.PathLike[str],
    options: LoadOptions,
    on_progress: Callable[[Progress], object] | None,
    overrides: LoadOverrides,
) -> LoadTask:
    """Check the arguments of a load, and return it; see `LoadTask.prepare`."""
    load_task = await threads.run(_import_load_task, Lane.FILES)
    return await load_task.prepare(model, options, on_progress, overrides)


def _import_load_task() -> type[LoadTask]:
    """Import the load, which would stop the event loop for 20 ms; CUDA starts beside it.

    MLX's library must not be loaded beside it: Python holds the GIL while one of its own libraries
    waits for the loader's lock.
    """
    backend.start_cuda()
    from fastwhisper.loading.load import LoadTask  # noqa: PLC0415  see above

    return LoadTask


class Session:
    """An open model. `open` makes it; any number of tasks of its event loop may use it.

    Attributes:
        is_left: Whether its block was left.
    """

    def __init__(self, task: LoadTask) -> None:
        self._load = task
        self.is_left = False
        self._running: set[anyio.CancelScope] = set()
        self._idle = anyio.Event()
        self._streams: WeakSet[SegmentStream] = WeakSet()
        self._listening: WeakSet[LiveStream] = WeakSet()

    @property
    def result(self) -> LoadResult:
        """The result of the load, available when the files are located and inspected.

        Raises:
            ModelNotReadyError: The files are not located yet.
            LoadingFailedError: The load has failed. `__cause__` is the reason.
            SessionClosedError: The session was left before.
        """
        if self._load.result is None:
            self._load.readiness.model()
            raise ModelNotReadyError(self._load.model_name)
        return self._load.result

    @property
    def state(self) -> LoadingState:
        """The state of the load. It may be read from any thread."""
        return Closed() if self.is_left else self._load.readiness.state

    @property
    def is_ready(self) -> bool:
        """Whether the model can be used. It may be read from any thread."""
        return isinstance(self.state, Ready)

    @tasks.uninterrupted
    async def wait_until_ready(self, timeout: float | None = 30.0) -> LoadStats:  # noqa: ASYNC109  the contract
        """Wait until the model can be used. Always a cancellation point.

        Args:
            timeout: Seconds to wait. None waits without a limit, 0 only looks.

        Returns:
            Times, bytes and memory of the load.

        Raises:
            LoadingTimeoutError: The time is over. The load goes on; wait again.
            LoadingFailedError: The load has failed. `__cause__` is the reason.
            SessionClosedError: The session was left.
            RuntimeError: The model is loading on another event loop.
        """
        if self.is_left:
            raise SessionClosedError(self._load.model_name)
        # A load that a pool has begun may go on for others, or wait for room.
        with self._until_left():
            stats = await self._load.readiness.wait(timeout)
            if not self.is_left:
                return stats
        raise SessionClosedError(self._load.model_name)

    async def transcribe(
        self,
        audio: AudioSource,
        *,
        language: str | None = None,
        task: Task = "transcribe",
        seed: int | None = None,
        on_progress: Callable[[TranscribeProgress], object] | None = None,
        **options: Unpack[TranscribeOptions],
    ) -> Transcription:
        """Transcribe an audio. Always a cancellation point.

        Args:
            audio: A media file, a binary file object, or mono samples in [-1, 1] at
                16 kHz: shape (samples,), float32, NumPy or MLX.
            language: Code or name of the spoken language; None detects it.
            task: "transcribe", or "translate" to English.
            seed: Seed of the sampling above temperature 0, which makes it repeatable.
            on_progress: Called after each window, on the event loop's thread. An exception from
                it fails the transcription.
            **options: The options of `mlx_whisper.transcribe`, and some more; see
                `TranscribeOptions`.

        Returns:
            The text and its segments. They equal mlx_whisper's, except where it has a fault:
            docs/differences.md lists them.

        Raises:
            ModelNotReadyError: The model is still loading.
            LoadingFailedError: The load has failed. `__cause__` is the reason.
            SessionClosedError: The session was left, before or during the call.
            AudioError: The audio can't be used.
            TypeError: An option does not exist, or has the wrong type.
            ValueError: An option is out of range, or the model does not know the language, the
                task or a token.
        """
        stream = self.stream(
            audio, language=language, task=task, seed=seed, on_progress=on_progress, **options
        )
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
        on_progress: Callable[[TranscribeProgress], object] | None = None,
        **options: Unpack[TranscribeOptions],
    ) -> SegmentStream:
        """Return an iterator over the segments of an audio; each step decodes a window or a batch.

        Nothing runs between two segments, so a stream may be left at any point. If an `anext` is
        cancelled, the next one decodes the same windows again. Arguments and errors are those of
        `transcribe`. Arguments are checked here, the audio at the first segment. An exception from
        `on_progress` is raised by the `anext` that decoded the window.
        """
        from fastwhisper.whisper.start import read_settings  # noqa: PLC0415  not needed to load

        dims = self._find_model().dims
        settings = read_settings(
            dims.n_vocab, dims.n_text_ctx, language=language, task=task, seed=seed, **options
        )
        if settings.word_timestamps and settings.task == "translate":
            warn_caller("word times of a translation may be unreliable")
        stream = SegmentStream(self._load, self._run, detach(audio), settings, on_progress)
        self._streams.add(stream)
        return stream

    def listen(
        self,
        chunks: AsyncIterable[SoundChunk],
        *,
        language: str | None = None,
        task: Task = "transcribe",
        initial_prompt: str | None = None,
        min_chunk_s: float = 1.0,
        pause_s: float = 1.0,
    ) -> LiveStream:
        """Return an iterator over what is said, while it is said.

        It may be called before the model is ready: up to 30 s of sound are kept, and decoded as
        soon as it is. While a pass runs, up to 30 s are taken ahead; then `chunks` is not asked for
        more, so its source waits and nothing is lost. Silence costs nothing and gives no text. The
        end of `chunks`, a pause and `aclose` make what is tentative final.

        From the first `anext` on, a task asks `chunks` for sound. It ends with the sound, with
        `aclose`, or with the session, and closes the iterator of `chunks`.

        Args:
            chunks: Mono sound at 16 kHz, in chunks of any length: float32 samples in [-1, 1] of
                shape (samples,), NumPy or evaluated MLX, or bytes of 16-bit little-endian
                integers. A sample may be split between two chunks of bytes.
            language: Code or name of the spoken language; None detects it in the first 5 s.
            task: "transcribe", or "translate" to English.
            initial_prompt: Text before the first words, and after a minute of silence.
            min_chunk_s: Seconds of new sound after which a tentative pass is due.
            pause_s: Seconds of silence after which everything is final.

        Returns:
            An iterator of `LiveText`. Its `anext` raises what `chunks` raises, after the text
            before it; `AudioError` if a chunk can't be used; `SessionClosedError` when the session
            is left; and `LoadingFailedError` if the load fails.

        Raises:
            TypeError: An option has the wrong type.
            ValueError: An option is out of range.

        Source:
            LocalAgreement-2 of Macháček et al. 2023.
        """
        from fastwhisper.whisper.options import DecodeSettings  # noqa: PLC0415  not needed to load

        for name, value in (("min_chunk_s", min_chunk_s), ("pause_s", pause_s)):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name}={value!r}: give a number of seconds")
            if not 0 < value <= _LONGEST_CHUNK_S:
                raise ValueError(f"{name}={value!r}: give more than 0 and at most 30")
        if not hasattr(chunks, "__aiter__"):
            raise TypeError("chunks: give an async iterable of sound")
        options: dict[str, Any] = {
            "language": language,
            "task": task,
            "initial_prompt": initial_prompt,
            "word_timestamps": True,
            "temperature": (0.0, 0.4),
        }
        DecodeSettings.from_options(**options)  # checked here, and later against the network
        stream = LiveStream(
            self._load, self._run, self.wait_until_ready, chunks,
            min_chunk_s=min_chunk_s, pause_s=pause_s, options=options,
        )  # fmt: skip
        self._listening.add(stream)
        if self.is_left:
            stream.leave()
        return stream

    async def detect_language(self, audio: AudioSource) -> Mapping[str, float]:
        """Compute how probable each language is in the first 30 s. Always a cancellation point.

        If these are silence, the next 30 s decide, and so on. What follows is not decoded, and the
        level is measured without it. `transcribe` knows the whole audio, so its probabilities may
        differ a little.

        Args:
            audio: As for `transcribe`. A file object that can't seek is read to its end.

        Returns:
            The probabilities of all languages that the model knows, by code, in descending order.
            Their sum is 1. A model that knows English only gives `{"en": 1.0}`.

        Raises:
            ModelNotReadyError: The model is still loading.
            LoadingFailedError: The load has failed. `__cause__` is the reason.
            SessionClosedError: The session was left, before or during the call.
            AudioError: The audio can't be used.
        """
        self._find_model()
        return await detect_language(self._load, self._run, audio)

    @tasks.uninterrupted
    async def _run(self, function: Callable[[], T], lane: Lane) -> T:
        """Run a function in an engine thread, until the session is left."""
        self._find_model()
        with self._until_left():
            return await threads.run(function, lane)
        raise SessionClosedError(self._load.model_name)

    @contextmanager
    def _until_left(self) -> Iterator[None]:
        """Cancel the block when the session is left; it ends without an error then."""
        with anyio.CancelScope() as scope:
            self._running.add(scope)
            try:
                yield
            finally:
                self._running.discard(scope)
                if not self._running:
                    self._idle.set()

    def _find_model(self) -> Whisper:
        """Return the network of a session that is ready and not left."""
        if self.is_left:
            raise SessionClosedError(self._load.model_name)
        return self._load.readiness.model()

    def leave(self) -> None:
        """Stop all work of this session. May be called twice."""
        self.is_left = True
        for scope in self._running:
            scope.cancel()
        for stream in self._listening:
            stream.leave()

    async def settle(self) -> None:
        """Wait for the end of all work. Can't be cancelled."""
        with anyio.CancelScope(shield=True):
            while self._running:
                if self._idle.is_set():  # otherwise somebody waits for it already
                    self._idle = anyio.Event()
                await self._idle.wait()
            for stream in self._streams:
                stream.close()
            for live in list(self._listening):
                await live.settle()
