"""`fastwhisper listen`: sound from stdin and from a microphone, lines, a terminal, Ctrl-C."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pytest

from fastwhisper.cli.live import LinePrinter
from fastwhisper.transcribing.samples import never_cancel, read_blocks
from fastwhisper.values import LiveText
from tests.helpers.audio import SAMPLE, SAMPLE_RATE, SENTENCE, spell, to_bytes
from tests.helpers.command import run_command as run
from tests.helpers.tones import silence
from tests.helpers.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

COMMAND = [sys.executable, "-m", "fastwhisper", "listen"]


@pytest.fixture(scope="module")
def sound() -> bytes:
    """Return the recorded sentences as the command takes them."""
    samples = np.concatenate([*read_blocks(SAMPLE, check=never_cancel), silence(0.5)])
    return to_bytes(samples)


@contextmanager
def piped(monkeypatch: pytest.MonkeyPatch, data: bytes, *, piece: int = 3201) -> Iterator[None]:
    """Pipe bytes into stdin, in pieces that split samples."""
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb", buffering=0) as file:
            for start in range(0, len(data), piece):
                file.write(data[start : start + piece])

    thread = threading.Thread(target=write)
    with os.fdopen(reading, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        thread.start()
        yield
    thread.join()


# Sound


def test_a_pipe_becomes_lines(
    tiny_en_ct2: Path,
    sound: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A line for each sentence, on stdout; the rest is on stderr."""
    with piped(monkeypatch, sound):
        assert run("listen", "-", "--model", tiny_en_ct2) == 0
    printed = capsys.readouterr()
    assert spell(printed.out) == spell(SENTENCE)
    assert printed.out.startswith("Good morning.\n")
    assert "ready in" in printed.err


