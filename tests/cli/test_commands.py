"""The command: mlx_whisper's flags and files; text while it is decoded; bars; signals."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import mlx_whisper.writers
import pytest

from fastwhisper.cli import commands
from fastwhisper.cli.parser import main
from fastwhisper.engine import threads
from fastwhisper.errors import AudioError, ModelNotFoundError
from fastwhisper.session import Session
from fastwhisper.transcribing.mel import load_audio
from fastwhisper.transcribing.window_decoder import WindowDecoder
from tests.helpers.reference import import_reference
from tests.helpers.tiny_models import SPEAKING
from tests.transcribing.test_mel import wav_bytes
from tests.transcribing.test_windows import noise, write_babbler

if TYPE_CHECKING:
    from collections.abc import Callable

FORMATS = ["txt", "srt", "vtt", "tsv", "json"]
COMMAND = [sys.executable, "-m", "fastwhisper", "transcribe"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a one-layer model that says words."""
    return write_babbler(tmp_path_factory.mktemp("babbler") / "model", multilingual=False)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a recording of four seconds."""
    path = tmp_path_factory.mktemp("audio") / "short.wav"
    path.write_bytes(wav_bytes(noise(4)))
    return path


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a recording of three windows."""
    path = tmp_path_factory.mktemp("audio") / "long.wav"
    path.write_bytes(wav_bytes(noise(65)))
    return path


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files go to the working directory unless told otherwise."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def run(*arguments: object) -> int:
    """Run the command in this process; give its exit status."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def transcribe_with(model: Path, *arguments: object) -> int:
    """Run `fastwhisper transcribe` greedily, with a model that says little."""
    return run("transcribe", "--model", model, "--temperature", "0", *arguments)


def listed() -> list[str]:
    """List the working directory."""
    return sorted(path.name for path in Path().iterdir())


# Files


@pytest.fixture(scope="module")
def upstreams(model: Path, short: Path) -> dict[bool, dict[str, Any]]:
    """Give the results of mlx_whisper, put right, by whether they have words."""
    samples = load_audio(short)
    return {
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
    assert (
        transcribe_with(model, *flags, "--initial-prompt", "Names", "-f", "all", "-o", ours, short)
        == 0
    )

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
    assert transcribe_with(model, "-f", "txt", "gone.wav", short, noise_file, short) == 1
    out, err = capsys.readouterr()
    assert err.count("ready in") == 1
    lines = err.splitlines()
    assert len(lines) == 3
    assert "'gone.wav'" in lines[1]
    assert "no such file" in lines[1]
    assert str(noise_file) in lines[2]
    assert listed() == ["short.txt"]
    assert out[: len(out) // 2] * 2 == out


def test_files_that_cannot_be_written_are_an_error(
    model: Path, short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is a file is named, without a traceback."""
    (tmp_path / "file").touch()
    assert transcribe_with(model, "-o", tmp_path / "file", short) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err.splitlines()[-1]


# While it is decoded


def at_each_window(monkeypatch: pytest.MonkeyPatch, function: Callable[[int], object]) -> list[int]:
    """Call a function before each window is decoded, with how many there were."""
    windows: list[int] = []
    real = WindowDecoder.encode

    def encode(decoder: WindowDecoder, start_frame: int, frames: int) -> Any:
        function(len(windows))
        windows.append(start_frame)
        return real(decoder, start_frame, frames)

    monkeypatch.setattr(WindowDecoder, "encode", encode)
    return windows


