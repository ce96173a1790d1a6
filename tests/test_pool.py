"""`pool()` on both loops: models are shared, kept, closed and waited for; cancels anywhere."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import mlx.core as mx
import numpy as np
import pytest

import fastwhisper
from fastwhisper import (
    Closed,
    LoadingFailedError,
    LoadingTimeoutError,
    LoadOptions,
    ModelNotFoundError,
    ModelNotReadyError,
    NotEnoughMemoryError,
    Ready,
    SessionClosedError,
)
from fastwhisper.engine import memory
from fastwhisper.loading.load import LoadTask
from tests.helpers.tiny_models import write_babbler

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from anyio.abc import TaskGroup

    from fastwhisper import ModelPool, Session

pytestmark = pytest.mark.anyio

AT_FLOAT32 = LoadOptions(dtype="float32", warm_up=False)
"""A GPU would choose float16, so that twice as many models would fit, and take room to warm up."""
SOUND = np.sin(np.arange(16_000, dtype=np.float32) / 20)
PLAIN: Any = {"temperature": 0.0, "sample_len": 4, "language": "en", "without_timestamps": True}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return three models, each of which says something else."""
    return [
        write_babbler(tmp_path_factory.mktemp(f"model{n}"), multilingual=False, seed=n)
        for n in range(3)
    ]


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the models whose weights were read, in order."""
    names: list[str] = []
    real = LoadTask._compute

    async def compute(task: LoadTask, checkpoint: Any) -> None:
        await real(task, checkpoint)
        names.append(task.model_name)

    monkeypatch.setattr(LoadTask, "_compute", compute)
    return names


@pytest.fixture(scope="module")
def size(models: list[Path]) -> int:
    """Return the bytes of a model as it is loaded at float32, the dtype of `AT_FLOAT32`."""
    return fastwhisper.inspect_checkpoint(models[0]).count_bytes("float32")


def write_pressure(file: Path, percent: float) -> None:
    """Write what Linux writes if some task waits for memory in this share of the time."""
    file.write_text(f"some avg10={percent:.2f} avg60=0.00 total=9\nfull avg10=99.00 avg60=0.00\n")


async def say(session: Session) -> str:
    """Return what a model says."""
    return (await session.transcribe(SOUND, **PLAIN)).text


def count_bytes(pool: ModelPool) -> int:
    """Return the bytes of all models of a pool."""
    return sum(model.bytes for model in pool.models)


@pytest.fixture(autouse=True)
def no_pressure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let memory never be short, whatever this machine says; return the file that says it."""
    monkeypatch.setattr(memory, "PRESSURE", tmp_path / "pressure")
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "no groups")
    return tmp_path / "pressure"


# Sharing


async def test_a_model_is_opened_once_for_all(models: list[Path], opens: list[str]) -> None:
    """However many ask at the same time, and again after they have left."""
    texts: list[str] = []

    async def borrow(pool: ModelPool) -> None:
        async with pool.session(models[0]) as session:
            texts.append(await say(session))

    async with fastwhisper.pool() as pool:
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(borrow, pool)
        await borrow(pool)
        [model] = pool.models
        assert isinstance(model.state, Ready)
        assert model.borrowers == 0
    assert len(set(texts)) == 1
    assert len(texts) == 6
    assert opens == [str(models[0])]
    assert pool.models == ()


async def test_other_options_are_another_model(models: list[Path], opens: list[str]) -> None:
    """But `background` says only how to wait, and the pool's options are the default."""
    async with (
        fastwhisper.pool(options=LoadOptions(dtype="float32")) as pool,
        pool.session(models[0]),
        pool.session(models[0], dtype="float32"),
    ):
        assert len(pool.models) == 1
        async with pool.session(models[0], background=True):
            assert len(pool.models) == 1
        async with pool.session(models[0], dtype="bfloat16"):
            assert len(pool.models) == 2
    assert len(opens) == 2


