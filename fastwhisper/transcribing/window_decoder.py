"""Mel -> encoded windows -> tokens: the work on one window, and what all windows share.

Source:
    Radford et al. 2022, section 4.5; `transcribe.py` of openai/whisper.
"""

from __future__ import annotations

import secrets
from functools import cached_property
from typing import TYPE_CHECKING, Final

import mlx.core as mx

from fastwhisper.transcribing.mel import WINDOW_FRAMES
from fastwhisper.whisper.decoding import Decoder, detect_language
from fastwhisper.whisper.languages import LANGUAGES
from fastwhisper.whisper.tokenizer import Tokenizer, read_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastwhisper.transcribing.mel import MelAudio
    from fastwhisper.whisper.decoding import DecodedWindow
    from fastwhisper.whisper.network import Whisper
    from fastwhisper.whisper.options import DecodeSettings

__all__ = ["WindowDecoder"]

_MAX_TOKEN_BYTES: Final = 128
"""Bytes of the longest token of the vocabularies."""


class WindowDecoder:
    """The encoder and decoder of the windows of one audio. One thread uses it at a time.

    Attributes:
        model: The network.
        audio: The mel of the audio.
        settings: How to decode.
        check: Called before each token and each pass of the encoder; may raise to cancel.
    """

    def __init__(
        self,
        model: Whisper,
        audio: MelAudio,
        settings: DecodeSettings,
        *,
        fp16: bool,
        check: Callable[[], None],
    ) -> None:
        self.model = model
        self.audio = audio
        self.settings = settings
        self.check = check
        self._dtype = mx.float16 if fp16 else mx.float32
        self._seed = secrets.randbits(32) if settings.seed is None else settings.seed
        self._encoded: tuple[int, int, mx.array] | None = None

    @cached_property
    def language(self) -> str:
        """Code of the spoken language. Unless it is given, it is detected in the first 30 s."""
        if self.settings.language is not None:
            return self.settings.language
        found = self.detect_language()
        among = self.settings.languages or found
        return max(among, key=lambda code: found.get(code, 0.0))

    @property
    def max_prompt_tokens(self) -> int:
        """Largest number of tokens of a prompt: half of the decoder's context, less its start."""
        return self.model.dims.n_text_ctx // 2 - 1

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The network's tokenizer, for the language and task."""
        n_vocab = self.model.dims.n_vocab
        return read_tokenizer(n_vocab, language=self.language, task=self.settings.task)

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(
            self.model,
            self.tokenizer,
            self.settings,
            compile_steps=not self.model.for_cpu,
            check=self.check,
        )

    def check_settings(self) -> None:
        """Check that the network knows the language and the tokens of the settings.

        Raises:
            ValueError: The network does not know the language or a token.
        """
        self._check_languages()
        # A token beyond the embedding would read memory that is not the embedding's.
        n_vocab = self.model.dims.n_vocab
        for name in ("prefix", "suppress_tokens"):
            tokens = getattr(self.settings, name)
            if isinstance(tokens, tuple) and any(token >= n_vocab for token in tokens):
                raise ValueError(
                    f"{name}={tokens!r}: this model has {n_vocab} tokens, the last is {n_vocab - 1}"
                )

    def _check_languages(self) -> None:
        """Check that the network knows the languages of the settings."""
        settings = self.settings
        if not self.model.is_multilingual:
            if settings.languages is not None and "en" not in settings.languages:
                raise ValueError(
                    f"languages={settings.languages!r}: this model knows English only; "
                    "use a multilingual one, or leave languages out"
                )
            return
        known = list(LANGUAGES)[: self.model.num_languages]
        for code in settings.languages or filter(None, [settings.language]):
            if code not in known:
                raise ValueError(
                    f"this model does not know {LANGUAGES[code]} ({code}); "
                    f"it knows {', '.join(known)}"
                )

    def encode_prompt(self, text: str) -> list[int]:
        """Encode an initial prompt, and return its last `max_prompt_tokens` tokens at most."""
        count = self.max_prompt_tokens
        # A token has 128 bytes at most. Encoding only the end saves seconds for a long text.
        end = f" {text.strip()}"[-_MAX_TOKEN_BYTES * count :]
        return self.tokenizer.encode(end)[-count:]

    def encode(self, start_frame: int, frames: int) -> mx.array:
        """Encode a window, and remember it: the language and the text need the same window.

        Args:
            start_frame: First mel frame of the window; one frame is 10 ms.
            frames: Mel frames of audio in it, at most 3000. Silence follows them.

        Returns:
            The features. Shape (1500, state), float16 or float32, evaluated.
        """
        if self._encoded is not None and self._encoded[:2] == (start_frame, frames):
            return self._encoded[2]
        self._encoded = None
        self.check()
        mel = self.audio.window(start_frame, frames).astype(self._dtype)
        features = self.model.encoder(mel[None])[0]
        mx.eval(features)
        self._encoded = (start_frame, frames, features)
        return features

    def decode(
        self, features: mx.array, prompt: Sequence[int], *, start_frame: int
    ) -> DecodedWindow:
        """Decode a window at rising temperatures, until the result passes the thresholds.

        Args:
            features: The encoded window. Shape (1500, state), float16 or float32.
            prompt: Tokens of the text before the window.
            start_frame: First mel frame of the window. The seed and this frame decide what is
                sampled. So a window's text depends on no other window, and a window that is
                decoded again has the same text.

        Returns:
            The first result that passes, or the last one.
        """
        key = mx.random.key(self._seed ^ start_frame << 32)
        return self._decoder.decode(features[None], [prompt], [key])[0]

    def detect_language(self) -> dict[str, float]:
        """Compute the probability, 0 to 1, of each language that the network knows, by its code.

        The first 30 s decide.
        """
        if not self.model.is_multilingual:
            return {"en": 1.0}
        # A shorter audio is encoded together with the silence after it.
        features = self.encode(0, WINDOW_FRAMES)
        n_vocab = self.model.dims.n_vocab
        tokenizer = read_tokenizer(n_vocab, language="en", task="transcribe")
        return detect_language(self.model, features, tokenizer)
