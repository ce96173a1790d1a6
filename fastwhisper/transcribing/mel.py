"""Samples -> Whisper's log-mel input, on the device that the network runs on.

A file is decoded block by block and only its mel is kept: 115 MB for one hour at 80 filters. Every
block is evaluated in the thread that computed it, so any thread may use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import mlx.core as mx
import numpy as np

from fastwhisper.transcribing.samples import never_cancel, read_blocks
from fastwhisper.whisper.filters import SAMPLE_RATE, read_mel_filters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastwhisper.transcribing.samples import AudioSource, FloatArray

__all__ = ["FRAMES_PER_SECOND", "WINDOW_FRAMES", "MelAudio", "compute_blocks_mel", "compute_mel"]

FRAMES_PER_SECOND: Final = 100
"""Mel frames in one second."""

WINDOW_FRAMES: Final = 30 * FRAMES_PER_SECOND
"""Mel frames of one window, which is the network's input: 30 s."""

_FFT_SAMPLES: Final = 400
_HOP_SAMPLES: Final = SAMPLE_RATE // FRAMES_PER_SECOND

_EDGE_SAMPLES: Final = _FFT_SAMPLES // 2
_WINDOW_SAMPLES: Final = WINDOW_FRAMES * _HOP_SAMPLES

_SILENCE: Final = 1e-10
"""The lowest energy."""

_SOUND: Final = 1.25
"""What sound has more than silence: 50 of the 80 dB that are kept, in scaled log10 energies."""


