"""Time whole processes, alternated: fastwhisper, mlx_whisper, and the floor.

usage: python -m bench.cold [--pairs 7] [--dtype float16] [--json FILE] [MODEL:QUANT ...]

Each figure is the time from starting a process to the line it prints when its model is
ready. The floor imports `mlx.core` and `mlx.nn`, and does `mx.load` and `mx.eval`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from bench.models import model_directory

SCRIPTS: Final = {
    "fastwhisper": """
import sys, anyio, fastwhisper
async def main():
    async with fastwhisper.open(sys.argv[1], dtype=sys.argv[2]):
        print("ready", flush=True)
anyio.run(main)
""",
    "mlx_whisper": """
import sys
import mlx.core as mx
from mlx_whisper.load_models import load_model
model = load_model(sys.argv[1], dtype=getattr(mx, sys.argv[2]))
print("ready", flush=True)
""",
    "floor": """
import sys
import mlx.core as mx, mlx.nn
weights = mx.load(sys.argv[1] + "/weights.safetensors")
mx.eval(weights)
print("ready", flush=True)
""",
}
DEFAULT: Final = [
    "tiny:int4",
    "large-v3-turbo:int4",
    "large-v3-turbo:int8",
    "large-v3-turbo:float16",
]


def time_to_ready(script: str, directory: Path, dtype: str) -> tuple[float, float]:
    """Start a process; give the seconds until its model was ready, and its peak memory in MiB."""
    read, write = os.pipe()
    begin_s = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", script, str(directory), dtype], stdout=write)
    os.close(write)
    with os.fdopen(read, "rb") as output:
        line = output.readline()
        ready_s = time.perf_counter() - begin_s
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if line != b"ready\n" or process.returncode != 0:
        raise RuntimeError(f"the process ended with {process.returncode}")
    return ready_s, usage.ru_maxrss / 1024


def measure(
    model: str, quant: str, *, pairs: int, dtype: str, root: Path | None
) -> dict[str, float]:
    """Time the three kinds of process in turn, after one warm-up of each."""
    directory = model_directory(model, quant, root)
    times: dict[str, list[float]] = {name: [] for name in SCRIPTS}
    memory: dict[str, list[float]] = {name: [] for name in SCRIPTS}
    for round_number in range(pairs + 1):
        for name, script in SCRIPTS.items():
            ready_s, peak_mib = time_to_ready(script, directory, dtype)
            if round_number > 0:
                times[name].append(ready_s)
                memory[name].append(peak_mib)
    row = {f"{name}_s": statistics.median(values) for name, values in times.items()}
    row |= {f"{name}_peak_mib": statistics.median(values) for name, values in memory.items()}
    row["mlx_whisper/fastwhisper"] = _ratio(times["mlx_whisper"], times["fastwhisper"])
    row["mlx_whisper/floor"] = _ratio(times["mlx_whisper"], times["floor"])
    row["fastwhisper/floor"] = _ratio(times["fastwhisper"], times["floor"])
    return row


def _ratio(a: list[float], b: list[float]) -> float:
    """Give the median of the ratios round by round, which a drifting machine leaves alone."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def main() -> None:
    """Print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=DEFAULT, metavar="MODEL:QUANT")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    for case in options.cases:
        model, _, quant = case.partition(":")
        rows[case] = measure(
            model, quant, pairs=options.pairs, dtype=options.dtype, root=options.models
        )
        if len(rows) == 1:
            print("case", *rows[case], sep="\t")
        print(case, *(f"{value:.2f}" for value in rows[case].values()), sep="\t", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
