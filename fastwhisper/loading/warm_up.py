"""The warm-up: run every kernel of the first transcription once, while the weights are read.

A GPU compiles or loads a kernel when it is first used. The warm-up uses zeros of the checkpoint's
sizes and precision, so it need not wait for the weights. This module is imported in an engine
thread, after the backend. It imports MLX alone: the first kernels need not wait for NumPy and
for the modules that transcribe.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio
import mlx.core as mx
from mlx.utils import tree_map

from fastwhisper.engine import threads
from fastwhisper.engine.threads import Lane
from fastwhisper.whisper.options import DecodeSettings
from fastwhisper.whisper.tokenizer import read_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastwhisper.engine.jobs import Job
    from fastwhisper.loading.compute import Compute

__all__ = ["WarmUp"]

COMPILING_S: Final = 10.0
"""How long ready waits for kernels that this machine has never compiled."""

_LEAVING_S: Final = 0.5
_SAMPLES: Final = 16_000
_TOKENS: Final = 3
"""One step with the prompt and two steps with one token: every kernel of decoding runs once."""


@dataclass(frozen=True, slots=True)
class WarmUp:
    """The warm-up of one load. `run` is awaited on the event loop, its steps run in engine threads.

    Attributes:
        compute: The checkpoint, the dtype and the device.
    """

    compute: Compute

    async def run(self, timed: Callable[[Callable[[], None]], None]) -> list[Job[None]]:
        """Run all steps side by side, and wait for them 10 s at most.

        A kernel that this machine has never compiled takes longer, and can't be interrupted. It
        ends in its thread; a computation that needs it waits there.

        Args:
            timed: Calls a step in an engine thread, and records its time.

        Returns:
            The steps that still compile.
        """
        # Only the compute lane compiles: MLX's table of compiled functions has no lock.
        steps = (
            (self.warm_network, Lane.COMPUTE),
            (self.warm_convolution, Lane.READ),
            (self.warm_attention, Lane.READ),
            (self.warm_step, Lane.READ),
            (self.warm_rules, Lane.READ),
            (self.warm_mel, Lane.READ),
        )
        queued = [threads.enqueue(partial(timed, step), lane) for step, lane in steps]
        try:
            with anyio.move_on_after(COMPILING_S):
                for job, ended in queued:
                    await ended.wait()
                    job.result()
        except BaseException:
            for job, _ in queued:
                job.abandon()
            # A step that compiles nothing ends soon, and then none of its arrays is left.
            with anyio.move_on_after(_LEAVING_S, shield=True):
                for job, ended in queued:
                    if not job.finished.is_set():
                        await ended.wait()
            raise
        return [job for job, _ in queued if not job.finished.is_set()]

    def warm_mel(self) -> None:
        """Compute the mel spectrogram of a second of silence, which loads the FFT."""
        from fastwhisper.transcribing.mel import compute_mel  # noqa: PLC0415  imports NumPy

        n_mels = self.compute.checkpoint.dimensions.n_mels
        audio = compute_mel(mx.zeros(_SAMPLES), n_mels=n_mels, check=threads.check)
        mx.eval(audio.window(0, 1))

    def warm_rules(self) -> None:
        """Choose a first and a second token."""
        from fastwhisper.whisper.rules import Rules  # noqa: PLC0415  imports NumPy

        size = self.compute.checkpoint.dimensions
        tokenizer = read_tokenizer(size.n_vocab, language="en", task="transcribe")
        rules = Rules(tokenizer, DecodeSettings(), size)
        state = rules.start(1)
        for is_first in (True, False):
            logits = self._zeros(1, size.n_vocab)
            state, logprobs = rules.choose(logits, state, is_first=is_first)
            mx.eval(state, logprobs)

    def warm_step(self) -> None:
        """Run the attention of one token, and put it into a cache."""
        size = self.compute.checkpoint.dimensions
        keys = self._zeros(
            1, size.n_text_head, size.n_text_ctx, size.n_text_state // size.n_text_head
        )
        token = mx.contiguous(keys[:, :, :1])
        keys[:, :, :1] = token
        mx.eval(mx.fast.scaled_dot_product_attention(token, keys, keys, scale=1.0))

    def warm_convolution(self) -> None:
        """Run a convolution."""
        size = self.compute.checkpoint.dimensions
        mel = self._zeros(1, 2 * size.n_audio_ctx, size.n_mels)
        mx.eval(mx.conv1d(mel, self._zeros(size.n_audio_state, 3, size.n_mels), padding=1))

    def warm_attention(self) -> None:
        """Run the attention of the encoder: its fused kernel takes 0.1 s to prepare."""
        size = self.compute.checkpoint.dimensions
        audio = self._zeros(1, size.n_audio_ctx, size.n_audio_state)
        heads = audio.reshape(1, size.n_audio_ctx, size.n_audio_head, -1)
        x = heads.transpose(0, 2, 1, 3)
        mx.eval(mx.fast.scaled_dot_product_attention(x, x, x, scale=1.0))

    def warm_network(self) -> None:
        """Transcribe silence with a network of one layer and zero weights.

        The layers have the sizes and the precision of the real ones, so their kernels are the
        same. It comes after the other steps, which it would repeat.
        """
        one_layer = replace(self.compute.checkpoint.dimensions, n_audio_layer=1, n_text_layer=1)
        precision = {
            name: packed
            for name, packed in self.compute.checkpoint.precision.items()
            if ".blocks." not in name or ".blocks.0." in name
        }
        small = replace(
            self.compute.checkpoint,
            dimensions=one_layer,
            precision=precision,
            alignment_heads=((0, 0),),
        )
        module = replace(self.compute, checkpoint=small).build()
        module.update(tree_map(self._zeros_like, module.parameters()))
        from fastwhisper.transcribing import batches, mel  # noqa: PLC0415  both import NumPy

        silence = mel.make_silent_window(module.dims.n_mels)
        settings = DecodeSettings.from_options(language="en", temperature=0, sample_len=_TOKENS)
        fp16 = self.compute.dtype == "float16"
        next(batches.transcribe_windows(module, silence, settings, fp16=fp16, check=threads.check))

    def _zeros(self, *shape: int) -> mx.array:
        return mx.zeros(shape, getattr(mx, self.compute.network_dtype))

    def _zeros_like(self, array: mx.array) -> mx.array:
        floating = mx.issubdtype(array.dtype, mx.floating)
        return self._zeros(*array.shape) if floating else mx.zeros(array.shape, array.dtype)
