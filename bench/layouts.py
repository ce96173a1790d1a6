"""Time the layouts that are slow to read: npz for the first time and from then on.

usage: python -m bench.layouts [--model base] [--quant float16] [--pairs 7]

Each figure is one load in a process of its own that has loaded the safetensors before, so that
imports and the tokenizer are not counted. "first" has an empty cache of converted copies, and its
process ends when the copy is written; "second" finds the copy. mlx_whisper reads the npz anew
each time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import mlx.core as mx

from bench.models import model_directory

FASTWHISPER: Final = """
import sys, time, anyio, fastwhisper
async def main():
    await fastwhisper.load(sys.argv[2], dtype="float16")
    time.sleep(1)  # until the tokenizer is built
    begin = time.perf_counter()
    await fastwhisper.load(sys.argv[1], dtype="float16")
    print(time.perf_counter() - begin)
anyio.run(main)
"""
CONVERTING: Final = f"""
{FASTWHISPER}
from fastwhisper.sources import converted
while not converted.entries():
    time.sleep(0.01)
"""
MLX_WHISPER: Final = """
import sys, time
import mlx.core as mx
from mlx_whisper.load_models import load_model
load_model(sys.argv[2], dtype=mx.float16)
begin = time.perf_counter()
load_model(sys.argv[1], dtype=mx.float16)
print(time.perf_counter() - begin)
"""


def run(script: str, directory: Path, plain: Path, cache: Path) -> float:
    """Load once in a fresh process; give the seconds it took."""
    done = subprocess.run(
        [sys.executable, "-c", script, str(directory), str(plain)],
        stdout=subprocess.PIPE,
        env={**os.environ, "FASTWHISPER_CACHE": str(cache)},
        check=True,
    )
    return float(done.stdout)


def main() -> None:
    """Print the median of each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="base")
    parser.add_argument("--quant", default="float16")
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    plain = model_directory(options.model, options.quant)
    with tempfile.TemporaryDirectory() as folder:
        npz, cache = Path(folder, "npz"), Path(folder, "cache")
        npz.mkdir()
        shutil.copy(plain / "config.json", npz)
        weights = mx.load(str(plain / "weights.safetensors"))
        if not isinstance(weights, dict):
            raise TypeError("the weights have no names")
        mx.savez(str(npz / "weights.npz"), **weights)
        times: dict[str, list[float]] = {}
        for number in range(options.pairs + 1):
            shutil.rmtree(cache, ignore_errors=True)
            for name, script, directory in (
                ("safetensors", FASTWHISPER, plain),
                ("npz, first", CONVERTING, npz),
                ("npz, second", FASTWHISPER, npz),
                ("npz, mlx_whisper", MLX_WHISPER, npz),
            ):
                taken = run(script, directory, plain, cache)
                if number > 0:  # the first fills the page cache
                    times.setdefault(name, []).append(taken)
    for name, many in times.items():
        ratio = statistics.median(a / b for a, b in zip(many, times["safetensors"], strict=True))
        print(f"{name}\t{statistics.median(many):.3f} s\t{ratio:.2f} of safetensors", flush=True)


if __name__ == "__main__":
    main()
