"""Audio in: media files, file objects and arrays become samples, or a typed error."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import tempfile
import threading
import wave
import zlib
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import anyio
import av
import mlx
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastwhisper.errors import AudioError
from fastwhisper.stream import detach
from fastwhisper.transcribing import links
from fastwhisper.transcribing.mel import compute_mel
from fastwhisper.transcribing.samples import load_audio, never_cancel
from fastwhisper.whisper.filters import SAMPLE_RATE
from tests.helpers.audio import encode, tone, wav_bytes

if TYPE_CHECKING:
    from pathlib import Path


def hertz_of(samples: np.ndarray) -> float:
    """Return the strongest frequency."""
    return float(np.abs(np.fft.rfft(samples)).argmax() * SAMPLE_RATE / len(samples))


def media(samples: np.ndarray, **form: Any) -> io.BytesIO:
    """Return samples as a media file, at its first byte; see `encode`."""
    file = io.BytesIO()
    encode(file, samples, **form)
    file.seek(0)
    return file


def detail_of(source: object) -> str:
    """Return what the error says about a source, once it is known to be refused by both."""
    with pytest.raises(AudioError) as mel_error:
        compute_mel(source, n_mels=80)  # type: ignore[arg-type]  # wrong types are tried too
    with pytest.raises(AudioError) as error:
        load_audio(source)  # type: ignore[arg-type]  # as above
    assert str(error.value) == str(mel_error.value)
    return error.value.detail


# Files that work


def test_16_khz_mono_16_bit_comes_back_bit_for_bit(tmp_path: Path) -> None:
    """A WAV file in the decoder's own form is only scaled."""
    samples = np.arange(-32768, 32768, 7, dtype=np.int64).astype(np.float32) / 32768
    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            (samples * 32768).astype(np.int16)[None], format="s16", layout="mono"
        )
        frame.sample_rate = SAMPLE_RATE
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    loaded = load_audio(path)
    assert loaded.dtype == np.float32
    assert np.array_equal(loaded, samples)


@pytest.mark.parametrize(
    ("codec", "container", "rate", "layout"),
    [
        ("pcm_s16le", "wav", 8_000, "mono"),
        ("pcm_s24le", "wav", 96_000, "stereo"),
        ("pcm_s16le", "wav", 48_000, "7.1"),
        ("pcm_u8", "wav", 11_025, "mono"),
        ("pcm_f32le", "wav", 16_000, "mono"),
        ("flac", "flac", 44_100, "stereo"),
        ("aac", "mp4", 44_100, "stereo"),
        ("aac", "adts", 16_000, "mono"),
        ("mp3", "mp3", 22_050, "mono"),
        ("libopus", "ogg", 48_000, "mono"),
    ],
)
def test_any_form_becomes_mono_at_16_khz(
    tmp_path: Path, codec: str, container: str, rate: int, layout: str
) -> None:
    """Codec, container, rate and channels don't matter."""
    path = tmp_path / "audio"
    encode(path, tone(1.5, rate=rate), codec=codec, container=container, rate=rate, layout=layout)
    samples = load_audio(path)
    assert samples.ndim == 1
    assert len(samples) == pytest.approx(1.5 * SAMPLE_RATE, abs=2500)
    assert hertz_of(samples) == pytest.approx(440, abs=2)


def test_a_video_gives_its_sound(tmp_path: Path) -> None:
    """The audio stream of a video is found among its streams."""
    path = tmp_path / "video.mkv"
    with av.open(str(path), "w") as output:
        picture = output.add_stream("mpeg4", rate=5, width=32, height=32, pix_fmt="yuv420p")
        stream = output.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="mono")
        add_frames(output, picture)
        frame = av.AudioFrame.from_ndarray(
            (tone(1) * 32767).astype(np.int16)[None], format="s16", layout="mono"
        )
        frame.sample_rate = SAMPLE_RATE
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert hertz_of(load_audio(path)) == pytest.approx(440, abs=2)


