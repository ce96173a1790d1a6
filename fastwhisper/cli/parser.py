"""The command line: `commands.py` has what each command does, `arguments.py` its arguments."""

from __future__ import annotations

import argparse
import logging
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from fastwhisper.cli.arguments import COMMANDS
from fastwhisper.cli.streams import print_note, standard_streams, warnings_as_notes
from fastwhisper.engine import INTERRUPTED
from fastwhisper.errors import FastWhisperError
from fastwhisper.sources.table import suggest

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command, and end the process with its exit status."""
    with standard_streams(), warnings_as_notes():
        status = _run(arguments)
    sys.exit(status)


def _run(arguments: Sequence[str] | None) -> int:
    """Run the command, and return its exit status."""
    parser = _build_parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(format="fastwhisper: %(message)s", level=logging.WARNING)
    try:
        # It takes 200 ms, and `--help` does not need it.
        from fastwhisper.cli import commands, interrupts  # noqa: PLC0415

        if flaw := commands.find_wrong_option(options):
            parser.error(flaw)
        return interrupts.run_command(partial(getattr(commands, options.command), options))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return 1  # the reader of the output has left
    except (FastWhisperError, OSError, ValueError) as error:
        print_note(str(error))
        return 1


class _Parser(argparse.ArgumentParser):
    """A parser that suggests the nearest choice, as Python's own can from 3.14 on."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        advice = f"choose from {', '.join(choices)}"
        nearest = suggest(str(value), choices, otherwise="")
        advice = f"{nearest} ({advice})" if nearest else advice
        kind = "command" if action.dest == "command" else "value"
        raise argparse.ArgumentError(action, f"unknown {kind} {value!r}; {advice}")


class _ShowVersion(argparse.Action):
    """Print the version and end the process."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        # 20 ms that only this option needs.
        from importlib.metadata import version  # noqa: PLC0415

        print(f"fastwhisper {version('fastwhisper')}")
        parser.exit()


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fastwhisper", description="Open a Whisper model fast, and transcribe speech with it."
    )
    parser.add_argument("-V", "--version", action=_ShowVersion, nargs=0, help="print the version")
    commands = parser.add_subparsers(
        required=True, title="commands", metavar="COMMAND", dest="command"
    )
    for name, add_arguments, purpose in COMMANDS:
        add_arguments(
            commands.add_parser(name, help=purpose, description=f"{purpose.capitalize()}.")
        )
    return parser
