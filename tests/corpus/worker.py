"""A process that opens models for `tests.corpus.batch`, one a line, until it dies of one."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import resource
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["digest"]

_MEMORY_BYTES: Final = 8 << 30
"""Address space of a worker, so that a case that eats memory ends it and not the machine."""


def digest(arrays: Mapping[str, mx.array]) -> str:
    """Hash names, dtypes, shapes and values."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        wide = array.astype(mx.float32) if array.dtype == mx.bfloat16 else array
        found.update(np.array(wide).tobytes())
    return found.hexdigest()


def _open(load_model: Callable[[str], Any], path: str) -> dict[str, object]:
    """Open a model and describe it, or the error."""
    begin_s = time.perf_counter()
    try:
        module = load_model(path)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the result
        return {
            "error": [kind.__name__ for kind in type(error).__mro__],
            "said": ascii(str(error))[:10_000],
            "seconds": time.perf_counter() - begin_s,
        }
    seconds = time.perf_counter() - begin_s
    try:
        arrays = dict(tree_flatten(module.parameters()))
        heads = arrays.pop("alignment_heads").tolist()
        same: object = [digest(arrays), heads]
    except BaseException as error:  # noqa: BLE001 - as above
        same = f"fails when used: {type(error).__name__}"
    return {"opened": same, "seconds": seconds}


def main() -> None:
    """Read requests from the standard input, answer on the standard output."""
    # Kept apart, so that descriptor 0 can be closed and nothing printed gets in between.
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if "--limit-memory" in sys.argv:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Each loader is imported without the other.
    package = "fastwhisper" if sys.argv[1] == "fastwhisper" else "mlx_whisper.load_models"
    load_model: Callable[[str], Any] = importlib.import_module(package).load_model
    for line in requests:
        request = json.loads(line)
        if request["stdin_closed"]:
            os.close(0)
        answer = _open(load_model, request["path"])
        if request["stdin_closed"]:
            # The lowest free number, which is 0.
            os.open(os.devnull, os.O_RDONLY)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
