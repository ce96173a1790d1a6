"""Public records and enums: plain, frozen data, no behaviour that could fail."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Literal, TypedDict

__all__ = [
    "Closed",
    "Dimensions",
    "DtypeName",
    "Failed",
    "LoadOptions",
    "LoadOverrides",
    "LoadStats",
    "Loading",
    "LoadingState",
    "ModulePrecision",
    "Progress",
    "Quantization",
    "QuantizationName",
    "Ready",
    "Segment",
    "Span",
    "Stage",
    "Transcription",
    "WhisperModel",
    "Word",
]

DtypeName = Literal["float16", "float32", "bfloat16"]
QuantizationName = Literal["float16", "int8", "int4"]
Stage = Literal["resolve", "download", "convert", "read", "warm-up"]


class WhisperModel(StrEnum):
    """The models that have a row in the repository table."""

    TINY = "tiny"
    TINY_EN = "tiny.en"
    BASE = "base"
    BASE_EN = "base.en"
    SMALL = "small"
    SMALL_EN = "small.en"
    MEDIUM = "medium"
    MEDIUM_EN = "medium.en"
    LARGE_V3 = "large-v3"
    LARGE_TURBO = "large-v3-turbo"


class Quantization(StrEnum):
    """The precisions that have a column in the repository table.

    What they cost in words, as a share of float16's own that change on easy mixed speech: int8
    0.15 % (tiny.en); int4 as the table's repositories are rounded 18.9 % (tiny.en) and 10.9 %
    (base). What `fastwhisper quantize` calls int4 has five bits and 34 % of the bytes: on
    synthesized speech it raised the word error rate by 1.4 points for tiny.en (95 % interval
    0.2 to 2.6) and 0.7 for base (-0.2 to 1.6). Larger models were not measured.
    """

    FLOAT16 = "float16"
    INT8 = "int8"
    INT4 = "int4"


@dataclass(frozen=True, slots=True)
class ModulePrecision:
    """How the weight of one quantized module is packed.

    Attributes:
        bits: Bits a weight, 2 to 8.
        group_size: Weights that share one scale and one bias.

    Source:
        MLX's affine format, `mlx.core.quantize`.
    """

    bits: int
    group_size: int


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The sizes of a Whisper network, under the names of its checkpoints.

    Attributes:
        n_mels: Mel filters of the input, 80 or 128.
        n_audio_ctx: Encoder positions of one 30 s window, 1500.
        n_audio_state: Width of the encoder.
        n_audio_head: Attention heads of an encoder layer.
        n_audio_layer: Encoder layers.
        n_vocab: Rows of the token embedding.
        n_text_ctx: Decoder positions, 448.
        n_text_state: Width of the decoder.
        n_text_head: Attention heads of a decoder layer.
        n_text_layer: Decoder layers.

    Source:
        `config.json` of an MLX checkpoint.
    """

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


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is opened. The defaults are what a user of mlx_whisper has today.

    Attributes:
        quant: The precision to choose from the table.
        background: Return while the weights are still being read.
        fallback: What to open when the table's repository for `quant` does not exist;
            None raises instead.
        dtype: The type floating parameters are computed in; None is float16 on a GPU
            and float32 on a CPU, where MLX is many times faster in it.
        warm_up: Compile the kernels before ready; None does on a GPU and not on a CPU.
        revision: Branch, tag or commit of the repository.
        offline: Never touch the network.
    """

    DEFAULT: ClassVar[LoadOptions]
    FAST: ClassVar[LoadOptions]

    quant: Quantization | QuantizationName = Quantization.FLOAT16
    background: bool = False
    fallback: Literal["float16"] | None = "float16"
    dtype: DtypeName | None = None
    warm_up: bool | None = None
    revision: str | None = None
    offline: bool = False


LoadOptions.DEFAULT = LoadOptions()
LoadOptions.FAST = LoadOptions(quant=Quantization.INT4, background=True)


class LoadOverrides(TypedDict, total=False):
    """The fields of `LoadOptions` as keyword arguments of `open` and `load`."""

    quant: Quantization | QuantizationName
    background: bool
    fallback: Literal["float16"] | None
    dtype: DtypeName | None
    warm_up: bool | None
    revision: str | None
    offline: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a load has come.

    Attributes:
        stage: What is being done.
        done_bytes: Bytes of this stage that are done.
        total_bytes: Bytes of this stage in all, or None while that is unknown. A warm-up,
            which has no bytes, ends with 0 of 0.
    """

    stage: Stage
    done_bytes: int
    total_bytes: int | None


@dataclass(frozen=True, slots=True)
class Span:
    """One stage of a load, on its lane of the timeline.

    Attributes:
        name: The stage.
        start_s: Its begin, in seconds since the load began.
        end_s: Its end, in seconds since the load began.
    """

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class LoadStats:
    """What a load did.

    Attributes:
        bytes_read: Bytes of weights read from disk.
        tensors: Arrays in the module.
        spans: The stages, by start.
        peak_bytes: The most memory MLX held while loading, in bytes.
    """

    bytes_read: int
    tensors: int
    spans: tuple[Span, ...]
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Loading:
    """The model is being loaded."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The model can be used.

    Attributes:
        stats: What loading it took.
    """

    stats: LoadStats


@dataclass(frozen=True, slots=True)
class Failed:
    """The load has failed and will not go on.

    Attributes:
        error: The real error.
    """

    error: BaseException


@dataclass(frozen=True, slots=True)
class Closed:
    """The session was left, or its load cancelled; the model is gone."""


LoadingState = Loading | Ready | Failed | Closed


@dataclass(frozen=True, slots=True)
class Word:
    """One word with its time.

    Attributes:
        word: The word, with the space before it.
        start_s: Begin, in seconds of the audio.
        end_s: End, in seconds of the audio.
        probability: Mean probability of its tokens, 0 to 1.
    """

    word: str
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech, usually a sentence or a part of one.

    Attributes:
        start_s: Begin, in seconds of the audio.
        end_s: End, in seconds of the audio.
        text: What was said, with the space before it.
        tokens: The tokens, timestamps among them.
        avg_logprob: Mean log-probability of the window's tokens.
        no_speech_prob: Probability that the window holds no speech, 0 to 1.
        compression_ratio: Length of the window's text by that of its zlib form.
        temperature: The temperature at which the window was decoded.
        words: The words with their times; None unless they were asked for.
        seek_frames: First frame of the window, 10 ms each.
    """

    start_s: float
    end_s: float
    text: str
    tokens: tuple[int, ...]
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    temperature: float
    words: tuple[Word, ...] | None
    seek_frames: int


@dataclass(frozen=True, slots=True)
class Transcription:
    """All that was said in one audio.

    Attributes:
        text: The whole text.
        segments: Its parts, in order.
        language: Code of the language, such as "en".
        duration_s: Length of the audio in seconds.
    """

    text: str
    segments: tuple[Segment, ...]
    language: str
    duration_s: float
