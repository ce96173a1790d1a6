"""Time whole processes, alternated: fastwhisper, mlx_whisper, and the floor.

usage: python -m bench.cold [--pairs 7] [--dtype float16] [--json FILE] [MODEL:QUANT ...]
       python -m bench.cold --from-disk [MODEL:QUANT ...]
       python -m bench.cold --second [--dtype float32] [MODEL:QUANT ...]

Each figure is the time from starting a process to the line it prints when its model is
ready. The floor imports `mlx.core` and `mlx.nn`, and does `mx.load` and `mx.eval`.

With --from-disk the weights leave the page cache before each process, as on the first dictation of
a morning. With --second each process loads a tiny model first, and only its next load is timed;
the floor and mlx_whisper then cast the weights to the dtype.

Before each process, 4 GiB of memory are touched. The host of a virtual machine takes back memory
that is free, and gives it again at up to 2 s a gigabyte, to whoever asks first.
"""

from __future__ import annotations

import argparse
import json
import mmap
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
SECOND: Final = {
    "fastwhisper": """
import sys, time, anyio, fastwhisper
async def main():
    await fastwhisper.load(sys.argv[3], dtype=sys.argv[2])
    begin = time.perf_counter()
    result = await fastwhisper.load(sys.argv[1], dtype=sys.argv[2])
    print(time.perf_counter() - begin, flush=True)
anyio.run(main)
""",
    "mlx_whisper": """
import sys, time
import mlx.core as mx
from mlx.utils import tree_map
from mlx_whisper.load_models import load_model
def load(path):
    dtype = getattr(mx, sys.argv[2])
    model = load_model(path, dtype=dtype)
    floating = lambda a: a.astype(dtype) if mx.issubdtype(a.dtype, mx.floating) else a
    model.update(tree_map(floating, model.parameters()))
    mx.eval(model.parameters())
    return model
load(sys.argv[3])
begin = time.perf_counter()
model = load(sys.argv[1])
print(time.perf_counter() - begin, flush=True)
""",
    "floor": """
import sys, time
import mlx.core as mx
from mlx.utils import tree_map
def load(path):
    dtype = getattr(mx, sys.argv[2])
    weights = mx.load(path + "/weights.safetensors")
    floating = lambda a: a.astype(dtype) if mx.issubdtype(a.dtype, mx.floating) else a
    weights = tree_map(floating, weights)
    mx.eval(weights)
    return weights
load(sys.argv[3])
begin = time.perf_counter()
weights = load(sys.argv[1])
print(time.perf_counter() - begin, flush=True)
""",
}
_TOUCHED_BYTES: Final = 4 << 30
DEFAULT: Final = [
    "tiny:int4",
    "large-v3-turbo:int4",
    "large-v3-turbo:int8",
    "large-v3-turbo:float16",
]


def touch_memory() -> None:
    """Make the host of a virtual machine give memory to this machine. In a process of its own."""
    if sys.platform != "linux":
        return
    if os.fork():
        os.wait()
        return
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, _TOUCHED_BYTES, flags=flags) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, _TOUCHED_BYTES, 4096):
            memory[at] = 1
    os._exit(0)


def drop_from_cache(directory: Path) -> None:
    """Drop the pages of a model's files from the page cache. Not of a memory file system."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def time_process(script: str, *arguments: str) -> tuple[float, float]:
    """Run a process; give its seconds and its peak memory in MiB.

    The seconds are those that it prints, or those until it says that it is ready.
    """
    read, write = os.pipe()
    begin_s = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=write)
    os.close(write)
    with os.fdopen(read, "rb") as output:
        line = output.readline().strip()
        ready_s = time.perf_counter() - begin_s
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if not line or process.returncode != 0:
        raise RuntimeError(f"the process ended with {process.returncode}")
    return (ready_s if line == b"ready" else float(line)), usage.ru_maxrss / 1024


def measure(case: str, options: argparse.Namespace) -> dict[str, float]:
    """Time the three kinds of process in turn, after one warm-up of each."""
    model, _, quant = case.partition(":")
    directory = model_directory(model, quant, options.models)
    arguments = [str(directory), options.dtype]
    if options.second:
        arguments.append(str(model_directory("tiny", quant, options.models)))
    scripts = SECOND if options.second else SCRIPTS
    times: dict[str, list[float]] = {name: [] for name in scripts}
    memory: dict[str, list[float]] = {name: [] for name in scripts}
    for round_number in range(options.pairs + 1):
        for name, script in scripts.items():
            touch_memory()
            if options.from_disk:
                drop_from_cache(directory)
            seconds, peak_mib = time_process(script, *arguments)
            if round_number > 0:
                times[name].append(seconds)
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
    parser.add_argument("--from-disk", action="store_true")
    parser.add_argument("--second", action="store_true")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    for case in options.cases:
        rows[case] = measure(case, options)
        if len(rows) == 1:
            print("case", *rows[case], sep="\t")
        print(case, *(f"{value:.2f}" for value in rows[case].values()), sep="\t", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