async def test_each_borrower_has_a_session_of_its_own(models: list[Path]) -> None:
    """What one leaves behind is stopped, and the other goes on."""
    async with fastwhisper.pool() as pool, pool.session(models[0]) as mine:
        async with pool.session(models[0]) as other:
            stream = other.stream(SOUND, **PLAIN)
        assert other.state == Closed()
        assert not other.is_ready
        for use in (anext(stream), other.transcribe(SOUND), other.wait_until_ready()):
            with pytest.raises(SessionClosedError):
                await use
        assert await say(mine)


async def test_the_block_begins_at_once_in_the_background(models: list[Path]) -> None:
    """As with `open`."""
    async with fastwhisper.pool() as pool, pool.session(models[0], background=True) as session:
        with pytest.raises(ModelNotReadyError):
            session.stream(SOUND)
        await session.wait_until_ready()
        assert await say(session)


async def test_a_failure_in_the_background_is_told_by_every_wait(tmp_path: Path) -> None:
    """Also by one that begins long after it."""
    async with fastwhisper.pool() as pool, pool.session(tmp_path, background=True) as session:
        for _ in range(2):
            with pytest.raises(LoadingFailedError) as caught:
                await session.wait_until_ready()
            assert isinstance(caught.value.__cause__, fastwhisper.InvalidModelFormatError)
        while pool.models:
            await anyio.lowlevel.checkpoint()
        with pytest.raises(LoadingFailedError):
            await session.transcribe(SOUND)


# Failures


async def test_a_load_that_failed_is_not_kept(models: list[Path], tmp_path: Path) -> None:
    """Each borrower gets an error of its own, and the next one tries again."""
    model = tmp_path / "model"
    failures: list[BaseException] = []

    async def borrow(pool: ModelPool) -> None:
        try:
            async with pool.session(model):
                pass
        except fastwhisper.InvalidModelFormatError as error:
            failures.append(error)

    model.mkdir()
    async with fastwhisper.pool() as pool:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(borrow, pool)
        assert len({id(error) for error in failures}) == 3
        model.rmdir()
        model.symlink_to(models[0])
        async with pool.session(model) as session:
            assert await say(session)


async def test_a_wrong_name_is_told_by_the_block(models: list[Path]) -> None:
    """Before anything is opened."""
    async with fastwhisper.pool() as pool:
        with pytest.raises(ModelNotFoundError, match="did you mean"):
            async with pool.session("tinny"):
                pass
        assert pool.models == ()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_bytes": -1}, ValueError),
        ({"max_bytes": 1.5}, TypeError),
        ({"max_bytes": True}, TypeError),
        ({"keep_alive_s": -0.1}, ValueError),
        ({"keep_alive_s": float("nan")}, ValueError),
        ({"keep_alive_s": "1"}, TypeError),
    ],
)
async def test_wrong_arguments_are_refused(options: Any, error: type[Exception]) -> None:
    """With their name."""
    with pytest.raises(error, match=next(iter(options))):
        async with fastwhisper.pool(**options):
            pass


async def test_leaving_the_pool_closes_what_is_borrowed(models: list[Path]) -> None:
    """Whoever uses a model, or waits for one, gets a typed error; nothing is left."""
    before = mx.get_active_memory()
    async with fastwhisper.pool(max_bytes=1 << 30) as pool:
        borrowing = pool.session(models[0])
        session = await borrowing.__aenter__()
    with pytest.raises(SessionClosedError):
        await say(session)
    await borrowing.__aexit__(None, None, None)
    with pytest.raises(SessionClosedError):
        async with pool.session(models[0]):
            pass
    assert pool.models == ()
    assert mx.get_active_memory() <= before + 1024  # a GPU keeps a few scalars


