"""load() and load_model(): results, task groups, progress, dtypes, equality with mlx_whisper."""

from __future__ import annotations

import gc
import sys
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import mlx.core as mx
import mlx_whisper.load_models
import pytest

import fastwhisper
from fastwhisper import (
    Closed,
    InvalidModelFormatError,
    Loading,
    LoadingFailedError,
    LoadOptions,
    ModelNotFoundError,
    Progress,
    Quantization,
    Ready,
    TokenizationFailedError,
)
from fastwhisper.checkpoint import inspection as checkpoint_module
from fastwhisper.engine import blas
from fastwhisper.loading import compute, stages
from fastwhisper.sources import converted
from fastwhisper.transcribing.window_decoder import WindowDecoder
from fastwhisper.whisper.layers import UNPACK_ROWS
from fastwhisper.whisper.network import TextDecoder
from tests.helpers.gates import STAGES, Gate
from tests.helpers.interpreter import run_python
from tests.helpers.modules import assert_same_module, name_parameters
from tests.helpers.tiny_models import SMALLEST, SPEAKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fastwhisper.checkpoint.plan import Checkpoint
    from tests.helpers.tiny_models import LayoutName

pytestmark = pytest.mark.anyio


@pytest.fixture
def model(tiny_model_dir: Callable[..., Path]) -> Path:
    """Return a one-layer model that can transcribe."""
    return tiny_model_dir(dimensions=SPEAKING)


async def test_gives_a_ready_result(model: Path) -> None:
    """Without `background` the result can be used at once."""
    result = await fastwhisper.load(model)
    assert isinstance(result.ready.state, Ready)
    assert result.model.dims.n_vocab == SPEAKING.n_vocab
    assert result.model_name == str(model)


async def test_background_needs_a_task_group(model: Path) -> None:
    """A background load has to live somewhere."""
    with pytest.raises(ValueError, match="task_group"):
        await fastwhisper.load(model, background=True)


