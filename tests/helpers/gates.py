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
    "locate": "fastwhisper.sources.find.find_local",
    "inspect": "fastwhisper.loading.stages.inspect",
    "read": "fastwhisper.loading.stages.read",
    "confirm": "fastwhisper.loading.stages.confirm",
    "build": "fastwhisper.loading.stages.build",
    "tokenizer": "fastwhisper.loading.stages.prepare_text",
    "warm products": "fastwhisper.loading.stages.warm_products",
    "warm attention": "fastwhisper.loading.stages.warm_attention",
    "warm convolution": "fastwhisper.loading.stages.warm_convolution",
    "warm mel": "fastwhisper.loading.stages.warm_mel",
    "warm network": "fastwhisper.loading.stages.warm_network",
    "apply": "fastwhisper.loading.stages.apply",
}
"""Every stage of a load after its name was accepted, and the function that does it."""
