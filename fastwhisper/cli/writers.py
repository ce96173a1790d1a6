"""Writers of transcriptions as text files: txt, srt, vtt, tsv, json.

For the same result they write the same bytes as mlx_whisper, but for segments without text, which
are left out, and for what its writers leave unescaped: markup and arrows in subtitles, empty lines
in a cue, line breaks in tsv.

Source:
    `writers.py` of mlx_whisper 0.4.3; WebVTT, W3C; SubRip.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, TextIO, TypeAlias, get_args

from fastwhisper.values import Word

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastwhisper.values import Segment, Transcription

__all__ = ["FORMATS", "LAYOUT_OPTIONS", "LIVE_FORMATS", "Format", "format_line", "write"]

Format: TypeAlias = Literal["txt", "srt", "vtt", "tsv", "json"]

FORMATS: Final[tuple[Format, ...]] = get_args(Format)

LIVE_FORMATS: Final = ("txt", "srt", "vtt", "json")
"""What `format_line` can write."""

LAYOUT_OPTIONS: Final = (
    "highlight_words",
    "max_line_width",
    "max_line_count",
    "max_words_per_line",
)
"""Options of `write` that lay out subtitles."""

_NO_LIMIT: Final = 1000
_LONG_PAUSE_S: Final = 3.0

_ARROW: Final = re.compile("-{2,}>")

_Cue: TypeAlias = tuple[float, float, str]
"""Start and end in seconds, and the escaped text."""


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
class _Syntax:
    """The syntax of a subtitle format.

    Attributes:
        decimal_mark: What stands between seconds and milliseconds.
        always_hours: Whether times below one hour have hours too.
        escapes: Whether `&` and `<` are written as character references.
        arrow: What stands for `-->` in a text, where it would make a line of times.
    """

    decimal_mark: str
    always_hours: bool
    escapes: bool
    arrow: str

    def escape(self, text: str) -> str:
        """Return a part of a text without markup."""
        return text.replace("&", "&amp;").replace("<", "&lt;") if self.escapes else text

    def format_cue(self, start_s: float, end_s: float, text: str) -> str:
        """Return the lines of a cue. `text` is escaped, and may have markup of ours."""
        # An empty line ends a cue.
        lines = [line for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
        shown = _ARROW.sub(self.arrow, "\n".join(lines))
        return f"{self.format_time(start_s)} --> {self.format_time(end_s)}\n{shown}\n\n"

    def format_time(self, time_s: float) -> str:
        """Return seconds as `00:00:00,000` or `00:00.000`."""
        minutes, milliseconds = divmod(round(time_s * 1000), 60_000)
        hours, minutes = divmod(minutes, 60)
        seconds, milliseconds = divmod(milliseconds, 1000)
        prefix = f"{hours:02d}:" if self.always_hours or hours else ""
        return f"{prefix}{minutes:02d}:{seconds:02d}{self.decimal_mark}{milliseconds:03d}"


# SubRip has no escapes: its arrow is written with one dash, as mlx_whisper's is.
_SRT: Final = _Syntax(decimal_mark=",", always_hours=True, escapes=False, arrow="->")
_VTT: Final = _Syntax(decimal_mark=".", always_hours=False, escapes=True, arrow="--&gt;")


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
        transcription: The transcription. Its segments without text are left out.
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
    spoken = tuple(segment for segment in transcription.segments if segment.text.strip())
    transcription = replace(transcription, segments=spoken)
    match format:
        case "txt":
            file.writelines(f"{segment.text.strip()}\n" for segment in transcription.segments)
        case "tsv":
            _write_tsv(transcription, file)
        case "srt":
            cues = _list_cues(transcription, layout, _SRT)
            file.writelines(f"{n}\n{_SRT.format_cue(*cue)}" for n, cue in enumerate(cues, start=1))
        case "vtt":
            file.write("WEBVTT\n\n")
            cues = _list_cues(transcription, layout, _VTT)
            file.writelines(_VTT.format_cue(*cue) for cue in cues)
        case "json":
            json.dump(_build_json(transcription), file, ensure_ascii=False)
        case _:
            raise ValueError(f"unknown format {format!r}; choose from {', '.join(FORMATS)}")
    file.flush()


def format_line(kind: str, number: int, start_s: float, end_s: float, text: str) -> str:
    """Return a line of live text as a piece of a file, which may be cut after each of them.

    Args:
        kind: One of `LIVE_FORMATS`; json has an object in each line.
        number: 1 for the first line, which begins the file.
        start_s: Begin in seconds.
        end_s: End in seconds.
        text: The text.
    """
    match kind:
        case "srt":
            return f"{number}\n{_SRT.format_cue(start_s, end_s, _SRT.escape(text))}"
        case "vtt":
            head = "WEBVTT\n\n" if number == 1 else ""
            return f"{head}{_VTT.format_cue(start_s, end_s, _VTT.escape(text))}"
        case "json":
            facts = {"start": start_s, "end": end_s, "text": text}
            return f"{json.dumps(facts, ensure_ascii=False)}\n"
        case _:
            return f"{text}\n"


def _write_tsv(transcription: Transcription, file: TextIO) -> None:
    file.write("start\tend\ttext\n")
    for segment in transcription.segments:
        text = re.sub(r"\r\n|[\t\r\n]", " ", segment.text.strip())
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


def _list_cues(transcription: Transcription, layout: _Layout, syntax: _Syntax) -> Iterator[_Cue]:
    segments = transcription.segments
    if not segments or any(segment.words is None for segment in segments):
        for segment in segments:
            yield segment.start_s, segment.end_s, syntax.escape(segment.text.strip())
        return
    # A text whose words have no times is one word, so that no format loses it.
    held = (s if s.words else replace(s, words=(_hold_text(s),)) for s in segments)
    transcription = replace(transcription, segments=tuple(held))
    for subtitle in _build_subtitles(transcription, layout):
        # Escaped after the layout, which counts the characters that a reader sees.
        escaped = [replace(word, word=syntax.escape(word.word)) for word in subtitle]
        if layout.highlight_words:
            yield from _highlight(escaped, syntax)
        else:
            text = "".join(word.word for word in escaped)
            yield subtitle[0].start_s, subtitle[-1].end_s, text


def _hold_text(segment: Segment) -> Word:
    return Word(segment.text, segment.start_s, segment.end_s, probability=0.0)


def _highlight(subtitle: list[Word], syntax: _Syntax) -> Iterator[_Cue]:
    texts = [word.word for word in subtitle]
    last_s = subtitle[0].start_s
    for index, word in enumerate(subtitle):
        # Times that are written alike have nothing between them.
        if syntax.format_time(last_s) != syntax.format_time(word.start_s):
            yield last_s, word.start_s, "".join(texts)
        underlined = re.sub(r"^(\s*)(.*)$", r"\1<u>\2</u>", word.word)
        yield word.start_s, word.end_s, "".join([*texts[:index], underlined, *texts[index + 1 :]])
        last_s = word.end_s


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
