"""Speech with its text, for measuring words: synthesized by espeak-ng, and from a package.

The texts were written for this and are the project's own: recipes are chosen by those of
`search_text.txt`, and words are reported on those of `report_text.txt`, which no choice has seen.
None of the speech that `fastwhisper quantize` calibrates on is among them.
"""

from __future__ import annotations

import csv
import functools
import importlib.util
import io
import subprocess
import sys
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import av
import numpy as np

from fastwhisper.transcribing.samples import load_audio
from fastwhisper.whisper.filters import SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastwhisper.transcribing.samples import FloatArray

__all__ = [
    "TEXTS",
    "Utterance",
    "keep",
    "kept",
    "packaged",
    "recorded",
    "speak",
    "synthesized",
]

TEXTS: Final = Path(__file__).with_name("report_text.txt")
"""What words are reported on."""

VOICES: Final = (
    ("en-us", 165),
    ("en-gb", 165),
    ("en-gb-scotland", 160),
    ("en-029", 160),
    ("en-us+f3", 170),
    ("en-gb+m2", 175),
    ("en-us-nyc+f1", 165),
    ("en-gb-x-gbcwmd+m4", 160),
)
"""Voices of espeak-ng and their speed in words a minute; each text is read by two of them."""

READERS: Final = 2
_SPACELESS: Final = frozenset({"ja", "th", "zh"})


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """One stretch of speech.

    Attributes:
        name: Tells it from the others.
        text: What is said, and all of it.
        group: Utterances of the same text share it: they are no independent evidence.
        language: Its code.
        samples: Mono, 16 kHz. Shape (samples,), float32.
    """

    name: str
    text: str
    group: str
    language: str
    samples: FloatArray


def synthesized(texts: Path) -> Iterator[Utterance]:
    """Let espeak-ng read a file of texts, each in two voices; about 25 s an utterance."""
    for number, text in enumerate(texts.read_text(encoding="utf-8").splitlines()):
        for reader in range(READERS):
            voice, speed = VOICES[(number + reader * (1 + number // len(VOICES))) % len(VOICES)]
            samples = speak(text, voice, speed)
            yield Utterance(f"{number}-{voice}", text, str(number), "en", samples)


def packaged(*, multilingual: bool) -> Iterator[Utterance]:
    """Give the clips of the package `pytest-audioeval`, whose code is not imported.

    Those in languages that put no spaces between words are left out.
    """
    spec = importlib.util.find_spec("pytest_audioeval")
    for place in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(place, "samples", "audio").glob("*/*.wav")):
            language = path.parent.name
            if language == "en" or (multilingual and language not in _SPACELESS):
                text = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
                name = f"{language}-{path.stem}"
                yield Utterance(name, text, name, language, load_audio(path))


def kept(folder: Path) -> Iterator[Utterance]:
    """Give what `keep` has written to a folder."""
    for path in sorted(folder.glob("*.txt")):
        text = path.read_text(encoding="utf-8").strip()
        group, _, _ = path.stem.partition("-")
        yield Utterance(path.stem, text, group, "en", load_audio(path.with_suffix(".flac")))


def recorded(index: Path, *, language: str = "en") -> Iterator[Utterance]:
    """Give recorded speech: a table with the columns file, language, speaker and text.

    Speech of one speaker is one group.
    """
    with index.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            if row["language"] == language:
                samples = load_audio(index.parent / row["file"])
                yield Utterance(row["file"], row["text"], row["speaker"], language, samples)


def keep(texts: Path, folder: Path) -> None:
    """Write the synthesized speech to a folder, for a machine without espeak-ng."""
    folder.mkdir(parents=True, exist_ok=True)
    for utterance in synthesized(texts):
        (folder / f"{utterance.name}.txt").write_text(utterance.text, encoding="utf-8")
        samples = (utterance.samples * 32768).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        with av.open(folder / f"{utterance.name}.flac", "w") as file:
            stream = file.add_stream("flac", rate=SAMPLE_RATE, layout="mono")
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                file.mux(packet)


@functools.cache
def speak(text: str, voice: str, speed: int) -> FloatArray:
    """Let espeak-ng read a text, at a speed in words a minute. Shape (samples,), float32."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "--stdout", text]
    done = subprocess.run(command, capture_output=True, check=True)
    # espeak-ng does not know the length when it writes the header of a pipe.
    with wave.open(io.BytesIO(done.stdout)) as file:
        rate = file.getframerate()
    whole = io.BytesIO()
    with wave.open(whole, "wb") as copy:
        copy.setparams((1, 2, rate, 0, "NONE", "NONE"))
        copy.writeframes(done.stdout[_WAVE_HEADER_BYTES:])
    whole.seek(0)
    samples = load_audio(whole)
    pause = np.zeros(SAMPLE_RATE // 2, np.float32)
    return np.concatenate([samples, pause])


_WAVE_HEADER_BYTES: Final = 44

if __name__ == "__main__":
    keep(Path(sys.argv[1]), Path(sys.argv[2]))
