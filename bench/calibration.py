"""Make the calibration speech of `fastwhisper quantize`: `python -m bench.calibration [FOLDER]`."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import av
import numpy as np

import fastwhisper
from bench.speech import speak
from fastwhisper.whisper.filters import SAMPLE_RATE

if TYPE_CHECKING:
    from fastwhisper.transcribing.samples import FloatArray

BITS_PER_SECOND: Final = 9000
"""The least at which Opus keeps all of 8 kHz: the network must hear what speech excites."""

WINDOW_SAMPLES: Final = 30 * SAMPLE_RATE


def main() -> None:
    """Write one file for each language."""
    default = Path(fastwhisper.__file__).parent / "quantizing" / "data"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    windows: defaultdict[str, list[FloatArray]] = defaultdict(list)
    lines = Path(__file__).with_name("calibration_text.txt").read_text(encoding="utf-8")
    for line in lines.splitlines():
        language, voice, speed, text = line.split("|")
        samples = speak(text, voice, int(speed))
        windows[language].append(np.pad(samples, (0, WINDOW_SAMPLES - len(samples))))
    for language, parts in windows.items():
        samples = (np.concatenate(parts) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        with av.open(folder / f"calibration.{language}.ogg", "w") as file:
            stream = file.add_stream("libopus", rate=SAMPLE_RATE, layout="mono")
            stream.bit_rate = BITS_PER_SECOND
            stream.options = {"application": "voip"}
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                file.mux(packet)


if __name__ == "__main__":
    main()
