"""What a model's name stands for, and the table of repositories.

A new name, alias or repository goes here. `find.py` looks for what a name stands for.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from fastwhisper.checkpoint import foreign
from fastwhisper.checkpoint.inspection import CONFIG
from fastwhisper.errors import ModelNotFoundError, QuantizedModelNotAvailableError
from fastwhisper.values import Quantization, WhisperModel

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "TEXT_CONTEXT",
    "count_tokens",
    "parse_model",
    "parse_quantization",
    "resolve_repo",
    "sibling_repo",
    "suggest",
]

TEXT_CONTEXT: Final = 448
"""Decoder positions of each model of the table, `n_text_ctx` of its dimensions."""

_STEM: Final = "mlx-community/whisper-"
_TABLE_SUFFIX: Final = {
    Quantization.FLOAT16: "",
    Quantization.INT8: "-8bit",
    Quantization.INT4: "-4bit",
}
_SIBLING_SUFFIX: Final = _TABLE_SUFFIX | {Quantization.FLOAT16: "-fp16"}

_NAMES: Final = MappingProxyType(
    {
        **{str(model): model for model in WhisperModel},
        "large": WhisperModel.LARGE_V3,
        "turbo": WhisperModel.LARGE_TURBO,
    }
)
"""Names and aliases, in lower case and without the prefix "whisper-"."""

_REPOSITORY: Final = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_PATH: Final = re.compile(
    r"[.~/].*|[a-z]:[\\/].*|.*\\.*|.*/|.*\.(bin|pt|pth|gguf|ggml|npz|safetensors|index\.json)",
    re.IGNORECASE | re.DOTALL,
)
"""The forms of a path: its beginning, a Windows drive, a backslash, a slash at its end, or the
suffix of a file of weights."""

_URL: Final = re.compile(r"[a-z][a-z0-9+.-]*://.*", re.IGNORECASE | re.DOTALL)
_HUB_URL: Final = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/.*)?", re.ASCII
)


def parse_model(model: WhisperModel | str | os.PathLike[str]) -> WhisperModel | Path | str:
    """Return what a model's name stands for.

    An exact name of the table comes first, then a directory that exists, then an alias. What is
    on disk, and what has the form of a path, is never taken for a repository.

    Args:
        model: What the caller gives.

    Returns:
        A model of the table, a directory that exists, or a repository as `org/name`.

    Raises:
        ModelNotFoundError: It is none of the three.
    """
    if isinstance(model, os.PathLike):
        return _check_directory(Path(model), str(model))
    if not isinstance(model, str):
        raise TypeError(f"model must be a name or a path, not {type(model).__name__}")
    if model in list(WhisperModel):
        return WhisperModel(model)
    # os.path.isdir returns False for a NUL and for a name that is too long; Path raises.
    if os.path.isdir(model):  # noqa: PTH112
        return Path(model)
    if (named := _find_name(model)) is not None:
        return named
    if _URL.fullmatch(model):
        repository = _HUB_URL.fullmatch(model)
        advice = f"give {repository[1]!r}" if repository else _advise(PurePath(model))
        raise ModelNotFoundError(model, f"a URL is not opened: {advice}")
    if _PATH.fullmatch(model) or os.path.lexists(model):
        in_home = model.partition("/")[0] == "~"
        # Path.expanduser raises where there is no home.
        return _check_directory(Path(os.path.expanduser(model) if in_home else model), model)  # noqa: PTH111
    if _REPOSITORY.fullmatch(model):
        return model
    raise _unknown(model)


def resolve_repo(
    model: WhisperModel | str, quant: Quantization | str = Quantization.FLOAT16
) -> str:
    """Return the repository of a model at a precision.

    Args:
        model: A name of the table, such as "large-v3-turbo", or an alias, such as "turbo".
        quant: A precision of the table, such as "int4".

    Returns:
        The repository, as `org/name`.

    Raises:
        ModelNotFoundError: The table has no such model.
        QuantizedModelNotAvailableError: The table has no such precision.

    Source:
        The repositories of mlx-community on the Hub.
    """
    name = _parse_name(model)
    precision = parse_quantization(name, quant)
    infix = "" if name is WhisperModel.LARGE_TURBO else "-mlx"
    return f"{_STEM}{name}{infix}{_TABLE_SUFFIX[precision]}"


def count_tokens(model: WhisperModel) -> int:
    """Return the number of tokens of a model of the table, `n_vocab` of its dimensions."""
    if model.endswith(".en"):
        return 51864
    return 51866 if model in {WhisperModel.LARGE_V3, WhisperModel.LARGE_TURBO} else 51865


def sibling_repo(model: WhisperModel | str, quant: Quantization | str) -> str | None:
    """Return the other repository of the same model at the same precision.

    Args:
        model: A name of the table, or an alias.
        quant: A precision of the table.

    Returns:
        The repository, as `org/name`, or None where the table has the only one.

    Raises:
        ModelNotFoundError: The table has no such model.
        QuantizedModelNotAvailableError: The table has no such precision.

    Source:
        The repositories of mlx-community of 2025, whose names have no `-mlx`.
    """
    name = _parse_name(model)
    sibling = f"{_STEM}{name}{_SIBLING_SUFFIX[parse_quantization(name, quant)]}"
    return None if sibling == resolve_repo(name, quant) else sibling


def parse_quantization(model: str, quant: Quantization | str) -> Quantization:
    """Return the precision of a name.

    Args:
        model: The model it is asked for, for the message.
        quant: The precision or its name.

    Returns:
        The precision.

    Raises:
        QuantizedModelNotAvailableError: No precision has this name.
    """
    try:
        return Quantization(quant)
    except ValueError:
        raise QuantizedModelNotAvailableError(
            model, quant, f"choose one of {', '.join(Quantization)}"
        ) from None


def suggest(wrong: str, known: Iterable[str], otherwise: str) -> str:
    """Return the question whether the most similar name was meant.

    Args:
        wrong: The name that is unknown.
        known: The names that are known.
        otherwise: What to return when no known name is similar.

    Returns:
        Such as "did you mean 'tiny'?".
    """
    from difflib import get_close_matches  # noqa: PLC0415  1 ms that only an error needs

    nearest = get_close_matches(wrong, known, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else otherwise


def _check_directory(path: Path, given: str) -> Path:
    """Return a path to a directory; refuse any other, by the name that was given."""
    if os.path.isdir(path):  # noqa: PTH112  see parse_model
        return path
    if os.path.lexists(path):
        kind = foreign.name_by_bytes(path)
        if kind is not None:
            detail = f"it is {kind}, which is not read here: {_advise(path)}"
        elif (path.parent / CONFIG).is_file():
            detail = f"it is not a directory: give its directory, {str(path.parent)!r}"
        else:
            detail = f"it is not a directory: {_advise(path)}"
        raise ModelNotFoundError(given, detail)
    detail = "there is no such directory"
    kind = foreign.name_by_suffix(path.name)
    if kind is not None:
        detail += f", and {kind} would not be read: {_advise(path)}"
    raise ModelNotFoundError(given, detail)


def _advise(path: PurePath) -> str:
    """Return what to give in place of a file that is not read, such as "give 'base', …"."""
    # The longest first: large-v3-turbo, and not large-v3.
    names = sorted(WhisperModel, key=len, reverse=True)
    meant = next((str(name) for name in names if name in path.name.lower()), "tiny")
    return f"give a name such as {meant!r}, a directory with {CONFIG}, or a repository as org/name"


def _find_name(model: str) -> WhisperModel | None:
    """Return the model of the table that has a name or an alias, in any case."""
    return _NAMES.get(_normalize(model))


def _parse_name(model: str) -> WhisperModel:
    """Return the model of the table that has a name or an alias; refuse any other name."""
    named = _find_name(model) if isinstance(model, str) else None
    if named is None:
        raise _unknown(str(model))
    return named


def _normalize(model: str) -> str:
    return model.lower().removeprefix("whisper-")


def _unknown(model: str) -> ModelNotFoundError:
    """Build the error for a name that stands for nothing."""
    names = ", ".join(WhisperModel)
    choices = f"choose one of {names}, a directory, or a repository as org/name"
    return ModelNotFoundError(model, suggest(_normalize(model), _NAMES, choices))
