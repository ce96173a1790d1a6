"""Decoding one window: the rules that tokens follow, the ladder of temperatures, random keys."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
import pytest

from fastwhisper.whisper import decoding
from fastwhisper.whisper.decoding import DecodedWindow, Decoder
from fastwhisper.whisper.options import DecodeSettings
from fastwhisper.whisper.rules import Rules, State
from fastwhisper.whisper.tokenizer import read_tokenizer
from tests.helpers.reference import import_reference
from tests.helpers.tiny_models import SPEAKING

if TYPE_CHECKING:
    from collections.abc import Sequence

TOKENIZER = read_tokenizer(SPEAKING.n_vocab, language="en", task="transcribe")
BEGIN = TOKENIZER.timestamp_begin
EOT = TOKENIZER.eot
WORD = 400


def follow(rules: Rules, sequence: Sequence[int]) -> State:
    """Return the state after a sequence of tokens that some other rules may have chosen."""
    state = rules.start(1)
    for token in sequence:
        chosen = mx.array([token], mx.int32)
        latest = chosen if token >= BEGIN else state.latest_time
        state = State(state.last, chosen, latest)
    return state


def allowed(sequence: Sequence[int], logits: np.ndarray | None = None, **options: Any) -> set[int]:
    """Return the tokens that may follow a sequence. Logits are of shape (n_vocab,)."""
    if logits is None:
        logits = np.zeros(SPEAKING.n_vocab, np.float32)
        logits[EOT] = 50  # so that no time is demanded because all of them together are likely
    rules = Rules(TOKENIZER, DecodeSettings.from_options(**options), SPEAKING)
    found = rules.apply(mx.array(logits)[None], follow(rules, sequence), is_first=not sequence)
    return set(np.flatnonzero(np.isfinite(np.array(found)[0])).tolist())


def test_a_window_begins_with_a_time() -> None:
    """The first token is a time of the first second, unless an option says otherwise."""
    assert allowed([]) == set(range(BEGIN, BEGIN + 51))
    assert allowed([], max_initial_timestamp=None) == set(range(BEGIN, SPEAKING.n_vocab))
    assert allowed([], max_initial_timestamp=0.1) == set(range(BEGIN, BEGIN + 6))


def test_known_text_counts_as_decoded() -> None:
    """The rules go on as if its tokens had been chosen."""
    rules = Rules(TOKENIZER, DecodeSettings(), SPEAKING)
    for known in ([BEGIN + 3, WORD], [BEGIN, WORD, BEGIN + 9, BEGIN + 9, WORD, WORD]):
        found, expected = rules.start(2, known), follow(rules, known)
        assert [part.tolist() for part in found] == [part.tolist() * 2 for part in expected]


def test_times_never_go_back() -> None:
    """After 8.00 s only later times may end the segment."""
    found = allowed([BEGIN, WORD, BEGIN + 400, BEGIN + 400, WORD])
    assert {token for token in found if token >= BEGIN} == set(range(BEGIN + 401, SPEAKING.n_vocab))


def test_a_segment_is_never_empty() -> None:
    """The time that ends it is later than the one it begins with."""
    assert BEGIN + 7 not in allowed([BEGIN + 7, WORD])
    assert BEGIN + 8 in allowed([BEGIN + 7, WORD])


def test_the_next_segment_may_begin_where_the_last_ended() -> None:
    """After the time that ends a segment comes one that is no earlier, or the end."""
    found = allowed([BEGIN, WORD, BEGIN + 400])
    assert EOT in found
    assert not {token for token in found if token < EOT}
    assert {token for token in found if token >= BEGIN} == set(range(BEGIN + 400, SPEAKING.n_vocab))


def test_text_follows_two_times() -> None:
    """After two times in a row comes text or the end, but no third time."""
    found = allowed([BEGIN, WORD, BEGIN + 400, BEGIN + 400])
    assert WORD in found
    assert EOT in found
    assert not {token for token in found if token >= BEGIN}


def test_only_text_after_the_last_time() -> None:
    """At 30.00 s there is no later time: the segment ends with the text."""
    found = allowed([BEGIN, WORD, BEGIN + 1500, BEGIN + 1500, WORD])
    assert EOT in found
    assert not {token for token in found if token >= BEGIN}


def test_a_time_is_demanded_where_times_are_likelier_than_text() -> None:
    """If the allowed times together are likelier than any word, only times may follow."""
    logits = np.zeros(SPEAKING.n_vocab, np.float32)
    logits[WORD] = 2.0  # less than the logarithm of 1,500 times of logit 0
    assert min(allowed([BEGIN, WORD], logits)) == BEGIN + 1
    after = allowed([BEGIN, WORD, BEGIN + 1500, BEGIN + 1500, WORD], logits)
    assert WORD in after


@pytest.mark.parametrize("sequence", [[], [WORD]])
def test_no_time_is_sampled_where_none_is_asked_for(sequence: list[int]) -> None:
    """Without timestamps no time is allowed, neither first nor later."""
    found = allowed(sequence, without_timestamps=True)
    assert WORD in found
    assert not {token for token in found if token >= BEGIN}


@pytest.mark.parametrize("sequence", [[], [BEGIN], [BEGIN, WORD], [BEGIN, WORD, BEGIN + 9]])
def test_something_is_always_allowed(sequence: list[int]) -> None:
    """If all else is suppressed, only the end of the text may follow."""
    everything = list(range(SPEAKING.n_vocab))
    assert allowed(sequence, suppress_tokens=everything) == {EOT}
    assert allowed(sequence, suppress_tokens=everything, without_timestamps=True) == {EOT}


def test_rules_are_openais() -> None:
    """For any logits and sequence of times and words, OpenAI's code allows the same tokens."""
    import_reference()
    theirs = sys.modules["mlx_whisper_reference.decoding"]
    tokenizer = sys.modules["mlx_whisper_reference.tokenizer"].get_tokenizer(multilingual=False)
    rule = theirs.ApplyTimestampRules(tokenizer, 0, 50)
    settings = DecodeSettings.from_options(suppress_tokens=None, suppress_blank=False)
    ours = Rules(TOKENIZER, settings, SPEAKING)
    random = np.random.default_rng(5)
    for _ in range(150):
        length = int(random.integers(0, 7))
        sequence = [
            int(random.integers(BEGIN, SPEAKING.n_vocab)) if random.random() < 0.5 else WORD
            for _ in range(length)
        ]
        logits = mx.array(random.normal(0, 3, (1, SPEAKING.n_vocab)).astype(np.float32))
        found = ours.apply(logits, follow(ours, sequence), is_first=not sequence)
        expected = rule.apply(logits, mx.array([sequence], mx.int32).reshape(1, length))
        if bool(mx.all(expected == -mx.inf)):
            continue  # a sequence that the rules do not lead to
        assert mx.array_equal(found, expected).item(), sequence


