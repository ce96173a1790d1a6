"""Speak into the example's page in a real browser: a script for `nox -s browser`.

It starts docs/examples/live_server.py, opens its page in a headless Chromium whose microphone is a
recording, waits for the text, and takes a picture: `python live_page.py PICTURE`.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
import wave
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from playwright.sync_api import Page, expect, sync_playwright

from fastwhisper.transcribing.samples import never_cancel, read_blocks
from tests.helpers.audio import SAMPLE, SAMPLE_RATE, SENTENCE, spell, to_bytes
from tests.helpers.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER = Path(__file__).parents[2] / "docs/examples/live_server.py"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
TIMEOUT_S = 60.0


def main(picture: Path) -> None:
    """Check the page, and take the picture."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        raise SystemExit(f"no browser here: none of {', '.join(NAMES)}")
    with tempfile.TemporaryDirectory() as folder, serve() as url, sync_playwright() as playwright:
        recording = Path(folder, "microphone.wav")
        write_recording(recording)
        chromium = playwright.chromium.launch(
            executable_path=browser,
            args=[
                "--use-fake-ui-for-media-stream",
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-audio-capture={recording}%noloop",
            ],
        )
        check_page(chromium.new_page(viewport={"width": 720, "height": 300}), url, picture)
        chromium.close()


def check_page(page: Page, url: str, picture: Path) -> None:
    """Speak, and compare what the page shows with what was said."""
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(url)
    button, final, tentative = (
        page.locator(f"#{name}") for name in ("button", "final", "tentative")
    )
    button.click()
    expect(page.locator("#state")).to_have_text("listening", timeout=1000 * TIMEOUT_S)
    expect(final).to_contain_text("weather", timeout=1000 * TIMEOUT_S)
    expect(tentative).not_to_be_empty(timeout=1000 * TIMEOUT_S)
    page.screenshot(path=picture)
    print(f"shown: {final.text_content()!r}, tentative: {tentative.text_content()!r}")
    expect(page.locator("#text")).to_contain_text("in the south", timeout=1000 * TIMEOUT_S)
    button.click()
    expect(button).to_have_text("Listen", timeout=1000 * TIMEOUT_S)
    expect(tentative).to_be_empty()
    print(f"final: {final.text_content()!r}")
    assert spell(final.text_content() or "") == spell(SENTENCE)
    assert not problems, problems


@contextmanager
def serve() -> Iterator[str]:
    """Start the example with tiny.en, and return its address as soon as it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([sys.executable, SERVER, "tiny.en", str(port)]) as server:
        try:
            wait_until(lambda: server.poll() is not None or answers(url))
            yield url
        finally:
            server.terminate()
    assert server.returncode in {0, -signal.SIGTERM}, server.returncode


def answers(url: str) -> bool:
    """Return whether the server is there."""
    try:
        with urllib.request.urlopen(url):
            return True
    except OSError:
        return False


def write_recording(path: Path) -> None:
    """Write the sentences after 3 s of silence: the browser plays before the page listens."""
    samples = np.concatenate([np.zeros(3 * SAMPLE_RATE), *read_blocks(SAMPLE, check=never_cancel)])
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(to_bytes(samples))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
