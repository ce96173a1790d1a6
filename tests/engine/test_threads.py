"""The engine's threads: results, errors, cancellation, forks, leaving, imports."""

from __future__ import annotations

import sys
import threading
from functools import partial

import anyio
import anyio.lowlevel
import pytest

from fastwhisper.engine import backend, threads
from fastwhisper.engine.jobs import Stopped
from fastwhisper.engine.threads import Lane
from fastwhisper.errors import BackendMissingError, LoadingFailedError
from tests.helpers.interpreter import run_python

pytestmark = pytest.mark.anyio


async def test_returns_what_the_function_returns() -> None:
    """A job's result reaches the task that asked for it."""
    assert await threads.run(lambda: 6 * 7, Lane.READ) == 42


async def test_raises_what_the_function_raises() -> None:
    """A job's exception is raised bare where it was asked for."""
    error = ZeroDivisionError("from the job")

    def fail() -> None:
        raise error

    with pytest.raises(ZeroDivisionError) as caught:
        await threads.run(fail, Lane.COMPUTE)
    assert caught.value is error


async def test_the_same_error_may_be_raised_again() -> None:
    """An error that has passed the waiting task names its frames, and leaves them as they are."""
    error = ZeroDivisionError("from the job")
    kept = "of this task"

    def fail() -> None:
        raise error

    for lane in (Lane.READ, Lane.COMPUTE, Lane.READ):
        with anyio.fail_after(10), pytest.raises(ZeroDivisionError) as caught:
            await threads.run(fail, lane)
        assert caught.value is error
    assert kept == "of this task"


async def test_the_loop_runs_on_while_a_job_runs() -> None:
    """A job that takes its time leaves the event loop free."""
    release = threading.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(threads.run, release.wait, Lane.READ)
        await anyio.wait_all_tasks_blocked()
        release.set()


async def test_compute_runs_one_job_at_a_time() -> None:
    """Two compute jobs never overlap."""
    inside = 0
    most = 0

    def job() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        inside -= 1

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(threads.run, job, Lane.COMPUTE)
    assert most == 1


async def test_cancelling_stops_the_job_at_its_next_check() -> None:
    """A cancelled caller waits for its job, and the job ends at its next check."""
    begun = threading.Event()
    stopped = threading.Event()

    def job() -> None:
        begun.set()
        try:
            while True:
                threads.check()
        except Stopped:
            stopped.set()
            raise

    async with anyio.create_task_group() as group:
        group.start_soon(threads.run, job, Lane.READ)
        await threads.run(begun.wait, Lane.COMPUTE)
        group.cancel_scope.cancel()
    assert stopped.is_set()


async def test_a_queued_job_of_a_cancelled_caller_never_begins() -> None:
    """Who gives up while queueing is free at once, and the job is never run."""
    release = threading.Event()
    ran: list[int] = []
    async with anyio.create_task_group() as group:
        group.start_soon(threads.run, release.wait, Lane.COMPUTE)
        await anyio.wait_all_tasks_blocked()
        async with anyio.create_task_group() as queued:
            queued.start_soon(threads.run, partial(ran.append, 1), Lane.COMPUTE)
            await anyio.wait_all_tasks_blocked()
            queued.cancel_scope.cancel()
        release.set()
    await threads.run(lambda: None, Lane.COMPUTE)
    assert ran == []


async def test_is_a_checkpoint_even_when_cancelled_before() -> None:
    """In a cancelled scope nothing is queued at all."""
    ran: list[int] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        await threads.run(partial(ran.append, 1), Lane.READ)
    assert scope.cancelled_caught
    assert ran == []


async def test_an_array_made_in_a_job_can_be_used_anywhere() -> None:
    """What a job evaluates is usable in another lane and in the caller's thread."""
    import mlx.core as mx  # noqa: PLC0415  after the engine has begun

    def add_one(array: mx.array) -> object:
        return (array + 1).tolist()

    def make() -> mx.array:
        array = mx.arange(4) * 2
        mx.eval(array)
        return array

    array = await threads.run(make, Lane.READ)
    assert await threads.run(partial(add_one, array), Lane.COMPUTE) == [1, 3, 5, 7]
    assert add_one(array) == [1, 3, 5, 7]


def test_blocks_a_plain_thread_until_the_job_is_done() -> None:
    """A thread without a loop gets its result as well."""
    assert threads.run_blocking(lambda: threading.current_thread().name, Lane.COMPUTE).startswith(
        "fastwhisper-compute"
    )


def test_a_job_may_ask_the_engine() -> None:
    """A blocking call from the engine's own thread runs in place instead of deadlocking."""
    nested = partial(threads.run_blocking, lambda: "inner", Lane.COMPUTE)
    assert threads.run_blocking(nested, Lane.COMPUTE) == "inner"


