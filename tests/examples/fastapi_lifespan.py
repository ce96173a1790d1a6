"""An asyncio app in FastAPI's form: it answers at once, and transcribes as soon as it can."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import fastwhisper

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MODEL = "tiny.en"


@contextlib.asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    """Hold one model open for as long as the app lives: `FastAPI(lifespan=lifespan)`."""
    async with fastwhisper.open(MODEL, background=True) as session:
        app.state.whisper = session
        yield


async def health(app: Any) -> dict[str, bool]:
    """Answer `GET /health`, also while the model loads."""
    return {"ready": app.state.whisper.is_ready}


async def transcribe(app: Any, upload: Any) -> dict[str, str]:
    """Answer `POST /transcribe`; `upload.file` is the file of an `UploadFile`."""
    session: fastwhisper.Session = app.state.whisper
    await session.wait_until_ready(timeout=30)
    result = await session.transcribe(upload.file, temperature=0)
    return {"language": result.language, "text": result.text}
