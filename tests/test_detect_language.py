"""Session.detect_language: probabilities of the first 30 s, errors, cancelling, leaving."""

from __future__ import annotations

import gc
import io
import weakref
from typing import TYPE_CHECKING

import anyio
import mlx.core as mx
import numpy as np
import pytest

import fastwhisper
from fastwhisper import AudioError, ModelNotReadyError, SessionClosedError
from tests.helpers.audio import noise, wav_bytes
from tests.helpers.gates import STAGES, Gate
from tests.helpers.tiny_models import write_babbler

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio

JOBS = [
    "fastwhisper.transcribing.language.compute_first_mel",
    "fastwhisper.transcribing.language.detect_languages",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Return one-layer models by whether they are multilingual."""
    root = tmp_path_factory.mktemp("babblers")
    return {
        multilingual: write_babbler(root / str(multilingual), multilingual=multilingual)
        for multilingual in (False, True)
    }


class CountingFile(io.BytesIO):
    """A file that counts the bytes that are read from it."""

    read_bytes = 0

    def read(self, size: int | None = -1) -> bytes:
        """Read and count."""
        data = super().read(size)
        self.read_bytes += len(data)
        return data


async def test_probabilities_of_all_languages(models: dict[bool, Path]) -> None:
    """They sum to 1, the highest is first, and it is the language of the transcription."""
    async with fastwhisper.open(models[True]) as session:
        found = await session.detect_language(noise(4))
        text = await session.transcribe(noise(4), temperature=0, sample_len=3)
    assert len(found) == 99
    assert sum(found.values()) == pytest.approx(1, abs=1e-4)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert len(set(found.values())) > 10
    assert next(iter(found)) == text.language


async def test_an_english_model_is_sure(models: dict[bool, Path]) -> None:
    """A model without tokens of languages needs no audio that says more."""
    async with fastwhisper.open(models[False]) as session:
        assert await session.detect_language(noise(1)) == {"en": 1.0}


async def test_the_first_30_s_decide(models: dict[bool, Path]) -> None:
    """What follows them is neither decoded nor measured, in an array and in a file."""
    samples = np.concatenate([noise(30), np.ones(300 * 16_000, np.float32)])
    file = CountingFile(wav_bytes(samples))
    async with fastwhisper.open(models[True]) as session:
        expected = await session.detect_language(samples[: 30 * 16_000])
        assert await session.detect_language(samples) == expected
        of_file = await session.detect_language(file)
    assert list(of_file)[:3] == list(expected)[:3]
    # 1 MB is 30 s, and FFmpeg reads ahead.
    assert file.read_bytes < 3e6
    assert len(file.getvalue()) > 10e6


async def test_a_lazy_mlx_array_is_taken_as_audio(models: dict[bool, Path]) -> None:
    """Samples made in the caller's thread and not evaluated yet are taken as they are now."""
    async with fastwhisper.open(models[True]) as session:
        lazy = mx.array(noise(1)) * 0.5
        of_lazy = await session.detect_language(lazy)
        assert of_lazy == await session.detect_language(noise(1) * np.float32(0.5))


async def test_errors_are_those_of_transcribe(
    models: dict[bool, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A model that is not ready, bad audio, and a session that was left have their errors."""
    gate = Gate(monkeypatch, STAGES["read"])
    async with fastwhisper.open(models[True], background=True) as session:
        with pytest.raises(ModelNotReadyError):
            await session.detect_language(noise(1))
        gate.open.set()
        await session.wait_until_ready(timeout=None)
        with pytest.raises(AudioError, match=r"gone\.wav"):
            await session.detect_language(tmp_path / "gone.wav")
        with pytest.raises(AudioError, match="float64"):
            await session.detect_language(np.zeros(16_000))
    with pytest.raises(SessionClosedError):
        await session.detect_language(noise(1))


@pytest.mark.parametrize("job", JOBS)
async def test_cancelled_midway(
    models: dict[bool, Path], monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    """A detection that is given up disturbs no other."""
    async with fastwhisper.open(models[True]) as session:
        with monkeypatch.context() as patched:
            gate = Gate(patched, job)
            async with anyio.create_task_group() as group:
                group.start_soon(session.detect_language, noise(1))
                await gate.wait_until_reached()
                group.cancel_scope.cancel()
        assert await session.detect_language(noise(1))


async def test_a_cancelled_task_detects_nothing(models: dict[bool, Path]) -> None:
    """It is a cancellation point even where no language is to be detected."""
    async with fastwhisper.open(models[False]) as session:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await session.detect_language(noise(1))
            pytest.fail("cancelled")
    assert scope.cancelled_caught


@pytest.mark.parametrize("job", JOBS)
async def test_leaving_midway(
    models: dict[bool, Path], monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    """Whoever detects while the session is left gets SessionClosedError, and no model stays."""
    gate = Gate(monkeypatch, job)
    closed: list[SessionClosedError] = []

    async def detect(session: fastwhisper.Session) -> None:
        with pytest.raises(SessionClosedError) as caught:
            await session.detect_language(noise(1))
        closed.append(caught.value)

    async with anyio.create_task_group() as group:
        async with fastwhisper.open(models[True]) as session:
            weights = weakref.ref(session.result.model)
            group.start_soon(detect, session)
            await gate.wait_until_reached()
        await anyio.wait_all_tasks_blocked()
    assert len(closed) == 1
    gc.collect()
    assert weights() is None
