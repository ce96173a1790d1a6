"""Word error rates by precision: `python -m bench.wer --model tiny.en --model base=DIR`.

Judged against the text that was read; beside it stands the share of words that differ from what
the same model writes at float16. Texts are compared as Whisper's authors do, after their English
normalizer (Radford et al. 2022, appendix C). Results are kept by model, speech and engine, so that
a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import jiwer
import numpy as np
import platformdirs
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

import fastwhisper
from bench.speech import TEXTS, Utterance, kept, packaged, recorded, synthesized
from fastwhisper.engine import blas, threads
from fastwhisper.engine.threads import Lane
from fastwhisper.quantizing.make import quantize
from fastwhisper.quantizing.recipe import compute_size_ratio

blas.prepare()

import mlx.core as mx  # noqa: E402  after the BLAS
from mlx import nn  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastwhisper.whisper.network import Whisper

ROOT: Final = platformdirs.user_cache_path("fastwhisper-bench") / "wer"
QUANTS: Final = ("float16", "int8", "int4", "plain4", "linear4")
"""As `fastwhisper quantize` makes them; as MLX rounds to four bits in groups of 64, which is what
the table's int4 repositories hold; and the same with the embedding left at float16."""
_RESAMPLES: Final = 10_000
_SETTINGS: Final = "temperature 0, no condition_on_previous_text; 1"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="Word error rates by precision.")
    parser.add_argument("--model", action="append", metavar="NAME[=DIR]", help="default: tiny.en")
    parser.add_argument("--quant", action="append", choices=QUANTS, help="default: all")
    parser.add_argument("--also", action="append", default=[], metavar="LABEL=DIR")
    parser.add_argument("--texts", type=Path, default=TEXTS, help="what espeak-ng reads")
    parser.add_argument("--every", type=int, default=1, help="take every so many utterances")
    parser.add_argument("--speech", type=Path, help="a folder of audio with index.tsv, or text")
    parser.add_argument("--packed", action="store_true", help="multiply packed weights on a CPU")
    options = parser.parse_args()
    for model in options.model or ["tiny.en"]:
        name, _, directory = model.partition("=")
        anyio.run(partial(measure, name, directory or name, options))


