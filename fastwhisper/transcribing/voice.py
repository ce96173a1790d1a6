"""Samples -> the probability of speech, by Silero's network in NumPy.

The network sees frames of 32 ms. Its convolutions run for many frames at once; its LSTM goes from
frame to frame, 8 to 16 us for each. So 20 minutes of audio take 0.7 to 1.3 s on one core, and no
call into NumPy takes more than a few milliseconds.

Importing this module imports neither MLX nor FFmpeg.

Source:
    Silero VAD 6.2, https://github.com/snakers4/silero-vad (MIT); `data/README.md` says how its
    weights were converted.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from fastwhisper.whisper.filters import SAMPLE_RATE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastwhisper.transcribing.samples import FloatArray

__all__ = ["FRAMES_PER_SECOND", "FRAME_SAMPLES", "VoiceDetector"]

FRAME_SAMPLES: Final = 512
"""Samples of one frame: 32 ms."""

FRAMES_PER_SECOND: Final = SAMPLE_RATE / FRAME_SAMPLES
"""Frames in one second: 31.25."""

_CONTEXT_SAMPLES: Final = 64
"""Samples that a frame sees before its own, and mirrored samples that it sees after them."""

_FFT_SAMPLES: Final = 256
_HALF: Final = _FFT_SAMPLES // 2
_HOP_SAMPLES: Final = 128
_UNITS: Final = 128
"""Width of the LSTM."""

_CHUNK_FRAMES: Final = 256
"""Frames whose convolutions run at once: 8 s. Fewer cost more calls, more gain nothing."""

_ROWS: Final = 4
"""Frames of one matrix product. OpenBLAS wakes all cores for more than 262_144 multiplications and
lets them wait actively, which made 20 minutes of audio take 14 s of processor time on 16 cores.
Four rows stay below that, and take no longer."""

_FILE: Final = Path(__file__).parent / "data" / "silero_vad_16k.npz"


class VoiceDetector:
    """The probability of speech of one stream, frame by frame.

    It depends on the samples and not on how they are split, but for rounding (1e-5). Detectors
    share the weights and nothing else.
    """

    def __init__(self) -> None:
        self._network = _read_network()
        # The context of the next frame, then the samples of that frame that have come already.
        self._pending = np.zeros(_CONTEXT_SAMPLES, np.float32)
        self._hidden = np.zeros(_UNITS, np.float32)
        self._cell = np.zeros(_UNITS, np.float32)

    def push(self, samples: FloatArray) -> FloatArray:
        """Add samples, and compute the frames that they complete.

        Args:
            samples: Mono samples at 16 kHz, nominally in [-1, 1]; larger ones are clipped. Shape
                (samples,), float32, of any length.

        Returns:
            Probabilities of speech, 0 to 1. Shape (frames,), float32. Frame `i` of the stream
            begins at the sample `i * FRAME_SAMPLES`.
        """
        pending = np.concatenate([self._pending, np.clip(samples, -1, 1)])
        frames = (len(pending) - _CONTEXT_SAMPLES) // FRAME_SAMPLES
        probabilities = np.empty(frames, np.float32)
        for first in range(0, frames, _CHUNK_FRAMES):
            end = min(first + _CHUNK_FRAMES, frames)
            gates = self._network.encode(
                pending[first * FRAME_SAMPLES : end * FRAME_SAMPLES + _CONTEXT_SAMPLES]
            )
            hidden = self._network.run_lstm(gates, self._hidden, self._cell)
            self._hidden = hidden[-1]
            probabilities[first:end] = self._network.classify(hidden)
        self._pending = pending[frames * FRAME_SAMPLES :].copy()
        return probabilities

    def finish(self) -> FloatArray:
        """Compute the last frame, continued with silence. Nothing may be pushed after it.

        Returns:
            Probability of speech of the frame that was not complete. Shape (1,), or (0,) if there
            was none; float32.
        """
        missing = (_CONTEXT_SAMPLES - len(self._pending)) % FRAME_SAMPLES
        return self.push(np.zeros(missing, np.float32))


@cache
def _read_network() -> _Network:
    """Read the weights, once in a process."""
    with np.load(_FILE, allow_pickle=False) as stored:
        return _Network({name: stored[name].astype(np.float32) for name in stored.files})


class _Network:
    """Silero's network. It keeps no state, so threads may share it."""

    def __init__(self, weights: Mapping[str, FloatArray]) -> None:
        taper = np.hanning(_FFT_SAMPLES + 1)[1:_HALF, None]
        angles = 2 * np.pi / _FFT_SAMPLES * np.outer(np.arange(1, _HALF), np.arange(_HALF + 1))
        self._cosines = (taper * np.cos(angles)).astype(np.float32)
        self._sines = (taper * np.sin(angles)).astype(np.float32)
        self._middle = np.cos(np.pi * np.arange(_HALF + 1)).astype(np.float32)
        self._kernels = [_flatten(weights[f"conv{i}.weight"]) for i in (1, 2, 3, 4)]
        self._biases = [weights[f"conv{i}.bias"] for i in (1, 2, 3, 4)]
        # One tanh serves all gates, because the logistic function is (1 + tanh(x / 2)) / 2: the
        # gates of input, forgetting and output are halved. The one of the cell comes last.
        _, units = weights["lstm_cell.weight_hh"].shape
        order = np.r_[: 2 * units, 3 * units : 4 * units, 2 * units : 3 * units]
        scale = np.repeat(np.array([0.5, 0.5, 0.5, 1], np.float32), units)
        self._input = np.ascontiguousarray(weights["lstm_cell.weight_ih"][order].T) * scale
        self._recurrent = np.ascontiguousarray(weights["lstm_cell.weight_hh"][order].T) * scale
        self._gate_bias = (weights["lstm_cell.bias_ih"] + weights["lstm_cell.bias_hh"])[
            order
        ] * scale
        self._final = weights["final_conv.weight"].reshape(units)
        self._final_bias = weights["final_conv.bias"]

    def encode(self, samples: FloatArray) -> FloatArray:
        """Compute what the gates of the LSTM get from the samples.

        Args:
            samples: The context of the first frame, then the frames. Shape (64 + 512 * frames,),
                float32.

        Returns:
            Shape (frames, 512), float32.
        """
        strided = np.lib.stride_tricks.sliding_window_view
        framed = strided(samples, _CONTEXT_SAMPLES + FRAME_SAMPLES)[::FRAME_SAMPLES]
        mirrored = framed[:, -2 : -2 - _CONTEXT_SAMPLES : -1]
        padded = np.concatenate([framed, mirrored], axis=1)
        hidden = self._compute_spectra(strided(padded, _FFT_SAMPLES, axis=1)[:, ::_HOP_SAMPLES])
        for kernel, bias, stride in zip(self._kernels, self._biases, (1, 2, 2, 1), strict=True):
            hidden = _convolve(hidden, kernel, bias, stride=stride)
        gates = _multiply(hidden[:, 0], self._input)
        gates += self._gate_bias
        return gates

    def _compute_spectra(self, windows: FloatArray) -> FloatArray:
        """Compute magnitudes of tapered spectra.

        Args:
            windows: Shape (frames, 4, 256), float32.

        Returns:
            Shape (frames, 4, 129), float32.
        """
        # Sums and differences of mirrored samples give the real and the imaginary part, with half
        # the products of a plain matrix and less time than an FFT of so few samples. The taper
        # is 0 at sample 0 and 1 at the middle, which has no partner.
        head, middle, tail = np.split(windows[..., 1:], [_HALF - 1, _HALF], axis=2)
        tail = tail[..., ::-1]
        rows = (-1, _HALF - 1)
        real = _multiply((head + tail).reshape(rows), self._cosines).reshape(*middle.shape[:2], -1)
        real += middle * self._middle
        imaginary = _multiply((head - tail).reshape(rows), self._sines).reshape(real.shape)
        real *= real
        imaginary *= imaginary
        real += imaginary
        return np.sqrt(real, out=real)

    def run_lstm(self, gates: FloatArray, hidden: FloatArray, cell: FloatArray) -> FloatArray:
        """Run the LSTM from frame to frame.

        Args:
            gates: From `encode`. Shape (frames, 512), float32.
            hidden: Its output at the frame before. Shape (128,), float32.
            cell: Its cell at the frame before; replaced by the one at the last frame. Shape
                (128,), float32.

        Returns:
            Its output at each frame. Shape (frames, 128), float32.
        """
        units = len(cell)
        outputs = np.empty((len(gates), units), np.float32)
        gate = np.empty(4 * units, np.float32)
        new = np.empty(units, np.float32)
        logistic, candidate = gate[: 3 * units], gate[3 * units :]
        entering, kept, leaving = gate[:units], gate[units : 2 * units], gate[2 * units : 3 * units]
        for from_samples, output in zip(gates, outputs, strict=True):
            np.matmul(hidden, self._recurrent, out=gate)
            gate += from_samples
            np.tanh(gate, out=gate)
            logistic *= 0.5
            logistic += 0.5
            cell *= kept
            np.multiply(entering, candidate, out=new)
            cell += new
            np.tanh(cell, out=new)
            np.multiply(leaving, new, out=output)
            hidden = output
        return outputs

    def classify(self, hidden: FloatArray) -> FloatArray:
        """Compute probabilities of speech, (frames,), from outputs of the LSTM, (frames, 128)."""
        score = np.maximum(hidden, 0) @ self._final + self._final_bias
        probability: FloatArray = 0.5 + 0.5 * np.tanh(0.5 * score)
        return probability


