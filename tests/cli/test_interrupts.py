"""Signals that end a command; a command called from a thread, or inside an event loop."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from fastwhisper.engine import threads
from tests.helpers.command import run_command as run

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers.command import AtEachWindow

ENDINGS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
HANDLERS = [signal.getsignal(number) for number in ENDINGS]


def transcribe_with(model: Path, *arguments: object) -> int:
    """Run `fastwhisper transcribe` greedily, and return its exit status."""
    return run("transcribe", "--model", model, "--temperature", "0", *arguments)


def read_text(name: str) -> str:
    """Return the text of a recording."""
    return Path(f"{name}.txt").read_text(encoding="utf-8")


def send(*numbers: int) -> Callable[[int], None]:
    """Return a function that sends signals in the second window, and waits to be cancelled."""

    def interrupt(window: int) -> None:
        if window == 1:
            for number in numbers:
                os.kill(os.getpid(), number)
            while True:
                threads.check()

    return interrupt


# Signals


@pytest.mark.parametrize("number", ENDINGS, ids=lambda number: number.name)
def test_an_interrupt_keeps_what_was_heard(
    model: Path,
    long: Path,
    capsys: pytest.CaptureFixture[str],
    at_each_window: AtEachWindow,
    number: signal.Signals,
) -> None:
    """In the second window: the first one's text is in the file, no more files, 128 + signal."""
    windows = at_each_window(send(number))
    assert transcribe_with(model, "-f", "txt", long, "next.wav") == 128 + number
    out, err = capsys.readouterr()
    assert windows == [0]
    assert read_text("long") == out != ""
    assert [path.name for path in Path().iterdir()] == ["long.txt"]
    assert len(err.splitlines()) == 1
    assert [signal.getsignal(number) for number in ENDINGS] == HANDLERS


@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGHUP, signal.SIGHUP),
        (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM),
        (signal.SIGINT, signal.SIGHUP),
    ],
    ids=str,
)
def test_a_terminal_that_closes_ends_nothing_at_once(
    model: Path, long: Path, at_each_window: AtEachWindow, numbers: tuple[int, ...]
) -> None:
    """It sends several signals: only a further Ctrl-C ends the process without its files."""
    at_each_window(send(*numbers))
    assert transcribe_with(model, "-f", "txt", long) in {128 + number for number in numbers}
    assert read_text("long")


def test_what_is_ignored_stays_ignored(
    model: Path, long: Path, at_each_window: AtEachWindow
) -> None:
    """`nohup` ignores SIGHUP, a shell without job control the Ctrl-C of what it runs behind."""
    handlers = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGHUP, signal.SIGINT)}

    def hang_up(_: int) -> None:
        for number in handlers:
            os.kill(os.getpid(), number)

    at_each_window(hang_up)
    try:
        assert transcribe_with(model, "-f", "txt", long) == 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDINGS, ids=lambda number: number.name)
def test_a_download_is_left_as_by_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """`pull` cleans up, also when the signal comes twice."""
    cleaned: list[str] = []

    def fetch(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(number)
        finally:
            if number != signal.SIGINT:
                signal.raise_signal(number)
            cleaned.append("up")

    monkeypatch.setattr("fastwhisper.sources.find.find_local", lambda *_: None)
    monkeypatch.setattr("fastwhisper.sources.find.fetch", fetch)
    assert run("pull", "tiny") == 128 + number
    assert cleaned == ["up"]


@pytest.mark.parametrize("number", ENDINGS, ids=lambda number: number.name)
def test_quantizing_is_left_as_by_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """`quantize` is cancelled, and removes what it has begun to write."""
    cleaned: list[str] = []

    async def quantize(*_: object, **__: object) -> None:
        try:
            await anyio.lowlevel.checkpoint()
            os.kill(os.getpid(), number)
            await anyio.sleep_forever()
        finally:
            cleaned.append("up")

    monkeypatch.setattr("fastwhisper.quantizing.make.quantize", quantize)
    assert run("quantize", "tiny", "--out", "made") == 128 + number
    assert cleaned == ["up"]


# Other callers


def test_a_thread_may_call_main(model: Path, short: Path) -> None:
    """The host program keeps its signals."""
    status: list[int] = []
    thread = threading.Thread(
        target=lambda: status.append(transcribe_with(model, "-f", "txt", short))
    )
    thread.start()
    thread.join()
    assert status == [0]
    assert read_text("short")


@pytest.mark.anyio
@pytest.mark.parametrize("in_thread", [False, True])
async def test_main_may_be_called_inside_a_running_loop(
    model: Path,
    short: Path,
    tmp_path: Path,
    in_thread: bool,  # noqa: FBT001  names the two
) -> None:
    """A cell of a notebook, or a worker thread of a service."""
    if in_thread:
        status = await anyio.to_thread.run_sync(transcribe_with, model, "-f", "txt", short)
    else:
        status = transcribe_with(model, "-f", "txt", short)
    assert status == 0
    assert read_text("short")
    assert transcribe_with(tmp_path / "none", short) == 1
    assert run("inspect", model) == 0


@pytest.mark.anyio
async def test_an_interrupt_inside_a_running_loop_keeps_what_was_heard(
    model: Path, long: Path, at_each_window: AtEachWindow
) -> None:
    """Ctrl-C reaches the command, not the loop that waits for it."""
    before = signal.getsignal(signal.SIGINT)
    interrupt = send(signal.SIGINT)

    def interrupt_as_after_cuda(window: int) -> None:
        off = False  # as CUDA's compiler leaves the handler
        signal.siginterrupt(signal.SIGINT, off)
        interrupt(window)

    at_each_window(interrupt_as_after_cuda)
    assert transcribe_with(model, "-f", "txt", long) == 130
    assert read_text("long")
    assert signal.getsignal(signal.SIGINT) is before
