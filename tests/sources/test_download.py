"""download.py: what is downloaded, once for all tasks and processes, and disks that fail."""

from __future__ import annotations

import errno
import json
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants

from fastwhisper.errors import HubUnavailableError, InvalidModelFormatError, ModelNotFoundError
from fastwhisper.sources import find
from tests.helpers.hub import (
    CONFIG,
    DEFAULT,
    FILES,
    REPO,
    SCRIPT,
    WEIGHTS,
    Gone,
    build_environment,
    ctranslate2,
    fetch,
    npz,
    safetensors,
)
from tests.helpers.hub_server import Fault
from tests.helpers.interpreter import WATCHDOG_S, run_python, start_python

if TYPE_CHECKING:
    from tests.helpers.hub_server import HubServer

pytestmark = pytest.mark.usefixtures("server")


# What is asked of the Hub


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


# Interruptions


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


def test_two_processes_download_once(server: HubServer, cache: Path) -> None:
    """Two processes share one transfer."""
    server.add(REPO, FILES)
    fault = server.fail(Fault("/cdn/", hold_after=1000))
    command = ("-c", SCRIPT)
    env = build_environment(server, cache)
    with start_python(*command, env=env) as first, start_python(*command, env=env) as second:
        fault.reached.wait(WATCHDOG_S)
        fault.release.set()
        paths = {process.communicate(timeout=WATCHDOG_S)[0] for process in (first, second)}
    assert len(paths) == 1
    assert len(server.paths("/cdn/")) == 1


def test_killed_download_goes_on_where_it_was(server: HubServer, cache: Path) -> None:
    """After kill -9 nothing passes for complete, and only what is missing is fetched."""
    server.add(REPO, FILES)
    fault = server.fail(Fault("/cdn/", hold_after=64_000))
    with start_python("-c", SCRIPT, env=build_environment(server, cache)) as process:
        fault.reached.wait(WATCHDOG_S)
        # The server has sent it; the process may still be writing it.
        while sum(file.stat().st_size for file in cache.rglob("*.incomplete")) < 10_000:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    fault.release.set()
    assert find.find_local(REPO, DEFAULT) is None
    server.requests.clear()
    assert (fetch().path / "model.safetensors").read_bytes() == WEIGHTS
    asked = [r.headers.get("Range", "") for r in server.requests if "/cdn/" in r.path]
    assert [int(text[6:-1]) >= 10_000 for text in asked] == [True]
    assert [p.rpartition("/")[2] for p in server.paths("/resolve/")] == ["model.safetensors"]


# Disks


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
    done = run_python("-c", limit + SCRIPT, env=build_environment(server, cache), status=1)
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
