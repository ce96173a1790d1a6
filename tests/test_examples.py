"""The example programs of tests/examples do what their docstrings say."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from types import SimpleNamespace

import anyio
import mlx.core as mx
import pytest

import fastwhisper
from tests.examples import fastapi_lifespan, mlx_after, mlx_before
from tests.helpers.audio import noise, wav_bytes
from tests.helpers.gates import STAGES, Gate
from tests.helpers.tiny_models import write_babbler

EXAMPLES = Path(__file__).parent / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a one-layer model that says words, and return its directory."""
    return write_babbler(tmp_path_factory.mktemp("babbler") / "model", multilingual=False)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Write two seconds of noise to a file, and return its path."""
    path = tmp_path / "noise.wav"
    path.write_bytes(wav_bytes(noise(2)))
    return path


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_asyncio_app_serves_while_it_loads(
    model: Path, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Health is answered before the model is ready, a request waits for it, and exit closes it."""
    monkeypatch.setattr(fastapi_lifespan, "MODEL", str(model))
    gate = Gate(monkeypatch, STAGES["read"])
    app = SimpleNamespace(state=SimpleNamespace())
    answers: list[dict[str, str]] = []

    async def request() -> None:
        with recording.open("rb") as file:
            upload = SimpleNamespace(file=file)
            answers.append(await fastapi_lifespan.transcribe(app, upload))

    async with fastapi_lifespan.lifespan(app):
        assert await fastapi_lifespan.health(app) == {"ready": False}
        async with anyio.create_task_group() as group:
            group.start_soon(request)
            await gate.wait_until_reached()
            assert answers == []
            gate.open.set()
        assert await fastapi_lifespan.health(app) == {"ready": True}
    assert answers[0]["language"] == "en"
    assert answers[0]["text"].strip()
    assert app.state.whisper.state == fastwhisper.Closed()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_the_trio_app_shares_one_model(
    model: Path, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tasks share one model: each gets the text that it would get alone."""
    trio_nursery = importlib.import_module("tests.examples.trio_nursery")
    monkeypatch.setattr(trio_nursery, "MODEL", str(model))
    other = recording.with_name("other.wav")
    other.symlink_to(recording)
    texts = await trio_nursery.main([recording, other])
    async with fastwhisper.open(model) as session:
        alone = await session.transcribe(recording, temperature=0)
    expected = "".join(segment.text for segment in alone.segments)
    assert texts == {"noise.wav": expected, "other.wav": expected}


def test_an_mlx_whisper_app_changes_one_import(model: Path) -> None:
    """Only the import changes. The text stays the same."""
    before_lines, after_lines = (
        (EXAMPLES / name).read_text().partition('"""\n')[2].splitlines()
        for name in ("mlx_before.py", "mlx_after.py")
    )
    lines = difflib.ndiff(before_lines, after_lines)
    changed = [line for line in lines if line[:2] in {"- ", "+ "} and line[2:]]
    assert changed == [
        "- from mlx_whisper.load_models import load_model",
        "+ from fastwhisper import load_model",
    ]
    samples = mx.array(noise(2))
    before = mlx_before.first_words(str(model), samples)
    assert before.strip()
    assert mlx_after.first_words(str(model), samples) == before
