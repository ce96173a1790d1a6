"""Many files one after the other: those that follow are read, and decoded in the same batches."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import mlx.core as mx
import numpy as np
import pytest

import fastwhisper
from fastwhisper import AudioError, TranscribeProgress
from fastwhisper.stream import read_ahead
from fastwhisper.transcribing import cuts
from fastwhisper.transcribing.open_audio import OpenAudio
from fastwhisper.transcribing.parts import PartReader
from fastwhisper.transcribing.window_decoder import WindowDecoder
from tests.helpers.audio import SAMPLE_RATE, tone
from tests.helpers.tiny_models import SPEAKING, write_babbler
from tests.helpers.tones import ToneDetector, alternate

if TYPE_CHECKING:
    from pathlib import Path

    from fastwhisper import Session, Transcription
    from fastwhisper.stream import SegmentStream

pytestmark = pytest.mark.anyio

SHORT: Any = {"temperature": 0.9, "seed": 1, "sample_len": 5, "without_timestamps": True}
SOUNDS = [
    alternate(0.2, 2, 1),
    alternate(0.5, 4, 3, 25, 2, 28, 3, 5),
    alternate(0.1, 1),
    alternate(0.4, 3, 0.5),
]
"""One is longer than two windows."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model that says something else of each sound."""
    return write_babbler(tmp_path_factory.mktemp("babbler"), multilingual=False)


