"""Rooms and layers: who may import whom, and which rooms are pure."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fastwhisper

PACKAGE = Path(fastwhisper.__file__).parent

LAYERS = {
    "values": 0,
    "errors": 1,
    "checkpoint": 2,
    "engine": 2,
    "whisper": 3,
    "sources": 3,
    "transcribing": 4,
    "loading": 5,
    "listen": 6,
    "stream": 6,
    "session": 7,
    "compat": 7,
    "quantizing": 7,
    "pooling": 8,
    "fleet": 8,
    "cli": 9,
    "freezing": 9,
    "__main__": 10,
    "__init__": 11,
}
"""The layer of each room. A room imports rooms of lower layers only; types count too."""

IMPURE = {
    "anyio", "asyncio", "concurrent", "httpx2", "huggingface_hub", "logging", "multiprocessing",
    "random", "select", "signal", "socket", "subprocess", "tempfile", "threading", "time", "trio",
}  # fmt: skip
"""Modules with a loop, a thread, a clock, a network or a state that a pure room has no use for."""

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def room_of(module: str) -> str:
    """Return the room of a module, such as "checkpoint" for "checkpoint.files"."""
    return module.partition(".")[0]


def read_imports(path: Path) -> set[str]:
    """Return all modules and names that a file imports, anywhere in it, for types too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def read_graph() -> dict[str, set[str]]:
    """Return the modules of ours that each module of ours imports."""
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        graph[module] = set()
        for name in read_imports(path):
            package, _, ours = name.partition(".")
            # The name of a module, or a name in a module.
            target = ours if ours in MODULES else ours.rpartition(".")[0]
            if package == "fastwhisper" and target in MODULES:
                graph[module].add(target)
    return graph


def print_graph() -> None:
    """Print layers, rooms and the rooms that each imports: `python -m tests.test_layers`."""
    graph = read_graph()
    for room, layer in sorted(LAYERS.items(), key=lambda item: item[1]):
        targets = {
            room_of(target)
            for module, found in graph.items()
            if room_of(module) == room
            for target in found
        } - {room}
        sys.stdout.write(f"{layer:2}  {room:13} -> {', '.join(sorted(targets))}\n")
    cycles = find_cycles(graph)
    modules = sum(map(len, graph.values()))
    sys.stdout.write(f"{len(graph)} modules, {modules} imports, {len(cycles)} modules in cycles\n")


def find_cycles(graph: dict[str, set[str]]) -> set[str]:
    """Return the modules that are left when those without open imports are taken away."""
    left = {module: set(targets) for module, targets in graph.items()}
    while done := {module for module, targets in left.items() if not targets}:
        left = {module: targets - done for module, targets in left.items() if module not in done}
    return {module for module in left if _reaches_itself(module, left)}


def _reaches_itself(module: str, graph: dict[str, set[str]]) -> bool:
    seen: set[str] = set()
    waiting = list(graph[module])
    while waiting:
        target = waiting.pop()
        if target == module:
            return True
        if target not in seen:
            seen.add(target)
            waiting += graph[target]
    return False


def test_every_module_is_in_a_room() -> None:
    """The table knows every room, and nothing but rooms."""
    assert {room_of(module) for module in MODULES} == set(LAYERS)


def test_imports_run_down() -> None:
    """No module imports from its own layer's other rooms, or from above; types included."""
    upward = [
        f"{module} imports {target}"
        for module, targets in read_graph().items()
        for target in targets
        if room_of(module) != room_of(target) and LAYERS[room_of(target)] >= LAYERS[room_of(module)]
    ]
    assert not upward


def test_no_module_imports_itself_in_a_circle() -> None:
    """No circle, inside a room either; imports in functions and for types count too."""
    assert not find_cycles(read_graph())


@pytest.mark.parametrize(
    "module", [name for name in MODULES if room_of(name) in {"checkpoint", "whisper"}]
)
def test_checkpoint_and_whisper_are_pure(module: str) -> None:
    """They have no thread, loop, clock, environment, network or state."""
    path = MODULES[module]
    imported = {name.partition(".")[0] for name in read_imports(path)}
    assert not imported & IMPURE
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Global)]
    names = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & {"os.environ", "os.getenv", "sys.modules", "Path.cwd", "Path.home"}


def test_whisper_does_not_touch_the_file_system_but_for_its_data() -> None:
    """It imports no `os`; what it reads lies beside it in the wheel."""
    for module, path in MODULES.items():
        if room_of(module) == "whisper":
            assert "os" not in read_imports(path), module


def test_open_never_imports_mlx_whisper() -> None:
    """Only load_model does, whose result it is; and no module replaces parts of another."""
    for module, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        if module != "compat":
            assert not {name for name in read_imports(path) if name.startswith("mlx_whisper")}
        for trick in ("meta_path", "__import__", "__builtins__", "__class__ ="):
            assert trick not in text, module


def test_values_and_errors_are_the_ground() -> None:
    """Values import nothing of ours, errors only values."""
    graph = read_graph()
    assert not graph["values"]
    assert graph["errors"] <= {"values"}


def test_inspection_needs_neither_mlx_nor_numpy() -> None:
    """Planning a load is cheap: it imports no MLX, no NumPy, no safetensors."""
    code = (
        "import sys; before = set(sys.modules)  # a package's .pth file may import modules\n"
        "import fastwhisper.checkpoint.inspection, fastwhisper.sources.table\n"
        "heavy = {'mlx', 'mlx.core', 'numpy', 'safetensors', 'zipfile'}\n"
        "sys.exit(bool(heavy & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == 0


if __name__ == "__main__":
    print_graph()
