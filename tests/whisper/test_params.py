"""Building the network and putting weights into it."""

from __future__ import annotations

import threading
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx_whisper.whisper
import pytest
from mlx import nn

from fastwhisper.checkpoint.inspection import inspect_checkpoint
from fastwhisper.checkpoint.read import read_shards
from fastwhisper.errors import InvalidModelFormatError
from fastwhisper.loading.compute import find_device
from fastwhisper.values import ModulePrecision
from fastwhisper.whisper.layers import Linear, Packing
from fastwhisper.whisper.params import apply_params, build_module
from tests.helpers.modules import name_parameters

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fastwhisper.checkpoint.plan import Checkpoint
    from fastwhisper.values import DtypeName
    from fastwhisper.whisper.network import Whisper


def read(checkpoint: Checkpoint, prefix: str = "") -> dict[str, mx.array]:
    """Read the weights, names cut by the prefix."""
    return {
        name.removeprefix(prefix): array
        for group in read_shards(checkpoint, prefix=prefix)
        for name, array in group.items()
    }


HALF_A_ROW = 32
"""MLX 0.32.4 with CUDA multiplies wrongly where a row of packed weights is one group."""
TOLERANCE = 0.0 if find_device() == "cpu" else 1e-4
"""A GPU may add in another order."""


def run(module: Whisper) -> mx.array:
    """Take one step through encoder and decoder."""
    mel = mx.zeros((1, 32, 80))
    logits = module(mel, mx.array([[1, 2]]))
    mx.eval(logits)
    return logits


@pytest.mark.parametrize("precision", ["float16", "int8", "int4"])
def test_loaded_network_runs_in_any_thread(
    precision: str, tiny_model_dir: Callable[..., Path]
) -> None:
    """Nothing lazy is left: built and filled in one thread, used in another and here."""
    checkpoint = inspect_checkpoint(tiny_model_dir(precision=precision, group_size=HALF_A_ROW))
    made: list[Whisper] = []

    def load() -> None:
        module = build_module(checkpoint)
        apply_params(module, read(checkpoint))
        made.append(module)

    seen: list[mx.array] = []
    for work in (load, lambda: seen.append(run(made[0]))):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert mx.allclose(run(made[0]), seen[0], rtol=0, atol=TOLERANCE).item()
    assert seen[0].shape == (1, 2, 96)


@pytest.mark.parametrize(
    "layout",
    ["weights.npz", "model.bin", "model.safetensors.index.json", "huggingface model.safetensors"],
)
def test_layouts_give_the_same_network(layout: str, tiny_model_dir: Callable[..., Path]) -> None:
    """Parameters are equal whatever the files were."""
    loaded = []
    for name in ("weights.safetensors", layout):
        checkpoint = inspect_checkpoint(tiny_model_dir(layout=name))
        module = build_module(checkpoint)
        apply_params(module, read(checkpoint))
        loaded.append(name_parameters(module))
    del loaded[0]["alignment_heads"], loaded[1]["alignment_heads"]
    assert loaded[0].keys() == loaded[1].keys()
    assert all(mx.array_equal(array, loaded[1][name]).item() for name, array in loaded[0].items())


def test_building_evaluates_no_weight(tiny_model_dir: Callable[..., Path]) -> None:
    """A network of 300 MB takes the memory of its positions and mask only."""
    checkpoint = inspect_checkpoint(tiny_model_dir())
    large = replace(checkpoint, dimensions=replace(checkpoint.dimensions, n_vocab=1 << 20))
    before = mx.get_active_memory()
    module = build_module(large)
    assert mx.get_active_memory() - before < 1 << 20
    assert module.decoder.token_embedding.weight.nbytes >= 1 << 28


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_dtype_reaches_positions_and_mask(
    dtype: DtypeName, tiny_model_dir: Callable[..., Path]
) -> None:
    """The dtype applies to positions and mask, as upstream; parameters keep the file's dtype."""
    checkpoint = inspect_checkpoint(tiny_model_dir())
    module = build_module(checkpoint, dtype=dtype)
    apply_params(module, read(checkpoint))
    assert module.encoder._positional_embedding.dtype == getattr(mx, dtype)
    assert module.decoder._mask.dtype == getattr(mx, dtype)
    assert module.decoder.positional_embedding.dtype == mx.float16


