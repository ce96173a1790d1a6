"""Stdout and stderr that are closed, full, narrow or a terminal; what is printed on them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command import run_command as run

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
