"""Programs that enter and leave a session in their own ways: plugins, notebooks, servers."""

from __future__ import annotations

import asyncio
import gc
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import fastapi
import numpy as np
import pytest
from fastapi.testclient import TestClient

import fastwhisper
from fastwhisper import Closed
from tests.examples import fastapi_lifespan
from tests.helpers.audio import noise, wav_bytes
from tests.helpers.gates import STAGES, Gate
from tests.helpers.interpreter import run_python
from tests.helpers.tiny_models import SPEAKING, write_babbler

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
    from pathlib import Path

RULE = "left in another task than the one that entered it"
SILENCE = np.zeros(1600, np.float32)


@pytest.fixture
def model(tiny_model_dir: Callable[..., Path]) -> Path:
    """Return a one-layer model that can transcribe."""
    return tiny_model_dir(dimensions=SPEAKING)


async def in_a_task(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine function to its end in a task of its own."""
    failures: list[Exception] = []

    async def run() -> None:
        try:
            await function()
        except Exception as error:  # noqa: BLE001  raised again below
            failures.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(run)
    for failure in failures:
        raise failure


class Service:
    """A service with methods that start and stop it, as frameworks call them."""

    def __init__(self, model: Path, **options: Any) -> None:
        self._stack = AsyncExitStack()
        self._model = model
        self._options = options

    async def start(self) -> None:
        """Open the model."""
        session = fastwhisper.open(self._model, **self._options)
        self.session = await self._stack.enter_async_context(session)

    async def use(self) -> None:
        """Transcribe with it."""
        await self.session.wait_until_ready()
        heard = await self.session.transcribe(SILENCE, temperature=0, sample_len=1)
        assert heard.language == "en"

    async def stop(self) -> None:
        """Close it."""
        await self._stack.aclose()


# Different tasks


@pytest.mark.anyio
async def test_start_and_stop_in_different_tasks(model: Path) -> None:
    """A service may be started, used and stopped in three tasks."""
    service = Service(model)
    for step in (service.start, service.use, service.stop):
        await in_a_task(step)
    assert service.session.state == Closed()


@pytest.mark.anyio
async def test_in_the_background_another_task_must_not_leave(model: Path) -> None:
    """Leaving says which rule was broken. The session is closed, and no task is left."""
    service = Service(model, background=True)
    await in_a_task(service.start)
    await in_a_task(service.use)
    with pytest.raises(RuntimeError, match=RULE):
        await in_a_task(service.stop)
    assert service.session.state == Closed()


@pytest.mark.anyio
async def test_another_task_leaves_in_the_middle_of_a_load(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load is stopped and waited for, though the wrong task leaves."""
    gate = Gate(monkeypatch, STAGES["read"])
    service = Service(model, background=True)
    await in_a_task(service.start)
    await gate.wait_until_reached()
    async with anyio.create_task_group() as group:

        async def stop() -> None:
            with pytest.raises(RuntimeError, match=RULE):
                await service.stop()

        group.start_soon(stop)
        gate.open.set()
    assert service.session.state == Closed()


@pytest.mark.anyio
async def test_an_error_of_the_block_is_not_hidden_by_the_rule(model: Path) -> None:
    """The block's own exception leaves as the same object, with a note about the rule."""
    manager = fastwhisper.open(model, background=True)
    mine = ValueError("mine")

    async def enter() -> None:
        await manager.__aenter__()

    async def leave() -> None:
        assert not await manager.__aexit__(ValueError, mine, None)

    await in_a_task(enter)
    await in_a_task(leave)
    (note,) = mine.__notes__
    assert RULE in note


# Async generators


@pytest.fixture
def reports() -> Iterator[list[str]]:
    """Return what is logged, with its traceback, as a list that grows."""
    found: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(self.format(record))

    handler = Handler(logging.ERROR)
    logging.getLogger().addHandler(handler)
    yield found
    logging.getLogger().removeHandler(handler)


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # trio's, of the break
@pytest.mark.parametrize("background", [False, True])
async def test_a_generator_that_is_left_by_break(
    model: Path, anyio_backend_name: str, reports: list[str], *, background: bool
) -> None:
    """The task that left it goes on, and its cancel scopes with it; the session is closed.

    In the background the loop reports the rule that was broken.
    """
    if anyio_backend_name == "asyncio":  # the plugin's own handler keeps what is reported
        asyncio.get_running_loop().set_exception_handler(None)

    async def sessions() -> AsyncGenerator[fastwhisper.Session]:
        async with fastwhisper.open(model, background=background) as session:
            while True:
                yield session

    async def leave() -> fastwhisper.Session:
        async for session in sessions():
            found = session
            break
        return found

    with anyio.CancelScope() as scope:
        session = await leave()
        gc.collect()
        while session.state != Closed() or len(reports) < background:
            await anyio.lowlevel.checkpoint()
            gc.collect()  # asyncio reports a task's failure when the task is collected
    assert not scope.cancelled_caught
    await anyio.lowlevel.checkpoint()
    assert [RULE in report for report in reports] == [True] * background


# Notebooks


@pytest.mark.parametrize("background", [False, True])
def test_cells_of_a_notebook(model: Path, *, background: bool) -> None:
    """One loop runs each cell in a task of its own, as ipykernel does."""
    service = Service(model, background=background)
    with asyncio.Runner() as runner:
        runner.run(service.start())
        runner.run(service.use())
        if background:
            with pytest.raises(RuntimeError, match=RULE):
                runner.run(service.stop())
        else:
            runner.run(service.stop())
        assert asyncio.all_tasks(runner.get_loop()) == set()
    assert service.session.state == Closed()


def test_each_cell_has_a_loop_of_its_own(model: Path) -> None:
    """When a loop ends, it closes the session, and the next one is told so."""
    service = Service(model)
    asyncio.run(service.start())
    assert service.session.state == Closed()
    with pytest.raises(fastwhisper.SessionClosedError):
        asyncio.run(service.use())
    asyncio.run(service.stop())


# Fixtures of pytest's plugins, in a pytest of their own

TESTS = """
import fastwhisper, numpy as np, pytest
{imports}

@{fixture}
async def session(request{more}):
    async with fastwhisper.open({model!r}, background={background}) as session:
        yield session

{mark}
@pytest.mark.parametrize("number", [1, 2])
async def test_hears(session, number):
    await session.wait_until_ready()
    heard = await session.transcribe(np.zeros(1600, np.float32), temperature=0, sample_len=1)
    assert heard.language == "en"
"""
ASYNCIO = {
    "imports": "import pytest_asyncio",
    "fixture": "pytest_asyncio.fixture(loop_scope={scope!r}, scope={scope!r})",
    "mark": "@pytest.mark.asyncio(loop_scope={scope!r})",
    "more": "",
}
ANYIO = {
    "imports": "@pytest.fixture(scope={scope!r}, params=['asyncio', 'trio'])\n"
    "def anyio_backend(request): return request.param",
    "fixture": "pytest.fixture(scope={scope!r})",
    "mark": "@pytest.mark.anyio",
    "more": ", anyio_backend",
}


def run_tests(
    directory: Path,
    model: Path,
    plugin: dict[str, str],
    scope: str,
    *,
    background: bool,
    status: int,
) -> str:
    """Run tests with a fixture that opens a model, by a plugin; return what pytest says."""
    parts = {key: part.format(scope=scope) for key, part in plugin.items()}
    text = TESTS.format(model=str(model), background=background, **parts)
    (directory / "test_it.py").write_text(text, encoding="utf-8")
    (directory / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n",
        encoding="utf-8",
    )
    # benchmark would warn of processes side by side, which these tests may run in: an error.
    without = [
        part
        for name in ("cacheprovider", "audioeval", "benchmark")
        for part in ("-p", f"no:{name}")
    ]
    options = ("-q", "--timeout", "60", *without)
    return run_python("-m", "pytest", *options, directory, status=status).stdout


FAST = (ASYNCIO, "session")


@pytest.mark.parametrize(
    ("plugin", "scope"),
    [
        pytest.param(plugin, scope, marks=[] if (plugin, scope) == FAST else pytest.mark.slow)
        for plugin in (ASYNCIO, ANYIO)
        for scope in ("function", "session")
    ],
)
def test_fixture_of_a_plugin(
    tmp_path: Path, model: Path, plugin: dict[str, str], scope: str
) -> None:
    """A fixture opens the model for one test, or for all of them on one loop."""
    said = run_tests(tmp_path, model, plugin, scope, background=False, status=0)
    assert f"{2 if plugin is ASYNCIO else 4} passed" in said


@pytest.mark.slow
def test_fixture_in_the_background_says_what_is_wrong(tmp_path: Path, model: Path) -> None:
    """pytest-asyncio leaves a fixture in another task: its tests pass, and the error is clear."""
    said = run_tests(tmp_path, model, ASYNCIO, "session", background=True, status=1)
    assert "2 passed, 1 error" in said
    assert RULE in said


@pytest.mark.slow
def test_fixture_in_the_background_with_anyio(tmp_path: Path, model: Path) -> None:
    """The plugin of anyio runs fixtures and tests in one task, so the rule is kept."""
    said = run_tests(tmp_path, model, ANYIO, "session", background=True, status=0)
    assert "4 passed" in said


# Servers


@pytest.mark.parametrize("form", ["lifespan", "handlers"])
def test_fastapi_serves_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """The example's lifespan, in the background, and a service's start and stop methods."""
    babbler = write_babbler(tmp_path / "babbler", multilingual=False)
    monkeypatch.setattr(fastapi_lifespan, "MODEL", str(babbler))
    service = Service(babbler)

    @asynccontextmanager
    async def started(app: Any) -> AsyncIterator[None]:
        await in_a_task(service.start)
        app.state.whisper = service.session
        yield
        await in_a_task(service.stop)

    app = fastapi.FastAPI(lifespan=fastapi_lifespan.lifespan if form == "lifespan" else started)

    async def transcribe(upload: Any) -> dict[str, str]:
        return await fastapi_lifespan.transcribe(app, upload)

    # FastAPI reads annotations where the names of this function are not known.
    transcribe.__annotations__["upload"] = fastapi.UploadFile
    app.post("/transcribe")(transcribe)
    with TestClient(app) as asks:
        for _ in range(2):
            answer = asks.post("/transcribe", files={"upload": wav_bytes(noise(2))})
            assert answer.json()["text"].strip()
    assert app.state.whisper.state == Closed()
