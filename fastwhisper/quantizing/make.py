"""Quantize a model: an offline tool that makes a directory which `open` reads on its fast path."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastwhisper.checkpoint.expected import expected_shapes
from fastwhisper.checkpoint.inspection import CONFIG
from fastwhisper.engine import threads
from fastwhisper.engine.threads import Lane
from fastwhisper.errors import InvalidModelFormatError
from fastwhisper.loading.load import load
from fastwhisper.quantizing.recipe import INT4_SHARE, choose_precision, describe_precision
from fastwhisper.values import Progress, Quantization
from fastwhisper.whisper.options import DecodeSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    import numpy as np

    from fastwhisper.quantizing.calibrate import Heard, Rounded
    from fastwhisper.values import QuantizationName, WhisperModel
    from fastwhisper.whisper.network import Whisper

    Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]

__all__ = ["quantize"]

WEIGHTS: Final = "weights.safetensors"

_SPEECH: Final = "calibration.{language}.ogg"
_LANGUAGES: Final = ("en", "de", "es", "fr", "it")
_WINDOW_SAMPLES: Final = 480_000
_LOOPING: Final = 2.4
"""Compression ratio above which a text repeats itself, and is nothing to calibrate on. Source:
Radford et al. 2022, section 4.5."""


async def quantize(
    model: WhisperModel | str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    quant: Quantization | QuantizationName = Quantization.INT4,
    share: float | None = None,
    on_progress: Callable[[Progress], object] | None = None,
) -> Path:
    """Quantize a float16 model into a new directory. Always a checkpoint.

    int4 is calibrated on speech that comes with the package, and takes minutes; int8 is plain
    rounding. The directory is complete or not there, also when this is cancelled.

    Args:
        model: A name of the repository table, a directory, or a repository as `org/name`.
        out: The directory to make.
        quant: The precision; "int4" is whatever gives at most `share` of the bytes.
        share: The most bytes, as a share of float16's; None is 0.35. For int4 only.
        on_progress: Called on the event loop's thread; what it raises ends the work.

    Returns:
        The directory: `config.json` and `weights.safetensors`, in MLX's names and format.

    Raises:
        ValueError: `quant` is float16, or no recipe has so small a share.
        FileExistsError: `out` exists.
        ModelNotFoundError: No model goes by this name.
        QuantizedModelNotAvailableError: The model is not to be had at float16.
        HubUnavailableError: It is not on disk, and the Hub can't be reached.
        InvalidModelFormatError: A file of it is broken.
        BackendMissingError: MLX has no backend here.
    """
    wanted = Quantization(quant)
    if wanted is Quantization.FLOAT16:
        raise ValueError("float16 is no quantization: choose int8 or int4")
    place = Path(out)
    await threads.run(partial(_must_be_free, place), Lane.READ)
    result = await load(
        model, quant="float16", fallback=None, dtype="float32", warm_up=False,
        on_progress=on_progress,
    )  # fmt: skip
    work = Work(result.model, wanted, INT4_SHARE if share is None else share)
    steps = work.steps()
    try:
        while (done := await threads.run(partial(next, steps, None), Lane.COMPUTE)) is not None:
            if on_progress is not None:
                on_progress(done)
    except FloatingPointError as error:
        raise InvalidModelFormatError(
            result.path,
            None,
            f"can't be calibrated ({error}): it holds NaN or infinite values; "
            "download it again, or quantize it to int8, which is not calibrated",
        ) from error
    finally:
        steps.close()
    await threads.run(partial(_write, place, work.config(), work.arrays), Lane.READ)
    return place


class Work:
    """One quantization. Its steps run in the compute thread, which owns every array."""

    def __init__(self, model: Whisper, quant: Quantization, share: float) -> None:
        self.arrays: Arrays = {}
        self.model = model
        self._quant = quant
        self._dimensions = model.dims
        self.precision = choose_precision(self._dimensions, quant, share=share)

    def config(self) -> dict[str, object]:
        """Describe the network as an MLX checkpoint's config does."""
        said = describe_precision(self.precision)
        return {"model_type": "whisper", **asdict(self._dimensions), "quantization": said}

    def steps(self) -> Generator[Progress]:
        """Quantize module by module into `arrays`."""
        import numpy as np  # noqa: PLC0415  off the event loop
        from mlx.utils import tree_flatten  # noqa: PLC0415  blas.py acts before MLX is imported

        packed = {f"{module}.weight" for module in self.precision}
        for name, array in tree_flatten(self.model.parameters()):
            if name not in packed:
                plain = np.array(array)
                floating = np.issubdtype(plain.dtype, np.floating)
                self.arrays[name] = plain.astype(np.float16) if floating else plain
        shapes = expected_shapes(self._dimensions)
        sizes = {name: 2 * shapes[name][0] * shapes[name][1] for name in packed}
        done_bytes, total_bytes = 0, sum(sizes.values())
        yield Progress("convert", 0, total_bytes)
        for rounded in self.rounded():
            name = rounded.name
            self.arrays[f"{name}.weight"] = rounded.packed.weight
            self.arrays[f"{name}.scales"] = rounded.packed.scales
            self.arrays[f"{name}.biases"] = rounded.packed.biases
            if rounded.bias is not None:
                self.arrays[f"{name}.bias"] = rounded.bias.astype(np.float16)
            done_bytes += sizes[f"{name}.weight"]
            yield Progress("convert", done_bytes, total_bytes)

    def rounded(self) -> Iterator[Rounded]:
        from fastwhisper.quantizing import calibrate  # noqa: PLC0415  imports MLX

        if self._quant is Quantization.INT8:
            return calibrate.round_plainly(self.model, self.precision, check=threads.check)
        speech = list(_hear(self.model))
        return calibrate.calibrate(self.model, speech, self.precision, check=threads.check)


