"""The languages that Whisper knows. Importing this module imports no MLX."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

__all__ = [
    "LANGUAGES",
    "VOCAB_WITHOUT_LANGUAGES",
    "count_languages",
    "find_language_code",
    "is_multilingual",
]

VOCAB_WITHOUT_LANGUAGES: Final = 51765
"""Number of tokens that are no language, in the English vocabulary; the other has one more."""

_MULTILINGUAL_VOCAB: Final = 51865
"""Number of tokens of the smallest multilingual vocabulary."""

# In the order of the language tokens. A network with n languages knows the first n.
# Source: `LANGUAGES` and `TO_LANGUAGE_CODE` of openai/whisper, `tokenizer.py`.
_TABLE = """
en english, zh chinese, de german, es spanish, ru russian, ko korean, fr french,
ja japanese, pt portuguese, tr turkish, pl polish, ca catalan, nl dutch, ar arabic,
sv swedish, it italian, id indonesian, hi hindi, fi finnish, vi vietnamese, he hebrew,
uk ukrainian, el greek, ms malay, cs czech, ro romanian, da danish, hu hungarian,
ta tamil, no norwegian, th thai, ur urdu, hr croatian, bg bulgarian, lt lithuanian,
la latin, mi maori, ml malayalam, cy welsh, sk slovak, te telugu, fa persian,
lv latvian, bn bengali, sr serbian, az azerbaijani, sl slovenian, kn kannada,
et estonian, mk macedonian, br breton, eu basque, is icelandic, hy armenian, ne nepali,
mn mongolian, bs bosnian, kk kazakh, sq albanian, sw swahili, gl galician, mr marathi,
pa punjabi, si sinhala, km khmer, sn shona, yo yoruba, so somali, af afrikaans,
oc occitan, ka georgian, be belarusian, tg tajik, sd sindhi, gu gujarati, am amharic,
yi yiddish, lo lao, uz uzbek, fo faroese, ht haitian creole, ps pashto, tk turkmen,
nn nynorsk, mt maltese, sa sanskrit, lb luxembourgish, my myanmar, bo tibetan,
tl tagalog, mg malagasy, as assamese, tt tatar, haw hawaiian, ln lingala, ha hausa,
ba bashkir, jw javanese, su sundanese, yue cantonese
"""

LANGUAGES: Final = MappingProxyType(
    {
        code: name
        for code, _, name in (" ".join(e.split()).partition(" ") for e in _TABLE.split(","))
    }
)
"""Names of the languages by code, in the order of their tokens."""

_ALIASES: Final = MappingProxyType(
    {
        "burmese": "my",
        "castilian": "es",
        "flemish": "nl",
        "haitian": "ht",
        "letzeburgesch": "lb",
        "mandarin": "zh",
        "moldavian": "ro",
        "moldovan": "ro",
        "panjabi": "pa",
        "pushto": "ps",
        "sinhalese": "si",
        "valencian": "ca",
    }
)

_CODES: Final = MappingProxyType(
    {name: code for code, name in LANGUAGES.items()} | dict(_ALIASES) | {c: c for c in LANGUAGES}
)


def is_multilingual(n_vocab: int) -> bool:
    """Return whether a network with `n_vocab` tokens knows languages other than English."""
    return n_vocab >= _MULTILINGUAL_VOCAB


def count_languages(n_vocab: int) -> int:
    """Return how many languages a network with `n_vocab` tokens has tokens for.

    Source:
        `Whisper.num_languages` of openai/whisper, `model.py`.
    """
    return n_vocab - VOCAB_WITHOUT_LANGUAGES - int(is_multilingual(n_vocab))


def find_language_code(language: str) -> str:
    """Return the code of a language.

    Args:
        language: Its code or its English name, in upper or lower case.

    Raises:
        ValueError: The language is unknown; the message lists the known ones.
    """
    code = _CODES.get(language.lower())
    if code is None:
        known = ", ".join(f"{code} ({name})" for code, name in LANGUAGES.items())
        raise ValueError(f"unknown language {language!r}; Whisper knows {known}")
    return code
