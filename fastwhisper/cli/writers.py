"""Writers of transcriptions as text files: txt, srt, vtt, tsv, json.

For the same result they write the same bytes as mlx_whisper.

Source:
    `writers.py` of mlx_whisper 0.4.3; WebVTT, W3C; SubRip.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, TextIO, TypeAlias, get_args

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastwhisper.values import Segment, Transcription, Word

__all__ = ["FORMATS", "LAYOUT_OPTIONS", "Format", "write"]

Format: TypeAlias = Literal["txt", "srt", "vtt", "tsv", "json"]

FORMATS: Final[tuple[Format, ...]] = get_args(Format)

LAYOUT_OPTIONS: Final = (
    "highlight_words",
    "max_line_width",
    "max_line_count",
    "max_words_per_line",
)
"""Options of `write` that lay out subtitles."""

_NO_LIMIT: Final = 1000
_LONG_PAUSE_S: Final = 3.0

_Cue: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class _Layout:
    """The layout of words in subtitles.

    Attributes:
        max_line_width: Characters of a line, or None for no limit.
        max_line_count: Lines of a subtitle, or None for no limit.
        max_words_per_line: Words of a subtitle, or None for no limit.
        highlight_words: Show each word underlined while it is spoken.
    """

    max_line_width: int | None
    max_line_count: int | None
    max_words_per_line: int | None
    highlight_words: bool

    @property
    def keeps_segments(self) -> bool:
        """Whether each segment begins a new subtitle."""
        return self.max_line_width is None or self.max_line_count is None


@dataclass(frozen=True, slots=True)
class _Clock:
    """The format of times in a subtitle format."""

    decimal_mark: str
    always_hours: bool

    def format(self, time_s: float) -> str:
        """Return seconds as `00:00:00,000` or `00:00.000`."""
        minutes, milliseconds = divmod(round(time_s * 1000), 60_000)
        hours, minutes = divmod(minutes, 60)
        seconds, milliseconds = divmod(milliseconds, 1000)
        prefix = f"{hours:02d}:" if self.always_hours or hours else ""
        return f"{prefix}{minutes:02d}:{seconds:02d}{self.decimal_mark}{milliseconds:03d}"


_SRT_CLOCK: Final = _Clock(decimal_mark=",", always_hours=True)
_VTT_CLOCK: Final = _Clock(decimal_mark=".", always_hours=False)


def write(
    transcription: Transcription,
    format: Format,  # noqa: A002  mlx_whisper's name of it
    file: TextIO,
    *,
    max_line_width: int | None = None,
    max_line_count: int | None = None,
    highlight_words: bool = False,
    max_words_per_line: int | None = None,
) -> None:
    """Write a transcription to a text file.

    Args:
        transcription: The transcription.
        format: txt, srt, vtt, tsv or json.
        file: A text file, open for writing, in UTF-8.
        max_line_width: Maximum characters of a line in a subtitle; needs word times.
        max_line_count: Maximum lines of a subtitle; needs word times and `max_line_width`.
        highlight_words: Underline each word while it is spoken; needs word times.
        max_words_per_line: Maximum words of a subtitle; needs word times.

    Raises:
        ValueError: The format is unknown.
    """
    layout = _Layout(
        max_line_width=max_line_width or None,
        max_line_count=max_line_count or None,
        max_words_per_line=max_words_per_line or None,
        highlight_words=highlight_words,
    )
    match format:
        case "txt":
            file.writelines(f"{segment.text.strip()}\n" for segment in transcription.segments)
        case "tsv":
            _write_tsv(transcription, file)
        case "srt":
            cues = _list_cues(transcription, layout, _SRT_CLOCK)
            file.writelines(f"{n}\n{_format_cue(cue)}" for n, cue in enumerate(cues, start=1))
        case "vtt":
            file.write("WEBVTT\n\n")
            file.writelines(map(_format_cue, _list_cues(transcription, layout, _VTT_CLOCK)))
        case "json":
            json.dump(_build_json(transcription), file, ensure_ascii=False)
        case _:
            raise ValueError(f"unknown format {format!r}; choose from {', '.join(FORMATS)}")
    file.flush()


def _write_tsv(transcription: Transcription, file: TextIO) -> None:
    file.write("start\tend\ttext\n")
    for segment in transcription.segments:
        text = segment.text.strip().replace("\t", " ")
        file.write(f"{round(1000 * segment.start_s)}\t{round(1000 * segment.end_s)}\t{text}\n")


def _build_json(transcription: Transcription) -> dict[str, object]:
    return {
        "text": transcription.text,
        "segments": [
            _build_json_segment(number, segment)
            for number, segment in enumerate(transcription.segments)
        ],
        "language": transcription.language,
    }


def _build_json_segment(number: int, segment: Segment) -> dict[str, object]:
    fields: dict[str, object] = {
        "id": number,
        "seek": segment.seek_frames,
        "start": segment.start_s,
        "end": segment.end_s,
        "text": segment.text,
        "tokens": segment.tokens,
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
    }
    if segment.words is not None:
        fields["words"] = [
            {
                "word": word.word,
                "start": word.start_s,
                "end": word.end_s,
                "probability": word.probability,
            }
            for word in segment.words
        ]
    return fields


def _format_cue(cue: _Cue) -> str:
    start, end, text = cue
    return f"{start} --> {end}\n{text}\n\n"


def _list_cues(transcription: Transcription, layout: _Layout, clock: _Clock) -> Iterator[_Cue]:
    segments = transcription.segments
    if not segments or any(segment.words is None for segment in segments):
        for segment in segments:
            # A second arrow would make this text a line of times.
            text = segment.text.strip().replace("-->", "->")
            yield clock.format(segment.start_s), clock.format(segment.end_s), text
        return
    for subtitle in _build_subtitles(transcription, layout):
        if layout.highlight_words:
            yield from _highlight(subtitle, clock)
        else:
            text = "".join(word.word for word in subtitle)
            yield clock.format(subtitle[0].start_s), clock.format(subtitle[-1].end_s), text


def _highlight(subtitle: list[Word], clock: _Clock) -> Iterator[_Cue]:
    texts = [word.word for word in subtitle]
    last = clock.format(subtitle[0].start_s)
    for index, word in enumerate(subtitle):
        start, end = clock.format(word.start_s), clock.format(word.end_s)
        if last != start:
            yield last, start, "".join(texts)
        underlined = re.sub(r"^(\s*)(.*)$", r"\1<u>\2</u>", word.word)
        yield start, end, "".join([*texts[:index], underlined, *texts[index + 1 :]])
        last = end


def _build_subtitles(transcription: Transcription, layout: _Layout) -> Iterator[list[Word]]:
    """Build subtitles from words: break lines and subtitles as the layout says."""
    subtitle: list[Word] = []
    line_width = 0
    lines = 1
    max_width = layout.max_line_width or _NO_LIMIT
    last_start_s = _find_first_start_s(transcription)
    for first_of_chunk, word in _list_words(transcription, layout.max_words_per_line or _NO_LIMIT):
        pause = not layout.keeps_segments and word.start_s - last_start_s > _LONG_PAUSE_S
        last_start_s = word.start_s
        new_segment = first_of_chunk and bool(subtitle) and layout.keeps_segments
        has_room = line_width + len(word.word) <= max_width
        if line_width > 0 and has_room and not pause and not new_segment:
            line_width += len(word.word)
            subtitle.append(word)
            continue
        text = word.word.strip()
        line_begin = ""
        is_full = layout.max_line_count is not None and (pause or lines >= layout.max_line_count)
        if new_segment or (subtitle and is_full):
            yield subtitle
            subtitle = []
            lines = 1
        elif line_width > 0:
            lines += 1
            line_begin = "\n"
        line_width = len(text)
        subtitle.append(replace(word, word=line_begin + text))
    if subtitle:
        yield subtitle


def _list_words(transcription: Transcription, chunk_words: int) -> Iterator[tuple[bool, Word]]:
    """List the words, and for each whether it begins a chunk of its segment."""
    for segment in transcription.segments:
        for index, word in enumerate(segment.words or ()):
            yield index % chunk_words == 0, word


def _find_first_start_s(transcription: Transcription) -> float:
    words = (word for segment in transcription.segments for word in segment.words or ())
    first = next(words, None)
    return transcription.segments[0].start_s if first is None else first.start_s
