"""Checkpoints of transformers, and MLX names under their config."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from fastwhisper.checkpoint import read as shards
from fastwhisper.checkpoint.config import LIMITS
from fastwhisper.checkpoint.huggingface import KEYS, parse_huggingface_dimensions
from fastwhisper.checkpoint.inspection import confirm_checkpoint, inspect_checkpoint
from fastwhisper.checkpoint.read import read_shards
from fastwhisper.errors import InvalidModelFormatError
from fastwhisper.whisper.params import apply_params, build_module
from tests.helpers.tiny_models import (
    SMALLEST,
    huggingface_arrays,
    huggingface_config,
    make_arrays,
    safetensors_bytes,
    write_arrays,
    write_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastwhisper.checkpoint.files import RegularFile
    from fastwhisper.checkpoint.plan import TensorPlan
    from tests.helpers.tiny_models import Arrays, LayoutName

WEIGHTS: Final = "model.safetensors"
HF: Final[LayoutName] = "huggingface model.safetensors"
DISTILLED: Final = replace(SMALLEST, n_audio_layer=4, n_text_layer=2)
PROJECTION: Final = "proj_out.weight"
EMBEDDING: Final = "model.decoder.embed_tokens.weight"


def module_of(directory: Path) -> dict[str, mx.array]:
    """Load through the core and give all parameters by name."""
    checkpoint = inspect_checkpoint(directory)
    module = build_module(checkpoint)
    apply_params(module, {k: v for group in read_shards(checkpoint) for k, v in group.items()})
    return dict(tree_flatten(module.parameters()))


def same(one: dict[str, mx.array], other: dict[str, mx.array]) -> None:
    """Check for equal names, dtypes and values."""
    assert one.keys() == other.keys()
    for name, array in other.items():
        assert one[name].dtype == array.dtype, name
        assert mx.array_equal(one[name], array).item(), name


def write(directory: Path, arrays: Arrays, **config: object) -> Path:
    """Write arrays as they are under a Hugging Face config."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(huggingface_config(**config)))  # type: ignore[arg-type] # keys of the config
    (directory / WEIGHTS).write_bytes(safetensors_bytes(arrays))
    return directory


def smallest(**options: Any) -> Arrays:
    """Return the smallest model under the names of transformers."""
    return huggingface_arrays(make_arrays(), SMALLEST, **options)


