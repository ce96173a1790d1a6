from typing import Any

import mlx.core as mx
import numpy as np

from mlx_whisper.whisper import Whisper

class ModelHolder:
    model: Whisper | None
    model_path: str | None
    @classmethod
    def get_model(cls, model_path: str, dtype: mx.Dtype) -> Whisper: ...

def transcribe(
    audio: str | np.ndarray | mx.array,
    *,
    path_or_hf_repo: str = ...,
    verbose: bool | None = None,
    temperature: float | tuple[float, ...] = ...,
    compression_ratio_threshold: float | None = 2.4,
    logprob_threshold: float | None = -1.0,
    no_speech_threshold: float | None = 0.6,
    condition_on_previous_text: bool = True,
    initial_prompt: str | None = None,
    word_timestamps: bool = False,
    prepend_punctuations: str = ...,
    append_punctuations: str = ...,
    clip_timestamps: str | list[float] = "0",
    hallucination_silence_threshold: float | None = None,
    **decode_options: Any,
) -> dict[str, Any]: ...
