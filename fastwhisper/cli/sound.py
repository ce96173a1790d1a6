"""Where `fastwhisper listen` takes its sound from: stdin or the microphone."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel

from fastwhisper.cli.streams import print_note
from fastwhisper.engine import tasks
from fastwhisper.errors import AudioError

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncGenerator, AsyncIterable

__all__ = ["STDIN", "open_sound"]

STDIN: Final = "-"
_SAMPLE_RATE: Final = 16_000
_BLOCK: Final = _SAMPLE_RATE // 10
_KEPT_BLOCKS: Final = 10 * 600
"""Ten minutes, 19 MB: a microphone can't wait while the model is downloaded and opened."""

_READ_BYTES: Final = 1 << 16
_FILES: Final = {b"RIFF": "a WAV file", b"OggS": "an Ogg file", b"fLaC": "a FLAC file"}
"""First bytes of what is not bare samples."""

_ADVICE: Final = (
    "pipe bare samples: ffmpeg -i FILE -f s16le -ar 16000 -ac 1 - | fastwhisper listen -"
)


@asynccontextmanager
async def open_sound(options: argparse.Namespace) -> AsyncGenerator[AsyncIterable[bytes]]:
    """Open stdin or the microphone; its sound comes from the begin of the block on.

    Raises:
        AudioError: There is none, or it can't be used.
    """
    if options.source == STDIN:
        yield _read_stdin()
        return
    async with _record(options.device) as chunks:
        yield chunks


async def _read_stdin() -> AsyncGenerator[bytes]:
    """Yield what comes on stdin, as soon as it comes."""
    if sys.stdin is None:
        raise AudioError(STDIN, f"stdin is closed; {_ADVICE}")
    if sys.stdin.isatty():
        raise AudioError(STDIN, f"stdin is a terminal; {_ADVICE}")
    descriptor = sys.stdin.fileno()
    can_wait = True
    begin = b""
    while True:
        if can_wait:
            try:
                await anyio.wait_readable(descriptor)
            except PermissionError:  # a regular file: it never lets anybody wait
                can_wait = False
        await anyio.lowlevel.checkpoint()
        data = os.read(descriptor, _READ_BYTES)
        if not data:
            return
        if len(begin) < 4:  # noqa: PLR2004  as long as the keys of _FILES
            begin += data[:4]
            if (kind := _FILES.get(begin[:4])) is not None:
                raise AudioError(STDIN, f"{kind}; {_ADVICE}")
        yield data


@asynccontextmanager
async def _record(device: str | None) -> AsyncGenerator[AsyncIterable[bytes]]:
    """Record the microphone, in blocks of 0.1 s."""
    try:
        # Not every machine has it: the extra `mic`.
        import sounddevice  # noqa: PLC0415
    except ImportError as error:
        raise AudioError(
            "microphone", "it needs the package sounddevice: pip install 'fastwhisper[mic]'"
        ) from error
    except OSError as error:  # sounddevice's binding found no library
        raise AudioError("microphone", f"{error}; install PortAudio (libportaudio2)") from error
    post = tasks.on_this_loop()
    send, receive = anyio.create_memory_object_stream[bytes](_KEPT_BLOCKS)
    is_lost = False

    def put(block: bytes) -> None:
        nonlocal is_lost
        try:
            send.send_nowait(block)
        except anyio.WouldBlock:
            if not is_lost:
                print_note("sound is lost: this machine is too slow for the model")
            is_lost = True
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # nobody listens any more

    with send, receive, ExitStack() as stack:
        try:
            # It calls from a thread of its own, whose end the event loop waits for.
            stream = sounddevice.RawInputStream(
                samplerate=_SAMPLE_RATE,
                blocksize=_BLOCK,
                channels=1,
                dtype="int16",
                device=int(device) if device and device.isdecimal() else device,
                callback=lambda block, *_: post(partial(put, bytes(block))),
                finished_callback=lambda: post(send.close),  # also where it is pulled out
            )
            stack.enter_context(stream)
        except (sounddevice.PortAudioError, ValueError) as error:  # ValueError: no such name
            raise AudioError("microphone", f"{error}; fastwhisper listen - reads stdin") from error
        yield receive
