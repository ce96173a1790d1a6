"""What can be typed: help, version, wrong options, and what options become."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import mlx_whisper.cli
import pytest

from fastwhisper.cli import commands, parser
from fastwhisper.errors import AudioError, ModelNotFoundError
from fastwhisper.session import Session
from fastwhisper.sources import table
from fastwhisper.values import WhisperModel
from fastwhisper.whisper.options import DecodeSettings
from tests.helpers.command import run_command as run
from tests.helpers.interpreter import run_python

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

GROUPS = {
    "transcribe": ["model:", "text:", "times:", "output:"],
    "listen": ["model:", "text:", "output:"],
    "pull": ["model:", "output:"],
    "inspect": ["model:", "output:"],
    "quantize": ["model:", "output:"],
    "cache": [],
    "doctor": ["model:", "output:"],
}


# Help


@pytest.mark.parametrize("command", GROUPS)
def test_help_is_grouped(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options stand under the heading of what they are about, and none defaults to "None"."""
    monkeypatch.setenv("COLUMNS", "80")
    assert run(command, "--help") == 0
    out = capsys.readouterr().out
    headings = re.findall(r"^[a-z ]+:$", out, re.MULTILINE)
    assert [name for name in headings if name not in {"options:", "positional arguments:"}] == (
        GROUPS[command]
    )
    assert "None" not in out


def list_options() -> list[argparse.Action]:
    """List the options of all commands."""
    actions = parser._build_parser()._actions
    (choices,) = (action.choices for action in actions if isinstance(action.choices, dict))
    assert set(choices) == set(GROUPS)
    return [action for command in choices.values() for action in command._actions]


def test_help_names_every_default() -> None:
    """An option with a value that need not be given says what it is otherwise."""
    for action in list_options():
        if action.option_strings and action.nargs != 0 and not action.required:
            assert "(default: " in str(action.help), action.option_strings


@pytest.mark.parametrize(
    "name",
    [
        "condition_on_previous_text",
        "compression_ratio_threshold",
        "logprob_threshold",
        "no_speech_threshold",
        "word_timestamps",
        "task",
        "batch_size",
        "vad_filter",
    ],
)
def test_help_gives_the_defaults_of_decoding(name: str) -> None:
    """A default that help shows is the one that decoding has."""
    default = getattr(DecodeSettings(), name)
    actions = [action for action in list_options() if action.dest == name]
    assert actions
    for action in actions:
        shown = re.search(r"\(default: (.*)\)", str(action.help))
        assert shown is not None
        assert (float(shown[1]) if isinstance(default, float) else shown[1]) == (
            default if isinstance(default, float) else str(default)
        )


def test_help_imports_nothing_that_opens_a_model() -> None:
    """`fastwhisper --help` is cheap: no event loop, no array, no network."""
    done = run_python(
        "-c",
        "import sys\n"
        "from fastwhisper.cli.parser import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'anyio', 'av', 'huggingface_hub', 'importlib.metadata', 'mlx', 'numpy', 'rich'}\n"
        "print(heavy & set(sys.modules))",
    )
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The name and the installed version, on stdout."""
    assert run(option) == 0
    assert capsys.readouterr().out == f"fastwhisper {version('fastwhisper')}\n"


# Options


@pytest.mark.parametrize(
    ("command", "meant"),
    [("transcrib", "transcribe"), ("quantise", "quantize"), ("Pull", "pull"), ("caches", "cache")],
)
def test_wrong_command_is_refused_with_the_nearest(
    command: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong command is refused with the nearest one, exit 2."""
    assert run(command) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"unknown command {command!r}; did you mean {meant!r}?" in message


def test_command_that_is_like_none_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a similar command, the message lists all of them."""
    assert run("xyz") == 2
    assert capsys.readouterr().err.endswith(
        "unknown command 'xyz'; "
        "choose from transcribe, listen, pull, inspect, quantize, cache, doctor\n"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "required: AUDIO"),
        (["a.wav", "--beam-size", "5"], "unrecognized arguments: --beam-size"),
        (
            ["a.wav", "--output-format", "docx"],
            "unknown value 'docx'; choose from txt, srt, vtt, tsv, json, all",
        ),
        (["a.wav", "--task", "sing"], "unknown value 'sing'; choose from transcribe, translate"),
        (["a.wav", "--quant", "int3"], "unknown value 'int3'; did you mean 'int8'?"),
        (["a.wav", "--word-timestamps", "yes"], "unknown value 'yes'; give True or False"),
        (["a.wav", "--best-of", "many"], "invalid"),
        (["a.wav", "--language", "klingon"], "unknown language 'klingon'"),
        (["a.wav", "--language", "Germn"], "unknown language 'Germn'; did you mean 'german'?"),
        (["a.wav", "--languages", "en,Germn"], "unknown language 'Germn'; did you mean 'german'?"),
        (["a.wav", "--languages", ""], "unknown language ''"),
        (["a.wav", "--languages", "en,de", "--language", "en"], "are both given"),
        (["a.wav", "--carry-initial-prompt", "yes"], "unknown value 'yes'; give True or False"),
        (["a.wav", "--batch-size", "0"], "batch_size=0 is out of range"),
        (["a.wav", "--batch-size", "two"], "invalid int value: 'two'"),
        (["a.wav", "--vad-filter", "yes"], "unknown value 'yes'; give True or False"),
        (
            ["a.wav", "--clip-timestamps", "5,9,1,2"],
            "clip_timestamps='5,9,1,2' go back in time",
        ),
        (["a.wav", "--output-format", "jason"], "did you mean 'json'?"),
        (["a.wav", "--task", "translte"], "did you mean 'translate'?"),
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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "tiny.en", "--language", "es"], "knows English only, not spanish"),
        (["--model", "whisper-tiny.en", "--task", "translate"], "knows English only"),
        (["--model", "small", "--language", "yue"], "does not know cantonese"),
        (["--model", "turbo", "--initial-prompt", "<|notimestamps|>"], "special token"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_a_named_model_can_not_do_is_refused_before_it_is_opened(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name of the table says enough; the model need not be on this machine."""
    assert run("transcribe", "a.wav", *flags) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_names_of_the_table_say_how_many_tokens_there_are() -> None:
    """An English model has one token less, and large-v3 knows Cantonese."""
    counts = {str(model): table.count_tokens(model) for model in WhisperModel}
    assert counts["tiny.en"] == counts["medium.en"] == 51864
    assert counts["tiny"] == counts["medium"] == 51865
    assert counts["large-v3"] == counts["large-v3-turbo"] == 51866


