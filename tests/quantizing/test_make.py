"""Quantizing a model into a directory: what is written opens fast, and equals what was made."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anyio
import mlx.core as mx
import mlx_whisper.load_models
import numpy as np
import pytest
from safetensors.numpy import load_file

import fastwhisper
from fastwhisper.checkpoint.chunks import describe_mapping
from fastwhisper.engine import threads
from fastwhisper.engine.threads import Lane
from fastwhisper.errors import InvalidModelFormatError, QuantizedModelNotAvailableError
from fastwhisper.loading import stages
from fastwhisper.quantizing import make, quantizer
from fastwhisper.quantizing.calibrate import CalibrationWindow
from fastwhisper.values import ModulePrecision, Progress, Quantization
from tests.helpers.modules import assert_same_module, name_parameters
from tests.helpers.tiny_models import SMALLEST, make_arrays, make_config, write_arrays, write_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fastwhisper.whisper.network import Whisper

pytestmark = pytest.mark.anyio


def mumble(model: Whisper) -> Iterator[CalibrationWindow]:
    """Stand in for speech: two windows of noise that fit any dimensions."""
    rng = np.random.default_rng(0)
    for _ in range(2):
        shape = (2 * model.dims.n_audio_ctx, model.dims.n_mels)
        mel = mx.array(rng.standard_normal(shape).astype(np.float32))
        yield CalibrationWindow(mel, model.encoder(mel[None])[0], (1, 2, 3, 4, 5))


@pytest.fixture(autouse=True)
def noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the small models hear noise, as speech is too long for them, and write no text."""
    monkeypatch.setattr(quantizer, "read_calibration_windows", mumble)
    monkeypatch.setattr(stages, "check_text", lambda _: None)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a float16 model."""
    return write_model(tmp_path / "source", dimensions=SMALLEST)


@pytest.mark.parametrize("quant", ["int4", "int8"])
async def test_what_is_written_opens_on_the_fast_path(
    source: Path, tmp_path: Path, quant: str
) -> None:
    """The directory opens without conversion, and holds the arrays that were written."""
    out = tmp_path / "new" / "out"
    assert await make.quantize(source, out=out, quant=Quantization(quant), share=0.5) == out
    written = load_file(out / "weights.safetensors")
    async with fastwhisper.open(out, warm_up=False) as session:  # it has too few tokens for one
        opened = name_parameters(session.result.model)
        assert session.result.path == out
        assert fastwhisper.inspect_checkpoint(out).layout == "safetensors"
        for name, array in written.items():
            assert np.array_equal(np.array(opened[name]).astype(array.dtype), array), name
    assert opened.keys() == written.keys()


@pytest.mark.parametrize("quant", ["int4", "int8"])
async def test_what_is_written_can_be_mapped(source: Path, tmp_path: Path, quant: str) -> None:
    """The data begins at a page of Apple silicon, and each tensor at its item size."""
    out = await make.quantize(source, out=tmp_path / "out", quant=Quantization(quant), share=0.5)
    tensors = fastwhisper.inspect_checkpoint(out).tensors
    assert min(plan.offset_bytes for plan in tensors) % (16 << 10) == 0
    assert describe_mapping(tensors, "float16") == "yes"


async def test_mlx_whisper_opens_it_where_its_config_can_say_it(
    source: Path, tmp_path: Path
) -> None:
    """One precision for all modules: upstream's module is ours, array for array."""
    out = await make.quantize(source, out=tmp_path / "out", quant="int8")
    ours = await threads.run(lambda: fastwhisper.load_model(out), Lane.COMPUTE)
    assert_same_module(ours, mlx_whisper.load_models.load_model(str(out)))


