"""Every case of the corpus through `load_model`, in processes that may die of it."""

from __future__ import annotations

import collections
import re
from typing import TYPE_CHECKING, Final

import pytest

from tests.corpus.batch import Result, run_cases
from tests.corpus.cases import CASES

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

HANG_S: Final = 20.0
"""A watchdog: a case takes milliseconds, also on a busy machine."""

NAMED: Final = re.compile(r"^\w+: .(?:[^:]+: |unknown model \\?')")
"""An error's class, and then a path with what is wrong with it, or the model's name in quotes."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """Run everything once."""
    directory: Path = tmp_path_factory.mktemp("corpus")
    return list(run_cases(CASES, directory, loader="fastwhisper", limit_s=HANG_S))


def test_every_case_ends_as_it_should(results: list[Result]) -> None:
    """No crash, no hang, no silent acceptance, no untyped error, no good model refused."""
    wrong = [
        f"{found.case.name}: {found.verdict} ({found.said})"
        for found in results
        if found.verdict not in {"right ok", "right error"}
    ]
    assert not wrong, "\n".join(wrong)
    assert len(results) == len(CASES)


def test_every_error_names_the_file_or_the_tensor(results: list[Result]) -> None:
    """A message that leaves the reader guessing is no help, however typed it is."""
    vague = [
        f"{found.case.name}: {found.said}"
        for found in results
        if found.verdict == "right error" and not NAMED.search(found.said)
    ]
    assert not vague, "\n".join(vague)


def test_names_of_cases_are_unique() -> None:
    """A case is told from all others by its name."""
    names = collections.Counter(case.name for case in CASES)
    assert [name for name, count in names.items() if count > 1] == []
