"""The rules of tests/README.md that a machine can check."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
INDEX = (TESTS / "README.md").read_text(encoding="utf-8")
FILES = [path.relative_to(TESTS) for path in sorted(TESTS.rglob("*.py"))]
MODULES = [str(path) for path in FILES if path.name.startswith("test_")]
HELPERS = [str(path) for path in FILES if path.parts[0] == "helpers"]


def is_test(name: str) -> bool:
    """Return whether an imported name is in a test module or a conftest."""
    parts = name.split(".")
    return parts[0] == "tests" and any(
        part.startswith("test_") or part == "conftest" for part in parts
    )


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_test_module_is_imported(path: Path) -> None:
    """What two modules need is in tests/helpers/, so that each test module stands alone."""
    imported: set[str] = set()
    for node in ast.walk(ast.parse((TESTS / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert not [name for name in imported if is_test(name)]


@pytest.mark.parametrize("path", [*MODULES, *HELPERS])
def test_every_module_is_in_the_index(path: str) -> None:
    """Whoever looks for the tests of a behaviour finds the file in tests/README.md."""
    assert f"`{path}`" in INDEX
