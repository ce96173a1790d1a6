"""Windows of audio -> segments: the loop over the audio.

Everything runs in the thread that asks for the next window. Arrays stay inside; what
leaves is plain Python.

Source:
    `transcribe` of openai/whisper; Radford et al. 2022, section 4.5.
"""

from __future__ import annotations

import warnings
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from fastwhisper.transcribing.mel import WINDOW_FRAMES
from fastwhisper.transcribing.window_decoder import WindowDecoder
from fastwhisper.transcribing.words import (
    FRAMES_PER_SECOND,
    Draft,
    Span,
    add_words,
    drop_hallucinations,
    end_of_speech_s,
    skip_leading_silence,
)
from fastwhisper.values import Segment, Transcription

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

    import mlx.core as mx

    from fastwhisper.transcribing.mel import MelAudio
    from fastwhisper.whisper.decoding import DecodedWindow
    from fastwhisper.whisper.network import Whisper
    from fastwhisper.whisper.options import DecodeSettings
    from fastwhisper.whisper.tokenizer import Tokenizer

__all__ = ["Window", "summarize", "transcribe_windows"]

_HOT: Final = 0.5
"""Text sampled above this temperature is no prompt for the next window."""


@dataclass(frozen=True, slots=True)
class Window:
    """What one step over the audio gave.

    Attributes:
        segments: Its segments; none where nobody speaks.
        language: Code of the language.
        text_utf8: Its part of the whole text; a character may end in the next window.
        end_s: How far the audio is done, in seconds.
    """

    segments: tuple[Segment, ...]
    language: str
    text_utf8: bytes
    end_s: float


def transcribe_windows(
    model: Whisper,
    audio: MelAudio,
    settings: DecodeSettings,
    *,
    fp16: bool,
    check: Callable[[], None],
) -> Iterator[Window]:
    """Transcribe an audio, one window of up to 30 s for each `next`.

    Every `next` must come from the same thread. What `check` raises ends a `next`, not the
    iterator: the one after it decodes the same window anew.

    Args:
        model: The network, all its arrays evaluated.
        audio: The mel of the audio.
        settings: How to decode it.
        fp16: Compute in float16, for a float16 network. Else in float32, for float32
            and bfloat16 ones, which take float32 input.
        check: Called before each token and each pass of the encoder; may raise to
            cancel.

    Returns:
        At least one window. The first `next` raises ValueError when the model does not
        know the language.
    """
    return _Windows(partial(_Loop, model, audio, settings, fp16=fp16, check=check))


def summarize(windows: Sequence[Window], *, duration_s: float) -> Transcription:
    """Put the windows of one audio together.

    Args:
        windows: All of them, in order; at least one.
        duration_s: Length of the audio in seconds.
    """
    text = b"".join(window.text_utf8 for window in windows)
    return Transcription(
        text=text.decode("utf-8", errors="replace"),
        segments=tuple(segment for window in windows for segment in window.segments),
        language=windows[-1].language,
        duration_s=duration_s,
    )


class _Windows:
    """Begins at the first `next`, in its thread, and survives what that raises."""

    def __init__(self, begin: Callable[[], _Loop]) -> None:
        self._begin: Callable[[], _Loop] | None = begin
        self._loop: _Loop | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Window:
        if self._begin is not None:
            self._loop = self._begin()
            self._begin = None
        window = None if self._loop is None else self._loop.next_window()
        if window is None:
            self._loop = None  # nothing of the model or the mel is needed any more
            raise StopIteration
        return window


