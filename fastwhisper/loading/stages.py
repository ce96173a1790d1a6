"""The stages of a load. Each runs in one of the engine's threads; none knows of an event loop.

What imports MLX is imported inside the functions: never on the event loop's thread, and
not before the engine has put a BLAS in its place.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Final, TypeAlias

from fastwhisper.checkpoint.inspection import (
    confirm_checkpoint,
    fingerprint_headers,
    inspect_checkpoint,
)
from fastwhisper.checkpoint.word_loss import word_error_cost
from fastwhisper.engine import threads
from fastwhisper.engine.backend import import_mlx
from fastwhisper.errors import InvalidModelFormatError, TokenizationFailedError
from fastwhisper.sources import converted, verified
from fastwhisper.whisper.languages import VOCAB_WITHOUT_LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import mlx.core as mx

    from fastwhisper.checkpoint.plan import Checkpoint
    from fastwhisper.values import DtypeName
    from fastwhisper.whisper.network import Whisper

    Params: TypeAlias = dict[str, mx.array]

__all__ = [
    "apply",
    "build",
    "compute_dtype",
    "confirm",
    "inspect",
    "is_slow_to_read",
    "keep_converted",
    "prepare_text",
    "read",
    "require_text",
    "warm_attention",
    "warm_convolution",
    "warm_mel",
    "warm_network",
    "warm_products",
    "warn_of_lost_words",
]

_MEL_FILTERS: Final = (80, 128)
_CAST_BYTES: Final = 1 << 20
_WINDOW_POSITIONS: Final = 1500
_PROMPT_ROWS: Final = 10
_MUCH: Final = 0.5
"""Points of word error rate from which on opening a model says so."""
_WARM_SAMPLES: Final = 16_000
_WARM_TOKENS: Final = 3
"""One prompt step and two single-token steps: every kernel of decoding runs once."""

_logger = logging.getLogger("fastwhisper")


def inspect(path: Path) -> Checkpoint:
    """Plan the load of a directory, or of its converted copy if there is one.

    Raises:
        InvalidModelFormatError: The directory holds no Whisper that can be opened.
    """
    checkpoint = inspect_checkpoint(path, confirm=False)
    copy = converted.lookup(checkpoint) if is_slow_to_read(checkpoint) else None
    if copy is None:
        return checkpoint
    try:
        return inspect_checkpoint(copy, confirm=False)
    except InvalidModelFormatError as error:
        _logger.warning("the converted copy of %s is made anew: %s", path, error)
        converted.discard(copy)
        return checkpoint


def warn_of_lost_words(name: str, checkpoint: Checkpoint) -> None:
    """Log one line when a precision was measured to cost words on a network of this size."""
    cost = word_error_cost(checkpoint.dimensions, checkpoint.precision)
    if cost is not None and cost >= _MUCH:
        _logger.warning(
            "%s at %s: its word error rate was measured %.1f points above float16's on recorded "
            "English; int8 costs nothing, an int4 made by `fastwhisper quantize` less than one",
            name,
            checkpoint.actual,
            cost,
        )


def is_slow_to_read(checkpoint: Checkpoint) -> bool:
    """Tell whether a layout is read faster once it has been converted to MLX's own."""
    return not checkpoint.is_safetensors


def confirm(checkpoint: Checkpoint) -> None:
    """Make sure that safetensors' own reader agrees, or has agreed; before `apply`.

    Raises:
        InvalidModelFormatError: It does not, or a file has changed.
    """
    if not checkpoint.is_safetensors:
        return
    fingerprint = fingerprint_headers(checkpoint)
    if not verified.recall_confirmed(fingerprint):
        confirm_checkpoint(checkpoint)
        verified.note_confirmed(fingerprint)


def compute_dtype(chosen: DtypeName | None) -> DtypeName:
    """Choose the dtype to compute in: float16 on a GPU, float32 on a CPU.

    On a CPU MLX multiplies quantized matrices about 70 times faster in float32.
    """
    return chosen or ("float16" if threads.computes_on_gpu() else "float32")


