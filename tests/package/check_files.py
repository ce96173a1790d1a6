"""List what an sdist and a wheel hold, and check it: check_files.py SDIST WHEEL WHEEL_BY_PIP."""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEEDED = (
    "fastwhisper/py.typed",
    "fastwhisper/cli/data/sample.ogg",
    "fastwhisper/freezing/hook-fastwhisper.py",
    "fastwhisper/quantizing/data/calibration.en.ogg",
    "fastwhisper/transcribing/data/LICENSE",
    "fastwhisper/transcribing/data/silero_vad_16k.npz",
    "fastwhisper/whisper/data/LICENSE",
    "fastwhisper/whisper/data/gpt2.tiktoken",
    "fastwhisper/whisper/data/mel_filters.npz",
    "fastwhisper/whisper/data/multilingual.tiktoken",
    ".dist-info/entry_points.txt",
    ".dist-info/licenses/LICENSE",
    ".dist-info/licenses/fastwhisper/transcribing/data/LICENSE",
    ".dist-info/licenses/fastwhisper/whisper/data/LICENSE",
)
"""What the package would miss first, named here so that it can't get lost in the checkout too."""
UNWANTED = re.compile(r"(^|/)(\.(?!gitignore$)|__pycache__|uv\.lock$|site/|dist/)")
MAX_WHEEL_BYTES = 4_000_000
"""PyPI allows 100 MB; this is twice of what the wheel has, so that a weight file stands out."""


def read_sizes(path: Path) -> dict[str, int]:
    """Return the sizes in bytes of the files of a wheel or an sdist, by name."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return {entry.filename: entry.file_size for entry in wheel.infolist()}
    with tarfile.open(path) as sdist:
        top = f"{path.name.removesuffix('.tar.gz')}/"
        return {
            entry.name.removeprefix(top): entry.size
            for entry in sdist.getmembers()
            if entry.isfile()
        }


def list_source() -> set[str]:
    """Return the files of the package in the checkout, without bytecode."""
    files = (path for path in (ROOT / "fastwhisper").rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}


def find_faults(sdist: dict[str, int], wheel: dict[str, int], by_pip: dict[str, int]) -> list[str]:
    """Return what is wrong with the files, one sentence each."""
    source = list_source()
    installed = {name for name in wheel if ".dist-info/" not in name}
    named = {re.sub(r"^[^/]*(?=\.dist-info/)", "", name) for name in wheel}
    return [
        *(f"the wheel lacks {name}" for name in NEEDED if name not in named),
        *(f"the wheel lacks {name} of the checkout" for name in sorted(source - installed)),
        *(f"the wheel has {name}, the checkout has not" for name in sorted(installed - source)),
        *(f"the sdist lacks {name}" for name in sorted(source - sdist.keys())),
        *(f"the sdist has {name}" for name in sorted(sdist) if UNWANTED.search(name)),
        *(f"the wheel of pip differs in {name}" for name in sorted(wheel.keys() ^ by_pip.keys())),
    ]


def main() -> None:
    """Print the wheel's files, the largest first, and fail if something is wrong."""
    sdist_path, wheel_path, pip_path = map(Path, sys.argv[1:])
    wheel = read_sizes(wheel_path)
    sdist = read_sizes(sdist_path)
    for name, size in sorted(wheel.items(), key=lambda item: -item[1]):
        print(f"{size:>9,}  {name}")
    for path, sizes in ((wheel_path, wheel), (sdist_path, sdist)):
        print(f"{path.name}: {len(sizes)} files, {path.stat().st_size:,} bytes packed")
    if faults := find_faults(sdist, wheel, read_sizes(pip_path)):
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
