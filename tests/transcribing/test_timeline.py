"""Times of text where the audio of a file begins late, has gaps, or has broken times."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

import fastwhisper
from fastwhisper.transcribing import cuts
from fastwhisper.transcribing.parts import PartReader
from fastwhisper.transcribing.samples import never_cancel
from fastwhisper.whisper.options import DecodeSettings
from tests.helpers.audio import SAMPLE, encode, encode_at, tone
from tests.helpers.tiny_models import write_babbler
from tests.helpers.tones import ToneDetector

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BATCHES: dict[str, Any] = {"batch_size": 2}
FILTER: dict[str, Any] = {"vad_filter": True}
MODES: list[dict[str, Any]] = [{}, BATCHES, FILTER]


@pytest.fixture(autouse=True)
def tones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tones be speech, so that a test says exactly where speech is."""
    monkeypatch.setattr(cuts, "VoiceDetector", ToneDetector)


def read(path: Path, **options: Any) -> tuple[list[tuple[float, float]], float]:
    """Return begin and length of each part, and the length of the audio, in seconds."""
    settings = DecodeSettings.from_options(**options)
    reader = PartReader(path, settings, n_mels=80, check=never_cancel)
    parts = []
    while not reader.is_done:
        parts += reader.read(1)
    spans = [(part.offset_s or 0.0, part.audio.duration_s) for part in parts]
    return spans, reader.duration_s


def near(*spans: tuple[float, float], within: float = 0.1) -> list[Any]:
    """Return spans that others equal nearly: a codec has frames of up to 0.1 s."""
    return [pytest.approx(span, abs=within) for span in spans]


# Late starts and gaps


@pytest.mark.parametrize(
    ("codec", "container"),
    [("libopus", "matroska"), ("aac", "mp4"), ("aac", "mpegts"), ("pcm_s16le", "matroska")],
)
@pytest.mark.parametrize("options", MODES, ids=str)
def test_late_start_is_added(
    tmp_path: Path, codec: str, container: str, options: dict[str, Any]
) -> None:
    """Audio that begins 4 s after the video: no silence is decoded for it."""
    path = tmp_path / "film"
    encode_at(path, {4.0: 3.0}, codec=codec, container=container, picture=True)
    spans, duration_s = read(path, **options)
    assert spans == near((4, 3))
    assert duration_s == pytest.approx(7, abs=0.1)


@pytest.mark.parametrize("start_s", [0.0, 0.1])
def test_delay_of_an_encoder_is_no_late_start(tmp_path: Path, start_s: float) -> None:
    """Audio that begins 0.1 s after the video begins at 0, as FFmpeg's command writes it."""
    path = tmp_path / "film"
    encode_at(path, {start_s: 3.0}, codec="libmp3lame", container="matroska", picture=True)
    spans, duration_s = read(path)
    assert spans == [(0.0, duration_s)]


@pytest.mark.parametrize(
    ("codec", "container"),
    [
        ("libopus", "matroska"),
        ("libopus", "webm"),
        ("aac", "mp4"),
        ("aac", "mpegts"),
        ("flac", "matroska"),
    ],
)
def test_gap_is_skipped_and_later_times_keep_it(tmp_path: Path, codec: str, container: str) -> None:
    """Gaps of 10 s and of 2 s are in the times, and not in the audio."""
    path = tmp_path / "talk"
    encode_at(path, {0.0: 3.0, 13.0: 3.0, 18.0: 2.0}, codec=codec, container=container)
    spans, duration_s = read(path)
    assert spans == near((0, 3), (13, 3), (18, 2))
    assert duration_s == pytest.approx(20, abs=0.1)


@pytest.mark.parametrize("codec", ["libopus", "flac"])
def test_gap_of_an_ogg_file_is_exact_to_a_page(tmp_path: Path, codec: str) -> None:
    """An Ogg page, of up to 1 s, has one time: that of its end. FFmpeg gives it to the next one."""
    path = tmp_path / "talk"
    encode_at(path, {0.0: 3.0, 13.0: 3.0}, codec=codec, container="ogg")
    spans, duration_s = read(path)
    assert spans == near((0, 3), (13, 3), within=1.0)
    assert sum(spans[1]) == pytest.approx(16, abs=0.1)
    assert duration_s == pytest.approx(16, abs=0.1)


def test_gap_before_the_last_page_of_an_ogg_file(tmp_path: Path) -> None:
    """The time of the last page is that of the file's end."""
    path = tmp_path / "talk"
    encode_at(path, {0.0: 3.0, 13.0: 0.5}, codec="libopus", container="ogg")
    spans, duration_s = read(path)
    assert spans == near((0, 3), (13, 0.5))
    assert duration_s == pytest.approx(13.5, abs=0.1)


