"""blas.py: which BLAS is put in place, and what is said when none is."""

from __future__ import annotations

import ctypes
import importlib.metadata
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fastwhisper import blas
from fastwhisper.errors import BackendMissingError

if TYPE_CHECKING:
    from pathlib import Path

WARNS = logging.WARNING


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that MLX is not imported yet, on a Linux CPU, and that nothing was chosen."""
    monkeypatch.delitem(sys.modules, "mlx.core")
    monkeypatch.delenv(blas.VARIABLE, raising=False)
    monkeypatch.setattr(blas, "has_cuda_backend", lambda: False)
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.fixture
def library() -> str:
    """Name a shared library that every Linux has: what it holds does not matter here."""
    if sys.platform != "linux":
        pytest.skip("blas.py does nothing elsewhere")
    return "libm.so.6"


def test_loads_the_first_library_there_is(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    """The first of the known names that loads is taken, where MLX will find its symbols."""
    modes: list[int] = []
    real = ctypes.CDLL

    def load(name: str, mode: int) -> ctypes.CDLL:
        modes.append(mode)
        return real(name, mode=mode)

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(blas, "_LIBRARIES", ("libnothing.so.9", library))
    assert blas.prepare() == library
    look = ctypes.RTLD_GLOBAL | os.RTLD_NOLOAD
    assert modes == [look, ctypes.RTLD_GLOBAL, look]


# The OpenBLAS that NumPy brings, with a process of its own to be loaded in.
THREADS = """
import os, sys
from fastwhisper import blas
assert "numpy" not in sys.modules
if sys.argv[1] == "host":
    import numpy
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
assert blas.prepare() == os.environ["FASTWHISPER_BLAS"]
between = count()
import numpy
ones = numpy.ones((600, 600))
assert (ones @ ones == 600).all()
print(before, between, count())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="blas.py does nothing elsewhere")
@pytest.mark.parametrize("who", ["we", "host"])
def test_no_thread_looks_for_work_while_a_model_loads(who: str) -> None:
    """Those of an OpenBLAS that we loaded are ended, and come again; the host's are left alone."""
    found = importlib.metadata.files("numpy") or []
    (numpys,) = (str(file.locate()) for file in found if "openblas" in file.name)
    done = subprocess.run(
        [sys.executable, "-c", THREADS, who],
        env={**os.environ, "FASTWHISPER_BLAS": numpys, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    before, between, after = done.stdout.split()
    assert between == ("1" if who == "we" else after)
    assert before == between


def test_says_how_to_get_one_when_there_is_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a library there is one line, with the package to install."""
    monkeypatch.setattr(blas, "_LIBRARIES", ("libnothing.so.9",))
    assert blas.prepare() is None
    assert [record.levelno for record in caplog.records] == [WARNS]
    assert "libopenblas0-pthread" in caplog.text


def test_off_means_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, library: str
) -> None:
    """`off` loads nothing and says nothing."""
    monkeypatch.setenv(blas.VARIABLE, "off")
    monkeypatch.setattr(blas, "_LIBRARIES", (library,))
    assert blas.prepare() is None
    assert caplog.records == []


def test_a_path_is_taken(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    """A path that loads is loaded, and nothing else is tried."""
    monkeypatch.setenv(blas.VARIABLE, library)
    monkeypatch.setattr(blas, "_LIBRARIES", ("libnothing.so.9",))
    assert blas.prepare() == library


def test_a_wrong_path_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was chosen and can't be had is not passed over."""
    monkeypatch.setenv(blas.VARIABLE, str(tmp_path / "nothing.so"))
    with pytest.raises(BackendMissingError, match=r"nothing\.so"):
        blas.prepare()


def test_comes_too_late_after_mlx(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, library: str
) -> None:
    """Once MLX is imported nothing is loaded, and one line says why."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(blas, "_LIBRARIES", (library,))
    monkeypatch.setitem(sys.modules, "mlx.core", sys)
    assert blas.prepare() is None
    assert "before fastwhisper's first load" in caplog.text


def test_does_nothing_beside_a_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, library: str
) -> None:
    """Where MLX computes on a GPU its CPU's BLAS does not matter."""
    monkeypatch.setattr(blas, "has_cuda_backend", lambda: True)
    monkeypatch.setattr(blas, "_LIBRARIES", (library,))
    assert blas.prepare() is None
    assert caplog.records == []
