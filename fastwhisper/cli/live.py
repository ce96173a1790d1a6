"""What `fastwhisper listen` prints: final lines, and on a terminal what may still change."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final, Self

import anyio

from fastwhisper.cli.sound import STDIN
from fastwhisper.cli.streams import escape_controls, make_printable, print_text
from fastwhisper.cli.writers import format_line
from fastwhisper.engine import tasks
from fastwhisper.transcribing.agreement import SENTENCE_ENDS

if TYPE_CHECKING:
    import argparse

    from rich.live import Live

    from fastwhisper.listen import LiveStream
    from fastwhisper.session import Session
    from fastwhisper.values import LiveText

__all__ = ["LinePrinter", "find_wrong_option", "print_lines"]

_LONG: Final = 80
"""From this number of characters on, a line ends wherever a stretch does."""

_PAUSE_S: Final = 1.5
"""A line ends if nothing came for so long, or is said so much later."""

_LAST_S: Final = 10.0
"""The most time for the last pass after Ctrl-C. A second Ctrl-C ends the process at once."""


def find_wrong_option(options: argparse.Namespace) -> str | None:
    """Return what is wrong with options of `listen` that argparse accepts, or None."""
    for name in ("min_chunk", "pause"):
        if not 0 < getattr(options, name) <= 30:  # noqa: PLR2004  also in the message
            return f"--{name.replace('_', '-')}: give more than 0 and at most 30 seconds"
    if options.source == STDIN and options.device is not None:
        return "--device is a microphone; leave it out with -"
    return None


async def print_lines(session: Session, stream: LiveStream, kind: str) -> None:
    """Print what is heard until its end. Ctrl-C makes what was heard final, and prints it.

    Args:
        session: The session of the stream.
        stream: What is heard.
        kind: One of `writers.LIVE_FORMATS`.

    Raises:
        AudioError: The sound can't be used. What came before is printed.
    """
    with LinePrinter(kind) as printer:
        end_lines = partial(_end_lines, printer)
        async with tasks.Beside(end_lines, name="end lines", rule="left in another task"):
            try:
                async for heard in stream:
                    printer.add(heard)
            except anyio.get_cancelled_exc_class():
                with anyio.move_on_after(_LAST_S, shield=True):
                    await stream.aclose()
                    if session.is_ready:
                        async for heard in stream:
                            printer.add(heard)
                raise


async def _end_lines(printer: LinePrinter) -> None:
    """End a line that nothing follows for a while."""
    while True:
        await printer.changed.wait()
        printer.changed = anyio.Event()
        if printer.is_line_settled:
            with anyio.move_on_after(_PAUSE_S) as scope:
                await printer.changed.wait()
            if scope.cancelled_caught:
                printer.end_line()


class LinePrinter:
    """Lines of final text on stdout. A context manager: its end prints the last line.

    Attributes:
        changed: Set when a stretch was added.
    """

    def __init__(self, kind: str) -> None:
        """Set up the printer; `kind` is one of `writers.LIVE_FORMATS`."""
        self.changed = anyio.Event()
        self._kind = kind
        self._count = 0
        self._text = self._tentative = ""
        self._start_s = self._end_s = 0.0
        self._live: Live | None = None
        self._stack = ExitStack()

    @property
    def is_line_settled(self) -> bool:
        """Whether a line is begun that nothing tentative may go on."""
        return bool(self._text) and not self._tentative

    def __enter__(self) -> Self:
        if self._kind == "txt" and sys.stdout.isatty():
            # It takes 30 ms, and a pipe does not need it.
            from rich.console import Console  # noqa: PLC0415
            from rich.live import Live  # noqa: PLC0415

            self._live = self._stack.enter_context(
                Live(console=Console(), auto_refresh=False, transient=True, redirect_stderr=False)
            )
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            self.end_line()

    def add(self, heard: LiveText) -> None:
        """Add a stretch: final text to the line, tentative text behind it on a terminal."""
        self._tentative = "" if heard.is_final else heard.text
        if heard.is_final:
            if self._text and heard.start_s - self._end_s >= _PAUSE_S:
                self.end_line()
            if not self._text:
                self._start_s = heard.start_s
            self._text += heard.text
            self._end_s = heard.end_s
            if self._text.rstrip().endswith(SENTENCE_ENDS) or len(self._text) >= _LONG:
                self.end_line()
        self.changed.set()
        self._show()

    def end_line(self) -> None:
        """Print the line, if one is begun.

        Raises:
            OSError: Stdout can't be written.
        """
        text, self._text = escape_controls(self._text.strip()), ""
        if not text:
            return
        self._count += 1
        if self._live is not None:
            self._show()
            self._live.console.print(
                make_printable(text), markup=False, highlight=False, emoji=False
            )
            return
        line = format_line(self._kind, self._count, self._start_s, self._end_s, text)
        print_text(line.removesuffix("\n"))

    def _show(self) -> None:
        """Show the line that is not over, with what may still change, dim."""
        if self._live is None:
            return
        from rich.text import Text  # noqa: PLC0415  see __enter__

        final = escape_controls(self._text.lstrip())
        dim = escape_controls(self._tentative if final else self._tentative.lstrip())
        shown = Text.assemble(make_printable(final), (make_printable(dim), "dim"))
        self._live.update(shown, refresh=True)
