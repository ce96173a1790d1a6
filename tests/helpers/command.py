"""The `fastwhisper` command, run in this process."""

from __future__ import annotations

import pytest

from fastwhisper.cli.parser import main

__all__ = ["run_command"]


def run_command(*arguments: object) -> int:
    """Run `fastwhisper` with arguments, and return its exit status."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code