async def test_leaving_the_pool_stops_who_transcribes(models: list[Path]) -> None:
    """Before the weights are given back."""
    outcomes: list[str] = []
    begun = anyio.Event()

    async def use(pool: ModelPool) -> None:
        try:
            async with pool.session(models[0]) as session:
                while True:
                    await say(session)
                    begun.set()
        except SessionClosedError:
            outcomes.append("closed")

    async with anyio.create_task_group() as group, fastwhisper.pool() as pool:
        for _ in range(3):
            group.start_soon(use, pool)
        await begun.wait()
    assert outcomes == ["closed"] * 3


async def test_zero_seconds_only_look(models: list[Path]) -> None:
    """A model that is open is given; one that is not is no longer waited for."""
    async with fastwhisper.pool() as pool:
        with pytest.raises(LoadingTimeoutError):
            async with pool.session(models[0], timeout=0):
                pass
        async with pool.session(models[0]), pool.session(models[0], timeout=0) as session:
            assert await say(session)


# How long a model is kept


async def test_zero_closes_at_once(models: list[Path], opens: list[str]) -> None:
    """With its last borrower."""
    async with fastwhisper.pool(keep_alive_s=0) as pool:
        for _ in range(2):
            async with pool.session(models[0]), pool.session(models[0]):
                pass
            while pool.models:
                await anyio.lowlevel.checkpoint()
    assert len(opens) == 2


async def test_an_idle_model_is_closed_after_its_time(models: list[Path]) -> None:
    """And not before: whoever comes again begins the time anew."""
    async with fastwhisper.pool(keep_alive_s=0.2) as pool:
        async with pool.session(models[0]):
            begin_s = anyio.current_time()
        while pool.models:
            await anyio.lowlevel.checkpoint()
        assert anyio.current_time() - begin_s >= 0.2


async def test_none_keeps_a_model_until_memory_is_short(
    models: list[Path], monkeypatch: pytest.MonkeyPatch, no_pressure: Path
) -> None:
    """Linux says so; a model that is used stays."""
    monkeypatch.setattr("fastwhisper.pooling.pool._LOOK_S", 0.01)
    async with fastwhisper.pool(keep_alive_s=None) as pool, pool.session(models[0]):
        async with pool.session(models[1]):
            pass
        write_pressure(no_pressure, 0.0)
        with anyio.move_on_after(0.1):
            await anyio.sleep_forever()
        assert len(pool.models) == 2
        write_pressure(no_pressure, 35.1)
        while len(pool.models) == 2:
            await anyio.lowlevel.checkpoint()
        assert [model.model_name for model in pool.models] == [str(models[0])]


# The budget


async def test_what_can_never_fit_is_refused_at_once(models: list[Path], size: int) -> None:
    """Before its weights are read; what is smaller at its dtype fits."""
    async with fastwhisper.pool(max_bytes=size - 1, options=AT_FLOAT32) as pool:
        with pytest.raises(NotEnoughMemoryError, match="max_bytes of the pool allows") as caught:
            await hold(pool, models[0])
        assert (caught.value.needed_bytes, caught.value.limit_bytes) == (size, size - 1)
        async with pool.session(models[0], dtype="bfloat16"):
            assert count_bytes(pool) < size


async def test_the_one_used_longest_ago_makes_room(
    models: list[Path], opens: list[str], size: int
) -> None:
    """Not the one that came first."""
    names = [str(model) for model in models]
    async with fastwhisper.pool(max_bytes=2 * size, options=AT_FLOAT32) as pool:
        for model in (models[0], models[1], models[0], models[2]):
            async with pool.session(model):
                assert count_bytes(pool) <= 2 * size
        assert sorted(model.model_name for model in pool.models) == sorted([names[0], names[2]])
    assert opens == names


