"""converted.py: the size limit of the cache, its list, and how it is cleared."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from fastwhisper.checkpoint.inspection import inspect_checkpoint
from fastwhisper.sources import converted, verified
from tests.helpers.copies import store_copy
from tests.helpers.tiny_models import write_model

if TYPE_CHECKING:
    from pathlib import Path

    from fastwhisper.checkpoint.plan import Checkpoint

pytestmark = pytest.mark.usefixtures("root")


def write_models(tmp_path: Path, count: int) -> list[Checkpoint]:
    """Write models that differ."""
    return [
        inspect_checkpoint(write_model(tmp_path / f"m{seed}", layout="weights.npz", seed=seed))
        for seed in range(count)
    ]


def test_least_recently_used_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lookup counts as use; what was not used longest makes room."""
    first, second, third = write_models(tmp_path, 3)
    for used_s, model in enumerate((first, second)):
        path = store_copy(model)
        assert path is not None
        os.utime(path, (used_s, used_s))
    converted.lookup(first)
    two_bytes = sum(entry.size_bytes for entry in converted.entries())
    monkeypatch.setattr(converted, "LIMIT_BYTES", two_bytes)
    store_copy(third)
    kept = [converted.lookup(model) is not None for model in (first, second, third)]
    assert kept == [True, False, True]


def test_what_is_larger_than_the_cap_is_not_kept(
    original: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A model that could never fit is not tried."""
    monkeypatch.setattr(converted, "LIMIT_BYTES", 1000)
    assert store_copy(original) is None
    assert "too many" in caplog.text


def test_entries_say_where_they_come_from(tmp_path: Path) -> None:
    """Each entry has its original, its size and its last use, the latest first."""
    for used_s, model in enumerate(write_models(tmp_path, 2)):
        path = store_copy(model)
        assert path is not None
        os.utime(path, (used_s, used_s))
    listed = converted.entries()
    assert [entry.source for entry in listed] == [str(tmp_path / "m1"), str(tmp_path / "m0")]
    assert [entry.used_s for entry in listed] == [1, 0]
    assert all(entry.size_bytes > 100_000 for entry in listed)


def test_entry_with_a_broken_note_is_listed(original: Checkpoint) -> None:
    """An entry whose origin can't be read is still one, and can be cleared."""
    path = store_copy(original)
    assert path is not None
    (path / "source.json").write_text("{")
    assert [entry.source for entry in converted.entries()] == ["?"]


def test_clear_removes_entries_alone(original: Checkpoint, root: Path) -> None:
    """A directory that is used for other things as well keeps them."""
    store_copy(original)
    freed_bytes = sum(entry.size_bytes for entry in converted.entries())
    (root / "mine").mkdir()
    (root / ".mine.tmp").write_text("x")
    assert converted.clear() == freed_bytes
    assert converted.entries() == []
    assert {path.name for path in root.iterdir()} == {"mine", ".mine.tmp", ".lock"}


def test_clear_without_a_cache_frees_nothing() -> None:
    """Clearing what was never made is no error."""
    assert converted.clear() == 0


def test_clearing_forgets_what_was_confirmed(original: Checkpoint, root: Path) -> None:
    """Notes go with the copies; what the user put there stays."""
    store_copy(original)
    fingerprint = "0123456789abcdef" * 4
    verified.note_confirmed(fingerprint)
    assert verified.recall_confirmed(fingerprint)
    assert not verified.recall_confirmed(fingerprint[::-1])
    (root / "mine.confirmed").touch()
    converted.clear()
    assert not verified.recall_confirmed(fingerprint)
    assert (root / "mine.confirmed").exists()
