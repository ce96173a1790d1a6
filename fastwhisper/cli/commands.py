"""The commands: one function for each, which returns the exit status."""

from __future__ import annotations

import importlib
import sys
import time
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from fastwhisper.cli import interrupts, live, outputs
from fastwhisper.cli.description import print_description
from fastwhisper.cli.sound import open_sound
from fastwhisper.cli.streams import (
    TextPrinter,
    open_bars,
    print_note,
    print_text,
    report_audio,
    report_load,
)
from fastwhisper.cli.writers import LAYOUT_OPTIONS
from fastwhisper.engine import tasks
from fastwhisper.errors import (
    AudioError,
    HubUnavailableError,
    InvalidModelFormatError,
    LoadingFailedError,
    ModelNotFoundError,
)
from fastwhisper.quantizing import make
from fastwhisper.session import open as open_session
from fastwhisper.sources import converted, find
from fastwhisper.sources.table import TEXT_CONTEXT, count_tokens, parse_model
from fastwhisper.stream import read_ahead
from fastwhisper.values import LoadOptions, LoadOverrides, Progress, Quantization, WhisperModel
from fastwhisper.whisper.options import DecodeSettings
from fastwhisper.whisper.start import read_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from contextlib import AbstractAsyncContextManager

    from rich.progress import Progress as Bars

    from fastwhisper.session import Session
    from fastwhisper.stream import SegmentStream
    from fastwhisper.values import DtypeName

__all__ = [
    "cache", "doctor", "find_wrong_option", "inspect", "listen", "pull", "quantize", "transcribe",
]  # fmt: skip

_MIB: Final = 1 << 20
_DTYPES: Final[dict[bool | None, DtypeName | None]] = {
    True: "float16",
    False: "float32",
    None: None,
}


def find_wrong_option(options: argparse.Namespace) -> str | None:
    """Return what is wrong with options that argparse accepts, or None."""
    if options.command not in {"transcribe", "listen"}:
        return None
    try:
        _check_decode_options(options)
    except ValueError as error:
        return str(error)
    if options.command == "listen":
        return live.find_wrong_option(options)
    if not getattr(options, "word_timestamps", False):
        for name in LAYOUT_OPTIONS:
            if getattr(options, name):
                return f"--{name.replace('_', '-')} needs --word-timestamps True"
    if options.output_name and len(options.audio) > 1:
        return "--output-name names the files of one AUDIO; leave it out for several"
    return outputs.find_conflict(options)


def transcribe(options: argparse.Namespace) -> int:
    """Write down what is said in audio files: `fastwhisper transcribe`."""
    if getattr(options, "patience", None) is not None:
        print_note("--patience has no effect: there is no beam search")
    outputs.check_files(options)
    with _naming_precisions_here(options):
        return interrupts.run_loop(partial(_transcribe_files, options))


async def _transcribe_files(options: argparse.Namespace) -> int:
    """Open the model once and transcribe file after file; a bad file does not stop the rest."""
    begin_s = time.perf_counter()
    durations_s: list[float] = []
    printer = TextPrinter(may_fail=outputs.are_wanted(options))
    with open_bars() as bars:
        async with _open(options, bars) as session:
            ready_s = time.perf_counter()
            _note_ready(session, ready_s - begin_s)
            streams: Iterator[SegmentStream]
            streams = map(partial(_open_stream, session, options, bars), options.audio)
            if outputs.STDIN not in options.audio:  # it may be slow, and would hold up the others
                streams = read_ahead(streams)
            for audio in options.audio:
                try:
                    stream = next(streams)
                    durations_s.append(await _transcribe_file(stream, audio, options, printer))
                except AudioError as error:  # its message names the file
                    print_note(str(error))
                except OSError as error:
                    if error is printer.failure:
                        raise
                    print_note(f"{audio!r}: {error.strerror or error}")
                except UserWarning as error:  # python -W error
                    print_note(f"{audio!r}: {error}")
            elapsed_s = time.perf_counter() - ready_s
            failed = len(options.audio) - len(durations_s)
            if printer.failure is not None and not isinstance(printer.failure, BrokenPipeError):
                print_note(str(printer.failure))
            print_note(_summarize(durations_s, failed=failed, elapsed_s=elapsed_s))
    return 1 if failed or printer.failure is not None else 0


