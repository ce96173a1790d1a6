"""Windows -> tokens: the sampling loop and the ladder of temperatures.

Several windows are decoded together, as rows of one batch. A window's text depends on no other row.
The rules are arrays like the logits, so a step need not wait for the token of the step before: it
is issued first, and then that token is read.

Source:
    Radford et al. 2022, section 4.5; `decoding.py` of openai/whisper.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import mlx.core as mx

from fastwhisper.whisper.attention import DecoderCache, take_windows
from fastwhisper.whisper.rules import Rules
from fastwhisper.whisper.start import build_start

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastwhisper.whisper.attention import KeyValues
    from fastwhisper.whisper.network import Whisper
    from fastwhisper.whisper.options import DecodeSettings
    from fastwhisper.whisper.tokenizer import Tokenizer

__all__ = ["DecodedWindow", "Decoder", "detect_language", "is_silence"]


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


def detect_language(
    model: Whisper, audio: Sequence[KeyValues], tokenizer: Tokenizer
) -> dict[str, float]:
    """Compute the probability of each language for a window.

    Args:
        model: A multilingual network.
        audio: The window, as `TextDecoder.read` returned it.
        tokenizer: The network's tokenizer.

    Returns:
        The probability, 0 to 1, of each language that the network knows, by its code.

    Source:
        Radford et al. 2022, section 2.3.
    """
    start = mx.array([[tokenizer.sot]])
    logits = model.decoder.score(start, audio)[0][0, 0].astype(mx.float32)
    tokens = mx.array(list(tokenizer.language_tokens.values()))
    probabilities: list[float] = mx.softmax(logits[tokens]).tolist()  # type: ignore[assignment]
    return dict(zip(tokenizer.language_tokens, probabilities, strict=True))


@dataclass(slots=True)
class _Text:
    """What is sampled for one row: tokens without the end, and the sum of log-probabilities."""

    tokens: list[int] = field(default_factory=list)
    total: float = 0.0
    has_ended: bool = False


class Decoder:
    """The decoder of encoded windows, with the settings that all of them share.

    One thread uses it at a time.
    """

    def __init__(
        self,
        model: Whisper,
        tokenizer: Tokenizer,
        settings: DecodeSettings,
        *,
        check: Callable[[], None],
    ) -> None:
        """Set up the rules.

        Args:
            model: The network.
            tokenizer: The network's tokenizer, for the language and task.
            settings: How to decode.
            check: Called before each token; may raise to cancel.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._settings = settings
        self._check = check
        self._rules = Rules(tokenizer, settings, model.dims)
        self._start = build_start(tokenizer, settings, n_text_ctx=model.dims.n_text_ctx)

    def decode(
        self,
        audio: Sequence[KeyValues],
        prompts: Sequence[Sequence[int]],
        keys: Sequence[mx.array],
        *,
        known: Sequence[int] = (),
        max_tokens: int | None = None,
    ) -> list[DecodedWindow]:
        """Decode each window at rising temperatures, until its result passes the thresholds.

        Args:
            audio: The windows, as `TextDecoder.read` returned them.
            prompts: For each window, the tokens of the text before it.
            keys: For each window its random key, for temperatures above 0. Each temperature and
                each token has a key that is split from it. Shape (2,), uint32.
            known: A time and text that every transcript begins with. The results go on from there,
                and do not hold it.
            max_tokens: Most tokens of a result; None means what the settings say.

        Returns:
            For each window the first result that passes, or the last one.

        Source:
            Radford et al. 2022, section 4.5.
        """
        temperatures = self._settings.temperature
        noise = [mx.random.split(key, len(temperatures)) for key in keys]
        first = [self._first_tokens(prompt, known) for prompt in prompts]
        lengths = sorted({len(tokens) for _, tokens in first})
        decoded: dict[int, DecodedWindow] = {}
        waiting = list(range(len(prompts)))
        for index, temperature in enumerate(temperatures):
            # The rows of one batch begin with equally many tokens.
            for length in lengths:
                rows = [n for n in waiting if len(first[n][1]) == length]
                if not rows:
                    continue
                found = self._decode_at(
                    temperature,
                    take_windows(audio, rows),
                    [first[n] for n in rows],
                    [noise[n][index] for n in rows],
                    known=known,
                    max_tokens=max_tokens,
                )
                decoded.update(zip(rows, found, strict=True))
            waiting = [n for n in waiting if _needs_fallback(decoded[n], self._settings)]
        return [decoded[n] for n in range(len(prompts))]

    def _decode_at(
        self,
        temperature: float,
        audio: Sequence[KeyValues],
        first: Sequence[tuple[int, list[int]]],
        noise: list[mx.array],
        *,
        known: Sequence[int],
        max_tokens: int | None,
    ) -> list[DecodedWindow]:
        """Decode windows once; above temperature 0 choose the best of several samples of each."""
        network, rules = self._model.decoder, self._rules
        context = self._model.dims.n_text_ctx
        samples = (self._settings.best_of or 1) if temperature > 0 else 1
        length = len(first[0][1])
        # The last token need not fit into the context: no token follows it.
        steps = min(self._settings.sample_len or context // 2, max(context - length, 0) + 1)
        if max_tokens is not None:
            steps = min(steps, max_tokens)

        self._check()
        cache = DecoderCache(audio, min(length + steps, context))
        x = network.step(mx.array([tokens for _, tokens in first]), cache)
        starts = mx.array([start for start, _ in first])
        at_start = network.project(x[mx.arange(len(first)), starts]).astype(mx.float32)
        silence = mx.softmax(at_start, axis=-1)[:, self._tokenizer.no_speech]
        x = x[:, -1:]
        if samples > 1:
            x = mx.repeat(x, samples, axis=0)
            cache.repeat(samples)

        state = rules.start(len(x), known)
        texts = [_Text() for _ in range(len(x))]
        issued: tuple[mx.array, mx.array] | None = None
        for step in range(steps):
            if step:
                self._check()
                x = network.step(state.last[:, None], cache)
            is_first = not step and not known
            logits = network.project(x)[:, 0]
            if temperature > 0:
                pairs = [mx.random.split(key) for key in noise]
                noise = [pair[0] for pair in pairs]
                shape = (samples, logits.shape[1])
                gumbel = mx.concatenate([mx.random.gumbel(shape, key=key) for _, key in pairs])
                state, logprobs = rules.sample(
                    logits, state, temperature, gumbel, is_first=is_first
                )
            else:
                state, logprobs = rules.choose(logits, state, is_first=is_first)
            mx.async_eval(state, logprobs)  # type: ignore[no-untyped-call]
            # The device computes this token while the one before is read.
            if issued is not None and self._read(texts, *issued):
                break
            issued = state.last, logprobs
        else:
            if issued is not None:
                self._read(texts, *issued)
        silences: list[float] = silence.tolist()  # type: ignore[assignment]
        return [
            self._choose_best(texts[n * samples : (n + 1) * samples], silences[n], temperature)
            for n in range(len(first))
        ]

    def _read(self, texts: Sequence[_Text], tokens: mx.array, logprobs: mx.array) -> bool:
        """Append a token to each text, and return whether all have ended."""
        read: list[int] = tokens.tolist()  # type: ignore[assignment]
        read_logprobs: list[float] = logprobs.tolist()  # type: ignore[assignment]
        for text, token, logprob in zip(texts, read, read_logprobs, strict=True):
            # Texts that have ended go on in the batch, and what follows is not looked at.
            if not text.has_ended:
                text.total += logprob
                text.has_ended = token == self._tokenizer.eot
                if not text.has_ended:
                    text.tokens.append(token)
        return all(text.has_ended for text in texts)

    def _choose_best(
        self, samples: Sequence[_Text], no_speech_prob: float, temperature: float
    ) -> DecodedWindow:
        """Return the best of the samples of a window."""
        best = max(samples, key=lambda s: _rank(s.total, len(s.tokens), self._settings))
        return DecodedWindow(
            tokens=best.tokens,
            avg_logprob=best.total / (len(best.tokens) + 1),
            no_speech_prob=no_speech_prob,
            compression_ratio=_compression_ratio(self._tokenizer.decode(best.tokens).strip()),
            temperature=temperature,
        )

    def _first_tokens(
        self, prompt: Sequence[int], known: Sequence[int] = ()
    ) -> tuple[int, list[int]]:
        """Return where the transcript starts in the decoder's first tokens, and these tokens."""
        start = [*self._start, *known]
        half = self._model.dims.n_text_ctx // 2
        # A prefix that leaves less than half of the context shortens the text before.
        room = min(half, self._model.dims.n_text_ctx - len(start)) - 1
        before = [self._tokenizer.sot_prev, *prompt[-room:]] if prompt and room > 0 else []
        return len(before), [*before, *start]


def is_silence(decoded: DecodedWindow, settings: DecodeSettings) -> bool:
    """Return whether nobody speaks in a window, as its result and the thresholds say."""
    threshold, least = settings.no_speech_threshold, settings.logprob_threshold
    # A certain text is speech, whatever the probability of no speech.
    is_certain = least is not None and decoded.avg_logprob > least
    return threshold is not None and decoded.no_speech_prob > threshold and not is_certain


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