def _hear(model: Whisper) -> Iterator[Heard]:
    """Read the speech that comes with the package, and let a model write it down."""
    import mlx.core as mx  # noqa: PLC0415  blas.py acts before MLX is imported

    from fastwhisper.quantizing.calibrate import Heard  # noqa: PLC0415
    from fastwhisper.transcribing.mel import WINDOW_FRAMES, load_audio, open_mel  # noqa: PLC0415
    from fastwhisper.transcribing.window_decoder import WindowDecoder  # noqa: PLC0415  imports MLX

    for language in _LANGUAGES if model.is_multilingual else _LANGUAGES[:1]:
        file = Path(__file__).parent / "data" / _SPEECH.format(language=language)
        samples = load_audio(file, check=threads.check)
        settings = DecodeSettings.from_options(language=language, temperature=0.0)
        # Half a window at the end is what the codec adds.
        for start in range(0, len(samples) - _WINDOW_SAMPLES // 2, _WINDOW_SAMPLES):
            window = samples[start : start + _WINDOW_SAMPLES]
            mel = open_mel(window, n_mels=model.dims.n_mels, check=threads.check)
            decoder = WindowDecoder(model, mel, settings, fp16=False, check=threads.check)
            audio = decoder.encode(0, WINDOW_FRAMES)
            result = decoder.decode(audio, [], start_frame=0)
            tokens = result.tokens if result.compression_ratio <= _LOOPING else []
            tokens = [*decoder.tokenizer.sot_sequence, *tokens]
            yield Heard(mx.array(mel.mel[:WINDOW_FRAMES]), audio, tuple(tokens))


def _must_be_free(place: Path) -> None:
    if place.exists():
        raise FileExistsError(f"{place} exists: name a directory to make")


def _write(place: Path, config: Mapping[str, object], arrays: Arrays) -> None:
    """Write a directory beside its place, and rename it when it is complete."""
    from safetensors.numpy import save  # noqa: PLC0415  imports NumPy

    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    unfinished.mkdir()
    try:
        (unfinished / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
        # `save_file` would make a file that only its owner may read.
        (unfinished / WEIGHTS).write_bytes(save(arrays))
        for path in (unfinished / CONFIG, unfinished / WEIGHTS, unfinished):
            _sync(path)
        threads.check()
        unfinished.rename(place)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    _sync(place.parent)


def _sync(path: Path) -> None:
    """Have a file or directory on the disk, and not only in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
