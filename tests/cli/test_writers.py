"""Text files: byte for byte what mlx_whisper writes for the same result."""

from __future__ import annotations

import io
import json
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
    """Write the same with upstream's."""
    result = {
        "text": transcription.text,
        "segments": [_as_dict(i, s) for i, s in enumerate(transcription.segments)],
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
texts = st.text(st.sampled_from(' \t\n-->abcXYZ.,é日本語🎈"\\&<'), max_size=12) | st.sampled_from(
    ["-->", " a --> b", "\u2028", " "]
)
words = st.builds(Word, word=texts, start_s=times, end_s=times, probability=st.floats(0, 1))
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
    """Build any transcription, all of its segments with words, or none."""
    segments = st.builds(
        make_segment,
        times,
        times,
        texts,
        st.lists(words, max_size=8).map(tuple) if with_words else st.none(),
    )
    return st.lists(segments, max_size=5).map(lambda made: make_transcription(*made))


@pytest.mark.parametrize("format_", FORMATS)
@given(transcription=transcriptions(with_words=False))
@example(make_transcription())
@settings(max_examples=60, deadline=None)
def test_segments_are_written_as_upstream_does(format_: str, transcription: Transcription) -> None:
    """Without words every format is equal, byte for byte."""
    assert written(transcription, format_) == expected(transcription, format_)


@pytest.mark.slow
@pytest.mark.parametrize("format_", FORMATS)
@given(transcription=transcriptions(with_words=True), layout=layouts)
@settings(max_examples=150, deadline=None)
def test_words_are_laid_out_as_upstream_does(
    format_: str, transcription: Transcription, layout: dict[str, Any]
) -> None:
    """With words every format and layout is equal, byte for byte."""
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
                "01:01:01.250 --> 01:01:02.000\nBye -> bye\n\n"
            ),
        ),
        ("tsv", "start\tend\ttext\n0\t2500\tGood morning.\n3661250\t3662000\tBye --> bye\n"),
    ],
)
def test_a_small_file_is_exact(format_: str, text: str) -> None:
    """The formats are what they are known to be."""
    assert written(PLAIN, format_) == text


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


def test_a_segment_that_says_nothing_does_not_hide_the_others() -> None:
    """Upstream fails on a silent first segment without word times; here the rest is written."""
    silent = make_segment(0.0, 1.0, "", ())
    spoken = make_segment(1.0, 2.0, " Hello.")
    assert "Hello." in written(make_transcription(silent, spoken), "srt")


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
