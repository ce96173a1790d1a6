"""The BLAS that is loaded before MLX, and the message if there is none."""

from __future__ import annotations

import ctypes
import logging
import sys
from typing import TYPE_CHECKING

import pytest

from fastwhisper.engine import blas
from fastwhisper.errors import BackendMissingError

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
    assert modes == [ctypes.RTLD_GLOBAL] * 2


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
