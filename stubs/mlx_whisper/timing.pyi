from typing import Any

def add_word_timestamps(
    *,
    segments: list[dict[str, Any]],
    model: Any,
    tokenizer: Any,
    mel: Any,
    num_frames: int,
    prepend_punctuations: str = ...,
    append_punctuations: str = ...,
    last_speech_timestamp: float,
    **kwargs: Any,
) -> None: ...
