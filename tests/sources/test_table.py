"""The repository table."""

from __future__ import annotations

import pytest

from fastwhisper.errors import ModelNotFoundError, QuantizedModelNotAvailableError
from fastwhisper.sources.table import parse_quantization, resolve_repo, sibling_repo
from fastwhisper.values import Quantization, WhisperModel

PLAIN = (
    "tiny",
    "tiny.en",
    "base",
    "base.en",
    "small",
    "small.en",
    "medium",
    "medium.en",
    "large-v3",
)
TABLE = {
    (name, quant): f"mlx-community/whisper-{name}-mlx{suffix}"
    for name in PLAIN
    for quant, suffix in (("float16", ""), ("int8", "-8bit"), ("int4", "-4bit"))
} | {
    ("large-v3-turbo", "float16"): "mlx-community/whisper-large-v3-turbo",
    ("large-v3-turbo", "int8"): "mlx-community/whisper-large-v3-turbo-8bit",
    ("large-v3-turbo", "int4"): "mlx-community/whisper-large-v3-turbo-4bit",
}


def test_table_has_a_row_for_every_model_and_a_column_for_every_precision() -> None:
    """The expected table and the enums agree: 30 cells."""
    assert set(TABLE) == {(str(m), str(q)) for m in WhisperModel for q in Quantization}
    assert len(TABLE) == 30


@pytest.mark.parametrize(("model", "quant"), TABLE)
def test_cell_by_string(model: str, quant: str) -> None:
    """Every cell is found by strings."""
    assert resolve_repo(model, quant) == TABLE[model, quant]


@pytest.mark.parametrize(("model", "quant"), TABLE)
def test_cell_by_enum(model: str, quant: str) -> None:
    """Every cell is found by enum members."""
    assert resolve_repo(WhisperModel(model), Quantization(quant)) == TABLE[model, quant]


def test_float16_is_the_default() -> None:
    """Without a precision it is float16."""
    assert resolve_repo("tiny") == "mlx-community/whisper-tiny-mlx"


@pytest.mark.parametrize("model", ["", "Tiny", "tiny ", "large-v2", "org/name", "tiny.en\0"])
def test_unknown_model_lists_the_names(model: str) -> None:
    """An unknown model is refused, and the valid names are in the message."""
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_repo(model)
    assert not isinstance(caught.value, QuantizedModelNotAvailableError)
    assert all(name in str(caught.value) for name in WhisperModel)


@pytest.mark.parametrize("quant", ["", "fp16", "INT4", "4bit"])
def test_unknown_precision_lists_the_precisions(quant: str) -> None:
    """An unknown precision is refused, and the valid ones are in the message."""
    with pytest.raises(QuantizedModelNotAvailableError) as caught:
        resolve_repo("tiny", quant)
    assert all(name in str(caught.value) for name in Quantization)


def test_parse_quantization_takes_a_member() -> None:
    """A member of the enum is itself."""
    assert parse_quantization("x", Quantization.INT4) is Quantization.INT4


@pytest.mark.parametrize(
    ("model", "quant", "sibling"),
    [
        ("tiny.en", "float16", "mlx-community/whisper-tiny.en-fp16"),
        ("tiny.en", "int8", "mlx-community/whisper-tiny.en-8bit"),
        ("large-v3", "int4", "mlx-community/whisper-large-v3-4bit"),
        ("large-v3-turbo", "float16", "mlx-community/whisper-large-v3-turbo-fp16"),
        ("large-v3-turbo", "int4", None),
    ],
)
def test_sibling(model: str, quant: str, sibling: str | None) -> None:
    """The sibling has no `-mlx`; where the table names it already there is none."""
    assert sibling_repo(model, quant) == sibling
