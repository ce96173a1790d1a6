"""A trio app: two tasks of a nursery share one model, and read its segments as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

import fastwhisper

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MODEL = "tiny.en"


async def main(recordings: Iterable[Path]) -> dict[str, str]:
    """Transcribe every recording; give the texts by name of the file."""
    send, receive = trio.open_memory_channel[tuple[str, fastwhisper.Segment]](0)
    texts: dict[str, str] = {}
    async with fastwhisper.open(MODEL) as session, trio.open_nursery() as nursery, receive:
        async with send:
            for path in recordings:
                nursery.start_soon(listen, session, path, send.clone())
        async for name, segment in receive:
            texts[name] = texts.get(name, "") + segment.text
    return texts


async def listen(
    session: fastwhisper.Session,
    path: Path,
    send: trio.MemorySendChannel[tuple[str, fastwhisper.Segment]],
) -> None:
    """Send each segment of a recording on."""
    async with send:
        async for segment in session.stream(path, temperature=0):
            await send.send((path.name, segment))
