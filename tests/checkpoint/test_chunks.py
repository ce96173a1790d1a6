"""Which pages of a file are wrapped, and which tensors are views of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastwhisper.checkpoint.chunks import (
    describe_mapping,
    find_obstacle,
    find_span,
    plan_chunks,
)
from fastwhisper.checkpoint.plan import WIDTHS, TensorPlan

PAGE = 16


def lay_out(start: int, sizes: list[int]) -> list[TensorPlan]:
    """Plan tensors of bytes side by side."""
    plans = []
    for number, size in enumerate(sizes):
        plans.append(TensorPlan(str(number), "", "uint8", (size,), 0, start, size))
        start += size
    return plans


def plan(
    plans: list[TensorPlan], resident: bytes | None = None, most_bytes: int = 1 << 20
) -> list[tuple[int, int, str]]:
    """Plan chunks in pages of 16 bytes; return offset, size and names of each."""
    begin, size = find_span(plans, PAGE)
    chunks = plan_chunks(
        plans,
        b"\1" * (size // PAGE) if resident is None else resident,
        begin=begin,
        page_bytes=PAGE,
        most_bytes=most_bytes,
    )
    return [
        (chunk.offset, chunk.size, "".join(tensor.name for tensor in chunk.tensors))
        for chunk in chunks
    ]


# Chunks.


def test_neighbours_are_in_one_chunk() -> None:
    """It begins at the page of the first one, and ends with the page of the last one."""
    assert plan(lay_out(37, [1, 60, 7])) == [(32, 80, "012")]


def test_tensor_at_the_border_of_a_chunk_lies_whole_in_one() -> None:
    """The page at the border is in both."""
    assert plan(lay_out(0, [24, 24, 24, 24]), most_bytes=48) == [(0, 48, "01"), (48, 48, "23")]
    assert plan(lay_out(0, [24, 20, 24]), most_bytes=48) == [(0, 48, "01"), (32, 48, "2")]


def test_tensor_larger_than_a_chunk_is_read() -> None:
    """Its neighbours are mapped."""
    assert plan(lay_out(0, [16, 64, 16]), most_bytes=48) == [(0, 16, "0"), (80, 16, "2")]


def test_unaligned_neighbour_does_not_end_a_chunk() -> None:
    """It is left out of the plans, and the pages that it lies in are wrapped beside."""
    first, _, third = lay_out(0, [20, 40, 20])
    assert plan([first, third]) == [(0, 80, "02")]


def test_page_that_is_not_cached_is_in_no_chunk() -> None:
    """What lies in it is read, and so is what touches it."""
    plans = lay_out(0, [16, 24, 24, 16])
    assert plan(plans, bytes([1, 1, 0, 1, 1])) == [(0, 16, "0"), (64, 16, "3")]
    assert plan(plans, bytes(5)) == []


def test_page_between_that_is_not_cached_ends_a_chunk() -> None:
    """A tensor is there that has an obstacle, so no plan touches the page."""
    first, _, third = lay_out(0, [16, 16, 16])
    assert plan([first, third], bytes([1, 0, 1])) == [(0, 16, "0"), (32, 16, "2")]


def test_pages_that_nobody_knows_of_are_not_wrapped() -> None:
    """A list of pages that is too short says nothing about the rest."""
    assert plan(lay_out(0, [16, 16]), b"\1") == [(0, 16, "0")]


@given(
    start=st.integers(0, 100),
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=12),
    left_out=st.sets(st.integers(1, 11)),
    cached=st.lists(st.booleans(), min_size=80, max_size=80),
    most_pages=st.integers(1, 9),
)
def test_chunks_of_any_file(
    start: int, sizes: list[int], left_out: set[int], cached: list[bool], most_pages: int
) -> None:
    """Whole pages, all cached, not too many; each tensor whole in one chunk, or rightly in none."""
    plans = [each for number, each in enumerate(lay_out(start, sizes)) if number not in left_out]
    begin, size = find_span(plans, PAGE)
    resident = bytes(cached)
    chunks = plan_chunks(
        plans, resident, begin=begin, page_bytes=PAGE, most_bytes=most_pages * PAGE
    )
    found = [tensor for chunk in chunks for tensor in chunk.tensors]
    assert sorted(found, key=plans.index) == found
    assert len(set(found)) == len(found)
    for chunk in chunks:
        assert not chunk.offset % PAGE
        assert not chunk.size % PAGE
        assert 0 < chunk.size <= most_pages * PAGE
        assert begin <= chunk.offset <= chunk.offset + chunk.size <= begin + size
        first = (chunk.offset - begin) // PAGE
        assert all(resident[first : first + chunk.size // PAGE])
        for tensor in chunk.tensors:
            assert tensor.offset_bytes >= chunk.offset
            assert tensor.offset_bytes + tensor.size_bytes <= chunk.offset + chunk.size
    for tensor in set(plans) - set(found):
        offset, size = find_span([tensor], PAGE)
        first = (offset - begin) // PAGE
        assert size > most_pages * PAGE or not all(resident[first : first + size // PAGE])


# Obstacles.


@pytest.mark.parametrize("dtype", WIDTHS)
def test_tensor_maps_at_multiples_of_its_item_size(dtype: str) -> None:
    """And nowhere else."""
    for offset in range(17):
        tensor = TensorPlan("a", "a", dtype, (1,), 0, offset, WIDTHS[dtype])
        expected = None if offset % WIDTHS[dtype] == 0 else "is not aligned"
        assert find_obstacle(tensor, None) == expected


PLAIN = TensorPlan("a", "a", "float16", (2, 3), 0, 64, 12)


@pytest.mark.parametrize(
    ("tensor", "obstacle"),
    [
        (PLAIN, None),
        (replace(PLAIN, dtype="uint32"), None),
        (replace(PLAIN, dtype="float32"), "must be cast to float16"),
        (replace(PLAIN, dtype="bfloat16"), "must be cast to float16"),
        (replace(PLAIN, transpose=(1, 0)), "must be transposed"),
        (replace(PLAIN, packed_bytes=9), "is compressed"),
        (replace(PLAIN, crc32=(0, 0)), "has a checksum"),
        (replace(PLAIN, size_bytes=0, shape=(0,)), "is empty"),
    ],
)
def test_what_must_be_read(tensor: TensorPlan, obstacle: str | None) -> None:
    """The bytes in the file must be those of the array."""
    assert find_obstacle(tensor, "float16") == obstacle


def test_description_counts_and_gives_the_reasons() -> None:
    """All, some or none."""
    shifted = replace(PLAIN, offset_bytes=65)
    wide = replace(PLAIN, dtype="float32")
    assert describe_mapping([PLAIN, PLAIN], "float16") == "yes"
    assert describe_mapping([PLAIN, shifted], "float16") == (
        "1 of 2 tensors (the rest is not aligned)"
    )
    assert describe_mapping([PLAIN, shifted, wide], "float16") == (
        "1 of 3 tensors (the rest is not aligned or must be cast to float16)"
    )
    assert describe_mapping([wide], "float16") == "no (each tensor must be cast to float16)"
