"""Time speech to text against other programs, in turn: whole processes, windows, batches, words.

usage: python -m bench.text start AUDIO ...             process start -> ready -> text
       python -m bench.text windows MODEL:QUANT ...     first and second window, 100 tokens
       python -m bench.text batches MODEL AUDIO ...     real-time factor by batch size
       python -m bench.text words AUDIO ...             a warm session, plain and with word times

Prints tables for docs/benchmarks.md. Figures are medians of all rounds, ratios medians of the
ratios of all rounds. The first round is not counted. Put `--help` behind a command for its options.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import tempfile
import wave
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bench.contestants import BASE, OURS, PROGRAMS, Contestant, Process, find
from fastwhisper.engine import blas
from fastwhisper.transcribing.samples import load_audio
from fastwhisper.whisper.filters import SAMPLE_RATE

BLAS: Final = blas.prepare()

import mlx.core as mx  # noqa: E402  after the BLAS

from bench.tables import Times, compute_ratio, print_head, print_row, print_table  # noqa: E402  imports MLX
from bench.weights import Weights  # noqa: E402  imports MLX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SAMPLE: Final = Path(__file__).parent.parent / "tests" / "data" / "sample.ogg"
NOISE: Final[dict[str, Any]] = {"language": "en", "temperature": 0, "without_timestamps": True}
GREEDY: Final[dict[str, Any]] = {"temperature": 0, "without_timestamps": True, "sample_len": 100}
ONLY_OURS: Final = frozenset({"batch_size", "carry_initial_prompt", "languages", "vad_filter"})
FEW, MANY = 8, 108
"""Tokens of a short and of a long window of noise."""


class Run:
    """What the commands share: the options, the contestants, and the files that they are given."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options = options
        self.scratch = scratch
        self.texts: dict[str, dict[str, str]] = defaultdict(dict)
        self.has_gpu = mx.default_device().type == mx.gpu
        self.contestants = list(self._find())
        self._decoded: dict[Path, Path] = {}

    def _find(self) -> Iterator[Contestant]:
        pythons = dict(pair.split("=", 1) for pair in self.options.python)
        if unknown := (pythons.keys() | set(self.options.peers or ())) - PROGRAMS.keys():
            raise SystemExit(f"unknown program {', '.join(unknown)}; known: {', '.join(PROGRAMS)}")
        asked = self.options.peers or self.options.known
        base = self.options.base and self.options.base.absolute()
        names = ["fastwhisper", *([BASE] if base else []), *asked]
        for name in names:
            where = {"faster-whisper": "CPU", "transformers": "GPU"}.get(name)
            if self.options.peers is None and where == ("CPU" if self.has_gpu else "GPU"):
                print(f"{name} is left out: it is measured on a {where}")
                continue
            python = pythons.get(name)
            if python:
                python = os.path.abspath(shutil.which(python) or python)  # noqa: PTH100  keeps links
            found = find(name, python=python, base=base, blas=BLAS, scratch=self.scratch)
            if found:
                yield found
            else:
                print(f"{name} is left out: it is not installed")

    def enter(self, weights: Weights, *, same: bool) -> dict[str, str]:
        """Return what each contestant opens; leave out those that can't open the model.

        Args:
            weights: The model.
            same: Whether fastwhisper opens mlx_whisper's files, rather than the user's.
        """
        models = {}
        for contestant in list(self.contestants):
            name = contestant.name
            own = weights.for_contestant(name)
            if same and name in OURS:
                own = str(weights.in_mlx_layout())
            if own is None:
                print(f"{name} is left out: it can't open the files of {weights.model}")
                self.contestants.remove(contestant)
            else:
                models[name] = own
        return models

    def give(self, contestant: Contestant, audio: Path) -> Path:
        """Return the file that a contestant reads: samples, if it can't decode audio here."""
        if contestant.name == "transformers" or (
            contestant.name == "mlx_whisper" and shutil.which("ffmpeg") is None
        ):
            return self.decode(audio)
        return audio.absolute()

    def decode(self, audio: Path) -> Path:
        """Write the samples of an audio as an array, once."""
        if audio not in self._decoded:
            samples = audio.suffix == ".npy"
            self._decoded[audio] = (
                audio if samples else self.save(load_audio(audio), f"{len(self._decoded)}")
            )
        return self._decoded[audio]

    def save(self, samples: np.ndarray[Any, Any], name: str) -> Path:
        """Write samples as an array."""
        path = self.scratch / f"{name}.npy"
        np.save(path, samples)
        return path

    def compare_texts(self) -> None:
        """Print which contestants wrote something else than fastwhisper."""
        for label, texts in self.texts.items():
            others = [name for name, text in texts.items() if text != texts["fastwhisper"]]
            print(f"Text of {label}: {'differs in ' + ', '.join(others) if others else 'equal'}")


