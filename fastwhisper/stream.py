"""The work on one audio of an open model: its stream of segments, and its language."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections import deque
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

import anyio
import anyio.lowlevel

from fastwhisper.engine import tasks, threads
from fastwhisper.engine.threads import Lane
from fastwhisper.values import TranscribeProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence

    from fastwhisper.loading.load import LoadTask
    from fastwhisper.transcribing.open_audio import OpenAudio
    from fastwhisper.transcribing.samples import AudioSource
    from fastwhisper.values import Segment, Transcription
    from fastwhisper.whisper.options import DecodeSettings

    Run: TypeAlias = Callable[[Callable[[], Any], Lane], Coroutine[Any, Any, Any]]

__all__ = ["SegmentStream", "detach", "detect_language", "read_ahead", "warn_caller"]

_WINDOW_S: Final = 30.0


def _nobody(_: int) -> Sequence[SegmentStream]:
    return ()


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
        self._source = audio
        self._settings = settings
        self._on_progress = on_progress
        self._audio: OpenAudio | None = None
        self._told, self._told_s = 0, 0.0
        self._follow: Callable[[int], Sequence[SegmentStream]] = _nobody
        self._guard = anyio.ResourceGuard("waiting for")

    @property
    def duration_s(self) -> float:
        """Length of the audio in seconds, as far as it is read; 0 before the first segment.

        An audio that is cut at silences is read while it is decoded.
        """
        return self._audio.duration_s if self._audio else 0.0

    @property
    def done_s(self) -> float:
        """End of the audio that is decoded, in seconds; at the end the length of the audio."""
        return self._audio.done_s if self._audio else 0.0

    @property
    def so_far(self) -> Transcription | None:
        """All that is decoded, as one transcription; None before the first window."""
        return self._audio.summarize() if self._audio else None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Segment:
        """Return the next segment; decode windows until there is one."""
        while self._audio is None or not self._audio.segments:
            if not await self.decode_window():
                raise StopAsyncIteration
        return self._audio.segments.popleft()

    def close(self) -> None:
        """Drop the model. What was decoded may still be read."""
        if self._audio is not None:
            self._audio.close()

    async def decode_window(self) -> bool:
        """Decode the next window of 30 s, or batch of windows, and return whether there was one.

        Always a cancellation point.
        """
        await anyio.lowlevel.checkpoint()
        with self._guard:
            if self._audio is None:
                await self._run(self.open, Lane.READ)
            audio = self.open()
            while len(audio.windows) == self._told and not audio.has_ended:
                await self._go_on(audio)
        has_window = len(audio.windows) > self._told
        has_news = has_window or audio.done_s > self._told_s
        self._told, self._told_s = len(audio.windows), audio.done_s
        if not has_window:
            self._load.readiness.model()
        if has_news and self._on_progress is not None:
            self._on_progress(TranscribeProgress(audio.done_s, audio.duration_s))
        return has_window

    async def _go_on(self, audio: OpenAudio) -> None:
        """Read parts, or decode a batch, or both side by side; also of the streams that follow."""
        size = self._settings.batch_size
        # Without batches a file is read as a whole, which its predecessor waits for: so beside the
        # last window only.
        is_near = size > 1 or (audio.is_read and audio.duration_s - audio.done_s <= _WINDOW_S)
        others = list(self._follow(2 * size)) if is_near else []
        opened = [other for stream in others if (other := stream.opened) and not other.has_ended]
        waiting = sum(one.waiting for one in (audio, *opened))
        if not audio.waiting and audio.failure is not None:
            failure, audio.failure = audio.failure, None
            raise failure
        # For the first batch, later for the batch after the next one.
        missing = (2 * size if waiting else size) - waiting
        are_read = [one.is_read for one in (audio, *opened)]
        decode = partial(self._run, partial(audio.decode, opened, are_read=are_read), Lane.COMPUTE)
        read = partial(self._run, partial(_read, [self, *others], missing), Lane.READ)
        if missing <= 0 or not any(stream.may_read for stream in (self, *others)):
            await decode()
        elif not waiting and not audio.is_read:
            await read()
        else:
            # The parts of the next batch are read while the device computes this one.
            await tasks.side_by_side(decode, read)

    @property
    def opened(self) -> OpenAudio | None:
        """The audio, if it is open."""
        return self._audio

    @property
    def may_read(self) -> bool:
        """Whether a part of the audio may be read."""
        return self._audio is None or self._audio.may_read

    def open(self) -> OpenAudio:
        """Open the audio, unless it is open. The first call is made in an engine thread."""
        if self._audio is None:
            # NumPy, and what decodes.
            from fastwhisper.transcribing.open_audio import OpenAudio  # noqa: PLC0415

            self._audio = OpenAudio(
                self._load.readiness.model(),
                self._source,
                self._settings,
                fp16=self._load.dtype == "float16",
                check=threads.check,
            )
        return self._audio

    def follow_with(self, follow: Callable[[int], Sequence[SegmentStream]]) -> None:
        """Take the streams that follow this one, as many as are asked for."""
        self._follow = follow


def _read(streams: Sequence[SegmentStream], count: int) -> None:
    """Read parts, of the first stream first."""
    for stream in streams:
        while count > 0 and stream.may_read:
            count -= stream.open().read_part()


def read_ahead(streams: Iterable[SegmentStream]) -> Iterator[SegmentStream]:
    """Return streams. What follows one is read, and decoded in the same batches, meanwhile.

    Args:
        streams: Streams of one session with the same options. As many are taken ahead as two
            batches need. What it raises is raised where that stream would come.
    """
    return _Line(iter(streams))


class _Line:
    """Streams in order; those that follow the current one are known to it."""

    def __init__(self, coming: Iterator[SegmentStream]) -> None:
        self._coming = coming
        self._line: deque[SegmentStream | Exception] = deque()
        self._current: SegmentStream | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> SegmentStream:
        """Return the next stream."""
        if self._current is not None:  # it may have been left in the middle
            self._current.follow_with(_nobody)
        self._take(1)
        if not self._line:
            raise StopIteration
        stream = self._line.popleft()
        if isinstance(stream, Exception):
            self._current = None
            raise stream
        self._current = stream
        stream.follow_with(self._follow)
        return stream

    def _follow(self, count: int) -> list[SegmentStream]:
        self._take(count)
        return [one for one in islice(self._line, count) if not isinstance(one, Exception)]

    def _take(self, count: int) -> None:
        while len(self._line) < count:
            try:
                self._line.append(next(self._coming))
            except StopIteration:
                return
            except Exception as error:  # noqa: BLE001  raised when it is its turn
                self._line.append(error)


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
