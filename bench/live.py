"""Text while people speak: `python -m bench.live AUDIO ...`, the dependency group `wer`.

A recording is played in real time, in chunks of 0.1 s. Latency is the time from the end of a text
in the sound until it is given. The text that became final is compared with what was said, if a file
with the same name and `.txt` is beside the recording; otherwise with the same recording transcribed
as a whole. Then it is given as fast as it is taken: `busy` is that time, as a share of the length.

With `--hours 1` the recordings come again and again for an hour, as fast as they are taken: memory,
and how much the times of sentences drift.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import jiwer
import numpy as np
from whisper_normalizer.english import EnglishTextNormalizer

import fastwhisper
from fastwhisper.transcribing.samples import load_audio, never_cancel, read_blocks

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

    from fastwhisper import Word
    from fastwhisper.listen import LiveStream
    from fastwhisper.transcribing.live import LiveDecoder
    from fastwhisper.whisper.network import Whisper
    from fastwhisper.whisper.options import DecodeSettings

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
        elapsed_s: From the first sound to the last text.
        pass_s: The time of each pass.
    """

    first_s: float = 0.0
    tentative_s: list[float] = field(default_factory=list)
    final_s: list[float] = field(default_factory=list)
    text: str = ""
    passes: int = 0
    dropped: int = 0
    elapsed_s: float = 0.0
    pass_s: list[float] = field(default_factory=list)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="Latency and words of live text.")
    parser.add_argument("audio", nargs="+", type=Path)
    parser.add_argument("--hours", type=float, help="measure memory and times of a long stream")
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--quant", default="float16")
    parser.add_argument("--min-chunk", type=float, default=1.0, metavar="SECONDS")
    parser.add_argument("--tokens", type=int, help="of a pass, at most: random weights never end")
    options = parser.parse_args()
    anyio.run(partial(measure_long if options.hours else measure, options))


async def measure(options: argparse.Namespace) -> None:
    """Play each recording to one session."""
    columns = (
        "audio", "first", "tentative", "95 %", "final", "95 %", "WER live", "WER whole", "passes",
        "dropped", "a pass", "busy",
    )  # fmt: skip
    print("|", " | ".join(columns), "|")
    print("|---" * len(columns) + "|")
    async with fastwhisper.open(options.model, quant=options.quant) as session:
        for path in options.audio:
            samples = np.concatenate(list(read_blocks(path, check=never_cancel)))
            heard = await listen(session, samples, options, speed=1)
            fast = await listen(session, samples, options, speed=math.inf)
            whole = await session.transcribe(samples, language="en")
            said = path.with_suffix(".txt")
            reference = said.read_text("utf-8") if said.exists() else whole.text
            errors = [_count_errors(reference, text) for text in (heard.text, whole.text)]
            length_s = len(samples) / _RATE
            print(
                f"| {path.name}, {length_s:.0f} s | {heard.first_s:.2f} s "
                f"| {_describe(heard.tentative_s)} | {_describe(heard.final_s)} "
                f"| {errors[0]:.1%} | {errors[1]:.1%} | {heard.passes} | {heard.dropped} "
                f"| {statistics.median(heard.pass_s):.3f} s | {fast.elapsed_s / length_s:.2f} |",
                flush=True,
            )