def test_bits_are_per_module(tiny_model_dir: Callable[..., Path]) -> None:
    """Every module has its own class, bits and group size."""
    checkpoint = inspect_checkpoint(tiny_model_dir())
    mixed = {
        "decoder.token_embedding": ModulePrecision(8, 32),
        "encoder.blocks.0.mlp1": ModulePrecision(4, 64),
        "encoder.blocks.7.mlp1": ModulePrecision(4, 64),
    }
    module = build_module(replace(checkpoint, precision=mixed))
    embedding: Any = module.decoder.token_embedding
    mlp: Any = module.encoder.blocks[0].mlp1
    assert (embedding.packing.bits, embedding.packing.group_size) == (8, 32)
    assert (mlp.packing.bits, mlp.packing.group_size) == (4, 64)
    assert module.encoder.blocks[0].mlp2.packing is None


def test_alignment_heads_of_the_checkpoint(tiny_model_dir: Callable[..., Path]) -> None:
    """Alignment heads of the checkpoint replace the default, in the default's dtype."""
    module = build_module(inspect_checkpoint(tiny_model_dir(layout="model.bin")))
    assert module.alignment_heads.tolist() == [[0, 0]]
    assert module.alignment_heads.dtype == mx.int64


def test_alignment_heads_by_default(tiny_model_dir: Callable[..., Path]) -> None:
    """Without alignment heads in the checkpoint the network has upstream's default."""
    checkpoint = inspect_checkpoint(tiny_model_dir())
    upstream = mlx_whisper.whisper.Whisper(
        mlx_whisper.whisper.ModelDimensions(**asdict(checkpoint.dimensions))
    )
    found = build_module(checkpoint).alignment_heads
    assert found.dtype == upstream.alignment_heads.dtype
    assert mx.array_equal(found, upstream.alignment_heads).item()


def test_part_by_part(tiny_model_dir: Callable[..., Path]) -> None:
    """Encoder and decoder can be filled on their own, names cut."""
    checkpoint = inspect_checkpoint(tiny_model_dir(precision="int4", group_size=HALF_A_ROW))
    whole, parts = build_module(checkpoint), build_module(checkpoint)
    apply_params(whole, read(checkpoint))
    apply_params(parts.encoder, read(checkpoint, "encoder."))
    apply_params(parts.decoder, read(checkpoint, "decoder."))
    assert mx.allclose(run(whole), run(parts), rtol=0, atol=TOLERANCE).item()


@pytest.fixture
def loaded(tiny_model_dir: Callable[..., Path]) -> tuple[Whisper, dict[str, mx.array]]:
    """Return a network that is not filled, and its int4 weights."""
    checkpoint = inspect_checkpoint(tiny_model_dir(precision="int4"))
    return build_module(checkpoint), read(checkpoint)


def put(name: str, array: mx.array) -> Callable[[dict[str, mx.array]], object]:
    """Make a fault: a parameter is another array."""
    return lambda params: params.__setitem__(name, array)


