"""Run README's first command as it is installed, and compare what it prints with what was said."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import fastwhisper

DATA = Path(__file__).parents[1] / "data"
OPTIONS = ("--model", "tiny.en", "--quant", "float16")


def split_words(text: str) -> list[str]:
    """Return the words of a text, without case and punctuation."""
    return re.findall(r"[a-z]+", text.lower())


def main() -> None:
    """Transcribe the sample, and fail if the words are not those of its README."""
    installed = Path(sysconfig.get_path("purelib"), "fastwhisper", "__init__.py")
    if Path(fastwhisper.__file__) != installed:
        sys.exit(f"{fastwhisper.__file__} is not the installed package")
    command = (Path(sysconfig.get_path("scripts"), "fastwhisper"), "transcribe", *OPTIONS)
    done = subprocess.run(
        [*command, DATA / "sample.ogg"], check=True, stdout=subprocess.PIPE, encoding="utf-8"
    )
    print(done.stdout)
    quoted = re.findall(r"^> (.*)$", (DATA / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    if split_words(done.stdout) != split_words(" ".join(quoted)):
        sys.exit(f"the sample says: {' '.join(quoted)}")


if __name__ == "__main__":
    main()
