"""find.py: a model on this machine, complete or not; revisions, offline, precisions."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
import pytest
from huggingface_hub import constants

from fastwhisper.checkpoint.inspection import inspect_checkpoint
from fastwhisper.errors import (
    HubUnavailableError,
    InvalidModelFormatError,
    ModelNotFoundError,
    QuantizedModelNotAvailableError,
)
from fastwhisper.sources import find
from fastwhisper.values import LoadOptions, Quantization
from tests.helpers.hub import (
    CONFIG,
    DEFAULT,
    FILES,
    REPO,
    SCRIPT,
    WEIGHTS,
    build_environment,
    ctranslate2,
    fetch,
    npz,
    safetensors,
    table,
)
from tests.helpers.interpreter import run_python

if TYPE_CHECKING:
    from tests.helpers.hub_server import HubServer

pytestmark = pytest.mark.usefixtures("server")


# What is on this machine


def test_cached_open_makes_no_request(server: HubServer) -> None:
    """A complete snapshot is found without asking anybody."""
    server.add(REPO, FILES)
    fetched = fetch()
    server.requests.clear()
    assert find.find_local(REPO, DEFAULT) == fetched
    assert server.requests == []


def test_cached_open_imports_no_client_api(server: HubServer, cache: Path) -> None:
    """Finding a snapshot through HF_HOME imports neither the client's API nor its transport."""
    server.add(REPO, FILES)
    path = fetch().path
    script = SCRIPT + "import sys; print([n for n in sys.modules if 'hf_api' in n or 'httpx' in n])"
    done = run_python("-c", script, env=build_environment(server, cache))
    assert done.stdout.split("\n")[:2] == [str(path), "[]"]


def test_nothing_cached_finds_nothing(server: HubServer) -> None:
    """Without a snapshot `find` gives None, and asks nobody."""
    server.add(REPO, FILES)
    assert find.find_local(REPO, DEFAULT) is None
    assert server.requests == []


def test_snapshot_of_the_client_is_found(server: HubServer) -> None:
    """What `snapshot_download` has downloaded is used as it is."""
    commit = server.add(REPO, FILES)
    path = huggingface_hub.snapshot_download(REPO)
    assert find.find_local(REPO, DEFAULT) == find.Location(Path(path), REPO, commit, None)


def test_our_snapshot_is_the_clients(server: HubServer) -> None:
    """What we have downloaded, the client finds without the network."""
    server.add(REPO, FILES)
    path = fetch().path
    assert huggingface_hub.snapshot_download(REPO, local_files_only=True) == str(path)
    found = huggingface_hub.try_to_load_from_cache(REPO, "model.safetensors")
    assert Path(str(found)).read_bytes() == WEIGHTS


def test_directory_is_itself(tmp_path: Path) -> None:
    """A directory is where it is, of no repository and no revision."""
    assert find.find_local(tmp_path, DEFAULT) == find.Location(tmp_path, str(tmp_path), None, None)


def test_missing_directory_is_no_model(tmp_path: Path) -> None:
    """A path that is no directory is refused without asking the Hub."""
    with pytest.raises(ModelNotFoundError, match="no such directory"):
        find.find_local(tmp_path / "none", DEFAULT)


@pytest.mark.parametrize("model", ["tyny", "a/b/c", "", "nul\0", "./none", "model.bin"])
def test_form_of_a_name_is_checked(model: str) -> None:
    """A name that can be nothing is refused."""
    with pytest.raises(ModelNotFoundError, match="unknown model"):
        find.check_form(model, "float16")


def test_alias_is_found_as_its_model(server: HubServer) -> None:
    """An alias is fetched from the repository of its model, and found there again."""
    server.add(table("large-v3-turbo"), FILES)
    fetched = fetch("Turbo")
    assert fetched.source == table("large-v3-turbo")
    assert find.find_local("whisper-large-v3-turbo", DEFAULT) == fetched


# Revisions


def test_revision_is_fetched_and_then_found(server: HubServer) -> None:
    """A tag with a slash, and the commit it leads to, are found without the network."""
    commit = server.add(REPO, FILES, revisions=("main", "release/v1"))
    options = LoadOptions(revision="release/v1")
    fetched = fetch(REPO, options)
    server.requests.clear()
    assert find.find_local(REPO, options) == fetched
    assert find.find_local(REPO, LoadOptions(revision=commit)) == fetched
    assert find.find_local(REPO, DEFAULT) is None
    assert server.requests == []


def test_commit_is_fetched_without_a_ref(server: HubServer, cache: Path) -> None:
    """A model pinned to a commit is found by that commit, and `main` stays unknown."""
    commit = server.add(REPO, FILES)
    assert fetch(REPO, LoadOptions(revision=commit)).revision == commit
    assert find.find_local(REPO, LoadOptions(revision=commit)) is not None
    assert not (cache / "models--org--whisper-x" / "refs").exists()


