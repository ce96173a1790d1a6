"""`fastwhisper doctor`: its sections, its verdict, and what it does not show."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import socket
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from huggingface_hub import constants

from fastwhisper.cli import machine, model_check
from fastwhisper.cli.page import Page
from fastwhisper.cli.privacy import build_filter
from fastwhisper.engine import backend, pages
from fastwhisper.sources.table import resolve_repo
from tests.helpers.command import run_command as run
from tests.helpers.interpreter import run_python
from tests.helpers.nobody import needs_root, run_nobody
from tests.helpers.pages import pretend_metal
from tests.helpers.tiny_models import write_babbler

if TYPE_CHECKING:
    import mlx.core as mx

    from tests.helpers.command import AtEachWindow

COMMAND = ("-m", "fastwhisper", "doctor")
COMMIT = "0" * 40
FIRST_HALF = ["versions", "system", "backend", "caches", "models"]
TOKEN = "hf_AbCdEfGhIjKlMnOpQr"


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty Hugging Face cache; the extra `tiny` is not installed, and nothing maps."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(backend, "may_map", lambda: False)
    monkeypatch.setattr("fastwhisper.sources.find._TINY_PACKAGE", "no_such_package")
    return folder


def put(hub: Path, source: Path, name: str, quant: str = "float16") -> Path:
    """Put a model into the Hugging Face cache, as if it was downloaded; return its directory."""
    folder = hub / ("models--" + resolve_repo(name, quant).replace("/", "--"))
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "blobs").mkdir()
    (folder / "blobs" / "x").write_bytes(bytes(1000))
    return shutil.copytree(source, folder / "snapshots" / COMMIT)


def read_page(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any]:
    """Run `fastwhisper doctor --json`; return its status and the page. Stderr must be empty."""
    status = run("doctor", "--json", *arguments)
    out, err = capsys.readouterr()
    assert err == ""
    return status, json.loads(out)


def accept_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the text of a model of random weights for right."""
    monkeypatch.setattr(model_check, "MAX_WRONG_WORDS", 1000)


# Sections


def test_without_a_model_the_page_says_how_to_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    """The first half is printed, and the status is 0."""
    assert run("doctor") == 0
    out, err = capsys.readouterr()
    assert err == ""
    titles = [line for line in out.splitlines() if line and not line.startswith(" ")]
    assert titles == [*FIRST_HALF, "verdict"]
    assert "to check a model, download one: fastwhisper pull tiny.en" in out


def test_first_half_names_versions_and_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """Versions, backend, pages, cores, memory, BLAS and caches are all there."""
    status, page = read_page(capsys)
    assert status == 0
    versions = {"python", "fastwhisper", "mlx", "numpy", "av", "anyio", "trio"}
    assert versions | {"huggingface_hub", "safetensors"} <= set(page["versions"])
    system = {"platform", "cores", "memory_bytes", "memory_limit_bytes", "page_bytes", "huge_pages"}
    assert system <= set(page["system"])
    assert {"device", "device_name", "dtype", "blas"} <= set(page["backend"])
    assert page["caches"] == {
        "converted_folder": os.environ["FASTWHISPER_CACHE"],
        "converted_copies": 0,
        "converted_bytes": 0,
        "hub_folder": constants.HF_HUB_CACHE,
        "hub_bytes": 0,
    }
    assert page["verdict"] == {"failures": []}


def test_a_package_that_is_missing_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """trio, for example, is optional."""
    monkeypatch.setattr(machine, "_PACKAGES", ("fastwhisper", "no-such-package"))
    facts: dict[str, Any] = {}
    machine.describe_versions(facts)
    assert facts["no-such-package"] == "not installed"


