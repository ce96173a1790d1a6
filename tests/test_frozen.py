"""Programs frozen by PyInstaller: with the hook they work, without MLX's files they say so."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import fastwhisper
from fastwhisper import BackendMissingError
from fastwhisper.engine import backend
from fastwhisper.loading import stages
from tests.helpers.audio import noise, wav_bytes
from tests.helpers.tiny_models import SPEAKING, write_babbler

if TYPE_CHECKING:
    from collections.abc import Callable

HINT = "pyinstaller --collect-all mlx --collect-all fastwhisper"


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let this process look frozen; return the directory of its files, which is empty."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "_MEIPASS", str(tmp_path), raising=False)
    return tmp_path


def test_mlx_that_can_not_be_imported(frozen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error says that the program is frozen, and how to freeze it; no extra is advised."""
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    with pytest.raises(BackendMissingError, match="frozen without files of MLX") as caught:
        backend.import_mlx()
    assert HINT in str(caught.value)
    assert "pip install" not in str(caught.value)


def test_metals_kernels_that_are_missing(frozen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Mac their file must be somewhere in the program; elsewhere there is none."""
    check = backend._check_kernels.__wrapped__
    check()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(BackendMissingError, match=r"without mlx\.metallib"):
        check()
    (frozen / "mlx" / "lib").mkdir(parents=True)
    (frozen / "mlx" / "lib" / "mlx.metallib").touch()
    check()


def test_module_that_is_missing(frozen: Path) -> None:
    """A module that is imported by name, which a freezer may not find, is named."""
    with pytest.raises(BackendMissingError, match=r"without the module fastwhisper\.none"):
        backend.import_computing("fastwhisper.none")


def test_module_that_is_missing_in_no_frozen_program() -> None:
    """Anywhere else that is a fault of ours."""
    with pytest.raises(ModuleNotFoundError):
        backend.import_computing("fastwhisper.none")


@pytest.mark.anyio
@pytest.mark.parametrize("is_frozen", [False, True])
async def test_data_files_that_are_missing(
    tiny_model_dir: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_frozen: bool,
) -> None:
    """open() refuses on entering, in both modes, and names the files; load() does so too."""
    model = tiny_model_dir(dimensions=SPEAKING)
    monkeypatch.setattr(sys, "frozen", is_frozen, raising=False)
    monkeypatch.setattr(stages, "_PACKAGE", tmp_path)
    for background in (False, True):
        with pytest.raises(BackendMissingError, match=r"multilingual\.tiktoken") as caught:
            async with fastwhisper.open(model, background=background):
                pytest.fail("the block must not begin")
        assert (HINT in str(caught.value)) == is_frozen
    with pytest.raises(BackendMissingError, match="silero"):
        await fastwhisper.load(model)


def test_every_data_file_is_checked() -> None:
    """No file of data is left out, but those of `quantize`, which reads them itself."""
    package = Path(fastwhisper.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.glob("*/data/*")
        if path.suffix in {".npz", ".tiktoken"}
    }
    assert found == set(stages._DATA)


def test_pyinstaller_finds_the_hook() -> None:
    """The package's entry point names a directory with the hook in it."""
    entries = entry_points(group="pyinstaller40", name="hook-dirs")
    (entry,) = (entry for entry in entries if entry.module.startswith("fastwhisper."))
    (directory,) = entry.load()()
    assert (Path(directory) / "hook-fastwhisper.py").is_file()


@pytest.mark.slow
def test_a_frozen_program_transcribes(tmp_path: Path) -> None:
    """PyInstaller needs no flag. What is taken away is named, in one line without a traceback."""
    pytest.importorskip("PyInstaller", reason="opt-in: pip install pyinstaller")
    model = write_babbler(tmp_path / "model", multilingual=False)
    audio = tmp_path / "audio.wav"
    audio.write_bytes(wav_bytes(noise(2)))
    program = tmp_path / "program.py"
    program.write_text("from fastwhisper.cli.parser import main\nmain()\n", encoding="utf-8")
    freeze = [sys.executable, "-m", "PyInstaller", "--log-level", "ERROR", str(program)]
    subprocess.run(freeze, cwd=tmp_path, check=True)
    files = tmp_path / "dist" / "program" / "_internal"
    command = [str(tmp_path / "dist" / "program" / "program"), "transcribe", str(audio)]
    command += ["--model", str(model)]

    def run(status: int) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        return done

    assert run(0).stdout.strip()
    shutil.move(files / "fastwhisper", files / "away")
    assert HINT in run(1).stderr.splitlines()[-1]
    shutil.move(files / "away", files / "fastwhisper")
    for library in files.rglob("libmlx*"):
        library.unlink()
    (line,) = run(1).stderr.splitlines()
    assert "frozen without files of MLX" in line
    assert HINT in line