def add_frames(output: av.container.OutputContainer, stream: av.VideoStream) -> None:
    """Write three black pictures."""
    for _ in range(3):
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("codec", "container", "forms"),
    [
        ("mp3", "mp3", [(22_050, "mono"), (44_100, "mono")]),
        ("mp3", "mp3", [(44_100, "stereo"), (44_100, "mono")]),
        ("mp2", "mp2", [(32_000, "mono"), (44_100, "stereo")]),
        ("ac3", "ac3", [(32_000, "mono"), (48_000, "5.1")]),
        ("aac", "adts", [(22_050, "mono"), (44_100, "stereo")]),
        ("aac", "mpegts", [(22_050, "mono"), (44_100, "mono")]),
        ("libopus", "matroska", [(48_000, "mono"), (48_000, "mono")]),
        ("libopus", "ogg", [(48_000, "mono"), (16_000, "mono")]),
        ("libopus", "ogg", [(48_000, "mono"), (48_000, "stereo"), (16_000, "mono")]),
        ("vorbis", "ogg", [(44_100, "stereo"), (22_050, "stereo")]),
        ("vorbis", "ogg", [(44_100, "stereo"), (44_100, "stereo"), (8_000, "stereo")]),
        ("flac", "flac", [(44_100, "mono"), (16_000, "stereo")]),
        ("flac", "flac", [(44_100, "mono"), (44_100, "mono")]),
    ],
)
def test_a_format_that_changes_midway_is_decoded_on(
    codec: str, container: str, forms: list[tuple[int, str]]
) -> None:
    """Recordings of any rate and channels in one file are all heard, one after the other."""
    file = io.BytesIO()
    for n, (rate, layout) in enumerate(forms):
        sound = tone(2, rate=rate, hertz=440 * (n + 1))
        form = {"codec": codec, "container": container, "rate": rate, "layout": layout}
        file.write(media(sound, **form).getvalue())
    file.seek(0)
    samples = load_audio(file)
    assert len(samples) == pytest.approx(2 * len(forms) * SAMPLE_RATE, abs=3000)
    for n in range(len(forms)):
        middle = samples[2 * n * SAMPLE_RATE :][SAMPLE_RATE // 2 : SAMPLE_RATE * 3 // 2]
        assert hertz_of(middle) == pytest.approx(440 * (n + 1), abs=4)


def test_a_link_between_blocks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file is read in pieces, the head of a link may be cut."""
    data = b"".join(
        media(
            tone(1, rate=rate), codec="vorbis", container="ogg", rate=rate, layout="stereo"
        ).read()
        for rate in (44_100, 22_050)
    )
    second = data.index(b"OggS\0\2", 1)
    for size in range(second - 6, second + 8):
        monkeypatch.setattr(links, "_BLOCK_BYTES", size)
        found = list(links.split_links(io.BytesIO(data), "a.ogg", check=never_cancel))
        assert [link.read() for link in found] == [data[:second], data[second:]]


def test_a_link_that_can_not_be_decoded_is_a_warning() -> None:
    """The links before and after it are heard, and the warning says where it was."""
    form: Any = {"codec": "libopus", "container": "ogg", "rate": 48_000}
    sound = media(tone(2, rate=48_000), **form).read()
    broken = sound.replace(b"OpusHead", b"OpusHeap")
    with pytest.warns(UserWarning, match=r"^file object: .* left out at 2\.0 s \("):
        samples = load_audio(io.BytesIO(sound + broken + sound))
    assert len(samples) == pytest.approx(4 * SAMPLE_RATE, abs=1000)


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ([4], r"at 4\.0 s \("),
        ([2, 2.3], r"at 2\.0 s \("),
        ([2, 4, 6], r"at 2\.0 s, 3\.9 s, 5\.9 s \("),
        ([2, 4, 6, 8, 10], r"at 2\.0 s, 3\.9 s, 5\.9 s and at 2 more places \("),
    ],
)
def test_what_can_not_be_decoded_is_a_warning_with_its_time(places: list[float], said: str) -> None:
    """One warning for a file says where in the text its damage is."""
    data = media(tone(12), codec="aac", container="adts").getvalue()
    heads = [found.start() for found in re.finditer(rb"\xff\xf1", data)]
    damaged = bytearray(data)
    for place in places:
        start = heads[round(place * SAMPLE_RATE / 1024)]
        damaged[start + 7 : start + 60] = b"\xee" * 53
    with pytest.warns(UserWarning, match=rf"^file object: .*left out {said}") as caught:
        samples = load_audio(io.BytesIO(damaged))
    assert len(caught) == 1
    assert len(samples) > 11 * SAMPLE_RATE


OPPOSITE: Any = [
    ("pcm_s16le", "wav", "stereo", (1, -1)),
    ("pcm_s16le", "wav", "stereo", (0.9, -1)),
    ("pcm_u8", "wav", "stereo", (-1, 1)),
    ("pcm_f64le", "wav", "stereo", (1, -1)),
    ("flac", "flac", "stereo", (1, -1)),
    ("libopus", "ogg", "stereo", (1, -1)),
    ("aac", "mp4", "stereo", (1, -1)),
    ("mp3", "mp3", "stereo", (1, -1)),
    ("pcm_s16le", "wav", "quad", (1, -1, 1, -1)),
    ("pcm_s16le", "wav", "5.1", (1, -1, 0, 0, 0, 0)),
]


@pytest.mark.parametrize(("codec", "container", "layout", "gains"), OPPOSITE)
def test_channels_in_opposite_phase_are_heard(
    codec: str, container: str, layout: str, gains: tuple[float, ...]
) -> None:
    """Where a mix would be silent, the loudest channel is taken, and a warning says so."""
    channels = np.outer(tone(2, rate=48_000), gains).astype(np.float32)
    file = media(channels, codec=codec, container=container, rate=48_000, layout=layout)
    with pytest.warns(UserWarning, match=r"^file object: .*opposite phase.*louder one"):
        samples = load_audio(file)
    assert hertz_of(samples) == pytest.approx(440, abs=2)
    assert np.abs(samples[4000:28_000]).max() == pytest.approx(0.5, abs=0.06)
    assert len(samples) == pytest.approx(2 * SAMPLE_RATE, abs=2500)


def test_opposite_phase_in_a_part_changes_nothing_elsewhere() -> None:
    """Each second is decided on its own, and no sample is lost or added where that changes."""
    sound = tone(6, rate=48_000)
    channels = np.stack([sound, sound], axis=1)
    expected = load_audio(media(channels, rate=48_000, layout="stereo"))
    channels[2 * 48_000 : 4 * 48_000, 1] *= -1
    with pytest.warns(UserWarning, match="opposite phase") as caught:
        samples = load_audio(media(channels, rate=48_000, layout="stereo"))
    assert len(caught) == 1
    assert len(samples) == len(expected)
    # Of the seconds in which the phase changes, the part that is not opposite is mixed.
    is_equal = np.abs(samples - expected).reshape(-1, SAMPLE_RATE // 2).max(axis=1) < 1e-3
    assert is_equal.sum() >= 10


@pytest.mark.parametrize("gains", [(1, 1), (1, 0), (0, 1), (1, -0.5), (0, 0)])
def test_other_channels_are_mixed_as_ffmpeg_mixes_them(gains: tuple[float, float]) -> None:
    """One silent channel, or a quieter one in opposite phase, is no reason to choose."""
    sound = tone(2)
    file = media(np.outer(sound, gains).astype(np.float32), layout="stereo")
    assert load_audio(file) == pytest.approx(sound * sum(gains) / 2, abs=2 / 32768)


def test_damage_midway_loses_only_what_is_damaged(tmp_path: Path) -> None:
    """What follows a damaged stretch is decoded."""
    buffer = io.BytesIO()
    encode(buffer, tone(4), codec="mp3", container="mp3")
    data = bytearray(buffer.getvalue())
    middle = len(data) // 2
    data[middle : middle + 1000] = bytes(1000)
    path = tmp_path / "damaged.mp3"
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=r"damaged\.mp3': .* left out at 1\.9 s"):
        samples = load_audio(path)
    assert len(samples) > 3 * SAMPLE_RATE
    assert hertz_of(samples[-SAMPLE_RATE:]) == pytest.approx(440, abs=2)


# PyAV before 18 leaves out the packet with the cut, up to 1,024 samples, and FFmpeg reports it.
@pytest.mark.filterwarnings("ignore:.*is left out at 1.0 s:UserWarning")
def test_a_truncated_file_gives_what_is_there(tmp_path: Path) -> None:
    """A recording that was cut off is decoded up to the cut."""
    data = wav_bytes(tone(2))
    path = tmp_path / "cut.wav"
    path.write_bytes(data[: len(data) // 2])
    assert len(load_audio(path)) == pytest.approx(SAMPLE_RATE, abs=1024)


def test_a_path_is_never_taken_for_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file called like an FFmpeg protocol is that file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "concat:a|b.wav").write_bytes(wav_bytes(tone(1)))
    assert len(load_audio("concat:a|b.wav")) == SAMPLE_RATE


def test_a_path_that_is_no_utf_8_is_opened(tmp_path: Path) -> None:
    """The bytes of a file name reach the system unchanged."""
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.wav")
    try:
        with open(path, "wb") as file:  # noqa: PTH123  as load_audio would
            file.write(wav_bytes(tone(1)))
    except OSError:
        pytest.skip("this file system only takes UTF-8")
    assert len(load_audio(path)) == SAMPLE_RATE


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    """A playlist of existing media is refused, not followed."""
    (tmp_path / "a.wav").write_bytes(wav_bytes(tone(1)))
    path = tmp_path / "list.m3u8"
    path.write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n"
        f"{(tmp_path / 'a.wav').as_uri()}\n#EXT-X-ENDLIST\n"
    )
    assert detail_of(path)


# File objects


def test_a_binary_file_object_is_read(tmp_path: Path) -> None:
    """A seekable file object is decoded in place and left open."""
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(tone(1)))
    with path.open("rb") as file:
        assert len(load_audio(file)) == SAMPLE_RATE
        assert not file.closed


def test_a_file_object_is_read_from_where_it_stands() -> None:
    """What was read before is not part of the audio."""
    file = io.BytesIO(b"header" + wav_bytes(tone(1)))
    file.read(6)
    assert len(load_audio(file)) == SAMPLE_RATE


def test_a_pipe_is_spooled() -> None:
    """MP4, which FFmpeg can't read without seeking, comes through a pipe."""
    buffer = io.BytesIO()
    encode(buffer, tone(1), codec="aac", container="mp4")
    reader, writer = os.pipe()
    thread = threading.Thread(target=_write_and_close, args=(writer, buffer.getvalue()))
    thread.start()
    with os.fdopen(reader, "rb") as file:
        samples = load_audio(file)
    thread.join()
    assert hertz_of(samples) == pytest.approx(440, abs=2)


def _write_and_close(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


class OnlyRead:
    """An object with `read` and nothing else."""

    def __init__(self, read: Any) -> None:
        self.read = read


def test_an_object_with_only_read_is_read() -> None:
    """It needs neither `seekable` nor `tell` nor a name."""
    assert len(load_audio(OnlyRead(io.BytesIO(wav_bytes(tone(1))).read))) == SAMPLE_RATE  # type: ignore[arg-type]  # no file to the type checker


class AsyncHandle:
    """A file whose `read` is asynchronous, around a file in an attribute."""

    def __init__(self, attribute: str | None, file: object) -> None:
        if attribute is not None:
            setattr(self, attribute, file)

    async def read(self, _: int = -1) -> bytes:
        """Refuse: a thread of the engine can't wait for it."""
        raise AssertionError


@pytest.mark.parametrize("attribute", ["file", "wrapped", "_file"])
def test_an_asynchronous_file_is_read_through_the_file_in_it(attribute: str) -> None:
    """FastAPI's UploadFile, anyio's AsyncFile and aiofiles' handles hold a binary file."""
    file = tempfile.SpooledTemporaryFile()  # noqa: SIM115  closed below
    file.write(wav_bytes(tone(1)))
    file.seek(0)
    handle: Any = AsyncHandle(attribute, file)
    with file:
        assert len(load_audio(detach(handle))) == SAMPLE_RATE


@pytest.mark.anyio
async def test_files_of_anyio_are_read(tmp_path: Path) -> None:
    """What `anyio.open_file` returns is taken as its file."""
    path = anyio.Path(tmp_path / "a.wav")
    await path.write_bytes(wav_bytes(tone(1)))
    async with await path.open("rb") as file:
        assert len(load_audio(detach(file))) == SAMPLE_RATE  # type: ignore[arg-type]  # no file to the type checker


def raises(error: BaseException) -> Any:
    """Return a function that raises an error."""

    def read(_: int = -1) -> bytes:
        raise error

    return read


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (AsyncHandle(None, None), "asynchronous"),
        (AsyncHandle("file", None), "asynchronous"),
        (OnlyRead(lambda _: "text"), "text; open it in binary mode"),
        (OnlyRead(lambda _: None), "NoneType"),
        (OnlyRead(lambda: b""), "argument"),
        (OnlyRead(lambda _: b""), "empty"),
        (OnlyRead(b"no function"), "not callable"),
        (OnlyRead(raises(zlib.error("invalid block type"))), "invalid block type"),
        (OnlyRead(raises(EOFError("ended early"))), "ended early"),
    ],
)
def test_an_object_that_gives_no_bytes_is_refused(source: object, said: str) -> None:
    """One line says what its `read` does instead."""
    assert said in detail_of(source)


