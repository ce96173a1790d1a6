"""`Session.listen` on both loops: sound from anywhere, cancelled, left and failing anywhere."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import mlx.core as mx
import numpy as np
import pytest

import fastwhisper
from fastwhisper import AudioError, LiveText, SessionClosedError
from fastwhisper.transcribing.samples import never_cancel, read_blocks
from tests.helpers.audio import SAMPLE, SAMPLE_RATE, SENTENCE, spell
from tests.helpers.tones import silence

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable
    from pathlib import Path

    from fastwhisper.listen import LiveStream

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    """Return the recorded sentences. Shape (samples,), float32."""
    return np.concatenate(list(read_blocks(SAMPLE, check=never_cancel)))


class Source:
    """A source of sound that counts what it was asked for.

    Attributes:
        given: Chunks that were asked for.
        has_ended: Whether its generator has ended, however.
    """

    def __init__(self, chunks: list[Any], *, then: BaseException | None = None) -> None:
        self.given = 0
        self.has_ended = False
        self._chunks = chunks
        self._then = then

    async def __aiter__(self) -> AsyncGenerator[Any]:
        try:
            for chunk in self._chunks:
                await anyio.lowlevel.checkpoint()
                self.given += 1
                yield chunk
            if self._then is not None:
                raise self._then
        finally:
            self.has_ended = True


async def endless(chunks: list[Any]) -> AsyncGenerator[Any]:
    """Yield chunks, and then wait as a microphone that hears nothing."""
    for chunk in chunks:
        yield chunk
    await anyio.sleep_forever()


def split(sound: np.ndarray, size: int = SAMPLE_RATE // 10) -> list[np.ndarray]:
    """Split samples into chunks."""
    return [sound[start : start + size] for start in range(0, len(sound), size)]


def final_words(found: list[LiveText]) -> list[str]:
    """Return the words that are final."""
    return spell("".join(text.text for text in found if text.is_final))


async def listen(
    session: fastwhisper.Session, chunks: AsyncIterable[Any], **options: Any
) -> list[LiveText]:
    """Listen to the end."""
    return [text async for text in session.listen(chunks, **options)]


async def keep(stream: AsyncIterable[LiveText], found: list[LiveText]) -> None:
    """Keep what a stream gives before it fails."""
    async for text in stream:
        found.append(text)  # noqa: PERF401


@pytest.mark.slow
async def test_floats_and_bytes_say_the_same(tiny_en_ct2: Path, sound: np.ndarray) -> None:
    """Also where a sample is split between two chunks, and where a chunk is empty."""
    data = (sound * 32767).astype("<i2").tobytes()
    odd = [data[:1], b"", *(data[start : start + 3333] for start in range(1, len(data), 3333))]
    async with fastwhisper.open(tiny_en_ct2) as session:
        evaluated = mx.array(sound)
        mx.eval(evaluated)
        for chunks in (split(sound), odd, [bytearray(data)], [evaluated]):
            found = await listen(session, Source(chunks))
            assert final_words(found) == spell(SENTENCE)
            assert found[-1].is_final


@pytest.mark.slow
async def test_sound_before_ready_is_kept(tiny_en_ct2: Path, sound: np.ndarray) -> None:
    """Up to 30 s; then the source is not asked for more until a pass has taken some."""
    source = Source(split(np.concatenate([sound, silence(60)])))
    async with fastwhisper.open(tiny_en_ct2, background=True) as session:
        assert not session.is_ready
        found = await listen(session, source)
    assert final_words(found) == spell(SENTENCE)
    assert source.given == len(split(np.zeros(len(sound) + 60 * SAMPLE_RATE)))


@pytest.mark.slow
async def test_sound_is_taken_thirty_seconds_ahead(tiny_en_ct2: Path, sound: np.ndarray) -> None:
    """While nobody asks for text the source waits, and nothing is lost."""
    source = Source(split(np.concatenate([sound, silence(120), sound])))
    async with fastwhisper.open(tiny_en_ct2) as session:
        stream = session.listen(source)
        found = [await anext(stream)]
        with anyio.move_on_after(1):
            await anyio.sleep_forever()
        assert source.given <= 10 * (8 + 30 + 30)
        found += [text async for text in stream]
    assert final_words(found) == 2 * spell(SENTENCE)
    last = [text for text in found if text.is_final][-1]
    assert last.end_s == pytest.approx(len(sound) / SAMPLE_RATE + 120 + 8.0, abs=0.5)


@pytest.mark.slow
async def test_what_the_source_raises_comes_after_its_text(
    tiny_en_ct2: Path, sound: np.ndarray
) -> None:
    """Bare and once; then the stream has ended."""
    mine = ConnectionResetError("gone")
    async with fastwhisper.open(tiny_en_ct2) as session:
        stream = session.listen(Source(split(sound), then=mine))
        found: list[LiveText] = []
        with pytest.raises(ConnectionResetError) as caught:
            await keep(stream, found)
        assert caught.value is mine
        assert final_words(found) == spell(SENTENCE)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


class Stop(BaseException):
    """An error that is no `Exception`."""


async def cancel_myself(sound: np.ndarray) -> AsyncGenerator[np.ndarray]:
    """Yield sound, then be cancelled by nobody else."""
    for chunk in split(sound):
        yield chunk
    raise anyio.get_cancelled_exc_class()


async def test_a_source_that_is_torn_off_is_no_end(
    tiny_en_ct2: Path, sound: np.ndarray, anyio_backend_name: str
) -> None:
    """An error that is no `Exception`, and a cancellation that nobody of ours asked for."""
    cases: list[tuple[AsyncIterable[Any], type[BaseException]]]
    cases = [(Source(split(sound), then=Stop()), Stop)]
    if anyio_backend_name == "asyncio":  # trio lets nobody raise its cancellation
        cases.append((cancel_myself(sound), AudioError))
    async with fastwhisper.open(tiny_en_ct2) as session:
        for source, kind in cases:
            found: list[LiveText] = []
            with pytest.raises(kind):
                await keep(session.listen(source), found)
            assert final_words(found) == spell(SENTENCE)


async def test_the_source_may_close_the_stream(tiny_en_ct2: Path, sound: np.ndarray) -> None:
    """As a callback that says stop."""
    streams: list[LiveStream] = []

    async def chunks() -> AsyncGenerator[np.ndarray]:
        for chunk in split(sound):
            yield chunk
        await streams[0].aclose()
        yield sound

    async with fastwhisper.open(tiny_en_ct2) as session:
        streams.append(session.listen(chunks()))
        found = [text async for text in streams[0]]
    assert final_words(found) == spell(SENTENCE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "chunk",
    [
        memoryview(bytes(36)).cast("f"),
        np.full(100, np.nan, np.float32),
        np.zeros((3, 2), np.float32),
        np.zeros(9),
        3,
        "x",
    ],
)
async def test_a_chunk_that_is_no_sound_is_an_error(
    tiny_en_ct2: Path, sound: np.ndarray, chunk: Any
) -> None:
    """After the text before it."""
    source = Source([*split(sound), chunk, *split(sound)])
    found: list[LiveText] = []
    async with fastwhisper.open(tiny_en_ct2) as session:
        with pytest.raises(AudioError, match="give"):
            await keep(session.listen(source), found)
    assert final_words(found) == spell(SENTENCE)


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.3, 1.0])
async def test_a_wait_that_is_cancelled_loses_nothing(
    tiny_en_ct2: Path, sound: np.ndarray, after_s: float
) -> None:
    """Wherever it is cancelled, the next one goes on."""
    found: list[LiveText] = []
    async with fastwhisper.open(tiny_en_ct2) as session:
        stream = session.listen(Source(split(sound)))
        for _ in range(3):
            with anyio.move_on_after(after_s):
                async for text in stream:  # none is left where a GPU has decoded it all
                    found.append(text)
                    break
        found += [text async for text in stream]
    assert final_words(found) == spell(SENTENCE)


async def test_closing_makes_what_is_tentative_final(tiny_en_ct2: Path, sound: np.ndarray) -> None:
    """The source ends; the next `anext` returns the rest, and then there is nothing."""
    async with fastwhisper.open(tiny_en_ct2) as session:
        stream = session.listen(endless(split(sound)))
        first = await anext(stream)
        await stream.aclose()
        rest = [text async for text in stream]
        assert rest[-1].is_final
        assert final_words([first, *rest]) == spell(SENTENCE)
        await stream.aclose()


@pytest.mark.slow
async def test_leaving_the_session_ends_the_source(tiny_en_ct2: Path, sound: np.ndarray) -> None:
    """Also one that is in the middle of a wait for sound; nothing of it outlives the block."""
    ended: list[bool] = []

    async def microphone() -> AsyncGenerator[np.ndarray]:
        try:
            for chunk in split(sound):
                yield chunk
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(fastwhisper.open(tiny_en_ct2))
        stream = session.listen(microphone())
        await anext(stream)
        async with anyio.create_task_group() as group:

            async def use() -> None:
                with pytest.raises(SessionClosedError):
                    async for _ in stream:
                        pass

            group.start_soon(use)
            await anyio.wait_all_tasks_blocked()
            await stack.aclose()
        assert ended == [True]
        with pytest.raises(SessionClosedError):
            await anext(stream)


async def test_a_load_that_fails_is_told_and_ends_the_source(tmp_path: Path) -> None:
    """The wait raises it."""
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    ended = anyio.Event()

    async def microphone() -> AsyncGenerator[np.ndarray]:
        try:
            while True:
                await anyio.lowlevel.checkpoint()
                yield silence(10)
        finally:
            ended.set()

    async with fastwhisper.open(tmp_path, background=True) as session:
        with pytest.raises(fastwhisper.LoadingFailedError):
            await anext(session.listen(microphone()))
        await ended.wait()  # while the session is open


async def test_a_session_that_was_left_asks_nobody(tiny_en_ct2: Path) -> None:
    """Listening begins after the block: the source is not touched."""
    source = Source(split(silence(1)))
    async with fastwhisper.open(tiny_en_ct2) as session:
        pass
    with pytest.raises(SessionClosedError):
        await anext(session.listen(source))
    assert source.given == 0


@pytest.mark.slow
async def test_two_streams_and_a_file_take_turns(tiny_en_ct2: Path, sound: np.ndarray) -> None:
    """Each stream gets its own text, long before the file is done."""
    done: list[str] = []
    async with fastwhisper.open(tiny_en_ct2) as session:

        async def live(name: str) -> None:
            found = await listen(session, Source(split(sound)))
            assert final_words(found) == spell(SENTENCE)
            done.append(name)

        async def file() -> None:
            await session.transcribe(np.concatenate([sound] * 40), language="en")
            done.append("file")

        async with anyio.create_task_group() as files:
            files.start_soon(file)
            async with anyio.create_task_group() as group:
                group.start_soon(live, "one")
                group.start_soon(live, "two")
            files.cancel_scope.cancel()
    assert sorted(done) == ["one", "two"]


async def test_one_task_at_a_time(tiny_en_ct2: Path) -> None:
    """A second one gets an error, and the first goes on."""
    async with fastwhisper.open(tiny_en_ct2) as session:
        stream = session.listen(endless([]))
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                with pytest.raises(StopAsyncIteration):
                    await anext(stream)

            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await anext(stream)
            await stream.aclose()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"min_chunk_s": 0}, ValueError),
        ({"min_chunk_s": float("nan")}, ValueError),
        ({"pause_s": 31}, ValueError),
        ({"pause_s": "1"}, TypeError),
        ({"min_chunk_s": True}, TypeError),
        ({"language": "klingon"}, ValueError),
        ({"task": "sing"}, ValueError),
        ({"initial_prompt": 3}, TypeError),
    ],
)
async def test_options_are_checked_at_once(
    tiny_en_ct2: Path, options: dict[str, Any], error: type[Exception]
) -> None:
    """Before the model is ready."""
    async with fastwhisper.open(tiny_en_ct2, background=True) as session:
        with pytest.raises(error):
            session.listen(Source([]), **options)
        with pytest.raises(TypeError, match="async iterable"):
            session.listen([b"\0\0"])  # type: ignore[arg-type]


async def test_no_sound_has_no_text(tiny_en_ct2: Path) -> None:
    """Neither an empty source nor silence."""
    async with fastwhisper.open(tiny_en_ct2) as session:
        for chunks in ([], [b""], split(silence(5))):
            stream = session.listen(Source(chunks))
            assert [text async for text in stream] == []
            assert (stream.passes, stream.dropped_passes) == (0, 0)
