"""Try recipes: `python -m bench.search --model DIR --out DIR 6:128,4:128,4:128 …`.

A recipe is bits:group size of the embedding, the encoder and the decoder; `rtn` in front of it
means plain rounding. Every recipe becomes a directory, for `bench.wer --also`, which is told to
judge it by `--texts bench/search_text.txt`.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import anyio

from fastwhisper.engine import blas, threads
from fastwhisper.quantizing import make
from fastwhisper.quantizing import recipe as recipes
from fastwhisper.values import ModulePrecision, Quantization

blas.prepare()

from fastwhisper.quantizing import quantizer  # noqa: E402  imports MLX
from fastwhisper.quantizing.calibrate import round_layers  # noqa: E402
from fastwhisper.quantizing.quantizer import Quantizer  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastwhisper.quantizing.calibrate import QuantizedLayer
    from fastwhisper.values import Dimensions


def main() -> None:
    """Quantize by each recipe."""
    parser = argparse.ArgumentParser(description="Quantize by given recipes.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("recipe", nargs="+")
    options = parser.parse_args()
    for text in options.recipe:
        begin_s = time.perf_counter()
        out = options.out / text.replace(":", "g").replace(",", "-")
        if not out.exists():
            _quantize(options.model, out, text)
        print(f"{text}: {time.perf_counter() - begin_s:.0f} s", flush=True)


def _quantize(model: str, out: Path, text: str) -> None:
    kinds = [
        ModulePrecision(*map(int, part.split(":"))) for part in text.removeprefix("rtn").split(",")
    ]

    def choose(dimensions: Dimensions, *_: object, **__: object) -> dict[str, ModulePrecision]:
        chosen = recipes.apply_recipe(dimensions, (kinds[0], kinds[1], kinds[2]))
        print(f"{text}: {recipes.compute_size_ratio(dimensions, chosen):.2%} of the bytes")
        return chosen

    quantize_layers = _round if text.startswith("rtn") else Quantizer.quantize_layers
    with (
        mock.patch.object(quantizer, "choose_precision", choose),
        mock.patch.object(Quantizer, "quantize_layers", quantize_layers),
    ):
        anyio.run(partial(make.quantize, model, out=out, quant=Quantization.INT4))


def _round(work: Quantizer) -> Iterator[QuantizedLayer]:
    """Quantize without calibration."""
    return round_layers(work.model, work.precision, check=threads.check)


if __name__ == "__main__":
    main()
