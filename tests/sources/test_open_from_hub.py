"""open() of what must be downloaded: the real client against a real server, on both loops."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

import fastwhisper
from fastwhisper import (
    Closed,
    HubUnavailableError,
    InvalidModelFormatError,
    LoadingFailedError,
    Progress,
    Quantization,
    QuantizationFallbackError,
    QuantizedModelNotAvailableError,
)
from tests.helpers.hub_server import Fault
from tests.helpers.tiny_models import SPEAKING, write_model

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.helpers.hub_server import HubServer

pytestmark = pytest.mark.anyio

INT4 = "mlx-community/whisper-tiny-mlx-4bit"
INT4_SIBLING = "mlx-community/whisper-tiny-4bit"
FLOAT16 = "mlx-community/whisper-tiny-mlx"


@pytest.fixture
def repository(tmp_path: Path) -> Mapping[str, Mapping[str, bytes]]:
    """Build the files of a small model's repositories, by precision."""
    made: dict[str, Mapping[str, bytes]] = {}
    for quant in Quantization:
        directory = write_model(tmp_path / quant, dimensions=SPEAKING, precision=quant)
        made[quant] = {path.name: path.read_bytes() for path in directory.iterdir()}
    return made


async def test_downloads_once_and_then_asks_nobody(
    server: HubServer, repository: Mapping[str, Mapping[str, bytes]]
) -> None:
    """The first open downloads with progress in bytes; the second makes no request."""
    commit = server.add(INT4, repository["int4"])
    reports: list[Progress] = []
    async with fastwhisper.open("tiny", quant="int4", on_progress=reports.append) as session:
        assert session.result.revision == commit
        assert session.result.source == INT4
    downloaded = [report for report in reports if report.stage == "download"]
    total = sum(len(data) for data in repository["int4"].values())
    assert (downloaded[-1].done_bytes, downloaded[-1].total_bytes) == (total, total)
    done = [report.done_bytes for report in downloaded]
    assert done == sorted(done)
    asked = len(server.requests)
    async with fastwhisper.open("tiny", quant="int4") as session:
        assert session.is_ready
    assert len(server.requests) == asked


async def test_falls_back_to_float16_and_says_so(
    server: HubServer, repository: Mapping[str, Mapping[str, bytes]]
) -> None:
    """No repository at int4: float16 is opened, with the reason; raise_for_fallback raises."""
    server.add(FLOAT16, repository["float16"])
    async with fastwhisper.open("tiny", quant="int4") as session:
        result = session.result
        assert (result.requested, result.actual) == ("int4", "float16")
        assert result.source == FLOAT16
        assert result.fallback_reason is not None
        assert INT4 in result.fallback_reason
        with pytest.raises(QuantizationFallbackError, match="int4"):
            result.raise_for_fallback()


async def test_the_sibling_is_no_fallback(
    server: HubServer, repository: Mapping[str, Mapping[str, bytes]]
) -> None:
    """The same precision under its sibling name is what was asked for."""
    server.add(INT4_SIBLING, repository["int4"])
    async with fastwhisper.open("tiny", quant="int4") as session:
        assert session.result.source == INT4_SIBLING
        assert not session.result.did_fallback


async def test_without_a_fallback_it_raises(
    server: HubServer, repository: Mapping[str, Mapping[str, bytes]]
) -> None:
    """`fallback=None` refuses another precision."""
    server.add(FLOAT16, repository["float16"])
    with pytest.raises(QuantizedModelNotAvailableError):
        async with fastwhisper.open("tiny", quant="int4", fallback=None):
            pytest.fail("the block must not begin")


@pytest.mark.parametrize("status", [403, 500])
async def test_a_refusal_is_never_a_fallback(
    server: HubServer, repository: Mapping[str, Mapping[str, bytes]], status: int
) -> None:
    """A Hub that refuses or fails is its own error, also in the background."""
    server.add(FLOAT16, repository["float16"])
    server.add(INT4, repository["int4"])
    server.fail(Fault(match="api/models", status=status, times=99))
    async with fastwhisper.open("tiny", quant="int4", background=True) as session:
        with pytest.raises(LoadingFailedError) as caught:
            await session.wait_until_ready()
    assert isinstance(caught.value.__cause__, HubUnavailableError)


async def test_a_broken_repository_is_never_a_fallback(
    server: HubServer, repository: Mapping[str, Mapping[str, bytes]]
) -> None:
    """Files that are no model are refused; float16 is not tried."""
    server.add(FLOAT16, repository["float16"])
    server.add(INT4, {**repository["int4"], "config.json": b"{}"})
    with pytest.raises(InvalidModelFormatError, match=r"config\.json"):
        async with fastwhisper.open("tiny", quant="int4"):
            pytest.fail("the block must not begin")


async def test_leaving_a_download_is_free_at_once(
    server: HubServer, repository: Mapping[str, Mapping[str, bytes]]
) -> None:
    """A caller leaves while the server holds the transfer; the next open takes it up again."""
    server.add(INT4, repository["int4"])
    fault = server.fail(Fault(match="weights.safetensors", hold_after=1000))
    async with fastwhisper.open("tiny", quant="int4", background=True) as session:
        await anyio.to_thread.run_sync(fault.reached.wait)
    # The server holds the transfer until `release` is set, and has not let it go here.
    assert not fault.release.is_set()
    assert session.state == Closed()
    fault.release.set()
    async with fastwhisper.open("tiny", quant="int4") as session:
        assert session.is_ready


async def test_two_tasks_download_once(
    server: HubServer, repository: Mapping[str, Mapping[str, bytes]]
) -> None:
    """Tasks that ask for the same model at once share one transfer."""
    server.add(INT4, repository["int4"])

    async def opening() -> None:
        async with fastwhisper.open("tiny", quant="int4") as session:
            assert session.is_ready

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(opening)
    weights = [
        request
        for request in server.requests
        if request.method == "GET" and "weights.safetensors" in request.path
    ]
    assert len({request.path for request in weights}) == len(weights)
