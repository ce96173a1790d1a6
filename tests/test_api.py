"""The public surface: exact names, docstrings, a light import."""

from __future__ import annotations

import ast
import inspect
import pickle
from pathlib import Path

import pytest

import fastwhisper
from fastwhisper import errors
from tests.helpers.interpreter import run_python

HEAVY = ("mlx", "numpy", "anyio", "huggingface_hub", "av", "mlx_whisper")


def test_every_public_name_resolves_and_is_listed_once() -> None:
    """`__all__` is sorted, free of doubles, and every name is there."""
    assert fastwhisper.__all__ == sorted(set(fastwhisper.__all__))
    assert dir(fastwhisper) == fastwhisper.__all__
    for name in fastwhisper.__all__:
        assert getattr(fastwhisper, name).__module__.startswith("fastwhisper") or (
            name == "LoadingState"
        )


def test_type_checkers_see_the_same_names() -> None:
    """The imports under TYPE_CHECKING are exactly `__all__`."""
    assert fastwhisper.__file__
    tree = ast.parse(Path(fastwhisper.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    names = [
        alias.name
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(names) == fastwhisper.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A typo is refused as a module refuses it."""
    with pytest.raises(AttributeError, match="opne"):
        fastwhisper.opne  # noqa: B018  # type: ignore[attr-defined]  # that is the point


@pytest.mark.parametrize("name", [n for n in fastwhisper.__all__ if n != "LoadingState"])
def test_every_public_name_has_a_docstring(name: str) -> None:
    """Each exported object documents itself, and so does each public member."""
    value = getattr(fastwhisper, name)
    assert inspect.getdoc(value)
    if inspect.isclass(value):
        for member, what in vars(value).items():
            if not member.startswith("_") and (
                inspect.isfunction(what) or isinstance(what, property)
            ):
                assert inspect.getdoc(what), f"{name}.{member}"


def test_importing_fastwhisper_imports_nothing_heavy() -> None:
    """`import fastwhisper` imports neither MLX, numpy nor anyio."""
    code = f"import sys, fastwhisper\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    assert run_python("-c", code).stdout.split() == []


SAMPLES = [
    errors.ModelNotFoundError("huge", "the names are tiny"),
    errors.QuantizedModelNotAvailableError("tiny", fastwhisper.Quantization.INT4, "no such file"),
    errors.InvalidModelFormatError(Path("a"), "b", "c"),
    errors.TokenizationFailedError(Path("a"), "b"),
    errors.BackendMissingError("install the extra"),
    errors.HubUnavailableError("org/name", "no network"),
    errors.LoadingFailedError("tiny", "no network"),
    errors.LoadingTimeoutError("tiny", 3.0),
    errors.ModelNotReadyError("tiny"),
    errors.QuantizationFallbackError(
        fastwhisper.Quantization.INT4, fastwhisper.Quantization.FLOAT16, "no such repository"
    ),
    errors.AudioError("a.wav", "is empty"),
    errors.NotEnoughMemoryError("/models/tiny", 3 << 30, 1 << 30),
    errors.SessionClosedError("tiny"),
]


def test_the_samples_are_all_the_errors() -> None:
    """No error is left out of the tests below."""
    assert {type(error).__name__ for error in SAMPLES} == set(errors.__all__) - {"FastWhisperError"}


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling(error: errors.FastWhisperError) -> None:
    """An error crosses a process boundary with its fields and its message."""
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert copy.args == error.args
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_messages_name_what_they_are_about(error: errors.FastWhisperError) -> None:
    """The message holds the first field, whatever its kind."""
    assert str(error.args[0]) in str(error)
