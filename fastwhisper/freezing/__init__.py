"""What PyInstaller needs to freeze a program that uses fastwhisper. It finds this by itself."""

from __future__ import annotations

from pathlib import Path

__all__ = ["list_hook_directories"]


def list_hook_directories() -> list[str]:
    """List the directories with hooks. PyInstaller calls it, by the entry point `hook-dirs`.

    Source:
        PyInstaller's manual, "Providing PyInstaller Hooks with your Package".
    """
    return [str(Path(__file__).parent)]
