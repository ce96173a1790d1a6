"""One window of mel -> tokens: mlx_whisper's per-window decoder, made cancellable.

Its classes are subclassed and put together here; nothing of upstream is patched.

Source:
    `DecodingTask` and `transcribe` of mlx_whisper 0.4.3; Radford et al. 2022, section 4.5.
"""

from __future__ import annotations

import secrets
from functools import cached_property
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
from mlx_whisper.decoding import (
    DecodingOptions,
    DecodingTask,
    GreedyDecoder,
    Inference,
    detect_language,
)

from fastwhisper.audio import WINDOW_FRAMES
from fastwhisper.languages import LANGUAGES
from fastwhisper.tokens import tokenizer_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlx_whisper.decoding import DecodingResult
    from mlx_whisper.tokenizer import Tokenizer
    from mlx_whisper.whisper import Whisper

    from fastwhisper.audio import MelAudio
    from fastwhisper.decoding import DecodeSettings

__all__ = ["Sampler"]


class _CheckedInference(Inference):
    """The decoder's forward pass, which can be cancelled before each token."""

    def __init__(self, model: Whisper, check: Callable[[], None]) -> None:
        super().__init__(model)
        self._check = check

    def logits(self, tokens: mx.array, audio_features: mx.array) -> mx.array:
        """Run the decoder. Returns shape (batch, tokens, n_vocab), float32."""
        self._check()
        return super().logits(tokens, audio_features)


class _Noise:
    """The random keys of one transcription, as mlx_whisper draws them.

    Upstream compiles its sampler with the key of the moment as a constant: one key for
    each temperature, in the order of first use. Drawn here from the transcription's own
    seed, they depend on nothing that ran before, in this thread or another, and leave
    MLX's state alone.
    """

    def __init__(self, seed: int | None) -> None:
        self._state = mx.random.key(secrets.randbits(32) if seed is None else seed)
        self._keys: dict[float, mx.array] = {}

    def key(self, temperature: float) -> mx.array:
        """Return the key for a temperature. Shape (2,), uint32."""
        if temperature not in self._keys:
            self._state, key = mx.random.split(self._state)
            mx.eval(self._state, key)
            self._keys[temperature] = key
        return self._keys[temperature]


