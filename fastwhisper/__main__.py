"""Run the `fastwhisper` command: `python -m fastwhisper`."""

from __future__ import annotations

from fastwhisper.cli.parser import main

if __name__ == "__main__":
    main()