def start(run: Run) -> None:
    """Time whole processes: from their start until ready, and until the text of one audio."""
    models = run.enter(Weights(run.options.model, run.scratch), same=False)
    times: Times = defaultdict(lambda: defaultdict(list))
    for number in range(run.options.runs + 1):
        for audio in run.options.audio:
            for contestant in list(run.contestants):
                name = contestant.name
                with Process(contestant, models[name]) as process:
                    process.give(run.give(contestant, audio), {"temperature": 0})
                    try:
                        ready, text = process.read(), process.read()
                    except RuntimeError as error:
                        if name == "fastwhisper":
                            raise
                        print(f"{name} is left out: {error}")
                        run.contestants.remove(contestant)
                        continue
                run.texts[audio.name][name] = text["text"]
                if number > 0:
                    times["ready"][name].append(ready["since_start"])
                    times[_describe(audio)][name].append(text["since_start"])
    print_head(run.contestants)
    print_table(run.contestants, f"{run.options.model}, process start →", times)
    run.compare_texts()


def windows(run: Run) -> None:
    """Time windows of noise in fresh processes: the first, the second, and 100 tokens more."""
    generator = np.random.default_rng(0)
    noise = run.save(generator.normal(0, 0.1, 30 * SAMPLE_RATE).astype(np.float32), "noise")
    tables: dict[str, Times] = {}
    for case in run.options.cases:
        models = run.enter(Weights(case, run.scratch, run.options.models), same=True)
        times: Times = defaultdict(lambda: defaultdict(list))
        for number in range(run.options.runs + 1):
            for contestant in run.contestants:
                with Process(contestant, models[contestant.name]) as process:
                    figures = _time_windows(process, noise)
                for label, seconds in figures.items():
                    if number > 0:  # the first compiles kernels and fills the page cache
                        times[label][contestant.name].append(seconds)
        tables[case] = times
    print_head(run.contestants)
    for case, times in tables.items():
        print_table(run.contestants, case.replace(":", " "), times, digits=3)


def _time_windows(process: Process, noise: Path) -> dict[str, float]:
    """Run a few windows in a process, and return the seconds of each step."""

    def decode(tokens: int) -> dict[str, Any]:
        result = process.run(noise, {**NOISE, "sample_len": tokens})
        if result["tokens"] != tokens:
            raise RuntimeError(f"a window of noise has {result['tokens']} tokens, not {tokens}")
        return result

    ready_s = process.read()["since_start"]
    first, second = decode(FEW), decode(FEW)
    decode(MANY)
    difference_s = [decode(MANY)["seconds"] - decode(FEW)["seconds"] for _ in range(3)]
    return {
        "process start → ready": ready_s,
        "process start → end of the first window": first["since_start"],
        "first window": first["seconds"],
        f"second window, {FEW} tokens": second["seconds"],
        f"{MANY - FEW} tokens after the encoder": statistics.median(difference_s),
    }


def batches(run: Run) -> None:
    """Time a long audio in warm sessions, by batch size."""
    options = run.options
    samples = np.concatenate([load_audio(audio) for audio in options.audio])
    if options.repeat_to:
        samples = np.resize(samples, options.repeat_to * SAMPLE_RATE)
    duration_s = len(samples) / SAMPLE_RATE
    audio = _write_wave(samples, run.scratch) if options.file else run.save(samples, "audio")
    common = (GREEDY if options.greedy else {}) | _parse(options.options)
    jobs: dict[tuple[str, int], dict[str, Any]] = {}
    for contestant in run.contestants:
        ours = contestant.name in OURS
        job = {key: value for key, value in common.items() if ours or key not in ONLY_OURS}
        if options.clips and ours:
            starts = np.arange(0, duration_s, options.clips).tolist()
            job["clip_timestamps"] = [time_s for end in starts[1:] for time_s in (end, end)]
            job["clip_timestamps"].insert(0, 0)
        if options.clips:
            job["condition_on_previous_text"] = False
        for size in options.sizes if contestant.name == "fastwhisper" else [1]:
            jobs[contestant.name, size] = job | ({"batch_size": size} if size > 1 else {})
    results = _alternate(run, audio, jobs)
    print_head(run.contestants)
    peers = [one.name for one in run.contestants[1:]]
    title = f"{options.model.replace(':', ' ')}, {duration_s:.0f} s of audio"
    print_row(title, "batch", "time", "real-time factor", "tokens a second",
         *(f"{peer} / this" for peer in peers), "batch 1 / this")  # fmt: skip
    print_row(*("---" for _ in range(len(peers) + 6)))
    for (name, size), many in results.items():
        seconds = [one["seconds"] for one in many]
        others = [*((peer, 1) for peer in peers), ("fastwhisper", 1)]
        ratios = (
            f"{compute_ratio([one['seconds'] for one in results[other]], seconds):.2f}"
            if other in results and (name == "fastwhisper" or other == (name, 1)) else ""
            for other in others
        )  # fmt: skip
        median_s = statistics.median(seconds)
        tokens = statistics.median(one["tokens"] for one in many)
        print_row(name, size, f"{median_s:.2f} s", f"{median_s / duration_s:.4f}",
             f"{tokens / median_s:.0f}", *ratios)  # fmt: skip
    print(flush=True)


