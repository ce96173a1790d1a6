"""The check of a model for `fastwhisper doctor`: does it load, how fast, and is its text right."""

from __future__ import annotations

import re
import statistics
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastwhisper.checkpoint.chunks import describe_mapping
from fastwhisper.cli.page import FindingError
from fastwhisper.engine import backend, threads
from fastwhisper.engine.threads import Lane
from fastwhisper.loading import stages
from fastwhisper.session import open as open_session
from fastwhisper.values import LoadOptions, Quantization

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from fastwhisper.cli.machine import Facts, LocalModel
    from fastwhisper.session import Session
    from fastwhisper.values import Transcription
    from fastwhisper.whisper.network import Whisper

__all__ = ["check_mapped", "check_precisions", "check_ready", "check_text"]

SAMPLE: Final = Path(__file__).parent / "data" / "sample.ogg"
"""A recording of `SENTENCE`, 9 s long."""

SENTENCE: Final = (
    "Good morning. Today we will talk about the weather. "
    "It is going to rain in the north and the sun will shine in the south."
)

MAX_WRONG_WORDS: Final = 8
"""How many of the 25 words may be wrong.

Measured with tiny.en and base. At float16, int8 and int4, none is wrong. At worst 7 are: 4 bits in
groups of 32 made base say the last words twice. With two layers exchanged, 16 or more are.
"""

_ROUNDS: Final = 3


async def check_text(local: LocalModel, facts: Facts) -> None:
    """Open a model for the first time, and transcribe the sample twice.

    Raises:
        FindingError: The text is wrong.
        FastWhisperError: It can't be opened.
    """
    facts |= {
        "model": local.name,
        "precision": str(local.checkpoint.actual),
        "layout": local.checkpoint.layout + (", converted copy" if local.is_converted else ""),
        "size_bytes": local.checkpoint.total_bytes,
        "source": local.location.source,
    }
    begin_s = time.perf_counter()
    async with _open(local) as session:
        facts["ready_s"] = time.perf_counter() - begin_s
        facts |= asdict(await session.wait_until_ready())
        facts["spans"] = list(facts["spans"])
        first, facts["first_window_s"] = await _transcribe(session)
        second, facts["second_window_s"] = await _transcribe(session)
    facts["tokens_per_s"] = _count_tokens(second) / facts["second_window_s"]
    facts["text"] = second.text.strip()
    facts["words"] = len(_split(SENTENCE))
    facts["wrong_words"] = count_other_words(second.text)
    if first.text != second.text:
        facts["first_text"] = first.text.strip()
    _judge(second.text)


async def check_ready(local: LocalModel, facts: Facts) -> None:
    """Measure the time until ready against that of reading the same files with MLX alone.

    The files are in the page cache. The medians of three rounds are kept.

    Raises:
        FastWhisperError: It can't be opened.
    """
    # Inspected again: since the first open there may be a converted copy.
    checkpoint = await threads.run(partial(stages.inspect, local.location.path), Lane.FILES)
    read = partial(_read, [file.path for file in checkpoint.files])
    ready_s: list[float] = []
    floor_s: list[float] = []
    for _ in range(_ROUNDS):
        if checkpoint.is_safetensors:
            floor_s.append(await threads.run(read, Lane.READ))
        begin_s = time.perf_counter()
        async with _open(local) as session:
            ready_s.append(time.perf_counter() - begin_s)
            stats = await session.wait_until_ready()
    facts["ready_s"] = statistics.median(ready_s)
    facts["mlx_load_s"] = (
        statistics.median(floor_s)
        if floor_s
        else f"not measured: mx.load does not read {checkpoint.layout}"
    )
    facts["spans"] = [asdict(span) for span in stats.spans]


async def check_mapped(local: LocalModel, facts: Facts) -> None:
    """Open a model with its weights mapped, and compare each tensor with the one that is read.

    Raises:
        FindingError: A tensor differs.
        FastWhisperError: It can't be opened.
    """
    checkpoint = await threads.run(partial(stages.inspect, local.location.path), Lane.FILES)
    facts["maps"] = describe_mapping(checkpoint.tensors, "float16")
    async with _open(local) as read:
        begin_s = time.perf_counter()
        async with _open(local, memory_map=True) as mapped:
            facts["ready_s"] = time.perf_counter() - begin_s
            stats = await mapped.wait_until_ready()
            facts["tensors"] = stats.tensors
            facts["mapped_bytes"] = stats.bytes_mapped
            facts["read_bytes"] = stats.bytes_read
            compare = partial(_find_differences, read.result.model, mapped.result.model)
            different = await threads.run(compare, Lane.COMPUTE)
    if different:
        raise FindingError(
            f"{len(different)} mapped tensors differ from the file, such as {different[0]}: "
            "do not use memory_map"
        )