async def test_mixed_precision_is_in_the_config(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules that differ from most are named in the config, and inspection agrees."""
    mixed = {
        name: ModulePrecision(6 if name == "decoder.token_embedding" else 3, 32)
        for name in fastwhisper.inspect_checkpoint(
            write_model(tmp_path / "int8", dimensions=SMALLEST, precision="int8")
        ).precision
    }
    monkeypatch.setattr(quantizer, "choose_precision", lambda *_, **__: mixed)
    out = await make.quantize(source, out=tmp_path / "out")
    said = json.loads((out / "config.json").read_text())["quantization"]
    assert said == {
        "bits": 3,
        "group_size": 32,
        "decoder.token_embedding": {"bits": 6, "group_size": 32},
    }
    assert fastwhisper.inspect_checkpoint(out).precision == mixed


async def test_biases_take_back_what_rounding_shifts(source: Path, tmp_path: Path) -> None:
    """Calibration changes linear biases; norms and convolutions stay as they were."""
    out = await make.quantize(source, out=tmp_path / "out", share=0.5)
    before, after = (
        load_file(source / "weights.safetensors"),
        load_file(out / "weights.safetensors"),
    )
    changed = {
        name
        for name in before.keys() & after.keys()
        if before[name].shape == after[name].shape and not np.array_equal(before[name], after[name])
    }
    assert "encoder.blocks.0.mlp2.bias" in changed
    assert all(".blocks." in name and name.endswith(".bias") for name in changed)
    assert not any("_ln." in name for name in changed)


async def test_progress_counts_every_module(source: Path, tmp_path: Path) -> None:
    """The stage "convert" begins at nothing, never goes back and ends at all."""
    seen: list[Progress] = []
    await make.quantize(source, out=tmp_path / "out", quant="int8", on_progress=seen.append)
    done = [each.done_bytes for each in seen if each.stage == "convert"]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == seen[-1].total_bytes


async def test_a_directory_that_exists_is_left_alone(source: Path, tmp_path: Path) -> None:
    """Nothing is overwritten, and nothing is loaded first."""
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="exists; name a directory"):
        await make.quantize(source, out=tmp_path / "out")


async def test_float16_is_no_choice(source: Path, tmp_path: Path) -> None:
    """Asking for float16 is an error that names the choices."""
    with pytest.raises(ValueError, match="choose int8 or int4"):
        await make.quantize(source, out=tmp_path / "out", quant="float16")


async def test_too_small_a_share_is_refused(source: Path, tmp_path: Path) -> None:
    """No recipe for a tenth of the bytes: the error says what is needed."""
    with pytest.raises(ValueError, match="needs"):
        await make.quantize(source, out=tmp_path / "out", share=0.1)


async def test_a_quantized_source_is_refused(tmp_path: Path) -> None:
    """Rounding twice is not what anybody wants."""
    source = write_model(tmp_path / "source", dimensions=SMALLEST, precision="int8")
    with pytest.raises(QuantizedModelNotAvailableError):
        await make.quantize(source, out=tmp_path / "out")


async def test_a_model_of_nan_is_refused(tmp_path: Path) -> None:
    """Weights that are no numbers end in an error that names the model, and no directory."""
    arrays = make_arrays(SMALLEST)
    arrays["encoder.conv1.bias"][:] = np.nan
    source = write_arrays(tmp_path / "source", arrays, make_config(SMALLEST))
    with pytest.raises(InvalidModelFormatError, match="source"):
        await make.quantize(source, out=tmp_path / "out", share=0.5)
    assert left(tmp_path) == []


async def test_what_the_callback_raises_ends_the_work(source: Path, tmp_path: Path) -> None:
    """The error of a progress callback comes out, and nothing is written."""

    def refuse(progress: Progress) -> None:
        if progress.stage == "convert":
            raise KeyError(progress.stage)

    with pytest.raises(KeyError):
        await make.quantize(source, out=tmp_path / "out", share=0.5, on_progress=refuse)
    assert not (tmp_path / "out").exists()


async def test_a_failed_write_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is an error, and no part of a directory is left."""

    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("fastwhisper.sources.atomic.sync", fail)
    with pytest.raises(OSError, match="No space left"):
        await make.quantize(source, out=tmp_path / "out", quant="int8")
    assert left(tmp_path) == []


async def test_cancelled_midway_leaves_nothing(source: Path, tmp_path: Path) -> None:
    """Cancelled between two modules, the work stops there and nothing is written."""
    seen: list[Progress] = []
    with anyio.CancelScope() as scope:

        def cancel(progress: Progress) -> None:
            seen.append(progress)
            if progress.stage == "convert" and progress.done_bytes:
                scope.cancel()

        await make.quantize(source, out=tmp_path / "out", quant="int8", on_progress=cancel)
    assert scope.cancelled_caught
    assert seen[-1].done_bytes < (seen[-1].total_bytes or 0)
    assert left(tmp_path) == []


def left(folder: Path) -> list[str]:
    """List what was made for `out`, complete or not."""
    return [path.name for path in folder.iterdir() if "out" in path.name]
