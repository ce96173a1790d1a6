"""`fleet.Transcriber` without an engine: columns, rows that fail, pickles, one model for all."""

from __future__ import annotations

import pickle
import threading
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fastwhisper import InvalidModelFormatError, ModelNotFoundError, fleet
from fastwhisper.fleet import Transcriber
from fastwhisper.loading.load import LoadTask
from fastwhisper.transcribing.samples import load_audio
from tests.helpers.audio import SAMPLE, SAMPLE_RATE, SENTENCE, encode, spell, tone
from tests.helpers.interpreter import run_python
from tests.helpers.tiny_models import write_babbler

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def transcriber(tiny_en_ct2: Path) -> Iterator[Transcriber]:
    """Return a transcriber of the real tiny.en."""
    with Transcriber(tiny_en_ct2) as opened:
        yield opened


def test_all_sources_say_the_same(transcriber: Transcriber, tmp_path: Path) -> None:
    """A path, bytes, and samples; other columns stay as they are."""
    samples = load_audio(SAMPLE)
    batches: list[dict[str, Any]] = [
        {"path": [str(SAMPLE)], "id": [7]},
        {"path": [SAMPLE], "id": [7]},
        {"bytes": [SAMPLE.read_bytes()], "path": ["of whoever"], "id": [7]},
        {"audio": [samples], "id": [7]},
        {"audio": [samples.tolist()], "sampling_rate": [SAMPLE_RATE], "id": [7]},
        {"audio": list(np.array([samples])), "id": [7]},
    ]
    for batch in batches:
        found = transcriber(batch)
        assert spell(found["text"][0]) == spell(SENTENCE)
        assert found["error"] == [""]
        assert found["language"] == ["en"]
        assert found["duration_s"] == [pytest.approx(len(samples) / SAMPLE_RATE, abs=0.02)]
        assert found["id"] == [7]
        assert ("path" in found) == ("path" in batch)
        assert "audio" not in found
        assert "bytes" not in found
        assert "".join(segment["text"] for segment in found["segments"][0]) == found["text"][0]
        assert set(found["segments"][0][0]) == {"start_s", "end_s", "text"}


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_samples_at_another_rate_are_resampled(transcriber: Transcriber, rate: int) -> None:
    """The length in seconds stays."""
    samples = tone(1.0, rate=rate) * 0.0
    seconds = np.arange(0, 8.4, 1 / rate)
    speech = np.interp(seconds, np.arange(135_883) / SAMPLE_RATE, load_audio(SAMPLE))
    found = transcriber(
        {"audio": [speech.astype(np.float32), samples], "sampling_rate": [rate, rate]}
    )
    assert spell(found["text"][0])[:2] == ["good", "morning"]
    assert found["duration_s"] == [pytest.approx(8.4, abs=0.01), pytest.approx(1.0, abs=0.01)]


@pytest.mark.parametrize(
    ("column", "bad"),
    [
        (
            "path",
            [
                ("missing.wav", "no such file"),
                (None, "path of type NoneType"),
                (3, "path of type int"),
            ],
        ),
        (
            "bytes",
            [
                (b"", "empty"),
                (b"RIFF nothing", "not a media file"),
                (memoryview(bytes(8))[::2], "BufferError"),
                (None, "bytes of type NoneType"),
            ],
        ),
        (
            "audio",
            [
                (np.zeros((2, 3), np.float32), "one-dimensional"),
                (np.array([1, 2], np.int16), "int16"),
                ([float("nan")], "NaN"),
                ([], "zero samples"),
                (None, "dtype object"),
                ("text", "dtype <U4"),
            ],
        ),
    ],
)
def test_a_bad_recording_fails_its_row(
    transcriber: Transcriber, column: str, bad: list[tuple[Any, str]]
) -> None:
    """The rows beside it have their text."""
    samples = load_audio(SAMPLE)
    good: Any = {"path": str(SAMPLE), "bytes": SAMPLE.read_bytes(), "audio": samples}[column]
    found = transcriber({column: [good, *(value for value, _ in bad), good]})
    assert [found["error"][n] for n in (0, -1)] == ["", ""]
    assert [spell(found["text"][n]) for n in (0, -1)] == [spell(SENTENCE)] * 2
    for n, (_, said) in enumerate(bad, start=1):
        assert said.lower() in found["error"][n].lower()
        assert (found["text"][n], found["segments"][n], found["duration_s"][n]) == ("", [], 0.0)


@pytest.mark.parametrize(
    "rate", [0, -1, 16, 10_000_000, "fast", None, float("nan"), float("inf"), True]
)
def test_a_wrong_rate_fails_its_row(transcriber: Transcriber, rate: Any) -> None:
    """With a message that names the rate."""
    found = transcriber({"audio": [tone(1.0)], "sampling_rate": [rate]})
    assert "sampling rate" in found["error"][0]


def test_samples_that_are_too_few_to_resample_fail_their_row(transcriber: Transcriber) -> None:
    """Or become text of nothing; they fail nobody else."""
    few = [tone(1.0)[:count] for count in (1, 9, 99)]
    found = transcriber({"audio": few, "sampling_rate": [48_000] * 3})
    assert len(found["text"]) == 3


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"path": ["a"], "text": ["b"]}, "column 'text'"),
        ({"path": ["a"], "error": ["b"]}, "column 'error'"),
        ({"id": [1]}, "it has 'id'"),
        ({}, "it has none"),
        ({"path": ["a", "b"], "id": [1]}, "'path' 2, 'id' 1"),
    ],
)
def test_wrong_columns_are_an_error(
    transcriber: Transcriber, batch: dict[str, Any], said: str
) -> None:
    """Of the whole batch, which would lose them."""
    with pytest.raises(ValueError, match=said):
        transcriber(batch)


