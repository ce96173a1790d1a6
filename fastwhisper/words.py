"""Word times, and the silence around what may be invented.

Alignment is mlx_whisper's, which needs numba and scipy: imported when first asked for.
What it decides about is `Draft`s, segments whose times may still move.

Source:
    `add_word_timestamps` and the hallucination skip in `transcribe` of mlx_whisper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fastwhisper.values import Word

if TYPE_CHECKING:
    import mlx.core as mx
    from mlx_whisper.tokenizer import Tokenizer
    from mlx_whisper.whisper import Whisper

    from fastwhisper.decoding import DecodeSettings

__all__ = [
    "FRAMES_PER_SECOND",
    "Draft",
    "Span",
    "add_words",
    "drop_hallucinations",
    "end_of_speech_s",
    "skip_leading_silence",
]

FRAMES_PER_SECOND: Final = 100

_PUNCTUATION: Final = "\"'“¿([{-\"'.。,，!！?？:：”)]}、"  # noqa: RUF001  punctuation of Chinese and Japanese
_SCORED_WORDS: Final = 8
_EDGE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Span:
    """The part of the audio one window covers.

    Attributes:
        start_frame: Its first frame, 10 ms each.
        frames: Frames of audio in it, at most 3000.
        start_s: Its begin, in seconds of the audio.
        duration_s: Its length in seconds.
        window_end_s: Where a full window would end, in seconds of the audio.
    """

    start_frame: int
    frames: int
    start_s: float
    duration_s: float
    window_end_s: float


@dataclass(slots=True)
class Draft:
    """A segment whose times may still move.

    Attributes:
        start_s: Begin, in seconds of the audio.
        end_s: End, in seconds of the audio.
        text: What was said.
        tokens: The tokens, timestamps among them.
        words: The words; None unless word times were asked for.
    """

    start_s: float
    end_s: float
    text: str
    tokens: list[int]
    words: tuple[Word, ...] | None = None


class _EncodedModel:
    """What alignment asks of a model, for a window that is encoded already."""

    def __init__(self, model: Whisper) -> None:
        self._model = model
        self.alignment_heads = model.alignment_heads

    def forward_with_cross_qk(
        self, features: mx.array, tokens: mx.array
    ) -> tuple[mx.array, list[mx.array]]:
        """Run the decoder. Shapes (1, 1500, state) and (1, tokens)."""
        logits, _, cross_qk = self._model.decoder(tokens, features)
        return logits, cross_qk


def add_words(
    drafts: list[Draft],
    *,
    model: Whisper,
    tokenizer: Tokenizer,
    features: mx.array,
    span: Span,
    settings: DecodeSettings,
    last_speech_s: float,
) -> None:
    """Give drafts their words, and times that agree with them.

    Args:
        drafts: The segments of one window; changed in place.
        model: The network, for its decoder and alignment heads.
        tokenizer: The tokenizer the window was decoded with.
        features: The encoded window. Shape (1500, state), float16 or float32.
        span: The part of the audio the window covers.
        settings: Says which punctuation belongs to which word.
        last_speech_s: End of the last word before the window, in seconds.
    """
    from mlx_whisper.timing import add_word_timestamps  # noqa: PLC0415  numba, scipy: 2 s

    segments: list[dict[str, Any]] = [
        {"seek": span.start_frame, "start": d.start_s, "end": d.end_s, "tokens": d.tokens}
        for d in drafts
    ]
    add_word_timestamps(
        segments=segments,
        model=_EncodedModel(model),
        tokenizer=tokenizer,
        mel=features,
        num_frames=span.frames,
        prepend_punctuations=settings.prepend_punctuations,
        append_punctuations=settings.append_punctuations,
        last_speech_timestamp=last_speech_s,
    )
    for draft, segment in zip(drafts, segments, strict=True):
        draft.start_s = float(segment["start"])
        draft.end_s = float(segment["end"])
        draft.words = tuple(
            Word(w["word"], float(w["start"]), float(w["end"]), w["probability"])
            for w in segment["words"]
        )


def end_of_speech_s(drafts: list[Draft]) -> float | None:
    """Return where the last word ends, in seconds; without words, the last segment."""
    for draft in reversed(drafts):
        if draft.words:
            return draft.words[-1].end_s
    return drafts[-1].end_s if drafts else None


def skip_leading_silence(drafts: list[Draft], *, span: Span, threshold_s: float) -> int | None:
    """Find where the window should begin instead when its first words look invented.

    Args:
        drafts: The segments of one window, with words.
        span: The part of the audio the window covers.
        threshold_s: Silence longer than this is skipped, in seconds.

    Returns:
        The frame to decode again from, or None when the window stands.
    """
    first = _next_with_words(drafts)
    if first is None or not _is_anomaly(first):
        return None
    gap_s = first.start_s - span.start_s
    if gap_s <= threshold_s:
        return None
    return span.start_frame + round(gap_s * FRAMES_PER_SECOND)


def drop_hallucinations(
    drafts: list[Draft],
    *,
    span: Span,
    threshold_s: float,
    last_speech_s: float,
    content_frames: int,
) -> int | None:
    """Remove what looks invented between silences, and all after it.

    Args:
        drafts: The segments of one window, with words; changed in place.
        span: The part of the audio the window covers.
        threshold_s: Silence longer than this is skipped, in seconds.
        last_speech_s: End of the last word before the window, in seconds.
        content_frames: Frames of the whole audio.

    Returns:
        The frame to go on from, or None when nothing was removed.
    """
    previous_end_s = last_speech_s
    for index, draft in enumerate(drafts):
        if not draft.words:
            continue
        following = _next_with_words(drafts[index + 1 :])
        if _is_anomaly(draft) and _is_isolated(
            draft, following, span=span, threshold_s=threshold_s, previous_end_s=previous_end_s
        ):
            del drafts[index:]
            if content_frames / FRAMES_PER_SECOND - draft.end_s < threshold_s:
                return content_frames
            return round(max(span.start_s + 1, draft.start_s) * FRAMES_PER_SECOND)
        previous_end_s = draft.end_s
    return None


def _next_with_words(drafts: list[Draft]) -> Draft | None:
    return next((draft for draft in drafts if draft.words), None)


def _is_isolated(
    draft: Draft,
    following: Draft | None,
    *,
    span: Span,
    threshold_s: float,
    previous_end_s: float,
) -> bool:
    if following is not None and following.words:
        next_start_s = following.words[0].start_s
    else:
        next_start_s = span.start_s + span.duration_s
    silence_before = (
        draft.start_s - previous_end_s > threshold_s
        or draft.start_s < threshold_s
        or draft.start_s - span.start_s < _EDGE_S
    )
    silence_after = (
        next_start_s - draft.end_s > threshold_s
        or _is_anomaly(following)
        or span.window_end_s - draft.end_s < _EDGE_S
    )
    return silence_before and silence_after


def _is_anomaly(draft: Draft | None) -> bool:
    """Tell whether a segment's first words are mostly improbable, too short or too long."""
    if draft is None or not draft.words:
        return False
    words = [word for word in draft.words if word.word not in _PUNCTUATION][:_SCORED_WORDS]
    score = sum(_anomaly_score(word) for word in words)
    return score >= 3 or score + 0.01 >= len(words)  # noqa: PLR2004  upstream's numbers


def _anomaly_score(word: Word) -> float:
    # The numbers are upstream's.
    duration_s = word.end_s - word.start_s
    score = 1.0 if word.probability < 0.15 else 0.0  # noqa: PLR2004
    if duration_s < 0.133:  # noqa: PLR2004
        score += (0.133 - duration_s) * 15
    if duration_s > 2.0:  # noqa: PLR2004
        score += duration_s - 2.0
    return score
