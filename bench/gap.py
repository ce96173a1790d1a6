"""How long the event loop stands still while a model is opened, left or used; the load's memory.

usage: python -m bench.gap [--models DIR] [--dtype float16] [--json FILE] [MODEL:QUANT ...]
       python -m bench.gap --transcribe AUDIO [MODEL or DIR]

A task that does nothing but yield measures the longest gap between two of its turns, on
asyncio and on trio, each in a fresh process: from the first open, with all its imports, until the
model is ready, and from there until it is left. Memory is the peak of the process, less that of
one that only imports MLX, less the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from bench.models import model_directory

_WATCH: Final = """
import json, sys, time, anyio, fastwhisper
async def main():
    longest, running = 0.0, True
    async def watch():
        nonlocal longest
        last = time.perf_counter()
        while running:
            await anyio.sleep(0)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
"""
LOAD: Final = f"""{_WATCH}
    directory, backend, dtype = sys.argv[1:]
    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await anyio.sleep(0.05)
        longest = 0.0
        begin = time.perf_counter()
        async with fastwhisper.open(directory, dtype=dtype) as session:
            took = time.perf_counter() - begin
            stats = session.state.stats
            opening = longest
            longest = 0.0
        leaving = longest
        running = False
    gaps = dict(open_gap_s=opening, leave_gap_s=leaving)
    print(json.dumps(dict(gaps, load_s=took, weights=stats.bytes_read)))
anyio.run(main, backend=sys.argv[2])
"""
TRANSCRIBE: Final = f"""{_WATCH}
    model, backend, audio, size = sys.argv[1:]
    async with fastwhisper.open(model) as session, anyio.create_task_group() as group:
        await session.transcribe(audio, batch_size=int(size))
        group.start_soon(watch)
        await anyio.sleep(0.05)
        longest, begin = 0.0, time.perf_counter()
        await session.transcribe(audio, batch_size=int(size))
        took, running = time.perf_counter() - begin, False
    print(json.dumps(dict(gap_s=longest, took_s=took)))
anyio.run(main, backend=sys.argv[2])
"""
BARE: Final = "import mlx.core as mx, mlx.nn; mx.eval(mx.zeros(1))"


def run(code: str, *arguments: str) -> tuple[str, int]:
    """Run a process; give what it printed, and its peak memory in bytes."""
    read, write = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=write)
    os.close(write)
    with os.fdopen(read) as output:
        printed = output.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"the process ended with {process.returncode}")
    return printed, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def watch_transcription(model: str, audio: str) -> None:
    """Print a line for each loop and batch size."""
    for backend in ("asyncio", "trio"):
        for size in ("1", "8"):
            found = json.loads(run(TRANSCRIBE, model, backend, audio, size)[0])
            print(
                f"{backend}\tbatch size {size}\tlongest gap {found['gap_s'] * 1000:.0f} ms of "
                f"{found['took_s'] * 1000:.0f} ms",
                flush=True,
            )


def main() -> None:
    """Print a line for each model and loop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "cases",
        nargs="*",
        default=["large-v3-turbo:float16", "large-v3-turbo:int4"],
        metavar="MODEL:QUANT",
    )
    parser.add_argument("--transcribe", metavar="AUDIO", help="watch a transcription instead")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.transcribe:
        model = options.cases[0] if len(options.cases) == 1 else "tiny.en"
        watch_transcription(model, options.transcribe)
        return
    rows = []
    _, bare_bytes = run(BARE)
    for case in options.cases:
        model, _, quant = case.partition(":")
        directory = model_directory(model, quant, options.models)
        for backend in ("asyncio", "trio"):
            printed, peak_bytes = run(LOAD, str(directory), backend, options.dtype)
            row = {"case": case, "backend": backend, **json.loads(printed)}
            row["overhead"] = (peak_bytes - bare_bytes) / row["weights"] - 1
            rows.append(row)
            print(
                f"{case}\t{backend}\tlongest gap {row['open_gap_s'] * 1000:.0f} ms of "
                f"{row['load_s'] * 1000:.0f} ms, on leaving "
                f"{row['leave_gap_s'] * 1000:.0f} ms\tmemory beyond weights and a bare "
                f"interpreter: {row['overhead']:+.1%} of weights",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
