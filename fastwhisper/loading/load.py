"""Compose the functional core into a load. The only place where stages run side by side."""

from __future__ import annotations

import dataclasses
import logging
import time
import traceback
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from fastwhisper.engine import backend, tasks, threads
from fastwhisper.engine.threads import Lane
from fastwhisper.errors import QuantizedModelNotAvailableError
from fastwhisper.loading import stages
from fastwhisper.loading.progress import Meter
from fastwhisper.loading.readiness import LoadResult, Readiness
from fastwhisper.sources import find
from fastwhisper.sources.table import parse_quantization
from fastwhisper.values import LoadOptions, LoadStats, Span

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Coroutine, Iterator

    from anyio.abc import TaskGroup

    from fastwhisper.checkpoint.plan import Checkpoint
    from fastwhisper.loading.stages import Params
    from fastwhisper.sources.find import Location
    from fastwhisper.values import DtypeName, LoadOverrides, Progress, WhisperModel
    from fastwhisper.whisper.network import Whisper

__all__ = ["Load", "load"]

_logger = logging.getLogger("fastwhisper")


@tasks.uninterrupted
async def load(
    model: WhisperModel | str | os.PathLike[str],
    *,
    options: LoadOptions = LoadOptions.DEFAULT,
    task_group: TaskGroup | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    **overrides: Unpack[LoadOverrides],
) -> LoadResult:
    """Load a Whisper model. Always a checkpoint.

    Args:
        model: A name of the repository table, a directory, or a repository as `org/name`.
        options: How to load.
        task_group: Where a background load runs on; cancelling it closes the result.
        on_progress: Called on the event loop's thread; what it raises fails the load.
        **overrides: Single fields of `options`.

    Returns:
        The ready model; with `background=True` as soon as its files are located and
        inspected, and `result.ready.wait()` waits for the rest.

    Raises:
        ValueError: `background=True` without a task group.
        ModelNotFoundError: No model goes by this name.
        QuantizedModelNotAvailableError: The model is not to be had at this precision.
        HubUnavailableError: It is not on disk, and the Hub can't be reached.
        InvalidModelFormatError: A file of it is broken.
        TokenizationFailedError: The bundled tokenizer doesn't fit its vocabulary.
        BackendMissingError: MLX has no backend here.
    """
    job = await Load.prepare(model, options, on_progress, overrides)
    if job.options.background:
        if task_group is None:
            raise ValueError("background=True needs a task_group to go on in")
        result = await job.locate()
        task_group.start_soon(_finish_in_background, job, name=f"load {job.model_name}")
        return result
    result = await job.locate()
    await job.finish()
    job.submit_follow_up()
    return result


@tasks.uninterrupted
async def _finish_in_background(job: Load) -> None:
    await job.finish_in_background()
    if job.readiness.is_ready:
        job.submit_follow_up()


