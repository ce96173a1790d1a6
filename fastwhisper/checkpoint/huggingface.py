"""Hugging Face transformers: its config and its names of tensors -> those of MLX.

The tensors are the same, except for their names and the axes of the two convolutions. Two tensors
that MLX does not need are checked and left out: the encoder's sinusoids, and the output layer,
which is the token embedding.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from fastwhisper.checkpoint.config import brief, parse_dimensions
from fastwhisper.checkpoint.expected import FLOATS, Findings
from fastwhisper.checkpoint.files import shown
from fastwhisper.errors import InvalidModelFormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from fastwhisper.checkpoint.plan import TensorPlan
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
"""The keys of the dimensions in a Hugging Face config. Source: transformers, `WhisperConfig`."""

_OPTIONS: Final = {
    "model_type": "whisper",
    "activation_function": "gelu",
    "scale_embedding": False,
}
"""The values of options that a Whisper must have, if they are given."""


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
    """Return whether a config is one of transformers, by the names of its dimensions."""
    return "d_model" in config and "n_audio_state" not in config


def parse_huggingface_dimensions(config: Mapping[str, object], path: Path) -> Dimensions:
    """Read the dimensions from a Hugging Face config.

    Args:
        config: The parsed `config.json`.
        path: Its path, for messages.

    Returns:
        The dimensions, within the limits.

    Raises:
        InvalidModelFormatError: A dimension is missing, not an integer or out of bounds, or an
            option makes this another network than Whisper.
    """
    for key, wanted in _OPTIONS.items():
        found = config.get(key, wanted)
        if type(found) is not type(wanted) or found != wanted:
            raise InvalidModelFormatError(
                path, key, f"is {brief(found)}, but in a Whisper it is {wanted!r}"
            )
    return parse_dimensions(config, path, keys=KEYS)


def has_huggingface_names(tensors: Iterable[TensorPlan]) -> bool:
    """Return whether tensors have the names of transformers. Only the convolutions share names."""
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
    """Translate the names of tensors from transformers to MLX.

    Args:
        tensors: The plans with their stored names, with or without the prefix `model.`.
        dimensions: The network's sizes.
        config: The parsed `config.json`.
        path: The tensors' file, for messages.

    Returns:
        The tensors of the network, and those that MLX's network does not need. An unknown name
        stays as it is, among the first.

    Raises:
        InvalidModelFormatError: A tensor that MLX does not need has the wrong shape or dtype.

    Source:
        transformers, `WhisperForConditionalGeneration`.
    """
    kept: list[TensorPlan] = []
    left_out: list[TensorPlan] = []
    unneeded = {
        _AUDIO_POSITIONS: (dimensions.n_audio_ctx, dimensions.n_audio_state),
        _OUTPUT: (dimensions.n_vocab, dimensions.n_text_state),
    }
    # The embedding and the output layer are the same bytes; some writers keep only the second.
    only_output = all(_bare(tensor.stored) != _EMBEDDING for tensor in tensors)
    findings = Findings()
    for tensor in tensors:
        bare = _bare(tensor.stored)
        # The output layer of MLX's network is always the token embedding.
        if bare == _OUTPUT and config.get("tie_word_embeddings", True) is not True:
            raise InvalidModelFormatError(
                path,
                shown(tensor.stored),
                "is not tied to the token embedding by the config, which MLX's network requires",
            )
        if bare == _OUTPUT and only_output:
            bare = _EMBEDDING
        expected = unneeded.get(bare)
        if expected is None:
            kept.append(_renamed(tensor, bare))
            continue
        left_out.append(tensor)
        if tensor.shape != expected:
            findings.add("of the wrong shape", tensor.stored, f" {tensor.shape}, not {expected}")
        elif tensor.dtype not in FLOATS:
            findings.add("of the wrong dtype", tensor.stored, f" {tensor.dtype}")
    findings.raise_for(path)
    return kept, left_out


def _bare(name: str) -> str:
    # `WhisperForConditionalGeneration` saves with the prefix, `WhisperModel` alone without.
    return name.removeprefix("model.")


def _renamed(tensor: TensorPlan, bare: str) -> TensorPlan:
    if bare in _CONVOLUTIONS and len(tensor.shape) == len(_CONV_AXES):
        outputs, inputs, width = tensor.shape
        shape = (outputs, width, inputs)
        return replace(tensor, name=bare, shape=shape, transpose=_CONV_AXES)
    return replace(tensor, name=_translated(bare))


def _translated(bare: str) -> str:
    """Translate a name; return an unknown name as it is, to be refused later."""
    if bare == _TEXT_POSITIONS:
        return "decoder.positional_embedding"
    if match := _LAYER.fullmatch(bare):
        part, layer, attention, projection, module, kind = match.groups()
        named = f"{_PARTS[attention]}.{_PARTS[projection]}" if attention else _PARTS[module]
        return f"{part}.blocks.{layer}.{named}.{kind}"
    module, _, kind = bare.rpartition(".")
    return f"{_ROOT.get(module, module)}.{kind}" if module else bare
