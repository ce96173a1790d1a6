"""The repository table: model and precision in, repository id out."""

from __future__ import annotations

from typing import Final

from fastwhisper.errors import ModelNotFoundError, QuantizedModelNotAvailableError
from fastwhisper.values import Quantization, WhisperModel

__all__ = ["parse_quantization", "resolve_repo", "sibling_repo"]

_STEM: Final = "mlx-community/whisper-"
_TABLE_SUFFIX: Final = {
    Quantization.FLOAT16: "",
    Quantization.INT8: "-8bit",
    Quantization.INT4: "-4bit",
}
_SIBLING_SUFFIX: Final = _TABLE_SUFFIX | {Quantization.FLOAT16: "-fp16"}


def resolve_repo(
    model: WhisperModel | str, quant: Quantization | str = Quantization.FLOAT16
) -> str:
    """Look up the repository of a model at a precision.

    Args:
        model: A name of the table, such as "large-v3-turbo".
        quant: A precision of the table, such as "int4".

    Returns:
        The repository, as `org/name`.

    Raises:
        ModelNotFoundError: The table has no such model.
        QuantizedModelNotAvailableError: The table has no such precision.

    Source:
        The repositories of mlx-community on the Hub.
    """
    name = _parse_model(model)
    precision = parse_quantization(name, quant)
    infix = "" if name is WhisperModel.LARGE_TURBO else "-mlx"
    return f"{_STEM}{name}{infix}{_TABLE_SUFFIX[precision]}"


def sibling_repo(model: WhisperModel | str, quant: Quantization | str) -> str | None:
    """Name the repository that holds the same model at the same precision under another name.

    Args:
        model: A name of the table.
        quant: A precision of the table.

    Returns:
        The repository, as `org/name`, or None where the table names it already.

    Raises:
        ModelNotFoundError: The table has no such model.
        QuantizedModelNotAvailableError: The table has no such precision.

    Source:
        The repositories of mlx-community of 2025, whose names have no `-mlx`.
    """
    name = _parse_model(model)
    sibling = f"{_STEM}{name}{_SIBLING_SUFFIX[parse_quantization(name, quant)]}"
    return None if sibling == resolve_repo(name, quant) else sibling


def parse_quantization(model: str, quant: Quantization | str) -> Quantization:
    """Turn a precision's name into the precision.

    Args:
        model: The model it is asked for, for the message.
        quant: The precision or its name.

    Returns:
        The precision.

    Raises:
        QuantizedModelNotAvailableError: No precision goes by this name.
    """
    try:
        return Quantization(quant)
    except ValueError:
        raise QuantizedModelNotAvailableError(
            model, quant, f"choose one of {', '.join(Quantization)}"
        ) from None


def _parse_model(model: WhisperModel | str) -> WhisperModel:
    try:
        return WhisperModel(model)
    except ValueError:
        raise ModelNotFoundError(
            model,
            f"choose one of {', '.join(WhisperModel)}, a directory, or a repository as org/name",
        ) from None