@pytest.mark.parametrize("dimensions", [SMALLEST, DISTILLED], ids=["tiny", "distilled"])
@pytest.mark.parametrize("layout", [HF, "huggingface model.safetensors.index.json"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_module_is_that_of_the_mlx_twin(
    layout: LayoutName, dtype: str, dimensions: Any, tmp_path: Path
) -> None:
    """Every parameter, whatever the layout, dtype and number of layers."""
    ours = write_model(tmp_path / "hf", layout=layout, dtype=dtype, dimensions=dimensions)
    twin = write_model(tmp_path / "mlx", dtype=dtype, dimensions=dimensions)
    (ours / "generation_config.json").unlink()
    same(module_of(ours), module_of(twin))
    assert inspect_checkpoint(ours).layout == "huggingface"


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    """All tensors stay bfloat16, the convolutions too, which are transposed."""
    wide = make_arrays(dtype="float32")
    halves = {name: mx.array(array).astype(mx.bfloat16) for name, array in wide.items()}
    raw = {name: np.array(array.view(mx.uint16)) for name, array in halves.items()}
    arrays = huggingface_arrays(raw, SMALLEST)
    directory = write(tmp_path, arrays)
    data = safetensors_bytes(arrays, codes=dict.fromkeys(arrays, "BF16"))
    (directory / WEIGHTS).write_bytes(data)
    found = module_of(directory)
    del found["alignment_heads"]
    same(found, halves)


@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("tied", [True, False])
def test_names_with_and_without_prefix_and_output_layer(
    prefix: str,
    tied: bool,  # noqa: FBT001 - a parameter
    tmp_path: Path,
) -> None:
    """Names may lack the prefix, and the output layer may be stored a second time."""
    arrays = smallest(prefix=prefix)
    if tied:
        arrays[PROJECTION] = arrays[f"{prefix}decoder.embed_tokens.weight"]
    same(module_of(write(tmp_path / "hf", arrays)), module_of(write_model(tmp_path / "mlx")))


def test_output_layer_alone_is_the_token_embedding(tmp_path: Path) -> None:
    """Output layer and token embedding are one array; a file may hold it under either name."""
    arrays = smallest()
    arrays[PROJECTION] = arrays.pop(EMBEDDING)
    same(module_of(write(tmp_path / "hf", arrays)), module_of(write_model(tmp_path / "mlx")))


def test_positions_of_the_encoder_may_be_absent(tmp_path: Path) -> None:
    """The encoder's positions may be absent, as MLX computes them."""
    arrays = smallest()
    del arrays["model.encoder.embed_positions.weight"]
    found = inspect_checkpoint(write(tmp_path, arrays))
    assert found.left_out == ()
    assert found.dimensions == SMALLEST


def test_what_is_left_out_is_confirmed_and_not_counted(tmp_path: Path) -> None:
    """A tensor that is left out is confirmed by safetensors' own reader, and is not read."""
    found = inspect_checkpoint(write_model(tmp_path, layout=HF))
    assert [plan.stored for plan in found.left_out] == ["model.encoder.embed_positions.weight"]
    assert found.total_bytes == sum(array.nbytes for array in make_arrays().values())
    confirm_checkpoint(found)
    with pytest.raises(InvalidModelFormatError, match="differently"):
        confirm_checkpoint(replace(found, left_out=()))


def test_only_the_convolutions_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the convolutions are copied; MLX reads all other tensors from the file."""
    copied: list[str] = []
    load = shards._load

    def spy(opened: RegularFile, plan: TensorPlan) -> mx.array:
        copied.append(plan.name)
        return load(opened, plan)

    monkeypatch.setattr(shards, "_load", spy)
    list(read_shards(inspect_checkpoint(write_model(tmp_path, layout=HF))))
    assert sorted(copied) == ["encoder.conv1.weight", "encoder.conv2.weight"]


@pytest.mark.parametrize("precision", ["float16", "int8", "int4"])
@pytest.mark.parametrize("layout", [WEIGHTS, "model.safetensors.index.json"])
def test_mlx_names_under_a_huggingface_config(
    layout: LayoutName, precision: str, tmp_path: Path
) -> None:
    """The `-asr-` repositories: the fast layout, quantized as the config says twice."""
    bits = {"int8": 8, "int4": 4}.get(precision)
    said = {"group_size": 64, "bits": bits}
    more: dict[str, Any] = {"quantization": said, "quantization_config": said} if bits else {}
    arrays = make_arrays(precision=precision)
    ours = write_arrays(tmp_path / "asr", arrays, huggingface_config(**more), layout=layout)
    found = inspect_checkpoint(ours)
    assert (found.layout, found.actual) == ("safetensors", precision)
    same(module_of(ours), module_of(write_model(tmp_path / "mlx", precision=precision)))


@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
def test_quantization_that_contradicts_the_shapes_is_refused(key: str, tmp_path: Path) -> None:
    """A config that contradicts the shapes is refused, under either name of the field."""
    config = huggingface_config(**{key: {"bits": 8, "group_size": 64}})  # type: ignore[arg-type] # keys of the config
    directory = write_arrays(tmp_path, make_arrays(precision="int4"), config, layout=WEIGHTS)
    with pytest.raises(InvalidModelFormatError) as caught:
        inspect_checkpoint(directory)
    assert caught.value.tensor == f"{key}.bits"


def test_quantized_modules_under_the_names_of_transformers(tmp_path: Path) -> None:
    """Scales and biases are renamed with their weights."""
    ours = write_model(tmp_path / "hf", layout=HF, precision="int4")
    same(module_of(ours), module_of(write_model(tmp_path / "mlx", precision="int4")))


@pytest.mark.parametrize(
    ("listed", "wanted"),
    [
        ({"alignment_heads": [[1, 0], [0, 0]]}, ((1, 0), (0, 0))),
        ({"alignment_heads": [[25, 0]]}, None),
        ({"alignment_heads": None}, None),
        ({}, None),
        (None, None),
    ],
    ids=["given", "of a teacher", "null", "not given", "no file"],
)
def test_alignment_heads_come_from_the_generation_config(
    listed: dict[str, object] | None, wanted: object, tmp_path: Path
) -> None:
    """Alignment heads of layers that a distilled model lacks give the default."""
    directory = write_model(tmp_path, layout=HF, dimensions=DISTILLED)
    path = directory / "generation_config.json"
    path.unlink() if listed is None else path.write_text(json.dumps(listed))
    assert inspect_checkpoint(directory).alignment_heads == wanted


@pytest.mark.parametrize("text", ["", "[]", "{", '{"alignment_heads": [[0, 1]]}'])
def test_broken_generation_config_is_refused(text: str, tmp_path: Path) -> None:
    """A broken generation config is refused, and the error says why."""
    directory = write_model(tmp_path, layout=HF)
    (directory / "generation_config.json").write_text(text)
    with pytest.raises(InvalidModelFormatError) as caught:
        inspect_checkpoint(directory)
    assert caught.value.path.name == "generation_config.json"


def put(name: str, array: Any) -> Callable[[Arrays], object]:
    """Make a change: one array is another, or new."""
    return lambda arrays: arrays.__setitem__(name, array)


HALF: Final = np.float16
FAULTS: dict[str, tuple[Callable[[Arrays], object], str]] = {
    "output layer of another size": (put(PROJECTION, np.zeros((95, 64), HALF)), PROJECTION),
    "output layer of integers": (put(PROJECTION, np.zeros((96, 64), np.int8)), PROJECTION),
    "other positions": (
        put("model.encoder.embed_positions.weight", np.zeros((15, 64), HALF)),
        "encoder.embed_positions.weight",
    ),
    "convolution in MLX's order": (
        put("model.encoder.conv1.weight", np.zeros((64, 3, 80), HALF)),
        "encoder.conv1.weight",
    ),
    "flat convolution": (
        put("model.encoder.conv1.weight", np.zeros(64 * 3 * 80, HALF)),
        "encoder.conv1.weight",
    ),
    "with and without prefix": (
        put(EMBEDDING.removeprefix("model."), np.zeros((96, 64), HALF)),
        "",
    ),
    "unknown": (put("model.decoder.x.weight", np.zeros(3, HALF)), "decoder.x.weight"),
    "name without a dot": (put("x", np.zeros(3, HALF)), "x"),
    "prefix twice": (put("model.model.decoder.layer_norm.bias", np.zeros(64, HALF)), "model.dec"),
    "bias of a key": (
        put("model.decoder.layers.0.self_attn.k_proj.bias", np.zeros(64, HALF)),
        "attn.key.bias",
    ),
    "cross attention in the encoder": (
        put("model.encoder.layers.0.encoder_attn.k_proj.weight", np.zeros((64, 64), HALF)),
        "encoder.blocks.0.cross_attn.key.weight",
    ),
    "absurd layer": (
        put("model.decoder.layers.3000000000.fc1.bias", np.zeros(1, HALF)),
        "layers.3",
    ),
    "missing": (lambda arrays: arrays.pop("model.decoder.layer_norm.bias"), "decoder.ln.bias"),
    "classifier": (put("classifier.weight", np.zeros((2, 64), HALF)), "classifier.weight"),
}


@pytest.mark.parametrize(("fault", "named"), FAULTS.values(), ids=list(FAULTS))
def test_wrong_tensor_is_refused_by_name(
    fault: Callable[[Arrays], object], named: str, tmp_path: Path
) -> None:
    """An unknown tensor is refused; only those known to be needless are ignored."""
    arrays = smallest()
    fault(arrays)
    with pytest.raises(InvalidModelFormatError) as caught:
        inspect_checkpoint(write(tmp_path, arrays))
    assert named in str(caught.value)


def test_output_layer_of_its_own_is_refused(tmp_path: Path) -> None:
    """An output layer of its own is refused, because MLX's network has none."""
    arrays = smallest()
    arrays[PROJECTION] = np.zeros((96, 64), HALF)
    directory = write(tmp_path, arrays, tie_word_embeddings=False)
    with pytest.raises(InvalidModelFormatError, match="not tied"):
        inspect_checkpoint(directory)


@pytest.mark.parametrize("key", sorted(set(KEYS.values())))
@pytest.mark.parametrize("value", [None, "64", 0, -1, 1 << 40, 64.0, True])
def test_wrong_dimension_is_refused_by_its_name(key: str, value: object, tmp_path: Path) -> None:
    """The error names the dimension as the config does."""
    with pytest.raises(InvalidModelFormatError) as caught:
        parse_huggingface_dimensions(huggingface_config() | {key: value}, tmp_path)
    assert caught.value.tensor == key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("encoder_attention_heads", 2),
        ("decoder_attention_heads", 4),
        ("activation_function", "relu"),
        ("scale_embedding", True),
        ("scale_embedding", 0),
        ("model_type", "moonshine"),
        ("model_type", ["whisper"]),
    ],
)
def test_other_network_is_refused(key: str, value: object, tmp_path: Path) -> None:
    """A network that differs in what shapes don't show is refused by its config."""
    with pytest.raises(InvalidModelFormatError) as caught:
        parse_huggingface_dimensions(huggingface_config() | {key: value}, tmp_path)
    assert caught.value.tensor == key


values = st.integers() | st.none() | st.booleans() | st.floats() | st.text() | st.lists(st.none())


@given(st.dictionaries(st.sampled_from([*KEYS.values(), "model_type", "x"]), values, max_size=2))
def test_any_config_gives_dimensions_or_a_typed_error(config: dict[str, object]) -> None:
    """Fuzzed configs are within the limits or refused."""
    try:
        found = parse_huggingface_dimensions(huggingface_config() | config, Path("config.json"))
    except InvalidModelFormatError:
        return
    for name, limit in LIMITS.items():
        assert 1 <= getattr(found, name) <= limit
