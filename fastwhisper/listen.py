"""Text of sound that comes in while people speak: `Session.listen`."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, cast

import anyio
import anyio.lowlevel

from fastwhisper.engine import tasks, threads
from fastwhisper.engine.threads import Lane
from fastwhisper.errors import AudioError, SessionClosedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterator

    import mlx.core as mx
    import numpy as np

    from fastwhisper.loading.load import LoadTask
    from fastwhisper.transcribing.live import LiveDecoder
    from fastwhisper.values import LiveText

    Run: TypeAlias = Callable[[Callable[[], Any], Lane], Coroutine[Any, Any, Any]]
    SoundChunk: TypeAlias = np.ndarray | mx.array | bytes | bytearray | memoryview

__all__ = ["LiveStream"]

_SAMPLE_RATE: Final = 16_000
_AHEAD_SAMPLES: Final = 30 * _SAMPLE_RATE
"""Samples that are taken ahead. Then `chunks` is not asked until a pass has taken some."""

_BYTES: Final = ("B", "b", "c", "h", "<h")
"""Formats of memory that holds bytes, or integers of 16 bits."""


class LiveStream:
    """What is said, as it comes in. `Session.listen` makes it.

    One task at a time may wait for it; a second one gets `anyio.BusyResourceError`. From the first
    `anext` on a task takes sound ahead, until the sound ends, or `aclose` or the session's end.
    """

    def __init__(
        self,
        task: LoadTask,
        run: Run,
        wait: Callable[[None], Coroutine[Any, Any, object]],
        chunks: AsyncIterable[SoundChunk],
        *,
        min_chunk_s: float,
        pause_s: float,
        options: dict[str, Any],
    ) -> None:
        self._load = task
        self._run = run
        self._wait_until_ready = wait
        self._chunks = chunks
        self._min_chunk_s = min_chunk_s
        self._pause_s = pause_s
        self._options = options
        self._decoder: LiveDecoder | None = None
        self._counts = (0, 0)
        self._texts: deque[LiveText] = deque()
        self._sound: deque[SoundChunk] = deque()
        self._came_samples = 0
        self._took_samples = 0
        self._odd = b""
        self._changed = anyio.Event()
        self._taken = anyio.Event()
        self._reader: tasks.BackgroundTask | None = None
        self._has_ended = False
        self._failure: BaseException | None = None
        self._is_done = self._is_stopped = False
        self._is_closed = False
        self._guard = anyio.ResourceGuard("waiting for")

    @property
    def passes(self) -> int:
        """Passes over the sound that were run."""
        return self._decoder.passes if self._decoder else self._counts[0]

    @property
    def dropped_passes(self) -> int:
        """Tentative passes that were due and not run, because the machine was too slow."""
        return self._decoder.dropped_passes if self._decoder else self._counts[1]

    @property
    def _waiting_samples(self) -> int:
        """Samples that were taken ahead, and no pass has."""
        return self._came_samples - self._took_samples

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> LiveText:
        """Return the next stretch of text; wait for sound until there is one.

        Always a cancellation point. If it is cancelled, the next one loses nothing.
        """
        with self._guard:
            await anyio.lowlevel.checkpoint()
            while not self._texts:
                if self._is_done:
                    self._stop_reading()
                    failure, self._failure = self._failure, None
                    raise failure or StopAsyncIteration
                await self._go_on()
            return self._texts.popleft()

    async def aclose(self) -> None:
        """Stop to take sound. What came before becomes final: the next `anext` returns it."""
        self._stop_reading()
        if self._reader is not None and not self._reader.is_current():  # `chunks` may call it
            with anyio.CancelScope(shield=True):
                await self._reader.wait()
        self._has_ended = True
        self._changed.set()

    def leave(self) -> None:
        """Stop everything: the session is left."""
        self._is_closed = True
        self._stop_reading()

    async def settle(self) -> None:
        """Wait until nothing runs any more, and drop the model."""
        if self._reader is not None:
            await self._reader.wait()
        self._counts = (self.passes, self.dropped_passes)
        self._decoder = None

    def _stop_reading(self) -> None:
        self._is_stopped = True
        if self._reader is not None:
            self._reader.cancel()
        self._changed.set()

    async def _read(self) -> None:
        """Take sound, and close its iterator. An error waits until what came before is decoded."""
        chunks: AsyncIterator[SoundChunk] | None = None
        try:
            chunks = aiter(self._chunks)
            async for chunk in chunks:
                if self._is_stopped or self._has_ended:  # by `_take`: a chunk was no sound
                    break
                for piece in self._split(chunk):
                    self._sound.append(piece)
                    self._came_samples += len(piece) // _width(piece)
                self._changed.set()
                while self._waiting_samples >= _AHEAD_SAMPLES and not self._has_ended:
                    self._taken = anyio.Event()
                    await self._taken.wait()
        except anyio.get_cancelled_exc_class() as error:
            if not self._is_stopped:
                self._failure = AudioError("chunks", "something cancelled it before its end")
                self._failure.__cause__ = error
            raise
        except BaseException as error:  # noqa: BLE001  raised by `_go_on`
            self._failure = error
        finally:
            self._has_ended = True
            self._changed.set()
            # A generator that waits at its `yield` knows of no cancellation.
            if (close := getattr(chunks, "aclose", None)) is not None:
                with anyio.CancelScope(shield=True):
                    try:
                        await close()
                    except Exception as error:  # noqa: BLE001  raised by `__anext__`
                        self._failure = self._failure or error

    def _split(self, chunk: SoundChunk) -> Iterator[SoundChunk]:
        """Copy a chunk, which its source may use again, in pieces of at most 30 s."""
        is_bytes = isinstance(chunk, (bytes, bytearray))
        is_view = isinstance(chunk, memoryview) and chunk.format in _BYTES and chunk.ndim == 1
        if is_bytes or is_view:
            data = self._odd + bytes(chunk)
            whole = len(data) // 2 * 2
            self._odd = data[whole:]  # a sample that is split between two chunks
            for start in range(0, whole, 2 * _AHEAD_SAMPLES):
                yield data[start : min(start + 2 * _AHEAD_SAMPLES, whole)]
            return
        if len(getattr(chunk, "shape", ())) != 1:
            raise AudioError(
                f"chunk of type {type(chunk).__name__}",
                "not sound; give mono samples at 16 kHz: an array of shape (samples,), float32, "
                "or bytes of 16-bit little-endian integers",
            )
        if not hasattr(chunk, "copy"):  # of MLX: a slice would not be evaluated
            yield chunk
            return
        samples = cast("np.ndarray", chunk)
        for start in range(0, len(samples), _AHEAD_SAMPLES):
            yield samples[start : start + _AHEAD_SAMPLES].copy()

    @tasks.uninterrupted
    async def _go_on(self) -> None:
        """Take sound, or run a pass, or wait for sound."""
        if self._is_closed:
            raise SessionClosedError(self._load.model_name)
        if self._reader is None and not self._has_ended:
            self._reader = tasks.BackgroundTask(self._read, name="listen")
        try:
            await self._wait_until_ready(None)
            if self._decoder is None:
                self._decoder = await self._run(self._open, Lane.READ)
        except Exception:
            self._stop_reading()
            raise
        self._changed = anyio.Event()
        is_due = await self._run(self._take, Lane.READ)
        if self._failure is not None:
            self._stop_reading()
        self._taken.set()
        if is_due:
            await self._run(self._decode, Lane.COMPUTE)
        elif not (self._sound or self._has_ended or self._is_closed):
            await self._changed.wait()

    def _open(self) -> LiveDecoder:
        # Imported here, in one of the engine's threads: NumPy, and what decodes.
        from fastwhisper.transcribing.live import LiveDecoder  # noqa: PLC0415
        from fastwhisper.whisper.start import read_settings  # noqa: PLC0415

        dims = self._load.readiness.model().dims
        settings = read_settings(dims.n_vocab, dims.n_text_ctx, **self._options)
        return LiveDecoder(
            self._load.readiness.model(),
            settings,
            fp16=self._load.dtype == "float16",
            min_chunk_s=self._min_chunk_s,
            pause_s=self._pause_s,
            check=threads.check,
        )

    def _take(self) -> bool:
        """Give sound to the decoder, as much as it has room for; return whether a pass is due.

        What is taken is kept at once, so a cancel just after it loses nothing.
        """
        from fastwhisper.transcribing.samples import read_chunk  # noqa: PLC0415  see _open

        decoder = cast("LiveDecoder", self._decoder)
        while self._sound and (room := decoder.room) > 0:
            threads.check()
            try:
                samples = read_chunk(self._sound[0])
            except AudioError as error:
                self._failure, self._has_ended = error, True
                self._sound.clear()
                break
            self._sound.popleft()
            if len(samples) > room:
                self._sound.appendleft(samples[room:])
            decoder.push(samples[:room])
            self._took_samples += min(len(samples), room)
        is_last = self._has_ended and not self._sound
        self._is_done = is_last and not decoder.is_due(is_last=True)
        return decoder.is_due(is_last=is_last)

    def _decode(self) -> None:
        decoder = cast("LiveDecoder", self._decoder)
        texts = decoder.decode(is_last=self._has_ended and not self._sound)
        waiting_s = self._waiting_samples / _SAMPLE_RATE
        self._texts += [replace(text, backlog_s=text.backlog_s + waiting_s) for text in texts]


def _width(piece: SoundChunk) -> int:
    return 2 if isinstance(piece, bytes) else 1
