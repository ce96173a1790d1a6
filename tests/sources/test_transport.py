"""transport.py: errors of the Hub, retries and pauses; the real client against a real server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants

from fastwhisper.errors import HubUnavailableError, ModelNotFoundError
from fastwhisper.sources import find, transport
from fastwhisper.values import LoadOptions
from tests.helpers.hub import DEFAULT, FILES, REPO, WEIGHTS, Gone, fetch, table
from tests.helpers.hub_server import Fault

if TYPE_CHECKING:
    from tests.helpers.hub_server import HubServer

pytestmark = pytest.mark.usefixtures("server")


# Errors of the Hub are their own errors, and never a fallback

REFUSALS = [
    pytest.param(401, "credentials", id="bare 401"),
    pytest.param(403, "forbids", id="403"),
    pytest.param(404, "is not there", id="404 without a class"),
    pytest.param(429, "fewer requests", id="429"),
    pytest.param(500, "status 500", id="500"),
    pytest.param(503, "status 503", id="503"),
    pytest.param(0, "can't be reached", id="cut"),
]
INT4 = table("tiny-mlx-4bit")


@pytest.mark.parametrize(("status", "said"), REFUSALS)
@pytest.mark.parametrize("match", [f"/api/models/{INT4}", f"{INT4}/resolve"])
def test_refusal_is_no_fallback(server: HubServer, status: int, said: str, match: str) -> None:
    """Whatever the Hub answers but "no such repository", no other one is asked for."""
    server.add(INT4, FILES)
    server.add(table("tiny-mlx"), FILES)
    server.fail(Fault(match, status, cut_after=None if status else 0, times=99))
    with pytest.raises(HubUnavailableError, match=said) as caught:
        fetch("tiny", LoadOptions(quant="int4"))
    assert caught.value.repo == INT4
    assert all(INT4 in request.path for request in server.requests)


@pytest.mark.parametrize("body", [b"<html>log in</html>", b"[]", b"{}", b'{"id": "x"}'])
def test_answer_that_is_no_hubs_is_no_fallback(server: HubServer, body: bytes) -> None:
    """A portal that answers everything is not the Hub."""
    server.add(table("tiny-mlx"), FILES)
    server.fail(Fault(INT4, 200, body=body))
    with pytest.raises(HubUnavailableError, match="check HF_ENDPOINT"):
        fetch("tiny", LoadOptions(quant="int4"))


@pytest.mark.parametrize("status", [401, 404])
def test_listed_repository_is_never_missing(server: HubServer, status: int) -> None:
    """Once a repository was listed, no answer to a file of it makes it one that is not there."""
    server.add(INT4, FILES)
    server.add(table("tiny-mlx"), FILES)
    server.fail(Fault(f"{INT4}/resolve", status, {"X-Error-Code": "RepoNotFound"}))
    with pytest.raises(HubUnavailableError):
        fetch("tiny", LoadOptions(quant="int4"))


def test_gated_repository_is_no_fallback(server: HubServer) -> None:
    """A gated repository exists: its terms are to be accepted."""
    server.add(table("tiny-mlx-4bit"), FILES, gated=True)
    server.add(table("tiny-mlx"), FILES)
    with pytest.raises(HubUnavailableError, match="accept its terms"):
        fetch("tiny", LoadOptions(quant="int4"))


@pytest.mark.parametrize("status", [401, 403])
def test_gated_listing_is_no_fallback(server: HubServer, status: int) -> None:
    """A repository that is not even listed without access exists all the same."""
    server.add(table("tiny-mlx"), FILES)
    server.fail(Fault(INT4, status, {"X-Error-Code": "GatedRepo"}))
    with pytest.raises(HubUnavailableError, match="accept its terms"):
        fetch("tiny", LoadOptions(quant="int4"))


def test_bad_token_is_no_fallback(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token the Hub refuses says nothing about the repository."""
    monkeypatch.setenv("HF_TOKEN", "bad")
    server.add(table("tiny-mlx"), FILES)
    with pytest.raises(HubUnavailableError, match="check HF_TOKEN"):
        fetch("tiny", LoadOptions(quant="int4"))
    assert len(server.requests) == 1


