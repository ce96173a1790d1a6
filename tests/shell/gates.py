"""Hold a stage of a load until the test lets it go on; the stage itself is the real one."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import anyio

from fastwhisper.engine import threads

if TYPE_CHECKING:
    import pytest


class Gate:
    """Stands in front of a function that runs in one of the engine's threads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        module, _, name = target.rpartition(".")
        import importlib  # noqa: PLC0415

        real = getattr(importlib.import_module(module), name)

        def gated(*args: Any, **kwargs: Any) -> Any:
            self.reached.set()
            # As a stage that reads group by group does: look whether to stop.
            while not self.open.wait(0.002):
                threads.check()
            return real(*args, **kwargs)

        monkeypatch.setattr(target, gated)

    async def wait_until_reached(self) -> None:
        """Wait until a load stands before the gate."""
        await anyio.to_thread.run_sync(self.reached.wait, abandon_on_cancel=True)


STAGES = {
    "locate": "fastwhisper.sources.find.find",
    "inspect": "fastwhisper.stages.inspect",
    "read": "fastwhisper.stages.read",
    "confirm": "fastwhisper.stages.confirm",
    "build": "fastwhisper.stages.build",
    "tokenizer": "fastwhisper.stages.prepare_text",
    "warm products": "fastwhisper.stages.warm_products",
    "warm attention": "fastwhisper.stages.warm_attention",
    "warm convolution": "fastwhisper.stages.warm_convolution",
    "warm mel": "fastwhisper.stages.warm_mel",
    "warm network": "fastwhisper.stages.warm_network",
    "apply": "fastwhisper.stages.apply",
}
"""Every stage of a load after its name was accepted, and the function that does it."""
