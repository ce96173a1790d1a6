"""Imports point one way: errors, values <- core <- shell."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fastwhisper

PACKAGE = Path(fastwhisper.__file__).parent
CORE = sorted((PACKAGE / "core").glob("*.py"))
WHISPER = sorted((PACKAGE / "whisper").glob("*.py"))
FOREIGN = {"anyio", "asyncio", "trio", "threading", "time", "huggingface_hub", "socket"}
MAY_TOUCH_FILES = {"header.py", "shards.py"}


def imports(path: Path, *, types_too: bool = True) -> set[str]:
    """List the modules a file imports, anywhere in it."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped |= {inner for statement in node.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if not types_too and node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_core_imports_nothing_of_the_shell(path: Path) -> None:
    """Core knows errors, values and itself; types it may take from anywhere."""
    ours = {name for name in imports(path, types_too=False) if name.startswith("fastwhisper")}
    allowed = ("fastwhisper.core", "fastwhisper.errors", "fastwhisper.values")
    assert not {name for name in ours if not name.startswith(allowed)}


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_core_has_no_loop_clock_thread_or_network(path: Path) -> None:
    """Core imports nothing that waits, times, spawns or connects."""
    assert not {name.partition(".")[0] for name in imports(path)} & FOREIGN


@pytest.mark.parametrize("path", WHISPER, ids=lambda path: path.name)
def test_whisper_is_pure(path: Path) -> None:
    """Arrays in, tokens out: no loop, clock, thread, environment or network, nothing above it."""
    found = imports(path)
    assert not {name.partition(".")[0] for name in found} & FOREIGN
    assert not {name for name in found if name.startswith("os")}
    ours = {name for name in found if name.startswith("fastwhisper")}
    allowed = (
        "fastwhisper.core",
        "fastwhisper.errors",
        "fastwhisper.values",
        "fastwhisper.whisper",
    )
    assert not {name for name in ours if not name.startswith(allowed)}


def test_nothing_of_ours_needs_mlx_whisper() -> None:
    """But load_model, whose result it is: no import hook, no class put in place of another."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if path.name != "compat.py":
            assert not {name for name in imports(path) if name.startswith("mlx_whisper")}, path
        for trick in ("meta_path", "__import__", "__builtins__", "__class__ ="):
            assert trick not in text, path


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_only_two_modules_of_core_touch_files(path: Path) -> None:
    """`os` and `pathlib` are imported at run time where files are read, nowhere else."""
    touched = {"os", "pathlib"} & imports(path, types_too=False)
    assert not touched or path.name in MAY_TOUCH_FILES


def test_errors_know_values_only_as_types() -> None:
    """Errors import values for type checking only, and nothing else of ours."""
    errors = PACKAGE / "errors.py"
    assert not {name for name in imports(errors, types_too=False) if "fastwhisper" in name}
    ours = {name for name in imports(errors) if "fastwhisper" in name}
    assert all(name.startswith("fastwhisper.values") for name in ours)


def test_values_import_nothing_of_ours() -> None:
    """Values stand alone."""
    assert not {name for name in imports(PACKAGE / "values.py") if "fastwhisper" in name}


def test_inspection_needs_neither_mlx_nor_numpy() -> None:
    """Importing the checkpoint module is cheap: no MLX, no NumPy."""
    code = (
        "import sys, fastwhisper.checkpoint.inspection, fastwhisper.sources.table;"
        "sys.exit(bool({'mlx', 'mlx.core', 'numpy', 'safetensors', 'zipfile'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == 0
