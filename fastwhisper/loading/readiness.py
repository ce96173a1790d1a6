"""The readiness of a load, which can be waited for, and its immutable result.

Theory of operation. A `Readiness` is a state machine with one writer, the loop that loads:

    Loading ── become_ready ──> Ready ──┐
       │  └─── become_failed ─> Failed ─┤ close
       └──────────── close ─────────────┴───────> Closed

A state is a frozen record that is replaced as a whole, so any thread may read `state` and
`is_ready` without a lock. `wait` belongs to the loop that loads, because its event can't wake
another loop. Every transition out of Loading sets the event, and no transition goes back, so no
wait can hang. A timeout or a cancelled wait changes nothing here. Each wait raises an error of its
own: an exception object that is raised twice would mix two tracebacks.
"""

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
    """The state of one load: `Loading`, then `Ready` or `Failed`, and finally `Closed`.

    `state` and `is_ready` may be read from any thread. `wait` is called on the loop that loads.
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
        """The state: one of four records, for `match`."""
        return self._state

    @property
    def is_ready(self) -> bool:
        """Whether the model can be used."""
        return isinstance(self._state, Ready)

    async def wait(self, timeout: float | None = 30.0) -> LoadStats:  # noqa: ASYNC109  the contract
        """Wait until the model can be used. Always a cancellation point.

        Any number of tasks may wait. A wait that times out or is cancelled does not affect the
        load.

        Args:
            timeout: Seconds to wait. None waits without a limit, 0 only looks.

        Returns:
            Times, bytes and memory of the load.

        Raises:
            LoadingTimeoutError: The time is over. The load goes on; wait again.
            LoadingFailedError: The load has failed. `__cause__` is the reason.
            SessionClosedError: The session was left, or its load was cancelled.
            RuntimeError: The model is loading on another event loop.
        """
        await anyio.lowlevel.checkpoint()
        if isinstance(self._state, Loading):
            # The event can't wake another loop: a wait there would time out, or never end.
            if anyio.lowlevel.current_token() != self._loop:
                raise RuntimeError(
                    f"{self._model_name!r} is loading on another event loop; wait on that loop, "
                    "or read `state`"
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
        """Return the network of a ready load; see `LoadResult.model`."""
        if self._module is None:
            raise self._unusable() from self._failure
        return self._module

    def _unusable(self) -> Exception:
        """Build the error that says why there is no network. Each caller gets its own."""
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
        """Become ready. Called on the loop that loads; no effect once closed."""
        if isinstance(self._state, Loading):
            self._module = module
            self._state = Ready(stats)
            self._settled.set()

    def become_failed(self, error: BaseException) -> None:
        """Become failed. Called on the loop that loads; no effect once closed."""
        if isinstance(self._state, Loading):
            self._failure = error
            self._state = Failed(error)
            self._settled.set()

    def close(self) -> None:
        """Become closed: drop the network and wake every wait. Called on the loop that loads."""
        self._log_unseen_failure()
        self._module = None
        self._state = Closed()
        self._settled.set()

    def _log_unseen_failure(self) -> None:
        if self._failure is not None and not self._observed:
            self._observed = True
            _logger.error(
                "loading %r failed, and nobody waited for it: %s",
                self._model_name,
                self._failure,
                exc_info=self._failure,
            )

    def __del__(self) -> None:
        self._log_unseen_failure()


@dataclass(frozen=True, slots=True, eq=False)
class LoadResult:
    """The model that was loaded: from where, and at which precision.

    Attributes:
        model_name: The name that was given.
        source: The repository, package or directory of the weights.
        path: The directory of the weights.
        revision: The commit or branch of the repository; None for a directory.
        requested: The precision that was requested.
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
        """The network. All its arrays are evaluated, so any thread may use it.

        Raises:
            ModelNotReadyError: The model is still loading.
            LoadingFailedError: The load has failed. `__cause__` is the reason.
            SessionClosedError: The session was left.
        """
        return self.ready.model()

    @property
    def did_fallback(self) -> bool:
        """Whether another precision than the requested one was loaded."""
        return self.requested != self.actual

    def raise_for_fallback(self) -> Self:
        """Return this result if it has the requested precision.

        Raises:
            QuantizationFallbackError: It has another precision.
        """
        if self.did_fallback:
            raise QuantizationFallbackError(
                self.requested, self.actual, self.fallback_reason or "no reason was recorded"
            )
        return self
