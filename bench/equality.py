"""Compare texts, times and words with mlx_whisper's, on real weights and real speech.

usage: python -m bench.equality [--model NAME or DIR] [--only WORD] [--failed] [--changes] FILE ...

Both compute in float32. mlx_whisper's faults, docs/differences.md, are put right before, and our
times are not bounded by the end of the audio. mlx_whisper is given our samples. Prints one row for
each file and set of options, and how many rows are equal; the exit status is 1 if any row differs.
With `--changes` it prints instead which of the files mlx_whisper as it is writes down differently,
and which corrections that comes from.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio

import fastwhisper
from fastwhisper.engine import blas
from fastwhisper.transcribing.samples import load_audio

blas.prepare()

import mlx.core as mx  # noqa: E402  after the BLAS
from mlx.utils import tree_flatten  # noqa: E402
from mlx_whisper.transcribe import transcribe  # noqa: E402

from tests.helpers.reference import (  # noqa: E402
    CORRECTIONS,
    import_reference,
    leave_out_bounds,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_GREEDY: Final[dict[str, Any]] = {"temperature": 0.0}
OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "defaults (ladder)": {},
    "temperature 0": _GREEDY,
    "words": {**_GREEDY, "word_timestamps": True},
    "words, skip silence": {
        **_GREEDY,
        "word_timestamps": True,
        "hallucination_silence_threshold": 1.0,
    },
    "not conditioned": {**_GREEDY, "condition_on_previous_text": False},
    "initial prompt": {**_GREEDY, "initial_prompt": "Ask not, fellow citizens."},
    "clips": {**_GREEDY, "clip_timestamps": "1.5,6"},
    "open clip": {**_GREEDY, "clip_timestamps": "4"},
    "no timestamps": {**_GREEDY, "without_timestamps": True},
    "thresholds": {
        **_GREEDY,
        "no_speech_threshold": 0.01,
        "logprob_threshold": -0.1,
        "compression_ratio_threshold": 1.2,
    },
    "suppress, prefix": {**_GREEDY, "suppress_tokens": [-1, 11, 13], "prefix": " And"},
}
MULTILINGUAL: Final[dict[str, dict[str, Any]]] = {
    "translate": {**_GREEDY, "task": "translate"},
    "language es": {**_GREEDY, "language": "es"},
}
_SAME_S: Final = 0.010
_AS_IS: Final = "as it is"
_HEAD: Final = ("model", "file", "options", "windows", "segments", "words", "text", "tokens",
                "max dt, ms", "max word dt, ms", "max dlogprob")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """What two transcriptions have in common."""

    windows: int
    segments: int
    words: int
    same_text: bool
    same_tokens: bool
    segment_s: float
    word_s: float
    logprob: float

    @property
    def is_equal(self) -> bool:
        """Whether texts and tokens are equal, and times to 10 ms."""
        times = max(self.segment_s, self.word_s)
        return self.same_text and self.same_tokens and times <= _SAME_S

    def cells(self) -> Iterator[str]:
        """Give what the table shows."""
        yield from map(str, (self.windows, self.segments, self.words))
        yield "equal" if self.same_text else "DIFFERS"
        yield "equal" if self.same_tokens else "DIFFERS"
        yield from (f"{1000 * time_s:.0f}" for time_s in (self.segment_s, self.word_s))
        yield f"{self.logprob:.0e}"


def compare(ours: fastwhisper.Transcription, theirs: dict[str, Any]) -> Row:
    """Compare our result with one of `mlx_whisper.transcribe`."""
    segments = ours.segments
    others = theirs["segments"]
    pairs = list(zip(segments, others, strict=False))
    words = [word for segment in segments for word in segment.words or ()]
    other_words = [word for segment in others for word in segment.get("words", ())]
    same_words = [w.word for w in words] == [w["word"] for w in other_words]
    word_pairs = list(zip(words, other_words, strict=False))
    return Row(
        windows=len({segment.seek_frames for segment in segments}),
        segments=len(segments),
        words=len(words),
        same_text=ours.text == theirs["text"]
        and ours.language == theirs["language"]
        and [s.text for s in segments] == [s["text"] for s in others]
        and same_words,
        same_tokens=[list(s.tokens) for s in segments] == [s["tokens"] for s in others]
        and [s.seek_frames for s in segments] == [s["seek"] for s in others],
        segment_s=_most(
            [s.start_s - t["start"] for s, t in pairs] + [s.end_s - t["end"] for s, t in pairs]
        ),
        word_s=_most(
            [w.start_s - t["start"] for w, t in word_pairs]
            + [w.end_s - t["end"] for w, t in word_pairs]
        ),
        logprob=_most([s.avg_logprob - t["avg_logprob"] for s, t in pairs]),
    )


def _most(differences: Sequence[float]) -> float:
    return max(map(abs, differences), default=0.0)


def measure(model: str, files: Sequence[Path], scratch: Path, options: argparse.Namespace) -> bool:
    """Print the rows of one model; return whether all are equal."""
    directory = _as_upstream_reads(model, scratch / Path(model).name)
    rows = equal = 0
    with leave_out_bounds():
        results = anyio.run(_ours, directory, files, options.only)
    for path, name, settings, result in results:
        theirs = import_reference().transcribe(
            load_audio(path), path_or_hf_repo=str(directory), fp16=False, **settings
        )
        row = compare(result, theirs)
        rows += 1
        equal += row.is_equal
        if not (options.failed and row.is_equal):
            print(
                "|", " | ".join((Path(model).name, path.name, name, *row.cells())), "|", flush=True
            )
    print(f"\n{model}: {equal} of {rows} rows equal")
    return equal == rows


def explain(model: str, files: Sequence[Path], scratch: Path) -> None:
    """Print which files mlx_whisper as it is writes down differently, and why."""
    directory = _as_upstream_reads(model, scratch / Path(model).name)
    found = dict.fromkeys((_AS_IS, *CORRECTIONS), 0)
    for path in files:
        samples = load_audio(path)

        def say(transcribe: Callable[..., Any], samples: Any = samples) -> object:
            mx.random.seed(0)
            result = transcribe(samples, path_or_hf_repo=str(directory), fp16=False)
            return [(s["start"], s["end"], s["tokens"]) for s in result["segments"]]

        plain = say(transcribe)
        if plain == say(import_reference().transcribe):
            continue
        found[_AS_IS] += 1
        reasons = [n for n in CORRECTIONS if say(import_reference(n).transcribe) != plain]
        for name in reasons:
            found[name] += 1
        print("|", path.name, "|", ", ".join(reasons) or "together", "|", flush=True)
    print(f"\n{model}, {len(files)} files, default options:", found)


async def _ours(
    directory: Path, files: Sequence[Path], chosen: str | None
) -> list[tuple[Path, str, dict[str, Any], fastwhisper.Transcription]]:
    """Transcribe each file with each set of options."""
    async with fastwhisper.open(directory, dtype="float32") as session:
        matrix = OPTIONS | (MULTILINGUAL if session.result.model.is_multilingual else {})
        return [
            (path, name, settings, await session.transcribe(path, seed=0, **settings))
            for path in files
            for name, settings in matrix.items()
            if chosen is None or chosen in name
        ]


def _as_upstream_reads(model: str | Path, directory: Path) -> Path:
    """Write a model as mlx_whisper can read it: CTranslate2 it can't.

    In float32, since mlx_whisper keeps a file's float16: it would add the embedding of a token and
    of its position in float16, and sampled tokens depend on the last bits.
    """
    directory.mkdir()
    source = anyio.run(_locate, model)
    checkpoint = fastwhisper.inspect_checkpoint(source)
    module = fastwhisper.load_model(source)
    module.set_dtype(mx.float32)
    weights = dict(tree_flatten(module.parameters()))
    mx.save_safetensors(str(directory / "weights.safetensors"), weights)
    (directory / "config.json").write_text(json.dumps(asdict(checkpoint.dimensions)))
    return directory


async def _locate(model: str | Path) -> Path:
    async with fastwhisper.open(model, offline=True) as session:
        return session.result.path


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--model", default="tiny.en", help="name, or directory")
    parser.add_argument("--only", help="a part of the name of the options to compare")
    parser.add_argument("--failed", action="store_true", help="print only rows that differ")
    parser.add_argument("--changes", action="store_true", help="compare mlx_whisper as it is")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.changes:
            explain(options.model, options.files, Path(scratch))
            return
        print("|", " | ".join(_HEAD), "|")
        print("|", " | ".join("---" for _ in _HEAD), "|")
        equal = measure(options.model, options.files, Path(scratch), options)
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
