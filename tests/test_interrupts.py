"""Ctrl-C: in the command, and in programs that open a model."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.helpers.gates import STAGES
from tests.helpers.interpreter import WATCHDOG_S, run_python, start_python
from tests.helpers.tiny_models import SPEAKING, write_model

if TYPE_CHECKING:
    from pathlib import Path

INTERRUPTED = 130

# A Ctrl-C between Python's last look at signals and its wait, on asyncio or for a lock, shows only
# when the wait ends, and here nothing ends it. A signal with a handler that does nothing does.
RESIZE = """
import signal
signal.signal(signal.SIGWINCH, lambda *_: None)
"""

# Holds a stage. It "ends" when it is told to stop, as the real ones do, or "never".
HOLD = """
import sys
from tests.helpers.gates import hold_for_ever
target, ends, directory, way = sys.argv[1:]
let_go = hold_for_ever(target, stoppable=ends == "ends")
"""

# Without warm-up, here and below: while a kernel is compiled, SIGINT is not Python's. On a CPU the
# compiler runs through C's `system`, and the process ignores SIGINT: a user presses again, a test
# would wait for ever. On CUDA, NVRTC's own handler may crash the process.
COMMAND = """
from functools import partial
from fastwhisper.cli import commands
from fastwhisper.cli.parser import main
commands.open_session = partial(commands.open_session, warm_up=False)
main(["transcribe", "nothing.wav", "--model", directory])
"""

PROGRAM = """
import asyncio
import anyio
import fastwhisper

async def blocking():
    async with fastwhisper.open(directory, warm_up=False):
        raise AssertionError("the block must not begin")

async def waiting():
    async with fastwhisper.open(directory, warm_up=False, background=True) as session:
        await session.wait_until_ready(None)

async def working():
    async with fastwhisper.open(directory, warm_up=False, background=True):
        await anyio.sleep_forever()

mains = {"blocking": blocking, "waiting": waiting, "working": working}
loop, _, main = way.partition(" ")
try:
    if loop == "load_model":
        fastwhisper.load_model(directory)
    elif loop == "asyncio":
        asyncio.run(mains[main]())
    else:
        import trio
        trio.run(mains[main])
except KeyboardInterrupt:
    print("interrupted")
"""

WAYS = ["load_model"] + [
    f"{loop} {main}" for loop in ("asyncio", "trio") for main in ("blocking", "waiting", "working")
]

CASES = [(way, "read") for way in WAYS] + [
    (way, stage)
    for way in ("asyncio blocking", "trio blocking")
    for stage in ("locate", "build", "apply")
]
FAST = (("load_model", "read"), ("asyncio blocking", "read"), ("trio waiting", "read"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a one-layer model that can transcribe."""
    return write_model(tmp_path_factory.mktemp("model"), dimensions=SPEAKING)


def interrupt(code: str, *arguments: str | Path, often: bool = False) -> tuple[int, str, str]:
    """Run code in a fresh interpreter and send it Ctrl-C when it has reached its stage.

    Args:
        code: What to run.
        *arguments: Its arguments.
        often: Press again and again, until the process has ended.

    Returns:
        Exit status, what it printed after the stage was reached, and its stderr.
    """
    # Trio may interrupt anyio's own frames too, before the first line of a task of ours.
    options = ("-W", "ignore:coroutine:RuntimeWarning")
    period_s, signal_number = (0.1, signal.SIGINT) if often else (1, signal.SIGWINCH)
    with start_python(*options, "-c", RESIZE + code, *arguments) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reached\n"
        process.send_signal(signal.SIGINT)
        for _ in range(round(WATCHDOG_S / period_s)):
            try:
                out, err = process.communicate(timeout=period_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal_number)
            else:
                return process.returncode, out.replace("reached\n", ""), err
    return pytest.fail("Ctrl-C does not end it")


@pytest.mark.parametrize(
    "stage",
    [
        "locate",
        "read",
        *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("inspect", "build", "apply")),
    ],
)
def test_the_command_is_interrupted_while_loading(model: Path, stage: str) -> None:
    """Exit 130, no traceback, not a word."""
    assert interrupt(HOLD + COMMAND, STAGES[stage], "ends", model, "") == (INTERRUPTED, "", "")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["locate", "read", "build"])
def test_a_second_interrupt_ends_the_command_at_once(model: Path, stage: str) -> None:
    """Also when a step never comes to its end."""
    done = interrupt(HOLD + COMMAND, STAGES[stage], "never", model, "", often=True)
    assert done == (INTERRUPTED, "", "")


@pytest.mark.parametrize(
    ("way", "stage"),
    [pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow) for case in CASES],
)
def test_a_program_is_interrupted_while_loading(model: Path, way: str, stage: str) -> None:
    """KeyboardInterrupt comes out bare, and nothing else is said."""
    assert interrupt(HOLD + PROGRAM, STAGES[stage], "ends", model, way) == (0, "interrupted\n", "")


# Not trio: it delivers a second interrupt only to a main task that waits for nothing of its own.
@pytest.mark.slow
@pytest.mark.parametrize("way", ["load_model", "asyncio blocking"])
def test_a_program_that_is_interrupted_again_and_again_ends(model: Path, way: str) -> None:
    """Even if a step never ends, and the interpreter would wait for it: it never aborts."""
    done = interrupt(HOLD + PROGRAM, STAGES["read"], "never", model, way, often=True)
    assert done[0] == INTERRUPTED
    assert "terminate called" not in done[2]


AGAIN = """
import fastwhisper
try:
    fastwhisper.load_model(directory)
except KeyboardInterrupt:
    let_go()
print(fastwhisper.load_model(directory).dims.n_mels)
"""


@pytest.mark.slow
def test_an_interrupted_load_model_leaves_the_process_usable(model: Path) -> None:
    """The next load in the same process works."""
    assert interrupt(HOLD + AGAIN, STAGES["read"], "ends", model, "") == (0, "80\n", "")


def test_trio_raises_no_interrupt_between_two_lines_of_a_load(model: Path) -> None:
    """The callback that is running ends, and the main task's wait raises; the load goes on."""
    done = run_python(
        "-c",
        "import os, signal, sys\n"
        "import trio\n"
        "import fastwhisper\n"
        "marks = []\n"
        "def interrupt(progress):\n"
        "    if progress.stage == 'read' and not marks:\n"
        "        marks.append('begin')\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        marks.append('end')\n"
        "async def main():\n"
        "    async with fastwhisper.open(\n"
        "        sys.argv[1], warm_up=False, background=True, on_progress=interrupt\n"
        "    ) as session:\n"
        "        try:\n"
        "            await session.wait_until_ready(None)\n"
        "            await trio.sleep_forever()\n"
        "        except KeyboardInterrupt:\n"
        "            await session.wait_until_ready(None)\n"
        "            marks.append('ready')\n"
        "trio.run(main)\n"
        "print(*marks)\n",
        model,
    )
    assert (done.stdout, done.stderr) == ("begin end ready\n", "")
