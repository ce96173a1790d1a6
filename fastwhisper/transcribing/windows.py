"""Windows of 30 s -> segments: where each window begins, and what its tokens say.

Arrays stay inside; results are plain Python objects.

Source:
    `transcribe` of openai/whisper; Radford et al. 2022, section 4.5.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from fastwhisper.transcribing.mel import FRAMES_PER_SECOND, WINDOW_FRAMES
from fastwhisper.transcribing.times import bound_times, move_segment
from fastwhisper.transcribing.words import (
    Draft,
    WindowBounds,
    add_words,
    drop_hallucinations,
    find_speech_end_s,
    skip_leading_silence,
)
from fastwhisper.values import Segment, Transcription
from fastwhisper.whisper.decoding import is_silence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastwhisper.transcribing.mel import MelAudio
    from fastwhisper.transcribing.window_decoder import WindowDecoder
    from fastwhisper.whisper.attention import KeyValues
    from fastwhisper.whisper.decoding import DecodedWindow
    from fastwhisper.whisper.tokenizer import Tokenizer

__all__ = ["AudioWindows", "Prompt", "Window", "summarize"]

_MAX_PROMPT_TEMPERATURE: Final = 0.5
"""Text that was sampled above this temperature is not used as a prompt for the next window."""


@dataclass(frozen=True, slots=True)
class Window:
    """The result of one window.

    Attributes:
        segments: Its segments; none where nobody speaks.
        language: Code of the language.
        text_utf8: Its part of the text, as bytes: a character may end in the next window.
        end_s: End of the audio that is done, in seconds.
    """

    segments: tuple[Segment, ...]
    language: str
    text_utf8: bytes
    end_s: float


def summarize(windows: Sequence[Window], *, duration_s: float) -> Transcription:
    """Build the transcription of an audio from its windows.

    Args:
        windows: All windows of the audio in order; at least one.
        duration_s: Length of the audio in seconds.

    Returns:
        The text, the segments, and the language of the last window.
    """
    text = b"".join(window.text_utf8 for window in windows)
    return Transcription(
        text=text.decode("utf-8", errors="replace"),
        segments=tuple(segment for window in windows for segment in window.segments),
        language=windows[-1].language,
        duration_s=duration_s,
    )


class Prompt:
    """The text that the next window continues."""

    def __init__(self, decoder: WindowDecoder, *, is_first: bool, is_conditioned: bool) -> None:
        """Encode the initial prompt.

        Args:
            decoder: Its settings say what the prompt is.
            is_first: Whether this is the prompt of an audio's first window.
            is_conditioned: Whether the text of a window is part of the next prompt.
        """
        settings = decoder.settings
        self._is_conditioned = is_conditioned
        self._max_tokens = decoder.max_prompt_tokens
        self._carried: list[int] = []  # the initial prompt, if every window has it
        self._text: list[int] = []  # the text before, and otherwise the initial prompt
        if settings.initial_prompt is not None:
            tokens = decoder.encode_prompt(settings.initial_prompt)
            if settings.carry_initial_prompt:
                self._carried = tokens
            elif is_first:
                self._text = tokens

    def build(self) -> list[int]:
        """Return the carried prompt, and as much of the end of the text before as has room.

        Source:
            `carry_initial_prompt` in `transcribe.py` of openai/whisper.
        """
        room = self._max_tokens - len(self._carried)
        return self._carried + self._text[max(0, len(self._text) - room) :]

    def add(self, segments: Sequence[Segment], temperature: float) -> None:
        """Add the segments of a window, which were sampled at a temperature."""
        if not self._is_conditioned or temperature > _MAX_PROMPT_TEMPERATURE:
            self._text = []
            return
        for segment in segments:
            self._text.extend(segment.tokens)


class _Clip(NamedTuple):
    """What is decoded of an audio.

    Attributes:
        start_frame: First mel frame; one frame is 10 ms.
        end_frame: The frame behind the last one.
        end_s: Its end in seconds.
    """

    start_frame: int
    end_frame: int
    end_s: float


class AudioWindows:
    """The windows of one audio, or of a part of it. Each decides where the next one begins."""

    def __init__(
        self, decoder: WindowDecoder, audio: MelAudio, prompt: Prompt, *, offset_s: float | None
    ) -> None:
        """Set up the windows.

        Args:
            decoder: It has begun.
            audio: The mel.
            prompt: Changed with each window.
            offset_s: When the part of an audio begins in the file, in seconds; None if the audio
                begins with the file. Of the part, the clips of the settings are decoded.
        """
        self.audio = audio
        self._decoder = decoder
        self._settings = decoder.settings
        self._prompt = prompt
        self._offset_s = offset_s
        self._content_frames = audio.content_frames
        # Mel frames and seconds from one timestamp token to the next: 2 and 0.02 s.
        self._frames_per_step = WINDOW_FRAMES // decoder.model.dims.n_audio_ctx
        self._step_s = self._frames_per_step / FRAMES_PER_SECOND
        self._clips = self._read_clips()
        self._seek = self._clips[0].start_frame
        self._last_speech_s = 0.0

    @property
    def _tokenizer(self) -> Tokenizer:
        return self._decoder.tokenizer

    @property
    def offset_frames(self) -> int:
        """Mel frames before the part of an audio."""
        return round((self._offset_s or 0.0) * FRAMES_PER_SECOND)

    def propose(self) -> WindowBounds | None:
        """Return the bounds of the next window; None if there is none. Changes nothing else."""
        while self._clips:
            if self._seek < self._clips[0].end_frame:
                return self._bounds(self._clips[0].end_frame)
            self._clips.popleft()
            if self._clips:
                self._seek = self._clips[0].start_frame
        return None

    def build_prompt(self) -> list[int]:
        """Return the tokens of the text before the next window."""
        return self._prompt.build()

    def accept(
        self, bounds: WindowBounds, audio: Sequence[KeyValues], result: DecodedWindow
    ) -> Window:
        """Take the result of the window that was proposed, and move on.

        Args:
            bounds: What `propose` returned.
            audio: The window, as `WindowDecoder.read` returned it. Without word times nobody looks.
            result: The decoded window.

        Returns:
            Its segments, at their times in the whole audio.
        """
        segments = self._read_segments(bounds, audio, result)
        # Word times and thresholds may ask for the same window again, which would never end: then
        # go on after it.
        if self._seek <= bounds.start_frame:
            self._seek = bounds.start_frame + bounds.frames
        return self._build_window(segments, bounds)

    def _read_clips(self) -> deque[_Clip]:
        """Return the clips, in the part."""
        duration_s = self.audio.duration_s
        offset_s = self._offset_s or 0.0
        times_s = [time_s - offset_s for time_s in self._settings.clip_timestamps or (0.0,)]
        if len(times_s) % 2 == 1:
            times_s.append(max(duration_s, times_s[-1]))
        frames = [max(round(time_s * FRAMES_PER_SECOND), 0) for time_s in times_s]
        return deque(
            # Without the end of the audio as a bound, a clip beyond it would never end.
            _Clip(start, min(end, self._content_frames), min(end_s, duration_s))
            for start, end, end_s in zip(frames[::2], frames[1::2], times_s[1::2], strict=True)
        )

    def _bounds(self, end_frame: int) -> WindowBounds:
        """Return the bounds of the window at `_seek`, in a clip that ends at `end_frame`."""
        start = self._seek
        frames = min(WINDOW_FRAMES, end_frame - start)
        return WindowBounds(
            start_frame=start,
            frames=frames,
            start_s=start / FRAMES_PER_SECOND,
            duration_s=frames / FRAMES_PER_SECOND,
            window_end_s=(start + WINDOW_FRAMES) / FRAMES_PER_SECOND,
        )

    def _build_window(self, segments: list[Segment], bounds: WindowBounds) -> Window:
        """Build the result of a window."""
        tokens = [token for segment in segments for token in segment.tokens]
        text = [token for token in tokens if token < self._tokenizer.timestamp_begin]
        offset_s = self._offset_s or 0.0
        end_s = offset_s + min(self._seek, self._content_frames) / FRAMES_PER_SECOND
        if self._offset_s is not None:
            segments = [move_segment(segment, offset_s) for segment in segments]
        segments = bound_times(
            segments,
            begin_s=offset_s + bounds.start_s,
            end_s=offset_s + self._clips[0].end_s,
            next_s=end_s,
        )
        return Window(
            segments=tuple(segments),
            language=self._decoder.language,
            text_utf8=self._tokenizer.decode_bytes(text),
            end_s=end_s,
        )

    def _read_segments(
        self, bounds: WindowBounds, audio: Sequence[KeyValues], result: DecodedWindow
    ) -> list[Segment]:
        """Return the segments of a window, and move `_seek`."""
        if is_silence(result, self._settings):
            self._seek += bounds.frames
            return []

        drafts = self._split_segments(result.tokens, bounds)
        if self._settings.word_timestamps and not self._add_words(
            drafts, bounds, audio, ends_with_speech=self._ends_with_speech(result.tokens)
        ):
            return []

        segments = [self._build_segment(draft, bounds, result) for draft in drafts]
        self._prompt.add(segments, result.temperature)
        return segments

    def _ends_with_speech(self, tokens: list[int]) -> bool:
        """Return whether speech may go on after the last token: it is not a lone timestamp."""
        is_time = [token >= self._tokenizer.timestamp_begin for token in tokens[-2:]]
        return is_time != [False, True]

    def _split_segments(self, tokens: list[int], bounds: WindowBounds) -> list[Draft]:
        """Split tokens into segments where two timestamps meet, and move `_seek`."""
        begin = self._tokenizer.timestamp_begin
        is_time = [token >= begin for token in tokens]
        ends = [i for i in range(1, len(tokens)) if is_time[i - 1] and is_time[i]]
        if not ends:
            self._seek += bounds.frames
            times = [token - begin for token in tokens if token >= begin]
            spoken_s = times[-1] * self._step_s if times and times[-1] else bounds.duration_s
            return [self._build_draft(tokens, bounds.start_s, bounds.start_s + spoken_s)]

        if self._ends_with_speech(tokens):
            # The tokens after the last pair are unfinished: the next window begins with them.
            self._seek += (tokens[ends[-1] - 1] - begin) * self._frames_per_step
        else:
            ends.append(len(tokens))
            self._seek += bounds.frames
        drafts = []
        for first, end in zip([0, *ends], ends, strict=False):
            part = tokens[first:end]
            start_s = bounds.start_s + (part[0] - begin) * self._step_s
            end_s = bounds.start_s + (part[-1] - begin) * self._step_s
            drafts.append(self._build_draft(part, start_s, end_s))
        return drafts

    def _build_draft(self, tokens: list[int], start_s: float, end_s: float) -> Draft:
        text = self._tokenizer.decode([t for t in tokens if t < self._tokenizer.eot])
        return Draft(start_s, end_s, text, tokens)

    def _add_words(
        self,
        drafts: list[Draft],
        bounds: WindowBounds,
        audio: Sequence[KeyValues],
        *,
        ends_with_speech: bool,
    ) -> bool:
        """Add words to drafts, and move `_seek` by them.

        Returns:
            Whether the result is used. If not, the next window begins at `_seek`.
        """
        add_words(
            drafts,
            model=self._decoder.model,
            tokenizer=self._tokenizer,
            audio=audio,
            bounds=bounds,
            settings=self._settings,
            last_speech_s=self._last_speech_s,
        )
        if ends_with_speech:
            self._seek_to_end_of_speech(drafts, bounds)
        if not self._skip_hallucinations(drafts, bounds):
            return False
        end_s = find_speech_end_s(drafts)
        if end_s is not None:
            self._last_speech_s = end_s
        return True

    def _seek_to_end_of_speech(self, drafts: list[Draft], bounds: WindowBounds) -> None:
        """Move `_seek` to the end of the last word, or past a silence that is skipped anyway."""
        end_s = find_speech_end_s(drafts)
        if end_s is None or end_s <= bounds.start_s:
            return
        threshold_s = self._settings.hallucination_silence_threshold
        if threshold_s is not None and bounds.window_end_s - end_s <= threshold_s:
            self._seek = bounds.start_frame + bounds.frames
        else:
            self._seek = round(end_s * FRAMES_PER_SECOND)

    def _skip_hallucinations(self, drafts: list[Draft], bounds: WindowBounds) -> bool:
        """Remove what the network probably invented, and move `_seek`; see `_add_words`."""
        threshold_s = self._settings.hallucination_silence_threshold
        if threshold_s is None:
            return True
        seek = skip_leading_silence(drafts, bounds=bounds, threshold_s=threshold_s)
        if seek is not None:
            self._seek = seek
            return False
        seek = drop_hallucinations(
            drafts,
            bounds=bounds,
            threshold_s=threshold_s,
            last_speech_s=self._last_speech_s,
            content_frames=self._content_frames,
        )
        if seek is not None:
            self._seek = seek
        return True

    def _build_segment(self, draft: Draft, bounds: WindowBounds, result: DecodedWindow) -> Segment:
        # A segment without duration or text holds no speech.
        has_speech = draft.start_s != draft.end_s and draft.text.strip() != ""
        return Segment(
            start_s=draft.start_s,
            end_s=draft.end_s,
            text=draft.text if has_speech else "",
            tokens=tuple(draft.tokens) if has_speech else (),
            avg_logprob=result.avg_logprob,
            no_speech_prob=result.no_speech_prob,
            compression_ratio=result.compression_ratio,
            temperature=result.temperature,
            words=draft.words if has_speech else (),
            seek_frames=bounds.start_frame,
        )