@pytest.mark.slow
def test_a_file_is_read_to_its_end(
    tiny_en_ct2: Path,
    sound: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A regular file lets nobody wait for it."""
    (tmp_path / "sound.raw").write_bytes(sound)
    with (tmp_path / "sound.raw").open(encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert run("listen", "-", "--model", tiny_en_ct2) == 0
    assert spell(capsys.readouterr().out) == spell(SENTENCE)


@pytest.mark.slow
def test_silence_and_nothing_give_no_line(
    tiny_en_ct2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And no error."""
    for data in (b"", bytes(2 * SAMPLE_RATE)):
        with piped(monkeypatch, data):
            assert run("listen", "-", "--model", tiny_en_ct2) == 0
        assert capsys.readouterr().out == ""


def test_a_recording_with_a_header_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the command that makes bare samples of it, also if its first bytes come one by one."""
    with piped(monkeypatch, SAMPLE.read_bytes()[:9], piece=1):
        assert run("listen", "-", "--model", model) == 1
    assert "an Ogg file; pipe bare samples: ffmpeg" in capsys.readouterr().err


def test_a_stdin_without_sound_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """None at all, and a terminal."""
    monkeypatch.setattr(sys, "stdin", None)
    assert run("listen", "-", "--model", model) == 1
    assert "stdin is closed" in capsys.readouterr().err
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        assert run("listen", "-", "--model", model) == 1
    os.close(ours)
    assert "stdin is a terminal" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x"], "unknown value 'x'"),
        (["-", "--pause", "0"], "--pause: give more than 0"),
        (["-", "--min-chunk", "31"], "--min-chunk: give more than 0 and at most 30"),
        (["-", "--device", "1"], "--device is a microphone"),
        (["--task", "translate", "--model", "tiny.en"], "English"),
        (["--language", "klingon"], "unknown language"),
    ],
)
def test_a_wrong_option_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before a model is looked for."""
    assert run("listen", *arguments) == 2
    assert said in capsys.readouterr().err


# Lines


def test_a_line_ends_with_a_sentence_a_pause_or_its_length(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is tentative is never printed in a pipe; the end prints what is left."""
    stretches = [
        (" So", 0.0, 1.0),
        (" we go.", 1.0, 2.0),
        (" Then a", 2.0, 3.0),
        (" later", 6.0, 7.0),
        (" and so on" * 8, 7.0, 12.0),
        (" rest", 12.0, 13.0),
    ]
    with LinePrinter("txt") as printer:
        for text, start_s, end_s in stretches:
            printer.add(LiveText(text, start_s, end_s, is_final=True, backlog_s=0.0))
            printer.add(LiveText(" maybe", end_s, end_s + 1, is_final=False, backlog_s=0.0))
    assert capsys.readouterr().out.splitlines() == [
        "So we go.", "Then a", "later" + " and so on" * 8, "rest",
    ]  # fmt: skip


FORMATS = {
    "srt": (
        "1\n00:00:00,500 --> 00:00:02,000\nA <b>.\n\n",
        "2\n00:00:02,000 --> 00:00:03,000\n-> c.\n\n",
    ),
    "vtt": (
        "WEBVTT\n\n00:00.500 --> 00:02.000\nA &lt;b>.\n\n",
        "00:02.000 --> 00:03.000\n--&gt; c.\n\n",
    ),
    "json": (
        '{"start": 0.5, "end": 2.0, "text": "A <b>."}\n',
        '{"start": 2.0, "end": 3.0, "text": "--> c."}\n',
    ),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_are_written_line_by_line(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each piece is whole as soon as its line is final."""
    with LinePrinter(kind) as printer:
        printer.add(LiveText(" A <b>.", 0.5, 2.0, is_final=True, backlog_s=0.0))
        assert capsys.readouterr().out == FORMATS[kind][0]
        printer.add(LiveText(" --> c.", 2.0, 3.0, is_final=True, backlog_s=0.0))
        assert capsys.readouterr().out == FORMATS[kind][1]


@pytest.mark.slow
def test_json_of_speech_has_times(
    tiny_en_ct2: Path,
    sound: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An object in each line, in the order of the speech."""
    with piped(monkeypatch, sound):
        assert run("listen", "-", "--model", tiny_en_ct2, "-f", "json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    times = [time_s for line in lines for time_s in (line["start"], line["end"])]
    assert times == sorted(times)
    assert 7 < times[-1] < 9
    assert spell(" ".join(line["text"] for line in lines)) == spell(SENTENCE)


# A terminal


@pytest.mark.slow
def test_a_terminal_shows_what_may_still_change(tiny_en_ct2: Path, sound: bytes) -> None:
    """It is dim and is overwritten; final lines stay."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "-", "--model", str(tiny_en_ct2)],
        stdin=subprocess.PIPE,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
    ) as process:
        os.close(theirs)
        assert process.stdin is not None
        process.stdin.write(sound[: 8 * SAMPLE_RATE])  # 4 s: nothing is final after a pass
        process.stdin.flush()
        shown = read_until(ours, "\x1b[2m")
        process.stdin.write(sound[8 * SAMPLE_RATE :])
        process.stdin.close()
        shown += read_until(ours, None)
        assert process.wait() == 0
    os.close(ours)
    assert "\x1b[2K" in shown
    assert "Good morning.\r\n" in shown


def read_until(terminal: int, end: str | None) -> str:
    """Read what a terminal shows until a text, or until the program has left."""
    shown = ""
    while end is None or end not in shown:
        try:
            data = os.read(terminal, 4096)
        except OSError:  # Linux: nobody has the other side any more
            break
        if not data:
            break
        shown += data.decode("utf-8", "replace")
    return shown


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_an_interrupt_makes_final_what_was_heard(
    tiny_en_ct2: Path, sound: bytes, number: signal.Signals
) -> None:
    """The status is a shell's."""
    with subprocess.Popen(
        [*COMMAND, "-", "--model", str(tiny_en_ct2)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        # "Good morning.", and a pause that makes it final.
        process.stdin.write(sound[: 2 * SAMPLE_RATE] + bytes(4 * SAMPLE_RATE))
        process.stdin.flush()
        first = process.stdout.readline()
        process.stdin.write(sound[2 * SAMPLE_RATE :])
        process.stdin.flush()
        pipe = process.stdin.fileno()
        wait_until(lambda: not any(fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4)))
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait() == 128 + number
    assert first == b"Good morning.\n"
    assert spell(rest.decode())[:6] == ["today", "we", "will", "talk", "about", "the"]


# A microphone


class Microphone:
    """A stand-in for `sounddevice.RawInputStream`: this machine may have no microphone.

    Like the real one it calls from a thread of its own, and its end waits for that thread.
    """

    sound: ClassVar[bytes] = b""
    made: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, *, callback: Callable[..., None], **options: Any) -> None:
        if options["device"] == "none":
            raise ValueError("No input device matching 'none'")
        self.made.append(options)
        self._callback = callback
        self._block = 2 * options["blocksize"]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._play)

    def _play(self) -> None:
        for start in range(0, len(self.sound), self._block):
            self._callback(self.sound[start : start + self._block], self._block // 2, None, None)
        self._stopped.wait()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()


@pytest.fixture
def microphone(monkeypatch: pytest.MonkeyPatch, sound: bytes) -> type[Microphone]:
    """Put the stand-in where the package `sounddevice` is looked for."""
    package = SimpleNamespace(RawInputStream=Microphone, PortAudioError=RuntimeError)
    monkeypatch.setitem(sys.modules, "sounddevice", package)
    spoken = sound[: 2 * SAMPLE_RATE] + bytes(4 * SAMPLE_RATE)  # "Good morning.", and a pause
    monkeypatch.setattr(Microphone, "sound", spoken)
    monkeypatch.setattr(Microphone, "made", [])
    return Microphone


@pytest.mark.slow
def test_a_microphone_is_recorded_until_an_interrupt(
    tiny_en_ct2: Path,
    microphone: type[Microphone],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At 16 kHz from one channel, in 16 bits; the recording ends with the command."""
    numbers = [signal.SIGINT]  # a second one would end this process
    real = LinePrinter.end_line

    def end_line(printer: LinePrinter) -> None:
        real(printer)
        while numbers:
            os.kill(os.getpid(), numbers.pop())

    monkeypatch.setattr(LinePrinter, "end_line", end_line)
    threads = threading.active_count()
    assert run("listen", "--device", "3", "--model", tiny_en_ct2) == 130
    assert capsys.readouterr().out == "Good morning.\n"
    [options] = microphone.made
    assert (options["samplerate"], options["channels"], options["dtype"]) == (16_000, 1, "int16")
    assert options["device"] == 3
    assert threading.active_count() <= threads + 8  # those of the engine stay


def test_a_microphone_that_is_not_there_is_an_error(
    model: Path, microphone: type[Microphone], capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the model is opened."""
    assert run("listen", "--device", "none", "--model", model) == 1
    assert "No input device matching 'none'; fastwhisper listen -" in capsys.readouterr().err


def test_a_package_that_is_not_there_is_an_error(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert run("listen", "--model", model) == 1
    assert "pip install 'fastwhisper[mic]'" in capsys.readouterr().err
