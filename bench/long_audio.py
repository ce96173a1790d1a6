"""Peak memory and time of an hour of speech against a minute, each in a process of its own.

usage: python -m bench.long_audio [--model tiny.en] [--windows N] [--minutes 1 60]

The recording is `tests/data/sample.ogg` over and over. `open` is the peak before any audio;
`peak` is that of the whole run, `more` the difference; the mel of an hour is 115 MB at 80
filters. `mlx_whisper` is its whole-file path up to the mel. With `--windows`, decoding ends
after so many; the mel is always that of the whole file. Then the text of the first
`--prefix` seconds is compared with mlx_whisper's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import av
import numpy as np

from fastwhisper.transcribing.samples import load_audio
from fastwhisper.whisper.filters import SAMPLE_RATE

SAMPLE: Final = Path(__file__).parent.parent / "tests" / "data" / "sample.ogg"

OURS: Final = """
import json, resource, sys, time
import anyio, fastwhisper
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
async def main(model, path, windows):
    async with fastwhisper.open(model, offline=True) as session:
        opened = peak()
        begin_s = time.perf_counter()
        stream = session.stream(path, temperature=0, language="en")
        first_s = done = 0
        while done != windows and await stream.decode_window():
            done += 1
            first_s = first_s or time.perf_counter() - begin_s
        print(json.dumps({
            "audio_s": stream.duration_s, "windows": done, "open_mib": opened,
            "peak_mib": peak(), "first_s": first_s, "all_s": time.perf_counter() - begin_s,
        }))
anyio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))
"""
UPSTREAMS: Final = """
import json, resource, sys, time
from fastwhisper.engine import blas
blas.prepare()
import mlx.core as mx
from mlx_whisper.load_models import load_model
from mlx_whisper.audio import N_SAMPLES, log_mel_spectrogram
from fastwhisper.transcribing.samples import load_audio
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
opened = peak()
begin_s = time.perf_counter()
samples = load_audio(sys.argv[2])
mx.eval(log_mel_spectrogram(samples, padding=N_SAMPLES))
print(json.dumps({
    "audio_s": len(samples) / 16000, "windows": 0, "open_mib": opened,
    "peak_mib": peak(), "first_s": 0.0, "all_s": time.perf_counter() - begin_s,
}))
"""
EQUAL: Final = """
import sys
import anyio, fastwhisper
from fastwhisper.engine import blas
blas.prepare()
import mlx.core as mx
from mlx_whisper.transcribe import ModelHolder, transcribe
from fastwhisper.transcribing.samples import load_audio
async def ours(model, path):
    async with fastwhisper.open(model, offline=True, dtype="float32") as session:
        return session.result.path, await session.transcribe(path, temperature=0)
directory, result = anyio.run(ours, *sys.argv[1:3])
# What mlx_whisper can't read is read for it.
ModelHolder.model = fastwhisper.load_model(directory)
ModelHolder.model_path = str(directory)
samples = load_audio(sys.argv[2])
theirs = transcribe(samples, path_or_hf_repo=str(directory), fp16=False, temperature=0)
same = result.text == theirs["text"] and [s.start_s for s in result.segments] == [
    s["start"] for s in theirs["segments"]
]
print("equal" if same else "DIFFERENT")
"""


def record(path: Path, seconds: float) -> None:
    """Write the sample over and over, as FLAC."""
    spoken = (load_audio(SAMPLE) * 32768).astype(np.int16)
    left = round(seconds * SAMPLE_RATE)
    with av.open(path, "w") as file:
        stream = file.add_stream("flac", rate=SAMPLE_RATE, layout="mono")
        while left > 0:
            part = spoken[:left]
            frame = av.AudioFrame.from_ndarray(part[None], format="s16", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            file.mux(stream.encode(frame))
            left -= len(part)
        file.mux(stream.encode(None))


def run(script: str, *arguments: object) -> str:
    """Run a script in a process of its own; give what it prints."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def main() -> None:
    """Print a table, and whether the texts are equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny.en", help="a name that is on disk, or a directory")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 60])
    parser.add_argument("--windows", type=int, default=-1, help="decode so many; default: all")
    parser.add_argument("--prefix", type=float, default=70, help="seconds whose text is compared")
    options = parser.parse_args()
    print("| | audio, s | windows | open, MiB | peak, MiB | more, MiB | first window, s | all, s |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for minutes in options.minutes:
            path = Path(scratch, f"{minutes:g}.flac")
            record(path, 60 * minutes)
            for name, script in (("fastwhisper", OURS), ("mlx_whisper", UPSTREAMS)):
                row: dict[str, Any] = json.loads(run(script, options.model, path, options.windows))
                more = row["peak_mib"] - row["open_mib"]
                print(
                    f"| {name} | {row['audio_s']:.0f} | {row['windows']} | {row['open_mib']:.0f} | "
                    f"{row['peak_mib']:.0f} | {more:.0f} | {row['first_s']:.1f} | "
                    f"{row['all_s']:.1f} |",
                    flush=True,
                )
        prefix = Path(scratch, "prefix.flac")
        record(prefix, options.prefix)
        verdict = run(EQUAL, options.model, prefix).strip()
    print(f"\ntext and times of the first {options.prefix:g} s: {verdict}")
    sys.exit(0 if verdict == "equal" else 1)


if __name__ == "__main__":
    main()
