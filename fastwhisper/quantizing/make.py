"""Quantize a model: make a directory that `open` reads on its fast path.

Nothing here imports MLX or NumPy: this module runs on an event loop. What computes is in
quantizer.py, which is imported inside the engine's compute thread.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastwhisper.engine import threads
from fastwhisper.engine.threads import Lane
from fastwhisper.errors import InvalidModelFormatError
from fastwhisper.loading.load import load
from fastwhisper.quantizing.recipe import INT4_SIZE_RATIO
from fastwhisper.values import Quantization

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from fastwhisper.quantizing.quantizer import Quantizer
    from fastwhisper.values import Progress, QuantizationName, WhisperModel
    from fastwhisper.whisper.network import Whisper

__all__ = ["quantize"]


async def quantize(
    model: WhisperModel | str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    quant: Quantization | QuantizationName = Quantization.INT4,
    share: float | None = None,
    on_progress: Callable[[Progress], object] | None = None,
) -> Path:
    """Quantize a float16 model into a new directory. Always a cancellation point.

    int4 is calibrated on speech that comes with the package, which takes minutes. int8 rounds each
    weight to the nearest value. When this fails or is cancelled, no directory is left.

    Args:
        model: A name of the repository table, a directory, or a repository as `org/name`.
        out: The directory to make.
        quant: The precision: "int8", or "int4", which uses as many bits as `share` allows.
        share: Largest size of an int4 model, as a fraction of float16's bytes; None is 0.35.
        on_progress: Called on the event loop's thread; what it raises ends the work.

    Returns:
        The directory: `config.json` and `weights.safetensors`, in MLX's names and format.

    Raises:
        ValueError: `quant` is float16, or no recipe makes a model as small as `share`.
        FileExistsError: `out` exists.
        ModelNotFoundError: The model is unknown.
        QuantizedModelNotAvailableError: The model is not available at float16.
        HubUnavailableError: The model is not on this machine, and the Hub can't be reached.
        InvalidModelFormatError: A file of the model is broken, or its weights are not finite.
        BackendMissingError: MLX has no backend for this machine.
    """
    wanted = Quantization(quant)
    if wanted is Quantization.FLOAT16:
        raise ValueError("float16 is not a quantization; choose int8 or int4")
    directory = Path(out)
    await threads.run(partial(_check_free, directory), Lane.READ)
    result = await load(
        model, quant="float16", fallback=None, dtype="float32", warm_up=False,
        on_progress=on_progress,
    )  # fmt: skip
    size_ratio = INT4_SIZE_RATIO if share is None else share
    build = partial(_build_quantizer, result.model, wanted, size_ratio)
    quantizer = await threads.run(build, Lane.COMPUTE)
    steps = quantizer.steps()
    try:
        while (done := await threads.run(partial(next, steps, None), Lane.COMPUTE)) is not None:
            if on_progress is not None:
                on_progress(done)
    except FloatingPointError as error:
        raise InvalidModelFormatError(
            result.path,
            None,
            f"NaN or infinite values: {error}",
            "download the model again, or quantize it to int8, which is not calibrated",
        ) from error
    finally:
        steps.close()
    await threads.run(partial(quantizer.write, directory), Lane.READ)
    return directory


def _check_free(directory: Path) -> None:
    """Raise FileExistsError if the directory exists."""
    if directory.exists():
        raise FileExistsError(f"{directory} exists; name a directory that does not exist yet")


def _build_quantizer(model: Whisper, quant: Quantization, size_ratio: float) -> Quantizer:
    """Build the quantizer of a network. Runs in the engine's compute thread."""
    from fastwhisper.quantizing.quantizer import Quantizer  # noqa: PLC0415  imports MLX

    return Quantizer(model, quant, size_ratio)
