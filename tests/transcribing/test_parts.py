"""The parts of an audio: all of it or cuts, which clips, cancelled anywhere, how long it is."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fastwhisper.errors import AudioError
from fastwhisper.transcribing import cuts
from fastwhisper.transcribing.mel import WINDOW_FRAMES, compute_mel
from fastwhisper.transcribing.parts import Part, PartReader
from fastwhisper.transcribing.samples import never_cancel
from fastwhisper.whisper.options import DecodeSettings
from tests.helpers.audio import SAMPLE_RATE, noise, wav_bytes
from tests.helpers.tones import ToneDetector, alternate, silence

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fastwhisper.transcribing.samples import AudioSource

TALK = alternate(0, 25, 3, 12, 3, 23, 5)
"""Speech at 0 to 25, 28 to 40 and 43 to 66 s, then silence. Shape (71 s,), float32."""

BATCHES: dict[str, Any] = {"batch_size": 4}


@pytest.fixture(autouse=True)
def tones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tones be speech, so that a test says exactly where speech is."""
    monkeypatch.setattr(cuts, "VoiceDetector", ToneDetector)


def make_reader(
    source: AudioSource, check: Callable[[], None] = never_cancel, **options: Any
) -> PartReader:
    """Make a reader with 80 filters."""
    return PartReader(source, DecodeSettings.from_options(**options), n_mels=80, check=check)


def read_all(reader: PartReader, count: int = 1) -> list[Part]:
    """Read what is left, some parts at a time."""
    parts = []
    while not reader.is_done:
        parts += reader.read(count)
    return parts


def spans(parts: list[Part]) -> list[tuple[float | None, float, bool]]:
    """Return offset and length in seconds, and whether there may be speech, of parts."""
    return [
        (
            None if part.offset_s is None else round(part.offset_s, 1),
            round(part.audio.duration_s, 1),
            part.has_speech,
        )
        for part in parts
    ]


def sound(part: Part) -> np.ndarray:
    """Return the mel of the first 30 s of a part. Shape (3000, 80), float32."""
    return np.array(part.audio.window(0, WINDOW_FRAMES))


