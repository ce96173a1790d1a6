"""Ctrl-C: in the command, and in programs that open a model."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.helpers.gates import STAGES
from tests.helpers.tiny_models import SPEAKING, write_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

INTERRUPTED = 130
PATIENCE_S = 60

# A Ctrl-C between Python's last look at signals and its wait, on asyncio or for a lock, shows only
# when the wait ends, and here nothing ends it. A signal with a handler that does nothing does.
RESIZE = """
import signal
signal.signal(signal.SIGWINCH, lambda *_: None)
"""

# Holds a stage, which looks whether to stop as the real ones do, or never ends. Two lanes read at
# once, and a line that `print` writes is not one write: the other's may come between.
HOLD = r"""
import importlib, os, sys, time
from fastwhisper.engine import threads

target, ends, directory, way = sys.argv[1:]
module, _, name = target.rpartition(".")

def held(*args, **kwargs):
    os.write(1, b"reached\n")
    while True:
        time.sleep(0.002)
        if ends == "ends":
            threads.check()

setattr(importlib.import_module(module), name, held)
"""

COMMAND = """
from fastwhisper.cli.parser import main
main(["transcribe", "nothing.wav", "--model", directory])
"""

# Without warm-up: MLX's first kernel on a CPU runs a compiler through C's `system`, and while
# that runs the process ignores SIGINT. A user presses again; a test would wait for ever.
PROGRAM = """
import asyncio
import anyio, trio
import fastwhisper

async def blocking():
    async with fastwhisper.open(directory):
        raise AssertionError("the block must not begin")

async def waiting():
    async with fastwhisper.open(directory, background=True) as session:
        await session.wait_until_ready(None)

async def working():
    async with fastwhisper.open(directory, background=True):
        await anyio.sleep_forever()

mains = {"blocking": blocking, "waiting": waiting, "working": working}
loop, _, main = way.partition(" ")
try:
    if loop == "load_model":
        fastwhisper.load_model(directory)
    elif loop == "asyncio":
        asyncio.run(mains[main]())
    else:
        trio.run(mains[main])
except KeyboardInterrupt:
    print("interrupted")
"""

WAYS = ["load_model"] + [
    f"{loop} {main}" for loop in ("asyncio", "trio") for main in ("blocking", "waiting", "working")
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a one-layer model that can transcribe."""
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
    process = subprocess.Popen(
        # Trio may interrupt anyio's own frames too, before the first line of a task of ours.
        [sys.executable, "-W", "ignore:coroutine:RuntimeWarning", "-c", RESIZE + code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "reached\n"
        process.send_signal(signal.SIGINT)
        period_s, signal_number = (0.1, signal.SIGINT) if often else (1, signal.SIGWINCH)
        for _ in range(round(PATIENCE_S / period_s)):
            try:
                out, err = process.communicate(timeout=period_s)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal_number)
        else:
            pytest.fail(f"not ended {PATIENCE_S} s after Ctrl-C")
        return process.returncode, out.replace("reached\n", ""), err
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("stage", ["locate", "inspect", "read", "build", "apply"])
def test_the_command_is_interrupted_while_loading(model: Path, stage: str) -> None:
    """Exit 130, no traceback, not a word."""
    assert interrupt(HOLD + COMMAND, STAGES[stage], "ends", model, "") == (INTERRUPTED, "", "")


@pytest.mark.parametrize("stage", ["locate", "read", "build"])
def test_a_second_interrupt_ends_the_command_at_once(model: Path, stage: str) -> None:
    """Also when a step never comes to its end."""
    done = interrupt(HOLD + COMMAND, STAGES[stage], "never", model, "", often=True)
    assert done == (INTERRUPTED, "", "")


@pytest.mark.parametrize(
    ("way", "stage"),
    [(way, "read") for way in WAYS]
    + [(way, stage) for way in WAYS if "b" in way for stage in ("locate", "build", "apply")],
)
def test_a_program_is_interrupted_while_loading(model: Path, way: str, stage: str) -> None:
    """KeyboardInterrupt comes out bare, and nothing else is said."""
    assert interrupt(HOLD + PROGRAM, STAGES[stage], "ends", model, way) == (0, "interrupted\n", "")


# Not trio: it delivers a second interrupt only to a main task that waits for nothing of its own.
@pytest.mark.parametrize("way", ["load_model", "asyncio blocking"])
def test_a_program_that_is_interrupted_again_and_again_ends(model: Path, way: str) -> None:
    """Even if a step never ends, and the interpreter would wait for it: it never aborts."""
    done = interrupt(HOLD + PROGRAM, STAGES["read"], "never", model, way, often=True)
    assert done[0] == INTERRUPTED
    assert "terminate called" not in done[2]


def test_an_interrupted_load_model_leaves_the_process_usable(
    tiny_model_dir: Callable[..., Path],
) -> None:
    """The next load in the same process works."""
    code = (
        "import os, sys, time\n"
        "import fastwhisper\n"
        "from fastwhisper.engine import threads\n"
        "from fastwhisper.loading import stages\n"
        "real = stages.read\n"
        "def held(*args, **kwargs):\n"
        "    os.write(1, b'reached\\n')\n"
        "    while True:\n"
        "        time.sleep(0.002)\n"
        "        threads.check()\n"
        "stages.read = held\n"
        "try: fastwhisper.load_model(sys.argv[1])\n"
        "except KeyboardInterrupt: stages.read = real\n"
        "print(fastwhisper.load_model(sys.argv[1]).dims.n_mels)\n"
    )
    assert interrupt(code, tiny_model_dir()) == (0, "80\n", "")