def read(
    lane: Checkpoint,
    *,
    dtype: DtypeName | None,
    on_group: Callable[[int], object] = lambda done_bytes: done_bytes,
) -> Params:
    """Read tensors group by group, cast to a dtype if one is given; all are evaluated.

    Args:
        lane: A checkpoint, or a share of one.
        dtype: For floating parameters; None keeps the file's.
        on_group: Called with the bytes of each group that was read.

    Raises:
        InvalidModelFormatError: A file has changed since it was inspected.
    """
    import_mlx()
    import mlx.core as mx  # noqa: PLC0415

    from fastwhisper.checkpoint.read import read_shards  # noqa: PLC0415

    arrays: Params = {}
    for group in map(dict, read_shards(lane)):
        threads.check()
        read_bytes = sum(array.nbytes for array in group.values())
        if dtype is not None:
            _cast(group, getattr(mx, dtype))
        arrays |= group
        on_group(read_bytes)
    return arrays


def _cast(group: Params, dtype: mx.Dtype) -> None:
    """Cast the floating arrays of a group, few at a time, so that few stand beside their source.

    One by one would take longer: with each evaluation a thread gives Python away, and waits for
    it up to 5 ms.
    """
    import mlx.core as mx  # noqa: PLC0415

    floating = (name for name, array in group.items() if mx.issubdtype(array.dtype, mx.floating))
    waiting = [name for name in floating if group[name].dtype != dtype]
    while waiting:
        batch: Params = {}
        read_bytes = 0
        while waiting and read_bytes < _CAST_BYTES:
            name = waiting.pop()
            read_bytes += group[name].nbytes
            batch[name] = group[name] = group[name].astype(dtype)
        mx.eval(list(batch.values()))


def import_network() -> None:
    """Import the network, while the files are located.

    Importing beside the read would hold it up: the heap grows, and page faults wait for that.
    """
    import_mlx()
    import fastwhisper.whisper.params  # noqa: F401, PLC0415


def build(checkpoint: Checkpoint, dtype: DtypeName) -> Whisper:
    """Build the network without weights.

    Raises:
        BackendMissingError: MLX has no backend here.
    """
    import_mlx()
    from fastwhisper.whisper.params import UNPACK_ROWS, build_module  # noqa: PLC0415

    unpack_rows = None if threads.computes_on_gpu() else UNPACK_ROWS
    return build_module(checkpoint, dtype=dtype, unpack_rows=unpack_rows)


def apply(checkpoint: Checkpoint, module: Whisper, params: Params) -> None:
    """Put the weights into the network.

    Raises:
        InvalidModelFormatError: They are not what the network needs.
    """
    from fastwhisper.whisper.params import apply_params  # noqa: PLC0415

    apply_params(module, params, path=checkpoint.path)


def keep_converted(checkpoint: Checkpoint, on_group: Callable[[int], object]) -> None:
    """Write a checkpoint that is slow to read to the cache, for the next time.

    Args:
        checkpoint: As inspected.
        on_group: Called with the bytes of each group that was written.
    """
    from fastwhisper.checkpoint.read import read_shards  # noqa: PLC0415

    def groups() -> Iterator[Mapping[str, mx.array]]:
        for group in read_shards(checkpoint):
            yield group
            on_group(sum(array.nbytes for array in group.values()))

    copy = converted.store(checkpoint, groups(), check=threads.check)
    if copy is not None:
        confirm(inspect_checkpoint(copy, confirm=False))  # so that the next load need not ask


def require_text(checkpoint: Checkpoint) -> None:
    """Make sure that a network hears Whisper's input and speaks the bundled tokenizer's tokens.

    Raises:
        TokenizationFailedError: The bundled tokenizer has more tokens than the network.
        InvalidModelFormatError: Its input is not Whisper's 30 s of mel.
    """
    n_vocab = checkpoint.dimensions.n_vocab
    if n_vocab < VOCAB_WITHOUT_LANGUAGES:
        raise TokenizationFailedError(
            checkpoint.path,
            f"its vocabulary has {n_vocab} tokens, Whisper's own tokenizer has "
            f"{VOCAB_WITHOUT_LANGUAGES} at least; load_model() opens it without one",
        )
    for field, value, usable in (
        ("n_mels", checkpoint.dimensions.n_mels, _MEL_FILTERS),
        ("n_audio_ctx", checkpoint.dimensions.n_audio_ctx, (_WINDOW_POSITIONS,)),
    ):
        if value not in usable:
            raise InvalidModelFormatError(
                checkpoint.path / "config.json",
                field,
                f"is {value}, and Whisper's input of 30 s needs {' or '.join(map(str, usable))}; "
                "load_model() opens it all the same",
            )


def prepare_text(checkpoint: Checkpoint) -> None:
    """Read the tokenizer that decoding will ask for, and import what decodes."""
    from fastwhisper.whisper.tokenizer import read_tokenizer  # noqa: PLC0415  off the event loop

    read_tokenizer(checkpoint.dimensions.n_vocab, language="en", task="transcribe")
    threads.check()
    import_mlx()
    from fastwhisper.transcribing.windows import transcribe_windows  # noqa: F401, PLC0415  imports the rest


