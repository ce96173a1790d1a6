"""Text while people speak: `python -m bench.live AUDIO ...`, the dependency group `wer`.

A recording is played in real time, in chunks of 0.1 s. Latency is the time from the end of a text
in the sound until it is given. The text that became final is compared with what was said, if a file
with the same name and `.txt` is beside the recording, and with the same recording transcribed as a
whole.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import jiwer
import numpy as np
from whisper_normalizer.english import EnglishTextNormalizer

import fastwhisper
from fastwhisper.transcribing.samples import never_cancel, read_blocks

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

_RATE: Final = 16_000
_CHUNK: Final = _RATE // 10
_normalize = EnglishTextNormalizer()


@dataclass
class Heard:
    """What was given of one recording.

    Attributes:
        first_s: From the begin of speech to the first text, in seconds.
        tentative_s: From the end of each tentative text to the time when it was given.
        final_s: The same of final text.
        text: The final text.
        passes: Passes that were run.
        dropped: Tentative passes that were due and not run.
    """

    first_s: float = 0.0
    tentative_s: list[float] = field(default_factory=list)
    final_s: list[float] = field(default_factory=list)
    text: str = ""
    passes: int = 0
    dropped: int = 0


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="Latency and words of live text.")
    parser.add_argument("audio", nargs="+", type=Path)
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--quant", default="float16")
    parser.add_argument("--speed", type=float, default=1.0, help="1 is real time")
    parser.add_argument("--min-chunk", type=float, default=1.0, metavar="SECONDS")
    anyio.run(partial(measure, parser.parse_args()))


async def measure(options: argparse.Namespace) -> None:
    """Play each recording to one session."""
    columns = (
        "audio", "first", "tentative", "final", "final, 95 %", "WER live", "WER whole", "passes",
        "dropped",
    )  # fmt: skip
    print("|", " | ".join(columns), "|")
    print("|---" * len(columns) + "|")
    async with fastwhisper.open(options.model, quant=options.quant) as session:
        for path in options.audio:
            samples = np.concatenate(list(read_blocks(path, check=never_cancel)))
            heard = await listen(session, samples, options)
            whole = await session.transcribe(samples, language="en")
            said = path.with_suffix(".txt")
            reference = said.read_text("utf-8") if said.exists() else whole.text
            errors = [_count_errors(reference, text) for text in (heard.text, whole.text)]
            late_s = np.percentile(heard.final_s, 95)
            print(
                f"| {path.name}, {len(samples) / _RATE:.0f} s | {heard.first_s:.2f} s "
                f"| {_median(heard.tentative_s)} | {_median(heard.final_s)} | {late_s:.2f} s "
                f"| {errors[0]:.1%} | {errors[1]:.1%} | {heard.passes} | {heard.dropped} |",
                flush=True,
            )


async def listen(
    session: fastwhisper.Session, samples: np.ndarray, options: argparse.Namespace
) -> Heard:
    """Play samples, and note when each text comes."""
    heard = Heard()
    begin_s = anyio.current_time()
    stream = session.listen(
        play(samples, options.speed), language="en", min_chunk_s=options.min_chunk
    )
    async for text in stream:
        now_s = (anyio.current_time() - begin_s) * options.speed
        heard.first_s = heard.first_s or now_s - text.start_s
        if text.is_final:
            heard.text += text.text
        (heard.final_s if text.is_final else heard.tentative_s).append(now_s - text.end_s)
    heard.passes, heard.dropped = stream.passes, stream.dropped_passes
    return heard


async def play(samples: np.ndarray, speed: float) -> AsyncGenerator[np.ndarray]:
    """Yield chunks when a microphone would have them."""
    begin_s = anyio.current_time()
    for start in range(0, len(samples), _CHUNK):
        await anyio.sleep_until(begin_s + (start + _CHUNK) / _RATE / speed)
        yield samples[start : start + _CHUNK]


def _count_errors(reference: str, text: str) -> float:
    """Return the word error rate of a text."""
    found = jiwer.process_words(_normalize(reference), _normalize(text))
    errors = found.substitutions + found.deletions + found.insertions
    return errors / max(1, found.hits + found.substitutions + found.deletions)


def _median(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} s" if seconds else "-"


if __name__ == "__main__":
    main()
