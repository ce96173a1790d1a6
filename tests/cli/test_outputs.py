"""The text files of `transcribe`: names, and what is refused before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastwhisper.cli.writers import FORMATS
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


def test_hard_links_are_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    """A recording with a second name is not overwritten, and a text is not written twice."""
    Path("r.wav").write_bytes(b"sound")
    os.link("r.wav", "r.txt")
    assert refuse(capsys, "r.wav", "-o", ".") == (
        "the text of 'r.wav' would overwrite the recording 'r.wav'; choose another --output-dir"
    )
    Path("a.txt").touch()
    os.link("a.txt", "b.txt")
    assert "'a.wav' and 'b.wav' would both write 'b.txt'" in refuse(
        capsys, "a.wav", "b.wav", "-f", "txt"
    )
    assert Path("r.wav").read_bytes() == b"sound"


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


# Names


def list_files(model: Path, *arguments: object) -> list[str]:
    """Run `transcribe` silently, and list the text files below the working directory."""
    quick = ("--temperature", "0", "--verbose", "False")
    assert run("transcribe", "--model", model, *quick, *arguments) == 0
    return sorted(str(path) for path in Path().rglob("*") if path.suffix[1:] in FORMATS)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--output-name", "Dr. Smith interview"], ["Dr. Smith interview.txt"]),
        (["--output-name", "talk 2026.11.26"], ["talk 2026.11.26.txt"]),
        (["--output-name", "v1.2", "-f", "srt"], ["v1.2.srt"]),
        (["--output-name", "talk.wav"], ["talk.wav.txt"]),
        (["--output-name", "a.txt"], ["a.txt"]),
        (["--output-name", "a.txt", "-f", "srt"], ["a.txt.srt"]),
        (["--output-name", ".hidden"], [".hidden.txt"]),
        (["--output-name", "new/folder/a.b"], ["new/folder/a.b.txt"]),
    ],
    ids=" ".join,
)
def test_a_name_is_a_name(model: Path, short: Path, flags: list[str], names: list[str]) -> None:
    """`--output-name` gets the format's suffix, unless it has it, and loses nothing."""
    assert list_files(model, *flags, short) == names


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("talk 2026.11.26", "talk 2026.11.26"),
        ("Dr. Smith interview", "Dr. Smith interview"),
        ("Dr. Smith.m4a", "Dr. Smith"),
        ("talk.1.wav", "talk.1"),
        ("talk.3gp", "talk"),
        ("TALK.MP3", "TALK"),
        (".hidden", ".hidden"),
        ("v1.2", "v1.2"),
        ("noon.", "noon."),
    ],
)
def test_only_a_suffix_is_cut_from_a_recordings_name(
    model: Path, short: Path, name: str, stem: str
) -> None:
    """Recordings without a suffix keep what stands behind a dot of their name."""
    Path(name).symlink_to(short)
    assert list_files(model, "-f", "txt", name) == [f"{stem}.txt"]


# What can't be written


def test_files_that_cannot_be_written_are_found_before_the_load(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A folder that is a file, a file that is a folder, a name that is too long: one line."""
    Path("file").touch()
    Path("x.txt").mkdir()
    os.mkfifo("x.srt")
    Path("x.vtt").symlink_to("nowhere/x")
    for flags, message in (
        (["-o", "file"], "can't write 'file/x.txt': 'file' is no directory"),
        (["-o", "file/deep"], "can't write 'file/deep/x.txt': Not a directory"),
        (["-f", "txt"], "can't write 'x.txt': Is a directory"),
        (["-f", "srt"], "can't write 'x.srt': it is a pipe"),
        (["-f", "vtt"], "can't write 'x.vtt': No such file or directory"),
        (["--output-name", "n" * 300], f"can't write '{'n' * 300}.txt': File name too long"),
        (["-o", "/proc/new"], "can't write '/proc/new/x.txt': No such file or directory"),
    ):
        assert run("transcribe", "--model", "no/model", *flags, "x.wav") == 1
        assert capsys.readouterr().err == f"fastwhisper: {message}\n"


def test_a_check_leaves_no_file_and_changes_none(capsys: pytest.CaptureFixture[str]) -> None:
    """A text of an earlier run is kept until there is a new one; a link that leads nowhere too."""
    Path("a.txt").write_text("earlier")
    Path("b.txt").symlink_to("nowhere")
    assert run("transcribe", "--model", "./none", "-f", "txt", "a.wav", "b.wav", "c.wav") == 1
    assert "'./none'" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["a.txt", "b.txt"]
    assert Path("a.txt").read_text() == "earlier"


def test_a_file_that_cannot_be_written_stops_nothing(
    model: Path, short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line names recording and file; other formats and other recordings are written."""
    Path("full.srt").symlink_to("/dev/full")
    names = ["full.wav", "fine.wav"]
    for name in names:
        Path(name).symlink_to(short)
    flags = ("--temperature", "0", "--model", model, "-f", "all")
    assert run("transcribe", *flags, *names) == 1
    err = capsys.readouterr().err.splitlines()
    line = "fastwhisper: 'full.wav': can't write 'full.srt': No space left on device"
    assert err[1] == line
    assert "2 files: 1 transcribed, 1 failed" in err[2]
    made = [f"{stem}.{kind}" for stem in ("full", "fine") for kind in FORMATS]
    assert all(Path(name).read_text() for name in made if name != "full.srt")
