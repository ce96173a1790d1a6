"""Checks, tests and measurements, in the environment nox itself runs in."""

from __future__ import annotations

from pathlib import Path

import nox

import fastwhisper

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "tests", "slow", "docs"]

STUBS = ["mlx.nn", "mlx.utils"]
covered: list[str] = []
"""The sessions of this run whose coverage was measured."""


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, and the stubs against what they describe."""
    session.run("mypy")
    session.run(
        "python", "-m", "mypy.stubtest", *STUBS, "--ignore-missing-stub", "--concise",
        "--mypy-config-file", "pyproject.toml", env={"MYPYPATH": "stubs"},
    )  # fmt: skip


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests that are not slow: 3 minutes on 2 cores. Arguments after -- go to pytest."""
    # The models are so small that a second thread of OpenBLAS would only wait for work.
    env = {"OPENBLAS_NUM_THREADS": "1"}
    if session.posargs:
        session.run("pytest", "-m", "not slow", *session.posargs, env=env)
        return
    session.run("coverage", "run", "-m", "pytest", "-m", "not slow", env=env)
    covered.append("tests")


@nox.session
def slow(session: nox.Session) -> None:
    """Run the slow tests. After `tests` in one run, check the coverage of both."""
    if session.posargs or not covered:
        session.run("pytest", "-m", "slow", *session.posargs)
        return
    session.run("coverage", "run", "--append", "-m", "pytest", "-m", "slow")
    session.run("coverage", "report")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/. A warning or a missing public name is an error."""
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})
    page = Path("site", "api", "index.html").read_text(encoding="utf-8")
    missing = [name for name in fastwhisper.__all__ if f'id="fastwhisper.{name}"' not in page]
    if missing:
        session.error(f"docs/api.md does not list {', '.join(missing)}")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure loading against mlx_whisper and the floor; needs the dependency group `bench`."""
    # As pip leaves it, and as uv has left the others: an editable package is compiled when it is
    # first run, but not where PYTHONDONTWRITEBYTECODE is set.
    session.run("python", "-m", "compileall", "-q", "fastwhisper")
    session.run("python", "-m", "bench.cold", *session.posargs)
    session.run("python", "-m", "bench.gap")
    session.run("python", "-m", "bench.first", "tiny:int4", "--runs", "3")
    session.run("python", "-m", "bench.layouts")
    session.run("python", "-m", "bench.text", "start")
    session.run("python", "-m", "bench.text", "words")
    session.run(
        "python", "-m", "bench.text", "batches", "tiny.en", "tests/data/sample.ogg",
        "--repeat-to", "240", "--sizes", "1,8", "--greedy", "--runs", "3",
    )  # fmt: skip
    session.run("python", "-m", "bench.corpus")
    session.run("pytest", "bench/test_load.py", "-p", "no:cacheprovider", "--benchmark-only")
    session.run("python", "-m", "bench.timeline", "docs/timeline.png")


@nox.session
def wer(session: nox.Session) -> None:
    """Measure word error rates; needs the dependency group `wer`."""
    session.run("python", "-m", "bench.wer", *session.posargs)


@nox.session
def long_audio(session: nox.Session) -> None:
    """Measure the memory of an hour of speech against a minute's."""
    session.run("python", "-m", "bench.long_audio", *session.posargs)


@nox.session
def equality(session: nox.Session) -> None:
    """Compare with mlx_whisper on audio files: nox -s equality -- FILE ..."""
    session.run("python", "-m", "bench.equality", *session.posargs)