def list_upstreams() -> list[argparse.Action]:
    """List the options of mlx_whisper's command."""
    return [action for action in mlx_whisper.cli.build_parser()._actions if action.dest != "help"]


def test_every_flag_of_mlx_whispers_command_is_there() -> None:
    """Each of its flags is taken, in each spelling, with each of its choices."""
    ours = parser._build_parser()
    for action in list_upstreams():
        for flag in action.option_strings:
            values = list(action.choices or ()) or ["True" if action.type is None else "1"]
            if isinstance(action.default, bool):
                values = ["True", "False"]
            for value in values:
                given = ours.parse_args(["transcribe", "a.wav", f"{flag}={value}"])
                assert hasattr(given, action.dest), flag


def test_patience_has_no_effect_and_says_so(
    model: Path, short: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It belongs to beam search, which mlx_whisper does not have either."""
    flags = ("--model", model, "--temperature", "0", short)
    assert run("transcribe", *flags) == 0
    text = capsys.readouterr().out
    assert run("transcribe", "--patience", "2.0", *flags) == 0
    out, err = capsys.readouterr()
    assert out == text
    assert err.splitlines()[0] == "fastwhisper: --patience has no effect: there is no beam search"


def test_every_flag_arrives(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flags become the options of `Session.stream`; what isn't given is left to it."""
    given: list[dict[str, Any]] = []

    def stream(_: Session, audio: object, *, on_progress: object, **options: Any) -> None:
        assert on_progress is None  # stderr is no terminal
        given.append(options)
        raise AudioError(str(audio), "seen enough")

    monkeypatch.setattr(Session, "stream", stream)
    none = {"language": None, "task": "transcribe"}
    assert run("transcribe", "--model", model, "a.wav") == 1
    flags = (
        "--language Spanish --task translate --seed 3 --temperature 0.5 --best-of 2 "
        "--length-penalty 0.5 --suppress-tokens=-1,5 --initial-prompt Hello "
        "--carry-initial-prompt True "
        "--condition-on-previous-text False --compression-ratio-threshold None "
        "--logprob-threshold -0.5 --no-speech-threshold 0.1 --word-timestamps True "
        "--prepend-punctuations ( --append-punctuations ) "
        "--hallucination-silence-threshold 2 --clip-timestamps 1,2 "
        "--batch-size 8 --vad-filter True"
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
            "carry_initial_prompt": True,
            "condition_on_previous_text": False,
            "compression_ratio_threshold": None,
            "logprob_threshold": -0.5,
            "no_speech_threshold": 0.1,
            "word_timestamps": True,
            "prepend_punctuations": "(",
            "append_punctuations": ")",
            "hallucination_silence_threshold": 2.0,
            "clip_timestamps": "1,2",
            "batch_size": 8,
            "vad_filter": True,
        },
    ]
    given.clear()
    assert run("transcribe", "--model", model, "--languages", "en, German", "a.wav") == 1
    assert given == [{**none, "languages": "en, German"}]


@pytest.mark.parametrize(
    ("flags", "opened"),
    [
        ("", {"model": "large-v3-turbo", "quant": "int4"}),
        ("--model tiny", {"model": "tiny", "quant": "int4"}),
        ("--model Turbo", {"model": "Turbo", "quant": "int4"}),
        ("--model tiny --quant int8", {"model": "tiny", "quant": "int8"}),
        ("--model org/name", {"model": "org/name"}),
        ("--fp16 True --model org/name", {"model": "org/name", "dtype": "float16"}),
        ("--fp16 False --model org/name", {"model": "org/name", "dtype": "float32"}),
        ("--model org/name --offline", {"model": "org/name", "offline": True}),
        ("--model org/name --memory-map", {"model": "org/name", "memory_map": True}),
        ("--model org/name --revision v1", {"model": "org/name", "revision": "v1"}),
    ],
)
def test_what_is_opened(
    flags: str, opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of the table are opened at int4, all else as it is, unless a precision is given."""
    seen: dict[str, Any] = {}

    def open_session(model: str, *, options: Any, on_progress: object, **more: Any) -> None:
        assert on_progress is None
        seen.update(model=model, **more)
        for name in ("revision", "offline", "dtype", "memory_map"):
            if getattr(options, name):
                seen[name] = getattr(options, name)
        raise ModelNotFoundError(model, "seen enough")

    monkeypatch.setattr(commands, "open_session", open_session)
    assert run("transcribe", *flags.split(), "a.wav") == 1
    assert seen == opened
