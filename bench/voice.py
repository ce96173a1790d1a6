"""Measure the voice detector and the cuts: `python -m bench.voice FOLDER`.

The folder holds recordings and `index.tsv`, a table with the columns file, language and text.
The recordings are joined with silence between them, and noise is added over everything. In a
recording the frames within 20 dB of its loud ones are speech; between recordings nobody speaks.
Recordings with noise of their own are left out, because their loud frames may be noise.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from fastwhisper.transcribing import voice
from fastwhisper.transcribing.cuts import cut_at_silences
from fastwhisper.transcribing.samples import load_audio, never_cancel
from fastwhisper.transcribing.voice import FRAME_SAMPLES, VoiceDetector
from fastwhisper.whisper.filters import SAMPLE_RATE
from tests.helpers.audio import make_music

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fastwhisper.transcribing.samples import FloatArray

    BoolArray = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

_LOUD_DB: Final = 20.0
_THRESHOLDS: Final = (0.15, 0.2, 0.5)
_LEVEL: Final = 0.05
"""Root mean square to which each recording is brought."""


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """Recordings, one after the other, in noise.

    Attributes:
        samples: Shape (samples,), float32.
        is_speech: Whether a frame is loud in a recording. Shape (frames,).
        is_silence: Whether a frame is between recordings, 0.5 s away from them. Shape (frames,).
        spans: First and last sample of each recording.
    """

    samples: FloatArray
    is_speech: BoolArray
    is_silence: BoolArray
    spans: tuple[tuple[int, int], ...]


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description="Voice detector and cuts.")
    parser.add_argument("folder", type=Path, help="recordings and index.tsv")
    parser.add_argument("--count", type=int, help="take only so many recordings")
    arguments = parser.parse_args()
    recordings = [each for each in read_recordings(arguments.folder) if is_clean(each)]
    if arguments.count is not None:
        recordings = recordings[:: max(len(recordings) // arguments.count, 1)][: arguments.count]
    spoken_s = sum(map(len, recordings)) / SAMPLE_RATE
    print(f"{len(recordings)} recordings, {spoken_s / 60:.0f} minutes\n")

    print("| noise | " + " | ".join(f"missed, false at {each}" for each in _THRESHOLDS) + " |")
    print("|---" * (len(_THRESHOLDS) + 1) + "|")
    for name, scene in make_scenes(recordings, gaps_s=(2, 6)):
        found = detect(scene.samples)
        cells = [rate(scene, found >= threshold) for threshold in _THRESHOLDS]
        print(f"| {name} | {' | '.join(f'{a:.2%}, {b:.2%}' for a, b in cells)} |")

    print(
        "\n| noise, pauses 0.3 to 3 s | cuts | mean length | in a recording | in a loud part |"
        " speech lost | the same, skip_silence | cuts | of noise only | silence left out |"
    )
    print("|---" * 10 + "|")
    for name, scene in make_scenes(recordings, gaps_s=(0.3, 3)):
        print(f"| {name} | {' | '.join(measure_cuts(scene))} |")

    starts = [measure_start_s() for _ in range(5)]
    print(f"\nfirst detector: {1000 * sorted(starts)[2]:.1f} ms")
    samples = np.resize(np.concatenate(recordings), 20 * 60 * SAMPLE_RATE)
    print(f"20 minutes, the detector: {measure_s(lambda: detect(samples)):.2f} s")
    print(f"20 minutes, the cuts: {measure_s(lambda: cut(samples, skip=False)):.2f} s")


def read_recordings(folder: Path) -> list[FloatArray]:
    """Read recordings, each at the same level. Shapes (samples,), float32."""
    with (folder / "index.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    found = [load_audio(folder / row["file"]) for row in rows]
    return [each * np.float32(_LEVEL / np.sqrt(np.square(each).mean())) for each in found]


def is_clean(recording: FloatArray) -> bool:
    """Return whether the quiet frames are 35 dB below the loud ones."""
    quiet, loud = np.quantile(compute_energies(recording), [0.05, 0.95])
    return bool(quiet < loud * 10**-3.5)


def compute_energies(recording: FloatArray) -> FloatArray:
    """Return the energy of each whole frame. Shape (frames,), float32."""
    whole = recording[: len(recording) // FRAME_SAMPLES * FRAME_SAMPLES]
    energies: FloatArray = np.square(whole.reshape(-1, FRAME_SAMPLES)).mean(axis=1)
    return energies


def make_scenes(
    recordings: Sequence[FloatArray], *, gaps_s: tuple[float, float]
) -> Iterator[tuple[str, Scene]]:
    """Make a scene of all recordings for each kind and level of noise."""
    kinds: dict[str, Callable[[int], FloatArray]] = {"room": make_room_noise, "music": make_music}
    yield "none", make_scene(recordings, gaps_s=gaps_s)
    yield "none, all 20 dB quieter", make_scene(recordings, gaps_s=gaps_s, gain=0.1)
    yield "none, all 40 dB quieter", make_scene(recordings, gaps_s=gaps_s, gain=0.01)
    for (kind, make), snr_db in itertools.product(kinds.items(), (20, 10, 0)):
        scene = make_scene(recordings, gaps_s=gaps_s, make_noise=make, snr_db=snr_db)
        yield f"{kind}, {snr_db} dB below speech", scene


def make_scene(
    recordings: Sequence[FloatArray],
    *,
    gaps_s: tuple[float, float],
    gain: float = 1.0,
    make_noise: Callable[[int], FloatArray] | None = None,
    snr_db: float = 0.0,
) -> Scene:
    """Join recordings in random order, with silence of random length between them."""
    random = np.random.default_rng(0)
    parts: list[FloatArray] = []
    spans = []
    end = 0
    for index in random.permutation(len(recordings)):
        # Whole frames, so that those of the recording are those of the scene.
        gap = round(random.uniform(*gaps_s) * SAMPLE_RATE) // FRAME_SAMPLES * FRAME_SAMPLES
        recording = recordings[index][: len(recordings[index]) // FRAME_SAMPLES * FRAME_SAMPLES]
        parts += [np.zeros(gap, np.float32), recording]
        spans.append((end + gap, end + gap + len(recording)))
        end += gap + len(recording)
    clean = np.concatenate(parts)
    is_speech = np.zeros(end // FRAME_SAMPLES, np.bool_)
    is_silence = np.ones(end // FRAME_SAMPLES, np.bool_)
    edge = SAMPLE_RATE // 2 // FRAME_SAMPLES
    for first, last in spans:
        frames = slice(first // FRAME_SAMPLES, last // FRAME_SAMPLES)
        is_speech[frames] = find_loud(clean[first:last])
        is_silence[max(frames.start - edge, 0) : frames.stop + edge] = False
    samples = clean * np.float32(gain)
    if make_noise is not None:
        noise = make_noise(end)
        level = gain * _LEVEL * 10 ** (-snr_db / 20) / np.sqrt(np.square(noise).mean())
        samples = samples + noise * np.float32(level)
    return Scene(samples, is_speech, is_silence, tuple(spans))


def find_loud(recording: FloatArray) -> BoolArray:
    """Return whether a frame is within 20 dB of the loud ones. Shape (frames,)."""
    energies = compute_energies(recording)
    found: BoolArray = energies >= np.quantile(energies, 0.95) * 10 ** (-_LOUD_DB / 10)
    return found


def make_room_noise(length: int) -> FloatArray:
    """Make noise whose energy falls with the frequency, and mains hum. Shape (samples,)."""
    random = np.random.default_rng(1)
    block = 1 << 20
    spectrum = np.fft.rfft(random.normal(size=block))
    spectrum /= np.sqrt(np.arange(len(spectrum)) + 20.0)
    noise = np.fft.irfft(spectrum)
    noise /= noise.std()
    noise += 0.5 * np.sin(2 * np.pi * 50 / SAMPLE_RATE * np.arange(block))
    return np.resize(noise.astype(np.float32), length)


def detect(samples: FloatArray) -> FloatArray:
    """Return the probability of speech of each frame. Shape (frames,), float32."""
    detector = VoiceDetector()
    blocks = split_blocks(samples)
    return np.concatenate([*(detector.push(block) for block in blocks), detector.finish()])


def split_blocks(samples: FloatArray) -> Iterator[FloatArray]:
    """Give samples in blocks of 30 s."""
    for start in range(0, len(samples), 30 * SAMPLE_RATE):
        yield samples[start : start + 30 * SAMPLE_RATE]


def rate(scene: Scene, is_found: BoolArray) -> tuple[float, float]:
    """Return the share of speech that is missed, and of silence that is called speech."""
    missed = 1 - is_found[scene.is_speech].mean()
    return float(missed), float(is_found[scene.is_silence].mean())


def cut(samples: FloatArray, *, skip: bool) -> list[tuple[int, int, bool]]:
    """Return the first sample, the end, and whether there may be speech, of each cut."""
    cuts = cut_at_silences(split_blocks(samples), skip_silence=skip, check=never_cancel)
    return [
        (each.start_sample, each.start_sample + len(each.samples), each.has_speech) for each in cuts
    ]


def measure_cuts(scene: Scene) -> list[str]:
    """Return the cells of one line of the table of cuts."""
    cuts = cut(scene.samples, skip=False)
    decoded = [(start, end) for start, end, has_speech in cuts if has_speech]
    boundaries = [end for _, end, _ in cuts[:-1]]
    margin = SAMPLE_RATE // 10
    inside = sum(
        any(first + margin < each < last - margin for first, last in scene.spans)
        for each in boundaries
    )
    loud = sum(
        bool(scene.is_speech[each // FRAME_SAMPLES - 1 : each // FRAME_SAMPLES + 1].all())
        for each in boundaries
    )
    kept = [(start, end) for start, end, _ in cut(scene.samples, skip=True)]
    length_s = np.mean([end - start for start, end in decoded]) / SAMPLE_RATE
    return [
        f"{len(decoded)}",
        f"{length_s:.1f} s",
        f"{inside / len(boundaries):.1%}",
        f"{loud / len(boundaries):.1%}",
        f"{measure_outside(scene.is_speech, decoded):.3%}",
        f"{measure_outside(scene.is_speech, kept):.3%}",
        f"{len(kept)}",
        f"{sum(not overlaps(each, scene.spans) for each in kept)}",
        f"{measure_outside(scene.is_silence, kept):.1%}",
    ]


def overlaps(span: tuple[int, int], others: Sequence[tuple[int, int]]) -> bool:
    """Return whether a span has a sample in common with one of the others."""
    return any(span[0] < last and first < span[1] for first, last in others)


def measure_outside(frames: BoolArray, spans: Sequence[tuple[int, int]]) -> float:
    """Return the share of frames that are in no span of samples."""
    is_inside = np.zeros(len(frames), np.bool_)
    for start, end in spans:
        is_inside[start // FRAME_SAMPLES : -(-end // FRAME_SAMPLES)] = True
    return float(1 - is_inside[frames].mean())


def measure_start_s() -> float:
    """Return the time until the weights are read and the first frame is known, in seconds."""
    voice._read_network.cache_clear()  # noqa: SLF001  as in a new process
    start = time.perf_counter()
    VoiceDetector().push(np.zeros(FRAME_SAMPLES, np.float32))
    return time.perf_counter() - start


def measure_s(run: Callable[[], object]) -> float:
    """Return the median time of five runs, in seconds."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return sorted(times)[2]


if __name__ == "__main__":
    main()
