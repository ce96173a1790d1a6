"""Run the corpus in worker processes that may crash or hang, and judge every answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import mlx.core as mx

from tests.corpus.case import OPENS, Case
from tests.corpus.worker import digest
from tests.helpers.tiny_models import write_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["VERDICTS", "Result", "Verdict", "run_cases"]

Loader = Literal["fastwhisper", "mlx_whisper"]
Verdict = Literal[
    "right ok",
    "right error",
    "clear error",
    "unclear error",
    "silent acceptance",
    "good one refused",
    "crash",
    "hang",
]
VERDICTS: Final[tuple[Verdict, ...]] = (
    "right ok",
    "right error",
    "clear error",
    "unclear error",
    "silent acceptance",
    "good one refused",
    "crash",
    "hang",
)
"""What can become of a case. An error is right if it is the one that the case names; another
one is clear if its message at least names the path, the tensor or the field that is wrong, or
says that the download is incomplete."""

_START_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a case.

    Attributes:
        case: The case.
        verdict: The judgement.
        said: What the loader said, or how the process ended.
        seconds: How long it took.
    """

    case: Case
    verdict: Verdict
    said: str
    seconds: float


class _Worker:
    """A process that opens models; started again after it died."""

    def __init__(self, loader: Loader) -> None:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "FASTWHISPER_CACHE": "off"}
        # CUDA reserves more addresses than a machine has memory.
        limit = [] if mx.cuda.is_available() else ["--limit-memory"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.corpus.worker", loader, *limit],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )

    def ask(self, path: str | Path, limit_s: float, *, stdin_closed: bool = False) -> object:
        """Have a model opened: the answer, or "hang", or the status the process ended with."""
        process = self._process
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("started without pipes")
        hung = threading.Event()

        def give_up() -> None:
            hung.set()
            process.kill()

        watchdog = threading.Timer(limit_s, give_up)
        watchdog.start()
        try:
            request = {"path": os.fspath(path), "stdin_closed": stdin_closed}
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            watchdog.cancel()
        if line:
            return json.loads(line)
        status = process.wait()
        return "hang" if hung.is_set() else status

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def run_cases(
    cases: Iterable[Case], directory: Path, *, loader: Loader, limit_s: float
) -> Iterator[Result]:
    """Build each case and have it opened; a process that dies or hangs costs one case.

    Args:
        cases: What to run.
        directory: Where to build; everything is left there.
        loader: Whose `load_model` opens them.
        limit_s: How long a case may take before it counts as a hang, in seconds.

    Yields:
        The results, in order.
    """
    warm = write_model(directory / "warm")
    worker: _Worker | None = None
    try:
        for number, case in enumerate(cases):
            place = directory / f"case-{number}"
            built = case.build(place)
            path = built if isinstance(built, (str, Path)) else place
            if worker is None:
                worker = _Worker(loader)
                # The imports are not the case's.
                worker.ask(warm, _START_S)
            answer = worker.ask(path, limit_s, stdin_closed=case.stdin_closed)
            if not isinstance(answer, dict):
                worker.close()
                worker = None
            yield _judge(case, place, answer)
    finally:
        if worker is not None:
            worker.close()


def _judge(case: Case, place: Path, answer: object) -> Result:
    if not isinstance(answer, dict):
        verdict: Verdict = "hang" if answer == "hang" else "crash"
        return Result(case, verdict, f"ended with {answer}", 0.0)
    seconds = answer["seconds"]
    if "opened" in answer:
        if case.right != OPENS:
            return Result(case, "silent acceptance", str(answer["opened"]), seconds)
        wanted = {name: mx.array(array) for name, array in case.wanted().items()}
        if answer["opened"] == [digest(wanted), [[0, 0]]]:
            return Result(case, "right ok", "", seconds)
        return Result(case, "silent acceptance", "opens to another model", seconds)
    said = f"{answer['error'][0]}: {answer['said']}"
    if case.right == OPENS:
        verdict = "good one refused"
    elif answer["error"][0] == case.right:
        verdict = "right error"
    elif any(
        word in said for word in (ascii(str(place))[1:-1], "incomplete download", *case.about)
    ):
        verdict = "clear error"
    else:
        verdict = "unclear error"
    return Result(case, verdict, said, seconds)
