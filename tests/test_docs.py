"""The documents name only what exists; `nox -s docs` checks the links between the pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def read(name: str) -> str:
    """Return the text of a document."""
    return (ROOT / name).read_text(encoding="utf-8")


def test_readme_is_short() -> None:
    """README has 6 kB at most."""
    assert len(read("README.md").encode()) <= 6000


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("*.md")))
def test_relative_links_lead_to_files(name: str) -> None:
    """Each relative link and each picture is a file of the clone."""
    links = re.findall(r"\]\(([^)#]+)", read(name))
    assert not [link for link in links if "://" not in link and not (ROOT / link).is_file()]


def test_architecture_names_files_that_exist() -> None:
    """Each module that the page names is in the package."""
    modules = set(re.findall(r"`((?:\w+/)*\w+\.py)`", read("docs/architecture.md")))
    places = [ROOT if module.startswith("tests/") else ROOT / "fastwhisper" for module in modules]
    assert not [
        module
        for module, place in zip(modules, places, strict=True)
        if not (place / module).is_file()
    ]


def test_architecture_names_every_module() -> None:
    """Each module of a room is on the page, so that a reader finds where a change goes."""
    text = read("docs/architecture.md")
    package = ROOT / "fastwhisper"
    modules = [path.relative_to(package).as_posix() for path in package.rglob("*.py")]
    assert not [name for name in modules if "__" not in name and f"`{name}`" not in text]


def test_differences_names_tests_that_exist() -> None:
    """Each difference from mlx_whisper has the tests that its row names."""
    named = set(re.findall(r"`(test_\w+)`", read("docs/differences.md")))
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    assert named
    assert not [name for name in named if f"def {name}(" not in tests]
