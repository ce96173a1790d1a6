"""A trio app that writes down what another program records.

    python listen_trio.py arecord -q -r16000 -fS16_LE -traw

The command must write 16-bit little-endian mono samples at 16 kHz to its stdout.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import trio

import fastwhisper

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

MODEL = "tiny.en"


async def main(command: Sequence[str], model: str = MODEL) -> list[str]:
    """Print each sentence when it is final, and return all of them when the command ends."""
    sentences: list[str] = []
    async with (
        fastwhisper.open(model, background=True) as session,
        trio.open_nursery() as nursery,
    ):
        process: trio.Process = await nursery.start(
            partial(trio.run_process, command, stdout=subprocess.PIPE)
        )
        async for heard in session.listen(read(process)):
            if heard.is_final:
                print(f"{heard.start_s:6.1f} s {heard.text.strip()}", flush=True)
                sentences.append(heard.text.strip())
    return sentences


async def read(process: trio.Process) -> AsyncGenerator[bytes]:
    """Yield what the command writes, in chunks of any length."""
    assert process.stdout is not None
    async for chunk in process.stdout:
        yield bytes(chunk)


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