MLP = "encoder.blocks.0.mlp1"
FAULTS: dict[str, tuple[Callable[[dict[str, mx.array]], object], str]] = {
    "missing": (lambda p: p.pop(f"{MLP}.scales"), f"missing: {MLP}.scales"),
    "unknown": (put("encoder.extra", mx.zeros(1)), "unknown: encoder.extra"),
    "hidden": (put("decoder._mask", mx.zeros((8, 8))), "unknown: decoder._mask"),
    "absurd block": (put("decoder.blocks.3000000000.x", mx.zeros(1)), "unknown: decoder.blocks.3"),
    "scalar": (put(f"{MLP}.bias", mx.array(0.0)), f"of the wrong shape: {MLP}.bias"),
    "float for packed": (put(f"{MLP}.weight", mx.zeros((256, 8))), f"{MLP}.weight float32"),
    "integer for float": (put(f"{MLP}.bias", mx.zeros(256, mx.int32)), f"{MLP}.bias int32"),
    "packed for float": (put(f"{MLP}.bias", mx.zeros(256, mx.uint32)), f"{MLP}.bias uint32"),
    "heads as floats": (put("alignment_heads", mx.zeros((1, 2))), "alignment_heads float32"),
    "heads in threes": (
        put("alignment_heads", mx.zeros((1, 3), mx.int32)),
        "of the wrong shape: align",
    ),
    "head beyond": (put("alignment_heads", mx.array([[0, 1]])), "alignment_heads (0, 1)"),
    "layer beyond": (put("alignment_heads", mx.array([[1, 0]])), "alignment_heads (1, 0)"),
    "negative head": (put("alignment_heads", mx.array([[0, -1]])), "alignment_heads (0, -1)"),
}


@pytest.mark.parametrize(("fault", "said"), FAULTS.values(), ids=list(FAULTS))
def test_wrong_parameters_are_refused_and_nothing_changes(
    fault: Callable[[dict[str, mx.array]], object],
    said: str,
    loaded: tuple[Whisper, dict[str, mx.array]],
) -> None:
    """The error names the parameter and the network is as it was."""
    module, params = loaded
    before = {name: id(array) for name, array in name_parameters(module).items()}
    fault(params)
    with pytest.raises(InvalidModelFormatError) as caught:
        apply_params(module, params)
    assert said in str(caught.value)
    assert {name: id(array) for name, array in name_parameters(module).items()} == before


def test_all_wrong_parameters_are_in_one_error(
    loaded: tuple[Whisper, dict[str, mx.array]], tmp_path: Path
) -> None:
    """Missing, unknown and mis-shaped ones together, with the path that was given."""
    module, params = loaded
    for name in ("unknown", "scalar", "missing", "head beyond"):
        FAULTS[name][0](params)
    with pytest.raises(InvalidModelFormatError) as caught:
        apply_params(module, params, path=tmp_path)
    assert caught.value.path == tmp_path
    for name in ("encoder.extra", f"{MLP}.bias", f"{MLP}.scales", "alignment_heads"):
        assert name in caught.value.detail


def test_alignment_heads_keep_their_dtype(loaded: tuple[Whisper, dict[str, mx.array]]) -> None:
    """Any integer will do, and any number of pairs."""
    module, params = loaded
    apply_params(module, params | {"alignment_heads": mx.array([[0, 0]], mx.int8)})
    assert module.alignment_heads.dtype == mx.int8


def test_other_floats_are_taken_as_they_are(loaded: tuple[Whisper, dict[str, mx.array]]) -> None:
    """Nothing is cast: what is given is what the network has."""
    module, params = loaded

    def cast(array: mx.array) -> mx.array:
        return array.astype(mx.bfloat16) if array.dtype == mx.float16 else array

    given = {name: cast(array) for name, array in params.items()}
    apply_params(module, given)
    found: dict[str, Any] = name_parameters(module)
    assert all(found[name] is array for name, array in given.items())


@pytest.mark.parametrize("rows", [1, 31, 32, 96])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bits", [4, 5, 8])
def test_unpacked_products_equal_packed_ones(bits: int, rows: int, *, bias: bool) -> None:
    """However long the input is, a layer gives what MLX's own gives, to the order of a sum."""
    theirs = nn.QuantizedLinear(128, 96, bias=bias, group_size=64, bits=bits)
    ours = Linear(128, 96, Packing(bits, 64, 32), bias=bias)
    if bias:
        theirs.update({"bias": mx.random.normal((96,))})
    ours.update(theirs.parameters())
    x = mx.random.normal((1, rows, 128))
    assert ours(x).shape == theirs(x).shape
    assert mx.allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-4).item()
    is_packed = rows < 32
    assert not is_packed or mx.array_equal(ours(x), theirs(x)).item()
