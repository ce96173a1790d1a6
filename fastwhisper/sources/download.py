"""Download a model from the Hub into the Hugging Face cache.

The client's folders, names and locks are used, so that its users and ours share one copy.
Importing this imports the client.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from huggingface_hub import HfApi, constants, errors, hf_hub_url

from fastwhisper.checkpoint.files import read_json
from fastwhisper.checkpoint.inspection import CONFIG, PREFERENCE
from fastwhisper.errors import HubUnavailableError, InvalidModelFormatError, ModelNotFoundError
from fastwhisper.sources.lock import locked
from fastwhisper.sources.transport import USER_AGENT, fill, retrying, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["download"]

_READ_BYTES: Final = 1 << 20
_ETAG: Final = re.compile(r"[0-9A-Za-z][\w.-]{0,127}", re.ASCII)
_SHA1: Final = re.compile(r"[0-9a-f]{40}")
_GENERATION_CONFIG: Final = "generation_config.json"
_SHOWN_NAMES: Final = 8

_logger = logging.getLogger("fastwhisper")


def download(
    repo: str,
    *,
    revision: str,
    folder: Path,
    on_bytes: Callable[[int, int | None], object],
    check: Callable[[], None],
) -> Path | None:
    """Download the config and weights of a repository, but for what is there already.

    Args:
        repo: The repository, as `org/name`.
        revision: Branch, tag or commit.
        folder: The repository's folder in the Hugging Face cache.
        on_bytes: Called with the bytes that are done, and those of all files once known.
        check: Called between chunks; may raise to stop. What has come so far is kept.

    Returns:
        The snapshot's directory, or None if the Hub says that there is no such repository.

    Raises:
        ModelNotFoundError: There is no such revision, or no model in it.
        HubUnavailableError: The Hub can't be reached, or refuses.
        InvalidModelFormatError: The index of a sharded model is broken.
        OSError: The disk is full, or the cache can't be written.
    """
    with translated(repo, revision):
        on_bytes(0, None)
        try:
            commit, files = _list(repo, revision, check)
        except errors.GatedRepoError:
            raise
        except errors.RepositoryNotFoundError as error:
            _logger.info("the Hub has no %s: %s", repo, error)
            return None
        snapshot = folder / "snapshots" / commit
        _Download(
            repo=repo,
            folder=folder,
            snapshot=snapshot,
            files=files,
            on_bytes=on_bytes,
            check=check,
        ).run()
        # Last, so that a name always leads to something complete.
        if revision != commit:
            _write_ref(folder / "refs" / revision, commit)
        return snapshot


@dataclass(frozen=True, slots=True)
class _File:
    """A file as the Hub lists it; `sha256` is None for the small ones that git holds."""

    name: str
    size_bytes: int
    etag: str
    sha256: str | None


def _list(repo: str, revision: str, check: Callable[[], None]) -> tuple[str, dict[str, _File]]:
    """Ask for the commit of a revision and its files, in one request."""
    api = HfApi(library_name=USER_AGENT)
    no_hub = f"{constants.ENDPOINT} does not answer as a Hub does: check HF_ENDPOINT"

    def ask() -> Any:
        timeout_s = constants.HF_HUB_ETAG_TIMEOUT
        try:
            return api.model_info(repo, revision=revision, timeout=timeout_s, files_metadata=True)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, errors.HFValidationError):
                raise
            raise HubUnavailableError(repo, no_hub) from error

    info = retrying(ask, check)
    if not isinstance(info.sha, str) or not _SHA1.fullmatch(info.sha):
        raise HubUnavailableError(repo, no_hub)
    listed = [(file.rfilename, file) for file in info.siblings or ()]
    if any(file.size is None for _name, file in listed):  # a mirror may leave them out
        tree = retrying(lambda: list(api.list_repo_tree(repo, revision=info.sha)), check)
        listed = [(file.path, file) for file in tree if hasattr(file, "blob_id")]
    files: dict[str, _File] = {}
    for name, file in listed:
        sha256 = None if file.lfs is None else file.lfs.sha256
        etag = sha256 or file.blob_id or ""
        # It becomes the name of a file here.
        if not _ETAG.fullmatch(etag) or not isinstance(file.size, int):
            raise HubUnavailableError(repo, no_hub)
        files[name] = _File(name, file.size, etag, sha256)
    return info.sha, files


@dataclass(slots=True, eq=False, kw_only=True)
class _Download:
    """The files of one repository on their way into the cache."""

    repo: str
    folder: Path
    snapshot: Path
    files: dict[str, _File]
    on_bytes: Callable[[int, int | None], object]
    check: Callable[[], None]
    done_bytes: int = 0
    total_bytes: int | None = None

    def run(self) -> None:
        """Get one format of the weights, and the config."""
        *small, weights = self._choose()
        for file in small:
            self._get(file)
        shards = [weights]
        if weights.name.endswith(".json"):
            self._get(weights)
            shards = self._shards(self.snapshot / weights.name)
        missing = [file for file in shards if not self._is_here(self.snapshot / file.name, file)]
        self.total_bytes = self.done_bytes + sum(file.size_bytes for file in missing)
        self._check_room(missing)
        self._report(self.done_bytes)
        for file in missing:
            self._get(file)

    def _choose(self) -> list[_File]:
        """Choose one format: what is small of it, and last its weights or their index."""
        weights = next((name for name in PREFERENCE if name in self.files), None)
        if weights is None or CONFIG not in self.files:
            names = sorted(self.files)
            more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
            raise ModelNotFoundError(
                self.repo,
                f"found {', '.join(names[:_SHOWN_NAMES]) or 'no file'}{more}; a model has "
                f"{CONFIG} and one of {', '.join(PREFERENCE)}",
            )
        chosen = [CONFIG, weights]
        if _GENERATION_CONFIG in self.files and weights.startswith("model."):
            chosen.insert(1, _GENERATION_CONFIG)
        return [self.files[name] for name in chosen]

    def _shards(self, index: Path) -> list[_File]:
        mapped = read_json(index).get("weight_map")
        names = {str(name) for name in mapped.values()} if isinstance(mapped, dict) else set()
        absent = sorted(names - self.files.keys())
        if absent or not names or any("/" in name for name in names):
            raise InvalidModelFormatError(
                index, "weight_map", f"names {absent or 'no'} files that {self.repo} has not"
            )
        return [self.files[name] for name in sorted(names)]

    def _get(self, file: _File) -> None:
        """Bring one file into the snapshot, once for all tasks and processes."""
        pointer = self.snapshot / file.name
        blob = self.folder / "blobs" / file.etag
        begin = self.done_bytes
        lock = self.folder.parent / ".locks" / self.folder.name / f"{file.etag}.lock"
        with locked(lock, self.check):
            if not self._is_here(pointer, file):
                blob.parent.mkdir(parents=True, exist_ok=True)
                if not self._is_here(blob, file):
                    partial = blob.with_name(f"{blob.name}.incomplete")
                    self._transfer(file, partial)
                    partial.replace(blob)
                _link(blob, pointer)
        self._report(begin + file.size_bytes)

    def _is_here(self, path: Path, file: _File) -> bool:
        """Tell whether a file is the listed one, by its size and its hash."""
        try:
            if path.stat().st_size != file.size_bytes:
                return False
            if file.sha256 is not None:
                return self._hash(path, hashlib.sha256()) == file.sha256
            if _SHA1.fullmatch(file.etag):
                # As git names a blob; not for secrecy.
                header = b"blob %d\0" % file.size_bytes
                return self._hash(path, hashlib.sha1(header, usedforsecurity=False)) == file.etag
        except FileNotFoundError:
            return False
        return True

    def _hash(self, path: Path, digest: Any) -> str:
        with path.open("rb") as opened:
            while block := opened.read(_READ_BYTES):
                self.check()
                digest.update(block)
        return str(digest.hexdigest())

    def _check_room(self, files: list[_File]) -> None:
        """Refuse at once what can't fit, before a gigabyte of it has come."""
        needed = sum(file.size_bytes for file in files)
        if needed and needed > shutil.disk_usage(self.folder).free + self._kept(files):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))

    def _kept(self, files: list[_File]) -> int:
        """Count what earlier runs, or other processes, have of these files, in bytes."""
        blobs = [self.folder / "blobs" / file.etag for file in files]
        candidates = [
            path for blob in blobs for path in (blob, blob.with_name(f"{blob.name}.incomplete"))
        ]
        kept = 0
        for path in candidates:
            with contextlib.suppress(FileNotFoundError):  # another task may rename it meanwhile
                kept += path.stat().st_size
        return kept

    def _transfer(self, file: _File, partial: Path) -> None:
        """Download a file, going on from what an earlier run has left of it."""
        begin = self.done_bytes
        with partial.open("ab") as out:
            kept = out.tell()
            fill(
                out,
                hf_hub_url(self.repo, file.name, revision=self.snapshot.name),
                file.size_bytes,
                on_size=lambda size_bytes: self._report(begin + size_bytes),
                check=self.check,
            )
        whole = partial.stat().st_size == file.size_bytes
        if whole and file.sha256 in {None, self._hash(partial, hashlib.sha256())}:
            return
        partial.unlink()
        if not kept:
            raise HubUnavailableError(
                self.repo, f"{file.name} did not arrive as the Hub lists it; try again"
            )
        # What was left was not a part of it.
        self._transfer(file, partial)

    def _report(self, done_bytes: int) -> None:
        """Report progress, which never goes back."""
        self.done_bytes = max(self.done_bytes, done_bytes)
        self.on_bytes(self.done_bytes, self.total_bytes)


def _link(blob: Path, pointer: Path) -> None:
    """Make a snapshot's file as the client does: a link to the blob, or else the blob itself."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    if not constants.HF_HUB_DISABLE_SYMLINKS:
        with contextlib.suppress(OSError), _beside(pointer) as new:
            new.symlink_to(os.path.relpath(blob, pointer.parent))
            return
    blob.replace(pointer)


def _write_ref(ref: Path, commit: str) -> None:
    ref.parent.mkdir(parents=True, exist_ok=True)
    with _beside(ref) as new:
        new.write_text(commit, encoding="ascii")


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Give a name to make something at, which then takes the place of `path` at once."""
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield new
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