async def test_who_waits_for_room_is_served_in_order(models: list[Path], size: int) -> None:
    """First come, first served: an open model is not given again while somebody waits."""
    order: list[str] = []
    admitted: list[set[str]] = []
    held = [anyio.Event(), anyio.Event()]

    async def borrow(pool: ModelPool, name: str, model: Path, until: anyio.Event | None) -> None:
        async with pool.session(model):
            order.append(name)
            admitted.append({model.model_name for model in pool.models if model.bytes})
            if until is not None:
                await until.wait()

    async with (
        fastwhisper.pool(max_bytes=2 * size, options=AT_FLOAT32) as pool,
        anyio.create_task_group() as group,
    ):
        group.start_soon(borrow, pool, "a", models[0], held[0])
        group.start_soon(borrow, pool, "b", models[1], held[1])
        while len(order) < 2:
            await anyio.lowlevel.checkpoint()
        group.start_soon(borrow, pool, "c", models[2], None)
        while not pool._queue:  # until it waits for room
            await anyio.lowlevel.checkpoint()
        group.start_soon(borrow, pool, "a again", models[0], None)
        await anyio.wait_all_tasks_blocked()
        assert sorted(order) == ["a", "b"]
        held[1].set()
        while len(order) < 4:
            await anyio.lowlevel.checkpoint()
        assert str(models[2]) in admitted[order.index("a again")]
        held[0].set()


async def test_a_model_that_makes_no_room_stays_open(models: list[Path], size: int) -> None:
    """Somebody waits for it, behind one who waits for more room than it has."""
    small = fastwhisper.inspect_checkpoint(models[0]).count_bytes("bfloat16")
    order: list[str] = []
    held = [anyio.Event(), anyio.Event()]

    async def borrow(pool: ModelPool, number: int, until: anyio.Event | None) -> None:
        async with pool.session(models[number], dtype="float32" if number else "bfloat16"):
            order.append(models[number].name)
            if until is not None:
                await until.wait()

    async with (
        fastwhisper.pool(max_bytes=size + small) as pool,
        anyio.create_task_group() as group,
    ):
        group.start_soon(borrow, pool, 0, held[0])
        group.start_soon(borrow, pool, 1, held[1])
        while len(order) < 2:
            await anyio.lowlevel.checkpoint()
        for waiting, number in enumerate([2, 0]):
            group.start_soon(borrow, pool, number, None)
            while len(pool._queue) <= waiting:
                await anyio.lowlevel.checkpoint()
        held[0].set()
        await anyio.wait_all_tasks_blocked()
        [idle] = [model for model in pool.models if not model.borrowers and model.bytes]
        assert isinstance(idle.state, Ready)
        held[1].set()
    assert len(order) == 4


async def test_who_has_a_model_may_borrow_it_again(models: list[Path], size: int) -> None:
    """Also while another waits for its room: it would wait for itself."""
    async with (
        fastwhisper.pool(max_bytes=size, options=AT_FLOAT32) as pool,
        anyio.create_task_group() as group,
        pool.session(models[0]),
    ):
        group.start_soon(hold, pool, models[1])
        while not pool._queue:
            await anyio.lowlevel.checkpoint()
        for _ in range(2):
            async with pool.session(models[0]) as session:
                assert await say(session)


async def test_the_block_and_the_pool_may_be_left_while_a_task_transcribes(
    models: list[Path],
) -> None:
    """Both wait for the end of its work, and both go on."""
    outcomes: list[str] = []

    async def use(session: Session) -> None:
        try:
            while True:
                await say(session)
        except SessionClosedError:
            outcomes.append("closed")

    async def borrow(pool: ModelPool, group: TaskGroup, until: anyio.Event) -> None:
        async with pool.session(models[0]) as session:
            group.start_soon(use, session)
            await until.wait()

    until = anyio.Event()
    async with anyio.create_task_group() as group, fastwhisper.pool() as pool:
        for _ in range(2):
            group.start_soon(borrow, pool, group, until)
        async with pool.session(models[0]) as session:
            await say(session)
        until.set()
    assert outcomes == ["closed"] * 2


async def hold(pool: ModelPool, model: Path) -> None:
    """Borrow a model for a moment."""
    async with pool.session(model) as session:
        await say(session)


