"""Files a minute: `python -m bench.fleet [--ray] RECORDING`, with the dependency group `fleet`.

A recording is cut into clips. They are transcribed by a loop over `Session.transcribe`, as the
command did before files were read ahead; by `read_ahead`, as it does now; and in batches. With
`--ray` also on a Ray cluster of this machine, by one actor and by two.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

import fastwhisper

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_RATE = 16_000


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="Files a minute.")
    parser.add_argument("recording", type=Path)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a clip")
    parser.add_argument("--model", default="tiny.en")
    parser.add_argument("--quant", default="float16")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--runs", type=int, default=1, help="of each way, in turn")
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = anyio.run(partial(_measure, options, Path(folder)))
        if options.ray:
            _measure_ray(options, paths)


async def _measure(options: argparse.Namespace, folder: Path) -> list[str]:
    """Measure the ways of one process, in turn; return the clips."""
    elapsed_s: dict[str, list[float]] = {"loop": [], "read ahead": [], "in batches": []}
    async with fastwhisper.open(options.model, quant=options.quant) as session:
        paths = _write_clips(options, folder)
        ahead = partial(_read_ahead, session, paths)
        ways: dict[str, Callable[[], Coroutine[Any, Any, list[str]]]] = {
            "loop": partial(_loop, session, paths),
            "read ahead": partial(ahead, 1),
            "in batches": partial(ahead, options.batch_size),
        }
        await session.transcribe(paths[0], language="en")
        texts: dict[str, list[str]] = {}
        for _ in range(options.runs):
            for name, run in ways.items():
                begin_s = time.perf_counter()
                texts[name] = await run()
                elapsed_s[name].append(time.perf_counter() - begin_s)
    loop_s = statistics.median(elapsed_s["loop"])
    print("| way | files a minute | of the loop | other texts |\n|---|---|---|---|")
    for name, times_s in elapsed_s.items():
        median_s = statistics.median(times_s)
        others = sum(a != b for a, b in zip(texts["loop"], texts[name], strict=True))
        print(f"| {name} | {60 * len(paths) / median_s:.0f} | {loop_s / median_s:.2f} | {others} |")
    return paths


async def _loop(session: fastwhisper.Session, paths: list[str]) -> list[str]:
    return [(await session.transcribe(path, language="en")).text for path in paths]


async def _read_ahead(session: fastwhisper.Session, paths: list[str], batch_size: int) -> list[str]:
    from fastwhisper.stream import read_ahead  # noqa: PLC0415  after MLX

    texts = []
    for stream in read_ahead(
        session.stream(path, language="en", batch_size=batch_size) for path in paths
    ):
        while await stream.decode_window():
            pass
        texts.append(stream.so_far.text if stream.so_far else "")
    return texts


def _measure_ray(options: argparse.Namespace, paths: list[str]) -> None:
    """Measure Ray Data, from the first row to the last, with the start of the actors."""
    import ray  # noqa: PLC0415  not every environment has it

    from fastwhisper.fleet import Transcriber  # noqa: PLC0415  after MLX

    ray.init(include_dashboard=False, log_to_driver=False)
    for actors in (1, 2):
        begin_s = time.perf_counter()
        items = [{"path": path} for path in paths]
        done = ray.data.from_items(items, override_num_blocks=8).map_batches(
            Transcriber,
            fn_constructor_kwargs={
                "model": options.model,
                "quant": options.quant,
                "transcribe": {"language": "en", "batch_size": options.batch_size},
            },
            batch_size=32,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=1,
        )
        count = sum(1 for row in done.iter_rows() if not row["error"])
        elapsed_s = time.perf_counter() - begin_s
        print(f"| Ray, {actors} actors | {60 * count / elapsed_s:.0f} | | |", flush=True)
    ray.shutdown()


def _write_clips(options: argparse.Namespace, folder: Path) -> list[str]:
    """Cut the recording into clips, again and again, and write them as FLAC."""
    # After MLX: fastwhisper chooses the BLAS only if it imports MLX first.
    from fastwhisper.transcribing.samples import load_audio  # noqa: PLC0415
    from tests.helpers.audio import encode  # noqa: PLC0415

    samples = load_audio(options.recording)
    size = round(options.seconds * _RATE)
    last = max(1, len(samples) - size)
    paths = []
    for n in range(options.clips):
        start = n * size * 7 // 5 % last
        paths.append(str(folder / f"{n:05}.flac"))
        encode(Path(paths[-1]), samples[start : start + size], codec="flac", container="flac")
    return paths


if __name__ == "__main__":
    main()
