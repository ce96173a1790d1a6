"""Transcribe a folder of recordings into Parquet files, on one machine or on a Ray cluster.

    pip install 'fastwhisper[cpu]' 'ray[data]'
    python transcribe_folder.py RECORDINGS TEXTS --model large-v3-turbo

Each actor opens the model once. Run it again after it was stopped: what is in TEXTS already is left
out, also what has an error there. On a cluster all machines need the same paths. With GPUs, give
each actor one: --gpus 1.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from fastwhisper.fleet import Transcriber

BATCH = 32
"""Recordings that an actor gets at a time, and rows of a file."""

SUFFIXES = {".aac", ".flac", ".m4a", ".mkv", ".mp3", ".mp4", ".ogg", ".opus", ".wav", ".webm"}
SEGMENT = pa.struct([("start_s", pa.float64()), ("end_s", pa.float64()), ("text", pa.string())])
SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("text", pa.string()),
        ("language", pa.string()),
        ("duration_s", pa.float64()),
        ("segments", pa.list_(SEGMENT)),
        ("error", pa.string()),
    ]
)


class Writer:
    """Transcribes batches, and writes each one into a file of its own. Ray makes one an actor."""

    def __init__(self, texts: str, model: str, **options: Any) -> None:
        self._texts = Path(texts)
        self._transcriber = Transcriber(model, **options)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        """Return how many rows were written, and how many of them have an error."""
        table = pa.table(self._transcriber(batch), schema=SCHEMA)
        # The same recordings have the same name, also where Ray tries a batch again.
        name = hashlib.sha256("\n".join(table["path"].to_pylist()).encode()).hexdigest()[:32]
        unfinished = self._texts / f".{name}-{os.getpid()}"
        pq.write_table(table, unfinished)
        unfinished.rename(self._texts / f"{name}.parquet")  # whole, or not there
        failed = sum(1 for error in table["error"].to_pylist() if error)
        return {"rows": [len(table)], "failed": [failed]}


def find_recordings(folder: Path, texts: Path) -> list[str]:
    """Return the recordings of a folder that are not transcribed yet, in order."""
    done: set[str] = set()
    for file in texts.glob("*.parquet"):
        done.update(pq.read_table(file, columns=["path"])["path"].to_pylist())
    found = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    for path in found:
        if not is_text(path):
            print(f"left out, its name is not UTF-8: {path!a}")
    return [path for path in found if path not in done and is_text(path)]


def is_text(path: str) -> bool:
    """Return whether a path can be written into a Parquet file."""
    return path.encode(errors="ignore").decode() == path


def main() -> None:
    """Transcribe what is not transcribed yet."""
    parser = argparse.ArgumentParser(description="Transcribe a folder into Parquet files.")
    parser.add_argument("recordings", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--quant", help="float16, int8 or int4")
    parser.add_argument("--language", help="of all recordings; by default it is detected")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--gpus", type=float, help="of each actor")
    options = parser.parse_args()
    options.texts.mkdir(parents=True, exist_ok=True)
    recordings = find_recordings(options.recordings.resolve(), options.texts)
    print(f"{len(recordings)} recordings to transcribe")
    if not recordings:
        return
    arguments: dict[str, Any] = {
        "texts": str(options.texts.resolve()),
        "model": options.model,
        "transcribe": {"language": options.language},
    }
    if options.quant:
        arguments["quant"] = options.quant
    # Repartitioning would need a CPU that the actors do not leave on a small machine.
    items = [{"path": path} for path in recordings]
    blocks = -(-len(recordings) // BATCH)
    written = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
        Writer,
        fn_constructor_kwargs=arguments,
        batch_size=BATCH,
        compute=ray.data.ActorPoolStrategy(size=options.actors),
        num_gpus=options.gpus,
    )
    count = failed = 0
    for batch in written.iter_rows():
        count += batch["rows"]
        failed += batch["failed"]
        print(f"{count} of {len(recordings)} done, {failed} failed", flush=True)


if __name__ == "__main__":
    main()
