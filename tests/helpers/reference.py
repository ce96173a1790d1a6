"""mlx_whisper with its faults put right: what our text, times and words are compared with.

A copy of the installed package, changed at the few lines named here, and imported under another
name. The package itself is not touched. Each correction has an entry in docs/differences.md. Only
the bounds of times are left out of ours instead.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import shutil
import sys
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

from fastwhisper.transcribing import windows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastwhisper.values import Segment

__all__ = ["CORRECTIONS", "import_reference", "leave_out_bounds"]


class Change(NamedTuple):
    """A change of a file.

    Attributes:
        file: The module's file.
        old: What it says, exactly once.
        new: What it should say.
    """

    file: str
    old: str
    new: str


CORRECTIONS = {
    "timestamp rules": (
        Change(
            "decoding.py",
            """            timestamps = [
                i for i, v in enumerate(seq) if v > self.tokenizer.timestamp_begin
            ]
""",
            """            timestamps = [v for v in seq if v >= self.tokenizer.timestamp_begin]
""",
        ),
        Change(
            "decoding.py",
            "                if not last_timestamp or penultimate_was_timestamp:\n",
            "                if not (last_was_timestamp and not penultimate_was_timestamp):\n",
        ),
        Change(
            "decoding.py",
            """        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        timestamp_logprob""",
            """        logits = logits + mask
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        timestamp_logprob""",
        ),
    ),
    "loops and silence": (
        Change(
            "transcribe.py",
            """                and decode_result.no_speech_prob > no_speech_threshold
            ):
                needs_fallback = False""",
            """                and decode_result.no_speech_prob > no_speech_threshold
                and logprob_threshold is not None
                and decode_result.avg_logprob < logprob_threshold
            ):
                needs_fallback = False""",
        ),
    ),
    "random keys": (
        Change(
            "decoding.py",
            """@mx.compile
def categorical(logits, temp):
    return mx.random.categorical(logits / temp)
""",
            """noise = None


def categorical(logits, temp):
    global noise
    noise, key = mx.random.split(noise)
    return mx.random.categorical(logits / temp, key=key)
""",
        ),
        Change(
            "transcribe.py",
            """        for t in temperatures:
""",
            """        from . import decoding

        keys = mx.random.split(mx.random.key(SEED ^ seek << 32), len(temperatures))
        for t, decoding.noise in zip(temperatures, keys):
""",
        ),
        Change("transcribe.py", "class ModelHolder:", "SEED = 0\n\n\nclass ModelHolder:"),
    ),
    "times not asked for": (
        Change(
            "decoding.py",
            """        if not options.without_timestamps:
            precision""",
            """        if options.without_timestamps:
            times = range(tokenizer.timestamp_begin, model.dims.n_vocab)
            self.logit_filters.append(SuppressTokens(times, model.dims.n_vocab))
        else:
            precision""",
        ),
    ),
    "clips": (
        Change(
            "transcribe.py",
            "            while seek < seek_clip_end:\n",
            "            seek = seek_clip_start\n            while seek < seek_clip_end:\n",
        ),
    ),
    "even attention": (
        Change(
            "timing.py",
            "weights = (weights - mean) / std",
            "weights = mx.where(std == 0, 0, (weights - mean) / std)",
        ),
    ),
}


@contextmanager
def leave_out_bounds() -> Iterator[None]:
    """Leave our times as the network says them, also after the end, as mlx_whisper's are."""

    def keep(segments: Sequence[Segment], **_: float) -> Sequence[Segment]:
        return segments

    with patch.object(windows, "bound_times", keep):
        yield


@cache
def import_reference(*names: str) -> Any:
    """Import a corrected package, and return its module `transcribe`.

    Args:
        *names: Keys of `CORRECTIONS`; all of them if none is given.
    """
    spec = importlib.util.find_spec("mlx_whisper")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("mlx_whisper is not installed: it is in the dependency group dev")
    (source,) = spec.submodule_search_locations
    parent = Path(tempfile.mkdtemp(prefix="fastwhisper-reference-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    package = parent / "_".join(("mlx_whisper_reference", *names)).replace(" ", "_")
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in names or CORRECTIONS:
        for change in CORRECTIONS[name]:
            path = package / change.file
            text = path.read_text(encoding="utf-8")
            if text.count(change.old) != 1:
                raise RuntimeError(f"mlx_whisper is another than the correction {name!r} knows")
            path.write_text(text.replace(change.old, change.new), encoding="utf-8")
    sys.path.append(str(parent))
    importlib.invalidate_caches()
    return importlib.import_module(f"{package.name}.transcribe")
