"""A Hub for tests of downloads, and a cache for tests of converted copies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
import pytest
from huggingface_hub import constants

from fastwhisper.checkpoint.inspection import inspect_checkpoint
from fastwhisper.sources import converted, transport
from tests.helpers.hub_server import HubServer
from tests.helpers.tiny_models import write_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastwhisper.checkpoint.plan import Checkpoint


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Run an empty Hub, with an empty Hugging Face cache and a client that knows no other Hub."""
    with HubServer() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # Once a day the client asks the Hub for names to put into its User-Agent.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(transport, "BACKOFF_S", (0.0,) * 4)
        monkeypatch.setattr(transport, "PATIENCE_S", 0.0)
        # Threads that ask first at once make a client each, and only the last one is closed.
        huggingface_hub.get_session()
        yield running
        huggingface_hub.close_session()


@pytest.fixture
def cache(server: HubServer) -> Path:
    """Return the Hugging Face cache of the test's client."""
    return Path(constants.HF_HUB_CACHE)


@pytest.fixture
def root(cache_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the cache of converted copies, empty and on a disk that has room."""
    monkeypatch.setattr(converted, "RESERVE_BYTES", 0)
    return cache_directory


@pytest.fixture
def original(tmp_path: Path) -> Checkpoint:
    """Write a checkpoint whose layout is slow to read, and return its plan."""
    return inspect_checkpoint(write_model(tmp_path / "original", layout="weights.npz"))
