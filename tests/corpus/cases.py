"""The hostile corpus: every broken, lying or merely odd model that a loader may be given.

All of it is generated. `python -m bench.corpus` runs it through mlx_whisper too.
"""

from __future__ import annotations

from itertools import chain
from typing import Final

from tests.corpus.formats import format_cases
from tests.corpus.headers import header_cases
from tests.corpus.places import index_cases, place_cases
from tests.corpus.tensors import config_cases, tensor_cases

__all__ = ["CASES"]

CASES: Final = tuple(
    chain(
        header_cases(),
        tensor_cases(),
        config_cases(),
        place_cases(),
        index_cases(),
        format_cases(),
    )
)
