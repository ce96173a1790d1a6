"""Where blocking work runs: the threads that MLX is used in, and the backend behind them."""

from __future__ import annotations

import threading
from typing import Final

INTERRUPTED: Final = 130
"""Exit status of a process that Ctrl-C ended: 128 + SIGINT, as in a shell."""

allocating: Final = threading.Lock()
"""Held while MLX allocates a block or clears its cache: together they would wait for ever."""