def test_name_the_hub_does_not_allow_is_no_model() -> None:
    """What the client refuses as a name is no model."""
    with pytest.raises(ModelNotFoundError, match="does not allow this name"):
        fetch("org/a--b")


def test_unreachable_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that refuses the connection is not worth a retry."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnavailableError, match="check the network"):
        fetch("tiny", LoadOptions(quant="int4"))


@pytest.mark.parametrize("match", ["/api/models", "config.json", "/cdn/"])
def test_silent_hub_times_out(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, match: str
) -> None:
    """A server that stops talking is given up after the client's own timeout."""
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.05)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    server.add(REPO, FILES)
    server.fail(Fault(match, hold_after=0, times=99))
    with pytest.raises(HubUnavailableError, match="in time"):
        fetch()


# Retries


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("match", ["/api/models", "config.json", "/cdn/"])
def test_busy_hub_is_asked_again(server: HubServer, status: int, match: str) -> None:
    """A 429 and a 503 are tried again, wherever they come."""
    server.add(REPO, FILES)
    server.fail(Fault(match, status, times=4))
    fetch()
    assert find.find_local(REPO, DEFAULT) is not None


@pytest.mark.parametrize(
    ("headers", "pauses_s"),
    [
        ({}, [0.5, 1.0]),
        ({"Retry-After": "3"}, [3.0, 3.0]),
        ({"RateLimit": '"api";r=0;t=4'}, [4.0, 4.0]),
        ({"Retry-After": "86400"}, [20.0, 20.0]),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, [0.5, 1.0]),
    ],
)
def test_pause_is_what_the_hub_asks_for(
    server: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    headers: dict[str, str],
    pauses_s: list[float],
) -> None:
    """Retries back off, honour Retry-After, and wait no longer than our patience."""
    now = [0.0]
    slept: list[float] = []

    def sleep(duration_s: float) -> None:
        slept.append(duration_s)
        now[0] += duration_s

    clock = SimpleNamespace(sleep=sleep, monotonic=lambda: now[0])
    monkeypatch.setattr(transport, "time", clock)
    monkeypatch.setattr(transport, "BACKOFF_S", (0.5, 1.0))
    monkeypatch.setattr(transport, "PATIENCE_S", 20.0)
    server.add(REPO, FILES)
    server.fail(Fault("/api/models", 429, headers, times=2))
    fetch()
    assert now[0] == pytest.approx(sum(pauses_s))
    assert max(slept) < 0.1


def test_cut_download_goes_on_where_it_was(server: HubServer) -> None:
    """After a cut connection only the rest is asked for."""
    server.add(REPO, FILES)
    server.fail(Fault("/cdn/", cut_after=70_000))
    assert (fetch().path / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [r.headers.get("Range") for r in server.requests if "/cdn/" in r.path]
    assert ranges == [None, "bytes=70000-"]


def test_server_without_ranges_is_read_from_the_start(server: HubServer) -> None:
    """A server that answers a range with the whole file spoils nothing."""
    server.add(REPO, FILES)
    server.fail(Fault("/cdn/", cut_after=70_000))
    server.fail(Fault("/cdn/", ignore_range=True))
    assert (fetch().path / "model.safetensors").read_bytes() == WEIGHTS


def test_waiting_for_a_retry_can_be_cancelled(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause that a server asks for ends when the caller goes."""
    monkeypatch.setattr(transport, "PATIENCE_S", 1000.0)
    server.add(REPO, FILES)
    server.fail(Fault("/api/models", 429, {"Retry-After": "1000"}))

    def check() -> None:
        if server.requests:
            raise Gone

    with pytest.raises(Gone):
        fetch(check=check)
