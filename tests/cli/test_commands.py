"""What the commands do: mlx_whisper's files; text while it is decoded; summary."""

from __future__ import annotations

import errno
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx_whisper.writers
import numpy as np
import pytest

from fastwhisper.errors import AudioError
from fastwhisper.transcribing.samples import load_audio
from tests.helpers.audio import SAMPLE, SAMPLE_RATE, SENTENCE, spell, wav_bytes
from tests.helpers.command import run_command as run
from tests.helpers.pages import align_weights
from tests.helpers.reference import import_reference, leave_out_bounds
from tests.helpers.tiny_models import SPEAKING, write_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers.command import AtEachWindow

FORMATS = ["txt", "srt", "vtt", "tsv", "json"]
COMMAND = [sys.executable, "-m", "fastwhisper", "transcribe"]


def transcribe_with(model: Path, *arguments: object) -> int:
    """Run `fastwhisper transcribe` greedily, and return its exit status."""
    return run("transcribe", "--model", model, "--temperature", "0", *arguments)


def listed() -> list[str]:
    """List the working directory."""
    return sorted(path.name for path in Path().iterdir())


# Files


@pytest.fixture(scope="module")
def upstreams(model: Path, short: Path) -> dict[bool, dict[str, Any]]:
    """Return the results of mlx_whisper, put right, by whether they have words."""
    samples = load_audio(short)
    results = {
        words: import_reference().transcribe(
            samples,
            path_or_hf_repo=str(model),
            fp16=False,
            temperature=0.0,
            initial_prompt="Names",
            word_timestamps=words,
        )
        for words in (False, True)
    }
    for result in results.values():
        spoken = [segment for segment in result["segments"] if segment["text"]]
        result["segments"] = [{**segment, "id": n} for n, segment in enumerate(spoken)]
    return results


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"word_timestamps": True},
        {"word_timestamps": True, "highlight_words": True},
        {"word_timestamps": True, "max_line_width": 20, "max_line_count": 2},
        {"word_timestamps": True, "max_words_per_line": 3},
    ],
    ids=lambda layout: "-".join(layout) or "plain",
)
def test_files_are_those_of_mlx_whisper(
    model: Path,
    short: Path,
    tmp_path: Path,
    upstreams: dict[bool, dict[str, Any]],
    layout: dict[str, Any],
) -> None:
    """All formats are byte for byte what upstream's writers make of upstream's result."""
    if layout and mx.default_device() != mx.cpu:
        pytest.skip("on a GPU rounding moves the words of a random model; tests/real has real ones")
    options = dict(layout)
    result = upstreams[options.pop("word_timestamps", False)]
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    mlx_whisper.writers.get_writer("all", str(theirs))(result, "short", **options)

    flags = [
        part
        for name, value in layout.items()
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    ours = tmp_path / "made" / "ours"
    flags += ["--initial-prompt", "Names", "-f", "all"]
    with leave_out_bounds():
        assert transcribe_with(model, *flags, "-o", ours, short) == 0

    assert sorted(path.name for path in ours.iterdir()) == sorted(f"short.{f}" for f in FORMATS)
    for kind in FORMATS[:-1]:
        expected = (theirs / f"short.{kind}").read_bytes()
        assert (ours / f"short.{kind}").read_bytes() == expected
        assert len(expected) > 20
    ours_json, theirs_json = (
        json.loads((folder / "short.json").read_text(encoding="utf-8")) for folder in (ours, theirs)
    )
    assert ours_json == _approximately(theirs_json)


def _approximately(value: Any) -> Any:
    """Allow for probabilities to differ by the order of a sum."""
    if isinstance(value, dict):
        return {key: _approximately(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_approximately(inner) for inner in value]
    return pytest.approx(value, abs=1e-4, nan_ok=True) if isinstance(value, float) else value


@pytest.mark.parametrize("kind", FORMATS)
def test_one_format_is_one_file(model: Path, short: Path, kind: str) -> None:
    """`-f` alone writes beside where one works, under the name of the recording."""
    assert transcribe_with(model, "-f", kind, "--suppress-tokens", "-1", short) == 0
    assert listed() == [f"short.{kind}"]


def test_the_files_name_can_be_chosen(model: Path, short: Path, tmp_path: Path) -> None:
    """`--output-name` and `--output-dir` mean what they mean upstream; txt is the format."""
    assert transcribe_with(model, "--output-name", "a.txt", "-o", tmp_path / "b", short) == 0
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["a.txt"]


def test_a_dot_in_a_name_is_kept(model: Path, short: Path) -> None:
    """Recordings that differ after a dot don't write over each other."""
    names = ["talk.1.wav", "talk.2.wav"]
    for name in names:
        Path(name).symlink_to(short)
    assert transcribe_with(model, "-f", "txt", *names) == 0
    assert listed() == ["talk.1.txt", "talk.1.wav", "talk.2.txt", "talk.2.wav"]


def test_nothing_is_written_unless_asked_for(
    model: Path, short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default the text goes to stdout, and only the text."""
    assert transcribe_with(model, short) == 0
    assert listed() == []
    text = capsys.readouterr().out
    assert transcribe_with(model, "-f", "txt", "--verbose", "False", short) == 0
    assert capsys.readouterr().out == ""
    assert Path("short.txt").read_text(encoding="utf-8") == text


def test_stdin_is_a_recording(
    model: Path,
    short: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`-` reads it, under upstream's name for it."""
    transcribe_with(model, short)
    expected = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(short.read_bytes())))
    assert transcribe_with(model, "-f", "txt", "-") == 0
    assert capsys.readouterr().out == expected
    assert listed() == ["content.txt"]


def test_several_files_share_one_load_and_a_bad_one_stops_nothing(
    model: Path, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each bad file is one line that names it; the rest goes on; the exit status tells."""
    noise_file = tmp_path / "notes.txt"
    noise_file.write_text("no audio")
    again = tmp_path / "again.wav"
    again.symlink_to(short)
    assert transcribe_with(model, "-f", "txt", "gone.wav", short, noise_file, again) == 1
    out, err = capsys.readouterr()
    assert err.count("ready in") == 1
    lines = err.splitlines()
    assert len(lines) == 4
    assert "'gone.wav'" in lines[1]
    assert "no such file" in lines[1]
    assert str(noise_file) in lines[2]
    summary = r"fastwhisper: 4 files: 2 transcribed, 2 failed; 8\.0 s of audio in \d+\.\d s"
    assert re.fullmatch(summary, lines[3])
    assert listed() == ["again.txt", "short.txt"]
    assert out[: len(out) // 2] * 2 == out


@pytest.mark.slow
def test_windows_of_several_files_are_one_batch(
    tiny_en_ct2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Text comes in the order of the files, and one that is bad fails alone."""
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    files = [SAMPLE, broken, SAMPLE, SAMPLE]
    assert run("transcribe", "--model", tiny_en_ct2, "--batch-size", "3", *files) == 1
    printed = capsys.readouterr()
    assert spell(printed.out) == 3 * spell(SENTENCE)
    assert "broken.wav" in printed.err
    assert "4 files: 3 transcribed, 1 failed" in printed.err


def test_summary_of_one_file(model: Path, short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last line of stderr says how much audio took how long; stdout has the text alone."""
    assert transcribe_with(model, "-f", "txt", short) == 0
    out, err = capsys.readouterr()
    summary = r"fastwhisper: 1 file transcribed; 4\.0 s of audio in \d+\.\d s"
    assert re.fullmatch(summary, err.splitlines()[-1])
    assert out == Path("short.txt").read_text(encoding="utf-8")


def test_summary_of_files_that_all_fail(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without audio there is nothing to measure."""
    assert transcribe_with(model, "gone.wav") == 1
    assert capsys.readouterr().err.splitlines()[-1] == "fastwhisper: 1 file failed"
    assert transcribe_with(model, "gone.wav", "lost.wav") == 1
    assert capsys.readouterr().err.splitlines()[-1] == "fastwhisper: 2 files failed"


def test_silence_is_skipped(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With batches and the filter, speech is written down, and silence is not."""
    flags = ("--batch-size", "2", "--vad-filter", "True", "--no-speech-threshold", "None")
    assert transcribe_with(model, *flags, SAMPLE) == 0
    assert capsys.readouterr().out.strip()
    quiet = tmp_path / "quiet.wav"
    quiet.write_bytes(wav_bytes(np.zeros(5 * SAMPLE_RATE, np.float32)))
    assert transcribe_with(model, *flags, quiet, "-f", "txt") == 0
    assert capsys.readouterr().out == ""
    assert Path("quiet.txt").read_text() == ""


# While it is decoded


def test_text_appears_while_it_is_decoded(
    model: Path, long: Path, capsys: pytest.CaptureFixture[str], at_each_window: AtEachWindow
) -> None:
    """Before a window is decoded, the lines of those before it have been printed."""
    shown: list[int] = []

    def look(window: int) -> None:
        shown.append(len(capsys.readouterr().out.splitlines()))
        if window == 2:
            raise AudioError("long.wav", "enough")

    at_each_window(look)
    assert transcribe_with(model, long) == 1
    assert shown[0] == 0
    assert all(shown[1:])
    assert len(shown) == 3


def test_a_read_error_halfway_is_one_line(
    model: Path,
    long: Path,
    short: Path,
    capsys: pytest.CaptureFixture[str],
    at_each_window: AtEachWindow,
) -> None:
    """The line names the file, what was heard of it is kept, and the next file is transcribed."""
    errors = [OSError(errno.EIO, "Input/output error")]

    def fail(window: int) -> None:
        if window == 1 and errors:
            raise errors.pop()

    at_each_window(fail)
    assert transcribe_with(model, "-f", "txt", long, short) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[1] == f"fastwhisper: {str(long)!r}: Input/output error"
    assert "2 files: 1 transcribed, 1 failed" in err[2]
    assert all(Path(name).read_text(encoding="utf-8") for name in ("long.txt", "short.txt"))


def test_a_reader_who_leaves_is_no_traceback(model: Path, long: Path) -> None:
    """`fastwhisper transcribe … | head -1` ends quietly."""
    with subprocess.Popen(
        [*COMMAND, "--model", str(model), "--temperature", "0", str(long)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().strip()
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 1
    assert "ready in" in err
    assert len(err.splitlines()) == 1


# The other commands


def test_inspect_describes_a_directory(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same facts as lines and as JSON."""
    assert run("inspect", model, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["path"] == str(model)
    assert facts["precision"] == "float16"
    assert facts["fast_path"] is True
    assert facts["maps"] == "no (each tensor must be cast to float16)"
    assert facts["dimensions"]["n_audio_layer"] == 1
    assert run("inspect", model) == 0
    assert f"path: {model}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("dtype", "shift", "line"),
    [
        ("float16", 0, "maps: yes"),
        ("float16", 1, "maps: no (each tensor is not aligned)"),
        ("float32", 0, "maps: no (each tensor must be cast to float16)"),
    ],
)
def test_inspect_says_whether_a_directory_maps(
    dtype: str, shift: int, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the reason if it does not, for float16, in which a Mac computes."""
    directory = align_weights(write_model(tmp_path / "model", dtype=dtype), shift=shift)
    assert run("inspect", directory) == 0
    assert line in capsys.readouterr().out.splitlines()


def test_pull_of_a_directory_only_describes_it(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is on disk needs no download."""
    assert run("pull", model, "--json") == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(model)


def test_an_unknown_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is no model is refused by every command that takes one, with the nearest."""
    for command in (
        ["pull"],
        ["inspect"],
        ["transcribe", "a.wav", "--model"],
        ["quantize", "--out", "made"],
    ):
        assert run(*command, "tinny") == 1
        err = capsys.readouterr().err
        assert err == "fastwhisper: unknown model 'tinny'; did you mean 'tiny'?\n"
    assert listed() == []


def test_a_name_of_the_table_is_no_directory(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exact name is the table's also where a directory has the same name, as for `open`."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path("hub").absolute()))
    Path("tiny").symlink_to(model)
    assert run("inspect", "tiny") == 1
    assert "not on this machine" in capsys.readouterr().err
    assert run("inspect", "./tiny") == 0
    assert "path: tiny\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["large-v3-turbo", "turbo", "Turbo", "whisper-large-v3-turbo"])
@pytest.mark.parametrize(
    "command",
    [
        ["inspect"],
        ["pull"],
        ["transcribe", "a.wav", "--model"],
        ["transcribe", "--offline", "a.wav", "--model"],
    ],
    ids=" ".join,
)
def test_another_precision_that_is_here_is_named(
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    name: str,
) -> None:
    """The default is int4: where float16 and int8 are here, the error says which and how."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path("hub").absolute()))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for repo in ("turbo", "turbo-8bit"):
        folder = Path("hub", f"models--mlx-community--whisper-large-v3-{repo}")
        (folder / "snapshots").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("a" * 40)
        (folder / "snapshots" / ("a" * 40)).symlink_to(model)
    assert run(*command, name) == 1
    err = capsys.readouterr().err
    assert err.endswith(
        "; this machine has it at float16 and int8: add --quant float16 or --quant int8\n"
    )
    assert len(err.splitlines()) == 1
    assert run("inspect", name, "--quant", "float16") == 0


def test_a_model_that_is_missing_is_pulled_as_it_was_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that `inspect` names has its precision and revision."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path("hub").absolute()))
    flags = ["--quant", "int8", "--revision", "v1"]
    for name, precision in (("small", " at int8"), ("org/name", "")):
        assert run("inspect", name, *flags) == 1
        assert capsys.readouterr().err == (
            f"fastwhisper: {name}: it is not on this machine{precision}: "
            f"fastwhisper pull {name} {' '.join(flags)}\n"
        )


def test_the_cache_is_listed_and_cleared(
    cache_directory: Path,
    tiny_model_dir: Callable[..., Path],
    short: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A slow layout is converted while the command works, listed, and removed on request."""
    slow = tiny_model_dir(layout="weights.npz", dimensions=SPEAKING)
    assert transcribe_with(slow, short) == 0
    capsys.readouterr()
    assert run("cache") == 0
    listed = capsys.readouterr().out
    assert str(cache_directory) in listed.splitlines()[-1]
    assert str(slow) in listed
    assert run("cache", "--clear") == 0
    assert "MiB freed" in capsys.readouterr().out
    assert run("cache") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
