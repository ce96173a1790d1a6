"""The memory limit of a container: where it is written, and models that exceed it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import fastwhisper
from fastwhisper import NotEnoughMemoryError, inspect_checkpoint
from fastwhisper.engine import memory
from fastwhisper.loading.compute import find_device
from tests.helpers.tiny_models import write_babbler

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Machine = Callable[..., None]

ON_CPU = pytest.mark.skipif(find_device() != "cpu", reason="a GPU has memory of its own")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a function that lays out the files of a system with control groups."""
    root = tmp_path / "cgroup"
    monkeypatch.setattr(memory, "CONTROL_GROUPS", root)
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "self")

    def lay_out(membership: str, **limits: str) -> None:
        (tmp_path / "self").write_text(membership)
        for path, limit in limits.items():
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{limit}\n")

    return lay_out


@pytest.mark.parametrize(
    ("membership", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": "1000"}, 1000),
        ("0::/\n", {"memory.max": "max"}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/memory.max": "500", "a/b/memory.max": "700"}, 500),
        ("0::/a/b\n", {"memory.max": "max", "a/b/memory.max": "700"}, 700),
        ("0::/../host/x\n", {"memory.max": "900"}, 900),
        ("4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "600"}, 600),
        ("4:cpu,memory:/a\n", {"memory/memory.limit_in_bytes": "600"}, 600),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("", {}, None),
        ("0::/\n", {"memory.max": "not a number"}, None),
    ],
)
def test_the_smallest_limit_counts(
    machine: Machine, membership: str, limits: dict[str, str], expected: int | None
) -> None:
    """Of the process's own group and all above it, in both versions of control groups."""
    machine(membership, **limits)
    assert memory.find_limit_bytes() == expected


def test_a_system_without_control_groups_has_no_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a Mac."""
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "missing")
    monkeypatch.setattr(memory, "STATISTICS", tmp_path / "missing")
    assert memory.find_limit_bytes() is None
    assert memory.find_resident_bytes() == 0


def test_the_memory_of_this_process_is_found() -> None:
    """An interpreter with MLX takes more than 20 MB, and a test less than 100 GB."""
    assert 20e6 < memory.find_resident_bytes() < 100e9


@ON_CPU
@pytest.mark.anyio
@pytest.mark.parametrize("background", [False, True])
async def test_a_model_that_exceeds_the_limit_is_not_read(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, background: bool
) -> None:
    """A typed error instead of a process that is killed; one byte more, and it opens."""
    model = write_babbler(tmp_path / "model", multilingual=False)
    checkpoint = inspect_checkpoint(model)
    needed_bytes = checkpoint.count_bytes("float32") + 1000
    monkeypatch.setattr(memory, "find_resident_bytes", lambda: 1000)
    machine("0::/\n", **{"memory.max": str(needed_bytes - 1)})
    with pytest.raises((NotEnoughMemoryError, fastwhisper.LoadingFailedError)) as caught:
        async with fastwhisper.open(model, background=background) as session:
            await session.wait_until_ready()
    error = caught.value.__cause__ if background else caught.value
    assert isinstance(error, NotEnoughMemoryError)
    assert (error.needed_bytes, error.limit_bytes) == (needed_bytes, needed_bytes - 1)
    machine("0::/\n", **{"memory.max": str(needed_bytes)})
    async with fastwhisper.open(model, background=background) as session:
        await session.wait_until_ready()


def test_weights_are_counted_as_they_are_in_memory(tmp_path: Path) -> None:
    """A checkpoint of float16 takes twice its bytes in float32."""
    checkpoint = inspect_checkpoint(
        write_babbler(tmp_path / "model", multilingual=False, dtype="float16")
    )
    assert checkpoint.count_bytes(None) == checkpoint.total_bytes
    assert checkpoint.count_bytes("float16") == checkpoint.total_bytes
    floats = sum(tensor.size_bytes for tensor in checkpoint.tensors if tensor.dtype == "float16")
    assert floats
    assert checkpoint.count_bytes("float32") == checkpoint.total_bytes + floats


@ON_CPU
def test_load_model_is_refused_too(machine: Machine, tmp_path: Path) -> None:
    """mlx_whisper's network is as large."""
    pytest.importorskip("mlx_whisper")
    model = write_babbler(tmp_path / "model", multilingual=False)
    machine("0::/\n", **{"memory.max": "1000"})
    with pytest.raises(NotEnoughMemoryError):
        fastwhisper.load_model(str(model))
