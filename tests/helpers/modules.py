"""Networks for tests: loaded by the pure functions, and compared array for array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_flatten

import fastwhisper

if TYPE_CHECKING:
    from pathlib import Path

    from fastwhisper.values import DtypeName
    from fastwhisper.whisper.network import Whisper

__all__ = ["HIDDEN", "assert_same_module", "load_by_hand", "name_parameters"]

HIDDEN = (("encoder", "_positional_embedding"), ("decoder", "_mask"))
"""The arrays of a network that are no parameters: computed when it is built, never stored."""


def load_by_hand(directory: Path, dtype: DtypeName = "float32") -> Whisper:
    """Return the network of a directory, loaded with the pure functions in this thread."""
    checkpoint = fastwhisper.inspect_checkpoint(directory)
    module = fastwhisper.build_module(checkpoint, dtype=dtype)
    params: dict[str, mx.array] = {}
    for group in fastwhisper.read_shards(checkpoint):
        params.update(group)
    fastwhisper.apply_params(module, params)
    return module


def name_parameters(module: Any) -> dict[str, mx.array]:
    """Return the parameters of a module by their full names."""
    return dict(tree_flatten(module.parameters()))


def assert_same_module(ours: Any, theirs: Any) -> None:
    """Compare two networks: names, dtypes, shapes and every value, hidden arrays included."""
    mine, upstream = (
        name_parameters(module)
        | {f"{part}.{name}": getattr(module, part)[name] for part, name in HIDDEN}
        for module in (ours, theirs)
    )
    assert mine.keys() == upstream.keys()
    for name, array in upstream.items():
        assert (mine[name].dtype, mine[name].shape) == (array.dtype, array.shape), name
        assert mx.array_equal(mine[name], array).item(), name
