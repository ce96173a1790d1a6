"""`load_model`: a drop-in for `mlx_whisper.load_models.load_model`."""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  mlx_whisper imports it; fails at exit
import importlib
import importlib.util
import os
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Final

from fastwhisper.engine import threads
from fastwhisper.engine.backend import import_computing, import_mlx
from fastwhisper.engine.threads import Lane
from fastwhisper.errors import BackendMissingError
from fastwhisper.loading import stages
from fastwhisper.sources import find
from fastwhisper.values import LoadOptions, Quantization

if TYPE_CHECKING:
    from types import ModuleType

    import mlx.core as mx
    from mlx_whisper.whisper import Whisper

    from fastwhisper.checkpoint.plan import Checkpoint
    from fastwhisper.engine.jobs import Job

__all__ = ["load_model"]


def load_model(path_or_hf_repo: str | os.PathLike[str], dtype: mx.Dtype | None = None) -> Whisper:
    """Load a model like `mlx_whisper.load_models.load_model`, from any thread. Blocks.

    It needs the extra `mlx-whisper`. Every parameter keeps the dtype of the file. No event loop is
    started, so it may be called inside a running one, which is blocked meanwhile.

    Args:
        path_or_hf_repo: A directory, a repository as `org/name`, or a table name.
        dtype: Type of the positional embedding and the mask; None is float32.

    Returns:
        A network of mlx_whisper's class. All its arrays are evaluated, so any thread may use it.

    Raises:
        ModelNotFoundError: There is no such directory or repository.
        HubUnavailableError: The model is not on disk, and the Hub can't be reached.
        InvalidModelFormatError: A file of the model is broken.
        BackendMissingError: mlx-whisper is not installed, or MLX has no backend on this machine.
        NotEnoughMemoryError: The weights exceed the limit of the container.
    """
    # Checked before anything is downloaded. The import itself takes seconds.
    if importlib.util.find_spec("mlx_whisper") is None:
        raise BackendMissingError(f"mlx_whisper is not installed: {_ADVICE}")
    model = path_or_hf_repo if isinstance(path_or_hf_repo, str) else os.fspath(path_or_hf_repo)

    def locate() -> Checkpoint:
        find.check_form(model, Quantization.FLOAT16)
        return stages.inspect(find.locate(model, LoadOptions.DEFAULT, check=threads.check).path)

    checkpoint = threads.run_blocking(locate, Lane.FILES)
    threads.run_blocking(partial(import_computing, "fastwhisper.loading.compute"), Lane.READ)
    from fastwhisper.loading.compute import Compute  # noqa: PLC0415  imports MLX

    compute = Compute(checkpoint, dtype=None, device="cpu")
    threads.run_blocking(compute.check_memory, Lane.READ)

    jobs: list[Job[dict[str, mx.array]]] = [
        threads.submit(partial(compute.read, share), Lane.READ)
        for share in checkpoint.split(threads.READERS)
    ]
    confirm = threads.submit(partial(stages.confirm, checkpoint), Lane.FILES)
    network = threads.submit(_import_network, Lane.FILES)
    params: dict[str, mx.array] = {}
    built: list[Whisper] = []
    try:
        build = partial(_build, threads.wait_for(network), checkpoint, dtype)
        built.append(threads.run_blocking(build, Lane.COMPUTE))
        threads.wait_for(confirm)
        for job in jobs:
            share: dict[str, mx.array] = threads.wait_for(job)
            params |= share
            del share  # so that a failure of the next one frees these arrays
        # Not a partial: a frame of a failure would keep the network alive.
        threads.run_blocking(lambda: compute.apply(built[0], params), Lane.COMPUTE)
    except BaseException:
        threads.stop(confirm)
        threads.stop(network)
        for job in jobs:
            threads.stop(job)
        params.clear()
        built.clear()
        raise
    if not checkpoint.is_safetensors:
        threads.submit(compute.keep_converted, Lane.READ)
    return built[0]


def _import_network() -> ModuleType:
    """Import mlx_whisper's network, and with it all of mlx_whisper."""
    import_mlx()
    try:
        return importlib.import_module("mlx_whisper.whisper")
    except ImportError as error:
        raise BackendMissingError(f"mlx_whisper can't be imported ({error}): {_ADVICE}") from error


def _build(network: ModuleType, checkpoint: Checkpoint, dtype: mx.Dtype | None) -> Whisper:
    """Build mlx_whisper's network of a checkpoint, with placeholders for the weights.

    Source:
        `load_model` of mlx_whisper 0.4.3.
    """
    mx = import_mlx()
    precision = checkpoint.precision

    def packing(name: str, _: object) -> dict[str, object] | bool:
        return asdict(precision[name]) if name in precision else False

    dimensions = network.ModelDimensions(**asdict(checkpoint.dimensions))
    module = network.Whisper(dimensions, dtype or mx.float32)
    if precision:
        network.nn.quantize(module, class_predicate=packing)
    if checkpoint.alignment_heads:
        heads = [list(pair) for pair in checkpoint.alignment_heads]
        module.alignment_heads = mx.array(heads, dtype=mx.int64)
    # Each placeholder split this thread's random key. Evaluating it drops the chain of splits.
    mx.eval(mx.random.state, module.alignment_heads)
    return module


_ADVICE: Final = (
    "load_model() returns a model of mlx_whisper; pip install 'fastwhisper[mlx-whisper]', or use "
    "open() or load(), which do not need it"
)