def words(run: Run) -> None:
    """Time warm sessions, plain and with the times of words."""
    times: Times = {}
    kinds: dict[str, dict[str, Any]] = {"plain": {}, "with words": {"word_timestamps": True}}
    for audio in run.options.audio:
        for kind, more in kinds.items():
            job = {"temperature": 0} | _parse(run.options.options) | more
            jobs = {(one.name, 1): job for one in run.contestants}
            results = _alternate(run, audio if run.options.file else run.decode(audio), jobs)
            label = f"{_describe(audio)}, {kind}"
            times[label] = {
                name: [one["seconds"] for one in many] for (name, _), many in results.items()
            }
            run.texts[f"{audio.name}, {kind}"] = {
                name: many[0]["text"] for (name, _), many in results.items()
            }
    print_head(run.contestants)
    print_table(run.contestants, f"{run.options.model}, warm", times, digits=3)
    run.compare_texts()


def _alternate(
    run: Run, audio: Path, jobs: dict[tuple[str, int], dict[str, Any]]
) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Run jobs in turn, in one process of each contestant; return the results but the first."""
    models = run.enter(Weights(run.options.model, run.scratch, run.options.models), same=True)
    jobs = {key: job for key, job in jobs.items() if key[0] in models}
    results: dict[tuple[str, int], list[dict[str, Any]]] = {key: [] for key in jobs}
    with contextlib.ExitStack() as stack:
        processes = {}
        for contestant in run.contestants:
            name = contestant.name
            processes[name] = stack.enter_context(Process(contestant, models[name]))
            processes[name].read()
        files = {one.name: run.give(one, audio) for one in run.contestants}
        for number in range(run.options.runs + 1):
            for (name, size), options in jobs.items():
                result = processes[name].run(files[name], options)
                if number > 0:
                    results[name, size].append(result)
    return results


def _parse(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse options of transcribe, given as name=value; a value is JSON, or else a string."""
    parsed: dict[str, Any] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            parsed[name] = json.loads(value)
        except ValueError:
            parsed[name] = value
    return parsed


def _write_wave(samples: np.ndarray[Any, Any], folder: Path) -> Path:
    path = folder / "audio.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", "NONE"))
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return path


def _describe(audio: Path) -> str:
    return f"text of {len(load_audio(audio)) / SAMPLE_RATE:.0f} s"


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        function: Callable[[Run], None], runs: int, known: Sequence[str]
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(function.__name__, description=function.__doc__)
        command.set_defaults(function=function, known=known)
        command.add_argument(
            "--runs", "--pairs", type=int, default=runs, help="rounds that are counted"
        )
        command.add_argument(
            "--peers", nargs="+", metavar="NAME", help=f"default: {', '.join(known)}"
        )
        command.add_argument(
            "--python", action="append", default=[], metavar="NAME=PATH",
            help="the interpreter of a peer that is in another environment",
        )  # fmt: skip
        command.add_argument("--base", type=Path, help="another checkout of fastwhisper")
        command.add_argument("--models", type=Path, help="where random weights are kept")
        return command

    mlx_only = ["mlx_whisper"]
    one = add(start, 7, ["mlx_whisper", "faster-whisper", "transformers"])
    one.add_argument("--model", default="tiny.en", help="name or directory")
    one.add_argument("audio", nargs="*", type=Path, default=[SAMPLE])
    one = add(windows, 5, mlx_only)
    default = ["large-v3-turbo:float16", "large-v3-turbo:int4"]
    one.add_argument("cases", nargs="*", default=default, metavar="MODEL:QUANT")
    one = add(batches, 5, mlx_only)
    one.add_argument("model", help="name, directory, or MODEL:QUANT for random weights")
    one.add_argument("audio", nargs="+", type=Path)
    one.add_argument("--sizes", type=lambda text: [int(size) for size in text.split(",")],
                     default=[1, 8, 16])  # fmt: skip
    one.add_argument("--clips", type=int, help="seconds: cut there, and not at silences")
    one.add_argument("--repeat-to", type=int, help="seconds: repeat the audio up to this length")
    one.add_argument("--greedy", action="store_true", help="100 tokens a window, at temperature 0")
    one.add_argument("--file", action="store_true", help="hand over a file, and not samples")
    one.add_argument("--options", nargs="+", default=[], metavar="NAME=VALUE")
    one = add(words, 5, mlx_only)
    one.add_argument("audio", nargs="*", type=Path, default=[SAMPLE])
    one.add_argument("--model", default="tiny.en", help="name or directory")
    one.add_argument("--file", action="store_true", help="hand over the file, and not samples")
    one.add_argument("--options", nargs="+", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        options.function(Run(options, Path(scratch)))


if __name__ == "__main__":
    main()
