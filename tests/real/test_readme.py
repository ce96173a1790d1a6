"""README's Python blocks run, on real weights and real speech."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import fastwhisper

if TYPE_CHECKING:
    from collections.abc import Callable

README = Path(__file__).parent.parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def block_with(name: str) -> dict[str, Any]:
    """Run the one block that defines a name, and return its namespace."""
    (code,) = [
        block for block in BLOCKS if re.search(rf"^(async )?def {name}\(", block, re.MULTILINE)
    ]
    namespace: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), namespace)
    return namespace


def test_every_block_is_tested_here() -> None:
    """A new block needs a new test."""
    named = [
        re.search(r"^(?:async )?def (\w+)\(|^model = ", block, re.MULTILINE) for block in BLOCKS
    ]
    names = [match and match.group(1) for match in named]
    assert names == ["main", "lifespan", "app", None, "load_by_hand"]


@pytest.mark.slow
@pytest.mark.anyio
async def test_the_first_block(
    tiny_en_ct2: Path,
    sample: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Opening in the background, waiting and streaming prints the sample's words."""
    namespace = block_with("main")
    real_open = fastwhisper.open

    def open_tiny(_: str, **options: Any) -> Any:
        return real_open("tiny.en", **{**options, "quant": "float16"})

    monkeypatch.setattr(fastwhisper, "open", open_tiny)
    shown: list[int] = []
    await namespace["main"](lambda: shown.append(1), sample)
    assert shown == [1]
    assert "weather" in capsys.readouterr().out


@pytest.mark.anyio
async def test_the_lifespan(tiny_en_ct2: Path) -> None:
    """The asyncio app has its session while it lives."""

    class App:
        class state:  # noqa: N801  as FastAPI names it
            whisper: fastwhisper.Session

    async with block_with("lifespan")["lifespan"](App):
        await App.state.whisper.wait_until_ready(timeout=None)
        assert App.state.whisper.is_ready


@pytest.mark.parametrize("anyio_backend", ["trio"])
@pytest.mark.anyio
async def test_the_trio_app(tiny_en_ct2: Path) -> None:
    """The nursery's tasks share the session; leaving waits for them."""
    ready: list[bool] = []

    async def serve(session: fastwhisper.Session) -> None:
        await session.wait_until_ready(timeout=None)
        ready.append(session.is_ready)

    await block_with("app")["app"](serve)
    assert ready == [True]


def test_the_drop_in(
    tiny_en_directory: Callable[[str, str], Path],
) -> None:
    """One changed import gives the model."""
    (code,) = [block for block in BLOCKS if "import load_model" in block]
    directory = tiny_en_directory("float16", "weights.safetensors")
    namespace: dict[str, Any] = {}
    exec(code.replace('"mlx-community/whisper-tiny"', repr(str(directory))), namespace)
    assert namespace["model"].dims.n_vocab == 51864


def test_loading_by_hand(tiny_en_ct2: Path) -> None:
    """The pure functions compose to a whole module."""
    module = block_with("load_by_hand")["load_by_hand"](tiny_en_ct2)
    assert module.dims.n_audio_layer == 4
