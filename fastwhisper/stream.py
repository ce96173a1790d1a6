"""The work on one audio of an open model: its stream of segments, and its language."""

from __future__ import annotations

import inspect
import sys
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeAlias

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

__all__ = ["SegmentStream", "detach", "detect_language"]


class SegmentStream:
    """The segments of one audio, window by window. `Session.stream` makes it."""

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
        self._has_ended = False
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
        """End of the audio that is decoded, in seconds."""
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
        done = len(self._done)
        while len(self._done) == done and not self._has_ended:
            await self._go_on()
        if self._has_ended:
            self._open = None  # so that the mel is freed
        if len(self._done) == done:
            return False
        if self._on_progress is not None:
            self._on_progress(TranscribeProgress(self.done_s, self._duration_s))
        return True

    async def _go_on(self) -> None:
        """Read parts, or decode a batch, or both side by side."""
        if self._open is None:
            await self._run(self._read, Lane.READ)
            return
        batches, reader = self._open
        read = partial(self._run, partial(self._read, batches.missing), Lane.READ)
        decode = partial(
            self._run, partial(self._keep_next, batches, is_last=reader.is_done), Lane.COMPUTE
        )
        if reader.is_done or not batches.missing:
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

    def _read(self, count: int | None = None) -> None:
        """Read the next parts; None reads those of the first batch."""
        if self._open is None:
            # Kept before anything is read: after a cancel, the reader knows where it began.
            self._open = self._open_audio()
        batches, reader = self._open
        for part in reader.read(batches.missing if count is None else count):
            batches.add(part)
        self._duration_s = reader.duration_s

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