async def check_precisions(models: Sequence[LocalModel], facts: Facts) -> None:
    """Transcribe the sample with each precision of a model.

    Raises:
        FindingError: A text is wrong.
        FastWhisperError: One can't be opened.
    """
    lines: list[Facts] = []
    facts["compared"] = lines
    texts: dict[str, str] = {}
    for local in models:
        begin_s = time.perf_counter()
        async with _open(local) as session:
            ready_s = time.perf_counter() - begin_s
            await _transcribe(session)
            result, window_s = await _transcribe(session)
        precision = str(local.checkpoint.actual)
        texts[precision] = result.text
        lines.append(
            {
                "precision": precision,
                "size_bytes": local.checkpoint.total_bytes,
                "ready_s": ready_s,
                "second_window_s": window_s,
                "tokens_per_s": _count_tokens(result) / window_s,
                "wrong_words": count_other_words(result.text),
            }
        )
    for line in lines:
        text = texts[line["precision"]]
        if Quantization.FLOAT16 in texts:
            line["unlike_float16"] = count_other_words(text, texts[Quantization.FLOAT16])
        line["text"] = text.strip()
    for text in texts.values():
        _judge(text)


def _open(local: LocalModel, *, memory_map: bool = False) -> AbstractAsyncContextManager[Session]:
    """Open a model of this machine, at the precision that was found and no other."""
    options = LoadOptions(offline=True, fallback=None, memory_map=memory_map)
    if local.quant is None:
        return open_session(local.name, options=options)
    return open_session(local.name, options=options, quant=local.quant)


async def _transcribe(session: Session) -> tuple[Transcription, float]:
    """Transcribe the sample, one window; return the seconds that it took too."""
    begin_s = time.perf_counter()
    result = await session.transcribe(SAMPLE, language="en", temperature=0.0)
    return result, time.perf_counter() - begin_s


def _count_tokens(result: Transcription) -> int:
    return sum(len(segment.tokens) for segment in result.segments)


def _read(paths: Sequence[Path]) -> float:
    """Read files with MLX alone. Called in a read lane. Return the seconds that it took."""
    mx = backend.import_mlx()
    begin_s = time.perf_counter()
    arrays = [mx.load(str(path)) for path in paths]
    mx.eval(arrays)
    elapsed_s = time.perf_counter() - begin_s
    arrays.clear()
    mx.clear_cache()
    return elapsed_s


def _find_differences(one: Whisper, other: Whisper) -> list[str]:
    """Return the names of parameters that are not equal to the last bit."""
    mx = backend.import_mlx()
    tree_flatten = backend.import_computing("mlx.utils").tree_flatten
    others = dict(tree_flatten(other.parameters()))
    different: list[str] = []
    for name, array in tree_flatten(one.parameters()):
        threads.check()
        found = others.pop(name)
        bits = [each.reshape(-1).view(mx.uint8) for each in (array, found)]
        is_equal = array.dtype == found.dtype and array.shape == found.shape
        if not is_equal or not mx.array_equal(*bits).item():
            different.append(name)
    return different + list(others)


def _judge(text: str) -> None:
    """Refuse a text of the sample that is wrong.

    Raises:
        FindingError: More words are wrong than a small or quantized model makes wrong.
    """
    wrong = count_other_words(text)
    if wrong > MAX_WRONG_WORDS:
        raise FindingError(f"the text is wrong in {wrong} words: {text.strip()}")


def count_other_words(text: str, expected: str = SENTENCE) -> int:
    """Count the words of a text that a text has wrong, leaves out or adds."""
    said = _split(expected)
    # The edit distance, row by row.
    row = list(range(len(said) + 1))
    for word in _split(text):
        above, row = row, [row[0] + 1]
        for index, other in enumerate(said):
            row.append(min(above[index + 1] + 1, row[index] + 1, above[index] + (word != other)))
    return row[-1]


def _split(text: str) -> list[str]:
    """Split a text into its words, without case and punctuation."""
    return re.findall(r"\w+", text.lower())