class _Loop:
    """Walks over the audio; each window says where the next one begins."""

    def __init__(
        self,
        model: Whisper,
        audio: MelAudio,
        settings: DecodeSettings,
        *,
        fp16: bool,
        check: Callable[[], None],
    ) -> None:
        if settings.word_timestamps and settings.task == "translate":
            warnings.warn("word times of a translation may be unreliable", stacklevel=2)
        self._model = model
        self._content_frames = audio.content_frames
        self._settings = settings
        self._check = check
        self._decoder = WindowDecoder(model, audio, settings, fp16=fp16, check=check)
        # Mel frames and seconds of one timestamp token: 2, 0.02 s.
        self._frames_per_step = WINDOW_FRAMES // model.dims.n_audio_ctx
        self._step_s = self._frames_per_step / FRAMES_PER_SECOND
        self._clips = self._read_clips()
        self._seek = self._clips[0][0]
        self._is_empty = True
        self._last_speech_s = 0.0
        self._prompt: list[int] = []
        if settings.initial_prompt is not None:
            self._prompt = self._tokenizer.encode(" " + settings.initial_prompt.strip())

    @property
    def _tokenizer(self) -> Tokenizer:
        return self._decoder.tokenizer

    def next_window(self) -> Window | None:
        """Decode the next window of the clips: an empty one when there is none at all."""
        while self._clips:
            end_frame = self._clips[0][1]
            # The end of the audio bounds every clip, or the last window would be empty
            # for ever.
            if self._seek < min(end_frame, self._content_frames):
                span = self._span(end_frame)
                segments = self._next_segments(span)
                if self._seek <= span.start_frame:
                    # Word times and thresholds can name the window's own begin: go on after it,
                    # or it would be decoded for ever.
                    self._seek = span.start_frame + span.frames
                self._is_empty = False
                return self._window(segments)
            self._clips.popleft()
        if self._is_empty:
            self._is_empty = False
            return self._window([])
        return None

    def _read_clips(self) -> deque[tuple[int, int]]:
        points = [round(time_s * FRAMES_PER_SECOND) for time_s in self._settings.clip_timestamps]
        if not points:
            points = [0]
        if len(points) % 2 == 1:
            points.append(self._content_frames)
        return deque(zip(points[::2], points[1::2], strict=True))

    def _window(self, segments: list[Segment]) -> Window:
        tokens = [token for segment in segments for token in segment.tokens]
        words = [token for token in tokens if token < self._tokenizer.timestamp_begin]
        return Window(
            segments=tuple(segments),
            language=self._decoder.language,
            text_utf8=self._tokenizer.decode_bytes(words),
            end_s=min(self._seek, self._content_frames) / FRAMES_PER_SECOND,
        )

    def _next_segments(self, span: Span) -> list[Segment]:
        """Decode a window and move on.

        `_seek` and `_prompt` change only after the last check.
        """
        features = self._decoder.encode(span.start_frame, span.frames)
        result = self._decoder.decode(features, self._prompt, start_frame=span.start_frame)
        if self._settings.word_timestamps:
            self._check()
        if self._is_silence(result):
            self._seek += span.frames
            return []

        drafts = self._cut(result.tokens, span)
        if self._settings.word_timestamps and not self._place_words(
            drafts, span, features, ends_open=self._ends_open(result.tokens)
        ):
            return []

        segments = [self._segment(draft, span, result) for draft in drafts]
        for segment in segments:
            self._prompt.extend(segment.tokens)
        if not self._settings.condition_on_previous_text or result.temperature > _HOT:
            self._prompt = []
        return segments

    def _span(self, clip_end_frame: int) -> Span:
        start = self._seek
        frames = min(WINDOW_FRAMES, self._content_frames - start, clip_end_frame - start)
        return Span(
            start_frame=start,
            frames=frames,
            start_s=start / FRAMES_PER_SECOND,
            duration_s=frames / FRAMES_PER_SECOND,
            window_end_s=(start + WINDOW_FRAMES) / FRAMES_PER_SECOND,
        )

    def _is_silence(self, result: DecodedWindow) -> bool:
        settings = self._settings
        if settings.no_speech_threshold is None:
            return False
        if (
            settings.logprob_threshold is not None
            and result.avg_logprob > settings.logprob_threshold
        ):
            return False  # certain enough, in spite of the no-speech probability
        return result.no_speech_prob > settings.no_speech_threshold

    def _ends_open(self, tokens: list[int]) -> bool:
        """Tell whether speech may go on where the tokens end: no lone timestamp is last."""
        is_time = [token >= self._tokenizer.timestamp_begin for token in tokens[-2:]]
        return is_time != [False, True]

    def _cut(self, tokens: list[int], span: Span) -> list[Draft]:
        """Cut tokens into segments where two timestamps meet, and move `_seek` on."""
        begin = self._tokenizer.timestamp_begin
        is_time = [token >= begin for token in tokens]
        cuts = [i for i in range(1, len(tokens)) if is_time[i - 1] and is_time[i]]
        if not cuts:
            self._seek += span.frames
            times = [token - begin for token in tokens if token >= begin]
            spoken_s = times[-1] * self._step_s if times and times[-1] else span.duration_s
            return [self._draft(tokens, span.start_s, span.start_s + spoken_s)]

        if self._ends_open(tokens):
            # What follows the last cut is unfinished: it begins the next window.
            self._seek += (tokens[cuts[-1] - 1] - begin) * self._frames_per_step
        else:
            cuts.append(len(tokens))
            self._seek += span.frames
        drafts = []
        for first, end in zip([0, *cuts], cuts, strict=False):
            part = tokens[first:end]
            start_s = span.start_s + (part[0] - begin) * self._step_s
            end_s = span.start_s + (part[-1] - begin) * self._step_s
            drafts.append(self._draft(part, start_s, end_s))
        return drafts

    def _draft(self, tokens: list[int], start_s: float, end_s: float) -> Draft:
        text = self._tokenizer.decode([t for t in tokens if t < self._tokenizer.eot])
        return Draft(start_s, end_s, text, tokens)

    def _place_words(
        self, drafts: list[Draft], span: Span, features: mx.array, *, ends_open: bool
    ) -> bool:
        """Give drafts their words and let them move `_seek`; False drops the window."""
        add_words(
            drafts,
            model=self._model,
            tokenizer=self._tokenizer,
            features=features,
            span=span,
            settings=self._settings,
            last_speech_s=self._last_speech_s,
        )
        if ends_open:
            self._seek_to_end_of_speech(drafts, span)
        if not self._skip_hallucinations(drafts, span):
            return False
        end_s = end_of_speech_s(drafts)
        if end_s is not None:
            self._last_speech_s = end_s
        return True

    def _seek_to_end_of_speech(self, drafts: list[Draft], span: Span) -> None:
        end_s = end_of_speech_s(drafts)
        if end_s is None or end_s <= span.start_s:
            return
        threshold_s = self._settings.hallucination_silence_threshold
        if threshold_s is not None and span.window_end_s - end_s <= threshold_s:
            self._seek = span.start_frame + span.frames
        else:
            self._seek = round(end_s * FRAMES_PER_SECOND)

    def _skip_hallucinations(self, drafts: list[Draft], span: Span) -> bool:
        threshold_s = self._settings.hallucination_silence_threshold
        if threshold_s is None:
            return True
        seek = skip_leading_silence(drafts, span=span, threshold_s=threshold_s)
        if seek is not None:
            self._seek = seek
            return False
        seek = drop_hallucinations(
            drafts,
            span=span,
            threshold_s=threshold_s,
            last_speech_s=self._last_speech_s,
            content_frames=self._content_frames,
        )
        if seek is not None:
            self._seek = seek
        return True

    def _segment(self, draft: Draft, span: Span, result: DecodedWindow) -> Segment:
        # An instant, or no text: nothing was said.
        said = draft.start_s != draft.end_s and draft.text.strip() != ""
        return Segment(
            start_s=draft.start_s,
            end_s=draft.end_s,
            text=draft.text if said else "",
            tokens=tuple(draft.tokens) if said else (),
            avg_logprob=result.avg_logprob,
            no_speech_prob=result.no_speech_prob,
            compression_ratio=result.compression_ratio,
            temperature=result.temperature,
            words=draft.words if said else (),
            seek_frames=span.start_frame,
        )