def _open(
    options: argparse.Namespace, bars: Bars | None, *, background: bool = False
) -> AbstractAsyncContextManager[Session]:
    """Open the model of a command."""
    return open_session(
        options.model,
        options=LoadOptions(
            revision=options.revision,
            offline=options.offline,
            dtype=_DTYPES[options.fp16],
            memory_map=options.memory_map,
            background=background,
        ),
        on_progress=report_load(bars),
        **_choose_precision(options),
    )


def _note_ready(session: Session, elapsed_s: float) -> None:
    result = session.result
    print_note(
        f"{result.model_name} at {result.actual} from {result.source}, ready in {elapsed_s:.2f} s"
    )
    if result.fallback_reason is not None:
        print_note(result.fallback_reason)


def _summarize(durations_s: list[float], *, failed: int, elapsed_s: float) -> str:
    """Return a line such as "3 files: 2 transcribed, 1 failed; 12.3 s of audio in 1.2 s"."""
    done = len(durations_s)
    files = f"{done + failed} file{'' if done + failed == 1 else 's'}"
    if not done:
        return f"{files} failed"
    counts = f": {done} transcribed, {failed} failed" if failed else " transcribed"
    return f"{files}{counts}; {sum(durations_s):.1f} s of audio in {elapsed_s:.1f} s"


def _open_stream(
    session: Session, options: argparse.Namespace, bars: Bars | None, audio: str
) -> SegmentStream:
    """Open the stream of one file; nothing is read yet."""
    if audio == outputs.STDIN and sys.stdin is None:
        raise AudioError(audio, "stdin is closed: pipe a recording into it, or name a file")
    source = sys.stdin.buffer if audio == outputs.STDIN else audio
    return session.stream(source, on_progress=report_audio(bars, audio), **_decode_options(options))


async def _transcribe_file(
    stream: SegmentStream, audio: str, options: argparse.Namespace, printer: TextPrinter
) -> float:
    """Transcribe one file, print its text, write its files; return its duration in seconds."""
    try:
        async for segment in stream:
            if options.verbose and segment.text:
                printer.print(segment.text.strip())
    finally:
        # Also when interrupted: what has been decoded is written, and the file is whole.
        if (so_far := stream.so_far) is not None:
            outputs.write_files(so_far, audio, options)
    return stream.duration_s


