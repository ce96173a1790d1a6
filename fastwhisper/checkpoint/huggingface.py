"""Checkpoints of Hugging Face transformers: their config and names -> those of MLX.

The tensors are the same but for their names and the axes of the two convolutions, so nothing is
converted but those; what transformers stores besides (the encoder's sinusoids, the output layer
that is the token embedding again) is checked and left out.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from fastwhisper.checkpoint.expected import FLOATS, Findings, brief, parse_dimensions
from fastwhisper.checkpoint.files import shown
from fastwhisper.errors import InvalidModelFormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from fastwhisper.checkpoint.files import TensorPlan
    from fastwhisper.values import Dimensions

__all__ = [
    "KEYS",
    "has_huggingface_names",
    "is_huggingface_config",
    "parse_huggingface_dimensions",
    "translate",
]

KEYS: Final = {
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
    "n_vocab": "vocab_size",
    "n_text_ctx": "max_target_positions",
    "n_text_state": "d_model",
    "n_text_head": "decoder_attention_heads",
    "n_text_layer": "decoder_layers",
}
"""Where a Hugging Face config has the dimensions. Source: transformers, `WhisperConfig`."""

_OPTIONS: Final = {
    "model_type": "whisper",
    "activation_function": "gelu",
    "scale_embedding": False,
}
"""What the options that would make it another network must be, where they are given."""

_AGAIN: Final = "download the files again, or convert the model again"

_PARTS: Final = {
    "self_attn_layer_norm": "attn_ln",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "final_layer_norm": "mlp_ln",
    "self_attn": "attn",
    "encoder_attn": "cross_attn",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "out_proj": "out",
    "fc1": "mlp1",
    "fc2": "mlp2",
}
_LAYER: Final = re.compile(
    r"(encoder|decoder)\.layers\.(0|[1-9][0-9]{0,3})\."
    r"(?:(self_attn|encoder_attn)\.(q_proj|k_proj|v_proj|out_proj)"
    r"|(self_attn_layer_norm|encoder_attn_layer_norm|final_layer_norm|fc1|fc2))"
    r"\.(weight|bias|scales|biases)"
)
_ROOT: Final = {
    "encoder.layer_norm": "encoder.ln_post",
    "decoder.layer_norm": "decoder.ln",
    "decoder.embed_tokens": "decoder.token_embedding",
}
_TEXT_POSITIONS: Final = "decoder.embed_positions.weight"
_AUDIO_POSITIONS: Final = "encoder.embed_positions.weight"
_EMBEDDING: Final = "decoder.embed_tokens.weight"
_OUTPUT: Final = "proj_out.weight"
_CONVOLUTIONS: Final = frozenset({"encoder.conv1.weight", "encoder.conv2.weight"})
_CONV_AXES: Final = (0, 2, 1)


def is_huggingface_config(config: Mapping[str, object]) -> bool:
    """Tell a config of transformers from one of MLX, which has dimensions of other names."""
    return "d_model" in config and "n_audio_state" not in config


def parse_huggingface_dimensions(config: Mapping[str, object], path: Path) -> Dimensions:
    """Take the dimensions from a Hugging Face config.

    Args:
        config: The parsed `config.json`.
        path: Where it is, for the message.

    Returns:
        The dimensions, within the limits.

    Raises:
        InvalidModelFormatError: A dimension is missing, no integer or out of bounds, or an
            option makes it another network than Whisper.
    """
    for key, wanted in _OPTIONS.items():
        found = config.get(key, wanted)
        if type(found) is not type(wanted) or found != wanted:
            raise InvalidModelFormatError(
                path, key, f"is {brief(found)}, in a Whisper it is {wanted!r}; {_AGAIN}"
            )
    return parse_dimensions(config, path, keys=KEYS)


def has_huggingface_names(tensors: Iterable[TensorPlan]) -> bool:
    """Tell whether tensors have the names of transformers; MLX shares only the convolutions'."""
    return any(
        _bare(tensor.stored) == _EMBEDDING or _LAYER.fullmatch(_bare(tensor.stored))
        for tensor in tensors
    )


def translate(
    tensors: Sequence[TensorPlan],
    dimensions: Dimensions,
    config: Mapping[str, object],
    path: Path,
) -> tuple[list[TensorPlan], list[TensorPlan]]:
    """Give tensors with names of transformers those of MLX.

    Args:
        tensors: The plans by their stored names, with or without the prefix `model.`.
        dimensions: The network's sizes.
        config: The parsed `config.json`.
        path: Where the tensors are, for the message.

    Returns:
        The tensors of the network, names that are unknown among them as they are; and those
        that MLX's network has no need of.

    Raises:
        InvalidModelFormatError: What MLX has no need of is not what it should be.

    Source:
        transformers, `WhisperForConditionalGeneration`.
    """
    kept: list[TensorPlan] = []
    left_out: list[TensorPlan] = []
    needless = {
        _AUDIO_POSITIONS: (dimensions.n_audio_ctx, dimensions.n_audio_state),
        _OUTPUT: (dimensions.n_vocab, dimensions.n_text_state),
    }
    # Of two names for the same bytes some writers keep the other one.
    only_output = all(_bare(tensor.stored) != _EMBEDDING for tensor in tensors)
    findings = Findings()
    for tensor in tensors:
        bare = _bare(tensor.stored)
        # MLX's network has the token embedding for an output layer and no other.
        if bare == _OUTPUT and config.get("tie_word_embeddings", True) is not True:
            raise InvalidModelFormatError(
                path,
                shown(tensor.stored),
                "is not tied to the token embedding by its config, which no Whisper of MLX can do",
            )
        if bare == _OUTPUT and only_output:
            bare = _EMBEDDING
        wanted = needless.get(bare)
        if wanted is None:
            kept.append(_renamed(tensor, bare))
            continue
        left_out.append(tensor)
        if tensor.shape != wanted:
            findings.add("mis-shaped", tensor.stored, f" {tensor.shape} for {wanted}")
        elif tensor.dtype not in FLOATS:
            findings.add("of a dtype that doesn't fit", tensor.stored, f" {tensor.dtype}")
    findings.raise_for(path)
    return kept, left_out


def _bare(name: str) -> str:
    # What `WhisperForConditionalGeneration` saves has the prefix, `WhisperModel` alone has not.
    return name.removeprefix("model.")


def _renamed(tensor: TensorPlan, bare: str) -> TensorPlan:
    if bare in _CONVOLUTIONS and len(tensor.shape) == len(_CONV_AXES):
        outputs, inputs, width = tensor.shape
        shape = (outputs, width, inputs)
        return replace(tensor, name=bare, shape=shape, transpose=_CONV_AXES)
    return replace(tensor, name=_translated(bare))


def _translated(bare: str) -> str:
    """Translate a name; an unknown one stays as it is, to be refused as such."""
    if bare == _TEXT_POSITIONS:
        return "decoder.positional_embedding"
    if match := _LAYER.fullmatch(bare):
        part, layer, attention, projection, module, kind = match.groups()
        named = f"{_PARTS[attention]}.{_PARTS[projection]}" if attention else _PARTS[module]
        return f"{part}.blocks.{layer}.{named}.{kind}"
    module, _, kind = bare.rpartition(".")
    return f"{_ROOT.get(module, module)}.{kind}" if module else bare