def test_text_appears_while_it_is_decoded(
    model: Path, long: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a window is decoded, the lines of those before it have been printed."""
    shown: list[int] = []

    def look(window: int) -> None:
        shown.append(len(capsys.readouterr().out.splitlines()))
        if window == 2:
            raise AudioError("long.wav", "enough")

    at_each_window(monkeypatch, look)
    assert transcribe_with(model, long) == 1
    assert shown[0] == 0
    assert all(shown[1:])
    assert len(shown) == 3


def test_an_interrupt_keeps_what_was_heard(
    model: Path,
    long: Path,
    short: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C in the second window: exit 130, the first one's text is in the file, no more files."""

    def interrupt(window: int) -> None:
        if window == 1:
            os.kill(os.getpid(), signal.SIGINT)
            while True:
                threads.check()

    windows = at_each_window(monkeypatch, interrupt)
    assert transcribe_with(model, "-f", "txt", long, short) == 130
    out, err = capsys.readouterr()
    assert windows == [0]
    assert Path("long.txt").read_text(encoding="utf-8") == out != ""
    assert listed() == ["long.txt"]
    assert len(err.splitlines()) == 1


def test_bars_on_a_terminal_and_text_in_a_pipe(model: Path, short: Path) -> None:
    """Stderr is a terminal: bars of the load and of the audio; stdout is a pipe: plain text."""
    terminal, its_end = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "--model", str(model), "--temperature", "0", "-", str(short)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=its_end,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
    ) as process:
        os.close(its_end)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(short.read_bytes())
        process.stdin.close()
        seen = b"".join(iter(partial(_read_terminal, terminal), b""))
        text = process.stdout.read()
    os.close(terminal)
    assert process.returncode == 0
    assert b"\x1b" not in text
    assert text[: len(text) // 2] * 2 == text
    shown = seen.decode()
    assert "\x1b[" in shown
    assert short.name in shown
    assert re.search(r"read\b.*%", shown)
    assert "ready in" in shown


def _read_terminal(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError as error:
        if error.errno != errno.EIO:  # Linux's end of a terminal whose other end is closed
            raise
        return b""


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


# Flags


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "required: AUDIO"),
        (["a.wav", "--beam-size", "5"], "unrecognized arguments: --beam-size"),
        (["a.wav", "--output-format", "docx"], "invalid choice: 'docx'"),
        (["a.wav", "--task", "sing"], "invalid choice: 'sing'"),
        (["a.wav", "--quant", "int3"], "invalid choice: 'int3'"),
        (["a.wav", "--word-timestamps", "yes"], "'yes': give True or False"),
        (["a.wav", "--best-of", "many"], "invalid"),
        (["a.wav", "--language", "klingon"], "klingon"),
        (["a.wav", "--temperature", "-1"], "temperature"),
        (["a.wav", "--clip-timestamps", "a,b"], "clip_timestamps='a,b'"),
        (["a.wav", "--max-line-width", "20"], "--max-line-width needs --word-timestamps True"),
        (
            ["a.wav", "--highlight-words", "True", "--word-timestamps", "False"],
            "--highlight-words needs --word-timestamps True",
        ),
        (["a.wav", "b.wav", "--output-name", "c"], "--output-name names the files of one AUDIO"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_flags_are_refused_before_anything_is_opened(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Argparse's own form: the usage, one line, exit 2."""
    assert run("transcribe", "--model", "no/model", *flags) == 2
    err = capsys.readouterr().err
    assert err.startswith("usage: fastwhisper")
    assert message in err.splitlines()[-1]


def test_every_flag_arrives(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flags become the options of `Session.stream`; what isn't given is left to it."""
    given: list[dict[str, Any]] = []

    def stream(_: Session, audio: object, **options: Any) -> None:
        given.append(options)
        raise AudioError(str(audio), "seen enough")

    monkeypatch.setattr(Session, "stream", stream)
    none = {"language": None, "task": "transcribe", "seed": None}
    assert run("transcribe", "--model", model, "a.wav") == 1
    flags = (
        "--language Spanish --task translate --seed 3 --temperature 0.5 --best-of 2 "
        "--length-penalty 0.5 --suppress-tokens=-1,5 --initial-prompt Hello "
        "--condition-on-previous-text False --compression-ratio-threshold None "
        "--logprob-threshold -0.5 --no-speech-threshold 0.1 --word-timestamps True "
        "--prepend-punctuations ( --append-punctuations ) "
        "--hallucination-silence-threshold 2 --clip-timestamps 1,2"
    )
    assert run("transcribe", "--model", model, *flags.split(), "a.wav") == 1
    assert given == [
        none,
        {
            "language": "Spanish",
            "task": "translate",
            "seed": 3,
            "temperature": 0.5,
            "best_of": 2,
            "length_penalty": 0.5,
            "suppress_tokens": "-1,5",
            "initial_prompt": "Hello",
            "condition_on_previous_text": False,
            "compression_ratio_threshold": None,
            "logprob_threshold": -0.5,
            "no_speech_threshold": 0.1,
            "word_timestamps": True,
            "prepend_punctuations": "(",
            "append_punctuations": ")",
            "hallucination_silence_threshold": 2.0,
            "clip_timestamps": "1,2",
        },
    ]


@pytest.mark.parametrize(
    ("flags", "opened"),
    [
        ("", {"model": "large-v3-turbo", "quant": "int4"}),
        ("--model tiny", {"model": "tiny", "quant": "int4"}),
        ("--model tiny --quant int8", {"model": "tiny", "quant": "int8"}),
        ("--model org/name", {"model": "org/name"}),
        ("--fp16 True --model org/name", {"model": "org/name", "dtype": "float16"}),
        ("--fp16 False --model org/name", {"model": "org/name", "dtype": "float32"}),
        ("--model org/name --offline", {"model": "org/name", "offline": True}),
        ("--model org/name --revision v1", {"model": "org/name", "revision": "v1"}),
    ],
)
def test_what_is_opened(
    flags: str, opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of the table are opened at int4; all else as it is, unless told."""
    seen: dict[str, Any] = {}

    def open_session(model: str, *, options: Any, on_progress: object, **more: Any) -> None:
        assert on_progress is None
        seen.update(model=model, **more)
        for name in ("revision", "offline", "dtype"):
            if getattr(options, name):
                seen[name] = getattr(options, name)
        raise ModelNotFoundError(model, "seen enough")

    monkeypatch.setattr(commands, "open_session", open_session)
    assert run("transcribe", *flags.split(), "a.wav") == 1
    assert seen == opened


# The other commands


def test_inspect_describes_a_directory(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same facts as lines and as JSON."""
    assert run("inspect", model, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["path"] == str(model)
    assert facts["precision"] == "float16"
    assert facts["fast_path"] is True
    assert facts["dimensions"]["n_audio_layer"] == 1
    assert run("inspect", model) == 0
    assert f"path: {model}\n" in capsys.readouterr().out


def test_pull_of_a_directory_only_describes_it(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is on disk needs no download."""
    assert run("pull", model, "--json") == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(model)


def test_an_unknown_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is no model is refused by every command that takes one."""
    for command in (["pull"], ["inspect"], ["transcribe", "a.wav", "--model"]):
        assert run(*command, "tinny") == 1
        err = capsys.readouterr().err
        assert err.startswith("fastwhisper: 'tinny' is no model")
        assert len(err.splitlines()) == 1


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
