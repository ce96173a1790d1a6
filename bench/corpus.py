"""Run the corpus through fastwhisper and through mlx_whisper: `python -m bench.corpus`."""

from __future__ import annotations

import collections
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.corpus.batch import VERDICTS, Loader, Result, run_cases
from tests.corpus.cases import CASES

_LIMIT_S: Final = 5.0
_LOADERS: Final[tuple[Loader, ...]] = ("fastwhisper", "mlx_whisper")


def main() -> None:
    """Print a table of verdicts; with `-v` also every case that did not end as it should."""
    found: dict[Loader, list[Result]] = {}
    for loader in _LOADERS:
        with tempfile.TemporaryDirectory() as directory:
            found[loader] = list(run_cases(CASES, Path(directory), loader=loader, limit_s=_LIMIT_S))
    for only_upstream in (False, True):
        title = "layouts mlx_whisper reads" if only_upstream else "all layouts"
        counted = [case for case in CASES if case.upstream_layout or not only_upstream]
        print(f"\n{title}: {len(counted)} cases\n")
        print(f"| | {' | '.join(VERDICTS)} | slowest |")
        print("|---" * (len(VERDICTS) + 2) + "|")
        for loader, results in found.items():
            kept = [result for result in results if result.case in counted]
            counts = collections.Counter(result.verdict for result in kept)
            slowest = max(result.seconds for result in kept)
            cells = " | ".join(str(counts[verdict]) for verdict in VERDICTS)
            print(f"| {loader} | {cells} | {slowest:.2f} s |")
    if "-v" in sys.argv[1:]:
        for loader, results in found.items():
            for result in results:
                if result.verdict not in {"right ok", "right error"}:
                    print(f"{loader}: {result.case.name}: {result.verdict} ({result.said[:200]})")


if __name__ == "__main__":
    main()
