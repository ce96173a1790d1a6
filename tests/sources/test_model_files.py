"""Files, paths and URLs that are given as models: what they are, and never a request to a Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import fastwhisper
from fastwhisper import ModelNotFoundError
from fastwhisper.sources.table import parse_model
from tests.helpers.command import run_command
from tests.helpers.hub_server import Fault, HubServer
from tests.helpers.tiny_models import SPEAKING, write_model

if TYPE_CHECKING:
    from collections.abc import Callable

GGML = b"lmgg\x65\xca\0\0"
GIVEN = {
    "./nope": "there is no such directory",
    "../nope": "there is no such directory",
    "models/ggml-small.en.bin": "it is a ggml file of whisper.cpp, .* such as 'small.en'",
    "models/ggml-large-v3-turbo-q5_0.bin": "no such directory, and a ggml file .* 'large-v3-turbo'",
    "models/base.PT": "no such directory, and a PyTorch checkpoint .* give a name such as 'base'",
    "models/x.ggml": "no such directory, and a ggml file",
    "models/x.GGUF": "no such directory, and a GGUF file",
    "models/model.safetensors.index.json": "there is no such directory",
    "whisper/weights.safetensors": "give its directory, 'whisper'",
    "whisper/config.json": "give its directory, 'whisper'",
    "models/notes": "it is not a directory: give a name such as 'tiny'",
    "models/dangling": "it is not a directory",
    "models/fifo": "it is not a directory",
    "none/": "there is no such directory",
    "org/none/": "there is no such directory",
    r"C:\models\whisper": "there is no such directory",
    "C:/whisper": "there is no such directory",
    r"models\whisper": "there is no such directory",
    "https://huggingface.co/org/name": "a URL is not opened: give 'org/name'",
    "https://huggingface.co/org/name/tree/main": "a URL is not opened: give 'org/name'",
    "https://example.org/models/tiny.pt": "a URL is not opened: give a name such as 'tiny'",
    "file:///models/whisper": "a URL is not opened: give a name",
}
"""What is given, and what the error says."""


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a directory with a model and some files that are none."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_model(Path("whisper"))
    Path("models").mkdir()
    Path("models", "ggml-small.en.bin").write_bytes(GGML)
    Path("models", "notes").write_text("notes", encoding="utf-8")
    Path("models", "dangling").symlink_to("nowhere")
    os.mkfifo("models/fifo")


@pytest.mark.parametrize("given", GIVEN)
def test_what_is_on_disk_or_like_a_path_is_no_repository(given: str) -> None:
    """The error says what the file is and what to give in its place."""
    with pytest.raises(ModelNotFoundError, match=GIVEN[given]) as caught:
        parse_model(given)
    assert caught.value.model == given


@pytest.mark.anyio
@pytest.mark.parametrize("given", ["./nope", "models/x.ggml", "models/fifo", "C:/whisper"])
async def test_no_request_is_made_for_a_path(server: HubServer, given: str) -> None:
    """open(), load() and load_model() refuse it without a request."""
    with pytest.raises(ModelNotFoundError):
        async with fastwhisper.open(given, background=True):
            pytest.fail("the block must not begin")
    with pytest.raises(ModelNotFoundError):
        await fastwhisper.load(given)
    with pytest.raises(ModelNotFoundError):
        fastwhisper.load_model(given)
    assert server.requests == []


@pytest.mark.parametrize(
    "command",
    [
        ("transcribe", "a.wav", "--model"),
        ("pull",),
        ("inspect",),
        ("quantize",),
    ],
)
@pytest.mark.parametrize("given", ["./nope", "models/ggml-small.en.bin", "models/fifo", "x/y.PT"])
def test_no_command_asks_for_a_path(
    server: HubServer,
    command: tuple[str, ...],
    given: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each command with a model refuses it with one line, without a request."""
    Path("a.wav").touch()
    more = ("--out", "out") if command == ("quantize",) else ()
    assert run_command(*command, given, *more) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert repr(given) in line
    assert server.requests == []


def test_missing_repository_may_have_been_meant_for_a_directory(server: HubServer) -> None:
    """The error for a repository that is nowhere says that no directory has this name either."""
    with pytest.raises(ModelNotFoundError, match="no such directory here, and the Hub has no such"):
        fastwhisper.load_model("models/whisper-tiny")
    assert server.requests


@pytest.mark.parametrize("kind", [str, Path])
def test_a_directory_is_opened_without_the_hub(
    server: HubServer, kind: Callable[[Path], str | Path]
) -> None:
    """A directory of the form `x/y` is local."""
    server.fail(Fault("/", 500))
    write_model(Path("org", "name"), dimensions=SPEAKING)
    assert fastwhisper.load_model(kind(Path("org", "name"))).dims.n_vocab == SPEAKING.n_vocab
    assert server.requests == []