@pytest.mark.parametrize("options", [BATCHES, FILTER], ids=str)
def test_no_cut_holds_a_gap(tmp_path: Path, options: dict[str, Any]) -> None:
    """A new cut begins behind the gap, at its own time, also where a block of samples ends."""
    path = tmp_path / "talk"
    encode_at(path, {0.0: 30.0, 40.0: 5.0, 50.0: 35.0}, codec="pcm_s16le", container="matroska")
    spans, duration_s = read(path, **options)
    for start_s, end_s in ((0, 30), (40, 45), (50, 85)):
        inside = [span for span in spans if start_s <= span[0] < end_s]
        assert inside[0][0] == start_s
        assert sum(inside[-1]) == pytest.approx(end_s)
        assert sum(length_s for _, length_s in inside) == pytest.approx(end_s - start_s)
    assert duration_s == 85


@pytest.mark.parametrize("pieces", [{0.0: 3.0, 3.5: 3.0}, {0.0: 6.0}], ids=str)
def test_short_gap_is_none(tmp_path: Path, pieces: dict[float, float]) -> None:
    """What is missing for less than a second changes no time."""
    path = tmp_path / "talk"
    encode_at(path, pieces, codec="pcm_s16le", container="matroska")
    assert read(path) == ([(0.0, 6.0)], 6.0)


def test_many_short_gaps_add_up(tmp_path: Path) -> None:
    """Packets that are lost all the time: no time is off by more than a second."""
    path = tmp_path / "call"
    encode_at(path, {n * 1.5: 1.0 for n in range(20)}, codec="pcm_s16le", container="matroska")
    spans, duration_s = read(path)
    assert duration_s == pytest.approx(29.5, abs=1)
    audio_s = 0.0
    for start_s, length_s in spans:
        assert start_s == pytest.approx(1.5 * audio_s, abs=1)
        audio_s += length_s
    assert audio_s == 20


def test_plain_file_is_one_part_from_its_begin() -> None:
    """The delay of a codec and the pages of an Ogg file change no time."""
    settings = DecodeSettings.from_options()
    reader = PartReader(SAMPLE, settings, n_mels=80, check=never_cancel)
    (part,) = reader.read(1)
    assert part.offset_s is None
    assert reader.is_done
    assert reader.duration_s == part.audio.duration_s


# Clips


@pytest.mark.parametrize(
    ("clips", "expected"),
    [
        ("5,6,14,15", [(5, 1), (14, 1)]),
        ("1,5.5", [(4, 1.5)]),
        ("6,14", [(6, 1), (13, 1)]),
        ("8,12", []),
        ("14.5", [(14.5, 1.5)]),
        ("0,2", []),
    ],
)
def test_clips_are_times_of_the_file(
    tmp_path: Path, clips: str, expected: list[tuple[float, float]]
) -> None:
    """Clips before the late start, in a gap and across it: what is there of them is a part."""
    path = tmp_path / "film"
    encode_at(path, {4.0: 3.0, 13.0: 3.0}, codec="pcm_s16le", container="matroska", picture=True)
    spans, duration_s = read(path, clip_timestamps=clips, **BATCHES)
    assert spans == near(*expected, within=1e-3)
    assert duration_s == 16


# Broken times


def encode_flv(path: Path, seconds: float, change: Callable[[int, int], int]) -> None:
    """Write a tone whose times are changed.

    Args:
        path: Where to write.
        seconds: Length of the tone.
        change: Gets the number of a packet and its time in ms, and returns another time.

    Source:
        Video File Format Specification 10, annex E.4.1: a tag has its type, and its time in 24 and
        8 bits.
    """
    encode(path, tone(seconds, rate=44_100), codec="libmp3lame", container="flv", rate=44_100)
    data = bytearray(path.read_bytes())
    number, at = 0, 13
    while at < len(data):
        size = int.from_bytes(data[at + 1 : at + 4], "big")
        if data[at] == 8:
            low, high = slice(at + 4, at + 7), at + 7
            time_ms = change(number, int.from_bytes(data[low], "big")) % (1 << 32)
            data[low], data[high] = (time_ms % (1 << 24)).to_bytes(3, "big"), time_ms >> 24
            number += 1
        at += 11 + size + 4
    path.write_bytes(data)


def jump_once(number: int, time_ms: int) -> int:
    """Let one packet be a minute late."""
    return time_ms + 60_000 * (number == 50)


def go_back(number: int, time_ms: int) -> int:
    """Begin anew after 3 s, as a recorder that was restarted."""
    return time_ms - 3_000 * (time_ms >= 3_000)