async def test_background_goes_on_in_the_task_group(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result comes when the files are inspected, the model when it is ready."""
    gate = Gate(monkeypatch, STAGES["read"])
    async with anyio.create_task_group() as group:
        result = await fastwhisper.load(model, options=LoadOptions.FAST, task_group=group)
        assert result.ready.state == Loading()
        assert result.actual == Quantization.FLOAT16
        gate.open.set()
        await result.ready.wait(None)
    assert result.model is not None


async def test_cancelling_the_task_group_closes_the_result(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A background load that is cancelled is closed, not failed."""
    gate = Gate(monkeypatch, STAGES["read"])
    async with anyio.create_task_group() as group:
        result = await fastwhisper.load(model, background=True, task_group=group)
        await gate.wait_until_reached()
        group.cancel_scope.cancel()
    assert result.ready.state == Closed()


async def test_a_background_failure_leaves_the_task_group_alone(
    tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What breaks after the inspection goes to those who wait, not to the host's tasks."""
    directory = tiny_model_dir(dimensions=SPEAKING)
    gate = Gate(monkeypatch, STAGES["read"])
    async with anyio.create_task_group() as group:
        result = await fastwhisper.load(directory, background=True, task_group=group)
        await gate.wait_until_reached()
        (directory / "weights.safetensors").write_bytes(b"")
        gate.open.set()
        with pytest.raises(LoadingFailedError) as caught:
            await result.ready.wait(None)
        assert isinstance(caught.value.__cause__, InvalidModelFormatError)
        assert not group.cancel_scope.cancel_called


async def test_reports_progress_in_bytes_up_to_the_total(model: Path) -> None:
    """Progress only grows and ends at the total; the callback runs on the loop's thread."""
    reports: list[Progress] = []
    result = await fastwhisper.load(model, on_progress=reports.append)
    read = [report for report in reports if report.stage == "read"]
    assert [report.done_bytes for report in read] == sorted(report.done_bytes for report in read)
    assert read[-1].done_bytes == read[-1].total_bytes
    assert isinstance(result.ready.state, Ready)
    assert read[-1].total_bytes == result.ready.state.stats.bytes_read


async def test_reports_every_stage_to_its_end(tiny_model_dir: Callable[..., Path]) -> None:
    """Resolve, read, warm-up and convert are reported, each to its total."""
    reports: list[Progress] = []
    directory = tiny_model_dir(dimensions=SPEAKING, layout="weights.npz")
    is_converted = anyio.Event()

    def note(progress: Progress) -> None:
        reports.append(progress)
        if progress.stage == "convert" and progress.done_bytes == progress.total_bytes:
            is_converted.set()

    async with fastwhisper.open(directory, warm_up=True, on_progress=note):
        await is_converted.wait()
    ends = {report.stage: report for report in reports}
    assert ends.keys() == {"resolve", "read", "warm-up", "convert"}
    assert all(report.done_bytes == report.total_bytes for report in ends.values())


async def test_the_second_open_reads_the_converted_copy(
    tiny_model_dir: Callable[..., Path], cache_directory: Path
) -> None:
    """What is slow to read is converted after ready, and the next load takes the copy."""
    directory = tiny_model_dir(dimensions=SPEAKING, layout="weights.npz", precision="int8")
    is_converted = anyio.Event()

    def note(progress: Progress) -> None:
        if progress.stage == "convert" and progress.done_bytes == progress.total_bytes:
            is_converted.set()

    async with fastwhisper.open(directory, on_progress=note) as session:
        first = name_parameters(session.result.model)
        await is_converted.wait()
        while not converted.entries():
            await anyio.lowlevel.checkpoint()
    assert stages.inspect(directory).path.parent == cache_directory
    result = await fastwhisper.load(directory)
    second = name_parameters(result.model)
    assert result.path == directory
    assert first.keys() == second.keys()
    assert all(bool(mx.array_equal(first[name], second[name])) for name in first)


async def test_what_the_callback_raises_fails_the_load(model: Path) -> None:
    """A callback's exception is raised bare by the load."""
    error = ZeroDivisionError("from the callback")

    def fail(_: Progress) -> None:
        raise error

    with pytest.raises(ZeroDivisionError) as caught:
        await fastwhisper.load(model, on_progress=fail)
    assert caught.value is error


@pytest.mark.parametrize("error", [ZeroDivisionError("from the callback"), SystemExit()])
async def test_what_the_callback_raises_after_ready_is_logged_once(
    tiny_model_dir: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    """The model is in use by then, so the session goes on and nothing more is reported."""
    monkeypatch.setattr("fastwhisper.checkpoint.read.GROUP_BYTES", 1 << 10)  # many groups
    directory = tiny_model_dir(dimensions=SPEAKING, layout="weights.npz")
    called = anyio.Event()
    calls: list[Progress] = []

    def fail(progress: Progress) -> None:
        if progress.stage == "convert":
            calls.append(progress)
            called.set()
            raise error

    async with fastwhisper.open(directory, on_progress=fail) as session:
        await called.wait()
        while not converted.entries():
            await anyio.lowlevel.checkpoint()
        assert session.is_ready
    assert len(calls) == 1
    assert caplog.text.count("on_progress failed") == 1


async def test_what_the_callback_raises_about_locating_is_raised_by_load(model: Path) -> None:
    """Also in the background, where nobody has the result yet."""

    def fail(progress: Progress) -> None:
        if progress.stage == "resolve":
            raise ZeroDivisionError

    async with anyio.create_task_group() as group:
        with pytest.raises(ZeroDivisionError):
            await fastwhisper.load(model, background=True, task_group=group, on_progress=fail)


async def test_records_the_stages_it_went_through(model: Path) -> None:
    """The timeline names each stage, in order of its begin."""
    result = await fastwhisper.load(model, warm_up=True)
    assert isinstance(result.ready.state, Ready)
    spans = result.ready.state.stats.spans
    assert {span.name for span in spans} == {
        "locate", "inspect", "read", "confirm", "build", "tokenizer", "warm-up", "apply",
    }  # fmt: skip
    assert [span.start_s for span in spans] == sorted(span.start_s for span in spans)
    assert all(span.start_s <= span.end_s for span in spans)


async def test_the_warm_up_decodes_a_window(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it leaves out, the first window waits for: 0.2 s on an H100."""
    calls: list[str] = []
    for owner, name in ((WindowDecoder, "encode"), (TextDecoder, "step")):
        real = getattr(owner, name)

        def note(*args: Any, real: Any = real) -> Any:
            calls.append(real.__name__)
            return real(*args)

        monkeypatch.setattr(owner, name, note)
    await fastwhisper.load(model, warm_up=True)
    assert calls == ["encode", "step", "step", "step"]


@pytest.mark.skipif(blas.has_cuda_backend(), reason="CUDA's libraries come after NumPy's")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_ready_comes_before_numpy(model: Path, backend: str) -> None:
    """It is imported afterwards; safetensors, which imports it too, is asked once for a file."""
    program = (
        "import sys, anyio, fastwhisper\n"
        "async def main():\n"
        "    async with fastwhisper.open(sys.argv[1], warm_up=False):\n"
        "        print(sorted({'numpy', 'safetensors'} & set(sys.modules)))\n"
        "anyio.run(main, backend=sys.argv[2])\n"
    )
    lines = [run_python("-c", program, model, backend).stdout for _ in range(2)]
    assert lines == ["['numpy', 'safetensors']\n", "[]\n"]


def test_safetensors_is_asked_again_about_another_header(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it agreed to is remembered by the header and the length, and not if the cache is off."""
    asked: list[Path] = []
    real = checkpoint_module.confirm_checkpoint

    def confirm(checkpoint: Checkpoint) -> None:
        asked.append(checkpoint.path)
        real(checkpoint)

    monkeypatch.setattr("fastwhisper.loading.stages.confirm_checkpoint", confirm)
    for _ in range(2):
        stages.confirm(stages.inspect(model))
        assert len(asked) == 1
    weights = model / "weights.safetensors"
    content = weights.read_bytes()
    length = int.from_bytes(content[:8], "little") + 8
    longer = content[8:length] + b" " * 8
    weights.write_bytes(len(longer).to_bytes(8, "little") + longer + content[length:])
    stages.confirm(stages.inspect(model))
    assert len(asked) == 2
    monkeypatch.setenv(converted.VARIABLE, "off")
    stages.confirm(stages.inspect(model))
    assert len(asked) == 3


def test_a_converted_copy_is_confirmed_when_it_is_made(
    tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load that finds it asks nobody."""
    directory = tiny_model_dir(dimensions=SPEAKING, layout="weights.npz")
    compute.Compute(stages.inspect(directory), None, "cpu").keep_converted()
    copy = stages.inspect(directory)
    assert copy.path != directory
    monkeypatch.setattr("fastwhisper.loading.stages.confirm_checkpoint", None)
    stages.confirm(copy)


async def test_a_failure_to_prepare_text_is_no_failure_of_the_load(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, as the model is ready by then."""
    failed = threading.Event()

    def fail(_checkpoint: Checkpoint) -> None:
        failed.set()
        raise OSError("no vocabulary")

    monkeypatch.setattr(stages, "prepare_text", fail)
    async with fastwhisper.open(model, warm_up=False) as session:
        await anyio.to_thread.run_sync(failed.wait)
        await anyio.wait_all_tasks_blocked()
        assert session.is_ready
    assert "no vocabulary" in caplog.text


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("precision", ["float16", "int4"])
async def test_casts_floating_parameters_to_the_compute_dtype(
    tiny_model_dir: Callable[..., Path], precision: str, dtype: Any
) -> None:
    """Weights, scales and biases are of the dtype asked for; packed weights stay as they are."""
    directory = tiny_model_dir(dimensions=SPEAKING, precision=precision)
    result = await fastwhisper.load(directory, dtype=dtype)
    kinds = {
        array.dtype
        for name, array in name_parameters(result.model).items()
        if name != "alignment_heads"
    }
    packed = {mx.uint32} if precision == "int4" else set()
    assert kinds == {getattr(mx, dtype)} | packed


async def test_computes_in_float32_on_a_cpu(model: Path) -> None:
    """Without a dtype a CPU computes in float32, where it is many times faster."""
    if mx.default_device().type == mx.gpu:
        pytest.skip("float16 is a GPU's default")
    result = await fastwhisper.load(model)
    assert result.model.encoder.conv1.weight.dtype == mx.float32


async def test_quantized_layers_use_the_blas_of_a_cpu(tiny_model_dir: Callable[..., Path]) -> None:
    """open() and load() unpack weights for long inputs where that is faster."""
    result = await fastwhisper.load(tiny_model_dir(precision="int8", dimensions=SPEAKING))
    packing: Any = result.model.encoder.blocks[0].mlp1.packing
    assert packing.unpack_rows == UNPACK_ROWS[compute.find_device()]


async def test_a_vocabulary_the_tokenizer_does_not_fit_is_refused(
    tiny_model_dir: Callable[..., Path],
) -> None:
    """A network with fewer tokens than Whisper's tokenizer can't be transcribed with."""
    with pytest.raises(TokenizationFailedError, match="96 tokens"):
        await fastwhisper.load(tiny_model_dir())


LAYOUTS: list[LayoutName] = ["weights.safetensors", "weights.npz"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("precision", ["float16", "int8", "int4"])
@pytest.mark.parametrize("dtype", [None, mx.float16])
def test_load_model_equals_upstreams(
    tiny_model_dir: Callable[..., Path], layout: LayoutName, precision: str, dtype: mx.Dtype | None
) -> None:
    """The module is mlx_whisper's, array for array and dtype for dtype."""
    directory = tiny_model_dir(layout=layout, precision=precision)
    ours = fastwhisper.load_model(str(directory), dtype)
    theirs = mlx_whisper.load_models.load_model(str(directory), dtype or mx.float32)
    assert_same_module(ours, theirs)
    assert ours.dims == theirs.dims


@pytest.mark.parametrize(
    "layout",
    [
        "model.safetensors",
        "model.safetensors.index.json",
        "huggingface model.safetensors",
        "deflated weights.npz",
        "model.bin",
    ],
)
def test_load_model_reads_what_upstream_cannot(
    tiny_model_dir: Callable[..., Path], layout: LayoutName
) -> None:
    """Every layout gives the module of the same weights in upstream's own layout."""
    twin = mlx_whisper.load_models.load_model(str(tiny_model_dir(dimensions=SMALLEST)))
    ours = fastwhisper.load_model(tiny_model_dir(dimensions=SMALLEST, layout=layout))
    if layout == "model.bin":  # keeps its alignment heads in the config
        twin.alignment_heads = mx.array([[0, 0]], dtype=mx.int64)
    assert_same_module(ours, twin)


async def test_load_model_works_inside_a_running_loop(model: Path) -> None:
    """It blocks, and starts no event loop of its own."""
    assert fastwhisper.load_model(model).dims.n_mels == 80


def test_load_model_leaves_upstreams_holder_alone(model: Path) -> None:
    """mlx_whisper's own one-model cache is never set."""
    holder: Any = sys.modules["mlx_whisper.transcribe"].ModelHolder
    before = holder.model
    fastwhisper.load_model(model)
    assert holder.model is before


def test_load_model_raises_the_typed_error(tmp_path: Path) -> None:
    """A directory without a model and a name without a directory are told apart."""
    with pytest.raises(InvalidModelFormatError, match="weights"):
        fastwhisper.load_model(tmp_path)
    with pytest.raises(ModelNotFoundError, match="tiny"):
        fastwhisper.load_model("no-such-model")


def test_load_model_without_mlx_whisper_names_the_extra(tmp_path: Path) -> None:
    """The extra is named before the model is looked for."""
    program = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, package=None: (\n"
        "    None if name == 'mlx_whisper' else find(name, package))\n"
        "import fastwhisper\n"
        "try: fastwhisper.load_model(sys.argv[1])\n"
        "except fastwhisper.BackendMissingError as error: print(error)\n"
    )
    assert "fastwhisper[mlx-whisper]" in run_python("-c", program, tmp_path).stdout


def test_load_model_leaves_no_chain_of_random_keys(model: Path) -> None:
    """Placeholders of mlx_whisper's network draw random numbers that nobody evaluates."""
    seen: list[int] = []
    for _ in range(3):
        fastwhisper.load_model(model)
        gc.collect()
        seen.append(mx.get_active_memory())
    assert seen[1] == seen[2]
