"""Transcribe on a real Ray cluster of two actors: a script for `nox -s fleet`.

200 short recordings, two of them broken; then again, while an actor is killed; then the example of
docs/examples, stopped and begun again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray

from fastwhisper.fleet import Transcriber
from fastwhisper.transcribing.samples import load_audio
from tests.helpers.audio import SAMPLE, SENTENCE, spell, wav_bytes

EXAMPLE = Path(__file__).parents[2] / "docs/examples/transcribe_folder.py"
COUNT = 200
BROKEN = (17, 120)
FIRST_WORDS = spell(SENTENCE)[:2]


class Logged(Transcriber):
    """A transcriber that writes a file when its model is opened, and may kill its process."""

    def __init__(self, model: str, log: str, *, is_killed: bool = False, **options: Any) -> None:
        Path(log, f"{os.getpid()}-{time.monotonic_ns()}").touch()
        self._log, self._is_killed = log, is_killed
        super().__init__(model, **options)

    def __call__(self, batch: Any) -> dict[str, list[Any]]:
        """Transcribe a batch; the first actor that comes here is killed, once."""
        found = super().__call__(batch)
        if self._is_killed:
            try:
                os.mkdir(f"{self._log}/killed")  # noqa: PTH102  one process alone succeeds
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return found


def main() -> None:
    """Run all three, and say how long each took."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        recordings = write_recordings(Path(folder, "recordings"))
        for is_killed in (False, True):
            begin_s = time.monotonic()
            log = Path(folder, f"log-{is_killed}")
            log.mkdir()
            check_rows(transcribe(recordings, log, is_killed=is_killed))
            opened = sum(1 for file in log.iterdir() if file.name != "killed")
            assert opened == 2 + is_killed, f"{opened} models were opened"
            print(f"killed {is_killed}: {time.monotonic() - begin_s:.0f} s, {opened} opened")
        ray.shutdown()
        begin_s = time.monotonic()
        check_example(Path(folder, "recordings"), Path(folder, "texts"))
        print(f"example: {time.monotonic() - begin_s:.0f} s")


def write_recordings(folder: Path) -> list[str]:
    """Write recordings of "Good morning.", and two files that are none."""
    folder.mkdir()
    spoken = wav_bytes(load_audio(SAMPLE)[: 2 * 16_000])
    paths = [folder / f"{n:03}.wav" for n in range(COUNT)]
    for n, path in enumerate(paths):
        path.write_bytes(b"RIFF nothing" if n in BROKEN else spoken)
    return [str(path) for path in paths]


def transcribe(recordings: list[str], log: Path, *, is_killed: bool) -> list[dict[str, Any]]:
    """Return a row for each recording, from two actors."""
    items = [{"path": path, "n": n} for n, path in enumerate(recordings)]
    done = ray.data.from_items(items, override_num_blocks=10).map_batches(
        Logged,
        fn_constructor_kwargs={
            "model": "tiny.en", "log": str(log), "is_killed": is_killed, "quant": "float16",
        },
        batch_size=20,
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=1,
    )  # fmt: skip
    return list(done.iter_rows())


def check_rows(rows: list[dict[str, Any]]) -> None:
    """Check that each recording has its row, once."""
    assert sorted(row["n"] for row in rows) == list(range(COUNT))
    for row in rows:
        is_broken = row["n"] in BROKEN
        assert bool(row["error"]) == is_broken, row
        assert spell(row["text"])[:2] == ([] if is_broken else FIRST_WORDS), row


def check_example(recordings: Path, texts: Path) -> None:
    """Stop the example in the middle, and begin it again: no recording is lost or twice."""
    command = [
        sys.executable, str(EXAMPLE), str(recordings), str(texts), "--quant", "float16",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "of 200 done" in line:
                process.send_signal(signal.SIGINT)
                break
        process.communicate()
    some = read_paths(texts)
    assert 0 < len(some) < COUNT, len(some)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert sorted(read_paths(texts)) == sorted(map(str, recordings.resolve().iterdir()))


def read_paths(texts: Path) -> list[str]:
    """Return the recordings that are in a folder of texts."""
    return [
        path
        for file in texts.glob("*.parquet")
        for path in pq.read_table(file, columns=["path"])["path"].to_pylist()
    ]


if __name__ == "__main__":
    main()
