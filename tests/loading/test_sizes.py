"""Networks whose sizes are not those of Whisper's input: refused before a weight is read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import pytest

import fastwhisper
from fastwhisper import InvalidModelFormatError
from fastwhisper.loading.compute import Compute
from tests.helpers.command import run_command
from tests.helpers.tiny_models import SPEAKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.helpers.tiny_models import LayoutName

SIZES = [("n_audio_ctx", 16), ("n_audio_ctx", 1499), ("n_audio_ctx", 3000), ("n_mels", 40)]


@pytest.fixture(params=SIZES, ids=str)
def field(request: pytest.FixtureRequest) -> str:
    """Return the field that is wrong."""
    return str(request.param[0])


@pytest.fixture
def model(request: pytest.FixtureRequest, tiny_model_dir: Callable[..., Path], field: str) -> Path:
    """Return a model in which a size is wrong; all shapes agree with it."""
    value: int = request.node.callspec.params["field"][1]
    return tiny_model_dir(dimensions=replace(SPEAKING, **{field: value}))


@pytest.fixture(autouse=True)
def _no_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test where a weight is read or a kernel is warmed up."""

    def fail(*_: object, **__: object) -> None:
        pytest.fail("the model must be refused at inspection")

    monkeypatch.setattr(Compute, "read", fail)
    monkeypatch.setattr("fastwhisper.loading.warm_up.WarmUp.run", fail)


@pytest.mark.anyio
async def test_load_refuses_it_at_inspection(model: Path, field: str) -> None:
    """load() names the field, with a GPU's warm-up too, and in the background."""
    with pytest.raises(InvalidModelFormatError, match="30 s needs") as caught:
        await fastwhisper.load(model, warm_up=True)
    assert caught.value.tensor == field
    async with anyio.create_task_group() as group:
        with pytest.raises(InvalidModelFormatError, match="30 s needs"):
            await fastwhisper.load(model, background=True, task_group=group, warm_up=True)


@pytest.mark.anyio
async def test_open_refuses_it_at_inspection(model: Path, field: str) -> None:
    """open() names the field on entering; in the background, at the wait."""
    with pytest.raises(InvalidModelFormatError, match=field):
        async with fastwhisper.open(model, warm_up=True):
            pytest.fail("the block must not begin")
    async with fastwhisper.open(model, warm_up=True, background=True) as session:
        with pytest.raises(fastwhisper.LoadingFailedError, match=field):
            await session.wait_until_ready()


LAYOUTS: list[LayoutName] = ["weights.npz", "model.bin", "huggingface model.safetensors"]


@pytest.mark.anyio
@pytest.mark.parametrize("layout", LAYOUTS)
async def test_every_layout_is_refused(
    tiny_model_dir: Callable[..., Path], layout: LayoutName
) -> None:
    """Wherever the size stands, in a config or in the shape of the positions, it is refused."""
    model = tiny_model_dir(dimensions=replace(SPEAKING, n_audio_ctx=16), layout=layout)
    with pytest.raises(InvalidModelFormatError, match="is 16, but Whisper's input of 30 s"):
        await fastwhisper.load(model, warm_up=True)


def test_inspect_says_that_it_can_not_be_transcribed_with(
    model: Path, field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`fastwhisper inspect` describes it, and says why the other commands refuse it."""
    assert run_command("inspect", model) == 0
    (line,) = [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("not_transcribable")
    ]
    assert field in line


def test_inspect_has_nothing_to_say_of_a_model_that_opens(
    tiny_model_dir: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that opens has no such line."""
    assert run_command("inspect", tiny_model_dir(dimensions=SPEAKING)) == 0
    assert "not_transcribable" not in capsys.readouterr().out
