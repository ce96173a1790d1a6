"""What the `fastwhisper` command does."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import anyio

from fastwhisper.checkpoint.inspection import inspect_checkpoint
from fastwhisper.checkpoint.word_loss import word_error_cost
from fastwhisper.cli.writers import FORMATS, LAYOUT_OPTIONS, write
from fastwhisper.errors import AudioError, HubUnavailableError
from fastwhisper.loading import stages
from fastwhisper.session import open as open_session
from fastwhisper.sources import converted, find
from fastwhisper.values import LoadOptions, LoadOverrides, Quantization, WhisperModel
from fastwhisper.whisper.options import TranscribeOptions

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from rich.progress import Progress as Bars

    from fastwhisper.cli.writers import Format
    from fastwhisper.session import SegmentStream, Session
    from fastwhisper.sources.find import Location
    from fastwhisper.values import DtypeName, Progress, Transcription

__all__ = ["cache", "inspect", "pull", "quantize", "transcribe"]

_INTERRUPTED: Final = 130
_MIB: Final = 1 << 20
_DTYPES: Final[dict[bool | None, DtypeName | None]] = {
    True: "float16",
    False: "float32",
    None: None,
}


def transcribe(options: argparse.Namespace) -> int:
    """Write down what is said in audio files: `fastwhisper transcribe`."""
    layout = {name: getattr(options, name) for name in LAYOUT_OPTIONS}
    return anyio.run(_transcribe, options, layout)


async def _transcribe(options: argparse.Namespace, layout: dict[str, Any]) -> int:
    """Run until done or interrupted; a second interrupt ends the process at once."""
    status = _INTERRUPTED
    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        work = anyio.CancelScope()
        group.start_soon(_watch_interrupts, work)
        # Kept from the task group, which would wrap it.
        try:
            with work:
                status = await _transcribe_files(options, layout)
        except Exception as error:  # noqa: BLE001  raised again below
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return status


async def _watch_interrupts(work: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGINT) as interrupts:
        async for _ in interrupts:
            if work.cancel_called:
                os._exit(_INTERRUPTED)
            work.cancel()


async def _transcribe_files(options: argparse.Namespace, layout: dict[str, Any]) -> int:
    begin_s = time.perf_counter()
    status = 0
    with _bars() as bars:
        async with open_session(
            options.model,
            options=LoadOptions(
                revision=options.revision,
                offline=options.offline,
                dtype=_DTYPES[options.fp16],
            ),
            on_progress=_show_load(bars),
            **_precision(options),
        ) as session:
            result = session.result
            _say(
                f"{result.model_name} at {result.actual} from {result.source}, "
                f"ready in {time.perf_counter() - begin_s:.2f} s"
            )
            if result.fallback_reason is not None:
                _say(result.fallback_reason)
            for audio in options.audio:
                try:
                    await _transcribe_file(session, audio, options, layout, bars)
                except AudioError as error:
                    _say(str(error))
                    status = 1
    return status


async def _transcribe_file(
    session: Session,
    audio: str,
    options: argparse.Namespace,
    layout: dict[str, Any],
    bars: Bars | None,
) -> None:
    names = TranscribeOptions.__annotations__
    chosen = {name: value for name, value in vars(options).items() if name in names}
    if audio == "-" and sys.stdin is None:
        raise AudioError("-", "stdin is closed: pipe a recording into it, or name a file")
    stream = session.stream(
        sys.stdin.buffer if audio == "-" else audio,
        language=options.language,
        task=options.task,
        seed=options.seed,
        **cast("TranscribeOptions", chosen),
    )
    show = _show_audio(bars, audio, stream)
    try:
        async for segment in stream:
            if options.verbose:
                print(segment.text.strip(), flush=True)
            show()
    finally:
        # Also when interrupted: what has been heard is written, and whole.
        if stream.so_far is not None:
            _write_files(stream.so_far, audio, options, layout)


def _write_files(
    result: Transcription, audio: str, options: argparse.Namespace, layout: dict[str, Any]
) -> None:
    if not (options.output_format or options.output_dir or options.output_name):
        return
    directory = Path(options.output_dir or ".")
    directory.mkdir(parents=True, exist_ok=True)
    # Unlike upstream, which cuts the stem at its own dot: talk.1.wav is talk.1.txt, so that
    # talk.2.wav does not write over it.
    name = (
        Path(options.output_name).with_suffix("")
        if options.output_name
        else ("content" if audio == "-" else Path(audio).stem)
    )
    chosen = options.output_format or "txt"
    for kind in FORMATS if chosen == "all" else (cast("Format", chosen),):
        path = directory / f"{name}.{kind}"
        with path.open("w", encoding="utf-8") as file:
            write(result, kind, file, **layout)


def pull(options: argparse.Namespace) -> int:
    """Download a model: `fastwhisper pull`."""
    model, load_options = _model(options.model), _load_options(options)
    find.check_form(model, load_options.quant)
    location = find.find_local(model, load_options)
    if location is None:
        with _bars() as bars:
            show = _show_load(bars)

            def on_bytes(done_bytes: int, total_bytes: int | None) -> None:
                from fastwhisper.values import Progress  # noqa: PLC0415  typing has the other

                if show is not None:
                    show(Progress("download", done_bytes, total_bytes))

            location = find.fetch(str(model), load_options, on_bytes=on_bytes, check=lambda: None)
    return _describe(location, as_json=options.json)


def inspect(options: argparse.Namespace) -> int:
    """Say what a model on this machine is: `fastwhisper inspect`."""
    model, load_options = _model(options.model), _load_options(options)
    find.check_form(model, load_options.quant)
    location = find.find_local(model, load_options)
    if location is None:
        raise HubUnavailableError(
            options.model, f"it is not on this machine: fastwhisper pull {options.model}"
        )
    return _describe(location, as_json=options.json)


def quantize(options: argparse.Namespace) -> int:
    """Make an int4 or int8 model of a float16 one: `fastwhisper quantize`."""
    from fastwhisper.quantizing.make import quantize as make  # noqa: PLC0415  an offline tool

    with _bars() as bars:
        work = partial(
            make,
            _model(options.model),
            out=options.out,
            quant=options.quant,
            share=options.share,
            on_progress=_show_load(bars),
        )
        directory = anyio.run(work)
    return _describe(find.Location(directory, str(directory), None, None), as_json=False)


def cache(options: argparse.Namespace) -> int:
    """List or clear the converted checkpoints: `fastwhisper cache`."""
    directory = converted.root()
    if directory is None:
        print(f"The cache is off ({converted.VARIABLE}).")
    elif options.clear:
        print(f"{converted.clear() / _MIB:.0f} MiB freed in {directory}")
    else:
        entries = converted.entries()
        for entry in entries:
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used_s))
            print(f"{entry.size_bytes / _MIB:8.0f} MiB  {used}  {entry.source}")
        total = sum(entry.size_bytes for entry in entries)
        print(f"{total / _MIB:8.0f} MiB in {directory}")
    return 0


def _describe(location: Location, *, as_json: bool) -> int:
    """Print what is known of a model before a weight is read."""
    original = inspect_checkpoint(location.path)
    opened = stages.inspect(location.path)
    bits = Counter[str]()
    for tensor in original.tensors:
        module = tensor.name.rpartition(".")[0]
        packed = original.precision.get(module)
        kind = f"{packed.bits} bits, groups of {packed.group_size}" if packed else tensor.dtype
        bits[f"{tensor.name.partition('.')[0]}: {kind}"] += tensor.size_bytes
    cost = word_error_cost(original.dimensions, original.precision)
    facts = {
        "source": location.source,
        "path": str(location.path),
        "revision": location.revision,
        "format": original.layout,
        "precision": str(original.actual),
        "word_errors": None
        if cost is None
        else f"{cost:+.1f} points over float16's, on recorded English",
        "fallback_reason": location.fallback_reason,
        "size_bytes": original.total_bytes,
        "bytes_by_precision": dict(sorted(bits.items())),
        "fast_path": not stages.is_slow_to_read(opened),
        "converted_copy": None if opened.path == original.path else str(opened.path),
        "dimensions": asdict(original.dimensions),
    }
    if as_json:
        print(json.dumps(facts, indent=2))
        return 0
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, number in value.items():
                print(f"  {key}: {number}")
        elif value is not None:
            print(f"{name}: {value}")
    return 0


def _model(name: str) -> str | Path:
    return Path(name) if os.path.isdir(name) else name  # noqa: PTH112  refuses a NUL quietly


def _precision(options: argparse.Namespace) -> LoadOverrides:
    """Choose int4 for a name of the table, and for others what their files hold."""
    if hasattr(options, "quant"):
        return LoadOverrides(quant=options.quant)
    if options.model in list(WhisperModel):
        return LoadOverrides(quant=Quantization.INT4)
    return LoadOverrides()


def _load_options(options: argparse.Namespace) -> LoadOptions:
    return replace(LoadOptions(revision=options.revision), **_precision(options))


def _say(line: str) -> None:
    print(f"fastwhisper: {line}", file=sys.stderr, flush=True)


@contextmanager
def _bars() -> Iterator[Bars | None]:
    """Show progress bars on a terminal, and nothing in a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415  a pipe needs none of it
    from rich.progress import Progress as Bars  # noqa: PLC0415

    # Text goes on above the bars only where both are the terminal's.
    with Bars(
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=True,
    ) as bars:
        yield bars


def _show_load(bars: Bars | None) -> Callable[[Progress], None] | None:
    if bars is None:
        return None
    rows: dict[str, Any] = {}

    def show(progress: Progress) -> None:
        if progress.stage not in rows:
            rows[progress.stage] = bars.add_task(progress.stage, total=None)
        bars.update(rows[progress.stage], completed=progress.done_bytes, total=progress.total_bytes)

    return show


def _show_audio(bars: Bars | None, audio: str, stream: SegmentStream) -> Callable[[], None]:
    if bars is None:
        return lambda: None
    row = bars.add_task(audio, total=None)
    return lambda: bars.update(row, completed=stream.done_s, total=stream.duration_s)