@pytest.mark.parametrize("error", [OSError("network is gone"), zlib.error("invalid block type")])
def test_a_read_error_midway_names_the_file(error: Exception) -> None:
    """What a file object raises halfway is an `AudioError` with its name and the reason."""

    class Failing(io.BytesIO):
        name = "talk.wav"

        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 3_000_000:
                raise error
            return super().read(size)

    for data in (wav_bytes(tone(200)), b"OggS" + bytes(4_000_000)):
        with pytest.raises(AudioError, match=rf"talk\.wav.*{error}") as caught:
            load_audio(Failing(data))
        assert caught.value.__cause__ is error


def test_an_empty_file_object_is_refused() -> None:
    """Nothing on stdin is said to be nothing."""
    assert detail_of(io.BytesIO()) == "the file is empty"


def test_a_text_file_object_is_refused() -> None:
    """`sys.stdin` instead of `sys.stdin.buffer` is named as the mistake."""
    assert "binary" in detail_of(io.StringIO("text"))


def test_a_file_object_that_can_not_be_read_is_refused(tmp_path: Path) -> None:
    """A file opened for writing is an `AudioError`."""
    with (tmp_path / "a.wav").open("wb") as file:
        file.write(b"RIFF")
        assert "can't be read" in detail_of(file)


# Files that don't


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A wrong path is named."""
    path = tmp_path / "none.wav"
    with pytest.raises(AudioError, match=r"none\.wav.*no such file"):
        load_audio(path)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/talk.mp3",
        "HTTP://example.org/talk.mp3",
        "s3://bucket/talk.mp3",
        "file:///talk.mp3",
        "rtsp://example.org/live",
        "data:audio/wav;base64," + "A" * 5000,
    ],
)
def test_a_url_is_named_as_not_opened(url: str) -> None:
    """Neither a URL nor the `Path` that somebody made of it is called a missing file."""
    for source in (url, PurePath(url)):
        detail = detail_of(source)
        assert "URL" in detail
        assert "download" in detail


def test_the_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is the home directory, in a string and in a path; a file of that name comes first."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "a.wav").write_bytes(wav_bytes(tone(1)))
    for source in ("~/a.wav", PurePath("~/a.wav")):
        assert len(load_audio(source)) == SAMPLE_RATE
    assert "no such file" in detail_of("~/b.wav")
    assert "no such file" in detail_of("~nobody-has-this-name/b.wav")
    assert detail_of("~\0")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~").mkdir()
    (tmp_path / "~" / "a.wav").write_bytes(wav_bytes(tone(2)))
    assert len(load_audio("~/a.wav")) == 2 * SAMPLE_RATE


def test_a_directory_is_refused(tmp_path: Path) -> None:
    """A directory is called one."""
    assert "directory" in detail_of(tmp_path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    """A file of zero bytes is called empty."""
    path = tmp_path / "a.wav"
    path.touch()
    assert "empty" in detail_of(path)


@pytest.mark.parametrize("data", [b"not media at all\n" * 100, bytes(4096), b"\x89PNG\r\n", b"x"])
def test_what_is_no_media_is_refused(tmp_path: Path, data: bytes) -> None:
    """Text and noise are no audio."""
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    assert detail_of(path)


def test_a_video_without_sound_is_refused(tmp_path: Path) -> None:
    """A silent film is said to have no audio stream."""
    path = tmp_path / "silent.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=5, width=32, height=32, pix_fmt="yuv420p")
        add_frames(output, stream)
    assert "no audio stream" in detail_of(path)


def test_a_file_of_zero_samples_is_refused(tmp_path: Path) -> None:
    """A WAV file that is only a header is said to hold no samples."""
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
    assert "zero samples" in detail_of(path)


def test_a_file_of_nothing_but_damage_is_refused(tmp_path: Path) -> None:
    """Media of which nothing decodes is an error, not silence."""
    path = tmp_path / "a.flac"
    buffer = io.BytesIO()
    encode(buffer, tone(1), codec="flac", container="flac")
    data = buffer.getvalue()
    header = data.index(b"\xff\xf8")
    path.write_bytes(data[:header] + bytes(len(data) - header))
    assert "zero samples" in detail_of(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    """A FIFO nobody writes to does not hang."""
    path = tmp_path / "pipe.wav"
    os.mkfifo(path)
    assert "regular file" in detail_of(path)


@pytest.mark.skipif(sys.platform == "win32", reason="no device files there")
@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "/dev/tty"])
def test_a_device_is_refused(device: str) -> None:
    """Only regular files are read."""
    assert detail_of(device)


def test_a_file_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lack of permission is called that."""

    def refuse(path: str, flags: int) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(tone(1)))
    # As root no file mode would do.
    monkeypatch.setattr(os, "open", refuse)
    assert "permission" in detail_of(path)


