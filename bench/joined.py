"""Word error rates of long audio by batch size and with silence skipped.

usage: python -m bench.joined [--model NAME or DIR] [--minutes 10] [--only LABEL ...] FOLDER

FOLDER holds recordings and `index.tsv`; see bench/speech.py. The English ones are joined, in an
order drawn once, to audios of some minutes, with pauses of 0.3 to 3 s of faint noise between them.
Each way of transcribing is compared with batch size 1: the difference has a 95 % interval, for
which recordings are drawn. Words that a way adds or loses at the border of two recordings count
for the one that is nearer.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import jiwer
import numpy as np
from whisper_normalizer.english import EnglishTextNormalizer

import fastwhisper
from bench.speech import Utterance, recorded
from fastwhisper.whisper.filters import SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastwhisper.transcribing.samples import FloatArray

WAYS: Final[dict[str, dict[str, Any]]] = {
    "batch 1": {},
    "batch 8": {"batch_size": 8},
    "batch 1, vad_filter": {"vad_filter": True},
    "batch 8, vad_filter": {"batch_size": 8, "vad_filter": True},
}
_RESAMPLES: Final = 10_000
_NOISE: Final = 1e-3
_NORMALIZE: Final = EnglishTextNormalizer()


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """Recordings in a row.

    Attributes:
        samples: The audio. Shape (samples,), float32.
        texts: What is said in each recording, normalized.
    """

    samples: FloatArray
    texts: list[str]


def join(utterances: Sequence[Utterance], *, minutes: float) -> Iterator[Joined]:
    """Join recordings to audios of at least so many minutes; the last one may be shorter."""
    random = np.random.default_rng(0)
    parts: list[FloatArray] = []
    texts: list[str] = []
    for at in random.permutation(len(utterances)):
        pause = int(random.uniform(0.3, 3) * SAMPLE_RATE)
        parts += [utterances[at].samples, random.normal(0, _NOISE, pause).astype(np.float32)]
        texts.append(_NORMALIZE(utterances[at].text))
        if sum(map(len, parts)) >= minutes * 60 * SAMPLE_RATE:
            yield Joined(np.concatenate(parts), texts)
            parts, texts = [], []
    if parts:
        yield Joined(np.concatenate(parts), texts)


def count_errors(joined: Joined, text: str) -> list[int]:
    """Count the errors of a text in each recording."""
    found = jiwer.process_words(" ".join(joined.texts), _NORMALIZE(text))
    errors = np.zeros(sum(len(text.split()) for text in joined.texts) + 1, int)
    for chunk in found.alignments[0]:
        if chunk.type == "insert":
            errors[chunk.ref_start_idx] += chunk.hyp_end_idx - chunk.hyp_start_idx
        elif chunk.type != "equal":
            errors[chunk.ref_start_idx : chunk.ref_end_idx] += 1
    ends = np.cumsum([len(text.split()) for text in joined.texts])
    ends[-1] += 1  # what is added at the end
    return [int(part.sum()) for part in np.split(errors, ends[:-1])]


async def measure(options: argparse.Namespace) -> None:
    """Measure each way, and print a table."""
    utterances = list(recorded(options.folder / "index.tsv"))
    audios = list(join(utterances, minutes=options.minutes))
    words = np.array([len(text.split()) for audio in audios for text in audio.texts])
    print(f"{len(words)} recordings, {len(audios)} audios, {words.sum()} words", flush=True)
    print("| way | WER | minus batch 1's (95 %) | s |\n|---|---|---|---|", flush=True)
    reference: np.ndarray | None = None
    drawn = np.random.default_rng(0).integers(0, len(words), (_RESAMPLES, len(words)))
    async with fastwhisper.open(options.model) as session:
        for label, way in WAYS.items():
            if options.only and label not in options.only:
                continue
            begin_s = time.perf_counter()
            errors: list[int] = []
            for audio in audios:
                result = await session.transcribe(audio.samples, language="en", **way)
                errors += count_errors(audio, result.text)
            wall_s = time.perf_counter() - begin_s
            found = np.array(errors)
            reference = found if reference is None else reference
            more = found - reference
            shares = more[drawn].sum(axis=1) / words[drawn].sum(axis=1) * 100
            low, high = np.percentile(shares, (2.5, 97.5))
            print(
                f"| {label} | {found.sum() / words.sum():.2%} | "
                f"{more.sum() / words.sum() * 100:+.2f} ({low:+.2f} to {high:+.2f}) | "
                f"{wall_s:.0f} |",
                flush=True,
            )


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description="Word error rates by batch size.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", action="append", choices=WAYS, help="default: all")
    anyio.run(partial(measure, parser.parse_args()))


if __name__ == "__main__":
    main()