async def test_a_wait_for_room_may_end(models: list[Path], size: int) -> None:
    """By its timeout or a cancel; it leaves no trace, and the next in the queue is served."""
    async with fastwhisper.pool(max_bytes=size, options=AT_FLOAT32) as pool:
        async with pool.session(models[0]):
            with pytest.raises(LoadingTimeoutError, match="give a longer timeout"):
                async with pool.session(models[1], timeout=0.05):
                    pass
            async with anyio.create_task_group() as group:
                group.start_soon(hold, pool, models[2])
                while not pool._queue:
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
            while len(pool.models) > 1:
                await anyio.lowlevel.checkpoint()
        await hold(pool, models[1])


async def no_sound() -> AsyncGenerator[bytes]:
    """Wait for sound for ever."""
    await anyio.sleep_forever()
    yield b""


@pytest.mark.parametrize("what", ["ready", "text"])
async def test_leaving_ends_a_wait_for_room(models: list[Path], size: int, what: str) -> None:
    """A task that waits for a session that was left is told so at once."""
    outcomes: list[str] = []

    async def wait(session: Session) -> None:
        try:
            if what == "ready":
                await session.wait_until_ready(None)
            else:
                await anext(session.listen(no_sound()))
        except SessionClosedError:
            outcomes.append("closed")

    async with (
        fastwhisper.pool(max_bytes=size, options=AT_FLOAT32) as pool,
        pool.session(models[0]),
        pool.session(models[1], background=True) as other,
        anyio.create_task_group() as group,
    ):
        async with pool.session(models[1], background=True) as session:
            group.start_soon(wait, session)
            await anyio.wait_all_tasks_blocked()
            assert not session.is_ready
        await anyio.wait_all_tasks_blocked()
        assert outcomes == ["closed"]
        assert not isinstance(other.state, (Ready, Closed))  # it goes on waiting


# Many


@pytest.mark.slow
async def test_a_thousand_borrowers_of_three_models(
    models: list[Path], opens: list[str], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right results, never above the budget, nobody starves, some are killed, nothing is left."""
    before = mx.get_active_memory()
    expected: list[str] = []
    for model in models:
        async with fastwhisper.open(model) as session:
            expected.append(await say(session))
    assert len(set(expected)) == 3
    opens.clear()
    chosen = random.Random(8)
    served = [0, 0, 0]
    killed = 0
    highest: list[int] = []
    transcribing = anyio.Lock()  # what a transcription takes must not be counted: 22 MB on a GPU
    real = LoadTask._compute

    async def compute(task: LoadTask, checkpoint: Any) -> None:
        await real(task, checkpoint)
        async with transcribing:
            highest.append(mx.get_active_memory() - before)

    monkeypatch.setattr(LoadTask, "_compute", compute)

    async def borrow(
        pool: ModelPool, number: int, patience_s: float | None, *, speaks: bool
    ) -> None:
        nonlocal killed
        with anyio.move_on_after(patience_s) as scope:
            async with pool.session(models[number]) as session:
                assert count_bytes(pool) <= 2 * size
                if speaks:
                    async with transcribing:
                        assert await say(session) == expected[number]
                served[number] += 1
        killed += scope.cancelled_caught

    async with (
        fastwhisper.pool(max_bytes=2 * size, options=AT_FLOAT32) as pool,
        anyio.create_task_group() as group,
    ):
        for n in range(1000):
            patience_s = chosen.choice([None, None, None, chosen.uniform(0, 2)])
            number = n % 2 if n < 500 else 2 if n % 2 else n % 3
            group.start_soon(partial(borrow, pool, number, patience_s, speaks=n % 9 == 0))
            if n % 50 == 49:
                await anyio.lowlevel.checkpoint()
    assert sum(served) + killed == 1000
    assert min(served) > 0
    assert killed > 0
    assert max(highest) < 2.5 * size  # a CPU reads whole huge pages
    assert len(opens) < 200
    assert mx.get_active_memory() <= before + 1024  # a GPU keeps a few scalars
