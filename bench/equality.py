"""Compare texts, times and words with mlx_whisper's, on real weights and real speech.

usage: python -m bench.equality [--model tiny.en] [--base DIR --base-audio FILE ...] FILE ...

Both compute in float32. Where there is an `ffmpeg` command, mlx_whisper reads the files itself;
otherwise it is given our samples, and the table says so. Prints one row for each file and set of
options; the exit status is 1 if any row differs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio

import fastwhisper
from fastwhisper import blas

blas.prepare()

import mlx.core as mx  # noqa: E402  after the BLAS
from mlx.utils import tree_flatten  # noqa: E402
from mlx_whisper.transcribe import transcribe  # noqa: E402

from fastwhisper.audio import load_audio  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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


def measure(model: str | Path, files: Sequence[Path], scratch: Path, chosen: str | None) -> bool:
    """Print the rows of one model; give whether all are equal."""
    directory = _as_upstream_reads(model, scratch / Path(model).name)
    ours = anyio.run(partial(_ours, directory, files, chosen))
    equal = True
    for (path, name), (options, result) in ours.items():
        source = str(path) if shutil.which("ffmpeg") else load_audio(path)
        theirs = transcribe(source, path_or_hf_repo=str(directory), fp16=False, **options)
        row = compare(result, theirs)
        equal &= row.is_equal
        print("|", " | ".join((Path(model).name, path.name, name, *row.cells())), "|", flush=True)
    return equal


async def _ours(
    directory: Path, files: Sequence[Path], chosen: str | None
) -> dict[tuple[Path, str], tuple[dict[str, Any], fastwhisper.Transcription]]:
    results = {}
    async with fastwhisper.open(directory, dtype="float32") as session:
        matrix = OPTIONS | (MULTILINGUAL if session.result.model.is_multilingual else {})
        for path in files:
            for name, options in matrix.items():
                if chosen is None or chosen in name:
                    result = await session.transcribe(path, **options)
                    results[path, name] = options, result
    return results


def _as_upstream_reads(model: str | Path, directory: Path) -> Path:
    """Write a model as mlx_whisper can read it: CTranslate2 it can't."""
    directory.mkdir()
    source = anyio.run(_locate, model)
    checkpoint = fastwhisper.inspect_checkpoint(source)
    weights = dict(tree_flatten(fastwhisper.load_model(source).parameters()))
    mx.save_safetensors(str(directory / "weights.safetensors"), weights)
    (directory / "config.json").write_text(json.dumps(asdict(checkpoint.dimensions)))
    return directory


async def _locate(model: str | Path) -> Path:
    async with fastwhisper.open(model, offline=True) as session:
        return session.result.path


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--model", default="tiny.en", help="English model, for FILEs")
    parser.add_argument("--base", type=Path, help="directory of a multilingual model")
    parser.add_argument("--base-audio", nargs="*", type=Path, default=[], help="files for --base")
    parser.add_argument("--only", help="a part of the name of the options to compare")
    options = parser.parse_args()
    reader = "ffmpeg" if shutil.which("ffmpeg") else "fastwhisper (no ffmpeg command)"
    print(f"mlx_whisper's samples by {reader}\n")
    print("|", " | ".join(_HEAD), "|")
    print("|", " | ".join("---" for _ in _HEAD), "|")
    equal = True
    with tempfile.TemporaryDirectory() as scratch:
        if options.files:
            equal &= measure(options.model, options.files, Path(scratch), options.only)
        if options.base:
            equal &= measure(options.base, options.base_audio, Path(scratch), options.only)
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
