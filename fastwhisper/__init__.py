"""Open a Whisper speech model on MLX without blocking the event loop.

Names are resolved when they are first used: `import fastwhisper` alone imports neither MLX
nor anyio.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastwhisper.checkpoint.inspection import inspect_checkpoint
    from fastwhisper.checkpoint.plan import Checkpoint
    from fastwhisper.checkpoint.read import read_shards
    from fastwhisper.compat import load_model
    from fastwhisper.errors import (
        AudioError,
        BackendMissingError,
        FastWhisperError,
        HubUnavailableError,
        InvalidModelFormatError,
        LoadingFailedError,
        LoadingTimeoutError,
        ModelNotFoundError,
        ModelNotReadyError,
        NotEnoughMemoryError,
        QuantizationFallbackError,
        QuantizedModelNotAvailableError,
        SessionClosedError,
        TokenizationFailedError,
    )
    from fastwhisper.loading.load import load
    from fastwhisper.loading.readiness import LoadResult, Readiness
    from fastwhisper.pooling.pool import ModelPool, pool
    from fastwhisper.session import Session, open
    from fastwhisper.sources.table import resolve_repo
    from fastwhisper.values import (
        Closed,
        Dimensions,
        Failed,
        LiveText,
        Loading,
        LoadingState,
        LoadOptions,
        LoadOverrides,
        LoadStats,
        ModulePrecision,
        PooledModel,
        Progress,
        Quantization,
        Ready,
        Segment,
        Span,
        TranscribeProgress,
        Transcription,
        WhisperModel,
        Word,
    )
    from fastwhisper.whisper.params import apply_params, build_module

__all__ = [
    "AudioError",
    "BackendMissingError",
    "Checkpoint",
    "Closed",
    "Dimensions",
    "Failed",
    "FastWhisperError",
    "HubUnavailableError",
    "InvalidModelFormatError",
    "LiveText",
    "LoadOptions",
    "LoadOverrides",
    "LoadResult",
    "LoadStats",
    "Loading",
    "LoadingFailedError",
    "LoadingState",
    "LoadingTimeoutError",
    "ModelNotFoundError",
    "ModelNotReadyError",
    "ModelPool",
    "ModulePrecision",
    "NotEnoughMemoryError",
    "PooledModel",
    "Progress",
    "Quantization",
    "QuantizationFallbackError",
    "QuantizedModelNotAvailableError",
    "Readiness",
    "Ready",
    "Segment",
    "Session",
    "SessionClosedError",
    "Span",
    "TokenizationFailedError",
    "TranscribeProgress",
    "Transcription",
    "WhisperModel",
    "Word",
    "apply_params",
    "build_module",
    "inspect_checkpoint",
    "load",
    "load_model",
    "open",
    "pool",
    "read_shards",
    "resolve_repo",
]

_MODULES = {
    "Checkpoint": "checkpoint.plan",
    "LoadResult": "loading.readiness",
    "ModelPool": "pooling.pool",
    "Readiness": "loading.readiness",
    "Session": "session",
    "apply_params": "whisper.params",
    "build_module": "whisper.params",
    "inspect_checkpoint": "checkpoint.inspection",
    "load": "loading.load",
    "load_model": "compat",
    "open": "session",
    "pool": "pooling.pool",
    "read_shards": "checkpoint.read",
    "resolve_repo": "sources.table",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULES.get(name, "errors" if name.endswith("Error") else "values")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
