"""What it costs to close an idle model, and to open it again: `python -m bench.pool [MODEL]`.

Warm is a transcription by a model that is open. Reopened is the same, from the request of a model
that was closed to its text. Both in turn, in one process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import anyio
import anyio.lowlevel

import fastwhisper


def main() -> None:
    """Measure, and print medians."""
    parser = argparse.ArgumentParser(description="Close an idle model, and open it again.")
    parser.add_argument("model", nargs="?", default="tiny.en")
    parser.add_argument("--quant", default="float16")
    parser.add_argument("--audio", default="tests/data/sample.ogg")
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    anyio.run(partial(measure, options))


async def measure(options: argparse.Namespace) -> None:
    """Borrow a model again and again; each time it was closed before."""
    warm_s: list[float] = []
    reopened_s: list[float] = []
    async with fastwhisper.pool(keep_alive_s=0) as pool:
        for run in range(options.runs + 1):
            begin_s = time.perf_counter()
            async with pool.session(options.model, quant=options.quant) as session:
                first = await session.transcribe(options.audio, language="en")
                reopened_s.append(time.perf_counter() - begin_s)
                begin_s = time.perf_counter()
                again = await session.transcribe(options.audio, language="en")
                warm_s.append(time.perf_counter() - begin_s)
                if first != again:
                    raise SystemExit("a model that was opened again says something else")
            while pool.models:
                await anyio.lowlevel.checkpoint()
            if not run:  # imports
                warm_s.clear()
                reopened_s.clear()
    warm, reopened = statistics.median(warm_s), statistics.median(reopened_s)
    print(f"warm {warm:.2f} s, reopened {reopened:.2f} s, difference {reopened - warm:.2f} s")


if __name__ == "__main__":
    main()