def _flatten(weight: FloatArray) -> FloatArray:
    """Turn the weight of a convolution of 3 taps into a matrix.

    Args:
        weight: Shape (outputs, inputs, 3), float32.

    Returns:
        Shape (3 * inputs, outputs), float32.
    """
    return np.ascontiguousarray(weight.transpose(2, 1, 0)).reshape(-1, len(weight))


def _convolve(
    hidden: FloatArray, kernel: FloatArray, bias: FloatArray, *, stride: int
) -> FloatArray:
    """Run a convolution of 3 taps, with zeros before and after, and a rectifier.

    Args:
        hidden: Shape (frames, positions, inputs), float32.
        kernel: From `_flatten`.
        bias: Shape (outputs,), float32.
        stride: Positions from one output to the next.

    Returns:
        Shape (frames, positions / stride, outputs), float32.
    """
    frames, positions, inputs = hidden.shape
    flat = hidden.reshape(frames, -1)
    steps = range(0, positions, stride)
    out = np.empty((frames, len(steps), len(bias)), np.float32)
    for index, position in enumerate(steps):
        # Taps on the zeros are left out.
        first, end = max(position - 1, 0), min(position + 2, positions)
        taps = kernel[(first - position + 1) * inputs : (end - position + 1) * inputs]
        out[:, index] = _multiply(flat[:, first * inputs : end * inputs], taps)
    out += bias
    np.maximum(out, 0, out=out)
    return out


def _multiply(rows: FloatArray, matrix: FloatArray) -> FloatArray:
    """Multiply matrices, `_ROWS` rows at a time: (rows, inputs) @ (inputs, outputs)."""
    count, inputs = rows.shape
    whole = count - count % _ROWS
    out = np.empty((count, matrix.shape[1]), np.float32)
    if whole:
        np.matmul(
            rows[:whole].reshape(-1, _ROWS, inputs),
            matrix,
            out=out[:whole].reshape(-1, _ROWS, matrix.shape[1]),
        )
    if whole < count:
        np.matmul(rows[whole:], matrix, out=out[whole:])
    return out