def test_no_row_is_no_text(transcriber: Transcriber) -> None:
    """An engine may send an empty batch to learn the columns."""
    assert transcriber({"path": [], "id": []}) == {
        "path": [], "id": [], "text": [], "language": [], "duration_s": [], "segments": [],
        "error": [],
    }  # fmt: skip


def test_a_pickle_holds_arguments_alone(tiny_en_ct2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy opens its model at its first batch, once."""
    opened: list[str] = []
    real = LoadTask.run

    async def run(task: LoadTask, **options: Any) -> Any:
        opened.append(task.model_name)
        return await real(task, **options)

    with Transcriber(tiny_en_ct2, transcribe={"word_timestamps": True}, quant="float16") as first:
        first({"path": []})
        data = pickle.dumps(first)
    assert len(data) < 1000
    monkeypatch.setattr(LoadTask, "run", run)
    with pickle.loads(data) as copy:
        assert opened == []
        for _ in range(2):
            found = copy({"path": [str(SAMPLE)]})
        assert found["segments"][0][0]["words"][0]["word"] == " Good"
    assert len(opened) == 1


def test_a_program_that_does_not_close_ends(tiny_en_ct2: Path) -> None:
    """The event loop in its thread is stopped, before or after a batch."""
    code = "import sys; from fastwhisper.fleet import Transcriber; t = Transcriber(sys.argv[1]); "
    for more in ("", "t({'audio': []})"):
        run_python("-c", code + more, str(tiny_en_ct2))


def test_a_model_that_can_not_be_opened_fails_the_job(
    tmp_path: Path, transcriber: Transcriber
) -> None:
    """A wrong name at once, a broken one with the first batch; no thread is left."""
    assert transcriber({"path": []})["path"] == []  # the engine's threads are there
    threads = threading.active_count()
    with pytest.raises(ModelNotFoundError, match="did you mean"):
        Transcriber("tinny")
    assert threading.active_count() == threads
    with Transcriber(tmp_path) as broken, pytest.raises(InvalidModelFormatError):
        broken({"path": [str(SAMPLE)]})


def test_a_wrong_option_fails_the_job(tiny_en_ct2: Path) -> None:
    """It would fail every row."""
    with (
        Transcriber(tiny_en_ct2, transcribe={"languge": "en"}) as wrong,
        pytest.raises(TypeError, match="languge"),
    ):
        wrong({"path": [str(SAMPLE)]})


def test_encoded_recordings_are_read_from_bytes(transcriber: Transcriber) -> None:
    """In any format that FFmpeg knows."""
    files = [BytesIO(), BytesIO()]
    for file, name in zip(files, ("flac", "mp3"), strict=True):
        encode(file, load_audio(SAMPLE), codec=name, container=name)
    found = transcriber({"bytes": [file.getvalue() for file in files]})
    assert found["error"] == ["", ""]
    assert [spell(text) for text in found["text"]] == [spell(SENTENCE)] * 2


def test_rows_are_read_two_batches_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of many rows is not resampled as a whole before the first of them is decoded."""
    resampled: list[int] = []
    decoded_after: list[int] = []

    def resample_row(samples: np.ndarray[Any, Any], rate: int) -> np.ndarray[Any, Any]:
        resampled.append(rate)
        return samples

    def describe(*arguments: Any, **options: Any) -> dict[str, Any]:
        decoded_after.append(len(resampled))
        return real(*arguments, **options)

    real = fleet._describe
    monkeypatch.setattr(fleet, "resample", resample_row)
    monkeypatch.setattr(fleet, "_describe", describe)
    rows = 40
    sound = [np.zeros(800, np.float32)] * rows
    batch: dict[str, Any] = {"audio": sound, "sampling_rate": [8_000] * rows}
    short: dict[str, Any] = {"temperature": 0.0, "sample_len": 4}
    model = write_babbler(tmp_path, multilingual=False)
    with Transcriber(model, transcribe=short) as transcriber:
        assert transcriber(batch)["error"] == [""] * rows
    assert decoded_after[0] <= 17  # the first row, and two batches of eight
    assert len(resampled) == rows


INTERRUPTED = """
import signal, sys, threading, time
from fastwhisper import fleet

if sys.argv[3:]:
    signal.siginterrupt(signal.SIGINT, False)

done = []
describe = fleet._describe
fleet._describe = lambda *a, **k: (done.append(1), describe(*a, **k))[1]
transcriber = fleet.Transcriber(sys.argv[1], transcribe={"batch_size": 1})
transcriber({"path": [sys.argv[2]]})
main = threading.main_thread().ident
threading.Timer(1.0, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
begin_s = time.monotonic()
try:
    transcriber({"path": [sys.argv[2]] * 1000})
except KeyboardInterrupt:
    print(time.monotonic() - begin_s < 30)
before = len(done)
print(transcriber({"path": [sys.argv[2]] * 5})["text"][4][:14])
print(len(done) - before <= 6)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "flag", [[], ["SA_RESTART"]], ids=["plain", "as CUDA's compiler leaves it"]
)
def test_an_interrupt_ends_a_batch(tiny_en_ct2: Path, flag: list[str]) -> None:
    """The rows that are left are not decoded, and the next batch is."""
    done = run_python("-c", INTERRUPTED, tiny_en_ct2, SAMPLE, *flag)
    assert done.stdout == "True\n Good morning.\nTrue\n"
