"""atomic.py: what is made beside its place is complete or not there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from fastwhisper.sources.atomic import open_new, open_new_directory

if TYPE_CHECKING:
    from pathlib import Path


class Gone(BaseException):
    """What a cancelled block raises."""


def list_names(directory: Path) -> list[str]:
    """List the names in a directory."""
    return sorted(path.name for path in directory.iterdir())


def test_file_takes_its_place_when_the_block_ends(tmp_path: Path) -> None:
    """Until then what was there is unchanged."""
    place = tmp_path / "file"
    place.write_text("old")
    with open_new(place) as new:
        new.write_text("new")
        assert place.read_text() == "old"
    assert place.read_text() == "new"
    assert list_names(tmp_path) == ["file"]


def test_link_takes_its_place(tmp_path: Path) -> None:
    """A link is put there as a link, and what it leads to is not touched."""
    (tmp_path / "blob").write_text("data")
    (tmp_path / "file").write_text("old")
    with open_new(tmp_path / "file") as new:
        new.symlink_to("blob")
    assert (tmp_path / "file").is_symlink()
    assert (tmp_path / "file").read_text() == "data"


@pytest.mark.parametrize("error", [ValueError, Gone])
def test_file_of_a_block_that_raises_is_removed(tmp_path: Path, error: type[BaseException]) -> None:
    """What was there stays, and nothing else does."""
    place = tmp_path / "file"
    place.write_text("old")

    def block() -> None:
        with open_new(place) as new:
            new.write_text("half")
            raise error

    with pytest.raises(error):
        block()
    assert place.read_text() == "old"
    assert list_names(tmp_path) == ["file"]


def test_link_of_a_block_that_raises_is_removed_alone(tmp_path: Path) -> None:
    """The directory that the link leads to keeps its files."""
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "file").touch()

    def block() -> None:
        with open_new(tmp_path / "link") as new:
            new.symlink_to(tmp_path / "target")
            raise Gone

    with pytest.raises(Gone):
        block()
    assert list_names(tmp_path) == ["target"]
    assert list_names(tmp_path / "target") == ["file"]


def test_block_that_makes_nothing_is_an_error(tmp_path: Path) -> None:
    """There is nothing to rename."""
    with pytest.raises(FileNotFoundError), open_new(tmp_path / "file"):
        pass


def test_two_blocks_do_not_share_a_path(tmp_path: Path) -> None:
    """Each has a path of its own; who ends last has the place."""
    with open_new(tmp_path / "file") as first, open_new(tmp_path / "file") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "file").read_text() == "first"
    assert list_names(tmp_path) == ["file"]


def test_directory_takes_its_place_when_the_block_ends(tmp_path: Path) -> None:
    """The directory has all its files when it has its name, and not before."""
    place = tmp_path / "model"
    with open_new_directory(place) as new:
        (new / "a").touch()
        assert not place.exists()
        (new / "b").touch()
    assert list_names(place) == ["a", "b"]
    assert list_names(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [ValueError, Gone])
def test_directory_of_a_block_that_raises_is_removed(
    tmp_path: Path, error: type[BaseException]
) -> None:
    """Nothing is left of it."""

    def block() -> None:
        with open_new_directory(tmp_path / "model") as new:
            (new / "a").touch()
            raise error

    with pytest.raises(error):
        block()
    assert list_names(tmp_path) == []


def test_directory_is_not_put_over_another(tmp_path: Path) -> None:
    """What is there stays, and nothing is left of the new one."""
    place = tmp_path / "model"
    place.mkdir()
    (place / "old").touch()
    with pytest.raises(OSError, match="model"), open_new_directory(place) as new:
        (new / "a").touch()
    assert list_names(place) == ["old"]
    assert list_names(tmp_path) == ["model"]


def test_directory_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file and the directory are synced first, then renamed, then the parent is synced."""
    place = tmp_path / "model"
    synced: list[tuple[int, bool]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, place.exists()))
        real(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    with open_new_directory(place, unfinished=tmp_path / "unfinished") as new:
        assert new == tmp_path / "unfinished"
        (new / "a").touch()
        (new / "b").touch()
    before = [inode for inode, is_there in synced if not is_there]
    after = [inode for inode, is_there in synced if is_there]
    assert set(before[:2]) == {(place / name).stat().st_ino for name in ("a", "b")}
    assert before[2:] == [place.stat().st_ino]
    assert after == [tmp_path.stat().st_ino]


def test_disk_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that can't be synced is removed."""

    def fsync(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(OSError, match="No space"), open_new_directory(tmp_path / "model") as new:
        (new / "a").touch()
    assert list_names(tmp_path) == []