LOOP = DecodedWindow([], -0.1, no_speech_prob=0.9, compression_ratio=38.4, temperature=0)


@pytest.mark.parametrize(
    ("decoded", "again"),
    [
        (LOOP, True),
        (replace(LOOP, compression_ratio=1.0), False),
        (replace(LOOP, compression_ratio=1.0, avg_logprob=-2.0), False),
        (replace(LOOP, avg_logprob=-2.0), False),
        (replace(LOOP, avg_logprob=-2.0, no_speech_prob=0.1), True),
        (replace(LOOP, compression_ratio=1.0, avg_logprob=-2.0, no_speech_prob=0.1), True),
    ],
)
def test_the_ladder_takes_no_loop_for_silence(decoded: DecodedWindow, *, again: bool) -> None:
    """A window that loops counts as silence only if the network is uncertain, as in OpenAI's."""
    assert decoding._needs_fallback(decoded, DecodeSettings()) is again


@pytest.mark.parametrize("option", ["no_speech_threshold", "logprob_threshold"])
def test_without_a_threshold_nothing_is_silence(option: str) -> None:
    """Without one of the thresholds a window that loops is decoded again."""
    settings = DecodeSettings.from_options(**dict[str, Any]({option: None}))
    assert decoding._needs_fallback(replace(LOOP, avg_logprob=-2.0), settings)


AUDIO = [(mx.zeros((1, 1, 1, 1)), mx.zeros((1, 1, 1, 1)))]
"""Keys and values of a window that nobody looks at."""


class _Even:
    """A decoder whose logits are the same for every token of text."""

    step = staticmethod(lambda tokens, _: mx.zeros((*tokens.shape, 1)))
    project = staticmethod(lambda x: mx.zeros((*x.shape[:-1], SPEAKING.n_vocab)))


def test_tokens_of_one_window_are_drawn_independently() -> None:
    """From even probabilities hardly two equal tokens are drawn; one key would give one token."""
    settings = DecodeSettings.from_options(temperature=1.0, without_timestamps=True, sample_len=40)
    model: Any = SimpleNamespace(dims=SPEAKING, decoder=_Even)
    decoder = Decoder(model, TOKENIZER, settings, check=lambda: None)
    [decoded] = decoder.decode(AUDIO, [()], [mx.random.key(0)])
    assert len(set(decoded.tokens)) > 35


def test_a_long_prefix_shortens_the_text_before() -> None:
    """The end of the text before is kept, as far as it has room with the prefix."""
    model: Any = SimpleNamespace(dims=SPEAKING, decoder=_Even)
    start = len(TOKENIZER.sot_sequence)
    half = SPEAKING.n_text_ctx // 2
    prompt = list(range(half - 1))
    for length, kept in [(1, half - 1), (half - start, half - 1), (half - start + 5, half - 6)]:
        settings = DecodeSettings.from_options(prefix=[WORD] * length, temperature=0)
        decoder = Decoder(model, TOKENIZER, settings, check=lambda: None)
        before, tokens = decoder._first_tokens(prompt)
        assert tokens[:before] == [TOKENIZER.sot_prev, *prompt[-kept:]]
        assert tokens[before:] == [*TOKENIZER.sot_sequence, *[WORD] * length]
    for length in (SPEAKING.n_text_ctx - start - 1, SPEAKING.n_text_ctx - start):
        settings = DecodeSettings.from_options(prefix=[WORD] * length, temperature=0)
        decoder = Decoder(model, TOKENIZER, settings, check=lambda: None)
        assert decoder._first_tokens(prompt)[0] == 0
        decoder.decode(AUDIO, [prompt], [mx.random.key(0)])


def test_a_sample_without_text_ranks_last() -> None:
    """Its log-probability has no length to be divided by."""
    settings = DecodeSettings()
    assert decoding._rank(-0.1, 0, settings) < decoding._rank(-50.0, 3, settings)
