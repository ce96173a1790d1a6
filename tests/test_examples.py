"""The example programs of tests/examples and docs/examples do what their docstrings say."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import mlx.core as mx
import numpy as np
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

import fastwhisper
from fastwhisper.transcribing.samples import never_cancel, read_blocks
from tests.examples import fastapi_lifespan, mlx_after, mlx_before
from tests.helpers.audio import SAMPLE, SENTENCE, noise, spell, to_bytes, wav_bytes
from tests.helpers.gates import STAGES, Gate
from tests.helpers.tiny_models import write_babbler

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).parent / "examples"
LIVE_EXAMPLES = Path(__file__).parents[1] / "docs/examples"
WRITE_SAMPLE = """
import sys
import numpy as np
from fastwhisper.transcribing.samples import never_cancel, read_blocks
samples = np.concatenate(list(read_blocks(sys.argv[1], check=never_cancel)))
sys.stdout.buffer.write((samples * 32767).astype("<i2").tobytes())
"""
"""A program that writes what a microphone would hear."""


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


def import_example(name: str) -> Any:
    """Import a program of docs/examples, which is no package."""
    spec = importlib.util.spec_from_file_location(name, LIVE_EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_the_trio_app_writes_down_what_a_program_records(
    tiny_en_ct2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each sentence with its time; the app ends with the program."""
    app = import_example("listen_trio")
    command = [sys.executable, "-c", WRITE_SAMPLE, str(SAMPLE)]
    sentences = await app.main(command, str(tiny_en_ct2))
    assert spell(" ".join(sentences)) == spell(SENTENCE)
    assert capsys.readouterr().out.startswith("   0.0 s Good morning.")


@pytest.fixture
def server(tiny_en_ct2: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """Yield a client of the live server; uvicorn, which runs it elsewhere, is not needed."""
    monkeypatch.setitem(sys.modules, "uvicorn", SimpleNamespace())
    app = import_example("live_server").build_app(str(tiny_en_ct2), 8000)
    with TestClient(app) as client:
        yield client


@pytest.mark.slow
def test_the_live_server_answers_sound_with_text(server: TestClient) -> None:
    """The text message at the end makes the rest final; then the server closes."""
    assert "<title>Live text</title>" in server.get("/").text
    headers = {"origin": "http://127.0.0.1:8000"}
    samples = np.concatenate(list(read_blocks(SAMPLE, check=never_cancel)))
    final = ""
    with server.websocket_connect("/listen", headers=headers) as page:
        page.send_bytes(to_bytes(samples))
        page.send_text("end")
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                heard = page.receive_json()
                final += heard["text"] if heard["final"] else ""
    assert spell(final) == spell(SENTENCE)


@pytest.mark.slow
def test_a_page_that_is_closed_leaves_the_live_server(server: TestClient) -> None:
    """The next page is served."""
    headers = {"origin": "http://localhost:8000"}
    for _ in range(3):
        with server.websocket_connect("/listen", headers=headers) as page:
            page.send_bytes(bytes(2000))


@pytest.mark.slow
@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://127.0.0.1:8001"])
def test_the_live_server_refuses_other_pages(server: TestClient, origin: str | None) -> None:
    """Before the connection is accepted."""
    headers = {} if origin is None else {"origin": origin}
    with (
        pytest.raises(WebSocketDisconnect) as caught,
        server.websocket_connect("/listen", headers=headers),
    ):
        pytest.fail("it was accepted")
    assert caught.value.code == 1008
