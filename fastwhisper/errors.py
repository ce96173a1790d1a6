"""Every error fastwhisper raises on purpose.

Fields go positionally to `Exception.__init__`, so every error survives pickling;
`__str__` says what happened, to which file or repository, and what to do next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from fastwhisper.values import Quantization

__all__ = [
    "AudioError",
    "BackendMissingError",
    "FastWhisperError",
    "HubUnavailableError",
    "InvalidModelFormatError",
    "LoadingFailedError",
    "LoadingTimeoutError",
    "ModelNotFoundError",
    "ModelNotReadyError",
    "QuantizationFallbackError",
    "QuantizedModelNotAvailableError",
    "SessionClosedError",
    "TokenizationFailedError",
]


class FastWhisperError(Exception):
    """Base of every error fastwhisper raises on purpose."""


class ModelNotFoundError(FastWhisperError, LookupError):
    """No model goes by this name: not in the table, not on disk, not on the Hub.

    Attributes:
        model: What was asked for.
        detail: Why it could not be found, and what would have worked.
    """

    def __init__(self, model: str, detail: str) -> None:
        super().__init__(model, detail)
        self.model = model
        self.detail = detail

    def __str__(self) -> str:
        return f"unknown model {self.model!r}; {self.detail}"


class QuantizedModelNotAvailableError(ModelNotFoundError):
    """The model exists, but not at the precision that was asked for.

    Attributes:
        model: What was asked for.
        quantization: The precision that is not available.
        detail: Why, and what would have worked.
    """

    def __init__(self, model: str, quantization: Quantization | str, detail: str) -> None:
        super().__init__(model, detail)
        self.args = (model, quantization, detail)
        self.quantization = quantization

    def __str__(self) -> str:
        return f"{self.model!r} is not available at {self.quantization}: {self.detail}"


class InvalidModelFormatError(FastWhisperError, ValueError):
    """A file of the checkpoint is broken, contradicts another file, or is not supported.

    Attributes:
        path: The file or directory that is wrong.
        tensor: The tensor or field that is wrong, or None for the file itself.
        detail: What is wrong with it.
        advice: What to do.
    """

    def __init__(
        self,
        path: Path,
        tensor: str | None,
        detail: str,
        advice: str = "download the model again, or convert it again",
    ) -> None:
        super().__init__(path, tensor, detail, advice)
        self.path = path
        self.tensor = tensor
        self.detail = detail
        self.advice = advice

    def __str__(self) -> str:
        where = f"{self.path}: {self.tensor}" if self.tensor else f"{self.path}"
        return f"{where}: {self.detail}; {self.advice}"


class TokenizationFailedError(FastWhisperError, ValueError):
    """The bundled tokenizer doesn't fit the vocabulary of the checkpoint.

    Attributes:
        path: The checkpoint's directory.
        detail: The two vocabulary sizes, and what to do.
    """

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(path, detail)
        self.path = path
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.path}: {self.detail}"


class BackendMissingError(FastWhisperError, ImportError):
    """MLX is installed without a backend for this machine.

    Attributes:
        detail: Which extra to install.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class HubUnavailableError(FastWhisperError, ConnectionError):
    """The repository could not be reached, or may not be (offline, gated, refused).

    Attributes:
        repo: The repository, as `org/name`.
        detail: What the Hub or the network said, and what to do.
    """

    def __init__(self, repo: str, detail: str) -> None:
        super().__init__(repo, detail)
        self.repo = repo
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.repo}: {self.detail}"


class LoadingFailedError(FastWhisperError, RuntimeError):
    """The load that was waited for has failed; `__cause__` is the real error.

    Attributes:
        model: The model that was being loaded.
        detail: The real error, in words.
    """

    def __init__(self, model: str, detail: str) -> None:
        super().__init__(model, detail)
        self.model = model
        self.detail = detail

    def __str__(self) -> str:
        return f"loading {self.model!r} failed: {self.detail}"


class LoadingTimeoutError(FastWhisperError, TimeoutError):
    """The wait ended before the load did; the load goes on and may be waited for again.

    Attributes:
        model: The model that is being loaded.
        timeout_s: How long was waited, in seconds.
    """

    def __init__(self, model: str, timeout_s: float) -> None:
        super().__init__(model, timeout_s)
        self.model = model
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        return (
            f"{self.model!r} was not ready after {self.timeout_s:g} s; "
            "it goes on loading, wait again to use it"
        )


class ModelNotReadyError(FastWhisperError, RuntimeError):
    """The model is still loading; `await session.wait_until_ready()` first.

    Attributes:
        model: The model that is being loaded.
    """

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model

    def __str__(self) -> str:
        return f"{self.model!r} is still loading: await wait_until_ready() first"


class QuantizationFallbackError(FastWhisperError, RuntimeError):
    """Another precision than the requested one was loaded.

    Attributes:
        requested: The precision that was asked for.
        actual: The precision that was loaded.
        detail: Why.
    """

    def __init__(self, requested: Quantization, actual: Quantization, detail: str) -> None:
        super().__init__(requested, actual, detail)
        self.requested = requested
        self.actual = actual
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.requested} was asked for, {self.actual} was loaded: {self.detail}"


class AudioError(FastWhisperError, ValueError):
    """The audio can't be used.

    Attributes:
        source: The file, or a description of the array.
        detail: What is wrong with it.
    """

    def __init__(self, source: str, detail: str) -> None:
        super().__init__(source, detail)
        self.source = source
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.source}: {self.detail}"


class SessionClosedError(FastWhisperError, RuntimeError):
    """The session has been left; its model is gone.

    Attributes:
        model: The model that was open.
    """

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model

    def __str__(self) -> str:
        return f"the session of {self.model!r} is closed: open it again to use it"
