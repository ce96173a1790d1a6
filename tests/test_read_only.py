"""Files that are mounted read-only, as a container's `-v models:/models:ro`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.audio import SAMPLE
from tests.helpers.interpreter import WATCHDOG_S
from tests.helpers.tiny_models import SPEAKING

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]

PROGRAM = """
import sys, anyio, fastwhisper

async def main():
    async with fastwhisper.open(sys.argv[1]) as session:
        for options in ({}, {"temperature": 0.5, "word_timestamps": True, "batch_size": 2}):
            text = await session.transcribe(sys.argv[2], sample_len=5, **options)
            print(text.duration_s > 1)

for backend in ("asyncio", "trio"):
    anyio.run(main, backend=backend)
print(fastwhisper.load_model(sys.argv[1]).dims.n_vocab)
"""

MOUNT = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && cd "$0" && exec "$@"'


def can_mount() -> bool:
    """Return whether this process may mount in a namespace of its own. Most containers may not."""
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "--mount", "sh", "-c", MOUNT, str(ROOT), "true"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


needs_mounts = pytest.mark.skipif(not can_mount(), reason="may not mount in a namespace of its own")


def run_read_only(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run an interpreter in a namespace where a folder is mounted read-only."""
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", MOUNT, folder, sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "FASTWHISPER_CACHE": str(folder / "cache"),
            "HF_HOME": str(folder / "hub"),
            "HF_HUB_OFFLINE": "1",
            "TMPDIR": str(folder),
        },
        timeout=WATCHDOG_S,
        check=False,
    )


@needs_mounts
@pytest.mark.trio
@pytest.mark.parametrize("layout", ["weights.safetensors", "weights.npz"])
def test_a_model_on_a_read_only_mount_opens(
    tiny_model_dir: Callable[..., Path], tmp_path: Path, layout: str
) -> None:
    """Neither the converted copy nor a note, a temporary file or a compiled kernel is needed."""
    model = tiny_model_dir(layout=layout, dimensions=SPEAKING)
    folder = tmp_path / "volume"
    shutil.copytree(model, folder / "model")
    shutil.copy(SAMPLE, folder / "talk.ogg")
    done = run_read_only(folder, "-c", PROGRAM, folder / "model", folder / "talk.ogg")
    assert done.stdout == 4 * "True\n" + f"{SPEAKING.n_vocab}\n", done.stderr
    assert done.returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == ["model", "talk.ogg"]


@needs_mounts
def test_the_command_writes_nothing_on_a_read_only_mount(tmp_path: Path) -> None:
    """What can't be written is one line, before anything is loaded; the cache may be looked at."""
    shutil.copy(SAMPLE, tmp_path / "talk.ogg")
    command = ("-m", "fastwhisper")
    done = run_read_only(
        tmp_path, *command, "transcribe", "talk.ogg", "--model", "tiny.en", "--output-dir", "out"
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("fastwhisper: can't write 'out/talk.txt'")
    done = run_read_only(tmp_path, *command, "cache", "--clear")
    assert (done.returncode, done.stderr) == (0, "")
