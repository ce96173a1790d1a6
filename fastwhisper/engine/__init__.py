"""Where blocking work runs: the threads that MLX is used in, and the backend behind them."""

from __future__ import annotations

from typing import Final

INTERRUPTED: Final = 130
"""Exit status of a process that Ctrl-C ended: 128 + SIGINT, as in a shell."""