def test_unknown_revision_is_no_fallback(server: HubServer) -> None:
    """A revision that a repository lacks is an error, not a reason for another repository."""
    server.add(table("tiny-mlx-4bit"), FILES)
    server.add(table("tiny-mlx"), FILES, revisions=("main", "v9"))
    with pytest.raises(ModelNotFoundError, match="'v9'"):
        fetch("tiny", LoadOptions(quant="int4", revision="v9"))


@pytest.mark.parametrize("revision", ["../../x", "/etc", "a/../b", "nul\0"])
def test_revision_can_not_leave_the_cache(revision: str) -> None:
    """A revision that is a path to elsewhere is refused."""
    with pytest.raises(ModelNotFoundError, match="not a branch"):
        find.find_local(REPO, LoadOptions(revision=revision))


# Complete and incomplete snapshots


@pytest.mark.parametrize(
    ("name", "data"),
    [("model.safetensors", WEIGHTS), ("weights.npz", npz()), ("model.bin", ctranslate2())],
)
@pytest.mark.parametrize("kept", [0, 10, -5, -2])
def test_truncated_weights_are_fetched_again(
    server: HubServer, name: str, data: bytes, kept: int
) -> None:
    """Weights that end too early don't pass for complete; they alone are fetched again."""
    server.add(REPO, {"config.json": CONFIG, name: data})
    path = fetch().path
    os.truncate(path / name, len(data[:kept]))
    server.requests.clear()
    assert find.find_local(REPO, DEFAULT) is None
    fetch()
    assert (path / name).read_bytes() == data
    assert [p.rpartition("/")[2] for p in server.paths("/resolve/")] == [name]


@pytest.mark.parametrize(
    ("name", "data"),
    [("model.safetensors", safetensors(500)), ("weights.npz", npz()), ("model.bin", ctranslate2())],
)
def test_cut_at_any_byte_is_seen(tmp_path: Path, name: str, data: bytes) -> None:
    """Weights of any length but their own are not complete."""
    (tmp_path / "config.json").write_bytes(CONFIG)
    (tmp_path / name).write_bytes(data)
    assert find.find_flaw(tmp_path) is None
    for kept in reversed(range(len(data))):
        os.truncate(tmp_path / name, kept)
        assert find.find_flaw(tmp_path) is not None, kept


def overlapping() -> bytes:
    """Build a safetensors file whose two tensors share their bytes."""
    entry = {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}
    header = json.dumps({"a": entry, "b": entry, "c": {"data_offsets": None}, "d": 1}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("model.safetensors", overlapping()),
        ("weights.npz", npz()),
        ("model.bin", ctranslate2()),
        ("model.bin", struct.pack("<I", 3) + bytes(20)),
        ("model.bin", b"PK\3\4 a pickle of PyTorch"),
    ],
)
def test_complete_files_that_are_no_whisper_are_found(
    server: HubServer, name: str, data: bytes
) -> None:
    """What is there to its end is not asked for again; inspection refuses it."""
    server.add(REPO, {"config.json": CONFIG, name: data})
    path = fetch().path
    server.requests.clear()
    assert find.find_flaw(path) is None
    found = find.find_local(REPO, DEFAULT)
    assert found is not None
    assert server.requests == []
    with pytest.raises(InvalidModelFormatError):
        inspect_checkpoint(found.path)


def test_missing_shard_is_fetched_alone(server: HubServer) -> None:
    """Of a sharded model only the shard that is missing is fetched."""
    shards = {f"model-{i}.safetensors": safetensors(1000, i) for i in (1, 2)}
    index = json.dumps({"weight_map": {name: name for name in shards}}).encode()
    server.add(REPO, {"config.json": CONFIG, "model.safetensors.index.json": index, **shards})
    path = fetch().path
    (path / "model-2.safetensors").resolve().unlink()
    server.requests.clear()
    assert find.find_local(REPO, DEFAULT) is None
    fetch()
    assert [p.rpartition("/")[2] for p in server.paths("/resolve/")] == ["model-2.safetensors"]


@pytest.mark.parametrize("damage", [b"", b'{"n_mels"'])
def test_truncated_config_is_fetched_alone(server: HubServer, damage: bytes) -> None:
    """A config that was cut off is fetched again, and no weights with it."""
    server.add(REPO, FILES)
    path = fetch().path
    (path / "config.json").resolve().write_bytes(damage)
    server.requests.clear()
    assert find.find_local(REPO, DEFAULT) is None
    fetch()
    assert [p.rpartition("/")[2] for p in server.paths("/resolve/")] == ["config.json"]


