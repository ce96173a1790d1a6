"""Draw one open as a timeline: fastwhisper's lanes above mlx_whisper's.

usage: python -m bench.timeline OUT.png [--case MODEL:QUANT] [--models DIR] [--runs 5]

The run with the median time to ready is drawn. `LoadStats.spans` is the source of
fastwhisper's bars; mlx_whisper's are its import and its `load_model`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import matplotlib as mpl

from bench.models import model_directory

mpl.use("Agg")

from matplotlib import pyplot as plt

Bar = tuple[str, float, float]

FASTWHISPER: Final = """
import json, sys, time
begin = float(sys.argv[1])
import anyio, fastwhisper
async def main():
    opening = time.time() - begin
    async with fastwhisper.open(sys.argv[2], dtype="float16") as session:
        ready = time.time() - begin
        bars = [("Python", 0.0, opening)]
        shift = ready - max(span.end_s for span in session.state.stats.spans)
        for span in session.state.stats.spans:
            bars.append((span.name, span.start_s + shift, span.end_s + shift))
    print(json.dumps(bars))
anyio.run(main)
"""
MLX_WHISPER: Final = """
import json, sys, time
begin = float(sys.argv[1])
import mlx.core as mx
started = time.time() - begin
from mlx_whisper.load_models import load_model
imported = time.time() - begin
load_model(sys.argv[2], dtype=mx.float16)
ready = time.time() - begin
bars = [("Python", 0.0, started), ("import mlx_whisper", started, imported)]
print(json.dumps([*bars, ("load_model", imported, ready)]))
"""
COLOURS: Final = {
    "read": "#3b7dd8",
    "import": "#c9772b",
    "import mlx_whisper": "#c9772b",
    "load_model": "#3b7dd8",
    "Python": "#8a8a8a",
}


def measure(script: str, directory: Path, runs: int) -> list[Bar]:
    """Run a script some times; give the bars of the run that was ready in median time."""
    outcomes: list[list[Bar]] = []
    for number in range(runs + 1):
        done = subprocess.run(
            [sys.executable, "-c", script, str(time.time()), str(directory)],
            stdout=subprocess.PIPE,
            check=True,
        )
        if number > 0:  # the first fills the page cache
            outcomes.append([(str(n), float(a), float(b)) for n, a, b in json.loads(done.stdout)])
    outcomes.sort(key=lambda bars: max(bar[2] for bar in bars))
    return outcomes[len(outcomes) // 2]


def rows_of(bars: list[Bar]) -> list[list[Bar]]:
    """Put bars that overlap on rows of their own."""
    rows: list[list[Bar]] = []
    for bar in sorted(bars, key=lambda bar: bar[1]):
        row = next((row for row in rows if row[-1][2] <= bar[1] + 1e-4), None)
        if row is None:
            rows.append([bar])
        else:
            row.append(bar)
    return rows


def draw(charts: dict[str, list[Bar]], out: Path, title: str) -> None:
    """Draw the charts above each other, on one axis of time."""
    rows = {name: rows_of(bars) for name, bars in charts.items()}
    end_s = max(bar[2] for bars in charts.values() for bar in bars)
    figure, axes = plt.subplots(
        len(charts),
        1,
        sharex=True,
        figsize=(9, 0.42 * sum(len(r) for r in rows.values()) + 1.6),
        height_ratios=[len(r) for r in rows.values()],
        layout="constrained",
    )
    for axis, (name, lanes) in zip(axes, rows.items(), strict=True):
        ready_s = max(bar[2] for lane in lanes for bar in lane)
        for number, lane in enumerate(lanes):
            for label, start_s, stop_s in lane:
                axis.barh(
                    number,
                    stop_s - start_s,
                    left=start_s,
                    color=COLOURS.get(label, "#7a9e7e"),
                    edgecolor="white",
                )
                if stop_s - start_s > end_s * 0.006 * len(label):
                    axis.text(
                        (start_s + stop_s) / 2, number, label, ha="center", va="center",
                        fontsize=7, color="white", clip_on=True,
                    )  # fmt: skip
        axis.axvline(ready_s, color="black", linewidth=1)
        axis.set_title(f"{name}: ready after {ready_s:.2f} s", loc="left", fontsize=9)
        axis.set_yticks([])
        axis.invert_yaxis()
    axes[-1].set_xlabel("seconds since the process began")
    figure.suptitle(title, fontsize=9)
    figure.savefig(out, dpi=110)


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--case", default="large-v3-turbo:int4", metavar="MODEL:QUANT")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--machine", default="Linux CPU")
    options = parser.parse_args()
    model, _, quant = options.case.partition(":")
    directory = model_directory(model, quant, options.models)
    charts = {
        "fastwhisper": measure(FASTWHISPER, directory, options.runs),
        "mlx_whisper": measure(MLX_WHISPER, directory, options.runs),
    }
    today = time.strftime("%Y-%m-%d")
    draw(charts, options.out, f"{model} {quant}, {options.machine}, warm page cache, {today}")


if __name__ == "__main__":
    main()
