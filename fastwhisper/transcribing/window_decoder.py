"""Mel -> encoded windows -> tokens: what one transcription keeps from window to window.

Source:
    Radford et al. 2022, section 4.5; `transcribe.py` of openai/whisper.
"""

from __future__ import annotations

import secrets
from functools import cached_property
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from fastwhisper.transcribing.mel import WINDOW_FRAMES
from fastwhisper.whisper.decoding import decode_window, detect_language
from fastwhisper.whisper.languages import LANGUAGES
from fastwhisper.whisper.tokenizer import Tokenizer, read_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastwhisper.transcribing.mel import MelAudio
    from fastwhisper.whisper.decoding import DecodedWindow
    from fastwhisper.whisper.network import Whisper
    from fastwhisper.whisper.options import DecodeSettings

__all__ = ["WindowDecoder"]


class WindowDecoder:
    """Encodes and decodes the windows of one audio. Used in one thread, one job at a time."""

    def __init__(
        self,
        model: Whisper,
        audio: MelAudio,
        settings: DecodeSettings,
        *,
        fp16: bool,
        check: Callable[[], None],
    ) -> None:
        """Detect the language unless it is given, and check the options against the network.

        Raises:
            ValueError: The network does not know the language or a token.
        """
        self._model = model
        self._audio = audio
        self._settings = settings
        self._dtype = mx.float16 if fp16 else mx.float32
        self._check = check
        self._seed = secrets.randbits(32) if settings.seed is None else settings.seed
        self._encoded: tuple[int, int, mx.array] | None = None
        self.language = settings.language or self._detect_language()
        self._check_language()
        self._check_tokens()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The network's tokenizer, for the language and task."""
        n_vocab = self._model.dims.n_vocab
        return read_tokenizer(n_vocab, language=self.language, task=self._settings.task)

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
        features = self._model.encoder(mx.array(mel).astype(self._dtype)[None])[0]
        mx.eval(features)
        self._encoded = (start_frame, frames, features)
        return features

    def decode(
        self, features: mx.array, prompt: Sequence[int], *, start_frame: int
    ) -> DecodedWindow:
        """Decode a window at rising temperatures, until it passes the thresholds.

        Args:
            features: The encoded window. Shape (1500, state), float16 or float32.
            prompt: Tokens of the text before it.
            start_frame: Where it begins. With the seed it decides what is sampled, so that a
                window's text depends on no other window's, and is the same when decoded again.
        """
        return decode_window(
            self._model,
            features,
            self.tokenizer,
            self._settings,
            prompt=prompt,
            key=mx.random.key(self._seed ^ start_frame << 32),
            check=self._check,
        )

    def _detect_language(self) -> str:
        if not self._model.is_multilingual:
            return "en"
        # The first 30 s, with the silence after a shorter audio.
        features = self.encode(0, WINDOW_FRAMES)
        n_vocab = self._model.dims.n_vocab
        tokenizer = read_tokenizer(n_vocab, language="en", task="transcribe")
        by_code = detect_language(self._model, features, tokenizer)
        return max(by_code, key=lambda code: by_code[code])

    def _check_language(self) -> None:
        if self._model.is_multilingual:
            known = list(LANGUAGES)[: self._model.num_languages]
            if self.language not in known:
                raise ValueError(
                    f"this model does not know {LANGUAGES[self.language]} ({self.language}); "
                    f"it knows {', '.join(known)}"
                )

    def _check_tokens(self) -> None:
        # A token past the embedding would read whatever lies there in memory.
        size = self._model.dims.n_vocab
        for name in ("prefix", "suppress_tokens"):
            tokens = getattr(self._settings, name)
            if isinstance(tokens, tuple) and any(token >= size for token in tokens):
                raise ValueError(f"{name}={tokens!r}: this model has {size} tokens")
