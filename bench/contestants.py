"""The programs that `bench.text` times: one process each, which reads jobs and writes results.

A process writes one line of JSON when its model is ready, and one after each job. A job is an audio
and options of the program's own `transcribe`. Its seconds are measured inside the process, those
since the start outside. A program may run in another environment: it needs only itself there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["BASE", "OURS", "PROGRAMS", "Contestant", "Process", "find"]

_COMMON: Final = """
import json, sys, time
def read_job():
    job = json.loads(sys.stdin.readline() or "null")
    if job is None:
        return None
    if job["audio"].endswith(".npy"):
        import numpy
        return numpy.load(job["audio"]), job["options"]
    return job["audio"], job["options"]
def say(**what):
    print(json.dumps(what), flush=True)
"""
_FASTWHISPER: Final = """
import anyio, anyio.to_thread, fastwhisper
async def main():
    async with fastwhisper.open(sys.argv[1]) as session:
        say(ready=True)
        while job := await anyio.to_thread.run_sync(read_job):
            audio, options = job
            begin = time.perf_counter()
            result = await session.transcribe(audio, **options)
            say(seconds=time.perf_counter() - begin, text=result.text,
                tokens=sum(len(segment.tokens) for segment in result.segments))
anyio.run(main)
"""
_MLX_WHISPER: Final = """
import mlx.core as mx, mlx_whisper
from mlx_whisper.transcribe import ModelHolder
half = mx.default_device().type == mx.gpu
ModelHolder.get_model(sys.argv[1], mx.float16 if half else mx.float32)
say(ready=True)
while job := read_job():
    audio, options = job
    begin = time.perf_counter()
    result = mlx_whisper.transcribe(audio, path_or_hf_repo=sys.argv[1], fp16=half, **options)
    say(seconds=time.perf_counter() - begin, text=result["text"],
        tokens=sum(len(segment["tokens"]) for segment in result["segments"]))
"""
_FASTER_WHISPER: Final = """
from faster_whisper import WhisperModel
model = WhisperModel(sys.argv[1], device="cpu", compute_type="float32")
say(ready=True)
while job := read_job():
    audio, options = job
    begin = time.perf_counter()
    segments = list(model.transcribe(audio, beam_size=1, **options)[0])
    say(seconds=time.perf_counter() - begin, text="".join(segment.text for segment in segments),
        tokens=sum(len(segment.tokens) for segment in segments))
"""
# The pipeline has five beams by default. It cuts off what is behind 30 s unless times are returned.
# Without sampling the temperature is 0.
_TRANSFORMERS: Final = """
import torch
from transformers import (AutomaticSpeechRecognitionPipeline, WhisperFeatureExtractor,
                          WhisperForConditionalGeneration, WhisperTokenizerFast)
device = "cuda" if torch.cuda.is_available() else "cpu"
model = WhisperForConditionalGeneration.from_pretrained(
    sys.argv[1], dtype=torch.float16 if device == "cuda" else torch.float32).to(device)
recognize = AutomaticSpeechRecognitionPipeline(
    model=model, device=device,
    tokenizer=WhisperTokenizerFast(tokenizer_file=sys.argv[1] + "/tokenizer.json"),
    feature_extractor=WhisperFeatureExtractor(model.config.num_mel_bins))
say(ready=True)
while job := read_job():
    audio, options = job
    begin = time.perf_counter()
    result = recognize({"raw": audio, "sampling_rate": 16000}, return_timestamps=True,
                       generate_kwargs={"num_beams": 1, "do_sample": False})
    say(seconds=time.perf_counter() - begin, text=result["text"], tokens=None)
"""

BASE: Final = "base"
"""Another checkout of fastwhisper."""
PROGRAMS: Final = {
    "fastwhisper": ("fastwhisper", _FASTWHISPER),
    BASE: ("fastwhisper", _FASTWHISPER),
    "mlx_whisper": ("mlx_whisper", _MLX_WHISPER),
    "faster-whisper": ("faster_whisper", _FASTER_WHISPER),
    "transformers": ("transformers", _TRANSFORMERS),
}
"""The package and the script of each contestant."""
OURS: Final = frozenset({"fastwhisper", BASE})

_REPOSITORY: Final = Path(__file__).parent.parent
_PROBE: Final = """
import importlib.metadata, importlib.util, sys
name = sys.argv[1]
found = importlib.util.find_spec(name)
if found is None or (name == "transformers" and importlib.util.find_spec("torch") is None):
    sys.exit("not installed")
