"""The text files of `transcribe`: names, and what is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.command import run_command as run


def refuse(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run `transcribe` with a model that does not exist; return what is wrong with the files."""
    assert run("transcribe", "--model", "no/model", *arguments) == 2
    return capsys.readouterr().err.splitlines()[-1].partition("error: ")[2]


# Two inputs, one file


@pytest.mark.parametrize(
    "flags", [["-o", "out"], ["-f", "srt"], ["-f", "all", "-o", "out"], ["--output-dir=."]]
)
def test_two_inputs_that_would_write_one_file_are_refused(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Both are named before anything is opened, and no folder is made."""
    message = refuse(capsys, *flags, "a/x.wav", "b/x.mp3")
    assert message.startswith("'a/x.wav' and 'b/x.mp3' would both write ")
    assert list(Path().iterdir()) == []


def test_an_input_that_is_given_twice_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """It would be transcribed twice for one file."""
    assert refuse(capsys, "-f", "txt", "x.wav", "x.wav").startswith("'x.wav' is given twice")
    assert "'x.wav' and './x.wav' would both" in refuse(capsys, "-f", "txt", "x.wav", "./x.wav")
    assert "'-' is given twice" in refuse(capsys, "-f", "txt", "-", "-")


def test_links_to_one_file_are_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    """A text file that is a link is what it leads to."""
    Path("b.txt").symlink_to("a.txt")
    assert "'a.wav' and 'b.wav' would both" in refuse(capsys, "-f", "txt", "a.wav", "b.wav")


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_case_makes_no_other_file_where_the_system_knows_none(
    platform: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On macOS and Windows, Talk.txt and talk.txt are one file, and so are two forms of é."""
    monkeypatch.setattr("sys.platform", platform)
    for names in (("Talk.wav", "talk.wav"), ("caf\u00e9.wav", "cafe\u0301.wav")):
        assert "would both write" in refuse(capsys, "-f", "txt", *names)


def test_a_recording_is_never_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    """A recording with the name of a text file is not replaced by its text, nor by another's."""
    Path("x.json").touch()
    message = refuse(capsys, "-f", "all", "x.json")
    assert message.startswith("the text of 'x.json' would overwrite the recording 'x.json'")
    Path("y.txt").symlink_to("talk.wav")
    Path("talk.wav").touch()
    message = refuse(capsys, "-f", "txt", "y.mp3", "talk.wav")
    assert message.startswith("the text of 'y.mp3' would overwrite the recording 'talk.wav'")


def test_inputs_of_one_name_are_fine_without_files(capsys: pytest.CaptureFixture[str]) -> None:
    """What goes to stdout alone overwrites nothing."""
    assert run("transcribe", "--model", "./none", "a/x.wav", "b/x.wav") == 1
    assert "./none" in capsys.readouterr().err
