"""Transcription of rows for the engines that spread them over machines: Ray Data, Spark, Daft.

No engine is imported here: a `Transcriber` is a plain object that can be called and pickled.
"""

from __future__ import annotations

import atexit
import os
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias
from weakref import ref

import numpy as np
from anyio.from_thread import start_blocking_portal

from fastwhisper.engine.jobs import wait_for_future
from fastwhisper.errors import AudioError, LoadingFailedError
from fastwhisper.session import open as open_session
from fastwhisper.stream import read_ahead
from fastwhisper.transcribing.resampling import resample
from fastwhisper.transcribing.samples import to_samples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Unpack

    from anyio.from_thread import BlockingPortal

    from fastwhisper.session import Session
    from fastwhisper.stream import SegmentStream
    from fastwhisper.transcribing.samples import AudioSource
    from fastwhisper.values import LoadOverrides, Transcription, WhisperModel

    Arguments: TypeAlias = tuple[
        WhisperModel | str | os.PathLike[str], dict[str, Any], LoadOverrides
    ]

__all__ = ["Transcriber"]

_SOURCES: Final = ("audio", "bytes", "path")
"""Columns that hold recordings. The first one that is there is used."""

_RESULTS: Final = ("text", "language", "duration_s", "segments", "error")
_BATCH_SIZE: Final = 8
_SAMPLE_RATE: Final = 16_000


class Transcriber:
    """Transcribes batches of rows: the callable class of `map_batches`, or a function by hand.

    The model opens in the background as soon as the object is made, and stays open until `close`
    or the end of the process. A pickled object holds its arguments; its copy opens the model at
    its first batch. Windows of several rows are decoded together, and the next rows are read
    meanwhile: up to two batches of windows ahead. One thread at a time may call it.
    """

    def __init__(
        self,
        model: WhisperModel | str | os.PathLike[str],
        *,
        transcribe: Mapping[str, Any] | None = None,
        **overrides: Unpack[LoadOverrides],
    ) -> None:
        """Begin to open a model.

        Args:
            model: As for `open`.
            transcribe: Options of `Session.transcribe`, such as `language`. `batch_size` is 8
                unless it is given.
            **overrides: Single fields of `LoadOptions`.

        Raises:
            FastWhisperError: As for `open(background=True)`.
        """
        self._arguments: Arguments = (model, dict(transcribe or {}), overrides)
        self._reset()
        self._open()

    def __getstate__(self) -> Arguments:
        return self._arguments

    def __setstate__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._reset()

    def _reset(self) -> None:
        self._stack = ExitStack()
        self._opened: tuple[BlockingPortal, Session] | None = None
        self._at_exit = partial(_close, ref(self))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Return the memory of the model. The next batch would open it again."""
        self._opened = None
        atexit.unregister(self._at_exit)
        self._stack.close()

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Transcribe a batch.

        Args:
            batch: Columns of equal length. `audio` holds mono samples, with `sampling_rate` in Hz
                if it is not 16 kHz; `bytes` a whole media file; `path` the path of one. The first
                of the three that is there is used.

        Returns:
            All other columns as they are, also a `path` that was used, and: `text`; `language`, its
            code; `duration_s`; `segments`, dictionaries with `start_s`, `end_s`, `text` and, if
            word times are asked for, `words`; `error`. A recording that can't be used has its
            message in `error`, and no text. Otherwise `error` is empty.

        Raises:
            ValueError: There is no column of recordings, one is named like a result, or the
                columns have not the same length.
            FastWhisperError: The model can't be opened.
        """
        source = _check_columns(batch)
        portal, session = self._open()
        running = portal.start_task_soon(partial(self._transcribe, session, batch, source))
        try:
            rows = wait_for_future(running)
        except BaseException:
            running.cancel()  # an interrupt is raised here, and not on the event loop
            raise
        used = {"audio", "sampling_rate"} if source == "audio" else {source} - {"path"}
        kept = {name: list(column) for name, column in batch.items() if name not in used}
        return kept | {name: [row[name] for row in rows] for name in _RESULTS}

    def _open(self) -> tuple[BlockingPortal, Session]:
        """Open the model in the background, on an event loop in a thread of its own."""
        if self._opened is None:
            model, _, given = self._arguments
            overrides: LoadOverrides = {**given, "background": True}
            with ExitStack() as stack:
                portal = stack.enter_context(start_blocking_portal())
                opening = open_session(model, **overrides)
                session = stack.enter_context(portal.wrap_async_context_manager(opening))
                self._stack = stack.pop_all()
            self._opened = portal, session
            # When the interpreter has ended threads, nobody could stop the event loop any more.
            atexit.register(self._at_exit)
        return self._opened

    async def _transcribe(
        self, session: Session, batch: Mapping[str, Sequence[Any]], source: str
    ) -> list[dict[str, Any]]:
        try:
            await session.wait_until_ready(None)
        except LoadingFailedError as error:
            raise error.__cause__ or error from None
        options: dict[str, Any] = {"batch_size": _BATCH_SIZE} | self._arguments[1]
        with_words = bool(options.get("word_timestamps"))
        values = list(batch[source])  # a column of pandas has labels, which are no positions
        rates = list(batch.get("sampling_rate", [_SAMPLE_RATE] * len(values)))

        def open_row(value: Any, rate: Any) -> SegmentStream:
            return session.stream(_read_row(source, value, rate), **options)

        rows: list[dict[str, Any]] = []
        # After an error `map` goes on with the next row.
        streams = read_ahead(map(open_row, values, rates))
        for _ in values:
            try:
                stream = next(streams)
                while await stream.decode_window():
                    pass
                rows.append(_describe(stream.so_far, with_words=with_words))
            except (AudioError, MemoryError, OSError, UserWarning) as error:
                rows.append(_describe_failure(error))
        return rows


