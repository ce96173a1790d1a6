"""Public records and enums: frozen data without behaviour."""

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
    "PooledModel",
    "Progress",
    "Quantization",
    "QuantizationName",
    "Ready",
    "Segment",
    "Span",
    "Stage",
    "TranscribeProgress",
    "Transcription",
    "WhisperModel",
    "Word",
]

DtypeName = Literal["float16", "float32", "bfloat16"]
QuantizationName = Literal["float16", "int8", "int4"]
Stage = Literal["resolve", "download", "convert", "read", "warm-up"]


class WhisperModel(StrEnum):
    """The models of the repository table."""

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
    """The precisions of the repository table.

    Measured on 4,145 words of recorded English, in points of word error rate above float16's, for
    tiny.en and base: int8 0.0 and 0.1; int4 as `fastwhisper quantize` makes it (five bits, 34 % of
    the bytes) 0.3 and 0.4; int4 as the table's repositories are rounded 2.9 and 2.5. Larger models
    were not measured.

    Source:
        docs/benchmarks.md.
    """

    FLOAT16 = "float16"
    INT8 = "int8"
    INT4 = "int4"


@dataclass(frozen=True, slots=True)
class ModulePrecision:
    """The packing of one quantized module's weight.

    Attributes:
        bits: Bits of one weight, 2 to 8.
        group_size: Number of weights that share one scale and one bias.

    Source:
        MLX's affine format, `mlx.core.quantize`.
    """

    bits: int
    group_size: int


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The sizes of a Whisper network, with the names that checkpoints use.

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
    """How a model is loaded. The defaults are those of mlx_whisper.

    Attributes:
        quant: The precision, which chooses among the table's repositories.
        background: Return while the weights are still being read.
        fallback: The precision to load if no repository has `quant`; None raises instead.
        dtype: The dtype to compute in. None is float16 on a GPU and float32 on a CPU, where MLX
            is many times faster in float32.
        warm_up: Whether to compile the kernels before ready. None does so on a GPU only.
        revision: Branch, tag or commit of the repository.
        offline: Whether the network is forbidden.
        memory_map: Whether weights are the file's own pages where that is possible, instead of
            being read. Only for a Mac; elsewhere it is an error. If a mapped file is cut while
            the model is open, the system ends the process. No Mac has run it yet.
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
    memory_map: bool = False


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
    memory_map: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of one stage of a load.

    Attributes:
        stage: The stage.
        done_bytes: Bytes of this stage that are done.
        total_bytes: All bytes of this stage; None while they are unknown. A warm-up has no
            bytes and ends with 0 of 0.
    """

    stage: Stage
    done_bytes: int
    total_bytes: int | None


@dataclass(frozen=True, slots=True)
class Span:
    """The time of one stage of a load.

    Attributes:
        name: The name of the stage.
        start_s: Its start, in seconds since the load began.
        end_s: Its end, in seconds since the load began.
    """

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class LoadStats:
    """Bytes, memory and times of a load.

    Attributes:
        bytes_read: Bytes of weights read from disk, without those that are mapped.
        tensors: Number of arrays in the network.
        spans: The stages, by start.
        peak_bytes: Largest memory that MLX held while loading, in bytes.
        bytes_mapped: Bytes of weights that are the file's own pages.
        huge_page_bytes: Growth of this process's memory in huge pages while the weights were read.
        lanes: Number of threads that read side by side.
        kernels_pending: Number of steps of the warm-up that still compile kernels, which happens
            once on a machine. The first transcription waits for what it needs.
    """

    bytes_read: int
    tensors: int
    spans: tuple[Span, ...]
    peak_bytes: int
    bytes_mapped: int = 0
    huge_page_bytes: int = 0
    lanes: int = 1
    kernels_pending: int = 0


@dataclass(frozen=True, slots=True)
class Loading:
    """The model is being loaded."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The model can be used.

    Attributes:
        stats: Bytes, memory and times of the load.
    """

    stats: LoadStats


@dataclass(frozen=True, slots=True)
class Failed:
    """The load has failed.

    Attributes:
        error: The error that made it fail.
    """

    error: BaseException


@dataclass(frozen=True, slots=True)
class Closed:
    """The session was left, or its load was cancelled. The model is gone."""


LoadingState = Loading | Ready | Failed | Closed


@dataclass(frozen=True, slots=True)
class PooledModel:
    """A model of a pool.

    Attributes:
        model_name: The name that was given.
        state: The state of its load; `Closed` while its memory is being returned.
        bytes: Bytes of its weights that count; 0 while it waits for room.
        borrowers: Those who use it or wait for it.
        idle_s: Seconds since the last of them left; 0 while there is one.
    """

    model_name: str
    state: LoadingState
    bytes: int
    borrowers: int
    idle_s: float


@dataclass(frozen=True, slots=True)
class Word:
    """One word with its times.

    Attributes:
        word: The word, with the space before it.
        start_s: Start, in seconds from the audio's start.
        end_s: End, in seconds from the audio's start.
        probability: Mean probability of its tokens, 0 to 1.
    """

    word: str
    start_s: float
    end_s: float
    probability: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a transcription with its times, usually a sentence or a part of one.

    Attributes:
        start_s: Start, in seconds from the audio's start.
        end_s: End, in seconds from the audio's start.
        text: The text, with the space before it.
        tokens: The tokens, timestamps included.
        avg_logprob: Mean natural log-probability of the window's tokens.
        no_speech_prob: Probability that the window holds no speech, 0 to 1.
        compression_ratio: Length of the window's text divided by its length after zlib.
        temperature: The temperature at which the window was decoded.
        words: The words with their times. None without `word_timestamps`, except that a segment
            without speech has an empty tuple.
        seek_frames: First mel frame of the window. A frame is 10 ms.
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
class TranscribeProgress:
    """The progress of one transcription, after a window or a batch of windows.

    Attributes:
        done_s: End of the audio that is done, in seconds from the audio's start.
        duration_s: Length of the audio in seconds, as far as it is read. With `batch_size` above 1
            or `vad_filter` it is read while it is decoded.
    """

    done_s: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class LiveText:
    """A stretch of what is being said. `Session.listen` gives it.

    Final stretches never change and do not overlap. At most one tentative stretch follows them:
    whatever comes next takes its place.

    Attributes:
        text: The text, with the space before it. Empty if nothing is left of a tentative stretch.
        start_s: Start, in seconds from the first sample.
        end_s: End, in seconds from the first sample.
        is_final: Whether it never changes.
        backlog_s: Seconds of sound that came and were not in a pass yet. As much as a pass takes is
            usual; more and more means that the machine is slower than the speaker.
    """

    text: str
    start_s: float
    end_s: float
    is_final: bool
    backlog_s: float


@dataclass(frozen=True, slots=True)
class Transcription:
    """The transcription of one audio.

    All times are those of the media file: a late start and gaps of the audio count.

    Attributes:
        text: The whole text.
        segments: The segments, in order.
        language: Code of the language, such as "en".
        duration_s: Length of the audio in seconds, from the begin of the file.
    """

    text: str
    segments: tuple[Segment, ...]
    language: str
    duration_s: float
