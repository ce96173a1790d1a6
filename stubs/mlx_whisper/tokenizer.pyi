from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import tiktoken

LANGUAGES: dict[str, str]
TO_LANGUAGE_CODE: dict[str, str]

@dataclass
class Tokenizer:
    encoding: tiktoken.Encoding
    num_languages: int
    language: str | None = None
    task: str | None = None
    sot_sequence: tuple[int, ...] = ()
    special_tokens: dict[str, int] = field(default_factory=dict)
    def encode(self, text: str, **kwargs: Any) -> list[int]: ...
    def decode(self, token_ids: list[int], **kwargs: Any) -> str: ...
    @cached_property
    def eot(self) -> int: ...
    @cached_property
    def timestamp_begin(self) -> int: ...

def get_tokenizer(
    multilingual: bool,
    *,
    num_languages: int = 99,
    language: str | None = None,
    task: str | None = None,
) -> Tokenizer: ...