def _close(transcriber: ref[Transcriber]) -> None:
    """Close a transcriber that is still there."""
    if (still := transcriber()) is not None:
        still.close()


def _check_columns(batch: Mapping[str, Sequence[Any]]) -> str:
    """Check the columns of a batch, and return the name of the one with recordings."""
    for name in _RESULTS:
        if name in batch:
            raise ValueError(
                f"the batch has a column {name!r}, which is the name of a result; rename it"
            )
    source = next((name for name in _SOURCES if name in batch), None)
    if source is None:
        raise ValueError(
            f"the batch has no recordings: give a column 'path', 'bytes' or 'audio'; it has "
            f"{', '.join(map(repr, batch)) or 'none'}"
        )
    if len({len(column) for column in batch.values()}) > 1:
        lengths = ", ".join(f"{name!r} {len(column)}" for name, column in batch.items())
        raise ValueError(f"the columns of the batch have different lengths: {lengths}")
    return source


def _read_row(source: str, value: Any, rate: Any) -> AudioSource:
    """Return a recording as `Session.stream` takes it.

    Raises:
        AudioError: It is no recording; the message says why.
    """
    try:
        if source == "path":
            return _read_path(value)
        if source == "bytes":
            return _read_bytes(value)
        return _read_samples(value, rate)
    except AudioError:
        raise
    except (ArithmeticError, BufferError, MemoryError, TypeError, ValueError) as error:
        raise AudioError(source, f"{type(error).__name__}: {error}") from error


def _read_path(value: Any) -> AudioSource:
    if isinstance(value, os.PathLike):
        return value
    if isinstance(value, str):
        return str(value)
    raise AudioError(f"path of type {type(value).__name__}", "give the path of a media file")


def _read_bytes(value: Any) -> AudioSource:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return BytesIO(value)
    raise AudioError(f"bytes of type {type(value).__name__}", "give the bytes of a media file")


def _read_samples(value: Any, rate: Any) -> AudioSource:
    """Return float32 samples at 16 kHz."""
    samples = np.asarray(value)
    if samples.dtype == np.float64:  # what engines make of a list
        samples = samples.astype(np.float32)
    samples = to_samples(samples)
    try:
        return resample(samples, int(rate))
    except (OverflowError, TypeError, ValueError) as error:
        raise AudioError(f"samples at {rate!r} Hz", "give their sampling rate in Hz") from error


def _describe(result: Transcription | None, *, with_words: bool) -> dict[str, Any]:
    """Return the results of a row."""
    if result is None:
        raise RuntimeError("an audio has at least one window")
    segments: list[dict[str, Any]] = [
        {"start_s": segment.start_s, "end_s": segment.end_s, "text": segment.text}
        for segment in result.segments
    ]
    if with_words:
        for shown, segment in zip(segments, result.segments, strict=True):
            shown["words"] = [asdict(word) for word in segment.words or ()]
    return {
        "text": result.text,
        "language": result.language,
        "duration_s": result.duration_s,
        "segments": segments,
        "error": "",
    }


def _describe_failure(error: Exception) -> dict[str, Any]:
    """Return the results of a row whose recording can't be used."""
    # Empty, and not None: a column of None alone has no type in Arrow.
    return {"text": "", "language": "", "duration_s": 0.0, "segments": [], "error": str(error)}
