"""Leaving the interpreter at any moment of a load; opening without stdin; paths that are none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import fastwhisper
from fastwhisper import ModelNotFoundError
from fastwhisper.values import Dimensions
from tests.helpers.audio import SAMPLE
from tests.helpers.gates import STAGES
from tests.helpers.interpreter import run_python
from tests.helpers.sparse_models import write_zeros
from tests.helpers.tiny_models import SPEAKING

if TYPE_CHECKING:
    from collections.abc import Callable

LARGE = Dimensions(
    n_mels=80,
    n_audio_ctx=1500,
    n_audio_state=1024,
    n_audio_head=16,
    n_audio_layer=3,
    n_vocab=51864,
    n_text_ctx=448,
    n_text_state=1024,
    n_text_head=16,
    n_text_layer=3,
)
"""A model of 290 MB in float16: long enough to read that it can be left meanwhile."""

LEAVE = """
import sys, threading
import anyio
import fastwhisper
from tests.helpers.gates import tell_begin

directory, way, target = sys.argv[1:]
begun = tell_begin(target)

async def stay():
    async with fastwhisper.open(directory, warm_up=True):
        await anyio.sleep_forever()

async def leave():
    async with fastwhisper.open(directory, background=True, warm_up=True):
        await anyio.to_thread.run_sync(begun.wait)
        sys.exit()

def load():
    if way == "load_model":
        fastwhisper.load_model(directory)
    else:
        anyio.run(stay, backend=way)

if way.startswith("main "):
    anyio.run(leave, backend=way.removeprefix("main "))
threading.Thread(target=load, daemon=True).start()
begun.wait()
"""

WAYS = ["load_model", "asyncio", "trio", "main asyncio", "main trio"]
"""A daemon thread that blocks or runs a loop while the main thread leaves; or the loop leaves."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with `LARGE`."""
    return write_zeros(tmp_path_factory.mktemp("large"), LARGE)


# Reading, where MLX runs in several threads at once, every way, and the other stages one way each.
CASES = [(way, "read") for way in WAYS] + [
    (WAYS[1 + index % 4], stage) for index, stage in enumerate(STAGES) if stage != "read"
]
FAST = (("main trio", "read"),)


@pytest.mark.parametrize(
    ("way", "stage"),
    [pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow) for case in CASES],
)
def test_leaving_the_interpreter_in_the_middle_of_a_load(large: Path, way: str, stage: str) -> None:
    """The process ends with 0 and without a word, wherever the load stands."""
    assert run_python("-c", LEAVE, large, way, STAGES[stage]).stderr == ""


def test_an_exit_callback_may_still_ask_for_what_is_done(tmp_path: Path) -> None:
    """Who waits at exit for a thread that loads is not left hanging."""
    done = run_python(
        "-c",
        "import atexit, sys, threading\n"
        "begun = threading.Event()\n"
        "def job():\n"
        "    begun.set()\n"
        "    while True: threads.check()\n"
        "def load():\n"
        "    threads.run_blocking(job, threads.Lane.READ)\n"
        "    raise AssertionError('the job has no end')\n"
        "thread = threading.Thread(target=load, daemon=True)\n"
        "atexit.register(thread.join)\n"
        "from fastwhisper.engine import threads\n"
        "thread.start()\n"
        "begun.wait()\n",
    )
    assert done.stderr == ""


@pytest.mark.slow
def test_threads_that_are_joined_at_exit_finish_their_load(large: Path) -> None:
    """A load in a thread that the interpreter waits for is not cut short."""
    done = run_python(
        "-c",
        "import sys, threading, time\n"
        "from fastwhisper import load_model\n"
        "from fastwhisper.engine import threads\n"
        "def load(): print(load_model(sys.argv[1]).dims.n_vocab)\n"
        "threading.Thread(target=load).start()\n"
        # Python 3.12 starts no thread after the main thread has ended.
        "while threads._threads is None:\n"
        "    time.sleep(0.001)\n",
        large,
    )
    assert (done.stdout, done.stderr) == (f"{LARGE.n_vocab}\n", "")


def test_a_first_load_after_the_main_thread_ended_has_a_typed_error(tmp_path: Path) -> None:
    """Python 3.12.1 starts no thread then, so the engine can't begin; others read the folder."""
    done = run_python(
        "-c",
        "import sys, threading\n"
        "from fastwhisper import FastWhisperError, load_model\n"
        "def load():\n"
        "    threading.main_thread().join()\n"
        "    try: load_model(sys.argv[1])\n"
        "    except FastWhisperError as error: print(type(error).__name__)\n"
        "threading.Thread(target=load).start()\n",
        tmp_path,
    )
    assert done.stderr == ""
    assert done.stdout in {"LoadingFailedError\n", "InvalidModelFormatError\n"}


OPEN = """
import sys, anyio, fastwhisper
import numpy as np

async def main():
    async with fastwhisper.open(sys.argv[1]) as session:
        heard = await session.transcribe(np.zeros(1600, np.float32), sample_len=1, temperature=0)
        print(heard.language)

anyio.run(main, backend=sys.argv[2])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_opens_and_transcribes_with_stdin_closed(
    tiny_model_dir: Callable[..., Path], backend: str
) -> None:
    """Descriptor 0, which a library might take for a failure, is free, and nothing minds."""
    done = run_python("-c", OPEN, tiny_model_dir(dimensions=SPEAKING), backend, stdin=None)
    assert (done.stdout, done.stderr) == ("en\n", "")


def test_the_command_works_with_stdin_closed(
    tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    """The command inspects and transcribes without a stdin."""
    model = tiny_model_dir(dimensions=SPEAKING)
    options = ("--model", model, "--temperature", "0", "-f", "json", "-o", tmp_path)
    run_python("-m", "fastwhisper", "inspect", model, stdin=None)
    run_python("-m", "fastwhisper", "transcribe", SAMPLE, *options, stdin=None)
    assert json.loads((tmp_path / "sample.json").read_text())["language"] == "en"


def test_reading_stdin_that_is_closed_says_so(tiny_model_dir: Callable[..., Path]) -> None:
    """`-` without a stdin is an error in words, not a traceback."""
    model = tiny_model_dir(dimensions=SPEAKING)
    arguments = ("transcribe", "-", "--model", model)
    done = run_python("-m", "fastwhisper", *arguments, stdin=None, status=1)
    assert "Traceback" not in done.stderr
    assert "stdin" in done.stderr


@pytest.mark.anyio
@pytest.mark.parametrize("make", [str, Path])
async def test_a_path_with_a_nul_is_no_model(make: Callable[[str], str | Path]) -> None:
    """A NUL, which MLX would cut a path at, is refused on entering."""
    with pytest.raises(ModelNotFoundError):
        async with fastwhisper.open(make("/tmp/model\0else")):
            pytest.fail("the block must not begin")


@pytest.mark.anyio
async def test_a_path_that_is_not_utf8_is_opened(tiny_model_dir: Callable[..., Path]) -> None:
    """A directory whose name is no text opens, by path and by string."""
    directory = tiny_model_dir(dimensions=SPEAKING)
    odd = directory.rename(os.fsdecode(os.fsencode(directory) + b"-\xff\xfe"))
    for model in (odd, str(odd)):
        async with fastwhisper.open(model) as session:
            assert session.result.path == odd
    assert fastwhisper.load_model(odd).dims.n_vocab == SPEAKING.n_vocab
