from collections.abc import Iterable
from dataclasses import dataclass, field

import mlx.core as mx

from mlx_whisper.tokenizer import Tokenizer
from mlx_whisper.whisper import Whisper

def detect_language(
    model: Whisper, mel: mx.array, tokenizer: Tokenizer | None = None
) -> tuple[mx.array, list[dict[str, float]]]: ...
@dataclass(frozen=True)
class DecodingOptions:
    task: str = "transcribe"
    language: str | None = None
    temperature: float = 0.0
    sample_len: int | None = None
    best_of: int | None = None
    beam_size: int | None = None
    patience: float | None = None
    length_penalty: float | None = None
    prompt: str | list[int] | None = None
    prefix: str | list[int] | None = None
    suppress_tokens: str | Iterable[int] | None = "-1"
    suppress_blank: bool = True
    without_timestamps: bool = False
    max_initial_timestamp: float | None = 1.0
    fp16: bool = True

@dataclass(frozen=True)
class DecodingResult:
    audio_features: mx.array
    language: str
    language_probs: dict[str, float] | None = None
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    avg_logprob: float = ...
    no_speech_prob: float = ...
    temperature: float = ...
    compression_ratio: float = ...

class Inference:
    model: Whisper
    def __init__(self, model: Whisper) -> None: ...
    def logits(self, tokens: mx.array, audio_features: mx.array) -> mx.array: ...

class TokenDecoder:
    def update(
        self, tokens: mx.array, logits: mx.array, sum_logprobs: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]: ...

class GreedyDecoder(TokenDecoder):
    temperature: float
    eot: int
    def __init__(self, temperature: float, eot: int) -> None: ...
    def update(
        self, tokens: mx.array, logits: mx.array, sum_logprobs: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]: ...

class DecodingTask:
    inference: Inference
    decoder: TokenDecoder
    def __init__(self, model: Whisper, options: DecodingOptions) -> None: ...
    def run(self, mel: mx.array) -> list[DecodingResult]: ...