@dataclass(frozen=True, slots=True, eq=False)
class MelAudio:
    """The log-mel input of one audio.

    Attributes:
        blocks: Scaled log10 energies, evaluated. Shapes (3000, n_mels), float32; the last one is
            shorter, or up to 5 frames longer. One frame is 10 ms.
        silence: The same for a frame of the silence behind the audio. Shape (1, n_mels), float32.
        content_frames: Frames of the audio.
        duration_s: Length of the audio in seconds.
    """

    blocks: tuple[mx.array, ...]
    silence: mx.array
    content_frames: int
    duration_s: float

    def window(self, start_frame: int, frames: int) -> mx.array:
        """Return the network's input for one window.

        Args:
            start_frame: First frame, inside the audio.
            frames: Frames of the window, at most 3000. Frames behind the audio are silence.

        Returns:
            Scaled log10 energies, and zeros behind `frames`. Shape (3000, n_mels), float32, not
            evaluated.

        Source:
            `pad_or_trim` in `transcribe` of openai/whisper.
        """
        first = min(start_frame // WINDOW_FRAMES, len(self.blocks) - 1)
        offset = start_frame - first * WINDOW_FRAMES
        parts = [self.blocks[first][offset : offset + frames]]
        missing = frames - len(parts[0])
        if missing and first + 1 < len(self.blocks):
            parts.append(self.blocks[first + 1][:missing])
            missing -= len(parts[1])
        if missing:
            parts.append(mx.repeat(self.silence, missing, axis=0))
        mel = parts[0] if len(parts) == 1 else mx.concatenate(parts)
        return mx.pad(mel, [(0, WINDOW_FRAMES - frames), (0, 0)])

    def find_sound(self) -> int | None:
        """Return the number of the first block with 1 s of sound, or of the one with most.

        Sound is what is less than 30 dB below the loudest frame. None if all blocks are silence.
        """
        counts = []
        for number, block in enumerate(self.blocks):
            sound = block.max(axis=1) > self.silence.max() + _SOUND
            counts.append(np.count_nonzero(sound))
            if counts[number] >= FRAMES_PER_SECOND:
                return number
        return counts.index(max(counts)) if any(counts) else None


def compute_mel(
    source: AudioSource, *, n_mels: int, check: Callable[[], None] = never_cancel
) -> MelAudio:
    """Compute Whisper's log-mel input of an audio, block by block.

    Args:
        source: A path, a binary file object, or mono samples at 16 kHz: shape (samples,),
            float32, NumPy or MLX. An MLX array that is not evaluated yet must have been made in
            the calling thread.
        n_mels: Number of filters, 80 or 128.
        check: Called between blocks; may raise to cancel.

    Returns:
        The mel of the audio.

    Raises:
        AudioError: The source is not audio, or can't be read; the message says which.
        ValueError: There are no filters for `n_mels`.

    Source:
        Radford et al. 2022, section 2.2; `log_mel_spectrogram(audio, padding=N_SAMPLES)` in
        `transcribe` of mlx_whisper.
    """
    return compute_blocks_mel(read_blocks(source, check=check), n_mels=n_mels)


def compute_blocks_mel(blocks: Iterator[FloatArray], *, n_mels: int) -> MelAudio:
    """Compute the mel of an audio that comes in blocks, as `compute_mel` does.

    Args:
        blocks: Mono samples at 16 kHz. Shape (samples,), float32; at least one block, and none is
            empty.
        n_mels: Number of filters, 80 or 128.
    """
    stream = _MelStream(n_mels)
    # The samples at the start are mirrored, which needs one sample more than the edge has. A
    # shorter audio is continued with silence, because silence follows every audio.
    head = next(blocks)
    edge = np.zeros(_EDGE_SAMPLES + 1, np.float32)
    edge[: len(head)] = head[: len(edge)]
    stream.push(edge[:0:-1])
    stream.push(head)
    samples = len(head)
    for block in blocks:
        stream.push(block)
        samples += len(block)
    return stream.finish(samples)


def make_silent_window(n_mels: int) -> MelAudio:
    """Return the mel of 30 s without any energy: one window.

    Args:
        n_mels: Number of filters, 80 or 128.
    """
    quiet = np.full((WINDOW_FRAMES, n_mels), (np.log10(_SILENCE) + 4) / 4, np.float32)
    duration_s = WINDOW_FRAMES / FRAMES_PER_SECOND
    return MelAudio((mx.array(quiet),), mx.array(quiet[:1]), WINDOW_FRAMES, duration_s=duration_s)


class _MelStream:
    """Samples in, mel out. Keeps the mel, and at most one window of samples."""

    def __init__(self, n_mels: int) -> None:
        self._filters = mx.array(read_mel_filters(n_mels))
        self._taper = mx.array(np.hanning(_FFT_SAMPLES + 1)[:-1].astype(np.float32))
        self._pending = np.empty(0, np.float32)
        self._log: list[mx.array] = []
        # All audio is followed by silence.
        self._largest = mx.array(_SILENCE).log10()

    def push(self, samples: FloatArray) -> None:
        """Add samples. Shape (samples,), float32, of any length."""
        self._pending = np.concatenate([self._pending, samples])
        # Whole windows only, so that FFT and product see the same rows as in mlx_whisper. The last
        # frames of an audio are one block with those before.
        while len(self._pending) >= _WINDOW_SAMPLES + 2 * _FFT_SAMPLES:
            self._compute(WINDOW_FRAMES)
            # Evaluated now, so that the samples are freed.
            mx.eval(self._log[-1], self._largest)

    def finish(self, samples: int) -> MelAudio:
        """Return the mel of all samples, of which there were `samples`."""
        # The frames behind these are computed from silence alone.
        frames = -(-(samples + _EDGE_SAMPLES) // _HOP_SAMPLES)
        missing = frames - len(self._log) * WINDOW_FRAMES
        silence = missing * _HOP_SAMPLES + _FFT_SAMPLES - len(self._pending)
        self._pending = np.concatenate([self._pending, np.zeros(max(silence, 0), np.float32)])
        self._compute(missing)
        quiet = mx.full((1, self._filters.shape[0]), _SILENCE).log10()
        lowest = self._largest - 8
        blocks = []
        while self._log:
            blocks.append((mx.maximum(self._log.pop(0), lowest) + 4) / 4)
            if self._log:
                mx.eval(blocks)  # so that not both forms of all blocks are kept
        quiet = (mx.maximum(quiet, lowest) + 4) / 4
        # Evaluated now, so that any thread may use them.
        mx.eval(blocks, quiet)
        return MelAudio(
            tuple(blocks),
            quiet,
            content_frames=samples // _HOP_SAMPLES,
            duration_s=samples / SAMPLE_RATE,
        )

    def _compute(self, frames: int) -> None:
        """Compute the next block of frames, and drop the samples that no later frame needs."""
        samples = mx.array(self._pending)
        self._pending = self._pending[frames * _HOP_SAMPLES :]
        framed = mx.as_strided(samples, [frames, _FFT_SAMPLES], [_HOP_SAMPLES, 1])
        energies = mx.fft.rfft(framed * self._taper).abs().square() @ self._filters.T
        log = mx.maximum(energies, _SILENCE).log10()
        self._largest = mx.maximum(self._largest, log.max())
        self._log.append(log)
