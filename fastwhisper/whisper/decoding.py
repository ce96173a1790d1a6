"""One encoded window -> tokens: the sampling loop, and the rules of timestamps and text.

Tokens are Python lists and only logits are arrays, so each step waits for its token. This is the
plain form, and the reference for every faster form.

Source:
    Radford et al. 2022, section 4.5; `decoding.py` of openai/whisper.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import mlx.core as mx

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastwhisper.whisper.network import Whisper
    from fastwhisper.whisper.options import DecodeSettings
    from fastwhisper.whisper.tokenizer import Tokenizer

__all__ = ["DecodedWindow", "decode_window", "detect_language"]

_WINDOW_S: Final = 30


@dataclass(frozen=True, slots=True)
class DecodedWindow:
    """The tokens of one window, and how certain the network is.

    Attributes:
        tokens: Text and timestamps, without the prompt and the end.
        avg_logprob: Mean natural log-probability of the tokens and the end.
        no_speech_prob: Probability that nobody speaks, 0 to 1.
        compression_ratio: Bytes of the text divided by bytes of its zlib form. It is high where
            the text repeats itself.
        temperature: The temperature that the tokens were sampled at.
    """

    tokens: list[int]
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    temperature: float


def decode_window(
    model: Whisper,
    features: mx.array,
    tokenizer: Tokenizer,
    settings: DecodeSettings,
    *,
    prompt: Sequence[int],
    key: mx.array,
    check: Callable[[], None],
) -> DecodedWindow:
    """Decode a window at rising temperatures, until a result passes the thresholds.

    Args:
        model: The network.
        features: The encoded window. Shape (1500, state), float16 or float32.
        tokenizer: The network's tokenizer, for the language and task.
        settings: How to decode.
        prompt: Tokens of the text before the window.
        key: The window's random key, for temperatures above 0. Each temperature and each token has
            a key that is split from it. Shape (2,), uint32.
        check: Called before each token; may raise to cancel.

    Returns:
        The first result that passes, or the last one.

    Source:
        Radford et al. 2022, section 4.5.
    """
    keys = mx.random.split(key, len(settings.temperature))
    for temperature, noise in zip(settings.temperature, keys, strict=True):
        decoded = _decode_at(
            model, features, tokenizer, settings, temperature,
            prompt=prompt, noise=noise, check=check,
        )  # fmt: skip
        if not _needs_fallback(decoded, settings):
            break
    return decoded


def detect_language(model: Whisper, features: mx.array, tokenizer: Tokenizer) -> dict[str, float]:
    """Compute the probability of each language for an encoded window.

    Args:
        model: A multilingual network.
        features: The encoded window. Shape (1500, state), float16 or float32.
        tokenizer: The network's tokenizer.

    Returns:
        The probability, 0 to 1, of each language that the network knows, by its code.

    Source:
        Radford et al. 2022, section 2.3.
    """
    start = mx.array([[tokenizer.sot]])
    logits = model.decoder(start, features[None])[0][0, 0].astype(mx.float32)
    tokens = mx.array(list(tokenizer.language_tokens.values()))
    probabilities: list[float] = mx.softmax(logits[tokens]).tolist()  # type: ignore[assignment]
    return dict(zip(tokenizer.language_tokens, probabilities, strict=True))


def _decode_at(
    model: Whisper,
    features: mx.array,
    tokenizer: Tokenizer,
    settings: DecodeSettings,
    temperature: float,
    *,
    prompt: Sequence[int],
    noise: mx.array,
    check: Callable[[], None],
) -> DecodedWindow:
    """Decode a window once; above temperature 0 choose the best of several samples."""
    context = model.dims.n_text_ctx
    before, start = _first_tokens(tokenizer, settings, prompt, context)
    first = [*before, *start]
    samples = (settings.best_of or 1) if temperature > 0 else 1
    rules = _Rules(tokenizer, settings, model)
    eot = tokenizer.eot
    sampled: list[list[int]] = [[] for _ in range(samples)]
    sum_logprobs = mx.zeros(samples)
    no_speech_prob = 0.0
    tokens = mx.array([first] * samples)
    cache = None
    for step in range(settings.sample_len or context // 2):
        if len(first) + step > context and step:
            break
        check()
        # The samples share one window, whose keys and values are computed once.
        logits, cache, _ = model.decoder(tokens, features[None], cache)
        logits = logits.astype(mx.float32)
        if step == 0:
            at_start = mx.softmax(logits[0, len(before)])
            no_speech_prob = at_start[tokenizer.no_speech].item()  # type: ignore[assignment]
        logits = rules.apply(logits[:, -1], sampled)
        if temperature == 0:
            chosen = mx.argmax(logits, axis=-1)
        else:
            noise, key = mx.random.split(noise)
            chosen = mx.random.categorical(logits / temperature, key=key)
        logprobs = mx.take_along_axis(logits, chosen[:, None], axis=-1)[:, 0]
        logprobs = logprobs - mx.logsumexp(logits, axis=-1)
        ended = mx.array([sequence[-1:] == [eot] for sequence in sampled])
        sum_logprobs = sum_logprobs + mx.where(ended, 0.0, logprobs)
        chosen = mx.where(ended, eot, chosen)
        found: list[int] = chosen.tolist()  # type: ignore[assignment]
        for sequence, token in zip(sampled, found, strict=True):
            sequence.append(token)
        if all(sequence[-1] == eot for sequence in sampled):
            break
        tokens = chosen[:, None]
    texts = [s[: s.index(eot)] if eot in s else s for s in sampled]
    sums: list[float] = sum_logprobs.tolist()  # type: ignore[assignment]
    best = max(range(samples), key=lambda n: _rank(sums[n], len(texts[n]), settings))
    return DecodedWindow(
        tokens=texts[best],
        avg_logprob=sums[best] / (len(texts[best]) + 1),
        no_speech_prob=no_speech_prob,
        compression_ratio=_compression_ratio(tokenizer.decode(texts[best]).strip()),
        temperature=temperature,
    )


def _first_tokens(
    tokenizer: Tokenizer, settings: DecodeSettings, prompt: Sequence[int], context: int
) -> tuple[list[int], list[int]]:
    """Return the decoder's first tokens: those of the text before, and the transcript's start."""
    start = list(tokenizer.sot_sequence)
    if settings.without_timestamps:
        start.append(tokenizer.no_timestamps)
    if settings.prefix:
        prefix = settings.prefix
        if isinstance(prefix, str):
            prefix = tuple(tokenizer.encode(" " + prefix.strip()))
        # With `sample_len`, the last (context // 2 - sample_len) tokens of the prefix are kept.
        # Without it, `room` is 0, and `prefix[-0:]` is the whole prefix, as in OpenAI's code.
        room = context // 2 - (settings.sample_len or context // 2)
        start += prefix[-room:]
    before = [tokenizer.sot_prev, *prompt[-(context // 2 - 1) :]] if prompt else []
    return before, start


def _needs_fallback(decoded: DecodedWindow, settings: DecodeSettings) -> bool:
    """Return whether a window must be decoded again at the next temperature."""
    is_repetitive = (
        settings.compression_ratio_threshold is not None
        and decoded.compression_ratio > settings.compression_ratio_threshold
    )
    is_uncertain = (
        settings.logprob_threshold is not None and decoded.avg_logprob < settings.logprob_threshold
    )
    # A silent window is uncertain. A repetition may look silent, but the network is certain of it.
    is_silence = (
        is_uncertain
        and settings.no_speech_threshold is not None
        and decoded.no_speech_prob > settings.no_speech_threshold
    )
    return (is_repetitive or is_uncertain) and not is_silence


def _rank(sum_logprob: float, length: int, settings: DecodeSettings) -> float:
    """Return the rank of a sample: its log-probability for its length; the highest is best.

    Source:
        Wu et al. 2016, section 7.
    """
    if settings.length_penalty is not None:
        return sum_logprob / math.pow((5 + length) / 6, settings.length_penalty)
    return sum_logprob / length if length else -math.inf


def _compression_ratio(text: str) -> float:
    """Return the bytes of a text divided by the bytes of its zlib form."""
    utf8 = text.encode()
    return len(utf8) / len(zlib.compress(utf8))


class _Rules:
    """The rules that say which tokens may come next."""

    def __init__(self, tokenizer: Tokenizer, settings: DecodeSettings, model: Whisper) -> None:
        n_vocab = model.dims.n_vocab
        self._tokenizer = tokenizer
        self._ids = mx.arange(n_vocab)
        self._has_times = not settings.without_timestamps
        never = _find_suppressed(tokenizer, settings)
        if self._has_times:
            never.append(tokenizer.no_timestamps)
        else:
            never += range(tokenizer.timestamp_begin, n_vocab)
        at_start = [*tokenizer.encode(" "), tokenizer.eot] if settings.suppress_blank else []
        self._never = _build_mask(n_vocab, never)
        self._never_at_start = _build_mask(n_vocab, [*never, *at_start])
        self._latest_start = n_vocab
        if settings.max_initial_timestamp:
            step_s = _WINDOW_S / model.dims.n_audio_ctx
            steps = round(settings.max_initial_timestamp / step_s)
            self._latest_start = tokenizer.timestamp_begin + steps

    def apply(self, logits: mx.array, sampled: Sequence[Sequence[int]]) -> mx.array:
        """Set the logits of forbidden tokens to minus infinity.

        Args:
            logits: Shape (samples, n_vocab), float32.
            sampled: The tokens of each sample so far, all of the same length.

        Returns:
            Shape (samples, n_vocab), float32.
        """
        banned = self._never if sampled[0] else self._never_at_start
        logits = mx.where(banned, -mx.inf, logits)
        if self._has_times:
            logits = self._apply_times(logits, sampled)
        # If the options suppress all tokens that are allowed, the text ends.
        nothing = logits.max(axis=-1, keepdims=True) == -mx.inf
        return mx.where(nothing & (self._ids == self._tokenizer.eot), 0.0, logits)

    def _apply_times(self, logits: mx.array, sampled: Sequence[Sequence[int]]) -> mx.array:
        """Forbid timestamps that break a pair or go back, and text if a time is likelier."""
        ids, begin = self._ids, self._tokenizer.timestamp_begin
        bounds = mx.array([self._bounds(sequence) for sequence in sampled])
        first_text, first_time, last_time = (bounds[:, n : n + 1] for n in range(3))
        is_text = ids < begin
        banned = mx.where(is_text, ids < first_text, (ids < first_time) | (ids > last_time))
        logits = mx.where(banned, -mx.inf, logits)
        # If all timestamps together are likelier than each token of text, it must be a timestamp.
        time = mx.logsumexp(logits[:, begin:], axis=-1, keepdims=True)
        text = logits[:, :begin].max(axis=-1, keepdims=True)
        return mx.where(is_text & (time > text), -mx.inf, logits)

    def _bounds(self, sequence: Sequence[int]) -> tuple[int, int, int]:
        """Return the bounds of the next token: first text token, first and last timestamp."""
        begin, end = self._tokenizer.timestamp_begin, self._ids.size
        if not sequence:
            return begin, begin, self._latest_start
        if sequence[-1] < begin:
            # A segment must end after its start.
            latest = next((token for token in reversed(sequence) if token >= begin), begin - 1)
            return 0, latest + 1, end
        # Timestamps come in pairs: an end, then a start. Only the first one, and one directly
        # before the end of the text, are alone.
        if len(sequence) == 1 or sequence[-2] >= begin:
            return 0, end, end
        return self._tokenizer.eot, sequence[-1], end


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


def _build_mask(n_vocab: int, tokens: Sequence[int]) -> mx.array:
    """Return an array that is true at the given tokens. Shape (n_vocab,), bool."""
    mask = mx.zeros(n_vocab, mx.bool_)
    if tokens:
        mask[mx.array(list(tokens))] = True
    return mask
