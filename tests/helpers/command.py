"""The `fastwhisper` command, run in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest

from fastwhisper.cli.parser import main

__all__ = ["AtEachWindow", "run_command"]

AtEachWindow: TypeAlias = Callable[[Callable[[int], object]], list[int]]
"""The fixture `at_each_window` of the command's tests."""


def run_command(*arguments: object) -> int:
    """Run `fastwhisper` with arguments, and return its exit status."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code
