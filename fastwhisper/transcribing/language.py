"""The first 30 s of an audio with sound -> how probable each language is."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from fastwhisper.transcribing.mel import compute_mel
from fastwhisper.transcribing.samples import read_blocks
from fastwhisper.transcribing.window_decoder import WindowDecoder
from fastwhisper.whisper.options import DecodeSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastwhisper.transcribing.mel import MelAudio
    from fastwhisper.transcribing.samples import AudioSource
    from fastwhisper.whisper.network import Whisper

__all__ = ["compute_first_mel", "detect_languages"]


def compute_first_mel(source: AudioSource, *, n_mels: int, check: Callable[[], None]) -> MelAudio:
    """Compute the mel of the first 30 s with sound, or of silence if there is nothing else.

    What follows them is not decoded. Arguments and errors are those of `compute_mel`.
    """
    mels = (compute_mel(block, n_mels=n_mels) for block in read_blocks(source, check=check))
    first = next(mels)
    sounds = (mel for mel in chain([first], mels) if mel.find_sound() is not None)
    return next(sounds, first)


def detect_languages(
    model: Whisper, audio: MelAudio, *, fp16: bool, check: Callable[[], None]
) -> dict[str, float]:
    """Compute the probability of each language that a network knows.

    Args:
        model: The network. All its arrays are evaluated.
        audio: The mel. Its first 30 s are looked at.
        fp16: Compute in float16, for a float16 network.
        check: Called before the encoder; may raise to cancel.

    Returns:
        The probabilities, 0 to 1, by code, in descending order.
    """
    decoder = WindowDecoder(model, DecodeSettings(), fp16=fp16, check=check)
    found = decoder.detect_language(audio)
    return dict(sorted(found.items(), key=lambda item: item[1], reverse=True))
