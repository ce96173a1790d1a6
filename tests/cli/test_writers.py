"""Text files: byte for byte what mlx_whisper writes for the same result, and escaped."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlx_whisper import writers as upstream

from fastwhisper.cli.writers import FORMATS, Format, write
from fastwhisper.values import Segment, Transcription, Word

UPSTREAM = {
    "txt": upstream.WriteTXT,
    "srt": upstream.WriteSRT,
    "vtt": upstream.WriteVTT,
    "tsv": upstream.WriteTSV,
    "json": upstream.WriteJSON,
}


def make_segment(
    start_s: float, end_s: float, text: str, words: tuple[Word, ...] | None = None
) -> Segment:
    """Build a segment with plain numbers for the rest."""
    return Segment(
        start_s=start_s,
        end_s=end_s,
        text=text,
        tokens=(50364, 11, 50400),
        avg_logprob=-0.25,
        no_speech_prob=1e-9,
        compression_ratio=1.5,
        temperature=0.0,
        words=words,
        seek_frames=0,
    )


def make_transcription(*segments: Segment) -> Transcription:
    """Build a transcription of an hour."""
    return Transcription("".join(s.text for s in segments), segments, "en", 3600.0)


def written(transcription: Transcription, format_: str, **layout: Any) -> str:
    """Write with our writer."""
    file = io.StringIO()
    write(transcription, cast("Format", format_), file, **layout)
    return file.getvalue()


def expected(transcription: Transcription, format_: str, **layout: Any) -> str:
    """Write the same with upstream's, without segments that have no text."""
    spoken = [segment for segment in transcription.segments if segment.text.strip()]
    result = {
        "text": transcription.text,
        "segments": [_as_dict(i, s) for i, s in enumerate(spoken)],
        "language": transcription.language,
    }
    file = io.StringIO()
    UPSTREAM[format_](".").write_result(result, file, **layout)
    return file.getvalue()


def _as_dict(number: int, segment: Segment) -> dict[str, Any]:
    # In the order in which mlx_whisper.transcribe puts them.
    form = {
        "id": number,
        "seek": segment.seek_frames,
        "start": segment.start_s,
        "end": segment.end_s,
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
    }
    if segment.words is not None:
        form["words"] = [
            {"word": w.word, "start": w.start_s, "end": w.end_s, "probability": w.probability}
            for w in segment.words
        ]
    return form


times = st.floats(0, 20_000, allow_nan=False)
# Without what upstream does not escape: markup, arrows, empty lines.
texts = st.text(st.sampled_from(' \t-abcXYZ.,é日本語🎈"\\'), max_size=12) | st.sampled_from(
    ["\u2028", " "]
)
words = st.builds(
    Word,
    word=texts.filter(str.strip),
    start_s=times,
    end_s=times,
    probability=st.floats(0, 1),
)
layouts = st.fixed_dictionaries(
    {},
    optional={
        "max_line_width": st.none() | st.integers(0, 30),
        "max_line_count": st.none() | st.integers(0, 3),
        "max_words_per_line": st.none() | st.integers(0, 4),
        "highlight_words": st.booleans(),
    },
)


def transcriptions(with_words: bool) -> st.SearchStrategy[Transcription]:  # noqa: FBT001  names the two
    """Build any transcription, all of its segments with words, at least one each, or none."""
    segments = st.builds(
        make_segment,
        times,
        times,
        texts,
        st.lists(words, min_size=1, max_size=8).map(tuple) if with_words else st.none(),
    )
    return st.lists(segments, max_size=5).map(lambda made: make_transcription(*made))


@pytest.mark.parametrize("format_", FORMATS)
@given(transcription=transcriptions(with_words=False))
@example(make_transcription())
@settings(max_examples=60, deadline=None)
def test_segments_are_written_as_upstream_does(format_: str, transcription: Transcription) -> None:
    """Without words every format is equal, byte for byte, where nothing needs an escape."""
    assert written(transcription, format_) == expected(transcription, format_)


@pytest.mark.slow
@pytest.mark.parametrize("format_", FORMATS)
@given(transcription=transcriptions(with_words=True), layout=layouts)
@settings(max_examples=150, deadline=None)
def test_words_are_laid_out_as_upstream_does(
    format_: str, transcription: Transcription, layout: dict[str, Any]
) -> None:
    """With words every format and layout is equal, byte for byte, as above."""
    theirs = layout if format_ in {"srt", "vtt"} else {}
    assert written(transcription, format_, **layout) == expected(transcription, format_, **theirs)


SPOKEN = make_transcription(
    make_segment(
        0.0,
        2.5,
        " Good morning.",
        (Word(" Good", 0.0, 0.5, 0.9), Word(" morning.", 0.5, 2.5, 0.8)),
    ),
    make_segment(3661.25, 3662.0, " Bye --> bye", (Word(" Bye", 3661.25, 3662.0, 0.7),)),
)
PLAIN = make_transcription(*(make_segment(s.start_s, s.end_s, s.text) for s in SPOKEN.segments))