async def measure_long(options: argparse.Namespace) -> None:
    """Print memory and times of recordings that come again and again, as fast as they are taken.

    A sentence should begin as long after the begin of its round as in the first round.
    """
    samples = np.concatenate([*map(load_audio, options.audio)])
    round_s = len(samples) / _RATE
    rounds = math.ceil(options.hours * 3600 / round_s)
    offsets_s: dict[str, float] = {}
    drifts_s: list[list[float]] = [[] for _ in range(rounds + 1)]
    memory: list[float] = []

    async def chunks() -> AsyncGenerator[np.ndarray]:
        for _ in range(rounds):
            for start in range(0, len(samples), _CHUNK):
                yield samples[start : start + _CHUNK]
            memory.append(_read_memory())

    begin_s = anyio.current_time()
    async with fastwhisper.open(options.model, quant=options.quant) as session:
        stream = session.listen(chunks(), language="en", min_chunk_s=options.min_chunk)
        async for heard in stream:
            count, offset_s = divmod(heard.start_s, round_s)
            if heard.is_final and count == 0:
                offsets_s[heard.text] = offset_s
            elif heard.is_final and heard.text in offsets_s:
                drifts_s[int(count)].append(abs(offset_s - offsets_s[heard.text]))
        passes = stream.passes
    found = [drift_s for of_round in drifts_s for drift_s in of_round]
    last = [drift_s for of_round in drifts_s[-11:] for drift_s in of_round]
    print(
        f"{rounds * round_s:.0f} s in {anyio.current_time() - begin_s:.0f} s, {passes} passes; "
        f"{len(found)} sentences came again, their times differ by {_describe(found)} "
        f"(median | 95 %), in the last ten rounds by {_describe(last)}; "
        f"MiB of memory after a round, each sixth of the time, and at the end: "
        f"{', '.join(f'{mib:.0f}' for mib in [*memory[:: max(1, rounds // 6)], memory[-1]])}"
    )


def _read_memory() -> float:
    """Return the MiB that this process has in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / (1 << 20)


async def listen(
    session: fastwhisper.Session,
    samples: np.ndarray,
    options: argparse.Namespace,
    *,
    speed: float,
) -> Heard:
    """Play samples, and note when each text comes. Speed 1 is real time."""
    heard = Heard()
    begin_s = anyio.current_time()
    stream = session.listen(play(samples, speed), language="en", min_chunk_s=options.min_chunk)
    with time_passes(heard.pass_s), limit_tokens(options.tokens):
        await _note_texts(stream, heard, begin_s)
    heard.elapsed_s = anyio.current_time() - begin_s
    heard.passes, heard.dropped = stream.passes, stream.dropped_passes
    return heard


@contextmanager
def time_passes(pass_s: list[float]) -> Iterator[None]:
    """Add the time of each pass of the block to a list."""
    # MLX with it: fastwhisper chooses the BLAS only if it imports MLX first.
    from fastwhisper.transcribing.live import LiveDecoder  # noqa: PLC0415

    run_pass = LiveDecoder._run_pass  # noqa: SLF001

    def timed(decoder: LiveDecoder, *, is_over: bool) -> list[Word] | None:
        begin_s = time.perf_counter()
        words = run_pass(decoder, is_over=is_over)
        pass_s.append(time.perf_counter() - begin_s)
        return words

    LiveDecoder._run_pass = timed  # type: ignore[assignment, method-assign]  # noqa: SLF001
    try:
        yield
    finally:
        LiveDecoder._run_pass = run_pass  # type: ignore[method-assign]  # noqa: SLF001


@contextmanager
def limit_tokens(count: int | None) -> Iterator[None]:
    """Let a pass of the block decode this many tokens at most."""
    from fastwhisper.transcribing.live import LiveDecoder  # noqa: PLC0415  as above

    build = LiveDecoder.__init__

    def limited(
        decoder: LiveDecoder, model: Whisper, settings: DecodeSettings, **more: Any
    ) -> None:
        build(decoder, model, replace(settings, sample_len=count), **more)

    LiveDecoder.__init__ = limited  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        LiveDecoder.__init__ = build  # type: ignore[method-assign]


async def _note_texts(stream: LiveStream, heard: Heard, begin_s: float) -> None:
    async for text in stream:
        now_s = anyio.current_time() - begin_s
        heard.first_s = heard.first_s or now_s - text.start_s
        if text.is_final:
            heard.text += text.text
        (heard.final_s if text.is_final else heard.tentative_s).append(now_s - text.end_s)


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


def _describe(seconds: Sequence[float]) -> str:
    """Return the cells of the median and the 95th percentile."""
    if not seconds:
        return "- | -"
    return f"{statistics.median(seconds):.2f} s | {np.percentile(seconds, 95):.2f} s"


if __name__ == "__main__":
    main()
