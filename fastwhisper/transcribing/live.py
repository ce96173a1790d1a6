"""Sound that comes in -> text that becomes final: passes over what is not final yet.

Each pass decodes what follows the final text. Final text whose sound is still there is given to the
decoder, as the begin of its transcript. What two passes in a row agree on is final. A pause, a full
buffer and the end make the rest final too. Silence costs no pass.

Source:
    LocalAgreement-2: Macháček et al. 2023, "Turning Whisper into Real-Time Transcription System".
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from fastwhisper.transcribing.agreement import (
    JITTER_S,
    Agreement,
    count_repeats,
    ends_sentence,
    split_sentences,
)
from fastwhisper.transcribing.mel import FRAMES_PER_SECOND, WINDOW_FRAMES, compute_blocks_mel
from fastwhisper.transcribing.speech_buffer import SpeechBuffer
from fastwhisper.transcribing.voice import FRAME_SAMPLES
from fastwhisper.transcribing.window_decoder import WindowDecoder, WindowRef
from fastwhisper.transcribing.words import Draft, WindowBounds, add_words
from fastwhisper.values import LiveText
from fastwhisper.whisper.decoding import is_silence
from fastwhisper.whisper.filters import SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastwhisper.transcribing.samples import FloatArray
    from fastwhisper.values import Word
    from fastwhisper.whisper.attention import KeyValues
    from fastwhisper.whisper.network import Whisper
    from fastwhisper.whisper.options import DecodeSettings

__all__ = ["LiveDecoder"]

_MAX_SAMPLES: Final = 30 * SAMPLE_RATE
"""The most sound of a pass: a window of Whisper."""

_SPEECH: Final = 0.5
_FIRST_SPEECH: Final = 0.15
"""From these probabilities on, a frame is speech; may be the begin of speech, and is kept."""

_SPOKEN_FRAMES: Final = 4
"""Frames of speech, 0.13 s, without which nothing was said."""

_MARGIN_SAMPLES: Final = SAMPLE_RATE // 2
"""Silence that is kept before speech, and after it in a last pass."""

_SILENT_SAMPLES: Final = 3 * SAMPLE_RATE
"""Silence that is kept where no speech follows yet: faint speech is found by what follows it."""

_SHORT_SAMPLES: Final = 7 * SAMPLE_RATE
_LONG_SAMPLES: Final = 14 * SAMPLE_RATE
"""From these lengths on the buffer is cut at the end of a sentence; at that of a final word."""

_KNOWN_CHARACTERS: Final = 400
"""Final text that is kept as a prompt."""

_FIRST_TIME_S: Final = 1.0
"""The decoder has learnt that a transcript does not begin later in its window."""

_BASE_TOKENS: Final = 16
_TOKENS_PER_S: Final = 15
"""A tentative pass writes at most so many tokens, and so many more for each second that is not
final: twice as many as a window of 30 s may have. A loop would go on for seconds."""

_UNSURE_S: Final = 1.6
"""A word so close to the end of the sound is not final: what follows may change it."""

_NEARLY_SAMPLES: Final = 3 * SAMPLE_RATE
"""A pass that ends in a loop is worth less than a pass that heard so much less."""

_SETTLED_S: Final = 5.0
"""Sound after which the language is not detected again."""


class LiveDecoder:
    """The passes over one stream of sound. All methods run in engine threads, one at a time.

    An exception from `check` ends a call and loses nothing.

    Attributes:
        passes: Passes that were run.
        dropped_passes: Tentative passes that were due and were not run, under load.
    """

    def __init__(
        self,
        model: Whisper,
        settings: DecodeSettings,
        *,
        fp16: bool,
        min_chunk_s: float,
        pause_s: float,
        check: Callable[[], None],
    ) -> None:
        """Set up the decoder.

        Args:
            model: The network. All its arrays are evaluated.
            settings: How to decode, with word times.
            fp16: As for `Batches`.
            min_chunk_s: Seconds of new sound after which the next tentative pass is due.
            pause_s: Seconds without speech after which everything is final.
            check: Called before each token and each pass of the encoder; may raise to cancel.
        """
        self.passes = 0
        self.dropped_passes = 0
        self._new_decoder = partial(WindowDecoder, model, settings, fp16=fp16, check=check)
        self._decoder = self._new_decoder()
        self._settings = settings
        self._unsettled = round(_SETTLED_S * SAMPLE_RATE)  # samples to detect the language from
        self._min_samples = max(2 * FRAME_SAMPLES, round(min_chunk_s * SAMPLE_RATE))
        self._pause_samples = round(pause_s * SAMPLE_RATE)
        self._buffer = SpeechBuffer()
        self._done = 0  # the sound before is over, with or without text
        self._heard = 0
        self._well_heard = -_NEARLY_SAMPLES  # by the last pass whose text was no loop
        self._agreement = Agreement()
        self._known: list[Word] = []
        self._shown = ""

    @property
    def end(self) -> int:
        """Samples that came."""
        return self._buffer.end

    @property
    def room(self) -> int:
        """Samples that may be pushed before the next call of `decode`."""
        return _MAX_SAMPLES - len(self._buffer)

    @property
    def _begin_s(self) -> float:
        """Begin of the buffer, in seconds."""
        return self._buffer.start / SAMPLE_RATE

    @property
    def backlog(self) -> int:
        """Samples that came and were not in a pass, though they may be speech."""
        return self.end - max(self._heard, self._buffer.start)

    def push(self, samples: FloatArray) -> None:
        """Add sound.

        Args:
            samples: Mono samples at 16 kHz, nominally in [-1, 1]. Shape (samples,), float32; at
                most `room`.
        """
        self._buffer.push(samples)
        self._drop_silence()

    def is_due(self, *, is_last: bool) -> bool:
        """Return whether `decode` has something to do.

        Args:
            is_last: Whether nothing follows.
        """
        tail, has_speech = bool(self._agreement.tail), self._has_speech()
        if self._is_pause(is_last=is_last) or self.room <= 0:
            is_unheard = has_speech and not self._is_heard()
            return tail or is_unheard or self.room <= 0
        # The first words are shown sooner.
        least = self._min_samples if tail else self._min_samples // 2
        return has_speech and self.end - self._heard >= least

    def decode(self, *, is_last: bool) -> list[LiveText]:
        """Run a pass if it is due.

        Args:
            is_last: Whether nothing follows: all becomes final.

        Returns:
            What became final, then what is tentative, if either is new.
        """
        if not self.is_due(is_last=is_last):
            return []
        is_pause = self._is_pause(is_last=is_last)
        is_over = is_pause or self.room <= 0
        final: list[Word] = []
        if self._has_speech() and not (is_over and self._is_heard()):
            words = self._run_pass(is_over=is_over)
            self.dropped_passes += max(0, self._count_unheard() // self._min_samples - 1)
            self.passes += 1
            self._unsettled -= self.end - max(self._heard, self._buffer.start)
            self._heard = self.end
            if words is not None:
                sure_s = self.end / SAMPLE_RATE - _UNSURE_S
                final += self._agreement.add(words, sure_s=sure_s)
        if is_over:
            final += self._agreement.accept(self._count_over(is_pause=is_pause))
        if is_pause:
            self._done = self._buffer.speech_end
        self._known += final
        self._cut(is_last=is_last)
        return self._say(final)

    # What is speech

    def _find_speech(self, least: float) -> np.ndarray:
        """Return where frames of speech begin that are not final."""
        done = max(round(self._agreement.end_s * SAMPLE_RATE), self._done)
        starts = self._buffer.find_speech(least)
        return starts[starts >= done]

    def _has_speech(self) -> bool:
        return len(self._find_speech(_SPEECH)) >= _SPOKEN_FRAMES

    def _count_unheard(self) -> int:
        """Return the samples of speech that were in no pass."""
        return int(np.count_nonzero(self._find_speech(_SPEECH) >= self._heard)) * FRAME_SAMPLES

    def _is_heard(self) -> bool:
        """Return whether the last pass that gave a text, or none, had all speech."""
        return self._well_heard >= self._buffer.speech_end + _MARGIN_SAMPLES // 2

    def _is_pause(self, *, is_last: bool) -> bool:
        """Return whether nobody speaks any more."""
        return is_last or self.end - self._buffer.speech_end >= self._pause_samples

    # Passes

    def _run_pass(self, *, is_over: bool) -> list[Word] | None:
        """Decode the buffer; None if the text of the pass before is to be kept."""
        end = len(self._buffer)
        if is_over:  # a long silence at the end invites inventions
            end = min(end, self._buffer.speech_end + _MARGIN_SAMPLES - self._buffer.start)
        samples = iter([self._buffer.samples[:end]])
        mel = compute_blocks_mel(samples, n_mels=self._decoder.model.dims.n_mels)
        if self._unsettled > 0:
            self._decoder = self._new_decoder()
            self._decoder.begin(mel)
        decoder = self._decoder
        frames = min(mel.content_frames, WINDOW_FRAMES)
        audio = decoder.read(decoder.encode([WindowRef(mel, 0, frames)]))
        known = self._encode_known()
        room = decoder.max_prompt_tokens - len(known)
        new_s = self.end / SAMPLE_RATE - max(self._begin_s, self._agreement.end_s)
        limit = None if is_over else _BASE_TOKENS + round(_TOKENS_PER_S * new_s)
        [result] = decoder.decode(
            audio,
            [self._encode_prompt()[-room:] if room > 0 else []],
            start_frames=[self._buffer.start // 160],
            known=known,
            max_tokens=limit,
        )
        if is_silence(result, self._settings):
            self._well_heard = self.end
            return []
        words = self._align(known, result.tokens, audio, frames)
        inside = [word for word in self._known if self._is_inside(word)]
        repeats = min(len(words), count_repeats([*inside, *words]))
        ratio = self._settings.compression_ratio_threshold
        if not repeats and (ratio is None or result.compression_ratio <= ratio):
            if len(result.tokens) != limit:  # otherwise its end is missing
                self._well_heard = self.end
            return words
        # The text of the pass before is better than a loop, if that heard nearly as much.
        is_near = self._agreement.tail and self.end - self._well_heard < _NEARLY_SAMPLES
        if is_near or not is_over:
            return None
        return words[: len(words) - repeats]

    def _align(
        self, known: Sequence[int], tokens: Sequence[int], audio: Sequence[KeyValues], frames: int
    ) -> list[Word]:
        """Return the words that follow the known text, those after the last time too."""
        decoder = self._decoder
        before, new = ([t for t in part if t < decoder.tokenizer.eot] for part in (known, tokens))
        text = [*before, *new]
        duration_s = frames / FRAMES_PER_SECOND
        draft = Draft(0.0, duration_s, decoder.tokenizer.decode(text), text)
        add_words(
            [draft],
            model=decoder.model,
            tokenizer=decoder.tokenizer,
            audio=audio,
            bounds=WindowBounds(0, frames, 0.0, duration_s, WINDOW_FRAMES / FRAMES_PER_SECOND),
            settings=self._settings,
            last_speech_s=0.0,
        )
        words: list[Word] = []
        known_characters = len(decoder.tokenizer.decode(before))
        for word in draft.words or ():
            start_s, end_s = (
                round(self._begin_s + min(time_s, duration_s), 2)
                for time_s in (word.start_s, word.end_s)
            )
            # The middle: the begin of a word moves more from pass to pass.
            is_new = before or (start_s + end_s) / 2 > self._agreement.end_s - JITTER_S / 2
            # What follows the known text without a space is a word with it: "I" and "'m". A comma
            # there comes and goes from pass to pass, and is left out.
            rest = word.word[max(0, known_characters) :]
            if is_new and (known_characters <= 0 or any(map(str.isalnum, rest))):
                words.append(replace(word, word=rest, start_s=start_s, end_s=end_s))
            known_characters -= len(word.word)
        return words

    def _encode_prompt(self) -> list[int]:
        """Return the final text before the buffer as tokens; before the first, the prompt."""
        words = [word.word for word in self._known if not self._is_inside(word)]
        text = "".join(words)[-_KNOWN_CHARACTERS:] or self._settings.initial_prompt
        return self._decoder.encode_prompt(text) if text else []

    def _encode_known(self) -> list[int]:
        """Return the final text of the buffer as tokens, after its time."""
        inside = [word for word in self._known if self._is_inside(word)]
        if not inside:
            return []
        tokenizer, steps = self._decoder.tokenizer, self._decoder.model.dims.n_audio_ctx
        tokens = tokenizer.encode("".join(word.word for word in inside))
        start_s = max(0.0, inside[0].start_s - self._begin_s)
        time = tokenizer.timestamp_begin + round(min(start_s, _FIRST_TIME_S) * steps / 30)
        return [time, *tokens]

    def _is_inside(self, word: Word) -> bool:
        """Return whether the sound of a final word is in the buffer."""
        return word.end_s > self._begin_s + JITTER_S

    def _count_over(self, *, is_pause: bool) -> int:
        """Return how many words of the tail become final where speech ends or has no room."""
        tail = self._agreement.tail
        if is_pause:
            return len(tail)
        # The speech goes on: up to the end of a sentence, or without the last words.
        ends = [n for n, word in enumerate(tail, 1) if ends_sentence(word)]
        return ends[-1] if ends else max(1, len(tail) - 2)

    # What is kept

    def _cut(self, *, is_last: bool) -> None:
        """Cut the buffer where final text ends."""
        self._drop_silence()
        if is_last:
            self._buffer.drop(len(self._buffer))
            return
        size = len(self._buffer)
        # The decoder needs tokens for what is new, too.
        has_much = len(self._encode_known()) > self._decoder.max_prompt_tokens // 2
        is_long = has_much or size > _LONG_SAMPLES
        ends_s = [
            word.end_s
            for word in self._known
            if is_long or (size > _SHORT_SAMPLES and ends_sentence(word))
        ]
        self._buffer.drop(round(max(ends_s, default=0.0) * SAMPLE_RATE) - self._buffer.start)
        if self.room <= 0:  # no text in 30 s of what seems to be speech
            self._buffer.drop(_MAX_SAMPLES // 2)
        start_s = self._begin_s - 60
        self._known = [word for word in self._known if word.end_s > start_s]

    def _drop_silence(self) -> None:
        """Drop what is before the next speech, but for a margin."""
        if self._is_pause(is_last=False) and self._is_heard() and not self._agreement.tail:
            self._done = self._buffer.speech_end  # a cough: no pass found words in it
        if self._has_speech():
            first = int(self._find_speech(_FIRST_SPEECH)[0])
            # A sentence that is not over is heard better from its begin, though that is final.
            if not any(word.end_s > self._begin_s for word in self._known):
                self._buffer.drop(first - self._buffer.start - _MARGIN_SAMPLES)
        elif not self._agreement.tail:
            self._buffer.drop(len(self._buffer) - _SILENT_SAMPLES)

    # What is said

    def _say(self, final: Sequence[Word]) -> list[LiveText]:
        said = [self._build(words, is_final=True) for words in split_sentences(final)]
        tail = self._agreement.tail
        text = "".join(word.word for word in tail)
        if tail and (final or text != self._shown):
            said.append(self._build(tail, is_final=False))
        elif self._shown and not tail and not final:
            end_s = self._agreement.end_s
            said.append(
                LiveText("", end_s, end_s, is_final=False, backlog_s=self.backlog / SAMPLE_RATE)
            )
        self._shown = text
        return said

    def _build(self, words: Sequence[Word], *, is_final: bool) -> LiveText:
        start_s = words[0].start_s if is_final else max(words[0].start_s, self._agreement.end_s)
        return LiveText(
            text="".join(word.word for word in words),
            start_s=start_s,
            end_s=max(words[-1].end_s, start_s),
            is_final=is_final,
            backlog_s=self.backlog / SAMPLE_RATE,
        )
