"""The repository table: names, aliases, paths by form, precisions, repositories."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastwhisper.errors import ModelNotFoundError, QuantizedModelNotAvailableError
from fastwhisper.sources.table import (
    parse_model,
    parse_quantization,
    resolve_repo,
    sibling_repo,
    suggest,
)
from fastwhisper.values import Quantization, WhisperModel

if TYPE_CHECKING:
    from collections.abc import Callable

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


ALIASES = {
    "turbo": WhisperModel.LARGE_TURBO,
    "large": WhisperModel.LARGE_V3,
    "Turbo": WhisperModel.LARGE_TURBO,
    "TINY.EN": WhisperModel.TINY_EN,
    "whisper-large": WhisperModel.LARGE_V3,
    "whisper-large-v3-turbo": WhisperModel.LARGE_TURBO,
    "Whisper-Small": WhisperModel.SMALL,
}


@pytest.mark.parametrize("alias", ALIASES)
def test_alias_is_a_model_of_the_table(alias: str) -> None:
    """An alias has the repositories of its model."""
    assert parse_model(alias) is ALIASES[alias]
    assert resolve_repo(alias, "int4") == resolve_repo(ALIASES[alias], "int4")
    assert sibling_repo(alias, "int8") == sibling_repo(ALIASES[alias], "int8")


@pytest.mark.parametrize("resolve", [resolve_repo, parse_model])
@pytest.mark.parametrize(
    ("model", "meant"),
    [
        ("tinny", "tiny"),
        ("tiny ", "tiny"),
        ("TINNY", "tiny"),
        ("whisper-tyny", "tiny"),
        ("large-v2", "large-v3"),
        ("trubo", "turbo"),
        ("large-v3-turbo-4bit", "large-v3-turbo"),
    ],
)
def test_wrong_name_is_refused_with_the_nearest(
    resolve: Callable[[str], object], model: str, meant: str
) -> None:
    """A wrong name is refused with a name that is similar to it, which works."""
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(model)
    assert str(caught.value) == f"unknown model {model!r}; did you mean {meant!r}?"
    assert caught.value.model == model
    parse_model(meant)


@pytest.mark.parametrize("resolve", [resolve_repo, parse_model])
@pytest.mark.parametrize("model", ["", "parakeet", "a/b/c", "nul\0"])
def test_wrong_name_that_is_like_none_lists_the_names(
    resolve: Callable[[str], object], model: str
) -> None:
    """Without a similar name, the message has all of them."""
    with pytest.raises(ModelNotFoundError) as caught:
        resolve(model)
    assert not isinstance(caught.value, QuantizedModelNotAvailableError)
    assert all(name in str(caught.value) for name in WhisperModel)


def test_repository_is_itself_and_not_in_the_table() -> None:
    """`org/name` is a repository for parse_model, and no name of the table."""
    assert parse_model("org/name") == "org/name"
    with pytest.raises(ModelNotFoundError):
        resolve_repo("org/name")


def test_name_of_the_table_comes_before_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exact name is the table's, also where a directory has the same name."""
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    assert parse_model("tiny") is WhisperModel.TINY
    assert parse_model("./tiny") == Path("tiny")
    assert parse_model(Path("tiny")) == Path("tiny")


@pytest.mark.parametrize("name", ["turbo", "Tiny", "whisper-tiny", "org/name", "a.bin"])
def test_directory_comes_before_an_alias_and_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What is not exactly a name of the table, and is a directory, is the directory."""
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir(parents=True)
    assert parse_model(name) == Path(name)


PATHS = [
    "./none", "../none", "~/none", "~nobody/none", "/none", ".none", "org/model.bin", "x.pt",
    "org/x.pth", "model.gguf", "weights.npz", "model.safetensors", "/none\0", "~/\0",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_path_by_its_form_is_no_repository(path: str) -> None:
    """A string with the form of a path is refused when it is not there."""
    with pytest.raises(ModelNotFoundError, match="no such directory"):
        parse_model(path)


def test_path_object_is_never_a_name() -> None:
    """A Path is a directory, or it is refused."""
    with pytest.raises(ModelNotFoundError, match="no such directory"):
        parse_model(Path("tiny"))


def test_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A string that begins with `~/` is a path in the home directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    assert parse_model("~/models") == tmp_path / "models"


@pytest.mark.parametrize("kind", [str, Path])
def test_file_is_no_directory(tmp_path: Path, kind: Callable[[Path], str | Path]) -> None:
    """A path to the weights themselves is refused, with what to give in place of it."""
    (tmp_path / "config.json").touch()
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    with pytest.raises(ModelNotFoundError, match="give its directory"):
        parse_model(kind(weights))


def test_suggestion_is_the_most_similar_name() -> None:
    """The nearest of the known names is suggested, and none that is far."""
    assert suggest("int3", ["float16", "int8"], "no") == "did you mean 'int8'?"
    assert suggest("x", ["float16", "int8"], "no") == "no"


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
