"""Stages of a load that tell when they begin, wait, or never end; the stages are the real ones."""

from __future__ import annotations

import os
import pkgutil
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio

from fastwhisper.engine import threads
from fastwhisper.engine.backend import import_mlx

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

__all__ = ["STAGES", "Gate", "find_function", "hold_for_ever", "tell_begin"]

_PERIOD_S: Final = 0.002
"""How often a stage that is held looks whether to stop; the real ones look as often."""

STAGES: Final = {
    "locate": "fastwhisper.sources.find.find_local",
    "inspect": "fastwhisper.loading.stages.inspect",
    "read": "fastwhisper.loading.compute.Compute.read",
    "confirm": "fastwhisper.loading.stages.confirm",
    "build": "fastwhisper.loading.compute.Compute.build",
    "tokenizer": "fastwhisper.loading.stages.prepare_text",
    "warm rules": "fastwhisper.loading.warm_up.WarmUp.warm_rules",
    "warm attention": "fastwhisper.loading.warm_up.WarmUp.warm_attention",
    "warm convolution": "fastwhisper.loading.warm_up.WarmUp.warm_convolution",
    "warm mel": "fastwhisper.loading.warm_up.WarmUp.warm_mel",
    "warm network": "fastwhisper.loading.warm_up.WarmUp.warm_network",
    "apply": "fastwhisper.loading.compute.Compute.apply",
}
"""Every stage of a load after its name was accepted, and the function that does it."""


class Gate:
    """Stands in front of a function that runs in one of the engine's threads.

    Attributes:
        reached: Set when the function is called.
        open: To be set by the test, which lets the function go on.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
        """Put a gate in front of a function.

        Args:
            monkeypatch: Takes the gate away at the end of the test.
            target: The full name of the function, such as a value of `STAGES`.
        """
        self.reached = threading.Event()
        self.open = threading.Event()
        owner, name, real = find_function(target)

        def gated(*args: Any, **kwargs: Any) -> Any:
            self.reached.set()
            while not self.open.wait(_PERIOD_S):
                threads.check()
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, gated)

    async def wait_until_reached(self) -> None:
        """Wait until a load stands before the gate."""
        await anyio.to_thread.run_sync(self.reached.wait, abandon_on_cancel=True)


def find_function(target: str) -> tuple[Any, str, Callable[..., Any]]:
    """Return the module or class of a function, its name there, and the function itself."""
    path, _, name = target.rpartition(".")
    import_mlx()  # before a module that imports it at its top
    owner = pkgutil.resolve_name(path)
    return owner, name, getattr(owner, name)


def tell_begin(target: str) -> threading.Event:
    """Return an event that a function of this process sets when it begins, from now on."""
    begun = threading.Event()
    owner, name, real = find_function(target)

    def telling(*args: Any, **kwargs: Any) -> Any:
        begun.set()
        return real(*args, **kwargs)

    setattr(owner, name, telling)
    return begun


def hold_for_ever(target: str, *, stoppable: bool) -> Callable[[], None]:
    """Let a function of this process write "reached" to stdout and never end.

    Args:
        target: The full name of the function.
        stoppable: Look whether to stop, as the real stages do.

    Returns:
        A function that puts the real one back.
    """
    owner, name, real = find_function(target)
    never = threading.Event()

    def held(*_args: Any, **_kwargs: Any) -> None:
        # In one write, because two threads may read weights, and `print` writes twice.
        os.write(1, b"reached\n")
        while not never.wait(_PERIOD_S if stoppable else None):
            threads.check()

    setattr(owner, name, held)
    return partial(setattr, owner, name, real)