def warm_mel(checkpoint: Checkpoint) -> None:
    """Turn a second of silence into mel, where audio is; it loads the Fourier transform."""
    import numpy as np  # noqa: PLC0415

    from fastwhisper.transcribing.mel import open_mel  # noqa: PLC0415

    silence = np.zeros(_WARM_SAMPLES, np.float32)
    open_mel(silence, n_mels=checkpoint.dimensions.n_mels, check=threads.check)


def warm_convolution(checkpoint: Checkpoint, dtype: DtypeName) -> None:
    """Convolve for the first time, which loads what convolves."""
    mx = import_mlx()
    size = checkpoint.dimensions
    compute = getattr(mx, dtype)
    mel = mx.zeros((1, 2 * size.n_audio_ctx, size.n_mels), compute)
    mx.eval(mx.conv1d(mel, mx.zeros((size.n_audio_state, 3, size.n_mels), compute), padding=1))


def warm_attention(checkpoint: Checkpoint, dtype: DtypeName) -> None:
    """Multiply head by head for the first time: another kernel than that of one product."""
    mx = import_mlx()
    size = checkpoint.dimensions
    audio = mx.zeros((1, size.n_audio_ctx, size.n_audio_state), getattr(mx, dtype))
    heads = audio.reshape(1, size.n_audio_ctx, size.n_audio_head, -1)
    mx.eval(heads.transpose(0, 2, 1, 3) @ heads.transpose(0, 2, 3, 1))


def warm_products(checkpoint: Checkpoint, dtype: DtypeName) -> None:
    """Multiply for the first time, with plain and with quantized matrices."""
    mx = import_mlx()
    size = checkpoint.dimensions
    state = size.n_audio_state
    compute = getattr(mx, dtype)
    audio = mx.zeros((1, size.n_audio_ctx, state), compute)
    mx.eval(audio @ mx.zeros((state, state), compute))
    for how in set(checkpoint.precision.values()):
        scales = mx.zeros((state, state // how.group_size), compute)
        weight = mx.zeros((state, state * how.bits // 32), mx.uint32)
        # A window of audio, the prompt of a window, and a token: each has a kernel of its own.
        for x in (audio, audio[:, :_PROMPT_ROWS], audio[:, :1]):
            threads.check()
            mx.eval(mx.quantized_matmul(x, weight, scales, scales, **asdict(how)))


def warm_network(checkpoint: Checkpoint, dtype: DtypeName) -> None:
    """Transcribe silence with a one-layer, zero-weight network of the same sizes and precision.

    Its layers are as wide as the real ones, so that its kernels are theirs; it needs none of
    the weights, so it need not wait for them. After the other warm-ups.
    """
    import_mlx()
    import mlx.core as mx  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415
    from mlx.utils import tree_map  # noqa: PLC0415

    from fastwhisper.transcribing.mel import WINDOW_FRAMES, MelAudio  # noqa: PLC0415
    from fastwhisper.transcribing.windows import transcribe_windows  # noqa: PLC0415
    from fastwhisper.whisper.options import DecodeSettings  # noqa: PLC0415
    from fastwhisper.whisper.params import build_module  # noqa: PLC0415

    one_layer = replace(checkpoint.dimensions, n_audio_layer=1, n_text_layer=1)
    precision = {
        name: packed
        for name, packed in checkpoint.precision.items()
        if ".blocks." not in name or ".blocks.0." in name
    }
    module = build_module(
        replace(checkpoint, dimensions=one_layer, precision=precision, alignment_heads=((0, 0),)),
        dtype=dtype,
    )

    def zeros(array: mx.array) -> mx.array:
        floating = mx.issubdtype(array.dtype, mx.floating)
        return mx.zeros(array.shape, getattr(mx, dtype) if floating else array.dtype)

    module.update(tree_map(zeros, module.parameters()))
    mel = np.zeros((2 * WINDOW_FRAMES, module.dims.n_mels), np.float32)
    silence = MelAudio(mel, content_frames=WINDOW_FRAMES, duration_s=0.0)
    settings = DecodeSettings.from_options(language="en", temperature=0, sample_len=_WARM_TOKENS)
    fp16 = dtype == "float16"
    next(transcribe_windows(module, silence, settings, fp16=fp16, check=threads.check))
