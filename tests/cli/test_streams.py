"""Stdout and stderr that are closed, full, narrow or a terminal; what is printed on them."""

from __future__ import annotations

import errno
import io
import os
import pty
import re
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from fastwhisper.cli.streams import warnings_as_notes
from fastwhisper.whisper.tokenizer import Tokenizer
from tests.helpers.command import run_command as run
from tests.helpers.tiny_models import write_babbler

COMMAND = [sys.executable, "-m", "fastwhisper"]
QUICK = ["transcribe", "--temperature", "0", "--model"]


def run_shell(redirections: str, *arguments: object, **variables: str) -> tuple[int, str, str]:
    """Run `fastwhisper` with redirections of the shell; return status, stdout and stderr."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **variables},
    )
    return done.returncode, done.stdout, done.stderr


# None, or closed


@pytest.mark.parametrize("redirections", ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_crash(model: Path, short: Path, redirections: str) -> None:
    """`2>&-` and `>&-`: the text file is whole, and nothing is printed where it doesn't belong."""
    status, out, err = run_shell(redirections, *QUICK, model, "-f", "txt", short)
    text = Path("short.txt").read_text(encoding="utf-8")
    assert status == 0
    assert text
    assert "ready in" not in text
    assert out == ("" if ">&-" in redirections.split() else text)
    assert ("ready in" in err) == ("2>&-" not in redirections)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--help"], 0), (["--version"], 0), (["transcribe", "--nope"], 2), ([], 2)],
    ids=["help", "version", "wrong flag", "no command"],
)
def test_closed_streams_are_no_crash_of_the_parser(arguments: list[str], status: int) -> None:
    """Help, version and usage errors keep their status."""
    assert run_shell(">&- 2>&-", *arguments) == (status, "", "")


@pytest.mark.parametrize("case", ["stdout None", "stdout closed", "stderr None", "stderr closed"])
def test_a_program_without_streams_may_call_main(
    model: Path,
    short: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    """Streams are None in a program with a window; a daemon may have closed them."""
    name, _, state = case.partition(" ")
    stream = None
    if state == "closed":
        stream = Path("closed").open("w", encoding="utf-8")  # noqa: SIM115  closed at once
        stream.close()
    with monkeypatch.context() as patch:
        patch.setattr(sys, name, stream)
        assert run(*QUICK, model, "-f", "txt", short) == 0
        assert run("inspect", model) == 0
        assert run("inspect", "nothing") == 1
        assert getattr(sys, name) is stream
    out, err = capsys.readouterr()
    text = Path("short.txt").read_text(encoding="utf-8")
    assert (text in out, "ready in" in err) == (name == "stderr", name == "stdout")
    assert "ready in" not in out


# A terminal


def run_terminal(
    *arguments: object, stdin: bytes = b"", stdout: int | None = None
) -> tuple[int, str, str]:
    """Run `fastwhisper` with a terminal; return status, what the terminal shows, and stdout.

    Stdout is on the terminal too, unless it is `subprocess.PIPE`.
    """
    terminal, its_end = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=its_end if stdout is None else stdout,
        stderr=its_end,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "1000"},  # no path is wrapped
    ) as process:
        os.close(its_end)
        # In a thread: a terminal that nobody reads stops the program, which then reads no stdin.
        feeder = threading.Thread(target=_feed, args=(process, stdin))
        feeder.start()
        shown = b"".join(iter(partial(_read_terminal, terminal), b"")).decode()
        text = "" if process.stdout is None else process.stdout.read().decode()
        feeder.join()
    os.close(terminal)
    return process.returncode, shown, text


