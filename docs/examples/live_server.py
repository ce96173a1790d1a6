"""Text while people speak, in a browser.

    pip install 'fastwhisper[cpu]' fastapi uvicorn websockets
    python live_server.py tiny.en

Then open http://127.0.0.1:8000. The page sends what the microphone hears as 16-bit samples at
16 kHz, and shows the text. Only this machine can reach the server, and only its own page may use
it: a page of somebody else has another Origin.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI, WebSocket
from fastapi.responses import FileResponse
from starlette.websockets import WebSocketDisconnect, WebSocketState

import fastwhisper

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

HOST = "127.0.0.1"
PAGE = Path(__file__).with_name("live_page.html")
MAX_MESSAGE_BYTES = 64_000
"""Two seconds of sound. The page sends an eighth of a second at a time."""

POLICY_VIOLATION = 1008


def build_app(model: str, port: int) -> FastAPI:
    """Build the app. It serves its page at once, while the model loads."""
    origins = {f"http://{host}:{port}" for host in (HOST, "localhost")}

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with fastwhisper.open(model, background=True) as session:
            app.state.session = session
            yield

    async def show_page() -> FileResponse:
        return FileResponse(PAGE)

    async def listen(socket: WebSocket) -> None:
        if socket.headers.get("origin") not in origins:
            await socket.close(POLICY_VIOLATION)
            return
        await socket.accept()
        session: fastwhisper.Session = socket.app.state.session
        with contextlib.suppress(WebSocketDisconnect):  # the page was closed meanwhile
            async with contextlib.aclosing(session.listen(receive(socket))) as stream:
                async for heard in stream:
                    if socket.client_state is not WebSocketState.CONNECTED:
                        return  # the page was closed: nobody reads the rest
                    await socket.send_json({"text": heard.text, "final": heard.is_final})
            if socket.client_state is WebSocketState.CONNECTED:
                await socket.close()

    app = FastAPI(lifespan=lifespan)
    app.add_api_route("/", show_page, response_class=FileResponse)
    app.add_api_websocket_route("/listen", listen)
    return app


async def receive(socket: WebSocket) -> AsyncGenerator[bytes]:
    """Yield the sound that comes. A text message ends it, and so does a page that is closed."""
    while True:
        message = await socket.receive()
        data = message.get("bytes")
        if not data:
            return
        yield data


def main() -> None:
    """Serve on this machine alone: `python live_server.py [MODEL [PORT]]`."""
    model = sys.argv[1] if len(sys.argv) > 1 else "tiny.en"
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 8000  # noqa: PLR2004
    # A larger message ends the connection before it is kept.
    uvicorn.run(build_app(model, port), host=HOST, port=port, ws_max_size=MAX_MESSAGE_BYTES)


if __name__ == "__main__":
    main()
