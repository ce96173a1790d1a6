"""A model, two recordings, and a working directory for each test of the command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fastwhisper.transcribing.window_decoder import WindowDecoder
from tests.helpers.audio import noise, wav_bytes
from tests.helpers.tiny_models import write_babbler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from fastwhisper.transcribing.window_decoder import WindowRef
    from tests.helpers.command import AtEachWindow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a one-layer model that says words, and return its directory."""
    return write_babbler(tmp_path_factory.mktemp("babbler") / "model", multilingual=False)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a recording of four seconds, and return its path."""
    path = tmp_path_factory.mktemp("audio") / "short.wav"
    path.write_bytes(wav_bytes(noise(4)))
    return path


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a recording of three windows, and return its path."""
    path = tmp_path_factory.mktemp("audio") / "long.wav"
    path.write_bytes(wav_bytes(noise(65)))
    return path


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in a directory of its own, where the command writes its files."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def at_each_window(
    monkeypatch: pytest.MonkeyPatch,
    no_window_to_warm_up: None,
) -> AtEachWindow:
    """Return a function: it has another called before each window, with how many there were.

    It returns the list of the first frames of the windows that were decoded.
    """

    def watch(function: Callable[[int], object]) -> list[int]:
        windows: list[int] = []
        real = WindowDecoder.encode

        def encode(decoder: WindowDecoder, refs: Sequence[WindowRef]) -> Any:
            function(len(windows))
            windows.append(refs[0].start_frame)
            return real(decoder, refs)

        monkeypatch.setattr(WindowDecoder, "encode", encode)
        return windows

    return watch
