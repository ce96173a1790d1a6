"""Parts of audios -> windows in order, several decoded together.

An audio is one part, or it comes in parts that were cut at silences. Then the next windows of
several parts, also of several audios, are one batch. All work runs in the thread that asks for a
batch. Every window is encoded and decoded without knowledge of the others, so a batch may hold
windows of any origin.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx

from fastwhisper.transcribing.mel import make_silent_window
from fastwhisper.transcribing.parts import Part
from fastwhisper.transcribing.window_decoder import WindowDecoder, WindowRef
from fastwhisper.transcribing.windows import AudioWindows, Prompt, Window
from fastwhisper.whisper.attention import take_windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fastwhisper.transcribing.mel import MelAudio
    from fastwhisper.transcribing.words import WindowBounds
    from fastwhisper.whisper.attention import KeyValues
    from fastwhisper.whisper.network import Whisper
    from fastwhisper.whisper.options import DecodeSettings

__all__ = ["Batches", "decode_together", "transcribe_windows"]


class Batches:
    """The windows of one audio, batch by batch.

    Call it always in the same thread. An exception from `check` ends that call and loses nothing:
    the next one decodes the same windows again.
    """

    def __init__(
        self,
        model: Whisper,
        settings: DecodeSettings,
        *,
        fp16: bool,
        check: Callable[[], None],
    ) -> None:
        """Set up the decoder.

        Args:
            model: The network. All its arrays are evaluated.
            settings: How to decode.
            fp16: Compute in float16, for a float16 network. Otherwise in float32: for float32 and
                bfloat16 networks, which take float32 input.
            check: Called before each token and each pass of the encoder; may raise to cancel.
        """
        self._decoder = WindowDecoder(model, settings, fp16=fp16, check=check)
        self._waiting: deque[Part] = deque()
        self._silence: Part | None = None
        self._parts: deque[AudioWindows] = deque()
        self._done: dict[AudioWindows, list[Window]] = {}
        self._prompt: Prompt | None = None
        self._is_empty = True

    @property
    def settings(self) -> DecodeSettings:
        """How to decode."""
        return self._decoder.settings

    @property
    def is_idle(self) -> bool:
        """Whether there is no part to decode."""
        return not self._waiting and not self._parts

    def __len__(self) -> int:
        """Return the number of parts that are not done."""
        return len(self._waiting) + len(self._parts)

    def add(self, part: Part) -> None:
        """Add the next part. May be called in any thread, while a batch is decoded.

        A part without speech is not decoded.
        """
        if part.has_speech:
            self._waiting.append(part)
        elif self._silence is None:
            self._silence = part

    def decode(self) -> list[Window]:
        """Decode a window of each part, of as many as a batch has.

        Returns:
            The windows that are done and whose predecessors are done; none if there is none yet.
        """
        return decode_together([self])[0]

    def finish(self) -> list[Window]:
        """Return an empty window if there was none at all; an audio has at least one."""
        if not self._is_empty:
            return []
        if not self._decoder.language:
            n_mels = self._decoder.model.dims.n_mels
            self._decoder.begin(
                self._silence.audio if self._silence else make_silent_window(n_mels)
            )
        self._is_empty = False
        return [Window((), self._decoder.language, b"", 0.0)]

    def propose(self, places: int) -> list[_Proposed]:
        """Return the next window of each part that is begun; begin parts while there are places."""
        # A part that is done and waits for the one before takes no place.
        places -= sum(part.propose() is not None for part in self._parts)
        while self._waiting and places > 0:
            self._decoder.check()  # the mel of each part is computed here
            waiting = self._waiting[0]
            is_first = not self._decoder.language
            settings = self._decoder.settings
            if is_first:
                self._decoder.begin(waiting.audio)
            if self._prompt is None or settings.batch_size > 1:
                # In a batch no window waits for the text before it.
                is_conditioned = settings.condition_on_previous_text and settings.batch_size == 1
                self._prompt = Prompt(
                    self._decoder, is_first=is_first, is_conditioned=is_conditioned
                )
            part = AudioWindows(
                self._decoder, waiting.audio, self._prompt, offset_s=waiting.offset_s
            )
            self._done[part] = []
            self._parts.append(part)
            self._waiting.popleft()
            places -= 1
        return [
            _Proposed(self._decoder, self._done[part], part, bounds)
            for part in self._parts
            if (bounds := part.propose())
        ]

    def collect(self) -> Iterator[Window]:
        """Yield the windows that are done, in order, and drop the parts that are done."""
        while self._parts:
            part = self._parts[0]
            windows = self._done[part]
            self._is_empty = self._is_empty and not windows
            yield from windows
            windows.clear()
            if part.propose() is not None:
                return
            del self._done[part]
            self._parts.popleft()


class _Proposed(NamedTuple):
    """A window that may be decoded.

    Attributes:
        decoder: The decoder of its audio.
        done: The windows of its part, to which its result is added.
        part: Its part.
        bounds: Where it lies.
    """

    decoder: WindowDecoder
    done: list[Window]
    part: AudioWindows
    bounds: WindowBounds


def decode_together(audios: Sequence[Batches]) -> list[list[Window]]:
    """Decode a batch: the next windows of several audios, of the first ones first.

    Args:
        audios: At least one. All share the network and the settings.

    Returns:
        For each audio the windows that are done and whose predecessors are done.
    """
    size = audios[0].settings.batch_size
    proposed: list[_Proposed] = []
    for audio in audios:
        proposed += audio.propose(size - len(proposed))[: size - len(proposed)]
    if proposed:
        features = proposed[0].decoder.encode(
            [WindowRef(p.part.audio, p.bounds.start_frame, p.bounds.frames) for p in proposed]
        )
        # The language is one of the tokens that the rows of a batch begin with.
        for language in dict.fromkeys(p.decoder.language for p in proposed):
            _decode(features, [p for p in enumerate(proposed) if p[1].decoder.language == language])
    return [list(audio.collect()) for audio in audios]


def _decode(features: mx.array, rows: list[tuple[int, _Proposed]]) -> None:
    """Decode windows of one language, and keep their results."""
    decoder = rows[0][1].decoder
    if len(rows) < len(features):
        features = features[mx.array([n for n, _ in rows])]
    audio = decoder.read(features)
    results = decoder.decode(
        audio,
        [p.part.build_prompt() for _, p in rows],
        start_frames=[p.part.offset_frames + p.bounds.start_frame for _, p in rows],
    )
    for n, (_, p) in enumerate(rows):
        window: Sequence[KeyValues] = ()
        if decoder.settings.word_timestamps:
            decoder.check()
            window = take_windows(audio, [n])
        p.done.append(p.part.accept(p.bounds, window, results[n]))


def transcribe_windows(
    model: Whisper,
    audio: MelAudio,
    settings: DecodeSettings,
    *,
    fp16: bool,
    check: Callable[[], None],
) -> Iterator[Window]:
    """Transcribe a whole audio, one window of up to 30 s for each `next`.

    Arguments and errors are those of `Batches`.

    Yields:
        At least one window.
    """
    batches = Batches(model, settings, fp16=fp16, check=check)
    batches.add(Part(audio, None, has_speech=True))
    while windows := batches.decode():
        yield from windows
    yield from batches.finish()
