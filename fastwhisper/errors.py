"""All errors that fastwhisper raises on purpose.

The fields are passed to `Exception.__init__` by position, so every error can be pickled. `__str__`
says what is wrong, with which file or repository, and what to do next.
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
    "NotEnoughMemoryError",
    "QuantizationFallbackError",
    "QuantizedModelNotAvailableError",
    "SessionClosedError",
    "TokenizationFailedError",
]


class FastWhisperError(Exception):
    """Base class of all errors that fastwhisper raises on purpose."""


class ModelNotFoundError(FastWhisperError, LookupError):
    """No model has this name: not in the table, not on disk, not on the Hub.

    Attributes:
        model: The name that was given.
        detail: Why it was not found, and what to do.
    """

    def __init__(self, model: str, detail: str) -> None:
        super().__init__(model, detail)
        self.model = model
        self.detail = detail

    def __str__(self) -> str:
        return f"unknown model {self.model!r}; {self.detail}"


class QuantizedModelNotAvailableError(ModelNotFoundError):
    """No repository has this model at this precision.

    Attributes:
        model: The name that was given.
        quantization: The precision that is not available.
        detail: Why, and what to do.
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
    """The bundled tokenizer does not fit the vocabulary of the checkpoint.

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
    """MLX has no backend on this machine, or an extra is not installed.

    Attributes:
        detail: What is missing, and which extra to install.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class HubUnavailableError(FastWhisperError, ConnectionError):
    """The Hub can't be reached, refuses the repository, or may not be asked (offline).

    Attributes:
        repo: The repository, as `org/name`.
        detail: The answer of the Hub or the network, and what to do.
    """

    def __init__(self, repo: str, detail: str) -> None:
        super().__init__(repo, detail)
        self.repo = repo
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.repo}: {self.detail}"


class LoadingFailedError(FastWhisperError, RuntimeError):
    """A load has failed. `__cause__` is the error that made it fail.

    Attributes:
        model: The model that was being loaded.
        detail: The message of that error.
    """

    def __init__(self, model: str, detail: str) -> None:
        super().__init__(model, detail)
        self.model = model
        self.detail = detail

    def __str__(self) -> str:
        return f"loading {self.model!r} failed: {self.detail}"


class LoadingTimeoutError(FastWhisperError, TimeoutError):
    """The time of a wait is over. A session's load goes on, and may be waited for again.

    Attributes:
        model: The model that is being loaded.
        timeout_s: The time of the wait, in seconds.
        advice: What can be done.
    """

    def __init__(
        self, model: str, timeout_s: float, advice: str = "the load goes on, so wait again"
    ) -> None:
        super().__init__(model, timeout_s, advice)
        self.model = model
        self.timeout_s = timeout_s
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.model!r} was not ready after {self.timeout_s:g} s; {self.advice}"


class ModelNotReadyError(FastWhisperError, RuntimeError):
    """The model is still loading.

    Attributes:
        model: The model that is being loaded.
    """

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model

    def __str__(self) -> str:
        return f"{self.model!r} is still loading; await wait_until_ready() first"


class NotEnoughMemoryError(FastWhisperError, MemoryError):
    """A model needs more memory than this process or a pool may use. Nothing of it was read.

    Attributes:
        model: The model, or its directory.
        needed_bytes: Bytes of its weights in memory; for a container also what the process uses
            already.
        limit_bytes: The most that is allowed.
        limit: Whose limit it is.
    """

    def __init__(
        self, model: str, needed_bytes: int, limit_bytes: int, limit: str = "its container"
    ) -> None:
        super().__init__(model, needed_bytes, limit_bytes, limit)
        self.model = model
        self.needed_bytes = needed_bytes
        self.limit_bytes = limit_bytes
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"{self.model}: the model needs {self.needed_bytes / 2**20:.0f} MiB of memory"
            f"{' together with what this process uses already' * (self.limit == 'its container')}, "
            f"and {self.limit} allows {self.limit_bytes / 2**20:.0f} MiB; raise that limit, or "
            "choose a smaller model or quant='int4'"
        )


class QuantizationFallbackError(FastWhisperError, RuntimeError):
    """Another precision than the requested one was loaded.

    Attributes:
        requested: The precision that was requested.
        actual: The precision that was loaded.
        detail: Why.
    """

    def __init__(self, requested: Quantization, actual: Quantization, detail: str) -> None:
        super().__init__(requested, actual, detail)
        self.requested = requested
        self.actual = actual
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.requested} was requested, but {self.actual} was loaded: {self.detail}"


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
    """The session was left, so its model is gone.

    Attributes:
        model: The model that was open.
    """

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model

    def __str__(self) -> str:
        return f"the session of {self.model!r} is closed; open the model again"
