"""`fastwhisper doctor`: a page about this machine and a model on it, for a bug report.

The page has sections. Each is a dictionary that one function fills, so what was found before a
failure stays. A failure is a line of its section, and the next section follows. A section is
printed when it is complete: if the process crashes, those before it are there.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from fastwhisper.cli import interrupts, machine, model_check
from fastwhisper.cli.page import FindingError, Page, collect_warnings
from fastwhisper.engine import backend, threads
from fastwhisper.engine.threads import Lane
from fastwhisper.sources import find
from fastwhisper.sources.table import parse_model
from fastwhisper.values import Quantization, WhisperModel

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from fastwhisper.cli.machine import Facts, LocalModel

__all__ = ["run"]

_ADVISED: Final = WhisperModel.TINY_EN


def run(options: argparse.Namespace) -> int:
    """Print the page. Return 1 if a section has failed, otherwise 0.

    Raises:
        ModelNotFoundError: `--model` is the name of no model.
    """
    if options.model is not None:
        find.check_form(options.model, options.quant or Quantization.FLOAT16)
    return interrupts.run_loop(partial(_run, options))


async def _run(options: argparse.Namespace) -> int:
    """Fill and print one section after the other."""
    page = Page(as_json=options.json)
    with collect_warnings() as warnings:
        await page.fill("versions", _here(machine.describe_versions))
        await page.fill("system", _here(machine.describe_system))
        await page.fill("backend", _in(Lane.READ, machine.describe_backend))
        await page.fill("caches", _in(Lane.FILES, machine.describe_caches))
        models = _Models(options.model, options.quant)
        await page.fill("models", models.find)
        if models.chosen is not None:
            await page.fill("text", partial(model_check.check_text, models.chosen))
            await page.fill("ready", partial(model_check.check_ready, models.chosen))
            if len(models.precisions) > 1:
                compare = partial(model_check.check_precisions, models.precisions)
                await page.fill("precisions", compare)
            if backend.may_map():
                await page.fill("mapped", partial(model_check.check_mapped, models.chosen))
    page.finish(warnings)
    return 1 if page.failures else 0


def _here(function: Callable[[Facts], None]) -> Callable[[Facts], Awaitable[None]]:
    """Return a section that needs no thread: it is on the page even if no thread can start."""

    async def fill(facts: Facts) -> None:
        function(facts)

    return fill


def _in(lane: Lane, function: Callable[[Facts], None]) -> Callable[[Facts], Awaitable[None]]:
    """Return a section that is filled in an engine thread."""
    return lambda facts: threads.run(partial(function, facts), lane)


class _Models:
    """The models on this machine.

    Attributes:
        chosen: The model to check; None if there is none.
        precisions: The models with its name, one for each precision; empty if it is not of the
            table.
    """

    def __init__(self, model: str | None, quant: str | None) -> None:
        self.chosen: LocalModel | None = None
        self.precisions: list[LocalModel] = []
        self._model = model
        self._quant = None if quant is None else Quantization(quant)

    async def find(self, facts: Facts) -> None:
        """List the models of the table that are here, and choose the one to check.

        Raises:
            FindingError: The model that was asked for is not on this machine, or one is broken.
        """
        found = await threads.run(partial(machine.find_models, facts), Lane.FILES)
        named = None if self._model is None else parse_model(self._model)
        if named is None or isinstance(named, WhisperModel):
            fitting = [
                local
                for local in found
                if named in {None, local.name} and self._quant in {None, local.quant}
            ]
            self.chosen = fitting[0] if fitting else None
        else:
            inspect = partial(machine.inspect_model, str(self._model), self._quant)
            self.chosen = await threads.run(inspect, Lane.FILES)
        if self.chosen is not None:
            self.precisions = [local for local in found if local.name == self.chosen.name]
        elif self._model is None and self._quant is None:
            facts["advice"] = f"to check a model, download one: fastwhisper pull {_ADVISED}"
        else:
            wanted = "no model is" if self._model is None else f"{self._model} is not"
            at = f" at {self._quant}" if self._quant else ""
            flags = f" --quant {self._quant}" if self._quant else ""
            raise FindingError(
                f"{wanted} on this machine{at}: fastwhisper pull {self._model or _ADVISED}{flags}"
            )
        if "broken" in facts:
            raise FindingError("a model can't be opened: download it again")
