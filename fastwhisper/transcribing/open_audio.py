"""One audio that is transcribed: its parts are read, decoded in batches, and kept as windows.

`read_part` and `decode` run in engine threads, side by side, each in one at a time. An exception
from `check` ends a call and loses nothing.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Self

from fastwhisper.transcribing.batches import Batches, decode_together
from fastwhisper.transcribing.parts import PartReader
from fastwhisper.transcribing.windows import summarize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastwhisper.transcribing.samples import AudioSource
    from fastwhisper.transcribing.windows import Window
    from fastwhisper.values import Segment, Transcription
    from fastwhisper.whisper.network import Whisper
    from fastwhisper.whisper.options import DecodeSettings

__all__ = ["OpenAudio"]


class OpenAudio:
    """An audio, and what is known of it.

    Attributes:
        windows: Its windows that are decoded, in order.
        segments: Their segments that nobody has taken.
        duration_s: Its length in seconds, as far as it is read.
        failure: Why it can't be read any further, until somebody has raised it.
        has_ended: Whether all is decoded.
    """

    def __init__(
        self,
        model: Whisper,
        audio: AudioSource,
        settings: DecodeSettings,
        *,
        fp16: bool,
        check: Callable[[], None],
    ) -> None:
        """Remember the audio. It is opened when its first part is read.

        Args:
            model: The network. All its arrays are evaluated.
            audio: A path, a binary file object, or mono samples at 16 kHz: shape (samples,),
                float32, NumPy or MLX.
            settings: How to decode.
            fp16: As for `Batches`.
            check: Called between blocks, before each token and each pass of the encoder; may raise
                to cancel.
        """
        self.windows: list[Window] = []
        self.segments: deque[Segment] = deque()
        self.duration_s = 0.0
        self.failure: Exception | None = None
        self.has_ended = False
        self._work: tuple[Batches, PartReader] | None = (
            Batches(model, settings, fp16=fp16, check=check),
            PartReader(audio, settings, n_mels=model.dims.n_mels, check=check),
        )

    @property
    def batches(self) -> Batches | None:
        """The work on its parts; None once it is closed."""
        return self._work[0] if self._work else None

    @property
    def waiting(self) -> int:
        """Number of parts that are read and not decoded to their end."""
        return len(self._work[0]) if self._work else 0

    @property
    def is_read(self) -> bool:
        """Whether all its parts are read."""
        return self._work is None or self._work[1].is_done

    @property
    def may_read(self) -> bool:
        """Whether a part may be read."""
        return not self.is_read and self.failure is None

    @property
    def done_s(self) -> float:
        """End of the audio that is decoded, in seconds; at the end the length of the audio."""
        if self.has_ended:
            return self.duration_s
        return self.windows[-1].end_s if self.windows else 0.0

    def summarize(self) -> Transcription | None:
        """Return all that is decoded; None before the first window."""
        return summarize(self.windows, duration_s=self.duration_s) if self.windows else None

    def read_part(self) -> int:
        """Read a part and keep it at once; return 1, or 0 if there is none.

        An error is kept: the parts before it come first.
        """
        if self._work is None:
            return 0
        batches, reader = self._work
        try:
            parts = reader.read(1)
        except Exception as error:  # noqa: BLE001  whoever waits for the audio raises it
            self.failure = error
            return 0
        for part in parts:
            batches.add(part)
        self.duration_s = reader.duration_s
        return len(parts)

    def decode(self, others: Sequence[Self], *, are_read: Sequence[bool]) -> None:
        """Decode a batch of this audio and others, and keep its windows.

        Args:
            others: They follow this one, and share its network and settings.
            are_read: Of this one and of each other, whether all was read before this call.
        """
        open_audios = [
            (audio, batches, is_read)
            for audio, is_read in zip([self, *others], are_read, strict=True)
            if (batches := audio.batches) is not None
        ]
        found = decode_together([batches for _, batches, _ in open_audios])
        for (audio, batches, is_read), windows in zip(open_audios, found, strict=True):
            audio.keep(windows)
            if is_read and batches.is_idle:
                audio.keep(batches.finish())
                audio.has_ended = True
                audio.close()  # so that the mel is freed

    def keep(self, windows: Sequence[Window]) -> None:
        """Keep windows that are decoded."""
        self.windows += windows
        self.segments.extend(segment for window in windows for segment in window.segments)

    def close(self) -> None:
        """Drop the network and what was read. What is decoded stays."""
        self._work = None
