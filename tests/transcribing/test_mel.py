"""The mel: mlx_whisper's numbers block by block, in any thread, and nothing kept besides."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fastwhisper.transcribing.mel import WINDOW_FRAMES, MelAudio, compute_mel
from fastwhisper.transcribing.samples import load_audio
from fastwhisper.whisper.filters import SAMPLE_RATE
from tests.helpers.audio import encode, tone, wav_bytes
from tests.helpers.interpreter import run_python

if TYPE_CHECKING:
    from pathlib import Path


def upstream_mel(samples: np.ndarray, *, n_mels: int, padding: int) -> np.ndarray:
    """Compute mlx_whisper's mel in this thread. Shape (frames, n_mels), float32."""
    from mlx_whisper import audio  # noqa: PLC0415  imported where it is compared with

    return np.array(audio.log_mel_spectrogram(samples, n_mels=n_mels, padding=padding))


def whole(mel: MelAudio) -> np.ndarray:
    """Return a mel with 30 s of silence after it. Shape (frames, n_mels), float32."""
    frames = mel.content_frames + WINDOW_FRAMES
    silence = np.repeat(np.array(mel.silence), WINDOW_FRAMES, axis=0)
    return np.concatenate([*map(np.array, mel.blocks), silence])[:frames]


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("samples", [1, 159, 160, 201, 16_000, 479_999, 480_000, 480_001, 960_400])
def test_mel_equals_upstreams(samples: int, n_mels: int) -> None:
    """Block by block, at every length around a block's, it is upstream's whole-file mel."""
    audio = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    mel = compute_mel(audio, n_mels=n_mels)
    assert mel.content_frames == samples // 160
    assert mel.duration_s == samples / SAMPLE_RATE
    expected = upstream_mel(audio, n_mels=n_mels, padding=480_000)
    # A threaded BLAS sums in another order for another number of rows.
    np.testing.assert_allclose(whole(mel), expected, rtol=0, atol=3e-7)


@pytest.mark.parametrize(
    ("start", "frames"),
    [(0, 3000), (0, 10), (2999, 3000), (3000, 3000), (5000, 1500), (5000, 3000), (6400, 100)],
)
def test_a_window_is_a_part_of_the_mel(start: int, frames: int) -> None:
    """A window spans blocks and the silence behind the audio; zeros follow its frames."""
    mel = compute_mel(
        np.random.default_rng(1).normal(0, 0.1, 65 * 16000).astype(np.float32), n_mels=80
    )
    window = np.array(mel.window(start, frames))
    assert window.shape == (WINDOW_FRAMES, 80)
    assert np.array_equal(window[:frames], whole(mel)[start : start + frames])
    assert not window[frames:].any()


@pytest.mark.parametrize("samples", [480_000, 480_448, 480_799, 480_960, 960_448])
def test_the_last_frames_have_a_window(samples: int) -> None:
    """A few frames after a block belong to it, and can be asked for like all others."""
    mel = compute_mel(
        np.random.default_rng(2).normal(0, 0.1, samples).astype(np.float32), n_mels=80
    )
    for start in range(mel.content_frames - 8, mel.content_frames):
        frames = mel.content_frames - start
        window = np.array(mel.window(start, frames))
        assert np.array_equal(window[:frames], whole(mel)[start : start + frames])


def test_a_file_has_the_mel_of_its_samples(tmp_path: Path) -> None:
    """A file decoded as a stream has the same mel as its samples."""
    path = tmp_path / "a.flac"
    encode(path, tone(65), codec="flac", container="flac")
    from_file = compute_mel(path, n_mels=80)
    from_samples = compute_mel(load_audio(path), n_mels=80)
    assert np.array_equal(whole(from_file), whole(from_samples))
    assert from_file.duration_s == from_samples.duration_s == 65


def test_mel_may_be_used_in_any_thread(tmp_path: Path) -> None:
    """A mel made in one thread can be read in another."""
    made = []
    thread = threading.Thread(target=lambda: made.append(compute_mel(tone(1), n_mels=80)))
    thread.start()
    thread.join()
    assert np.array_equal(whole(made[0]), whole(compute_mel(tone(1), n_mels=80)))


def test_an_unknown_number_of_filters_is_refused() -> None:
    """A network that is no Whisper is told so before anything is read."""
    with pytest.raises(ValueError, match="n_mels=81"):
        compute_mel("missing.wav", n_mels=81)


@pytest.mark.parametrize("kind", ["file", "samples", "pipe"])
def test_cancelling_stops_between_blocks(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `check` raises comes out, and the audio is not read on."""
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(tone(120)))
    unseekable = io.BytesIO(path.read_bytes())
    monkeypatch.setattr(unseekable, "seekable", lambda: False, raising=False)
    sources: dict[str, Any] = {"file": path, "samples": tone(120), "pipe": unseekable}
    calls: list[None] = []

    def check() -> None:
        calls.append(None)
        if len(calls) == 3:
            raise InterruptedError

    # An OSError on purpose: it must not be taken for the file's.
    with pytest.raises(InterruptedError):
        compute_mel(sources[kind], n_mels=80, check=check)
    assert len(calls) == 3


@pytest.mark.slow
def test_only_the_mel_is_kept(tmp_path: Path) -> None:
    """Ten minutes of file cost about their mel, not their samples."""
    path = tmp_path / "long.flac"
    encode(path, tone(600), codec="flac", container="flac")
    program = (
        "import resource, sys\n"
        "from fastwhisper.transcribing.mel import compute_mel\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * "
        "(1 if sys.platform == 'darwin' else 1024)\n"
        "compute_mel(sys.argv[1], n_mels=80); before = peak()\n"
        "mel = compute_mel(sys.argv[2], n_mels=80)\n"
        "print(peak() - before, sum(block.nbytes for block in mel.blocks))\n"
    )
    short = tmp_path / "short.flac"
    encode(short, tone(70), codec="flac", container="flac")
    output = run_python("-c", program, short, path).stdout
    grown_bytes, mel_bytes = map(int, output.split())
    # The samples alone would be 38 MB more.
    assert grown_bytes < mel_bytes + 20e6


def test_importing_samples_imports_neither_av_nor_mlx() -> None:
    """FFmpeg and MLX are imported at their first use: both are slow, and a BLAS goes before MLX."""
    program = (
        "import sys, fastwhisper.transcribing.samples\n"
        "print([m for m in ('av', 'mlx', 'mlx_whisper') if m in sys.modules])"
    )
    assert run_python("-c", program).stdout == "[]\n"


def test_a_session_fed_with_samples_never_imports_av() -> None:
    """FFmpeg is imported for files only."""
    program = (
        "import sys, numpy, fastwhisper.transcribing.mel as a\n"
        "a.compute_mel(numpy.zeros(100, numpy.float32), n_mels=80)\n"
        "print('av' in sys.modules, 'mlx_whisper' in sys.modules)"
    )
    assert run_python("-c", program).stdout == "False False\n"
