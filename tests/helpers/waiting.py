"""The one wait of the tests that looks again and again, for what sends no event.

Everything else is awaited by a gate, an event or a state of the event loop. Four things have none:
the kernel shows a thread in /proc for a moment after it was joined, MLX closes a file in a thread
of its own just after the last array of it is there, a GPU gives memory back in its own time, and a
process reads what is in its pipe.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["wait_until"]

_WATCHDOG_S: Final = 60.0
_PERIOD_S: Final = 0.001


def wait_until(condition: Callable[[], bool]) -> None:
    """Return as soon as a condition holds.

    Raises:
        TimeoutError: It did not hold within a minute: it never will.
    """
    end_s = time.monotonic() + _WATCHDOG_S
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError("what the test waits for does not happen")
        time.sleep(_PERIOD_S)
