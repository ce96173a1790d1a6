"""Python in a process of its own: for imports, exits, signals, descriptors and memory.

Every test that needs a fresh interpreter starts it here. The process imports the same
fastwhisper and the same helpers as the tests, wherever it is started. None can hang: what
`run_python` starts is killed after `WATCHDOG_S`, what `start_python` starts when its block ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["WATCHDOG_S", "run_python", "start_python"]

WATCHDOG_S: Final = 240.0
"""How long a process may take: no limit of speed, only the end of one that hangs."""

_ROOT: Final = Path(__file__).parents[2]


def run_python(
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    stdin: str | None = "",
    status: int | None = 0,
) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter to its end, and check its exit status.

    Args:
        *arguments: Those of `python`: `"-c"` and code, or `"-m"` and a module, and what follows.
        env: Variables that are set besides those of the tests.
        stdin: What it can read; None starts it without descriptor 0.
        status: The exit status that it must have; None leaves this to the test.

    Returns:
        The process that ended, with its stdout and stderr as text.

    Raises:
        AssertionError: It ended with another status; the message is its stderr.
        subprocess.TimeoutExpired: It was killed after `WATCHDOG_S`.
    """
    command: list[str | Path] = [sys.executable, *arguments]
    if stdin is None:  # only a shell can close what subprocess would open
        command = ["/bin/sh", "-c", 'exec "$@" <&-', "sh", *command]
    done = subprocess.run(
        command,
        input=stdin or "",
        capture_output=True,
        text=True,
        env=_environment(env),
        timeout=WATCHDOG_S,
        check=False,
    )
    assert status is None or done.returncode == status, done.stderr or done.stdout
    return done


@contextmanager
def start_python(
    *arguments: str | Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Start a fresh interpreter for a test that talks to it.

    Args:
        *arguments: As in `run_python`.
        env: As in `run_python`.

    Yields:
        The process; its stdin, stdout and stderr are pipes of text. It is killed when the block
        ends.
    """
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(env),
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(_ROOT), **(more or {})}
