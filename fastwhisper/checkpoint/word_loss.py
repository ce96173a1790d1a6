"""What a precision costs in words, as far as it was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastwhisper.checkpoint.expected import EMBEDDING, find_main_bits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastwhisper.values import Dimensions, ModulePrecision

__all__ = ["word_error_cost"]

COSTS: Final = {
    (384, 8, True): 0.0,
    (384, 5, True): 0.3,
    (384, 4, False): 1.5,
    (384, 4, True): 2.9,
    (512, 8, True): 0.1,
    (512, 5, True): 0.4,
    (512, 4, False): 0.7,
    (512, 4, True): 2.5,
}
"""Points of word error rate above float16's, by width of the network (tiny and base), bits, and
whether the embedding is quantized too. Eight and five bits as `fastwhisper quantize` makes them,
four bits rounded plainly in groups of 64. Source: docs/benchmarks.md, on 4,145 words of recorded
English."""


def word_error_cost(
    dimensions: Dimensions, precision: Mapping[str, ModulePrecision]
) -> float | None:
    """Return the word error rate that a precision was measured to add on a network of this size.

    Args:
        dimensions: The network's sizes.
        precision: Bits and group size of its quantized modules.

    Returns:
        Points of word error rate above float16's; None if it was not measured. Only the width
        and the bits of most weights are compared, so calibrated four bits count as plain ones.
    """
    if not precision:
        return None
    bits = find_main_bits(dimensions, precision)
    return COSTS.get((dimensions.n_text_state, bits, EMBEDDING in precision))
