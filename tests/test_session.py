"""open() and Session: states, failures, leaving, cancellation, transcription."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import mlx.core as mx
import numpy as np
import pytest

import fastwhisper
from fastwhisper import (
    AudioError,
    Closed,
    InvalidModelFormatError,
    Loading,
    LoadingFailedError,
    LoadingTimeoutError,
    ModelNotFoundError,
    ModelNotReadyError,
    Quantization,
    QuantizedModelNotAvailableError,
    Ready,
    SessionClosedError,
)
from tests.helpers.gates import STAGES, Gate
from tests.helpers.tiny_models import SPEAKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from anyio.abc import TaskStatus

pytestmark = pytest.mark.anyio

EVERY_STAGE = [
    pytest.param(stage, marks=[] if stage in {"read", "apply"} else pytest.mark.slow)
    for stage in STAGES
]


@pytest.fixture
def model(tiny_model_dir: Callable[..., Path]) -> Path:
    """Return a one-layer model that can transcribe."""
    return tiny_model_dir(dimensions=SPEAKING)


@pytest.fixture
def broken(tiny_model_dir: Callable[..., Path]) -> Path:
    """Return a model whose weights are cut short."""
    directory = tiny_model_dir()
    weights = directory / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    return directory


@pytest.fixture
def tone() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return three seconds of a tone that swells."""
    time_s = np.arange(3 * 16_000) / 16_000
    return (np.sin(2 * np.pi * 440 * time_s) * time_s / 6).astype(np.float32)


async def test_blocking_mode_yields_a_ready_session(model: Path) -> None:
    """Without `background` the block begins when the model can be used."""
    async with fastwhisper.open(model) as session:
        assert isinstance(session.state, Ready)
        assert session.is_ready
        assert session.state.stats.bytes_read > 0
        assert session.result.model.dims.n_audio_layer == 1
        assert session.result.path == model
        assert session.result.source == str(model)


async def test_background_mode_yields_before_any_file_is_opened(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block begins at once; nothing can be used yet, and every use says so."""
    gate = Gate(monkeypatch, STAGES["locate"])
    async with fastwhisper.open(model, background=True) as session:
        assert isinstance(session.state, Loading)
        with pytest.raises(ModelNotReadyError):
            session.result  # noqa: B018  the property is what is tested
        with pytest.raises(ModelNotReadyError):
            await session.transcribe("nothing.wav")
        with pytest.raises(LoadingTimeoutError):
            await session.wait_until_ready(timeout=0)
        gate.open.set()
        stats = await session.wait_until_ready(timeout=None)
        assert session.result.ready.state == Ready(stats)


async def test_the_result_is_there_before_the_weights(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repository and precision are known while the weights are still being read."""
    gate = Gate(monkeypatch, STAGES["read"])
    async with fastwhisper.open(model, background=True) as session:
        await gate.wait_until_reached()
        assert session.result.actual == Quantization.FLOAT16
        with pytest.raises(ModelNotReadyError):
            session.result.model  # noqa: B018  the property is what is tested
        gate.open.set()
        await session.wait_until_ready(timeout=None)
        assert session.result.model is session.result.model


async def test_leaving_closes_everything(model: Path) -> None:
    """After the block the model is gone, and every use says that the session is closed."""
    async with fastwhisper.open(model) as session:
        result = session.result
        weights = weakref.ref(result.model)
    assert session.state == Closed()
    for use in (session.wait_until_ready, lambda: session.transcribe("nothing.wav")):
        with pytest.raises(SessionClosedError):
            await use()
    with pytest.raises(SessionClosedError):
        result.model  # noqa: B018  the property is what is tested
    gc.collect()
    assert weights() is None


@pytest.mark.parametrize("background", [False, True])
async def test_leaving_gives_the_memory_back(model: Path, *, background: bool) -> None:
    """After the block MLX holds what it held before."""
    async with fastwhisper.open(model):
        pass  # what is loaded once for the process is loaded now
    gc.collect()
    before = mx.get_active_memory()
    async with fastwhisper.open(model, background=background) as session:
        await session.wait_until_ready()
        assert mx.get_active_memory() > before
    gc.collect()
    assert mx.get_active_memory() == before
    assert mx.get_cache_memory() == 0


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: ZeroDivisionError("mine"),
        lambda: ExceptionGroup("mine", [ValueError("a"), ValueError("b")]),
        KeyboardInterrupt,
    ],
    ids=["error", "group", "interrupt"],
)
async def test_an_exception_of_the_body_leaves_unchanged(
    model: Path, make: Callable[[], BaseException], *, background: bool
) -> None:
    """The caller gets the very object, bare, with nothing chained to it."""
    mine = make()
    with pytest.raises(type(mine)) as caught:
        async with fastwhisper.open(model, background=background):
            raise mine
    assert caught.value is mine
    assert mine.__context__ is None
    assert mine.__cause__ is None