def check_equal(found: list[Part], expected: list[Part]) -> None:
    """Check that parts are the same, and sound the same."""
    assert spans(found) == spans(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(sound(one), sound(other))


# Which parts there are


def test_whole_audio_is_one_part() -> None:
    """Without batches and filter nothing is cut, however many parts are asked for."""
    reader = make_reader(TALK)
    (part,) = reader.read(5)
    assert reader.is_done
    assert spans([part]) == [(None, 71.0, True)]
    assert reader.duration_s == 71.0
    np.testing.assert_array_equal(sound(part), compute_mel(TALK, n_mels=80).window(0, 3000))


def test_clips_are_left_to_the_windows_of_a_whole_audio() -> None:
    """All of the audio is read: the mel of a clip depends on what is loudest in the audio."""
    (part,) = make_reader(TALK, clip_timestamps="1,5,9,12").read(1)
    assert spans([part]) == [(None, 71.0, True)]


@pytest.mark.parametrize("count", [1, 2, 50])
def test_cuts_of_a_batch_cover_the_audio(count: int) -> None:
    """Every sample is in a part, and a part may be silent."""
    reader = make_reader(TALK, **BATCHES)
    parts = read_all(reader, count)
    end = 0
    for part in parts:
        assert part.offset_s == pytest.approx(end / SAMPLE_RATE)
        samples = round(part.audio.duration_s * SAMPLE_RATE)
        expected = compute_mel(TALK[end : end + samples], n_mels=80).window(0, 3000)
        np.testing.assert_array_equal(sound(part), expected)
        end += samples
    assert end == len(TALK)
    assert {part.has_speech for part in parts} == {True, False}
    assert reader.duration_s == 71.0


def test_audio_that_fits_into_a_window_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch has it as it would be decoded alone, and nobody looks for speech in it."""
    monkeypatch.setattr(cuts, "VoiceDetector", None)
    samples = np.concatenate([silence(2), TALK])[: cuts.MAX_SAMPLES]
    assert spans(read_all(make_reader(samples, **BATCHES))) == [(0.0, 30.0, True)]
    monkeypatch.undo()
    monkeypatch.setattr(cuts, "VoiceDetector", ToneDetector)
    longer = np.concatenate([silence(2), TALK])[: cuts.MAX_SAMPLES + 1]
    assert len(read_all(make_reader(longer, **BATCHES))) > 1


def test_filter_leaves_silence_out() -> None:
    """With `vad_filter` a part has speech, with 0.4 s before and after it, at its own time."""
    found = spans(read_all(make_reader(TALK, vad_filter=True)))
    assert found == [(0.0, 25.4, True), (27.6, 12.8, True), (42.6, 23.8, True)]


@pytest.mark.parametrize("options", [BATCHES, {"vad_filter": True}], ids=str)
def test_each_clip_is_read_where_it_is(options: dict[str, Any]) -> None:
    """Parts begin and end with the clips; the samples between two clips are in none."""
    reader = make_reader(TALK, clip_timestamps="2,5,5,6.5,44,46", **options)
    assert spans(read_all(reader, 2)) == [(2.0, 3.0, True), (5.0, 1.5, True), (44.0, 2.0, True)]
    assert reader.duration_s == 71.0


def test_last_clip_without_an_end_is_read_to_the_end() -> None:
    """An odd number of times leaves the end of the last clip open."""
    found = read_all(make_reader(TALK, clip_timestamps="1,2,60", **BATCHES))
    assert spans(found)[:1] == [(1.0, 1.0, True)]
    assert found[1].offset_s == 60.0
    assert sum(part.audio.duration_s for part in found[1:]) == pytest.approx(11)


@pytest.mark.parametrize("clips", ["", "0", "0,1000"])
def test_clips_of_everything(clips: str) -> None:
    """No clip, one from the start, and one beyond the end are the whole audio."""
    check_equal(
        read_all(make_reader(TALK, clip_timestamps=clips, **BATCHES)),
        read_all(make_reader(TALK, **BATCHES)),
    )


@pytest.mark.parametrize("clips", ["80,90", "71", "3,3"])
def test_clips_of_nothing(clips: str) -> None:
    """Clips behind the end and empty ones give no part, and the length is known."""
    reader = make_reader(TALK, clip_timestamps=clips, **BATCHES)
    assert read_all(reader) == []
    assert reader.duration_s == 71.0


def test_filter_of_silence_gives_no_part() -> None:
    """Audio without speech is read to its end."""
    reader = make_reader(silence(40.5), vad_filter=True)
    assert reader.read(3) == []
    assert reader.is_done
    assert reader.duration_s == 40.5


def test_length_grows_to_the_exact_one() -> None:
    """While parts are left, the length is that of what is read."""
    samples = np.concatenate([TALK, TALK, silence(1 / SAMPLE_RATE)])
    reader = make_reader(samples, **BATCHES)
    seen = [reader.duration_s]
    while not reader.is_done:
        reader.read(1)
        seen.append(reader.duration_s)
    assert seen == sorted(seen)
    assert 0 < seen[1] < 142
    assert seen[-1] == len(samples) / SAMPLE_RATE


# Cancelled, and read on


class Alarm:
    """A check that raises once, at the given call from `arm` on."""

    def __init__(self) -> None:
        self._left = -1
        self.calls = 0

    @property
    def has_rung(self) -> bool:
        """Whether it has raised."""
        return self.calls > 0 and self._left <= 0

    def arm(self, calls: int) -> None:
        """Raise at this call from now on, the first is 1."""
        self._left = calls

    def __call__(self) -> None:
        """Count, and raise."""
        self.calls += 1
        self._left -= 1
        if self._left == 0:
            raise InterruptedError


def make_source(kind: str, samples: np.ndarray, folder: Path) -> AudioSource:
    """Make an audio of these samples."""
    if kind == "samples":
        return samples
    data = wav_bytes(samples)
    if kind == "path":
        path = folder / "talk.wav"
        path.write_bytes(data)
        return path
    file = io.BytesIO(b"before it" + data)
    file.seek(len(b"before it"))
    return file


@pytest.mark.parametrize("kind", ["samples", "path", "file object"])
@pytest.mark.parametrize("options", [{}, BATCHES, {"vad_filter": True}], ids=str)
def test_cancelled_anywhere_no_part_is_lost(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """The next call begins with the part that was not returned, wherever the last one ended."""
    expected = read_all(make_reader(make_source(kind, TALK, tmp_path), **options))
    counter = Alarm()
    read_all(make_reader(make_source(kind, TALK, tmp_path), counter, **options))
    for calls in np.unique(np.linspace(1, counter.calls, 12).astype(int)):
        alarm = Alarm()
        reader = make_reader(make_source(kind, TALK, tmp_path), alarm, **options)
        alarm.arm(calls)
        found: list[Part] = []
        try:
            while not reader.is_done:
                found += reader.read(1)
        except InterruptedError:
            found += read_all(reader, 2)
        assert alarm.has_rung
        check_equal(found, expected)
        assert reader.duration_s == 71.0


def test_cancelled_twice_no_part_is_lost() -> None:
    """A cancel while parts are skipped that were returned before is as good as any other."""
    alarm = Alarm()
    reader = make_reader(TALK, alarm, **BATCHES)
    found = reader.read(2)
    for calls in (1, 2, 3):
        alarm.arm(calls)
        with pytest.raises(InterruptedError):
            reader.read(2)
    check_equal(found + read_all(reader), read_all(make_reader(TALK, **BATCHES)))


@pytest.mark.parametrize("options", [{}, BATCHES], ids=str)
def test_cancelled_file_that_can_not_seek_says_so(options: dict[str, Any]) -> None:
    """What was read of a pipe is gone: an error, and not the rest of the audio."""

    class Pipe(io.BytesIO):
        """A file without a position."""

        name = "stdin"

        def seekable(self) -> bool:
            return False

        def tell(self) -> int:
            raise OSError("a pipe has no position")

    alarm = Alarm()
    reader = make_reader(Pipe(wav_bytes(noise(2))), alarm, **options)
    alarm.arm(1)
    with pytest.raises(InterruptedError):
        reader.read(1)
    with pytest.raises(AudioError, match=r"stdin.*read before.*open it again"):
        reader.read(1)


def test_broken_audio_is_refused_at_each_read(tmp_path: Path) -> None:
    """A reader is made without a look at the audio, and each read says what is wrong."""
    reader = make_reader(tmp_path / "gone.wav", **BATCHES)
    for _ in range(2):
        with pytest.raises(AudioError, match=r"gone\.wav"):
            reader.read(1)
    assert not reader.is_done
