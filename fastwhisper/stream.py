"""The work on one audio of an open model: its stream of segments, and its language."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import anyio
import anyio.lowlevel

from fastwhisper.engine import tasks, threads
from fastwhisper.engine.threads import Lane
from fastwhisper.values import TranscribeProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from fastwhisper.loading.load import LoadTask
    from fastwhisper.transcribing.batches import Batches
    from fastwhisper.transcribing.parts import PartReader
    from fastwhisper.transcribing.samples import AudioSource
    from fastwhisper.transcribing.windows import Window
    from fastwhisper.values import Segment, Transcription
    from fastwhisper.whisper.options import DecodeSettings

    Run: TypeAlias = Callable[[Callable[[], Any], Lane], Coroutine[Any, Any, Any]]

__all__ = ["SegmentStream", "detach", "detect_language", "warn_caller"]


class SegmentStream:
    """The segments of one audio, window by window. `Session.stream` makes it.

    One task at a time may wait for it; a second one gets `anyio.BusyResourceError`.
    """

    def __init__(
        self,
        task: LoadTask,
        run: Run,
        audio: AudioSource,
        settings: DecodeSettings,
        on_progress: Callable[[TranscribeProgress], object] | None,
    ) -> None:
        self._load = task
        self._run = run
        self._audio = audio
        self._settings = settings
        self._on_progress = on_progress
        self._open: tuple[Batches, PartReader] | None = None
        self._failure: Exception | None = None
        self._has_ended = False
        self._guard = anyio.ResourceGuard("waiting for")
        # Of a module that imports NumPy, so it is set when the audio is opened.
        self._summarize: Callable[..., Transcription] | None = None
        self._segments: deque[Segment] = deque()
        self._done: list[Window] = []
        self._duration_s = 0.0

    @property
    def duration_s(self) -> float:
        """Length of the audio in seconds, as far as it is read; 0 before the first segment.

        An audio that is cut at silences is read while it is decoded.
        """
        return self._duration_s

    @property
    def done_s(self) -> float:
        """End of the audio that is decoded, in seconds; at the end the length of the audio."""
        if self._has_ended:
            return self._duration_s
        return self._done[-1].end_s if self._done else 0.0

    @property
    def so_far(self) -> Transcription | None:
        """All that is decoded, as one transcription; None before the first window."""
        if self._summarize is None or not self._done:
            return None
        return self._summarize(self._done, duration_s=self._duration_s)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Segment:
        """Return the next segment; decode windows until there is one."""
        while not self._segments:
            if not await self.decode_window():
                raise StopAsyncIteration
        return self._segments.popleft()

    def close(self) -> None:
        """Drop the model. What was decoded may still be read."""
        self._open = None

    async def decode_window(self) -> bool:
        """Decode the next window of 30 s, or batch of windows, and return whether there was one.

        Always a cancellation point.
        """
        if self._has_ended:
            await anyio.lowlevel.checkpoint()
            self._load.readiness.model()
            return False
        done, done_s = len(self._done), self.done_s
        with self._guard:
            while len(self._done) == done and not self._has_ended:
                await self._go_on()
        if self._has_ended:
            self._open = None  # so that the mel is freed
        has_window = len(self._done) > done
        if self._on_progress is not None and (has_window or self.done_s > done_s):
            self._on_progress(TranscribeProgress(self.done_s, self._duration_s))
        return has_window

    async def _go_on(self) -> None:
        """Read parts, or decode a batch, or both side by side."""
        if self._open is None:
            self._open = await self._run(self._open_audio, Lane.READ)
        batches, reader = self._open
        if batches.is_idle and self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        is_last = reader.is_done
        decode = partial(
            self._run, partial(self._keep_next, batches, is_last=is_last), Lane.COMPUTE
        )
        read = partial(self._read, batches, reader)
        if is_last or self._failure is not None or not batches.missing:
            await decode()
        elif batches.is_idle:
            await read()
        else:
            # The parts of the next batch are read while the device computes this one.
            await tasks.side_by_side(decode, read)

    def _keep_next(self, batches: Batches, *, is_last: bool) -> None:
        """Decode and keep a batch, in one job: a cancel just after it loses nothing."""
        windows = batches.decode()
        if is_last and batches.is_idle:
            windows += batches.finish()
            self._has_ended = True
        self._done += windows
        self._segments.extend(segment for window in windows for segment in window.segments)

    async def _read(self, batches: Batches, reader: PartReader) -> None:
        """Read parts. An error waits until the parts before it are decoded."""
        try:
            await self._run(partial(self._read_parts, batches, reader), Lane.READ)
        except Exception as error:  # noqa: BLE001  raised by `_go_on`
            self._failure = error

    def _read_parts(self, batches: Batches, reader: PartReader) -> None:
        """Read the parts of a batch, and keep each at once: what follows may fail."""
        for _ in range(batches.missing):
            for part in reader.read(1):
                batches.add(part)
            self._duration_s = reader.duration_s
            if reader.is_done:
                return

    def _open_audio(self) -> tuple[Batches, PartReader]:
        # Imported here, in one of the engine's threads: NumPy, and what decodes.
        from fastwhisper.transcribing import batches, parts, windows  # noqa: PLC0415

        self._summarize = windows.summarize
        model = self._load.readiness.model()
        opened = batches.Batches(
            model, self._settings, fp16=self._load.dtype == "float16", check=threads.check
        )
        reader = parts.PartReader(
            self._audio, self._settings, n_mels=model.dims.n_mels, check=threads.check
        )
        return opened, reader


async def detect_language(task: LoadTask, run: Run, audio: AudioSource) -> dict[str, float]:
    """Compute the probability of each language in the first 30 s; see `Session.detect_language`."""
    detect = await run(partial(_open_detection, task, detach(audio)), Lane.READ)
    found: dict[str, float] = await run(detect, Lane.COMPUTE)
    return found


def _open_detection(task: LoadTask, audio: AudioSource) -> Callable[[], dict[str, float]]:
    """Compute the mel of the first 30 s, and return the function that does the rest."""
    # Imported here, in one of the engine's threads: NumPy, and what decodes.
    from fastwhisper.transcribing import language  # noqa: PLC0415

    n_mels = task.readiness.model().dims.n_mels
    mel = language.compute_first_mel(audio, n_mels=n_mels, check=threads.check)
    fp16 = task.dtype == "float16"
    # It asks for the model again, so that nothing keeps the model of a session that was left.
    return lambda: language.detect_languages(
        task.readiness.model(), mel, fp16=fp16, check=threads.check
    )


def warn_caller(message: str) -> None:
    """Give a UserWarning that names the line outside of this package that called it."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals["__name__"].partition(".")[0] == "fastwhisper":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def detach(audio: AudioSource) -> AudioSource:
    """Return an audio that may cross threads.

    An MLX array, which may be lazy, is evaluated. Of an asynchronous file, the file in it is taken.
    """
    if inspect.iscoroutinefunction(getattr(audio, "read", None)):
        # Where FastAPI's UploadFile, anyio's AsyncFile and aiofiles' handles keep it.
        inner: Iterator[Any] = (getattr(audio, name, None) for name in ("file", "wrapped", "_file"))
        return next((file for file in inner if hasattr(file, "read")), audio)
    mlx = sys.modules.get("mlx.core")
    if mlx is None or not isinstance(audio, mlx.array):
        return audio
    # Another array of the same data: what the caller assigns to items of his own is lazy again.
    own: AudioSource = mlx.array(audio)
    mlx.eval(own)
    return own
