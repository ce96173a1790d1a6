"""A process of a user who has no name and no home, as a container's `-u 1234`.

The tests must run as root on Linux. The process may read what root owns, such as the interpreter;
it has no right beside those of the files' modes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.helpers.interpreter import WATCHDOG_S

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["needs_root", "run_nobody"]

_UID: Final = 54321
_UNSET: Final = ("HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "FASTWHISPER_CACHE")
_ROOT: Final = Path(__file__).parents[2]
_LIMITS: Final = ("--ruid", str(_UID), "--bounding-set", "-dac_override,-dac_read_search")
"""Root without these two capabilities is bound to the modes of files."""


def _may_run() -> bool:
    """Return whether this process may start one of another user."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        return False
    probe = ["setpriv", *_LIMITS, sys.executable, "-c", ""]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


needs_root: Final = pytest.mark.skipif(
    not _may_run(), reason="needs root and setpriv, to run as a user without a name"
)


def run_nobody(
    *arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter as a user without an entry in passwd, and without HOME.

    Args:
        *arguments: Those of `python`.
        cwd: Where it runs.
        env: Variables that are set.

    Returns:
        The process that ended, with its stdout and stderr as text.
    """
    unset = [part for name in _UNSET for part in ("-u", name)]
    settings = [f"{name}={value}" for name, value in (env or {}).items()]
    return subprocess.run(
        ["env", *unset, *settings, "setpriv", *_LIMITS, sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(_ROOT), "HF_HUB_OFFLINE": "1"},
        timeout=WATCHDOG_S,
        check=False,
    )
