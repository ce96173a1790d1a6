"""The rules that say which token may come next, and the choice of that token.

Everything is an array with a row for each text, so that a device can go on without waiting for
Python.

Source:
    Radford et al. 2022, section 4.5; `decoding.py` of openai/whisper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import mlx.core as mx
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastwhisper.values import Dimensions
    from fastwhisper.whisper.options import DecodeSettings
    from fastwhisper.whisper.tokenizer import Tokenizer

__all__ = ["Rules", "State"]

_WINDOW_S: Final = 30


class State(NamedTuple):
    """The tokens of each row, as far as the rules need them. Arrays of shape (rows,).

    Attributes:
        before: The last token but one. int32.
        last: The last token. int32.
        latest_time: The last timestamp token. int32.
    """

    before: mx.array
    last: mx.array
    latest_time: mx.array


class Rules:
    """The rules of one network, tokenizer and settings."""

    def __init__(self, tokenizer: Tokenizer, settings: DecodeSettings, dims: Dimensions) -> None:
        n_vocab = dims.n_vocab
        self._tokenizer = tokenizer
        self._has_times = not settings.without_timestamps
        begin = tokenizer.timestamp_begin
        # Made in NumPy: a GPU would load a kernel for each of these operations, 70 ms in all.
        never = np.zeros(n_vocab, np.bool_)
        never[_find_suppressed(tokenizer, settings)] = True
        at_start = np.zeros(n_vocab, np.bool_)
        if settings.suppress_blank:
            at_start[[*tokenizer.encode(" "), tokenizer.eot]] = True
        if not self._has_times:
            never[begin:] = True
        else:
            never[tokenizer.no_timestamps] = True
            at_start[:begin] = True
            if settings.max_initial_timestamp:
                step_s = _WINDOW_S / dims.n_audio_ctx
                at_start[begin + round(settings.max_initial_timestamp / step_s) + 1 :] = True
        # The end of the text is always allowed, unless the options suppress it too.
        self._may_be_stuck = never[tokenizer.eot] or (never | at_start).all()
        self._ids = mx.array(np.arange(n_vocab, dtype=np.int32))
        self._is_text = mx.array(np.arange(n_vocab) < begin)
        self._never = mx.array(never)
        self._never_at_start = mx.array(never | at_start)

    def start(self, rows: int, known: Sequence[int] = ()) -> State:
        """Return the state of rows that begin with a time and text, or without a token."""
        if known:
            latest = max(known)
            return State(*(mx.full((rows,), n, mx.int32) for n in (known[-2], known[-1], latest)))
        # As if a pair of times came before: the first time is not the end of a segment.
        time = mx.full((rows,), self._tokenizer.timestamp_begin, mx.int32)
        return State(time, time, time - 1)

    def choose(self, logits: mx.array, state: State, *, is_first: bool) -> tuple[State, mx.array]:
        """Choose the likeliest token of each row.

        Args:
            logits: Shape (rows, n_vocab), of the network's dtype.
            state: The state before.
            is_first: Whether this is the first token.

        Returns:
            The new state, and the natural log-probability of each token: shape (rows,), float32.
        """
        logits = self.apply(logits, state, is_first=is_first)
        return self._follow(state, logits, mx.argmax(logits, axis=-1))

    def sample(
        self,
        logits: mx.array,
        state: State,
        temperature: float,
        gumbel: mx.array,
        *,
        is_first: bool,
    ) -> tuple[State, mx.array]:
        """Draw a token of each row.

        Args:
            logits: Shape (rows, n_vocab), of the network's dtype.
            state: The state before.
            temperature: Above 0.
            gumbel: Noise of the standard Gumbel distribution. Shape (rows, n_vocab), float32.
            is_first: Whether this is the first token.

        Returns:
            As `choose`.

        Source:
            Maddison et al. 2014: the largest of logits with Gumbel noise is a sample.
        """
        logits = self.apply(logits, state, is_first=is_first)
        chosen = mx.argmax(logits / temperature + gumbel, axis=-1)
        return self._follow(state, logits, chosen)

    @staticmethod
    def _follow(state: State, logits: mx.array, chosen: mx.array) -> tuple[State, mx.array]:
        """Return the state after the chosen tokens, and their log-probabilities."""
        logprobs = mx.take_along_axis(logits, chosen[:, None], axis=-1)[:, 0]
        logprobs = logprobs - mx.logsumexp(logits, axis=-1)
        chosen = chosen.astype(mx.int32)
        # Times never go back, and tokens of text are lower than all of them.
        return State(state.last, chosen, mx.maximum(state.latest_time, chosen)), logprobs

    def apply(self, logits: mx.array, state: State, *, is_first: bool) -> mx.array:
        """Set the logits of forbidden tokens to minus infinity.

        Args:
            logits: Shape (rows, n_vocab), of the network's dtype.
            state: The tokens so far.
            is_first: Whether this is the first token.

        Returns:
            Shape (rows, n_vocab), float32.
        """
        banned = self._never_at_start if is_first else self._never
        if self._has_times and not is_first:
            banned = banned | self._break_pairs(state)
        logits = mx.where(banned, -mx.inf, logits.astype(mx.float32))
        if self._has_times:
            # If all times together are likelier than each token of text, it must be a time.
            begin = self._tokenizer.timestamp_begin
            time = mx.logsumexp(logits[:, begin:], axis=-1, keepdims=True)
            text = logits[:, :begin].max(axis=-1, keepdims=True)
            logits = mx.where(self._is_text & (time > text), -mx.inf, logits)
        if self._may_be_stuck:
            # If the options suppress all tokens that are allowed, the text ends.
            nothing = logits.max(axis=-1, keepdims=True) == -mx.inf
            logits = mx.where(nothing & (self._ids == self._tokenizer.eot), 0.0, logits)
        return logits

    def _break_pairs(self, state: State) -> mx.array:
        """Return which tokens would break a pair of times or go back. Shape (rows, n_vocab)."""
        begin, end = self._tokenizer.timestamp_begin, self._ids.size
        is_time, was_time = state.last >= begin, state.before >= begin
        # Times come in pairs: an end, then a start. Only the first one, and one directly before
        # the end of the text, are alone. After an end comes a start or the end of the text.
        first_text = mx.where(is_time > was_time, self._tokenizer.eot, 0)
        # After a start comes text. A segment must end after its start.
        earliest = mx.where(is_time, state.latest_time, state.latest_time + 1)
        first_time = mx.where(is_time & was_time, end, earliest)
        return self._ids < mx.where(self._is_text, first_text[:, None], first_time[:, None])


def _find_suppressed(tokenizer: Tokenizer, settings: DecodeSettings) -> list[int]:
    """Return the tokens that the settings never allow."""
    listed = settings.suppress_tokens
    if not listed:
        return []
    found = {token for token in listed if token >= 0}
    if -1 in listed:
        found.update(tokenizer.non_speech_tokens)
    names = ("transcribe", "translate", "startoftranscript", "startofprev", "startoflm")
    found.update(tokenizer.special_tokens[name] for name in (*names, "nospeech"))
    return sorted(found)