async def test_a_blocking_open_is_entered_and_left_in_different_tasks(model: Path) -> None:
    """As fixtures, notebooks and start and stop methods do: no cancel scope spans the block."""
    manager = fastwhisper.open(model)
    opened: list[fastwhisper.Session] = []

    async def enter() -> None:
        opened.append(await manager.__aenter__())

    async def leave() -> None:
        await manager.__aexit__(None, None, None)

    for step in (enter, leave):
        async with anyio.create_task_group() as group:
            group.start_soon(step)
    assert opened[0].state == Closed()


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # trio's, of the break
async def test_a_blocking_open_in_a_generator_that_is_dropped(model: Path) -> None:
    """It closes when it is collected, and the task that left it goes on."""

    async def sessions() -> AsyncGenerator[fastwhisper.Session]:
        async with fastwhisper.open(model) as session:
            yield session

    generator = sessions()
    session = await anext(generator)
    del generator
    gc.collect()
    await anyio.wait_all_tasks_blocked()
    while session.state != Closed():
        await anyio.lowlevel.checkpoint()


async def test_leaving_during_a_conversion_blocks_no_other_session(
    model: Path, tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sessions wait for a slow disk, and a third one opens meanwhile."""
    reached, is_free = threading.Semaphore(0), threading.Event()
    real = os.fsync

    def wait_for_disk(descriptor: int) -> None:
        reached.release()
        is_free.wait()
        real(descriptor)

    monkeypatch.setattr(os, "fsync", wait_for_disk)
    leave = anyio.Event()

    async def open_and_leave(directory: Path, *, task_status: TaskStatus[None]) -> None:
        async with fastwhisper.open(directory):
            await anyio.to_thread.run_sync(reached.acquire)
            task_status.started()
            await leave.wait()

    async with anyio.create_task_group() as group:
        for seed in (1, 2):
            directory = tiny_model_dir(dimensions=SPEAKING, layout="weights.npz", seed=seed)
            # Each with a cache of its own: one conversion at a time has the lock of a cache.
            monkeypatch.setenv("FASTWHISPER_CACHE", str(directory / "cache"))
            await group.start(open_and_leave, directory)
        leave.set()
        await anyio.wait_all_tasks_blocked()
        try:
            with anyio.fail_after(60):
                async with fastwhisper.open(model) as session:
                    assert session.is_ready
        finally:
            is_free.set()


async def test_a_blocking_failure_is_raised_bare(broken: Path) -> None:
    """Without `background` the typed error itself is raised on entering."""
    with pytest.raises(InvalidModelFormatError) as caught:
        async with fastwhisper.open(broken):
            pytest.fail("the block must not begin")
    assert caught.value.path == broken / "weights.safetensors"


async def test_a_background_failure_is_raised_at_the_wait_and_never_on_leaving(
    broken: Path,
) -> None:
    """A failed load cancels nobody; each wait raises a fresh error from the real one."""
    async with fastwhisper.open(broken, background=True) as session:
        for _ in range(2):
            with pytest.raises(LoadingFailedError) as caught:
                await session.wait_until_ready()
            assert isinstance(caught.value.__cause__, InvalidModelFormatError)
        await anyio.lowlevel.checkpoint()
        with pytest.raises(LoadingFailedError):
            await session.transcribe("nothing.wav")
        with pytest.raises(LoadingFailedError):
            session.result  # noqa: B018  the property is what is tested


async def test_a_background_failure_nobody_awaited_is_logged(
    broken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure that nobody waited for is logged once on leaving."""
    async with fastwhisper.open(broken, background=True) as session:
        while session.state == Loading():
            await anyio.lowlevel.checkpoint()
    assert caplog.text.count("nobody waited") == 1


async def test_a_repaired_directory_opens_in_the_same_process(
    tiny_model_dir: Callable[..., Path],
) -> None:
    """A failed load leaves nothing behind that the next one would trip over."""
    directory = tiny_model_dir(dimensions=SPEAKING)
    weights = directory / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-2])
    with pytest.raises(InvalidModelFormatError):
        async with fastwhisper.open(directory):
            pytest.fail("the block must not begin")
    weights.write_bytes(whole)
    async with fastwhisper.open(directory) as session:
        assert session.is_ready


