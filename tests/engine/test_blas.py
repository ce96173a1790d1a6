"""The BLAS that is loaded before MLX, and the message if there is none."""

from __future__ import annotations

import ctypes
import importlib.metadata
import logging
import os
import sys
from typing import TYPE_CHECKING

import pytest

from fastwhisper.engine import blas
from fastwhisper.errors import BackendMissingError
from tests.helpers.interpreter import run_python

if TYPE_CHECKING:
    from pathlib import Path

WARNS = logging.WARNING
LIBRARY = "libm.so.6"
"""Every Linux has it; what it holds does not matter here."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nothing is loaded elsewhere")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that MLX is not imported yet, without a GPU, and that nothing was chosen."""
    monkeypatch.delitem(sys.modules, "mlx.core")
    monkeypatch.delenv(blas.VARIABLE, raising=False)
    monkeypatch.setattr(blas, "has_cuda_backend", lambda: False)


def test_loads_the_first_library_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of the known names that loads is taken, where MLX will find its symbols."""
    modes: list[int] = []
    real = ctypes.CDLL

    def load(name: str, mode: int) -> ctypes.CDLL:
        modes.append(mode)
        return real(name, mode=mode)

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(blas, "_LIBRARIES", ("libnothing.so.9", LIBRARY))
    assert blas.prepare() == LIBRARY
    look = ctypes.RTLD_GLOBAL | os.RTLD_NOLOAD
    assert modes == [look, ctypes.RTLD_GLOBAL, look]


# The OpenBLAS that NumPy brings, with a process of its own to be loaded in.
THREADS = """
import os, sys
from fastwhisper.engine import blas
from tests.helpers.waiting import wait_until
assert "numpy" not in sys.modules
if sys.argv[1] == "host":
    import numpy
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
assert blas.prepare() == os.environ["FASTWHISPER_BLAS"]
wait_until(lambda: count() <= before)  # the kernel shows a thread for a moment after its end
between = count()
import numpy
ones = numpy.ones((600, 600))
assert (ones @ ones == 600).all()
print(before, between, count())
"""


def count_threads(who: str) -> list[str]:
    """Return the threads of a process before `prepare`, after it, and after a product."""
    found = importlib.metadata.files("numpy") or []
    (library,) = (str(file.locate()) for file in found if "openblas" in file.name)
    env = {"FASTWHISPER_BLAS": library, "OPENBLAS_NUM_THREADS": "3"}
    return run_python("-c", THREADS, who, env=env).stdout.split()


def test_no_thread_looks_for_work_while_a_model_loads() -> None:
    """Those of an OpenBLAS that we loaded are ended, and come again; the host's are left alone."""
    every, *later = count_threads("host")
    assert later == [every, every]
    assert count_threads("we") == ["1", "1", every]


def test_says_how_to_get_one_when_there_is_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a library there is one line, with the package to install."""
    monkeypatch.setattr(blas, "_LIBRARIES", ("libnothing.so.9",))
    assert blas.prepare() is None
    assert [record.levelno for record in caplog.records] == [WARNS]
    assert "libopenblas0-pthread" in caplog.text


def test_off_means_off(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """`off` loads nothing and says nothing."""
    monkeypatch.setenv(blas.VARIABLE, "off")
    monkeypatch.setattr(blas, "_LIBRARIES", (LIBRARY,))
    assert blas.prepare() is None
    assert caplog.records == []


def test_a_path_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that loads is loaded, and nothing else is tried."""
    monkeypatch.setenv(blas.VARIABLE, LIBRARY)
    monkeypatch.setattr(blas, "_LIBRARIES", ("libnothing.so.9",))
    assert blas.prepare() == LIBRARY


def test_a_wrong_path_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A library that was named and can't be loaded is an error."""
    monkeypatch.setenv(blas.VARIABLE, str(tmp_path / "nothing.so"))
    with pytest.raises(BackendMissingError, match=r"nothing\.so"):
        blas.prepare()


def test_comes_too_late_after_mlx(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once MLX is imported nothing is loaded, and one line says why."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(blas, "_LIBRARIES", (LIBRARY,))
    monkeypatch.setitem(sys.modules, "mlx.core", sys)
    assert blas.prepare() is None
    assert "before fastwhisper's first load" in caplog.text


def test_does_nothing_beside_a_gpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where MLX computes on a GPU its CPU's BLAS does not matter."""
    monkeypatch.setattr(blas, "has_cuda_backend", lambda: True)
    monkeypatch.setattr(blas, "_LIBRARIES", (LIBRARY,))
    assert blas.prepare() is None
    assert caplog.records == []