@pytest.mark.parametrize("path", ["a\0b.wav", "", "\udce4\0", "x" * 5000])
def test_an_impossible_path_is_refused(path: str) -> None:
    """NUL, nothing, and a name that is too long are `AudioError`s."""
    assert detail_of(path)


@pytest.mark.filterwarnings("ignore:.*left out")
@given(
    data=st.binary(max_size=400), magic=st.sampled_from([b"", b"RIFF", b"fLaC", b"OggS", b"ID3"])
)
@settings(max_examples=60, deadline=None)
def test_arbitrary_bytes_never_escape_as_another_error(data: bytes, magic: bytes) -> None:
    """Whatever a file holds, it is samples or an `AudioError`."""
    try:
        samples = load_audio(io.BytesIO(magic + data))
    except AudioError:
        return
    assert samples.ndim == 1
    assert len(samples) > 0


# Arrays


def test_numpy_samples_are_taken_as_they_are() -> None:
    """Samples need no decoding."""
    samples = tone(0.1)
    assert np.array_equal(load_audio(samples), samples)


def test_a_lazy_mlx_array_is_evaluated() -> None:
    """MLX samples may be unevaluated in their own thread."""
    samples = tone(0.1)
    assert np.array_equal(load_audio(mx.array(samples) * 1.0), samples)


