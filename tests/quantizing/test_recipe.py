"""Which module gets how many bits."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastwhisper.checkpoint.config import check_quantization
from fastwhisper.checkpoint.expected import expected_shapes
from fastwhisper.checkpoint.word_loss import word_error_cost
from fastwhisper.quantizing.recipe import (
    INT4_SIZE_RATIO,
    choose_precision,
    compute_size_ratio,
    describe_precision,
)
from fastwhisper.values import Dimensions, ModulePrecision, Quantization, WhisperModel
from tests.helpers.tiny_models import SMALLEST

# Radford et al. 2022, table 1: width, heads, layers; turbo: its config.json.
SIZES = {
    WhisperModel.TINY: (80, 384, 6, 4, 4),
    WhisperModel.BASE: (80, 512, 8, 6, 6),
    WhisperModel.SMALL: (80, 768, 12, 12, 12),
    WhisperModel.MEDIUM: (80, 1024, 16, 24, 24),
    WhisperModel.LARGE_V3: (128, 1280, 20, 32, 32),
    WhisperModel.LARGE_TURBO: (128, 1280, 20, 32, 4),
}


@pytest.fixture(params=SIZES, ids=str)
def dimensions(request: pytest.FixtureRequest) -> Dimensions:
    """Return the sizes of every model of the table."""
    mels, width, heads, encoder, decoder = SIZES[request.param]
    return Dimensions(mels, 1500, width, heads, encoder, 51866, 448, width, heads, decoder)


def test_int4_keeps_to_its_share(dimensions: Dimensions) -> None:
    """For every model int4 is at most 35 % of the bytes, and no less than it may be."""
    precision = choose_precision(dimensions, Quantization.INT4)
    assert 0.25 < compute_size_ratio(dimensions, precision) <= INT4_SIZE_RATIO


def test_every_matrix_is_quantized(dimensions: Dimensions) -> None:
    """Each linear layer and the embedding has a precision, and nothing else."""
    matrices = {
        name.removesuffix(".weight")
        for name, shape in expected_shapes(dimensions).items()
        if name.endswith(".weight") and len(shape) == 2
    }
    for quant in (Quantization.INT4, Quantization.INT8):
        assert choose_precision(dimensions, quant).keys() == matrices


def test_int8_is_eight_bits(dimensions: Dimensions) -> None:
    """int8 means the same for every module and size."""
    precision = choose_precision(dimensions, Quantization.INT8)
    assert set(precision.values()) == {ModulePrecision(8, 64)}


def test_more_bytes_never_mean_fewer_bits(dimensions: Dimensions) -> None:
    """A larger share gives at least as many bytes."""
    shares = [
        compute_size_ratio(
            dimensions, choose_precision(dimensions, Quantization.INT4, size_ratio=most)
        )
        for most in (0.31, 0.35, 0.4, 0.45, 0.5, 0.6)
    ]
    assert shares == sorted(shares)


def test_too_small_a_share_says_what_is_needed() -> None:
    """The error names the smallest share that can be had."""
    with pytest.raises(ValueError, match=r"needs [0-9.]+%"):
        choose_precision(SMALLEST, Quantization.INT4, size_ratio=0.05)


def test_groups_fit_widths_that_are_no_multiple(dimensions: Dimensions) -> None:
    """A network 64 wide gets groups of at most 64."""
    precision = choose_precision(SMALLEST, Quantization.INT4, size_ratio=0.6)
    assert all(how.group_size <= 64 for how in precision.values())


def test_the_config_says_what_the_shapes_say(dimensions: Dimensions) -> None:
    """What describes a precision passes the inspection's own comparison."""
    mixed = dict(choose_precision(dimensions, Quantization.INT4))
    mixed["decoder.token_embedding"] = ModulePrecision(6, 32)
    said = describe_precision(mixed)
    check_quantization({"quantization": said}, mixed, Path("config.json"))
    assert said["decoder.token_embedding"] == {"bits": 6, "group_size": 32}


def test_one_precision_has_no_exceptions() -> None:
    """What mlx_whisper understands: bits and group size alone."""
    said = describe_precision({"a": ModulePrecision(5, 128), "b": ModulePrecision(5, 128)})
    assert said == {"bits": 5, "group_size": 128}


def plain_four(dimensions: Dimensions) -> dict[str, ModulePrecision]:
    """Return four bits for every module, as the table's repositories have them."""
    return dict.fromkeys(choose_precision(dimensions, Quantization.INT8), ModulePrecision(4, 64))


def test_costs_are_those_measured(dimensions: Dimensions) -> None:
    """Each precision of tiny and base has its own figure; nothing else has one."""
    measured = dimensions.n_text_state in {384, 512}
    found = [word_error_cost(dimensions, choose_precision(dimensions, quant)) for quant in INTS]
    found.append(word_error_cost(dimensions, plain_four(dimensions)))
    figures = [cost for cost in found if cost is not None]
    assert len(figures) == (3 if measured else 0)
    assert figures == sorted(figures)
    assert word_error_cost(dimensions, {}) is None


def test_a_plain_embedding_costs_less(dimensions: Dimensions) -> None:
    """Some of the table's repositories leave the embedding at float16."""
    four = plain_four(dimensions)
    whole = word_error_cost(dimensions, four)
    del four["decoder.token_embedding"]
    part = word_error_cost(dimensions, four)
    assert (whole is None) == (part is None) == (dimensions.n_text_state > 512)
    assert whole is None or part is None or 0.5 < part < whole


INTS = (Quantization.INT8, Quantization.INT4)