def _decode_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `Session.stream` that were given."""
    names = DecodeSettings.__dataclass_fields__
    return {name: value for name, value in vars(options).items() if name in names}


def _check_decode_options(options: argparse.Namespace) -> None:
    """Check options before a model is loaded; against it too, if its name says what it knows."""
    given = _decode_options(options)
    DecodeSettings.from_options(**given)
    with suppress(ModelNotFoundError):  # opening it says so, with advice
        model = parse_model(options.model)
        if isinstance(model, WhisperModel):
            read_settings(count_tokens(model), TEXT_CONTEXT, **given)


def listen(options: argparse.Namespace) -> int:
    """Write down what is said, while it is said: `fastwhisper listen`."""
    with _naming_precisions_here(options):
        return interrupts.run_loop(partial(_listen, options))


async def _listen(options: argparse.Namespace) -> int:
    """Take sound while the model opens, and print each line when it is final."""
    begin_s = time.perf_counter()
    async with AsyncExitStack() as stack:
        sound = await stack.enter_async_context(open_sound(options))
        shown = stack.enter_context(ExitStack())
        bars = shown.enter_context(open_bars())
        session = await stack.enter_async_context(_open(options, bars, background=True))
        stream = session.listen(
            sound,
            min_chunk_s=options.min_chunk,
            pause_s=options.pause,
            **_decode_options(options),
        )

        async def note() -> None:
            await session.wait_until_ready(None)
            shown.close()
            _note_ready(session, time.perf_counter() - begin_s)

        try:
            write = partial(live.print_lines, session, stream, options.output_format)
            await tasks.side_by_side(note, write)
        except LoadingFailedError as error:
            raise error.__cause__ or error from None
    return 0


def pull(options: argparse.Namespace) -> int:
    """Download a model: `fastwhisper pull`."""
    load_options = _load_options(options)
    location = find.find_local(options.model, load_options)
    if location is None:
        with open_bars() as bars:
            report = report_load(bars)

            def on_bytes(done_bytes: int, total_bytes: int | None) -> None:
                if report is not None:
                    report(Progress("download", done_bytes, total_bytes))

            with _naming_precisions_here(options):
                location = find.fetch(
                    options.model, load_options, on_bytes=on_bytes, check=lambda: None
                )
    return print_description(location, as_json=options.json)


def inspect(options: argparse.Namespace) -> int:
    """Describe a model on this machine: `fastwhisper inspect`."""
    load_options = _load_options(options)
    location = find.find_local(options.model, load_options)
    if location is None:
        flags = f" --quant {options.quant}" if hasattr(options, "quant") else ""
        flags += f" --revision {options.revision}" if options.revision else ""
        is_named = isinstance(parse_model(options.model), WhisperModel)
        precision = f" at {load_options.quant}" if is_named else ""
        with _naming_precisions_here(options):
            raise HubUnavailableError(
                options.model,
                f"it is not on this machine{precision}: fastwhisper pull {options.model}{flags}",
            )
    return print_description(location, as_json=options.json)


def quantize(options: argparse.Namespace) -> int:
    """Quantize a float16 model to int4 or int8: `fastwhisper quantize`."""
    return interrupts.run_loop(partial(_quantize, options))


async def _quantize(options: argparse.Namespace) -> int:
    """Quantize, and describe the model that was made."""
    with open_bars() as bars:
        directory = await make.quantize(
            options.model,
            out=options.out,
            quant=options.quant,
            share=options.share,
            on_progress=report_load(bars),
        )
    return print_description(find.Location(directory, str(directory), None, None), as_json=False)


def cache(options: argparse.Namespace) -> int:
    """List or remove the converted checkpoints: `fastwhisper cache`."""
    directory = converted.find_root()
    if directory is None:
        print_text(f"There is no cache: {converted.explain_absence()}")
    elif options.clear:
        print_text(f"{converted.clear() / _MIB:.0f} MiB freed in {directory}")
    else:
        entries = converted.entries()
        for entry in entries:
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used_s))
            print_text(f"{entry.size_bytes / _MIB:8.0f} MiB  {used}  {entry.source}")
        total = sum(entry.size_bytes for entry in entries)
        print_text(f"{total / _MIB:8.0f} MiB in {directory}")
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Print a page about this machine and a model on it: `fastwhisper doctor`."""
    # 40 ms that only this command needs.
    status: int = importlib.import_module("fastwhisper.cli.doctor").run(options)
    return status


def _choose_precision(options: argparse.Namespace) -> LoadOverrides:
    """Return the precision that was given, or int4 for a name of the table.

    A directory or a repository has one precision, and is opened at that one.
    """
    if hasattr(options, "quant"):
        return LoadOverrides(quant=options.quant)
    if isinstance(parse_model(options.model), WhisperModel):
        return LoadOverrides(quant=Quantization.INT4)
    return LoadOverrides()


def _load_options(options: argparse.Namespace) -> LoadOptions:
    """Return the options of the load of `pull` and `inspect`."""
    return replace(LoadOptions(revision=options.revision), **_choose_precision(options))


@contextmanager
def _naming_precisions_here(options: argparse.Namespace) -> Iterator[None]:
    """Add to an error about a model that is missing at which precisions it is here."""
    try:
        yield
    except HubUnavailableError as error:
        here = list(_list_precisions_here(options.model, options.revision))
        if not here:
            raise
        flags = " or ".join(f"--quant {quant}" for quant in here)
        raise HubUnavailableError(
            error.repo,
            f"{error.detail}; this machine has it at {' and '.join(here)}: add {flags}",
        ) from error


def _list_precisions_here(model: str, revision: str | None) -> Iterator[Quantization]:
    """List the precisions at which a model of the table is on this machine."""
    if not isinstance(parse_model(model), WhisperModel):
        return
    for quant in Quantization:
        with suppress(InvalidModelFormatError):
            if find.find_local(model, LoadOptions(quant=quant, revision=revision)) is not None:
                yield quant