async def measure(name: str, source: str, options: argparse.Namespace) -> None:
    """Measure all precisions of one model."""
    multilingual = not name.endswith(".en")
    if options.speech and (index := options.speech / "index.tsv").exists():
        sets = {"recorded": list(recorded(index))}
    elif options.speech:
        sets = {"given": list(kept(options.speech))}
    else:
        sets = {
            "synthesized": list(synthesized(options.texts)),
            "packaged": list(packaged(multilingual=multilingual)),
        }
    chosen = tuple(options.quant or QUANTS)
    places: dict[str, str | Path] = {}
    for quant in dict.fromkeys(("float16", *chosen)):
        places[quant] = source if quant == "float16" else await _quantized(name, source, quant)
    places |= {label: Path(place) for label, _, place in (x.partition("=") for x in options.also)}
    print(f"\n## {name}\n")
    print("| speech | words | precision | bytes | WER | minus float16's | words changed | s |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, speech in sets.items():
        utterances = speech[:: options.every]
        exact: list[str] = []
        for quant, place in places.items():
            begin_s = time.perf_counter()
            texts, share = await _transcripts(place, utterances, packed=options.packed)
            exact = exact or texts
            if utterances:
                words, _, row = _row(utterances, texts, exact).partition(" | ")
                wall_s = time.perf_counter() - begin_s
                print(f"| {kind} | {words} | {quant} | {share:.1%} | {row} | {wall_s:.0f} |")
                sys.stdout.flush()


async def _quantized(name: str, source: str, quant: str) -> Path:
    out = ROOT / "models" / f"{name}-{quant}"
    if not out.exists():
        begin_s = time.perf_counter()
        out.parent.mkdir(parents=True, exist_ok=True)
        if quant in {"plain4", "linear4"}:
            round_plainly(source, out, embedding=quant == "plain4")
        else:
            await quantize(source, quant=fastwhisper.Quantization(quant), out=out)
        print(f"quantized {name} to {quant} in {time.perf_counter() - begin_s:.0f} s")
    return out


def round_plainly(source: str, out: Path, *, embedding: bool) -> None:
    """Round a model as mlx-examples' converter does for the table's repositories."""
    module = fastwhisper.load_model(source)
    kinds = (nn.Linear, nn.Embedding) if embedding else (nn.Linear,)
    nn.quantize(
        module, group_size=64, bits=4, class_predicate=lambda _, part: isinstance(part, kinds)
    )
    out.mkdir(parents=True)
    mx.save_safetensors(str(out / "weights.safetensors"), dict(tree_flatten(module.parameters())))
    config = asdict(module.dims) | {"quantization": {"group_size": 64, "bits": 4}}
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")


async def _transcripts(
    place: str | Path, utterances: Sequence[Utterance], *, packed: bool
) -> tuple[list[str], float]:
    """Transcribe what is not kept from an earlier run; also give the share of float16's bytes."""
    async with fastwhisper.open(place) as session:
        checkpoint = fastwhisper.inspect_checkpoint(session.result.path)
        on_gpu = mx.default_device().type == mx.gpu
        if not on_gpu and not packed:
            await threads.run(partial(_unpack, session.result.model), Lane.COMPUTE)
        known = _Known(checkpoint, f"{_SETTINGS} {on_gpu} {packed}")
        texts = []
        for utterance in utterances:
            text = known.get(utterance)
            if text is None:
                result = await session.transcribe(
                    utterance.samples,
                    language=utterance.language,
                    temperature=0.0,
                    condition_on_previous_text=False,
                )
                text = known.put(utterance, result.text)
            texts.append(text)
    return texts, compute_size_ratio(checkpoint.dimensions, checkpoint.precision)


def _unpack(model: Whisper) -> None:
    """Put plain float32 weights in the place of packed ones: the same words, sooner, on a CPU."""
    layers: list[Any] = [layer for _, layer in model.named_modules()]
    for layer in layers:
        packing = getattr(layer, "packing", None)
        if packing is not None:
            layer.weight = mx.dequantize(
                layer.weight, layer.scales, layer.biases, packing.group_size, packing.bits
            )
            layer.packing = None
            del layer["scales"], layer["biases"]
            mx.eval(layer.weight)


class _Known:
    """Texts kept from earlier runs, in a file outside the repository."""

    def __init__(self, checkpoint: fastwhisper.Checkpoint, settings: str) -> None:
        digest = hashlib.sha256(settings.encode())
        for file in checkpoint.files:
            digest.update(file.path.read_bytes())
        self._path = ROOT / f"{digest.hexdigest()[:24]}.json"
        self._texts: dict[str, str] = {}
        if self._path.exists():
            self._texts = json.loads(self._path.read_text(encoding="utf-8"))

    def get(self, utterance: Utterance) -> str | None:
        """Give what the model wrote of it before, if it did."""
        return self._texts.get(self._key(utterance))

    def put(self, utterance: Utterance, text: str) -> str:
        """Keep what the model wrote."""
        self._texts[self._key(utterance)] = text
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self._texts), encoding="utf-8")
        return text

    @staticmethod
    def _key(utterance: Utterance) -> str:
        return hashlib.sha256(utterance.samples.tobytes()).hexdigest()[:24]


def _row(utterances: Sequence[Utterance], texts: Sequence[str], exact: Sequence[str]) -> str:
    """Compute words, WER, its distance to float16's with a 95 % interval, and words changed."""
    errors, words, changed, counted = (np.zeros(len(texts)) for _ in range(4))
    exact_errors = np.zeros(len(texts))
    for at, (utterance, text, other) in enumerate(zip(utterances, texts, exact, strict=True)):
        errors[at], words[at] = _count(utterance.text, text, utterance.language)
        exact_errors[at], _ = _count(utterance.text, other, utterance.language)
        changed[at], counted[at] = _count(other, text, utterance.language)
    groups = sorted({utterance.group for utterance in utterances})
    member = np.array([[u.group == group for u in utterances] for group in groups], float)
    more, size = member @ (errors - exact_errors), member @ words
    # Texts are drawn, and not utterances: those of one text are not independent.
    drawn = np.random.default_rng(0).integers(0, len(groups), (_RESAMPLES, len(groups)))
    low, high = np.percentile(more[drawn].sum(axis=1) / size[drawn].sum(axis=1), (2.5, 97.5))
    return (
        f"{words.sum():.0f} | {errors.sum() / words.sum():.2%} | "
        f"{more.sum() / size.sum() * 100:+.2f} ({low * 100:+.2f} to {high * 100:+.2f}) | "
        f"{changed.sum() / max(counted.sum(), 1):.2%}"
    )


def _count(reference: str, text: str, language: str) -> tuple[int, int]:
    """Count the errors in a text, and the words of its reference."""
    normalize = _ENGLISH if language == "en" else _OTHER
    reference, text = normalize(reference), normalize(text)
    if not reference:
        return len(text.split()), 0
    found = jiwer.process_words(reference, text)
    wrong = found.substitutions + found.deletions + found.insertions
    return wrong, found.substitutions + found.deletions + found.hits


_ENGLISH: Final = EnglishTextNormalizer()
_OTHER: Final = BasicTextNormalizer()

if __name__ == "__main__":
    main()
