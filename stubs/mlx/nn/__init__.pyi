from collections.abc import Callable
from typing import Any

import mlx.core as mx

class Module(dict[str, Any]):
    def __init__(self) -> None: ...
    def __getattr__(self, key: str) -> Any: ...
    def update(self, parameters: dict[str, Any], strict: bool = True) -> Module: ...  # type: ignore[override]
    def parameters(self) -> dict[str, Any]: ...
    def named_modules(self) -> list[tuple[str, Module]]: ...

class Linear(Module):
    def __init__(self, input_dims: int, output_dims: int, bias: bool = True) -> None: ...

class Embedding(Module):
    def __init__(self, num_embeddings: int, dims: int) -> None: ...

class QuantizedLinear(Module):
    def __init__(
        self,
        input_dims: int,
        output_dims: int,
        bias: bool = True,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
    ) -> None: ...
    def __call__(self, x: mx.array) -> mx.array: ...

class LayerNorm(Module):
    def __init__(
        self, dims: int, eps: float = 1e-5, affine: bool = True, bias: bool = True
    ) -> None: ...
    def __call__(self, x: mx.array) -> mx.array: ...

class MultiHeadAttention(Module):
    def __init__(
        self,
        dims: int,
        num_heads: int,
        query_input_dims: int | None = None,
        key_input_dims: int | None = None,
        value_input_dims: int | None = None,
        value_dims: int | None = None,
        value_output_dims: int | None = None,
        bias: bool = False,
    ) -> None: ...
    @staticmethod
    def create_additive_causal_mask(N: int, dtype: mx.Dtype = ...) -> mx.array: ...

def gelu(x: mx.array) -> mx.array: ...
def quantize(
    model: Module,
    group_size: int | None = None,
    bits: int | None = None,
    *,
    mode: str = "affine",
    quantize_input: bool = False,
    class_predicate: Callable[[str, Module], bool | dict[str, Any]] | None = None,
) -> None: ...
