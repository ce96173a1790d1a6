"""The stages of a load that evaluate no array: inspect, check, confirm, prepare the tokenizer.

`inspect`, `confirm` and `prepare_text` block, so they run in an engine thread. `check_text` and
`warn_of_word_errors` only compare what was inspected.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastwhisper.checkpoint.inspection import (
    CONFIG,
    confirm_checkpoint,
    fingerprint_headers,
    inspect_checkpoint,
)
from fastwhisper.checkpoint.word_loss import word_error_cost
from fastwhisper.engine import backend, threads
from fastwhisper.engine.backend import FREEZE, import_computing, is_frozen
from fastwhisper.errors import (
    BackendMissingError,
    InvalidModelFormatError,
    TokenizationFailedError,
)
from fastwhisper.sources import find, verified
from fastwhisper.whisper.languages import VOCAB_WITHOUT_LANGUAGES

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastwhisper.checkpoint.plan import Checkpoint
    from fastwhisper.values import LoadOptions, WhisperModel

__all__ = [
    "check_start",
    "check_text",
    "confirm",
    "inspect",
    "prepare_text",
    "run_logged",
    "warn_of_word_errors",
]

_PACKAGE: Final = Path(__file__).parents[1]
_DATA: Final = (
    "whisper/data/gpt2.tiktoken",
    "whisper/data/multilingual.tiktoken",
    "whisper/data/mel_filters.npz",
    "transcribing/data/silero_vad_16k.npz",
)
_MEL_FILTERS: Final = (80, 128)
_WINDOW_POSITIONS: Final = 1500
_WARN_POINTS: Final = 0.5
"""Points of word error rate above float16 from which a warning is logged."""

_logger = logging.getLogger("fastwhisper")


def inspect(path: Path) -> Checkpoint:
    """Plan the load of a directory, or of its converted copy if there is one.

    Raises:
        InvalidModelFormatError: The directory is not a Whisper that can be opened.
    """
    checkpoint = inspect_checkpoint(path, confirm=False)
    if checkpoint.is_safetensors:
        return checkpoint
    from fastwhisper.sources import converted  # noqa: PLC0415  3 ms, and few layouts need it

    copy = converted.lookup(checkpoint)
    if copy is None:
        return checkpoint
    try:
        return inspect_checkpoint(copy, confirm=False)
    except InvalidModelFormatError as error:
        _logger.warning("the converted copy of %s is broken and is made again: %s", path, error)
        converted.discard(copy)
        return checkpoint


def check_start(model: WhisperModel | str | os.PathLike[str], options: LoadOptions) -> None:
    """Check a model's name, the options, and that fastwhisper's own data files are there.

    Raises:
        ModelNotFoundError: No model can have this name.
        QuantizedModelNotAvailableError: There is no such precision.
        BackendMissingError: A data file is missing, as in a program that was frozen without them;
            or weights can't be mapped on this system.
    """
    find.check_form(model, options.quant)
    if options.memory_map and not backend.may_map():
        raise BackendMissingError(
            f"weights can't be mapped on {sys.platform}: memory_map=True needs a Mac; leave it out"
        )
    missing = [name for name in _DATA if not os.path.isfile(_PACKAGE / name)]  # noqa: PTH113  faster
    if missing:
        advice = FREEZE if is_frozen() else "install fastwhisper again"
        raise BackendMissingError(f"fastwhisper lacks its own {', '.join(missing)}; {advice}")


def check_text(checkpoint: Checkpoint) -> None:
    """Check that the input size and the vocabulary match the bundled mel filters and tokenizer.

    Raises:
        TokenizationFailedError: The bundled tokenizer has more tokens than the network.
        InvalidModelFormatError: The network's input is not Whisper's mel of 30 s.
    """
    n_vocab = checkpoint.dimensions.n_vocab
    if n_vocab < VOCAB_WITHOUT_LANGUAGES:
        raise TokenizationFailedError(
            checkpoint.path,
            f"its vocabulary has {n_vocab} tokens, but the bundled tokenizer needs at least "
            f"{VOCAB_WITHOUT_LANGUAGES}; load_model() opens it without a tokenizer",
        )
    for field, value, usable in (
        ("n_mels", checkpoint.dimensions.n_mels, _MEL_FILTERS),
        ("n_audio_ctx", checkpoint.dimensions.n_audio_ctx, (_WINDOW_POSITIONS,)),
    ):
        if value not in usable:
            raise InvalidModelFormatError(
                checkpoint.path / CONFIG,
                field,
                f"is {value}, but Whisper's input of 30 s needs {' or '.join(map(str, usable))}",
                "load_model() opens it",
            )


def warn_of_word_errors(name: str, checkpoint: Checkpoint) -> None:
    """Log a warning if this precision was measured to cost words on a network of this size."""
    cost = word_error_cost(checkpoint.dimensions, checkpoint.precision)
    if cost is not None and cost >= _WARN_POINTS:
        _logger.warning(
            "%s at %s: its word error rate was measured %.1f points above float16's on recorded "
            "English; int8 costs nothing, an int4 made by `fastwhisper quantize` less than one",
            name,
            checkpoint.actual,
            cost,
        )


def confirm(checkpoint: Checkpoint) -> None:
    """Check that safetensors' own reader agrees with the plan, now or at an earlier load.

    Raises:
        InvalidModelFormatError: It does not agree, or a file has changed.
    """
    if not checkpoint.is_safetensors:
        return
    fingerprint = fingerprint_headers(checkpoint)
    if not verified.recall_confirmed(fingerprint):
        confirm_checkpoint(checkpoint)
        verified.note_confirmed(fingerprint)


def prepare_text(checkpoint: Checkpoint) -> None:
    """Read the tokenizer and import the modules that the first transcription needs."""
    from fastwhisper.whisper.tokenizer import read_tokenizer  # noqa: PLC0415  2 ms after ready

    read_tokenizer(checkpoint.dimensions.n_vocab, language="en", task="transcribe")
    threads.check()
    import_computing("fastwhisper.transcribing.windows")


def run_logged(stage: Callable[[], None], failure: str) -> None:
    """Run a stage that nobody waits for, and log its failure."""
    try:
        stage()
    except Exception:
        # The model is ready and in use. The first transcription raises the same error.
        _logger.exception(failure)
