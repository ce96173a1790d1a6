import mlx.core as mx

from mlx_whisper import whisper

def load_model(path_or_hf_repo: str, dtype: mx.Dtype = ...) -> whisper.Whisper: ...