def _feed(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write(data)


def _read_terminal(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError as error:
        if error.errno != errno.EIO:  # Linux's end of a terminal whose other end is closed
            raise
        return b""


def test_bars_on_a_terminal_and_text_in_a_pipe(model: Path, short: Path) -> None:
    """Stderr is a terminal: bars of the load and of the audio; stdout is a pipe: plain text."""
    status, shown, text = run_terminal(
        *QUICK, model, "-", short, stdin=short.read_bytes(), stdout=subprocess.PIPE
    )
    assert status == 0
    assert "\x1b" not in text
    assert text[: len(text) // 2] * 2 == text
    assert "\x1b[" in shown
    assert re.search(rf"{short.name}\b.*100%", shown)
    assert re.search(r"read\b.*%", shown)
    assert "ready in" in shown


@pytest.mark.parametrize(
    "name", ["talks [/x].wav", "[id] [bold]a[/bold].wav", "[/].wav", ":smile: {task.total} %s.wav"]
)
def test_a_name_is_no_markup_on_a_terminal(model: Path, short: Path, name: str) -> None:
    """Brackets, colons and braces of a path are shown as they are, in bars and in notes."""
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).symlink_to(short)
    status, shown, _ = run_terminal(*QUICK, model, name, f"no {name}")
    assert status == 1
    assert re.search(rf"\r?{re.escape(name)}[^\n]*100%", shown)
    assert f"'no {name}': no such file" in shown


def test_a_name_gives_no_command_to_a_terminal(model: Path, short: Path) -> None:
    """Control characters of a path are shown escaped."""
    name = "a\x1b[2J\x9b2J\n\r.wav"
    Path(name).symlink_to(short)
    status, shown, _ = run_terminal(*QUICK, model, name, "-f", "txt", "-o", "made")
    assert status == 0
    assert r"a\x1b[2J\x9b2J\n\r.wav" in shown
    assert "\x1b[2J" not in shown
    folder = Path("b\x1b[2J")
    folder.symlink_to(model)
    _, shown, _ = run_terminal(*QUICK, folder, short)
    assert r"b\x1b[2J at float16" in shown
    assert "\x1b[2J" not in shown


# An encoding that lacks characters, a device that is full, a reader who leaves


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_stdout_cannot_show_is_replaced(
    model: Path, short: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """Each character that the encoding lacks is a `?`; the text file has them all, in UTF-8."""
    real = Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda *given: f"\u00e9\u65e5 {real(*given)}")
    raw = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        assert run(*QUICK, model, "-f", "txt", short) == 0
        out = raw.getvalue()
    text = Path("short.txt").read_text(encoding="utf-8")
    assert "\u00e9\u65e5" in text
    assert out == text.encode(encoding, "replace")


def test_a_path_that_stdout_cannot_show_is_replaced(model: Path) -> None:
    """So is a path in a description, also one of bytes that are no text."""
    for name, encoding in (("caf\u00e9", "ascii"), ("caf\udce9", "utf-8")):
        Path(name).symlink_to(model)
        status, out, _ = run_shell("", "inspect", name, PYTHONIOENCODING=f"{encoding}:strict")
        assert status == 0
        assert "\npath: caf?\n" in out


def test_a_full_stdout_is_one_line(model: Path, short: Path, long: Path) -> None:
    """Without text files nothing is left to do; with them, they are written. Exit 1."""
    status, _, err = run_shell(">/dev/full", *QUICK, model, long, short)
    assert status == 1
    lines = err.splitlines()
    assert lines[1:] == ["fastwhisper: can't write to stdout: No space left on device"]
    status, _, err = run_shell(">/dev/full", *QUICK, model, "-f", "txt", long, short)
    assert status == 1
    assert "can't write to stdout" in err.splitlines()[1]
    assert "2 files transcribed" in err.splitlines()[2]
    assert all(Path(name).read_text(encoding="utf-8") for name in ("long.txt", "short.txt"))
    status, _, err = run_shell(">/dev/full", "inspect", model)
    assert (status, err) == (1, "fastwhisper: can't write to stdout: No space left on device\n")


def test_a_full_stderr_is_no_trouble(model: Path, short: Path) -> None:
    """Notes are lost; the text is not."""
    status, out, _ = run_shell("2>/dev/full", *QUICK, model, short)
    assert status == 0
    assert out


def test_text_files_go_on_when_the_reader_leaves(model: Path, long: Path, short: Path) -> None:
    """`fastwhisper transcribe -f txt ... | true` writes every file, and exits with 1."""
    code = '"$@" 2>err; echo $? >status'
    pipe = ["sh", "-c", f"{{ {code}; }} | true", "sh", *COMMAND, *QUICK]
    subprocess.run([*pipe, model, "-f", "txt", long, short], check=True)
    assert Path("status").read_text() == "1\n"
    assert "2 files transcribed" in Path("err").read_text()
    assert all(Path(name).read_text(encoding="utf-8") for name in ("long.txt", "short.txt"))


# Warnings


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a one-layer model of many languages, and return its directory."""
    return write_babbler(tmp_path_factory.mktemp("babbler") / "model", multilingual=True)


def test_a_warning_is_a_note(translator: Path, short: Path) -> None:
    """Without the line of code that gave it; `python -W error` makes it the failure of a file."""
    flags = (*QUICK, translator, "--word-timestamps", "True", "--task", "translate")
    words = "word times of a translation may be unreliable"
    status, _, err = run_shell("", *flags, "--language", "de", short)
    assert status == 0
    assert err.splitlines()[1] == f"fastwhisper: {words}"
    status, _, err = run_shell("", *flags, "--language", "de", short, PYTHONWARNINGS="error")
    assert status == 1
    assert err.splitlines()[1:] == [
        f"fastwhisper: {str(short)!r}: {words}",
        "fastwhisper: 1 file failed",
    ]


def test_other_warnings_are_shown_as_python_does(capsys: pytest.CaptureFixture[str]) -> None:
    """Those for programmers reach the program's own way to show them, which is restored."""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        before = warnings.showwarning
        with warnings_as_notes():
            warnings.warn("soon gone", DeprecationWarning, stacklevel=1)
        assert warnings.showwarning is before
    assert [str(warning.message) for warning in shown] == ["soon gone"]
    assert capsys.readouterr().err == ""