def alternate(number: int, time_ms: int) -> int:
    """Let every second packet be a minute late."""
    return time_ms + 60_000 * (number % 2)


def count_down(number: int, time_ms: int) -> int:
    """Let times go back all the time."""
    return 60_000 - time_ms


def stand_still(number: int, time_ms: int) -> int:
    """Give all packets one time."""
    return 5_000


def be_negative(number: int, time_ms: int) -> int:
    """Begin before 0."""
    return time_ms - 10_000


def be_absurd(number: int, time_ms: int) -> int:
    """Jump by 24 days in the middle of the audio, the most that the format allows, and back."""
    return time_ms + (2**31 - 10_000) * (100 < number < 150)


@pytest.mark.parametrize(
    "change", [jump_once, go_back, alternate, count_down, stand_still, be_negative]
)
@pytest.mark.parametrize("options", [{}, BATCHES], ids=str)
def test_broken_times_change_nothing(
    tmp_path: Path, change: Callable[[int, int], int], options: dict[str, Any]
) -> None:
    """A time that no other packet confirms is none, and the audio is decoded as without times."""
    path = tmp_path / "broken.flv"
    encode_flv(path, 6, change)
    spans, duration_s = read(path, **options)
    assert spans == near((0, 6))
    assert duration_s == pytest.approx(6, abs=0.1)


def test_absurd_times_stay_in_order(tmp_path: Path) -> None:
    """Whatever a file says, no time is negative or goes back, and all of the audio is there."""
    path = tmp_path / "broken.flv"
    encode_flv(path, 6, be_absurd)
    spans, duration_s = read(path)
    assert sum(length_s for _, length_s in spans) == pytest.approx(6, abs=0.1)
    ends = [0.0, *(start_s + length_s for start_s, length_s in spans)]
    assert all(end_s <= start_s for end_s, (start_s, _) in zip(ends, spans, strict=False))
    assert duration_s == pytest.approx(ends[-1])
    assert duration_s < 31 * 24 * 3600


def compute_crc(page: bytes) -> int:
    """Compute the checksum of an Ogg page, whose own checksum is 0; RFC 3533, section 6."""
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1) ^ (0x104C11DB7 if crc >> 31 else 0)
    return crc


@pytest.mark.parametrize("granule", [0, 1, 2**62])
def test_broken_page_of_an_ogg_file(tmp_path: Path, granule: int) -> None:
    """A page with an absurd position does not move what follows."""
    path = tmp_path / "broken.ogg"
    encode(path, tone(6, rate=48_000), codec="libopus", container="ogg", rate=48_000)
    data = bytearray(path.read_bytes())
    pages = [page.start() for page in re.finditer(b"OggS", data)]
    start, end = pages[4:6]  # after two heads and two pages
    data[start + 6 : start + 14] = granule.to_bytes(8, "little", signed=True)
    data[start + 22 : start + 26] = bytes(4)
    data[start + 22 : start + 26] = compute_crc(bytes(data[start:end])).to_bytes(4, "little")
    path.write_bytes(data)
    spans, duration_s = read(path)
    assert sum(length_s for _, length_s in spans) == pytest.approx(6, abs=0.1)
    assert duration_s == pytest.approx(6, abs=0.1)


# A whole session


@pytest.mark.anyio
@pytest.mark.parametrize("options", MODES, ids=str)
async def test_session_gives_the_times_of_the_file(tmp_path: Path, options: dict[str, Any]) -> None:
    """Segments, words, progress and length are those of a player."""
    path = tmp_path / "film.mkv"
    encode_at(path, {4.0: 30.0, 60.0: 20.0}, codec="libopus", container="matroska", picture=True)
    model = write_babbler(tmp_path / "model", multilingual=False)
    heard: list[fastwhisper.TranscribeProgress] = []
    async with fastwhisper.open(model) as session:
        found = await session.transcribe(
            path,
            on_progress=heard.append,
            temperature=0.9,
            seed=1,
            sample_len=4,
            without_timestamps=True,
            no_speech_threshold=None,
            **options,
        )
    assert found.duration_s == pytest.approx(80, abs=0.2)
    assert {round(segment.start_s) for segment in found.segments} >= {4, 60}
    for segment in found.segments:
        assert any(
            start_s - 0.1 <= segment.start_s <= segment.end_s <= end_s + 0.1
            for start_s, end_s in ((4, 34), (60, 80))
        )
    assert {segment.seek_frames // 100 for segment in found.segments} >= {4, 60}
    assert heard[-1].done_s == pytest.approx(80, abs=0.2)
    assert heard[-1].duration_s == found.duration_s