class _SamplingDecoder(GreedyDecoder):
    """Samples with a given key."""

    def __init__(self, temperature: float, eot: int, key: mx.array) -> None:
        super().__init__(temperature, eot)
        self._key = key

    def update(
        self, tokens: mx.array, logits: mx.array, sum_logprobs: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Append the next token. Shapes (batch, n), (batch, n_vocab) and (batch,)."""
        sampled = mx.random.categorical(logits / self.temperature, key=self._key)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        ended = tokens[:, -1] == self.eot
        sum_logprobs = sum_logprobs + logprobs[mx.arange(len(logprobs)), sampled] * ~ended
        following = mx.where(ended, self.eot, sampled)
        tokens = mx.concatenate([tokens, following[:, None]], axis=-1)
        return tokens, mx.all(following == self.eot), sum_logprobs


class Sampler:
    """One window of mel -> tokens, at the first temperature that passes."""

    def __init__(
        self,
        model: Whisper,
        audio: MelAudio,
        settings: DecodeSettings,
        *,
        fp16: bool,
        check: Callable[[], None],
    ) -> None:
        self._model = model
        self._audio = audio
        self._settings = settings
        self._fp16 = fp16
        self._check = check
        self._noise = _Noise(settings.seed)
        self._encoded: tuple[int, int, mx.array] | None = None
        self.language = settings.language or self._detect_language()
        self._verify_language()
        self._verify_tokens()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Asked for after the encoder ran, beside which a fresh load still builds it."""
        n_vocab = self._model.dims.n_vocab
        return tokenizer_of(n_vocab, language=self.language, task=self._settings.task)

    def encode(self, start_frame: int, frames: int) -> mx.array:
        """Encode a window, once for all that is asked of it.

        Returns:
            Shape (1500, state), float16 or float32, evaluated.
        """
        if self._encoded is not None and self._encoded[:2] == (start_frame, frames):
            return self._encoded[2]
        self._encoded = None
        self._check()
        mel = np.zeros((WINDOW_FRAMES, self._audio.mel.shape[1]), np.float32)
        mel[:frames] = self._audio.mel[start_frame : start_frame + frames]
        dtype = mx.float16 if self._fp16 else mx.float32
        features = self._model.encoder(mx.array(mel).astype(dtype)[None])[0]
        mx.eval(features)
        self._encoded = (start_frame, frames, features)
        return features

    def decode(self, features: mx.array, prompt: list[int]) -> DecodingResult:
        """Decode a window at rising temperatures, until it passes the thresholds.

        Args:
            features: The encoded window. Shape (1500, state), float16 or float32.
            prompt: Tokens of the text before it.
        """
        for temperature in self._settings.temperature:
            result = self._decode_at(temperature, features, prompt)
            if not self._needs_fallback(result):
                break
        return result

    def _detect_language(self) -> str:
        if not self._model.is_multilingual:
            return "en"
        # Upstream looks at the first 30 s with the silence after a shorter audio.
        features = self.encode(0, WINDOW_FRAMES)
        tokenizer = tokenizer_of(self._model.dims.n_vocab, language="en", task="transcribe")
        _, probabilities = detect_language(self._model, features[None], tokenizer)
        (by_code,) = probabilities
        return max(by_code, key=lambda code: by_code[code])

    def _verify_language(self) -> None:
        if self._model.is_multilingual:
            known = list(LANGUAGES)[: self._model.num_languages]
            if self.language not in known:
                raise ValueError(
                    f"this model does not know {LANGUAGES[self.language]} ({self.language}); "
                    f"it knows {', '.join(known)}"
                )

    def _verify_tokens(self) -> None:
        # A token past the embedding would read whatever lies there in memory.
        size = self._model.dims.n_vocab
        for name in ("prefix", "suppress_tokens"):
            tokens = getattr(self._settings, name)
            if isinstance(tokens, tuple) and any(token >= size for token in tokens):
                raise ValueError(f"{name}={tokens!r}: this model has {size} tokens")

    def _decode_at(
        self, temperature: float, features: mx.array, prompt: list[int]
    ) -> DecodingResult:
        settings = self._settings
        options = DecodingOptions(
            task=settings.task,
            language=self.language,
            temperature=temperature,
            sample_len=settings.sample_len,
            best_of=settings.best_of if temperature > 0 else None,
            length_penalty=settings.length_penalty,
            prompt=prompt,
            prefix=list(settings.prefix) if isinstance(settings.prefix, tuple) else settings.prefix,
            # A new list each time: upstream appends to it.
            suppress_tokens=None
            if settings.suppress_tokens is None
            else list(settings.suppress_tokens),
            suppress_blank=settings.suppress_blank,
            without_timestamps=settings.without_timestamps,
            max_initial_timestamp=settings.max_initial_timestamp,
            fp16=self._fp16,
        )
        eot = self.tokenizer.eot
        task = DecodingTask(self._model, options)
        task.inference = _CheckedInference(self._model, self._check)
        if temperature > 0:
            key = self._noise.key(temperature)
            task.decoder = _SamplingDecoder(temperature, eot, key)
        (result,) = task.run(features[None])
        return result

    def _needs_fallback(self, result: DecodingResult) -> bool:
        settings = self._settings
        if (
            settings.no_speech_threshold is not None
            and result.no_speech_prob > settings.no_speech_threshold
        ):
            return False  # silence
        too_repetitive = (
            settings.compression_ratio_threshold is not None
            and result.compression_ratio > settings.compression_ratio_threshold
        )
        too_uncertain = (
            settings.logprob_threshold is not None
            and result.avg_logprob < settings.logprob_threshold
        )
        return too_repetitive or too_uncertain