try:
    version = importlib.metadata.version(name.replace("_", "-"))
except importlib.metadata.PackageNotFoundError:
    version = "(its folder)"
print(found.origin, version, sep="\\n")
"""


@dataclass(frozen=True, slots=True)
class Contestant:
    """A program that transcribes, in an environment.

    Attributes:
        name: A key of `PROGRAMS`.
        python: The interpreter that runs it.
        folder: Where it runs: `import fastwhisper` takes the package there first.
        version: Version of the package.
        environment: Its environment variables.
    """

    name: str
    python: str
    folder: Path
    version: str
    environment: dict[str, str] = field(repr=False)


def find(
    name: str, *, python: str | None, base: Path | None, blas: str | None, scratch: Path
) -> Contestant | None:
    """Find an installed program.

    Args:
        name: A key of `PROGRAMS`.
        python: Interpreter of another environment; None is this one's.
        base: Directory of the checkout that `BASE` stands for.
        blas: The library that fastwhisper loads. mlx_whisper is given it too: the networks are
            compared, not MLX's own slow BLAS.
        scratch: A directory for files of this run.

    Returns:
        The program, or None if it is not installed.

    Raises:
        FileNotFoundError: `base` holds no fastwhisper.
    """
    folder = {"fastwhisper": _REPOSITORY, BASE: base or scratch}.get(name, scratch)
    environment = dict(os.environ)
    # The first round writes bytecode, which is not counted: processes are compared, not compilers.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if blas and name == "mlx_whisper":
        environment["LD_PRELOAD"] = blas
    if name in OURS:
        # Versions don't share converted copies.
        environment |= {"PYTHONPATH": str(folder), "FASTWHISPER_CACHE": str(scratch / name)}
    done = subprocess.run(
        [python or sys.executable, "-c", _PROBE, PROGRAMS[name][0]],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode != 0:
        return None
    origin, version = done.stdout.splitlines()
    if name == BASE:
        if not Path(origin).is_relative_to(folder):
            raise FileNotFoundError(f"no package fastwhisper: {folder}")
        version = "(another checkout)"
    elif blas and name == "mlx_whisper":
        version += f" with {blas}"
    return Contestant(name, python or sys.executable, folder, version, environment)


class Process:
    """A running contestant. Leaving its block ends the process."""

    def __init__(self, contestant: Contestant, model: str) -> None:
        self._name = contestant.name
        self._begin_s = time.perf_counter()
        self._process = subprocess.Popen(
            [contestant.python, "-c", _COMMON + PROGRAMS[contestant.name][1], model],
            cwd=contestant.folder,
            env=contestant.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        """Return the process."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the input, which ends the process, and wait."""
        self._process.communicate()

    def give(self, audio: Path, options: dict[str, Any]) -> None:
        """Hand over a job. It may be given before the model is ready."""
        if self._process.stdin is None:
            raise RuntimeError("the process has an input")
        self._process.stdin.write(json.dumps({"audio": str(audio), "options": options}) + "\n")
        self._process.stdin.flush()

    def read(self) -> dict[str, Any]:
        """Wait for the next line: that the model is ready, or the result of a job.

        Returns:
            `since_start` in seconds; after a job also its `seconds`, `text` and `tokens`.

        Raises:
            RuntimeError: The process has ended.
        """
        for line in self._process.stdout or ():
            if line.startswith("{"):  # not what a library prints
                return {**json.loads(line), "since_start": time.perf_counter() - self._begin_s}
        raise RuntimeError(f"{self._name} ended with {self._process.wait()}")

    def run(self, audio: Path, options: dict[str, Any]) -> dict[str, Any]:
        """Run one job, and return its result."""
        self.give(audio, options)
        return self.read()
