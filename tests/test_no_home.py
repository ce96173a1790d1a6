"""No home directory, no entry in passwd, a cache that can't be written or looked into."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants

import fastwhisper
from fastwhisper.loading import stages
from fastwhisper.sources import converted
from tests.helpers.nobody import needs_root, run_nobody
from tests.helpers.tiny_models import SPEAKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOAD = """
import sys, anyio, fastwhisper

async def main():
    async with fastwhisper.open(sys.argv[1]) as session:
        print(session.result.source == sys.argv[1])

for backend in ("asyncio", "trio"):
    anyio.run(main, backend=backend)
print(fastwhisper.load_model(sys.argv[1]).dims.n_vocab)
"""
LOADED = f"True\nTrue\n{SPEAKING.n_vocab}\n"

STORE = """
import sys
from fastwhisper import inspect_checkpoint
from fastwhisper.sources import converted

assert converted.store(inspect_checkpoint(sys.argv[1]), (), check=int) is None
"""

COMMANDS = """
import contextlib, sys
from fastwhisper.cli.parser import main

for arguments in (["cache"], ["cache", "--clear"], ["inspect", sys.argv[1]]):
    with contextlib.suppress(SystemExit):
        sys.exit(main(arguments))
"""


@pytest.fixture
def npz(tiny_model_dir: Callable[..., Path]) -> Path:
    """Return a model in a layout that is converted after it was loaded."""
    return tiny_model_dir(layout="weights.npz", dimensions=SPEAKING)


@needs_root
@pytest.mark.trio
def test_loads_without_a_home(npz: Path, tmp_path: Path) -> None:
    """open() on both loops and load_model() need no home, and leave nothing where they run."""
    here = tmp_path / "here"
    here.mkdir()
    done = run_nobody("-c", LOAD, npz, cwd=here)
    assert (done.stdout, done.stderr) == (LOADED, "")
    assert list(here.iterdir()) == []


@needs_root
def test_commands_without_a_home(npz: Path, tmp_path: Path) -> None:
    """`cache` says in one line that there is none; `inspect` describes a model."""
    done = run_nobody("-c", COMMANDS, npz, cwd=tmp_path)
    none, none_to_clear, *described = done.stdout.splitlines()
    assert none == none_to_clear
    assert "no home directory is known" in none
    assert f"source: {npz}" in described
    assert done.stderr == ""


@needs_root
def test_cache_in_a_home_that_is_unknown_is_a_warning(npz: Path, tmp_path: Path) -> None:
    """Who asks for a cache below `~` gets one line, and no directory with that name."""
    here = tmp_path / "here"
    here.mkdir()
    done = run_nobody("-c", STORE, npz, cwd=here, env={"FASTWHISPER_CACHE": "~/cache"})
    (line,) = done.stderr.splitlines()
    assert "no home directory is known; set FASTWHISPER_CACHE" in line
    assert list(here.iterdir()) == []


@needs_root
@pytest.mark.trio
@pytest.mark.parametrize("mode", [0o555, 0o000])
@pytest.mark.parametrize(
    "variable", ["FASTWHISPER_CACHE", pytest.param("HOME", marks=pytest.mark.slow)]
)
def test_loads_with_a_cache_that_can_not_be_used(
    npz: Path, tmp_path: Path, mode: int, variable: str
) -> None:
    """A folder that is read-only, or closed, costs the copy and a line, not the load."""
    folder = tmp_path / "folder"
    folder.mkdir(mode=mode)
    done = run_nobody("-c", LOAD, npz, cwd=tmp_path, env={variable: str(folder)})
    assert done.stdout == LOADED
    assert done.stderr.count("no converted copy") == len(done.stderr.splitlines()) <= 3


def test_cache_directory_that_no_system_allows(npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that is too long holds no copy; it is no reason not to load."""
    monkeypatch.setenv(converted.VARIABLE, "/" + "x" * 5000)
    assert stages.inspect(npz).path == npz


@pytest.mark.anyio
async def test_download_without_a_home_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download needs a place: the error says which variable names one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "~/.cache/huggingface/hub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(OSError, match=r"no home directory is known.*set HF_HOME"):
        await fastwhisper.load("org/name")


def test_snapshot_that_can_not_be_looked_into_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Hugging Face cache that can't be read holds no model: it is offline, and says so."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/" + "x" * 5000)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(fastwhisper.HubUnavailableError, match="not in the cache"):
        fastwhisper.load_model("org/name")
