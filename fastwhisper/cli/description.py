"""What is known of a model before a weight is read: the page of `inspect`, `pull`, `quantize`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from fastwhisper.checkpoint.chunks import describe_mapping
from fastwhisper.checkpoint.inspection import inspect_checkpoint
from fastwhisper.checkpoint.word_loss import word_error_cost
from fastwhisper.cli.streams import print_text
from fastwhisper.errors import InvalidModelFormatError, TokenizationFailedError
from fastwhisper.loading import stages

if TYPE_CHECKING:
    from fastwhisper.checkpoint.plan import Checkpoint
    from fastwhisper.sources.find import Location

__all__ = ["print_description"]


def print_description(location: Location, *, as_json: bool) -> int:
    """Print what is known of a model before a weight is read; return the exit status."""
    original = inspect_checkpoint(location.path)
    opened = stages.inspect(location.path)
    bits = Counter[str]()
    for tensor in original.tensors:
        module = tensor.name.rpartition(".")[0]
        packed = original.precision.get(module)
        kind = f"{packed.bits} bits, groups of {packed.group_size}" if packed else tensor.dtype
        bits[f"{tensor.name.partition('.')[0]}: {kind}"] += tensor.size_bytes
    cost = word_error_cost(original.dimensions, original.precision)
    facts = {
        "source": location.source,
        "path": str(location.path),
        "revision": location.revision,
        "format": original.layout,
        "precision": str(original.actual),
        "word_errors": None
        if cost is None
        else f"{cost:+.1f} points above float16's, on recorded English",
        "fallback_reason": location.fallback_reason,
        "size_bytes": original.total_bytes,
        "bytes_by_precision": dict(sorted(bits.items())),
        "fast_path": opened.is_safetensors,
        "maps": describe_mapping(opened.tensors, "float16"),
        "converted_copy": None if opened.path == original.path else str(opened.path),
        "dimensions": asdict(original.dimensions),
        "not_transcribable": _find_refusal(original),
    }
    if as_json:
        print_text(json.dumps(facts, indent=2))
        return 0
    for name, value in facts.items():
        if isinstance(value, dict):
            print_text(f"{name}:")
            for key, number in value.items():
                print_text(f"  {key}: {number}")
        elif value is not None:
            print_text(f"{name}: {value}")
    return 0


def _find_refusal(checkpoint: Checkpoint) -> str | None:
    """Return why `open` refuses a checkpoint that `load_model` opens, or None."""
    try:
        stages.check_text(checkpoint)
    except (InvalidModelFormatError, TokenizationFailedError) as error:
        return str(error)
    return None