def test_weights_of_the_right_size_that_are_not_them_are_fetched_again(server: HubServer) -> None:
    """A header of zeros, as a crash leaves it, is seen, and then the checksum decides."""
    server.add(REPO, FILES)
    path = fetch().path
    (path / "model.safetensors").resolve().write_bytes(bytes(len(WEIGHTS)))
    assert find.find_local(REPO, DEFAULT) is None
    fetch()
    assert (path / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("fault", [b'{"a":1,"a":2', b'[{"a":1,"b":2', b"\xff\xfe", b'{"a" = 1'])
def test_a_complete_copy_that_is_wrong_is_not_asked_for_again(
    server: HubServer, fault: bytes
) -> None:
    """Another download would give the same file, so the inspection refuses it, offline too."""
    server.add(REPO, FILES)
    path = fetch().path
    weights = bytearray(WEIGHTS)
    weights[8 : 8 + len(fault)] = fault
    (path / "model.safetensors").resolve().write_bytes(weights)
    server.requests.clear()
    assert find.locate(REPO, LoadOptions(offline=True)).path == path
    assert server.requests == []


def test_an_index_with_a_list_for_a_shard_is_not_a_type_error(tmp_path: Path) -> None:
    """The finder takes it for complete; the inspection refuses it."""
    (tmp_path / "config.json").write_bytes(FILES["config.json"])
    index = '{"weight_map": {"a": ["x.safetensors"]}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert find.find_flaw(tmp_path) is None


def test_fifo_for_weights_is_not_opened(server: HubServer) -> None:
    """A file that is none does not hang `find`."""
    server.add(REPO, FILES)
    path = fetch().path
    (path / "model.safetensors").unlink()
    os.mkfifo(path / "model.safetensors")
    assert find.find_local(REPO, DEFAULT) is None


# Offline


def test_offline_never_asks(server: HubServer) -> None:
    """`offline=True` says what to run, and makes no request."""
    server.add(table("tiny-mlx-4bit"), FILES)
    with pytest.raises(HubUnavailableError, match="`fastwhisper pull tiny --quant int4`"):
        fetch("tiny", LoadOptions(quant="int4", offline=True))
    assert server.requests == []


def test_hf_hub_offline_never_asks(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE is obeyed, and named."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnavailableError, match=r"HF_HUB_OFFLINE.*`fastwhisper pull org/"):
        fetch()
    assert server.requests == []


def test_offline_says_what_is_incomplete(server: HubServer) -> None:
    """A truncated copy is no missing copy."""
    server.add(REPO, FILES)
    os.truncate(fetch().path / "model.safetensors", 1000)
    with pytest.raises(HubUnavailableError, match="is cut off"):
        fetch(REPO, LoadOptions(offline=True))


def test_offline_opens_what_is_cached(server: HubServer) -> None:
    """What is cached opens offline."""
    server.add(REPO, FILES)
    fetched = fetch()
    assert find.locate(REPO, LoadOptions(offline=True)) == fetched


# Precisions and fallback


def test_table_repository_comes_first(server: HubServer) -> None:
    """The table's own repository is taken, with its commit."""
    commit = server.add(table("tiny-mlx-4bit"), FILES)
    server.add(table("tiny-4bit"), FILES)
    found = fetch("tiny", LoadOptions(quant="int4"))
    assert (found.source, found.revision) == (table("tiny-mlx-4bit"), commit)
    assert (found.requested, found.fallback_reason) == (Quantization.INT4, None)


def test_sibling_is_no_fallback(server: HubServer) -> None:
    """The same precision under its other name is taken without a reason to give."""
    server.add(table("tiny-4bit"), FILES)
    found = fetch("tiny", LoadOptions(quant="int4"))
    assert (found.source, found.fallback_reason) == (table("tiny-4bit"), None)


@pytest.mark.parametrize("name", ["tiny-mlx", "tiny-fp16"])
def test_missing_precision_falls_back_to_float16(server: HubServer, name: str) -> None:
    """When no repository has the precision, float16 is taken and the reason is told."""
    server.add(table(name), FILES)
    found = fetch("tiny", LoadOptions(quant="int4"))
    assert (found.source, found.requested) == (table(name), Quantization.INT4)
    assert "tiny-mlx-4bit or mlx-community/whisper-tiny-4bit" in str(found.fallback_reason)


def test_cached_float16_serves_the_fallback(server: HubServer) -> None:
    """A fallback takes the float16 copy that is there instead of downloading it again."""
    server.add(table("tiny-mlx"), FILES)
    fetch("tiny")
    server.requests.clear()
    assert fetch("tiny", LoadOptions(quant="int4")).fallback_reason is not None
    assert server.paths("/resolve/") == []


def test_no_fallback_when_it_is_forbidden(server: HubServer) -> None:
    """`fallback=None` raises instead of taking float16."""
    server.add(table("tiny-mlx"), FILES)
    with pytest.raises(QuantizedModelNotAvailableError, match="tiny-mlx-4bit"):
        fetch("tiny", LoadOptions(quant="int4", fallback=None))


def test_cached_float16_is_no_answer_to_int4(server: HubServer) -> None:
    """`find` never falls back: that the Hub lacks a precision only the Hub can say."""
    server.add(table("tiny-mlx"), FILES)
    fetch("tiny")
    assert find.find_local("tiny", LoadOptions(quant="int4")) is None


def test_repository_that_does_not_exist_is_no_model() -> None:
    """A repository that was named itself has nothing to fall back to."""
    with pytest.raises(ModelNotFoundError, match="no such repository"):
        fetch("org/none", LoadOptions(quant="int4"))