@pytest.fixture(autouse=True)
def tones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tones be speech."""
    monkeypatch.setattr(cuts, "VoiceDetector", ToneDetector)


async def finish(stream: SegmentStream) -> Transcription:
    """Decode a stream to its end."""
    while await stream.decode_window():
        pass
    result = stream.so_far
    assert result is not None
    return result


def digits_off(result: Transcription) -> list[Any]:
    """Return what does not depend on the order of additions, which the size of a batch changes."""
    return [
        result.text,
        result.language,
        result.duration_s,
        [(segment.start_s, segment.end_s, segment.tokens) for segment in result.segments],
    ]


@pytest.mark.parametrize("batch_size", [1, 3])
async def test_each_file_has_the_text_that_it_has_alone(model: Path, batch_size: int) -> None:
    """In the order in which they were given."""
    options = {**SHORT, "batch_size": batch_size}
    async with fastwhisper.open(model) as session:
        alone = [await session.transcribe(sound, **options) for sound in SOUNDS]
        streams = read_ahead(session.stream(sound, **options) for sound in SOUNDS)
        found = [await finish(stream) for stream in streams]
    assert [*map(digits_off, found)] == [*map(digits_off, alone)]
    assert all(result.text for result in found)


async def test_a_batch_holds_windows_of_several_files(
    model: Path, encoded_together: list[int]
) -> None:
    """Twenty files of one window are five batches of four."""
    async with fastwhisper.open(model) as session:
        encoded_together.clear()  # a GPU was warmed up
        streams = (session.stream(tone(1), batch_size=4, **SHORT) for _ in range(20))
        for stream in read_ahead(streams):
            await finish(stream)
    assert sum(encoded_together) == 20
    assert encoded_together == [4] * 5


@pytest.mark.parametrize("batch_size", [1, 3])
async def test_the_next_file_is_read_meanwhile(
    model: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    """As many parts as two batches have, and not the whole list."""
    read: set[int] = set()
    real = PartReader.read

    def note(reader: PartReader, count: int) -> Any:
        read.add(id(reader))
        return real(reader, count)

    monkeypatch.setattr(PartReader, "read", note)
    taken: list[int] = []

    def make(session: Session) -> Any:
        for n in range(20):
            taken.append(n)
            yield session.stream(tone(1), batch_size=batch_size, **SHORT)

    async with fastwhisper.open(model) as session:
        for stream in read_ahead(make(session)):
            await finish(stream)
            break
    assert 1 < len(read) <= 3 * batch_size
    assert len(taken) <= 2 * batch_size + 1


@pytest.mark.parametrize("batch_size", [1, 3])
async def test_a_file_that_can_not_be_read_fails_alone(
    model: Path, tmp_path: Path, batch_size: int
) -> None:
    """When it is its turn; those before and after it have their text."""
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF" + bytes(99))
    sources: list[Any] = [SOUNDS[0], broken, tmp_path / "missing.wav", SOUNDS[2], broken]
    outcomes: list[str] = []
    async with fastwhisper.open(model) as session:
        for stream in read_ahead(
            session.stream(source, batch_size=batch_size, **SHORT) for source in sources
        ):
            try:
                outcomes.append((await finish(stream)).text)
            except (AudioError, OSError) as error:
                outcomes.append(type(error).__name__)
    assert outcomes[1:3] + outcomes[4:] == ["AudioError"] * 3
    assert outcomes[0]
    assert outcomes[3]


async def test_a_stream_may_be_left_in_the_middle(model: Path) -> None:
    """The next one begins all the same."""
    async with fastwhisper.open(model) as session:
        alone = await session.transcribe(SOUNDS[2], **SHORT)
        found: list[Transcription] = []
        for stream in read_ahead(session.stream(sound, **SHORT) for sound in SOUNDS[1:3]):
            await stream.decode_window()
            result = stream.so_far
            assert result is not None
            found.append(result)
    assert found[0].segments
    assert digits_off(found[1]) == digits_off(alone)


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.1, 0.3])
async def test_a_cancel_loses_nothing_of_any_file(model: Path, after_s: float) -> None:
    """Wherever it comes, the streams go on."""
    options = {**SHORT, "batch_size": 3}
    async with fastwhisper.open(model) as session:
        alone = [await session.transcribe(sound, **options) for sound in SOUNDS]
        streams = read_ahead(session.stream(sound, **options) for sound in SOUNDS)
        found: list[Transcription] = []
        for stream in streams:
            with anyio.move_on_after(after_s):
                await finish(stream)
            found.append(await finish(stream))
    assert [*map(digits_off, found)] == [*map(digits_off, alone)]


async def test_progress_is_told_of_each_file(model: Path) -> None:
    """To its end, also where it was decoded while another one was used."""
    told: list[list[TranscribeProgress]] = [[] for _ in SOUNDS]
    async with fastwhisper.open(model) as session:
        streams = (
            session.stream(sound, batch_size=3, on_progress=heard.append, **SHORT)
            for sound, heard in zip(SOUNDS, told, strict=True)
        )
        for stream in read_ahead(streams):
            await finish(stream)
    assert [heard[-1].done_s for heard in told] == [len(sound) / SAMPLE_RATE for sound in SOUNDS]


@pytest.mark.parametrize("batch_size", [1, 4])
async def test_files_that_are_done_are_not_kept(
    model: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    """However many there are; garbage collection is not needed."""
    alive: weakref.WeakSet[OpenAudio] = weakref.WeakSet()
    real = OpenAudio.__init__

    def note(audio: OpenAudio, *arguments: Any, **options: Any) -> None:
        real(audio, *arguments, **options)
        alive.add(audio)

    def encode(_: WindowDecoder, windows: Any) -> mx.array:
        features = mx.zeros((len(windows), SPEAKING.n_audio_ctx, SPEAKING.n_audio_state))
        mx.eval(features)
        return features

    monkeypatch.setattr(OpenAudio, "__init__", note)
    monkeypatch.setattr(WindowDecoder, "encode", encode)
    counts: list[int] = []
    gc.disable()
    try:
        async with fastwhisper.open(model) as session:
            streams = (session.stream(tone(0.5), batch_size=batch_size, **SHORT) for _ in range(60))
            for stream in read_ahead(streams):
                await finish(stream)
                counts.append(len(alive))
    finally:
        gc.enable()
    assert len(counts) == 60
    assert max(counts) <= 2 * batch_size + 2


async def test_what_the_source_raises_is_raised_in_its_place(model: Path) -> None:
    """And the files behind it have their text."""

    def make(session: Session, n: int) -> SegmentStream:
        if n == 1:
            raise UserWarning("this one")
        return session.stream(SOUNDS[0], **SHORT)

    outcomes: list[str] = []
    async with fastwhisper.open(model) as session:
        streams = read_ahead(map(partial(make, session), range(3)))
        for _ in range(3):
            try:
                outcomes.append((await finish(next(streams))).text)
            except UserWarning as error:
                outcomes.append(str(error))
        with pytest.raises(StopIteration):
            next(streams)
    assert outcomes[1] == "this one"
    assert outcomes[0] == outcomes[2] != ""


def test_no_file_is_no_stream() -> None:
    """Nothing is asked of anybody."""
    assert list(read_ahead(iter(()))) == []
    assert np.concatenate(SOUNDS).dtype == np.float32
