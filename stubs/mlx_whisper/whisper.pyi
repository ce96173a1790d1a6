from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

@dataclass
class ModelDimensions:
    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int

_KeyValue = tuple[mx.array, mx.array]
_Cache = list[tuple[_KeyValue | None, _KeyValue | None]]

class AudioEncoder(nn.Module):
    def __init__(
        self,
        n_mels: int,
        n_ctx: int,
        n_state: int,
        n_head: int,
        n_layer: int,
        dtype: mx.Dtype = ...,
    ) -> None: ...
    def __call__(self, x: mx.array) -> mx.array: ...

class TextDecoder(nn.Module):
    def __init__(
        self,
        n_vocab: int,
        n_ctx: int,
        n_state: int,
        n_head: int,
        n_layer: int,
        dtype: mx.Dtype = ...,
    ) -> None: ...
    def __call__(
        self, x: mx.array, xa: mx.array, kv_cache: _Cache | None = None
    ) -> tuple[mx.array, _Cache, list[mx.array]]: ...

class Whisper(nn.Module):
    dims: ModelDimensions
    encoder: AudioEncoder
    decoder: TextDecoder
    alignment_heads: mx.array
    def __init__(self, dims: ModelDimensions, dtype: mx.Dtype = ...) -> None: ...
    def __call__(self, mel: mx.array, tokens: mx.array) -> mx.array: ...
    def embed_audio(self, mel: mx.array) -> mx.array: ...
    def logits(self, tokens: mx.array, audio_features: mx.array) -> mx.array: ...
    @property
    def is_multilingual(self) -> bool: ...
    @property
    def num_languages(self) -> int: ...
