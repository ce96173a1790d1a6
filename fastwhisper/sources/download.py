"""Download a model from the Hub into the Hugging Face cache.

It uses the folders, names and locks of the Hugging Face client, so that other programs share the
copy. This module imports the client, which takes half a second.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from huggingface_hub import HfApi, constants, errors, hf_hub_url

from fastwhisper.checkpoint.files import read_json
from fastwhisper.checkpoint.inspection import CONFIG, PREFERENCE
from fastwhisper.errors import HubUnavailableError, InvalidModelFormatError, ModelNotFoundError
from fastwhisper.sources.atomic import open_new
from fastwhisper.sources.lock import open_lock
from fastwhisper.sources.transport import USER_AGENT, append_rest, retry, translate_errors

if TYPE_CHECKING:
    from collections.abc import Callable
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
    """Download the config and weights of a repository. Files that are there already are kept.

    Args:
        repo: The repository, as `org/name`.
        revision: Branch, tag or commit.
        folder: The repository's folder in the Hugging Face cache.
        on_bytes: Called with the bytes that are done, and the bytes of all files once known.
        check: Called between chunks. It may raise to stop; what was downloaded is kept.

    Returns:
        The snapshot's directory, or None if the repository does not exist.

    Raises:
        ModelNotFoundError: The revision does not exist, or holds no model.
        HubUnavailableError: The Hub can't be reached, or refuses.
        InvalidModelFormatError: The index of a sharded model is broken.
        OSError: The disk is full, or the cache can't be written.
    """
    with translate_errors(repo, revision):
        on_bytes(0, None)
        try:
            commit, files = _list_files(repo, revision, check)
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
        # Last, so that a revision's name always leads to a complete snapshot.
        if revision != commit:
            _write_ref(folder / "refs" / revision, commit)
        return snapshot


@dataclass(frozen=True, slots=True)
class _File:
    """A file as the Hub lists it. `sha256` is None for small files, which are in git."""

    name: str
    size_bytes: int
    etag: str
    sha256: str | None


def _list_files(
    repo: str, revision: str, check: Callable[[], None]
) -> tuple[str, dict[str, _File]]:
    """List the files of a revision, with its commit, in one request to the Hub."""
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

    info = retry(ask, check)
    if not isinstance(info.sha, str) or not _SHA1.fullmatch(info.sha):
        raise HubUnavailableError(repo, no_hub)
    listed = [(file.rfilename, file) for file in info.siblings or ()]
    if any(file.size is None for _name, file in listed):  # A mirror may leave the sizes out.
        tree = retry(lambda: list(api.list_repo_tree(repo, revision=info.sha)), check)
        listed = [(file.path, file) for file in tree if hasattr(file, "blob_id")]
    files: dict[str, _File] = {}
    for name, file in listed:
        sha256 = None if file.lfs is None else file.lfs.sha256
        etag = sha256 or file.blob_id or ""
        # It becomes a file's name on this machine.
        if not _ETAG.fullmatch(etag) or not isinstance(file.size, int):
            raise HubUnavailableError(repo, no_hub)
        files[name] = _File(name, file.size, etag, sha256)
    return info.sha, files


@dataclass(slots=True, eq=False, kw_only=True)
class _Download:
    """The download of one repository's files."""

    repo: str
    folder: Path
    snapshot: Path
    files: dict[str, _File]
    on_bytes: Callable[[int, int | None], object]
    check: Callable[[], None]
    done_bytes: int = 0
    total_bytes: int | None = None

    def run(self) -> None:
        """Download the config, and the weights in one format."""
        *small, weights = self._choose()
        for file in small:
            self._fetch(file)
        shards = [weights]
        if weights.name.endswith(".json"):
            self._fetch(weights)
            shards = self._list_shards(self.snapshot / weights.name)
        missing = [file for file in shards if not self._is_same(self.snapshot / file.name, file)]
        self.total_bytes = self.done_bytes + sum(file.size_bytes for file in missing)
        self._check_room(missing)
        self._report(self.done_bytes)
        for file in missing:
            self._fetch(file)

    def _choose(self) -> list[_File]:
        """Choose the files of one format: first the configs, last the weights or their index."""
        weights = next((name for name in PREFERENCE if name in self.files), None)
        if weights is None or CONFIG not in self.files:
            names = sorted(self.files)
            more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
            raise ModelNotFoundError(
                self.repo,
                f"the repository has {', '.join(names[:_SHOWN_NAMES]) or 'no file'}{more}, "
                f"but a model has {CONFIG} and one of {', '.join(PREFERENCE)}",
            )
        chosen = [CONFIG, weights]
        if _GENERATION_CONFIG in self.files and weights.startswith("model."):
            chosen.insert(1, _GENERATION_CONFIG)
        return [self.files[name] for name in chosen]

    def _list_shards(self, index: Path) -> list[_File]:
        """List the shards that an index names."""
        mapped = read_json(index).get("weight_map")
        names = {str(name) for name in mapped.values()} if isinstance(mapped, dict) else set()
        absent = sorted(names - self.files.keys())
        if absent or not names or any("/" in name for name in names):
            raise InvalidModelFormatError(
                index, "weight_map", f"names {absent or 'no'} files that {self.repo} does not have"
            )
        return [self.files[name] for name in sorted(names)]

    def _fetch(self, file: _File) -> None:
        """Download one file into the snapshot, once for all tasks and processes."""
        pointer = self.snapshot / file.name
        blob = self.folder / "blobs" / file.etag
        begin = self.done_bytes
        lock = self.folder.parent / ".locks" / self.folder.name / f"{file.etag}.lock"
        with open_lock(lock, self.check):
            if not self._is_same(pointer, file):
                blob.parent.mkdir(parents=True, exist_ok=True)
                if not self._is_same(blob, file):
                    partial = blob.with_name(f"{blob.name}.incomplete")
                    self._transfer(file, partial)
                    partial.replace(blob)
                _link(blob, pointer)
        self._report(begin + file.size_bytes)

    def _is_same(self, path: Path, file: _File) -> bool:
        """Return whether a file on this machine is the listed one, by its size and its hash."""
        try:
            if path.stat().st_size != file.size_bytes:
                return False
            if file.sha256 is not None:
                return self._hash(path, hashlib.sha256()) == file.sha256
            if _SHA1.fullmatch(file.etag):
                # Git's name of a blob, which is not for security.
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
        """Raise OSError before the download if the files do not fit on the disk."""
        needed = sum(file.size_bytes for file in files)
        if needed and needed > shutil.disk_usage(self.folder).free + self._count_kept(files):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))

    def _count_kept(self, files: list[_File]) -> int:
        """Count the bytes of these files that earlier runs or other processes have downloaded."""
        blobs = [self.folder / "blobs" / file.etag for file in files]
        candidates = [
            path for blob in blobs for path in (blob, blob.with_name(f"{blob.name}.incomplete"))
        ]
        kept = 0
        for path in candidates:
            with contextlib.suppress(FileNotFoundError):  # Another task may rename it meanwhile.
                kept += path.stat().st_size
        return kept

    def _transfer(self, file: _File, partial: Path) -> None:
        """Download a file into a partial one, which may hold the beginning from an earlier run."""
        begin = self.done_bytes
        with partial.open("ab") as out:
            kept = out.tell()
            append_rest(
                out,
                hf_hub_url(self.repo, file.name, revision=self.snapshot.name),
                file.size_bytes,
                on_size=lambda size_bytes: self._report(begin + size_bytes),
                check=self.check,
            )
        is_whole = partial.stat().st_size == file.size_bytes
        if is_whole and file.sha256 in {None, self._hash(partial, hashlib.sha256())}:
            return
        partial.unlink()
        if not kept:
            raise HubUnavailableError(
                self.repo, f"{file.name} does not have the checksum that the Hub lists; try again"
            )
        # The earlier run had left something else.
        self._transfer(file, partial)

    def _report(self, done_bytes: int) -> None:
        """Report progress, which never decreases."""
        self.done_bytes = max(self.done_bytes, done_bytes)
        self.on_bytes(self.done_bytes, self.total_bytes)


def _link(blob: Path, pointer: Path) -> None:
    """Put a file into a snapshot as the client does: a link to the blob, or the blob itself."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    if not constants.HF_HUB_DISABLE_SYMLINKS:
        with contextlib.suppress(OSError), open_new(pointer) as new:
            new.symlink_to(os.path.relpath(blob, pointer.parent))
            return
    blob.replace(pointer)


def _write_ref(ref: Path, commit: str) -> None:
    ref.parent.mkdir(parents=True, exist_ok=True)
    with open_new(ref) as new:
        new.write_text(commit, encoding="ascii")
