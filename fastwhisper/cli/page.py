"""The page of `fastwhisper doctor`: sections of facts, printed as text or as JSON."""

from __future__ import annotations

import json
import logging
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from fastwhisper.cli.privacy import build_filter
from fastwhisper.cli.streams import print_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from fastwhisper.cli.machine import Facts

__all__ = ["FindingError", "Page", "collect_warnings"]

_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
_LABEL_WIDTH: Final = 20
_UNITS: Final = ("_bytes", "_per_s", "_s")


class FindingError(Exception):
    """What is wrong although no call has failed. Its message is the line of the page."""


@dataclass(slots=True)
class Page:
    """The page.

    Attributes:
        as_json: Whether it is printed as JSON, at the end.
        failures: What has failed, one line each.
    """

    as_json: bool
    failures: list[str] = field(default_factory=list)
    _sections: dict[str, Facts] = field(default_factory=dict)
    _hide: Callable[[str], str] = field(default_factory=build_filter)

    async def fill(self, title: str, function: Callable[[Facts], Awaitable[None]]) -> None:
        """Have a function fill a section, and print it. What it raises is a line of the section."""
        facts: Facts = {}
        try:
            await function(facts)
        except FindingError as error:
            facts["failure"] = str(error)
        except Exception as error:  # noqa: BLE001  the other sections say what else is wrong
            facts["failure"] = f"{type(error).__name__}: {error}"
        self._add(title, facts)

    def finish(self, notes: list[str]) -> None:
        """Add warnings and the verdict, and print what is not printed yet."""
        if notes:
            self._add("warnings", {"given": list(dict.fromkeys(notes))})
        self._add("verdict", {"failures": list(self.failures)})
        if self.as_json:
            print_text(json.dumps(self._sections, indent=2))

    def _add(self, title: str, facts: Facts) -> None:
        shown = self._sections[title] = _map_texts(facts, self._hide)
        if "failure" in shown:
            self.failures.append(f"{title}: {shown['failure']}")
        if not self.as_json:
            print_text("\n".join([title, *(f"  {line}" for line in _format_lines(shown)), ""]))


def _map_texts(value: Any, function: Callable[[str], str]) -> Any:
    """Return facts with another text for each text. Names of facts stay."""
    match value:
        case str():
            return function(str(value))
        case dict():
            return {name: _map_texts(inner, function) for name, inner in value.items()}
        case list():
            return [_map_texts(inner, function) for inner in value]
        case _:
            return value


def _format_lines(facts: Facts) -> Iterator[str]:
    """Format a section: a line for each fact, and for each item of a list."""
    for name, value in facts.items():
        label = _label(name).ljust(_LABEL_WIDTH)
        for item in (value or ["none"]) if isinstance(value, list) else [value]:
            yield f"{label}{_format(name, item)}"
            label = " " * _LABEL_WIDTH


def _label(name: str) -> str:
    """Return the name of a fact without its unit."""
    unit = next(filter(name.endswith, _UNITS), "")
    return name.removesuffix(unit).replace("_", " ")


def _format(name: str, value: Any) -> str:
    """Format a value with the unit that the end of its name says."""
    if isinstance(value, dict):
        return ", ".join(
            inner if isinstance(inner, str) else f"{_label(key)} {_format(key, inner)}"
            for key, inner in value.items()
        )
    if not isinstance(value, int | float):
        return str(value)
    if name.endswith("_bytes"):
        if value >= _MIB:
            return f"{value / _GIB:.1f} GiB" if value >= _GIB else f"{value / _MIB:.1f} MiB"
        return f"{value} bytes"
    if name.endswith("_per_s"):
        return f"{value:.1f} a second"
    return f"{value:.3f} s" if name.endswith("_s") else str(value)


class _Collector(logging.Handler):
    """A handler that keeps the messages.

    Attributes:
        messages: The messages.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message, and the error that is logged with it, without its traceback."""
        error = record.exc_info[1] if record.exc_info else None
        self.messages.append(record.getMessage() + (f": {error}" if error else ""))


@contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Collect what fastwhisper warns of in the block, which is then not printed on stderr."""
    logger = logging.getLogger("fastwhisper")
    collector = _Collector()
    propagates, show = logger.propagate, warnings.showwarning
    logger.addHandler(collector)
    logger.propagate = False
    warnings.showwarning = lambda message, *_, **__: collector.messages.append(str(message))
    try:
        yield collector.messages
    finally:
        warnings.showwarning = show
        logger.propagate = propagates
        logger.removeHandler(collector)
