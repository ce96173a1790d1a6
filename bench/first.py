"""Time a process from its start to ready, and through its first two windows.

usage: python -m bench.first [--runs 3] [--json FILE] [MODEL:QUANT ...]

Each run is a fresh process; fastwhisper and mlx_whisper take turns. A window is 30 s of
noise, decoded for a few tokens: what it says does not matter, that it runs does. Without
timestamps, as random weights would make several windows of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from bench.models import model_directory

SCRIPTS: Final = {
    "fastwhisper": """
import sys, time, json, anyio, fastwhisper
start, directory = float(sys.argv[1]), sys.argv[2]
async def main():
    async with fastwhisper.open(directory) as session:
        times = {"ready": time.time() - start}
        import numpy
        noise = numpy.random.default_rng(0).normal(0, 0.1, 480000).astype(numpy.float32)
        for name in ("first", "second"):
            begin = time.time()
            await session.transcribe(noise, language="en", temperature=0, sample_len=8,
                                     without_timestamps=True)
            times[name] = time.time() - begin
            if name == "first":
                times["to_first"] = time.time() - start
        stats = session.state.stats
        times["peak_gib"] = stats.peak_bytes / 2**30
        for span in stats.spans:
            times.setdefault("span " + span.name, 0)
            times["span " + span.name] = max(times["span " + span.name], span.end_s - span.start_s)
        print(json.dumps(times))
anyio.run(main)
""",
    "mlx_whisper": """
import sys, time, json
start, directory = float(sys.argv[1]), sys.argv[2]
import mlx.core as mx, mlx_whisper
from mlx_whisper.transcribe import ModelHolder
half = mx.default_device().type == mx.gpu
ModelHolder.get_model(directory, mx.float16 if half else mx.float32)
times = {"ready": time.time() - start}
import numpy
noise = numpy.random.default_rng(0).normal(0, 0.1, 480000).astype(numpy.float32)
for name in ("first", "second"):
    begin = time.time()
    mlx_whisper.transcribe(noise, path_or_hf_repo=directory, language="en", temperature=0,
                           sample_len=8, without_timestamps=True, fp16=half)
    times[name] = time.time() - begin
    if name == "first":
        times["to_first"] = time.time() - start
print(json.dumps(times))
""",
}


def run(script: str, directory: Path) -> dict[str, float]:
    """Start one process and give its times, in seconds since its start or of a step."""
    done = subprocess.run(
        [sys.executable, "-c", script, str(time.time()), str(directory)],
        stdout=subprocess.PIPE,
        check=True,
    )
    times: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return times


def main() -> None:
    """Print the median of each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "cases",
        nargs="*",
        default=["large-v3-turbo:float16", "large-v3-turbo:int4"],
        metavar="MODEL:QUANT",
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table: dict[str, dict[str, dict[str, float]]] = {}
    for case in options.cases:
        model, _, quant = case.partition(":")
        directory = model_directory(model, quant, options.models)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in SCRIPTS}
        for number in range(options.runs + 1):
            for name, script in SCRIPTS.items():
                times = run(script, directory)
                if number > 0:  # the first compiles kernels and fills the page cache
                    runs[name].append(times)
        table[case] = {
            name: {key: statistics.median(one[key] for one in many) for key in many[0]}
            for name, many in runs.items()
        }
        for name, row in table[case].items():
            print(case, name, *(f"{key}={value:.3f}" for key, value in row.items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
