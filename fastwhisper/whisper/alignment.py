"""Word times: for each word, the positions of the audio that the decoder attended to.

Source:
    `timing.py` of openai/whisper; Müller 2007, chapter 4, for dynamic time warping.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import mlx.core as mx
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastwhisper.whisper.attention import KeyValues
    from fastwhisper.whisper.network import Whisper
    from fastwhisper.whisper.tokenizer import Tokenizer

    Floats: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    Integers: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[Any]]

__all__ = ["AlignedWord", "align_words", "filter_median", "find_path"]

_POSITION_S: Final = 0.02
_FRAMES_PER_POSITION: Final = 2
_MEDIAN_WIDTH: Final = 7
"""Positions that the median filter covers."""

_BOTH: Final = 0
_TOKEN: Final = 1
_POSITION: Final = 2
"""How a step of a path advances: by a token and a position, by a token, or by a position."""


@dataclass(slots=True)
class AlignedWord:
    """A word and its times.

    Attributes:
        word: The word, with the space before it.
        tokens: Its tokens.
        start_s: Start, in seconds of the window.
        end_s: End, in seconds of the window.
        probability: Mean probability of its tokens, 0 to 1.
    """

    word: str
    tokens: list[int]
    start_s: float
    end_s: float
    probability: float


def align_words(
    model: Whisper,
    audio: Sequence[KeyValues],
    tokenizer: Tokenizer,
    tokens: list[int],
    *,
    frames: int,
) -> list[AlignedWord]:
    """Find the times of each word of a window.

    Args:
        model: The network; its alignment heads are used.
        audio: The window, as `TextDecoder.read` returned it.
        tokenizer: The tokenizer that the window was decoded with.
        tokens: The text of the window, without timestamps and special tokens. Tokens that do not
            fit into the decoder's context get no words.
        frames: Mel frames of the window that are audio, 10 ms each, at most 3000.

    Returns:
        The words in order; none if there is no text or no audio.

    Source:
        `find_alignment` of openai/whisper.
    """
    positions = frames // _FRAMES_PER_POSITION
    if not tokens or not positions:
        return []
    start = [*tokenizer.sot_sequence, tokenizer.no_timestamps]
    # A window may have as many tokens as the context. The start and the end need room in it too.
    tokens = tokens[: model.dims.n_text_ctx - len(start) - 1]
    inputs = mx.array([[*start, *tokens, tokenizer.eot]])
    logits, scores = model.decoder.score(inputs, audio)
    # The logits at a token are those of the next token.
    first = len(start) - 1
    text_probs = mx.softmax(logits[0, first:-2, : tokenizer.eot], axis=-1, precise=True)
    token_probs = mx.take_along_axis(text_probs, mx.array(tokens)[:, None], axis=1)[:, 0]
    heads: list[list[int]] = model.alignment_heads.tolist()  # type: ignore[assignment]
    attention = mx.stack([scores[layer][0, head] for layer, head in heads])
    attention = mx.softmax(attention[:, :, :positions], axis=-1, precise=True).astype(mx.float32)
    mean = attention.mean(axis=-2, keepdims=True)
    spread = mx.var(attention, axis=-2, keepdims=True).sqrt()
    smooth = filter_median(np.array((attention - mean) / spread)).mean(axis=0)
    token_steps, position_steps = find_path(-smooth[first:-1])
    words = tokenizer.split_words([*tokens, tokenizer.eot])
    if len(words) <= 1:
        return []
    # A word starts at the position where the path reaches its first token.
    arrivals = np.concatenate(([True], np.diff(token_steps) != 0))
    times_s = position_steps[arrivals] / round(1 / _POSITION_S)
    bounds = np.cumsum([0, *map(len, words[:-1])])
    probabilities = np.array(token_probs)
    return [
        AlignedWord(
            word=tokenizer.decode(word),
            tokens=word,
            start_s=float(times_s[begin]),
            end_s=float(times_s[end]),
            probability=float(np.mean(probabilities[begin:end])),
        )
        for word, begin, end in zip(words[:-1], bounds[:-1], bounds[1:], strict=True)
    ]


def filter_median(rows: Floats) -> Floats:
    """Replace each element of the last axis by the median of the seven elements around it.

    Args:
        rows: Shape (..., n), float32. It is mirrored at its ends.

    Returns:
        Shape (..., n), float32; `rows` itself for n up to 3.
    """
    half = _MEDIAN_WIDTH // 2
    if rows.shape[-1] <= half:
        return rows
    padding = [(0, 0)] * (rows.ndim - 1) + [(half, half)]
    padded = np.pad(rows, padding, mode="reflect")
    around = np.lib.stride_tricks.sliding_window_view(padded, _MEDIAN_WIDTH, axis=-1)
    median: Floats = np.partition(around, half, axis=-1)[..., half]
    return median


def find_path(cost: Floats) -> tuple[Integers, Integers]:
    """Find the path of lowest cost through a matrix, from the first to the last cell.

    This is dynamic time warping: each step of the path advances. The cells of one diagonal (token +
    position) are independent, so a diagonal is computed at once. The arrays of a diagonal are
    indexed by the token.

    Args:
        cost: Shape (tokens, positions), float32.

    Returns:
        The token and the position of each step of the path. Two arrays of shape (steps,), int64.
    """
    n_tokens, n_positions = cost.shape
    # Row d of the skewed matrix holds the cells of diagonal d, at their tokens.
    skewed = np.zeros((n_tokens + n_positions, n_tokens), np.float32)
    tokens = np.arange(n_tokens)[:, None]
    skewed[tokens + np.arange(n_positions), tokens] = cost
    moves = np.empty((n_tokens + n_positions, n_tokens), np.int8)
    infinite = np.full(n_tokens + 1, np.inf, np.float32)
    # Lowest costs of the last two diagonals. Index 0 is the edge before the first token.
    last, last_but_one = infinite.copy(), infinite.copy()
    last_but_one[0] = 0
    for diagonal in range(n_tokens + n_positions - 1):
        begin, end = max(0, diagonal - n_positions + 1), min(n_tokens, diagonal + 1)
        both = last_but_one[begin:end]
        by_token = last[begin:end]
        by_position = last[begin + 1 : end + 1]
        is_both = (both < by_token) & (both < by_position)
        is_token = (by_token < both) & (by_token < by_position)
        moves[diagonal, begin:end] = np.where(is_both, _BOTH, np.where(is_token, _TOKEN, _POSITION))
        total = infinite.copy()
        total[begin + 1 : end + 1] = skewed[diagonal, begin:end] + np.where(
            is_both, both, np.where(is_token, by_token, by_position)
        )
        last_but_one, last = last, total
    return _trace(moves, n_tokens, n_positions)


def _trace(moves: Integers, n_tokens: int, n_positions: int) -> tuple[Integers, Integers]:
    """Return the path from the first to the last cell, found backwards by the move to each cell."""
    token, position = n_tokens - 1, n_positions - 1
    steps = [(token, position)]
    while token > 0 or position > 0:
        if token == 0:
            move = _POSITION
        elif position == 0:
            move = _TOKEN
        else:
            move = int(moves[token + position, token])
        token -= move != _POSITION
        position -= move != _TOKEN
        steps.append((token, position))
    path = np.array(steps[::-1])
    return path[:, 0], path[:, 1]