def test_a_lazy_mlx_array_of_another_thread_is_refused() -> None:
    """MLX's own error becomes one that says what to do."""
    made: list[mx.array] = []
    thread = threading.Thread(target=lambda: made.append(mx.zeros(100) + 1))
    thread.start()
    thread.join()
    assert "mx.eval" in detail_of(made[0])


@pytest.mark.parametrize(
    ("dtype", "scale", "said"),
    [
        (np.float32, 20_000, "samples / 32768"),
        (np.float32, -40, "samples / 32768"),
        (np.float32, 5e6, "samples / 8388608"),
        (np.float32, 2e9, "samples / 2147483648"),
        (np.float64, 0.5, "samples.astype(numpy.float32)"),
        (np.float64, 20_000, "samples.astype(numpy.float32) / 32768"),
        (np.float16, 20_000, "samples.astype(numpy.float32) / 32768"),
        (np.int8, 100, "samples.astype(numpy.float32) / 128"),
        (np.int16, 20_000, "samples.astype(numpy.float32) / 32768"),
        (np.int16, -32_768, "samples.astype(numpy.float32) / 32768"),
        (np.int16, 3, "samples.astype(numpy.float32) / 32768"),
        (np.int32, 2e9, "samples.astype(numpy.float32) / 2147483648"),
        (np.int64, 20_000, "samples.astype(numpy.float32) / 32768"),
        (np.uint8, 200, "samples.astype(numpy.float32) / 128 - 1"),
        (np.uint16, 60_000, "samples.astype(numpy.float32) / 32768 - 1"),
    ],
)
def test_samples_in_another_range_are_refused_with_the_division(
    dtype: type[np.number[Any]], scale: float, said: str
) -> None:
    """The message is the code that makes float32 samples in [-1, 1] of them."""
    samples = np.array([0, scale, scale / 2]).astype(dtype)
    assert detail_of(samples).endswith(f"give {said}")
    assert np.abs(load_audio(eval(said, {"numpy": np, "samples": samples}))).max() <= 1
    if dtype is np.float64:
        return  # MLX has none on a GPU
    said = said.replace("numpy", "mlx.core")
    assert detail_of(mx.array(samples)).endswith(f"give {said}")
    assert len(load_audio(eval(said, {"mlx": mlx, "samples": mx.array(samples)}))) == 3


