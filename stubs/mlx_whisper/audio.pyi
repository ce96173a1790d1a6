import mlx.core as mx
import numpy as np

N_SAMPLES: int

def log_mel_spectrogram(
    audio: str | np.ndarray | mx.array, n_mels: int = 80, padding: int = 0
) -> mx.array: ...
def pad_or_trim(array: mx.array, length: int = 480000, *, axis: int = -1) -> mx.array: ...