def test_the_count_of_threads_is_final_after_the_first_job() -> None:
    """Jobs asked for from 200 threads add no thread that stays."""
    threads.run_blocking(lambda: None, Lane.READ)
    before = threading.active_count()
    callers = [
        threading.Thread(target=threads.run_blocking, args=(lambda: None, Lane.READ))
        for _ in range(200)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert threading.active_count() == before


def test_a_forked_child_gets_an_error_instead_of_a_hang() -> None:
    """After a fork MLX can't be used, and the engine says so."""
    run_python(
        "-c",
        "import os, sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from fastwhisper import errors\n"
        "from fastwhisper.engine import threads\n"
        "threads.run_blocking(lambda: None, threads.Lane.READ)\n"
        "if os.fork() == 0:\n"
        "    try:\n"
        "        threads.run_blocking(lambda: None, threads.Lane.READ)\n"
        "    except errors.LoadingFailedError as error:\n"
        "        os._exit(0 if 'spawn' in str(error) else 1)\n"
        "    os._exit(2)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\n",
    )


def test_leaving_the_interpreter_stops_a_running_job() -> None:
    """A job in flight at exit ends at its next check, and the process exits 0."""
    done = run_python(
        "-c",
        "import threading\n"
        "from fastwhisper.engine import threads\n"
        "begun = threading.Event()\n"
        "def job():\n"
        "    begun.set()\n"
        "    while True: threads.check()\n"
        "threads.submit(job, threads.Lane.READ)\n"
        "begun.wait()\n",
    )
    assert done.stderr == ""


def test_the_engine_runs_jobs_though_mlx_can_not_compute() -> None:
    """A GPU that can't be used ends no thread: jobs run, and the process exits."""
    done = run_python(
        "-c",
        "from fastwhisper.engine import backend, threads\n"
        "def fail():\n"
        "    raise RuntimeError('no GPU')\n"
        "backend.import_mlx = fail\n"
        "for lane in threads.Lane:\n"
        "    print(threads.run_blocking(lambda: lane.value, lane))\n",
    )
    assert done.stdout.split() == ["files", "read", "compute"]
    assert done.stderr == ""


def test_names_what_is_missing_on_a_mac_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Mac that gives this process no GPU is named before any array is made."""

    class Metal:
        gpu = "gpu"

        def device_info(self, device: str) -> dict[str, str]:
            raise RuntimeError(f"no Metal device for {device}")

    backend._check_metal(Metal())
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(BackendMissingError, match=r"no Metal device for gpu.*logged in"):
        backend._check_metal(Metal())


def test_names_the_extra_when_mlx_has_no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a backend the error says which extra to install."""
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(BackendMissingError, match=r"fastwhisper\[cpu\]"):
        backend.import_mlx()


def test_refuses_work_in_a_process_forked_from_a_used_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag that a fork sets refuses every job."""
    monkeypatch.setattr(threads, "_forked", True)
    with pytest.raises(LoadingFailedError, match="forked"):
        threads.submit(lambda: None, Lane.READ)


# As CUDA's compiler leaves SIGINT's handler. An interrupt comes when the main thread waits.
INTERRUPT = """
import signal, sys, threading, time
from fastwhisper.engine import threads

signal.siginterrupt(signal.SIGINT, False)
main = threading.main_thread().ident

def interrupt():
    while sys._current_frames()[main].f_code.co_name != "wait":
        time.sleep(0.001)
    signal.pthread_kill(main, signal.SIGINT)

"""


def test_an_interrupt_stops_a_job_though_it_may_not_end_a_wait() -> None:
    """CUDA's compiler sets SA_RESTART for SIGINT: a wait without a timeout would go on."""
    done = run_python(
        "-c",
        INTERRUPT + "stopped = []\n"
        "def work():\n"
        "    interrupt()\n"
        "    try:\n"
        "        while True:\n"
        "            threads.check()\n"
        "    finally:\n"
        "        stopped.append(1)\n"
        "for _ in range(3):\n"
        "    try:\n"
        "        threads.run_blocking(work, threads.Lane.READ)\n"
        "    except KeyboardInterrupt:\n"
        "        print(len(stopped))\n",
    )
    assert done.stdout.split() == ["1", "2", "3"]


def test_an_interrupt_ends_a_process_that_waits_for_a_job_at_its_end() -> None:
    """The same there: the job never ends."""
    run_python(
        "-c",
        INTERRUPT + "begun = threading.Event()\n"
        "def work():\n"
        "    begun.set()\n"
        "    while not threads._leaving:\n"
        "        time.sleep(0.01)\n"
        "    interrupt()\n"
        "    threading.Event().wait()\n"
        "threads.submit(work, threads.Lane.READ)\n"
        "begun.wait()\n",
        status=130,
    )


def test_a_job_may_be_stopped_twice() -> None:
    """Also one that never begins, because every thread of its kind is busy."""
    release = threading.Event()
    busy = [threads.submit(release.wait, Lane.FILES) for _ in range(2)]
    waiting = threads.submit(lambda: None, Lane.FILES)
    threads.stop(waiting)
    threads.stop(waiting)
    release.set()
    for job in busy:
        threads.wait_for(job)


async def test_arrays_are_freed_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX frees with the GIL held, so a pause follows each 64 MiB; a network is emptied too."""
    import mlx.core as mx  # noqa: PLC0415  after the engine's threads have prepared it

    size = 16 << 20

    def make() -> mx.array:
        array = mx.zeros(size, mx.uint8)
        mx.eval(array)
        return array

    built = [{"blocks": [{"weight": make()} for _ in range(6)], "bias": make(), "dims": object()}]
    params = {"weight": make()}
    base_bytes = mx.get_active_memory() - 8 * size
    held: list[int] = []
    monkeypatch.setattr("time.sleep", lambda _: held.append(mx.get_active_memory() - base_bytes))
    await threads.release(built, params)
    # A GPU frees in its own time, so what another test left may count too.
    tolerance = 0 if mx.default_device() == mx.cpu else size
    assert held == pytest.approx([4 * size, 0], abs=tolerance)
    assert not built
    assert not params