def test_samples_that_are_too_loud_are_taken() -> None:
    """A float recording may exceed 1, by as much as 30 dB."""
    samples = tone(0.1) * 40
    assert np.array_equal(load_audio(samples), samples)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (np.zeros(0, np.float32), "zero samples"),
        (np.zeros((2, 100), np.float32), "one-dimensional"),
        (np.float32(1), "path"),
        (np.zeros((), np.float32), "one-dimensional"),
        (np.zeros(100), "float64"),
        (np.zeros(100, np.int16), "int16"),
        (np.zeros(0, np.int16), "zero samples"),
        (np.array([0, np.nan]), "NaN"),
        (np.zeros(100, np.complex64), "complex64"),
        (np.array(["a.wav"]), "give float32"),
        (np.array([None]), "give float32"),
        (mx.array([True]), "bool"),
        (np.array([0, np.nan], np.float32), "NaN"),
        (np.array([0, np.inf], np.float32), "infinite"),
        (mx.zeros((1, 100)), "one-dimensional"),
        (mx.zeros(100, mx.float16), "float16"),
        (mx.zeros(100, mx.bfloat16), "bfloat16"),
        (mx.zeros(0), "zero samples"),
        ([0.0, 0.1], "path"),
        (None, "path"),
        (b"a.wav", "path"),
    ],
)
def test_a_wrong_array_is_refused(source: object, said: str) -> None:
    """Shape, type and values are checked, and the message says which is wrong."""
    assert said in detail_of(source)