class Load:
    """One load, from its name to the ready module."""

    def __init__(
        self,
        model: WhisperModel | str | os.PathLike[str],
        options: LoadOptions,
        on_progress: Callable[[Progress], object] | None,
        *,
        quant_given: bool,
    ) -> None:
        self.model = model
        self.model_name = str(model)
        self.options = options
        self.readiness = Readiness(self.model_name)
        self.result: LoadResult | None = None
        self.dtype: DtypeName | None = options.dtype
        self._quant_given = quant_given
        self._meter = Meter(on_progress)
        self._checkpoint: Checkpoint | None = None
        self._begin_s = time.perf_counter()
        self._spans: list[Span] = []
        self._peak_bytes = 0

    @classmethod
    async def prepare(
        cls,
        model: WhisperModel | str | os.PathLike[str],
        options: LoadOptions,
        on_progress: Callable[[Progress], object] | None,
        overrides: LoadOverrides,
    ) -> Load:
        """Refuse what can be refused by form, before anything else is done."""
        tasks.hold_interrupts()
        options = dataclasses.replace(options, **overrides)
        # Without waiting: what imports the same later raises what this one may have met.
        threads.submit(stages.import_network, Lane.READ)
        await threads.run(partial(find.check_form, model, options.quant), Lane.FILES)
        return cls(model, options, on_progress, quant_given="quant" in overrides)

    async def locate(self) -> LoadResult:
        """Find the files and inspect them, so that the precision is known."""
        await self._report_while(self._locate)
        if self.result is None:
            raise RuntimeError("the location is unknown")
        return self.result

    async def _locate(self) -> None:
        self._meter.report("resolve", 0, None)
        with self._span("locate"):
            find_local = partial(find.find_local, self.model, self.options)
            location = await threads.run(find_local, Lane.FILES)
        if location is None:
            with self._span("download"):
                location = await self._download()
        with self._span("inspect"):
            inspect = partial(stages.inspect, location.path)
            self._checkpoint = await threads.run(inspect, Lane.FILES)
            stages.require_text(self._checkpoint)
        self.result = self._describe(location, self._checkpoint)
        stages.warn_of_lost_words(self.model_name, self._checkpoint)
        found_bytes = self._checkpoint.total_bytes
        self._meter.report("resolve", found_bytes, found_bytes)

    async def _download(self) -> Location:
        def on_bytes(done_bytes: int, total_bytes: int | None) -> None:
            self._meter.report("download", done_bytes, total_bytes)

        fetch = partial(
            find.fetch, self.model_name, self.options, on_bytes=on_bytes, check=threads.check
        )
        return await threads.run_abandonable(fetch)

    def _describe(self, location: Location, checkpoint: Checkpoint) -> LoadResult:
        actual = checkpoint.actual
        asked = parse_quantization(self.model_name, self.options.quant)
        requested = location.requested or (asked if self._quant_given else actual)
        reason = location.fallback_reason
        if actual != requested and reason is None:
            reason = f"{location.source} holds {actual}"
            # A directory or repository named itself can't be swapped for another.
            if location.requested is None or self.options.fallback is None:
                raise QuantizedModelNotAvailableError(self.model_name, requested, reason)
        return LoadResult(
            model_name=self.model_name,
            source=location.source,
            path=location.path,
            revision=location.revision,
            requested=requested,
            actual=actual,
            precision=checkpoint.precision,
            fallback_reason=reason,
            ready=self.readiness,
        )

    async def finish(self) -> None:
        """Do everything after inspection, side by side, and become ready."""
        checkpoint = self._inspected()
        params: Params = {}
        built: list[Whisper] = []
        try:
            await self._report_while(partial(self._finish, checkpoint, params, built))
        except BaseException as error:
            # The frames of what failed hold arrays that must not be used, nor outlive it.
            traceback.clear_frames(error.__traceback__)
            await threads.release(params, built)
            raise
        stats = LoadStats(
            bytes_read=checkpoint.total_bytes,
            tensors=len(params),
            spans=tuple(sorted(self._spans, key=lambda span: span.start_s)),
            peak_bytes=self._peak_bytes,
        )
        self.readiness.become_ready(built[0], stats)

    async def _finish(self, checkpoint: Checkpoint, params: Params, built: list[Whisper]) -> None:
        async def read(share: Checkpoint) -> None:
            params.update(await threads.run(partial(self._read, share), Lane.READ))

        async def confirm() -> None:
            with self._span("confirm"):
                await threads.run(partial(stages.confirm, checkpoint), Lane.FILES)

        async def build() -> None:
            built.append(await threads.run(partial(self._build, checkpoint), Lane.READ))

        async def warm_up() -> None:
            dtype = await threads.run(self._begin_warm_up, Lane.COMPUTE)
            if dtype is not None:
                mel = partial(stages.warm_mel, checkpoint)
                await tasks.side_by_side(
                    partial(warm_kernels, dtype), partial(self._warm, mel, Lane.READ)
                )
                self._meter.report("warm-up", 0, 0)

        async def warm_kernels(dtype: DtypeName) -> None:
            # MLX compiles in the compute lane alone: its table of what it compiled has no lock.
            convolution = partial(stages.warm_convolution, checkpoint, dtype)
            attention = partial(stages.warm_attention, checkpoint, dtype)
            products = partial(stages.warm_products, checkpoint, dtype)
            await tasks.side_by_side(
                partial(self._warm, convolution, Lane.READ),
                partial(self._warm, attention, Lane.READ),
                partial(self._warm, products, Lane.COMPUTE),
            )
            await self._warm(partial(stages.warm_network, checkpoint, dtype), Lane.COMPUTE)

        async def prepare_text() -> None:
            # Before MLX can tell the device, which takes 0.2 s; a GPU is warmed up with text.
            if self._may_warm_up:
                await self._prepare_text()

        self._meter.report("read", 0, checkpoint.total_bytes)
        readers = [partial(read, share) for share in checkpoint.split(threads.READERS)]
        await tasks.side_by_side(prepare_text, warm_up, build, confirm, *readers)
        with self._span("apply"):
            await threads.run(partial(stages.apply, checkpoint, built[0], params), Lane.COMPUTE)

    @tasks.uninterrupted
    async def finish_in_background(self) -> None:
        """Finish; a failure goes to those who wait, and never to the host's tasks."""
        try:
            if self.result is None:
                await self.locate()
            await self.finish()
        except Exception as error:  # noqa: BLE001  raised at every wait, see Readiness
            self.readiness.become_failed(error)
        except BaseException:
            self.readiness.close()
            raise

    @tasks.uninterrupted
    async def follow_up(self) -> None:
        """Do what the first text and the next load need; after ready, while the model is in use."""
        checkpoint = self._inspected()
        try:
            await self._prepare_text()
        except Exception:
            # Who transcribes meets it too.
            _logger.exception("the tokenizer of %s can't be built", self.model_name)
        if stages.is_slow_to_read(checkpoint):
            await self._keep_converted(checkpoint)

    def submit_follow_up(self) -> None:
        """Have the same done by nobody's leave: for a load that nothing closes."""
        checkpoint = self._inspected()
        threads.submit(partial(stages.prepare_text, checkpoint), Lane.FILES)
        if stages.is_slow_to_read(checkpoint):
            threads.submit(partial(stages.keep_converted, checkpoint, int), Lane.READ)

    def _inspected(self) -> Checkpoint:
        if self._checkpoint is None:
            raise RuntimeError("locate() comes first")
        return self._checkpoint

    async def _keep_converted(self, checkpoint: Checkpoint) -> None:
        count = partial(self._meter.add, "convert")

        async def convert() -> None:
            await threads.run(partial(stages.keep_converted, checkpoint, count), Lane.READ)

        self._meter.report("convert", 0, checkpoint.total_bytes)
        try:
            await self._report_while(convert)
        except Exception:
            # The model is ready and in use: what the callback raises comes too late for it.
            _logger.exception("the converted copy of %s was not kept", checkpoint.path)

    @property
    def _may_warm_up(self) -> bool:
        wanted = self.options.warm_up
        return backend.may_have_gpu() if wanted is None else wanted

    async def _prepare_text(self) -> None:
        prepare = partial(stages.prepare_text, self._inspected())
        with self._span("tokenizer"):
            await threads.run(prepare, Lane.FILES)

    async def _warm(self, stage: Callable[[], None], lane: Lane) -> None:
        def warm() -> None:
            with self._span("warm-up"):
                stage()

        await threads.run(warm, lane)

    async def _report_while(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do something while progress is reported; what the callback raises is raised."""
        meter = self._meter

        async def working() -> None:
            await work()
            meter.finish()

        await tasks.side_by_side(working, meter.pump)

    @contextmanager
    def _span(self, name: str) -> Iterator[None]:
        start_s = time.perf_counter() - self._begin_s
        try:
            yield
        finally:
            self._spans.append(Span(name, start_s, time.perf_counter() - self._begin_s))

    # What follows runs in the engine's threads.

    def _read(self, lane: Checkpoint) -> Params:
        with self._span("read"):
            dtype = self.dtype = stages.compute_dtype(self.dtype)
            return stages.read(lane, dtype=dtype, on_group=self._count)

    def _count(self, done_bytes: int) -> None:
        self._peak_bytes = max(self._peak_bytes, backend.import_mlx().get_active_memory())
        self._meter.add("read", done_bytes)

    def _build(self, checkpoint: Checkpoint) -> Whisper:
        with self._span("build"):
            return stages.build(checkpoint, stages.compute_dtype(self.dtype))

    def _begin_warm_up(self) -> DtypeName | None:
        wanted = self.options.warm_up
        if not (threads.computes_on_gpu() if wanted is None else wanted):
            return None
        self._meter.report("warm-up", 0, None)
        return stages.compute_dtype(self.dtype)
