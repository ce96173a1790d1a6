"""What a load hands out: a readiness that can be waited for, and an immutable result."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import anyio
import anyio.lowlevel

from fastwhisper.errors import (
    LoadingFailedError,
    LoadingTimeoutError,
    ModelNotReadyError,
    QuantizationFallbackError,
    SessionClosedError,
)
from fastwhisper.values import Closed, Failed, Loading, Ready

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fastwhisper.values import LoadingState, LoadStats, ModulePrecision, Quantization
    from fastwhisper.whisper.network import Whisper

__all__ = ["LoadResult", "Readiness"]

_logger = logging.getLogger("fastwhisper")


class Readiness:
    """The state of one load: `Loading`, then `Ready` or `Failed`, at last `Closed`.

    `state` and `is_ready` may be read from any thread; `wait` belongs to the event loop
    that loads.
    """

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        self._state: LoadingState = Loading()
        self._failure: BaseException | None = None
        self._module: Whisper | None = None
        self._settled = anyio.Event()
        self._loop = anyio.lowlevel.current_token()
        self._observed = False

    @property
    def state(self) -> LoadingState:
        """Where the load stands: one of four records, for `match`."""
        return self._state

    @property
    def is_ready(self) -> bool:
        """Whether the model can be used."""
        return isinstance(self._state, Ready)

    async def wait(self, timeout: float | None = 30.0) -> LoadStats:  # noqa: ASYNC109  the contract
        """Wait until the model can be used. Always a checkpoint.

        Any number of tasks may wait. A wait that ends early, by its timeout or because
        its task is cancelled, leaves the load alone.

        Args:
            timeout: Seconds to wait; None waits for ever, 0 only looks.

        Returns:
            What loading took.

        Raises:
            LoadingTimeoutError: The load goes on; wait again.
            LoadingFailedError: The load has failed, `__cause__` says why.
            SessionClosedError: The session was left, or its load cancelled.
            RuntimeError: It still loads, and on another event loop than this one.
        """
        await anyio.lowlevel.checkpoint()
        if isinstance(self._state, Loading):
            # The event can't wake another loop: a wait there would end by its timeout, or never.
            if anyio.lowlevel.current_token() != self._loop:
                raise RuntimeError(
                    f"{self._model_name!r} loads on another event loop: wait there, or look at "
                    "`state` here"
                )
            with anyio.move_on_after(timeout):
                await self._settled.wait()
        match self._state:
            case Ready(stats):
                return stats
            case Loading():
                raise LoadingTimeoutError(self._model_name, timeout or 0.0)
            case _:
                raise self._unusable() from self._failure

    def model(self) -> Whisper:
        """Give the module of a ready load; see `LoadResult.model`."""
        if self._module is None:
            raise self._unusable() from self._failure
        return self._module

    def _unusable(self) -> Exception:
        """Say why there is no module: a fresh error for each who asks."""
        match self._state:
            case Failed(error):
                self._observed = True
                return LoadingFailedError(self._model_name, str(error) or type(error).__name__)
            case Closed():
                self._observed = True
                return SessionClosedError(self._model_name)
            case _:
                return ModelNotReadyError(self._model_name)

    def become_ready(self, module: Whisper, stats: LoadStats) -> None:
        """Hand out the module, on the loop that loads. Without effect once closed."""
        if isinstance(self._state, Loading):
            self._module = module
            self._state = Ready(stats)
            self._settled.set()

    def become_failed(self, error: BaseException) -> None:
        """Record the real error, on the loop that loads. Without effect once closed."""
        if isinstance(self._state, Loading):
            self._failure = error
            self._state = Failed(error)
            self._settled.set()

    def close(self) -> list[Whisper]:
        """Give up the module and wake every waiter, on the loop that loads.

        Returns:
            The module, if there is one, for `engine.release`.
        """
        self._log_what_nobody_saw()
        given_up = [] if self._module is None else [self._module]
        self._module = None
        self._state = Closed()
        self._settled.set()
        return given_up

    def _log_what_nobody_saw(self) -> None:
        if self._failure is not None and not self._observed:
            self._observed = True
            _logger.error(
                "loading %r failed, and nobody waited for it: %s",
                self._model_name,
                self._failure,
                exc_info=self._failure,
            )

    def __del__(self) -> None:
        self._log_what_nobody_saw()


@dataclass(frozen=True, slots=True, eq=False)
class LoadResult:
    """What was opened, from where, and at which precision.

    Attributes:
        model_name: What was asked for.
        source: The repository, package or directory the weights come from.
        path: The directory the weights were read from.
        revision: The commit or branch of the repository; None for a directory.
        requested: The precision that was asked for.
        actual: The precision that was loaded.
        precision: Bits and group size of each quantized module, by its name.
        fallback_reason: Why `actual` is not `requested`; None when it is.
        ready: The readiness of the load.
    """

    model_name: str
    source: str
    path: Path
    revision: str | None
    requested: Quantization
    actual: Quantization
    precision: Mapping[str, ModulePrecision]
    fallback_reason: str | None
    ready: Readiness

    @property
    def model(self) -> Whisper:
        """The MLX module. It can be used from any thread; all its arrays are evaluated.

        Raises:
            ModelNotReadyError: It is still loading.
            LoadingFailedError: The load has failed, `__cause__` says why.
            SessionClosedError: The session was left.
        """
        return self.ready.model()

    @property
    def did_fallback(self) -> bool:
        """Whether another precision than the requested one was loaded."""
        return self.requested != self.actual

    def raise_for_fallback(self) -> Self:
        """Give this result back if its precision is the requested one.

        Raises:
            QuantizationFallbackError: It is another.
        """
        if self.did_fallback:
            raise QuantizationFallbackError(
                self.requested, self.actual, self.fallback_reason or "no reason was recorded"
            )
        return self
