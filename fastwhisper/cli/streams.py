"""What is printed on stdout and stderr, and the progress bars, wherever the two lead.

A process may have neither: `2>&-`, a daemon, a program with a window. `standard_streams` gives it
both, so all else prints as usual.
"""

from __future__ import annotations

import os
import sys
import unicodedata
import warnings
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Progress as Bars

    from fastwhisper.values import Progress, TranscribeProgress

__all__ = [
    "TextPrinter",
    "escape_controls",
    "make_printable",
    "open_bars",
    "print_note",
    "print_text",
    "report_audio",
    "report_load",
    "standard_streams",
    "warnings_as_notes",
]

_LABELS: Final = {"warm-up": "kernels, compiled once per machine"}
"""What a bar is called, if that is not the stage's name."""


@contextmanager
def standard_streams() -> Iterator[None]:
    """Give the block a stdout and a stderr, and flush stdout at its end.

    One that is None or closed becomes a file that keeps nothing.
    """
    _occupy_descriptors()
    with ExitStack() as stack:
        for stream, redirect in ((sys.stdout, redirect_stdout), (sys.stderr, redirect_stderr)):
            if stream is None or stream.closed:
                nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                stack.enter_context(redirect(nowhere))
        try:
            yield
        finally:
            _flush()


def _occupy_descriptors() -> None:
    """Open the null device as each of the descriptors 0, 1 and 2 that is closed.

    Otherwise a text file would get this number, and a C library would write its messages into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def _flush() -> None:
    """Flush stdout, or drop what it can't take: Python would try again at its end, and complain."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_text(text: str) -> None:
    """Print a line on stdout. What its encoding does not have is replaced.

    Raises:
        BrokenPipeError: The reader has left.
        OSError: Stdout can't be written.
    """
    try:
        print(make_printable(text), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(f"can't write to stdout: {error.strerror or error}") from error


def make_printable(text: str) -> str:
    """Return a text without what the encoding of stdout does not have."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    errors = getattr(sys.stdout, "errors", None) or "strict"
    errors = "replace" if errors == "strict" else errors
    return text.encode(encoding, errors).decode(encoding, errors)


class TextPrinter:
    """Printing of text on stdout, which may stop: text files go on without it.

    Attributes:
        failure: Why nothing more is printed, or None.
    """

    def __init__(self, *, may_fail: bool) -> None:
        self._may_fail = may_fail
        self.failure: OSError | None = None

    def print(self, text: str) -> None:
        """Print a line.

        Raises:
            OSError: Stdout can't be written, and nothing else is.
        """
        if self.failure is not None:
            return
        try:
            print_text(text)
        except OSError as error:
            self.failure = error
            if not self._may_fail:
                raise


def print_note(line: str) -> None:
    """Print a line on stderr: stdout is for text alone. A stderr that is full or gone is left."""
    with suppress(OSError):
        shown = escape_controls(line, but="\n")
        print(f"fastwhisper: {shown}", file=sys.stderr, flush=True)


def escape_controls(text: str, *, but: str = "") -> str:
    """Return a text whose control characters, which a terminal would obey, are escaped.

    The name of a file may have any. `but` is left as it is.
    """
    return "".join(
        repr(char)[1:-1] if unicodedata.category(char) == "Cc" and char not in but else char
        for char in text
    )


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Print a warning to users as a note, and not with the line of code that gave it."""
    show = warnings.showwarning

    def show_note(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if category is UserWarning:
            print_note(str(message))
        else:
            show(message, category, *place)

    warnings.showwarning = show_note  # type: ignore[assignment]  # `place` is the rest
    try:
        yield
    finally:
        warnings.showwarning = show


@contextmanager
def open_bars() -> Iterator[Bars | None]:
    """Show progress bars if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    # It takes 30 ms, and a pipe does not need it.
    from rich import console, progress  # noqa: PLC0415

    # Text is printed above the bars only where both are on the terminal.
    bars = progress.Progress(
        # Rich takes brackets for markup, and :smile: for a picture, unless it is told not to.
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeRemainingColumn(),
        console=console.Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=True,
    )
    bars.start()
    try:
        yield bars
    finally:
        with suppress(OSError):  # the terminal was closed
            bars.stop()


def report_load(bars: Bars | None) -> Callable[[Progress], None] | None:
    """Build the callback that shows the progress of a load, with a bar for each stage."""
    if bars is None:
        return None
    rows: dict[str, Any] = {}

    def report(progress: Progress) -> None:
        if progress.stage not in rows:
            label = _LABELS.get(progress.stage, progress.stage)
            rows[progress.stage] = bars.add_task(label, total=None)
        bars.update(rows[progress.stage], completed=progress.done_bytes, total=progress.total_bytes)

    return report


def report_audio(bars: Bars | None, audio: str) -> Callable[[TranscribeProgress], None] | None:
    """Build the callback that shows how much of an audio is decoded, from its first window on."""
    if bars is None:
        return None
    rows: list[Any] = []

    def report(progress: TranscribeProgress) -> None:
        if not rows:
            rows.append(bars.add_task(escape_controls(audio), total=None))
        bars.update(rows[0], completed=progress.done_s, total=progress.duration_s)

    return report