@pytest.mark.parametrize(
    ("format_", "text"),
    [
        ("txt", "Good morning.\nBye --> bye\n"),
        (
            "srt",
            (
                "1\n00:00:00,000 --> 00:00:02,500\nGood morning.\n\n"
                "2\n01:01:01,250 --> 01:01:02,000\nBye -> bye\n\n"
            ),
        ),
        (
            "vtt",
            (
                "WEBVTT\n\n00:00.000 --> 00:02.500\nGood morning.\n\n"
                "01:01:01.250 --> 01:01:02.000\nBye --&gt; bye\n\n"
            ),
        ),
        ("tsv", "start\tend\ttext\n0\t2500\tGood morning.\n3661250\t3662000\tBye --> bye\n"),
    ],
)
def test_a_small_file_is_exact(format_: str, text: str) -> None:
    """The formats are what they are known to be."""
    assert written(PLAIN, format_) == text


TRICKY = "AT&T <b> says --> stop\n\n \r\n---> now &amp; >> then"


@pytest.mark.parametrize(
    ("format_", "lines"),
    [
        (
            "vtt",
            ["AT&amp;T &lt;b> says --&gt; stop", "--&gt; now &amp;amp; >> then"],
        ),
        ("srt", ["AT&T <b> says -> stop", "-> now &amp; >> then"]),
    ],
)
@pytest.mark.parametrize("has_words", [False, True])
def test_text_is_no_markup_of_subtitles(format_: str, lines: list[str], has_words: bool) -> None:  # noqa: FBT001  names the two
    """`<`, `&`, an arrow and an empty line in a text are escaped as the format wants."""
    words = tuple(
        Word(part, index / 10, index / 10 + 0.1, 1.0)
        for index, part in enumerate(re.split(r"(?= )", TRICKY))
    )
    segment = make_segment(0.0, 2.0, TRICKY, words if has_words else None)
    result = written(make_transcription(segment), format_)
    cue = result.split("\n\n")[1 if format_ == "vtt" else 0]
    assert cue.splitlines()[-2:] == lines
    assert result.count("-->") == 1
    assert result.count("\n\n") == (2 if format_ == "vtt" else 1)


@pytest.mark.parametrize("format_", ["srt", "vtt"])
def test_an_arrow_of_several_words_is_escaped(format_: str) -> None:
    """An arrow that two words make is one too; a highlighted word keeps its underline."""
    words = (Word(" <--", 0.0, 0.5, 1.0), Word(">", 0.5, 1.0, 1.0))
    transcription = make_transcription(make_segment(0.0, 1.0, " <-->", words))
    assert written(transcription, format_).count("-->") == 1
    underlined = written(transcription, format_, highlight_words=True)
    assert underlined.count("-->") == 2
    assert ("&lt;--" if format_ == "vtt" else "<--") in underlined
    assert underlined.count("<u>") == underlined.count("</u>") == 2


def test_a_line_break_ends_no_row_of_tsv() -> None:
    """Each segment is one row of three columns."""
    result = written(make_transcription(make_segment(0.0, 2.0, " a\tb\r\nc\nd")), "tsv")
    assert result == "start\tend\ttext\n0\t2000\ta b c d\n"


def test_json_holds_every_field_in_order() -> None:
    """A reader of mlx_whisper's files finds the same keys."""
    result = json.loads(written(SPOKEN, "json"))
    assert list(result) == ["text", "segments", "language"]
    assert list(result["segments"][1]) == [
        "id",
        "seek",
        "start",
        "end",
        "text",
        "tokens",
        "temperature",
        "avg_logprob",
        "compression_ratio",
        "no_speech_prob",
        "words",
    ]
    assert result["segments"][1]["words"] == [
        {"word": " Bye", "start": 3661.25, "end": 3662.0, "probability": 0.7}
    ]


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("words", [None, (Word(" Hello.", 1.0, 2.0, 1.0),)], ids=["plain", "words"])
def test_segments_without_text_are_left_out(format_: str, words: tuple[Word, ...] | None) -> None:
    """The file is that of the others alone: no empty line, no empty cue, and ids without a gap."""
    spoken = make_segment(1.0, 2.0, " Hello.", words)
    segments = [make_segment(0.0, 0.0, "", ()), spoken, make_segment(2.0, 3.0, " ", ())]
    assert written(make_transcription(*segments), format_) == written(
        replace(make_transcription(spoken), text=" Hello. "), format_
    )


@pytest.mark.parametrize("format_", ["srt", "vtt"])
@pytest.mark.parametrize("layout", [{}, {"max_words_per_line": 1}, {"highlight_words": True}])
def test_a_text_without_words_is_kept(format_: str, layout: dict[str, Any]) -> None:
    """Where words could not be aligned, the segment is one cue."""
    words = (Word(" Hello.", 1.0, 2.0, 0.9),)
    segments = [
        make_segment(1.0, 2.0, " Hello.", words),
        make_segment(2.0, 3.5, " Not aligned.", ()),
    ]
    text = written(make_transcription(*segments), format_, **layout)
    assert "Hello." in text
    assert "Not aligned." in re.sub("<.?u>", "", text)
    assert "03.500" in text.replace(",", ".")


def test_the_file_is_flushed() -> None:
    """What is written can be read at once, and the file is left open."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="utf-8", newline="")
    write(PLAIN, "txt", file)
    assert raw.getvalue() == b"Good morning.\nBye --> bye\n"
    assert not file.closed


def test_an_unknown_format_is_refused() -> None:
    """The error lists the formats."""
    with pytest.raises(ValueError, match=r"unknown format 'docx'.*txt, srt, vtt, tsv, json"):
        written(PLAIN, "docx")