def test_smallest_model_is_checked(
    model: Path,
    hub: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Models are listed; the smallest is opened, timed against MLX, and transcribed with."""
    accept_any_text(monkeypatch)
    put(hub, write_babbler(tmp_path / "larger", multilingual=True), "tiny.en")
    put(hub, model, "base.en")
    status, page = read_page(capsys)
    assert status == 0
    assert [line["model"] for line in page["models"]["found"]] == ["base.en", "tiny.en"]
    assert page["caches"]["hub_bytes"] == 2000
    text = page["text"]
    assert (text["model"], text["precision"]) == ("base.en", "float16")
    assert {"ready_s", "first_window_s", "second_window_s", "tokens_per_s"} <= set(text)
    assert {"locate", "inspect", "read", "build"} <= {span["name"] for span in text["spans"]}
    assert text["text"]
    assert page["ready"]["mlx_load_s"] > 0
    assert page["ready"]["ready_s"] > 0
    assert "precisions" not in page


def quantize_aligned(model: Path) -> Path:
    """Return an int8 model, whose packed weights are not cast on a CPU either."""
    assert run("quantize", model, "--quant", "int8", "--out", "int8") == 0
    return Path("int8")


def test_mapped_tensors_are_compared_with_those_that_are_read(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a Mac only; it says how many bytes were mapped."""
    accept_any_text(monkeypatch)
    directory = quantize_aligned(model)
    pretend_metal(monkeypatch)
    capsys.readouterr()
    status, page = read_page(capsys, "--model", directory)
    assert status == 0
    mapped = page["mapped"]
    assert mapped["mapped_bytes"] > 0
    assert mapped["mapped_bytes"] + mapped["read_bytes"] == page["text"]["size_bytes"]
    assert mapped["maps"] == "yes"
    assert mapped["tensors"] == page["text"]["tensors"]


def test_mapped_tensor_that_differs_is_a_failure(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named, and the advice is to read."""
    accept_any_text(monkeypatch)
    directory = quantize_aligned(model)
    wrap = pretend_metal(monkeypatch).wrap

    def spoil(memory: memoryview) -> mx.array:
        array = wrap(memory)
        array[len(memory) // 2] ^= 1
        return array

    monkeypatch.setattr(pages, "wrap", spoil)
    capsys.readouterr()
    status, page = read_page(capsys, "--model", directory)
    assert status == 1
    assert re.search(
        r"^mapped: \d+ mapped tensors differ from the file, such as (en|de)coder\..*weight: do not",
        page["verdict"]["failures"][0],
    )


def test_precisions_of_one_model_are_compared(
    model: Path,
    tmp_path: Path,
    hub: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """int8 is checked, since it is smaller, and then compared with float16."""
    accept_any_text(monkeypatch)
    put(hub, model, "tiny.en")
    assert run("quantize", model, "--quant", "int8", "--out", "int8") == 0
    put(hub, Path("int8"), "tiny.en", "int8")
    capsys.readouterr()
    status, page = read_page(capsys)
    assert status == 0
    assert page["text"]["precision"] == "int8"
    lines = page["precisions"]["compared"]
    assert [line["precision"] for line in lines] == ["int8", "float16"]
    assert lines[1]["unlike_float16"] == 0
    status, page = read_page(capsys, "--quant", "float16")
    assert page["text"]["precision"] == "float16"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (model_check.SENTENCE, 0),
        (f" {model_check.SENTENCE.upper()} ".replace(".", "!"), 0),
        ("", 25),
        (model_check.SENTENCE.replace("weather", "whether"), 1),
        (model_check.SENTENCE.replace("Good morning. ", ""), 2),
        (f"{model_check.SENTENCE} In the south.", 3),
    ],
)
def test_wrong_words(text: str, wrong: int) -> None:
    """Words that are replaced, left out or added count; case and punctuation do not."""
    assert model_check.count_other_words(text) == wrong


def test_page_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Each fact is a line with its unit; each item of a list too."""

    async def fill(facts: machine.Facts) -> None:
        facts |= {"total_bytes": 3 << 29, "small_bytes": 12, "ready_s": 0.12345, "tokens_per_s": 9}
        facts |= {"spans": [{"name": "read", "end_s": 2.0}, {"name": "apply", "end_s": 3}], "a": []}

    page = Page(as_json=False)
    anyio.run(page.fill, "load", fill)
    assert capsys.readouterr().out.splitlines() == [
        "load",
        "  total               1.5 GiB",
        "  small               12 bytes",
        "  ready               0.123 s",
        "  tokens              9.0 a second",
        "  spans               read, end 2.000 s",
        "                      apply, end 3.000 s",
        "  a                   none",
        "",
    ]


def test_warnings_are_on_the_page(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each warning is there once, and not on stderr."""

    def find_models(facts: machine.Facts) -> list[machine.LocalModel]:
        warnings.warn("beware", UserWarning, stacklevel=1)
        for _ in range(2):
            logging.getLogger("fastwhisper").warning("slow on %s", facts)
        return []

    monkeypatch.setattr(machine, "find_models", find_models)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        status, page = read_page(capsys)
    assert status == 0
    assert page["warnings"]["given"] == ["beware", "slow on {}"]


# Failures


def test_wrong_text_is_a_failure(
    model: Path, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of random weights says other words: status 1, a line, and the next section."""
    put(hub, model, "tiny.en")
    status, page = read_page(capsys)
    assert status == 1
    assert page["text"]["failure"].startswith("the text is wrong in ")
    assert page["ready"]["ready_s"] > 0
    assert page["verdict"]["failures"] == [f"text: {page['text']['failure']}"]


def test_load_that_fails_is_a_line(
    model: Path, hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is known before it is on the page; no traceback."""
    snapshot = put(hub, model, "tiny.en")
    (snapshot / "config.json").write_text("{}")
    status, page = read_page(capsys)
    assert status == 1
    assert page["models"]["found"] == []
    assert page["models"]["broken"][0].startswith("tiny.en at float16: ")
    assert list(page) == [*FIRST_HALF, "verdict"]


def test_every_section_survives_the_others(
    model: Path,
    hub: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each section that fails is a line, and all sections are there."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of order")

    put(hub, model, "tiny.en")
    for place in (
        "cli.machine.version",
        "cli.machine.platform.platform",
        "cli.machine.backend.import_mlx",
        "sources.converted.find_root",
        "cli.model_check.open_session",
    ):
        monkeypatch.setattr(f"fastwhisper.{place}", fail)
    monkeypatch.setattr(machine, "find_models", lambda _: [])
    status, page = read_page(capsys, "--model", model)
    assert status == 1
    assert list(page) == [*FIRST_HALF, "text", "ready", "verdict"]
    line = "RuntimeError: out of order"
    failed = [title for title, facts in page.items() if facts.get("failure") == line]
    assert failed == ["versions", "system", "backend", "caches", "text", "ready"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--model", "tiny"], "tiny is not on this machine: fastwhisper pull tiny"),
        (
            ["--model", "tiny", "--quant", "int4"],
            "tiny is not on this machine at int4: fastwhisper pull tiny --quant int4",
        ),
        (["--model", "org/name"], "org/name is not on this machine: fastwhisper pull org/name"),
        (
            ["--quant", "int8"],
            "no model is on this machine at int8: fastwhisper pull tiny.en --quant int8",
        ),
    ],
)
def test_model_that_is_not_here_is_a_failure(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was asked for can't be checked; nothing is downloaded."""
    status, page = read_page(capsys, *arguments)
    assert status == 1
    assert page["models"]["failure"] == line


def test_unknown_model_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """As by the other commands, with the nearest name."""
    assert run("doctor", "--model", "tinny") == 1
    assert capsys.readouterr() == ("", "fastwhisper: unknown model 'tinny'; did you mean 'tiny'?\n")


def test_precision_that_a_directory_does_not_have(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--quant` is not ignored for a directory."""
    status, page = read_page(capsys, "--model", model, "--quant", "int8")
    assert status == 1
    assert page["text"]["failure"].startswith("QuantizedModelNotAvailableError: ")


# Private things


def test_page_shows_nothing_private(model: Path, tmp_path: Path) -> None:
    """A hostile HOME, with everything below it; names and tokens in the environment."""
    home = tmp_path / "Users" / "ann (x)+[y]\x1b[2J"
    shutil.copytree(model, home / "models" / "mine")
    secrets = {
        "HOME": f"{home}/",
        "HF_HOME": str(home / "hf" / TOKEN),
        "HF_HUB_CACHE": str(home / "hf" / TOKEN),
        "FASTWHISPER_CACHE": str(home / "cache of anna.b"),
        "HF_TOKEN": TOKEN,
        "MY_API_KEY": "open-sesame",
        "USER": "anna.b",
        "HOSTNAME": "annas-laptop.example.com",
    }
    for flags in ([], ["--json"]):
        done = run_python(
            *COMMAND, "--model", home / "models" / "mine", *flags, env=secrets, status=1
        )
        shown = done.stdout + done.stderr
        assert "~/models/mine" in shown
        assert "~/cache of <user>" in shown
        assert "Traceback" not in shown
        for secret in (str(home), "ann (x)", "anna", TOKEN, "open-sesame", "laptop", "\x1b"):
            assert secret not in shown
        if socket.gethostname() not in {"", "localhost"}:
            assert socket.gethostname() not in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ann/x", "~/x"),
        ("'/home/ann'", "'~'"),
        ("/home/anna/x", "/home/<user>/x"),
        ("/data/home/ann-old", "/data/home/<user>"),
        ("/mnt/ann-disk/Ann", "/mnt/<user>-disk/<user>"),
        ("annotated at box7.lan, box7", "annotated at <host>, <host>"),
        ("https://ann:pw@hub.lan/x?hf_abcdefgh1", "https://hub.lan/x?<token>"),
        ("mlx-community/whisper-tiny", "mlx-community/whisper-tiny"),
        ("a\x1b[2J\n", r"a\x1b[2J\n"),
    ],
)
def test_filter(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Homes, users, hosts, tokens and control characters; parts of words stay."""
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("USER", "ann")
    monkeypatch.setenv("HOSTNAME", "box7.lan")
    assert build_filter()(text) == shown


def test_filter_knows_a_home_as_messages_quote_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A home with control characters is hidden where it is written with escapes too."""
    monkeypatch.setenv("HOME", "/x/a\x1b'b")
    path = "/x/a\x1b'b/c"
    assert build_filter()(f"{path} {path!r}") == '~/c "~/c"'


@pytest.mark.parametrize("home", ["/", "", ".", "relative", "//", "~"])
def test_filter_with_a_home_that_is_none(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths stay whole where the home is the root, or no directory."""
    monkeypatch.setenv("HOME", home)
    assert build_filter()("/opt/x/y.z ~/a ./b") == "/opt/x/y.z ~/a ./b"


# Where it runs


@needs_root
def test_runs_without_a_home(model: Path, tmp_path: Path) -> None:
    """A container's user without an entry in passwd gets a page, and nothing is left behind."""
    here = tmp_path / "here too"
    here.mkdir()
    done = run_nobody(*COMMAND, "--model", model, cwd=here)
    assert done.returncode == 1
    assert done.stderr == ""
    assert "no home directory is known; set FASTWHISPER_CACHE" in done.stdout
    assert "no home directory is known; set HF_HOME" in done.stdout
    assert "the text is wrong" in done.stdout
    assert list(here.iterdir()) == []


def test_closed_stdout_is_no_crash(model: Path) -> None:
    """`>&-` and `2>&-`: the status tells."""
    code = (
        "import os, sys; os.close(1); os.close(2)\n"
        "from fastwhisper.cli.parser import main\n"
        "main(['doctor', '--model', sys.argv[1]])"
    )
    assert run_python("-c", code, model, status=1).stdout == ""


def test_interrupt_ends_the_page(
    model: Path, capsys: pytest.CaptureFixture[str], at_each_window: AtEachWindow
) -> None:
    """Ctrl-C in a window: status 130, and the sections before it are printed."""
    at_each_window(lambda _: os.kill(os.getpid(), signal.SIGINT))
    assert run("doctor", "--model", model) == 130
    out, err = capsys.readouterr()
    titles = [line for line in out.splitlines() if line and not line.startswith(" ")]
    assert titles == FIRST_HALF
    assert err == ""


# Real weights


@pytest.mark.slow
def test_real_model_says_the_sentence(
    tiny_en_ct2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """tiny.en has every word right; its converted copy is timed against MLX."""
    status, page = read_page(capsys, "--model", tiny_en_ct2)
    assert status == 0
    assert page["text"]["wrong_words"] == 0
    assert page["ready"]["mlx_load_s"] > 0
    assert page["verdict"] == {"failures": []}
