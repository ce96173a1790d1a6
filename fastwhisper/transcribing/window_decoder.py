"""Mel -> encoded windows -> tokens: the work on windows, and what all windows share.

Source:
    Radford et al. 2022, section 4.5; `transcribe.py` of openai/whisper.
"""

from __future__ import annotations

import secrets
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final, NamedTuple

import mlx.core as mx

from fastwhisper.transcribing.mel import WINDOW_FRAMES
from fastwhisper.whisper import cpu_encoder
from fastwhisper.whisper.decoding import Decoder, detect_language
from fastwhisper.whisper.start import MAX_TOKEN_BYTES
from fastwhisper.whisper.tokenizer import Tokenizer, read_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastwhisper.transcribing.mel import MelAudio
    from fastwhisper.whisper.attention import KeyValues
    from fastwhisper.whisper.decoding import DecodedWindow
    from fastwhisper.whisper.network import Whisper
    from fastwhisper.whisper.options import DecodeSettings

__all__ = ["WindowDecoder", "WindowRef"]

_ENCODED_TOGETHER: Final = 4
"""Windows that a GPU encodes at once. More take as long for each, and cancelling waits for them."""


class WindowRef(NamedTuple):
    """A window of an audio.

    Attributes:
        audio: The mel of the audio.
        start_frame: First mel frame of the window; one frame is 10 ms.
        frames: Mel frames of audio in it, at most 3000. Silence follows them.
    """

    audio: MelAudio
    start_frame: int
    frames: int


class WindowDecoder:
    """The encoder and decoder of windows that share their settings and language.

    One thread uses it at a time.

    Attributes:
        model: The network.
        settings: How to decode.
        check: Called before each token and each pass of the encoder; may raise to cancel.
        language: Code of the spoken language; empty before `begin`.
    """

    def __init__(
        self,
        model: Whisper,
        settings: DecodeSettings,
        *,
        fp16: bool,
        check: Callable[[], None],
    ) -> None:
        self.model = model
        self.settings = settings
        self.check = check
        self.language = ""
        self._dtype = mx.float16 if fp16 else mx.float32
        self._seed = secrets.randbits(32) if settings.seed is None else settings.seed
        self._encoded: tuple[WindowRef, mx.array] | None = None
        self._encoder: Callable[[mx.array], mx.array] = model.encoder
        if model.device == "cpu":
            self._encoder = partial(cpu_encoder.encode, model.encoder)

    def begin(self, audio: MelAudio) -> None:
        """Detect the language, unless it is given.

        Args:
            audio: The mel of the audio, or of its first part with speech.
        """
        if self.settings.language is not None:
            self.language = self.settings.language
            return
        found = self.detect_language(audio)
        among = self.settings.languages or found
        self.language = max(among, key=lambda code: found.get(code, 0.0))

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
        return Decoder(self.model, self.tokenizer, self.settings, check=self.check)

    def encode_prompt(self, text: str) -> list[int]:
        """Encode an initial prompt, and return its last `max_prompt_tokens` tokens at most."""
        count = self.max_prompt_tokens
        # Encoding only the end saves seconds for a long text.
        end = f" {text.strip()}"[-MAX_TOKEN_BYTES * count :]
        return self.tokenizer.encode(end)[-count:]

    def encode(self, windows: Sequence[WindowRef]) -> mx.array:
        """Encode windows, and remember a single one: language and text need the same window.

        Args:
            windows: At least one.

        Returns:
            The features. Shape (windows, 1500, state), float16 or float32. A GPU may still compute
            them: the first steps of the decoder are prepared meanwhile.
        """
        if self._encoded is not None and [self._encoded[0]] == windows:
            return self._encoded[1]
        self._encoded = None
        encoded: list[mx.array] = []
        together = 1 if self.model.device == "cpu" else _ENCODED_TOGETHER
        for first in range(0, len(windows), together):
            self.check()
            group = windows[first : first + together]
            mel = mx.stack([ref.audio.window(ref.start_frame, ref.frames) for ref in group])
            mx.eval(encoded)
            encoded.append(self._encoder(mel.astype(self._dtype)))
            mx.async_eval(encoded)  # type: ignore[no-untyped-call]
        if len(windows) == 1:
            self._encoded = (windows[0], encoded[0])
            return encoded[0]
        features = mx.concatenate(encoded)
        mx.eval(features)
        return features

    def read(self, features: mx.array) -> Sequence[KeyValues]:
        """Compute the keys and values that text and word times of windows need.

        Args:
            features: The encoded windows. Shape (windows, 1500, state), float16 or float32.

        Returns:
            As `TextDecoder.read`. Those of a single window may not be evaluated yet.
        """
        if len(features) == 1:
            return self.model.decoder.read(features)
        windows = []
        for n in range(len(features)):  # one after the other, so that each may be cancelled
            self.check()
            windows.append(self.model.decoder.read(features[n : n + 1]))
            mx.eval(windows[-1])
        return [
            (mx.concatenate([k for k, _ in layer]), mx.concatenate([v for _, v in layer]))
            for layer in zip(*windows, strict=True)
        ]

    def decode(
        self,
        audio: Sequence[KeyValues],
        prompts: Sequence[Sequence[int]],
        *,
        start_frames: Sequence[int],
        known: Sequence[int] = (),
        max_tokens: int | None = None,
    ) -> list[DecodedWindow]:
        """Decode windows at rising temperatures, until each result passes the thresholds.

        Args:
            audio: What `read` returned.
            prompts: For each window, the tokens of the text before it.
            start_frames: For each window, its first mel frame. The seed and this frame decide what
                is sampled. So a window's text depends on no other window, and a window that is
                decoded again has the same text.
            known: As for `Decoder.decode`.
            max_tokens: As for `Decoder.decode`.

        Returns:
            For each window the first result that passes, or the last one.
        """
        keys = [mx.random.key(self._seed ^ start_frame << 32) for start_frame in start_frames]
        return self._decoder.decode(audio, prompts, keys, known=known, max_tokens=max_tokens)

    def detect_language(self, audio: MelAudio) -> dict[str, float]:
        """Compute the probability, 0 to 1, of each language that the network knows, by its code.

        The 30 s from the first sound on decide.
        """
        if not self.model.is_multilingual:
            return {"en": 1.0}
        # A shorter audio is encoded together with the silence after it.
        start_frame = (audio.find_sound() or 0) * WINDOW_FRAMES
        features = self.encode([WindowRef(audio, start_frame, WINDOW_FRAMES)])
        n_vocab = self.model.dims.n_vocab
        tokenizer = read_tokenizer(n_vocab, language="en", task="transcribe")
        return detect_language(self.model, self.read(features), tokenizer)
