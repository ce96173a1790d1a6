"""load(): the only place where the stages of a load run side by side.

Theory of operation. A `LoadTask` is driven by one coroutine, `run`, on one event loop. It starts
each stage in an engine thread and waits for it; stages never touch the task's fields, except for
counters that are made for threads (`Meter`, the list of spans). So there is no lock, and
cancelling `run` is safe at every `await`: each stage stops at its next check and is waited for,
then what was read is dropped. What follows after ready (the tokenizer on a CPU, the converted
copy) is queued on the engine and not awaited; whoever closes the load stops it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar, Unpack

import anyio

from fastwhisper.engine import backend, tasks, threads
from fastwhisper.engine.memory import find_huge_page_bytes
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
    from collections.abc import Awaitable, Callable, Iterator

    import mlx.core as mx
    from anyio.abc import TaskGroup, TaskStatus

    from fastwhisper.checkpoint.plan import Checkpoint
    from fastwhisper.engine.jobs import Job
    from fastwhisper.loading.compute import Compute
    from fastwhisper.loading.warm_up import WarmUp
    from fastwhisper.sources.find import Location
    from fastwhisper.values import DtypeName, LoadOverrides, Progress, WhisperModel
    from fastwhisper.whisper.network import Whisper

__all__ = ["LoadTask", "load"]

T = TypeVar("T")


@tasks.uninterrupted
async def load(
    model: WhisperModel | str | os.PathLike[str],
    *,
    options: LoadOptions = LoadOptions.DEFAULT,
    task_group: TaskGroup | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    **overrides: Unpack[LoadOverrides],
) -> LoadResult:
    """Load a Whisper model. Always a cancellation point.

    Args:
        model: A name of the repository table, a directory, or a repository as `org/name`.
        options: How to load.
        task_group: The task group of a background load. Cancelling it closes the result.
        on_progress: Called on the event loop's thread. An exception from it fails the load.
        **overrides: Single fields of `options`.

    Returns:
        The ready model. With `background=True` it is returned as soon as the files are located
        and inspected, and `result.ready.wait()` waits until the model is ready.

    Raises:
        ValueError: `background=True` without a task group.
        ModelNotFoundError: No model has this name.
        QuantizedModelNotAvailableError: No repository has this model at this precision.
        HubUnavailableError: The model is not on disk, and the Hub can't be reached.
        InvalidModelFormatError: A file of the model is broken.
        TokenizationFailedError: The bundled tokenizer does not fit the vocabulary.
        BackendMissingError: MLX has no backend on this machine.
        NotEnoughMemoryError: The weights exceed the limit of the container.
    """
    task = await LoadTask.prepare(model, options, on_progress, overrides)
    if not task.options.background:
        return await task.run()
    if task_group is None:
        raise ValueError("background=True needs a task_group, in which the load goes on")
    result: LoadResult = await task_group.start(task.run_in_background, name=f"load {model}")
    return result


class LoadTask:
    """One load, from a model's name to the ready network.

    Attributes:
        model_name: The name that was given.
        options: How to load.
        readiness: The state that can be waited for.
        result: What was located and inspected; None before.
        dtype: The dtype to compute in; None before it is chosen.
        built: The network, once it is built. `threads.release` empties the list.
        follow_up: What was queued on the engine after ready, for `threads.release`.
        compiling: Steps of the warm-up that compile kernels for longer than ready waits.
        admit: Called with the bytes of the weights before they are read; may wait or raise.
    """

    def __init__(
        self,
        model: WhisperModel | str | os.PathLike[str],
        options: LoadOptions,
        on_progress: Callable[[Progress], object] | None,
        *,
        quant_given: bool,
    ) -> None:
        self.model_name = str(model)
        self.options = options
        self.readiness = Readiness(self.model_name)
        self.result: LoadResult | None = None
        self.dtype: DtypeName | None = None
        self.built: list[Whisper] = []
        self.follow_up: list[tuple[Job[None], anyio.Event]] = []
        self.compiling: list[Job[None]] = []
        self.admit: Callable[[int], Awaitable[None]] | None = None
        self._model = model
        self._quant_given = quant_given
        self._meter = Meter(on_progress)
        self._begin_s = time.perf_counter()
        self._spans: list[Span] = []
        self._active_bytes, self._mapped = [0], [0]
        self._huge_page_bytes = self._lanes = 0
        self._located: tuple[LoadResult, Checkpoint]
        self._chosen: Compute
        self._params: dict[str, mx.array] = {}

    @classmethod
    async def prepare(
        cls,
        model: WhisperModel | str | os.PathLike[str],
        options: LoadOptions,
        on_progress: Callable[[Progress], object] | None,
        overrides: LoadOverrides,
    ) -> LoadTask:
        """Check the arguments, and return the task.

        Raises:
            ModelNotFoundError: No model can have this name.
            QuantizedModelNotAvailableError: There is no such precision.
            BackendMissingError: fastwhisper's own files are missing.
        """
        tasks.hold_interrupts()
        options = dataclasses.replace(options, **overrides)
        threads.import_ahead("fastwhisper.whisper.params")
        await threads.run(partial(stages.check_start, model, options), Lane.FILES)
        return cls(model, options, on_progress, quant_given="quant" in overrides)

    @tasks.uninterrupted
    async def run(
        self, *, owned: bool = False, task_status: TaskStatus[LoadResult] | None = None
    ) -> LoadResult:
        """Load the model: locate its files, finish, then queue the follow-up on the engine.

        Args:
            owned: Whether somebody closes this load and stops its follow-up, as a session does.
                Only then the callback is told of the follow-up's progress.
            task_status: Told the result as soon as the files are located and inspected.

        Returns:
            The result. Its model is ready.
        """
        try:
            await tasks.side_by_side(partial(self._load, task_status), self._meter.pump)
        except BaseException:
            await self.release(self._params)
            raise
        result, checkpoint = self._located
        stats = LoadStats(
            bytes_read=checkpoint.total_bytes - sum(self._mapped),
            bytes_mapped=sum(self._mapped),
            tensors=len(self._params),
            spans=tuple(sorted(self._spans, key=lambda span: span.start_s)),
            peak_bytes=max(self._active_bytes),
            huge_page_bytes=max(0, self._huge_page_bytes),
            lanes=self._lanes,
            kernels_pending=len(self.compiling),
        )
        self._params.clear()
        self.readiness.become_ready(self.built[0], stats)
        self._queue_follow_up(checkpoint, owned=owned)
        return result

    async def release(self, *containers: dict[str, mx.array]) -> None:
        """Stop what still runs and return the memory. A kernel that compiles is not waited for."""
        for job in self.compiling:
            job.abandon()
        await threads.release(*containers, self.built, jobs=self.follow_up)

    @tasks.uninterrupted
    async def run_in_background(
        self,
        *,
        owned: bool = False,
        task_status: TaskStatus[LoadResult] | None = None,
    ) -> None:
        """Run. A failure goes to the tasks that wait for readiness, not to the task group.

        With a task status, a failure before the files are located is raised: `start` raises it.
        """
        try:
            await self.run(owned=owned, task_status=task_status)
        except Exception as error:
            if self.result is None and task_status is not None:
                raise
            self.readiness.become_failed(error)
        except BaseException:
            self.readiness.close()
            raise

    async def _load(self, task_status: TaskStatus[LoadResult] | None) -> None:
        result, checkpoint = self._located = await self._locate()
        # So that what the callback raises about locating is raised before anybody has the result.
        self._meter.report_latest()
        self.result = result
        if task_status is not None:
            task_status.started(result)
        await self._finish(checkpoint)
        self._meter.finish()

    async def _locate(self) -> tuple[LoadResult, Checkpoint]:
        """Find the files, download them if needed, and inspect them: the precision is known."""
        self._meter.report("resolve", 0, None)
        look = partial(find.find_local, self._model, self.options)
        location = await self._run_stage("locate", look, Lane.FILES)
        if location is None:
            with self._span("download"):
                location = await self._download()
        inspect = partial(stages.inspect, location.path)
        checkpoint = await self._run_stage("inspect", inspect, Lane.FILES)
        stages.check_text(checkpoint)
        result = self._describe(location, checkpoint)
        stages.warn_of_word_errors(self.model_name, checkpoint)
        self._meter.report("resolve", checkpoint.total_bytes, checkpoint.total_bytes)
        return result, checkpoint

    async def _download(self) -> Location:
        on_bytes = partial(self._meter.report, "download")
        fetch = partial(
            find.fetch, self.model_name, self.options, on_bytes=on_bytes, check=threads.check
        )
        return await threads.run_abandonable(fetch)

    def _describe(self, location: Location, checkpoint: Checkpoint) -> LoadResult:
        """Compare the precision that was found with the one that was requested."""
        actual = checkpoint.actual
        given = parse_quantization(self.model_name, self.options.quant)
        requested = location.requested or (given if self._quant_given else actual)
        reason = location.fallback_reason
        if actual != requested and reason is None:
            reason = f"{location.source} holds {actual}"
            # A directory or a repository that was named itself has no other precision.
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

    async def _finish(self, checkpoint: Checkpoint) -> None:
        """Read, build, warm up and confirm side by side; then put the weights into the network."""
        self._meter.report("read", 0, checkpoint.total_bytes)
        await tasks.side_by_side(
            partial(self._compute, checkpoint),
            partial(self._run_stage, "confirm", partial(stages.confirm, checkpoint), Lane.FILES),
            partial(self._prepare_text, checkpoint),
        )

    async def _prepare_text(self, checkpoint: Checkpoint) -> None:
        """Prepare the tokenizer if a GPU may be warmed up. On a CPU this is a follow-up.

        It starts before the device is known, which takes 0.2 s with CUDA.
        """
        wanted = self.options.warm_up
        if backend.may_have_gpu() if wanted is None else wanted:
            await self._run_stage("tokenizer", partial(stages.prepare_text, checkpoint), Lane.FILES)

    async def _compute(self, checkpoint: Checkpoint) -> None:
        prepare = partial(_prepare, checkpoint, self.options)
        compute, warm_up, before_bytes = await threads.run(prepare, Lane.READ)
        self._chosen, self.dtype = compute, compute.dtype
        if self.admit is not None:
            await self.admit(checkpoint.count_bytes(compute.dtype))
        shares = checkpoint.split(threads.READERS)
        self._lanes = len(shares)
        await tasks.side_by_side(
            partial(self._warm_up, warm_up),
            partial(self._build, compute),
            *(partial(self._read, compute, share) for share in shares),
        )
        # Not in the compute lane, where the warm-up may still compile.
        found_bytes = await self._run_stage("apply", partial(self._apply, compute), Lane.READ)
        self._huge_page_bytes = found_bytes - before_bytes

    async def _read(self, compute: Compute, share: Checkpoint) -> None:
        read = partial(compute.read, share, on_group=self._count, on_mapped=self._mapped.append)
        self._params.update(await self._run_stage("read", read, Lane.READ))

    async def _build(self, compute: Compute) -> None:
        self.built.append(await self._run_stage("build", compute.build, Lane.READ))

    def _apply(self, compute: Compute) -> int:
        # Read from the task, so that no frame of a failure keeps the network.
        compute.apply(self.built[0], self._params)
        return find_huge_page_bytes()

    async def _warm_up(self, warm_up: WarmUp | None) -> None:
        if warm_up is not None:
            self._meter.report("warm-up", 0, None)
            self.compiling = await warm_up.run(partial(self._run_timed, "warm-up"))
            self._meter.report("warm-up", 0, 0)

    def _queue_follow_up(self, checkpoint: Checkpoint, *, owned: bool) -> None:
        """Queue what a session's first transcription and the next load need; wait for none."""
        post = tasks.on_this_loop()
        if owned:  # only a session transcribes
            prepare = partial(stages.prepare_text, checkpoint)
            failure = f"the tokenizer of {checkpoint.path} can't be prepared"
            # At the loop's next turn: imports hold Python, and the owner is told first.
            post(partial(self._queue, prepare, failure, Lane.FILES, anyio.Event(), post))
        if not checkpoint.is_safetensors:
            count: Callable[[int], object] = int
            if owned:
                self._meter.report("convert", 0, checkpoint.total_bytes)
                count = partial(self._meter.add_and_post, "convert", post)
            convert = partial(self._chosen.keep_converted, on_group=count)
            failure = f"the converted copy of {checkpoint.path} was not kept"
            queue = partial(self._queue, convert, failure, Lane.READ, anyio.Event(), post)
            if owned:
                post(queue)
            else:
                queue()

    def _queue(
        self,
        stage: Callable[[], None],
        failure: str,
        lane: Lane,
        ended: anyio.Event,
        post: Callable[[Callable[[], object]], object],
    ) -> None:
        """Queue a stage that follows, unless the load was closed meanwhile."""
        if not self.readiness.is_ready:
            return
        work = partial(stages.run_logged, stage, failure)
        with contextlib.suppress(SystemExit):  # the interpreter exits: nothing follows any more
            job = threads.submit(work, lane, notify=lambda: post(ended.set))
            self.follow_up.append((job, ended))

    async def _run_stage(self, name: str, stage: Callable[[], T], lane: Lane) -> T:
        """Run a stage in an engine thread, and record its span there."""
        return await threads.run(partial(self._run_timed, name, stage), lane)

    def _run_timed(self, name: str, stage: Callable[[], T]) -> T:
        with self._span(name):
            return stage()

    @contextlib.contextmanager
    def _span(self, name: str) -> Iterator[None]:
        start_s = time.perf_counter() - self._begin_s
        try:
            yield
        finally:
            self._spans.append(Span(name, start_s, time.perf_counter() - self._begin_s))

    def _count(self, done_bytes: int) -> None:
        """Count bytes that were read, and note the memory in use. Called in engine threads."""
        self._active_bytes.append(backend.import_mlx().get_active_memory())
        self._meter.add("read", done_bytes)


def _prepare(checkpoint: Checkpoint, options: LoadOptions) -> tuple[Compute, WarmUp | None, int]:
    """Choose how to compute, and find the memory in huge pages before anything is read."""
    backend.import_mlx()
    from fastwhisper.loading.compute import Compute  # noqa: PLC0415  imports MLX

    chosen = Compute.choose(checkpoint, options)
    warm_up: WarmUp | None = None
    if chosen.device != "cpu" if options.warm_up is None else options.warm_up:
        from fastwhisper.loading.warm_up import WarmUp  # noqa: PLC0415  6 ms, not for a CPU

        warm_up = WarmUp(chosen)
    return chosen, warm_up, find_huge_page_bytes()
