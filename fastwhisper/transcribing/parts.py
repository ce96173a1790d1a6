"""An audio -> its parts: all of it, or what is cut at silences, each as log-mel input.

No part holds a gap of a media file. All positions are samples from the begin of the file, with what
is missing in it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from fastwhisper.errors import AudioError
from fastwhisper.transcribing.cuts import MAX_SAMPLES, Cut, cut_at_silences
from fastwhisper.transcribing.mel import compute_blocks_mel
from fastwhisper.transcribing.samples import read_blocks
from fastwhisper.transcribing.timeline import Timeline
from fastwhisper.whisper.filters import SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastwhisper.transcribing.mel import MelAudio
    from fastwhisper.transcribing.samples import AudioSource, FloatArray
    from fastwhisper.whisper.options import DecodeSettings

__all__ = ["Part", "PartReader"]


@dataclass(slots=True, eq=False)
class Part:
    """A part of an audio.

    Attributes:
        mel: Its mel, or the function that computes it.
        offset_s: When it begins in the file, in seconds; None if the audio begins with the file.
        has_speech: Whether there may be speech in it.
    """

    mel: MelAudio | Callable[[], MelAudio]
    offset_s: float | None
    has_speech: bool

    @property
    def audio(self) -> MelAudio:
        """The mel. The first thread that asks computes it: the one that also encodes it."""
        if callable(self.mel):
            self.mel = self.mel()
        return self.mel


class PartReader:
    """The parts of one audio, read a few at a time.

    An audio whose windows are decoded one after the other is one part, or one for each stretch
    between two gaps: each window says where the next one begins. For batches, and to skip silence,
    an audio is cut at silences.

    Attributes:
        duration_s: End of the audio in the file, in seconds, as far as it is read.
        is_done: Whether all parts are read.
    """

    def __init__(
        self,
        source: AudioSource,
        settings: DecodeSettings,
        *,
        n_mels: int,
        check: Callable[[], None],
    ) -> None:
        """Remember where the audio begins.

        Args:
            source: A path, a binary file object, or mono samples at 16 kHz: shape (samples,),
                float32, NumPy or MLX.
            settings: `batch_size`, `vad_filter` and `clip_timestamps` decide on the parts.
            n_mels: Number of filters, 80 or 128.
            check: Called between blocks; may raise to cancel.
        """
        self.duration_s = 0.0
        self.is_done = False
        self._source = source
        self._settings = settings
        self._n_mels = n_mels
        self._check = check
        self._given = 0
        self._parts: Iterator[Part] | None = None
        self._was_opened = False
        self._position = _find_position(source)

    def read(self, count: int) -> list[Part]:
        """Read the next parts. An exception from `check` loses nothing.

        Args:
            count: Number of parts; fewer are returned at the end.

        Raises:
            AudioError: The source is not audio, or can't be read; the message says which.
        """
        try:
            if self._parts is None:
                self._parts = self._open()
                for _ in islice(self._parts, self._given):
                    self._check()
            parts = list(islice(self._parts, count))
        except BaseException:
            # The generators of the blocks have ended. The next call begins again, and skips what
            # was given.
            self._parts = None
            raise
        self._given += len(parts)
        self.is_done = self.is_done or len(parts) < count
        return parts

    def _open(self) -> Iterator[Part]:
        """Open the audio, and yield its parts."""
        timeline = Timeline()
        blocks = read_blocks(self._rewind(), check=self._check, timeline=timeline)
        reader = _BlockReader(blocks, timeline)
        if self._settings.batch_size > 1 or self._settings.vad_filter:
            return self._read_cuts(reader)
        return self._read_stretches(reader)

    def _read_stretches(self, reader: _BlockReader) -> Iterator[Part]:
        """Read each stretch between two gaps as one part."""
        while reader.skip_to(0):
            offset_s = reader.position / SAMPLE_RATE or None
            blocks = reader.read(None)
            begin = list(islice(blocks, 2))
            # The mel of one block is computed in the job of the window.
            mel = (
                self._defer_mel(begin[0])
                if len(begin) == 1
                else compute_blocks_mel(chain(begin, blocks), n_mels=self._n_mels)
            )
            self.duration_s = reader.position / SAMPLE_RATE
            self.is_done = reader.has_ended
            yield Part(mel, offset_s, has_speech=True)

    def _read_cuts(self, reader: _BlockReader) -> Iterator[Part]:
        """Read the cuts of all clips."""
        points = [round(time_s * SAMPLE_RATE) for time_s in self._settings.clip_timestamps]
        ends: list[int | None] = [*points[1::2]]
        if len(points) % 2 or not points:
            ends.append(None)
        for start, end in zip(points[::2] or [0], ends, strict=True):
            while reader.skip_to(start) and (end is None or reader.position < end):
                offset = reader.position
                for cut in self._cut(reader.read(end), None if end is None else end - offset):
                    self._check()
                    self.duration_s = reader.position / SAMPLE_RATE
                    mel = self._defer_mel(cut.samples)
                    yield Part(mel, (offset + cut.start_sample) / SAMPLE_RATE, cut.has_speech)
        # The length of the audio counts what is behind the last clip too.
        reader.skip_to(sys.maxsize)
        self.duration_s = reader.position / SAMPLE_RATE

    def _defer_mel(self, samples: FloatArray) -> Callable[[], MelAudio]:
        return lambda: compute_blocks_mel(iter([samples]), n_mels=self._n_mels)

    def _rewind(self) -> AudioSource:
        """Return the source, at its first byte if it was read before."""
        source: Any = self._source
        if self._was_opened and hasattr(source, "read"):
            if self._position is None:
                name = getattr(source, "name", "file object")
                raise AudioError(
                    str(name), "part of it was read before, and it can't seek; open it again"
                )
            source.seek(self._position)
        self._was_opened = True
        return self._source

    def _cut(self, blocks: Iterator[FloatArray], length: int | None) -> Iterator[Cut]:
        """Cut a clip of at most `length` samples. A clip that fits into a window is one cut."""
        skip_silence = self._settings.vad_filter
        begin: list[FloatArray] = []
        if not skip_silence and (length is None or length <= MAX_SAMPLES):
            samples = 0
            for block in blocks:
                begin.append(block)
                samples += len(block)
                if samples > MAX_SAMPLES:
                    break
            else:
                return iter([Cut(0, np.concatenate(begin), has_speech=True)] if begin else [])
        blocks = chain(begin, blocks)
        return cut_at_silences(blocks, skip_silence=skip_silence, check=self._check)


class _BlockReader:
    """Blocks of samples, up to chosen positions or the next gap.

    Attributes:
        position: End of what was read.
        has_ended: Whether nothing is left.
    """

    def __init__(self, blocks: Iterator[FloatArray], timeline: Timeline) -> None:
        self.position = 0
        self.has_ended = False
        self._blocks = blocks
        self._timeline = timeline
        self._rest: FloatArray | None = None
        self._samples = 0  # without gaps

    def skip_to(self, start: int) -> bool:
        """Move `position` to the first sample from `start` on; return whether there is one."""
        while self._load() is not None:
            self.position = self._timeline.place(self._samples)
            if self.position >= start:
                return True
            for _ in self.read(start):
                pass
        return False

    def read(self, end: int | None) -> Iterator[FloatArray]:
        """Read blocks up to the sample `end` or to the next gap.

        Yields shape (samples,), float32.
        """
        while end is None or self.position < end:
            block = self._load()
            # A gap at the begin of a block is known only now.
            if block is None or self._timeline.place(self._samples) != self.position:
                return
            ends = [len(block)]
            if end is not None:
                ends.append(end - self.position)
            if (gap := self._timeline.find_gap(self._samples)) is not None:
                ends.append(gap - self._samples)
            count = min(ends)
            self._rest = block[count:] if count < len(block) else None
            self._samples += count
            self.position += count
            yield block[:count]

    def _load(self) -> FloatArray | None:
        """Return the block that is read next; None at the end."""
        if self._rest is None:
            self._rest = next(self._blocks, None)
            self.has_ended = self._rest is None
        return self._rest


def _find_position(source: Any) -> int | None:
    """Return where a file object is, if it can come back to it."""
    if not hasattr(source, "read"):
        return None
    try:
        position: int | None = source.tell() if source.seekable() else None
    except (AttributeError, OSError, ValueError):  # closed, or no file: reading it says so
        return None
    return position
