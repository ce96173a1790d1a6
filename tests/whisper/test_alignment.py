"""Word alignment: mlx_whisper's path and smoothing, without numba and scipy."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_whisper.timing import dtw, median_filter

from fastwhisper.whisper.alignment import align_words, filter_median, find_path
from fastwhisper.whisper.tokenizer import read_tokenizer
from tests.helpers.tiny_models import SPEAKING

RANDOM = np.random.default_rng(0)
TOKENIZER = read_tokenizer(51864, language="en", task="transcribe")


@pytest.mark.parametrize("case", range(22))
def test_the_path_is_mlx_whispers(case: int) -> None:
    """The path is the same, with ties too: some matrices hold few values, some only one."""
    cost = RANDOM.standard_normal(RANDOM.integers(1, 40, 2)).astype(np.float32)
    if case % 3 == 0:
        cost = np.round(cost)
    if case % 7 == 0:
        cost[:] = 0
    expected = dtw(cost)
    found = find_path(cost)
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])


def test_the_path_of_a_long_window_is_mlx_whispers() -> None:
    """The path is the same for 120 tokens over 30 s."""
    cost = RANDOM.standard_normal((120, 1500)).astype(np.float32)
    for found, expected in zip(find_path(cost), dtw(cost), strict=True):
        assert np.array_equal(found, expected)


def test_a_path_stays_inside_where_nothing_is_a_number() -> None:
    """A matrix of NaN gives a path from the first to the last place that never goes back."""
    tokens, positions = find_path(np.full((3, 5), np.nan, np.float32))
    assert (tokens[0], positions[0]) == (0, 0)
    assert (tokens[-1], positions[-1]) == (2, 4)
    assert (np.diff(tokens) >= 0).all()
    assert (np.diff(positions) >= 0).all()


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 1499])
def test_the_median_is_scipys(length: int) -> None:
    """The filter mirrors the ends, and leaves rows alone that are too short for that."""
    rows = RANDOM.standard_normal((2, 5, length)).astype(np.float32)
    assert np.array_equal(filter_median(rows), median_filter(rows, 7))


class _Listening:
    """A network whose attention follows the tokens, four positions each."""

    alignment_heads = mx.array([[0, 0]])
    dims = SPEAKING

    @property
    def decoder(self) -> _Listening:
        """The part that is asked."""
        return self

    @staticmethod
    def score(tokens: mx.array, _: object) -> tuple[mx.array, list[mx.array]]:
        """Return logits and scores. Shapes (1, n, n_vocab) and (1, 1, n, 1500)."""
        length = tokens.shape[1]
        at = mx.arange(1500) // 4
        # The attention for a token is in the row of the one before it.
        scores = mx.where(at[None] == mx.arange(length)[:, None] - 1, 10.0, 0.0)
        return mx.zeros((1, length, 51864)), [scores[None, None]]


def test_words_begin_where_their_tokens_were_heard() -> None:
    """Positions are 0.02 s; the words are the text's, with their spaces."""
    tokens = TOKENIZER.encode(" one two three")
    model: Any = _Listening()
    words = align_words(model, [], TOKENIZER, tokens, frames=40)
    assert [word.word for word in words] == [" one", " two", " three"]
    assert [word.start_s for word in words] == pytest.approx([0.0, 0.08, 0.16], abs=0.021)
    assert all(one.end_s == other.start_s for one, other in itertools.pairwise(words))
    assert all(0 < word.probability < 1 for word in words)


def test_a_window_that_fills_the_context_is_aligned_as_far_as_it_goes() -> None:
    """Of 447 tokens those are aligned that fit the context beside the special tokens."""
    model: Any = _Listening()
    words = align_words(model, [], TOKENIZER, [1290] * 447, frames=3000)
    assert 0 < sum(len(word.tokens) for word in words) < 447


@pytest.mark.parametrize(("text", "frames"), [("", 3000), (" word", 1), (" word", 0)])
def test_no_words_without_text_or_audio(text: str, frames: int) -> None:
    """A window of a hundredth of a second has no position to align with."""
    model: Any = SimpleNamespace()
    tokens = TOKENIZER.encode(text)
    assert align_words(model, [], TOKENIZER, tokens, frames=frames) == []