@pytest.mark.parametrize("stage", EVERY_STAGE)
async def test_leaving_cancels_a_load_at_every_stage(
    model: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaving ends the load wherever it stands, and waits for its jobs."""
    gate = Gate(monkeypatch, STAGES[stage])
    async with fastwhisper.open(model, background=True, warm_up=True) as session:
        await gate.wait_until_reached()
    assert session.state == Closed()
    with pytest.raises(SessionClosedError):
        await session.wait_until_ready()


@pytest.mark.parametrize("stage", EVERY_STAGE)
async def test_cancelling_the_opening_task_at_every_stage(
    model: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that is cancelled while it opens is free, and the next load works."""
    with monkeypatch.context() as patched:
        gate = Gate(patched, STAGES[stage])

        async def opening() -> None:
            async with fastwhisper.open(model, warm_up=True):
                pytest.fail("the block must not begin")

        async with anyio.create_task_group() as group:
            group.start_soon(opening)
            await gate.wait_until_reached()
            group.cancel_scope.cancel()
    async with fastwhisper.open(model) as session:
        assert session.is_ready


async def test_transcribes_before_the_tokenizer_is_there(
    model: Path, tone: np.ndarray[Any, np.dtype[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks for text right after ready gets it: the same as later."""
    gate = Gate(monkeypatch, STAGES["tokenizer"])
    async with fastwhisper.open(model, warm_up=False) as session:
        await gate.wait_until_reached()
        first = await session.transcribe(tone, language="en", temperature=0, sample_len=8)
        gate.open.set()
        second = await session.transcribe(tone, language="en", temperature=0, sample_len=8)
    assert first.text == second.text


async def test_closing_wakes_who_waits(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that waits while the block is left gets SessionClosedError, not silence."""
    gate = Gate(monkeypatch, STAGES["read"])
    woken: list[bool] = []

    async def wait(session: fastwhisper.Session) -> None:
        with pytest.raises(SessionClosedError):
            await session.wait_until_ready(timeout=None)
        woken.append(True)

    async with (
        anyio.create_task_group() as group,
        fastwhisper.open(model, background=True) as session,
    ):
        group.start_soon(wait, session)
        await gate.wait_until_reached()
        await anyio.wait_all_tasks_blocked()
    assert woken == [True]


async def test_an_unknown_name_is_refused_on_entering() -> None:
    """A wrong name is refused in both modes, with the name that was meant."""
    for background in (False, True):
        with pytest.raises(ModelNotFoundError, match="did you mean 'tiny'"):
            async with fastwhisper.open("tinny", background=background):
                pytest.fail("the block must not begin")


async def test_an_unknown_precision_is_refused_on_entering(model: Path) -> None:
    """A wrong precision is refused, with the ones that work."""
    with pytest.raises(QuantizedModelNotAvailableError, match="int4"):
        async with fastwhisper.open(model, quant="int3"):  # type: ignore[arg-type]  # the point
            pytest.fail("the block must not begin")


async def test_an_unknown_option_is_a_type_error(model: Path) -> None:
    """A misspelt option is refused."""
    with pytest.raises(TypeError, match="quantt"):
        async with fastwhisper.open(model, quantt="int4"):  # type: ignore[call-arg]  # the point
            pytest.fail("the block must not begin")


async def test_a_missing_directory_is_not_found(tmp_path: Path) -> None:
    """A path to nothing says so."""
    with pytest.raises(ModelNotFoundError, match="no such directory"):
        async with fastwhisper.open(tmp_path / "nothing"):
            pytest.fail("the block must not begin")


async def test_a_directory_of_another_precision_is_refused_when_one_was_asked_for(
    tiny_model_dir: Callable[..., Path],
) -> None:
    """A directory can't be swapped for another, so a mismatch is an error."""
    directory = tiny_model_dir(dimensions=SPEAKING, precision="int8")
    with pytest.raises(QuantizedModelNotAvailableError, match="holds int8"):
        async with fastwhisper.open(directory, quant="int4"):
            pytest.fail("the block must not begin")
    async with fastwhisper.open(directory) as session:
        assert session.result.requested == session.result.actual == Quantization.INT8
        assert not session.result.did_fallback
        assert session.result.raise_for_fallback() is session.result
        assert session.result.precision["encoder.blocks.0.mlp1"].bits == 8


async def test_transcribes_the_same_from_many_tasks(
    model: Path, tone: np.ndarray[Any, np.dtype[np.float32]]
) -> None:
    """Tasks that share a session get what one alone gets."""
    results: list[fastwhisper.Transcription] = []
    async with fastwhisper.open(model) as session:
        alone = await session.transcribe(tone, temperature=0, sample_len=4)

        async def transcribe() -> None:
            results.append(await session.transcribe(tone, temperature=0, sample_len=4))

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(transcribe)
    # By its text: a log-probability may be NaN, which equals nothing.
    assert [repr(result) for result in results] == [repr(alone)] * 4
    assert alone.language == "en"
    assert alone.duration_s == 3.0


async def test_a_lazy_mlx_array_is_taken_as_audio(model: Path) -> None:
    """Samples made in the caller's thread and not evaluated yet are no trouble."""
    async with fastwhisper.open(model) as session:
        lazy = mx.zeros(16_000) + 0.25
        eager = np.full(16_000, 0.25, np.float32)
        options: Any = {"temperature": 0, "sample_len": 2}
        of_lazy = await session.transcribe(lazy, **options)
        of_eager = await session.transcribe(eager, **options)
    assert repr(of_lazy) == repr(of_eager)


async def test_streams_what_transcribe_collects(
    model: Path, tone: np.ndarray[Any, np.dtype[np.float32]]
) -> None:
    """The segments of the stream are those of the transcription."""
    async with fastwhisper.open(model) as session:
        whole = await session.transcribe(tone, temperature=0, sample_len=6)
        streamed = [segment async for segment in session.stream(tone, temperature=0, sample_len=6)]
    assert repr(tuple(streamed)) == repr(whole.segments)


async def test_bad_audio_leaves_the_session_usable(
    model: Path, tone: np.ndarray[Any, np.dtype[np.float32]], tmp_path: Path
) -> None:
    """A file that is no audio is a typed error, and the next one works."""
    async with fastwhisper.open(model) as session:
        with pytest.raises(AudioError, match=r"nothing\.wav"):
            await session.transcribe(tmp_path / "nothing.wav")
        assert (await session.transcribe(tone, temperature=0, sample_len=2)).language == "en"


async def test_a_wrong_option_is_refused_before_any_work(model: Path) -> None:
    """An unknown language or option is refused at the call."""
    async with fastwhisper.open(model) as session:
        with pytest.raises(ValueError, match="klingon"):
            session.stream("nothing.wav", language="klingon")
        with pytest.raises(TypeError, match="beam"):
            session.stream("nothing.wav", beam=5)  # type: ignore[call-arg]  # the point


async def test_leaving_stops_a_transcription_of_another_task(
    model: Path, tone: np.ndarray[Any, np.dtype[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who transcribes while the session is left gets SessionClosedError."""
    gate = Gate(monkeypatch, "fastwhisper.transcribing.parts.PartReader.read")
    closed: list[bool] = []

    async def transcribe(session: fastwhisper.Session) -> None:
        with pytest.raises(SessionClosedError):
            await session.transcribe(tone)
        closed.append(True)

    async with anyio.create_task_group() as group, fastwhisper.open(model) as session:
        group.start_soon(transcribe, session)
        await gate.wait_until_reached()
    assert closed == [True]


async def test_cancelling_a_transcription_leaves_the_session_usable(
    model: Path, tone: np.ndarray[Any, np.dtype[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transcription that is given up disturbs no other."""
    async with fastwhisper.open(model) as session:
        with monkeypatch.context() as patched:
            gate = Gate(patched, "fastwhisper.transcribing.parts.PartReader.read")
            async with anyio.create_task_group() as group:
                group.start_soon(session.transcribe, tone)
                await gate.wait_until_reached()
                group.cancel_scope.cancel()
        assert (await session.transcribe(tone, temperature=0, sample_len=2)).language == "en"


async def test_a_stream_left_midway_leaves_nothing_behind(
    model: Path, tone: np.ndarray[Any, np.dtype[np.float32]]
) -> None:
    """A stream that is dropped after a segment keeps the model no longer than its session."""
    async with fastwhisper.open(model) as session:
        stream = session.stream(np.tile(tone, 12), temperature=0, sample_len=6)
        await anext(stream)
        weights = weakref.ref(session.result.model)
    with pytest.raises(SessionClosedError):
        [segment async for segment in stream]
    gc.collect()
    assert weights() is None


async def test_the_model_can_be_used_from_a_plain_thread(model: Path) -> None:
    """Every array of the module is evaluated, so any thread may compute with it."""
    outcome: list[object] = []

    def compute(module: Any) -> None:
        try:
            encoded = module.encoder(mx.zeros((1, 3000, 80)))
            logits, _ = module.decoder(mx.array([[1]]), encoded)
            mx.eval(logits)
            outcome.append(logits.shape)
        except RuntimeError as error:
            outcome.append(error)

    async with fastwhisper.open(model) as session:
        thread = threading.Thread(target=compute, args=(session.result.model,))
        thread.start()
        await anyio.to_thread.run_sync(thread.join)
    assert outcome == [(1, 1, SPEAKING.n_vocab)]
