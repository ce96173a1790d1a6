"""The stages of a load that compute with MLX: read, build, apply, convert.

This module is imported in an engine thread, after the backend. Every method runs in one.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import mlx.core as mx

from fastwhisper.checkpoint.inspection import inspect_checkpoint
from fastwhisper.checkpoint.read import read_shards
from fastwhisper.engine import backend, blocks, memory, threads
from fastwhisper.errors import NotEnoughMemoryError
from fastwhisper.loading import stages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mlx import nn

    from fastwhisper.checkpoint.plan import Checkpoint
    from fastwhisper.values import DtypeName, LoadOptions
    from fastwhisper.whisper.layers import Device
    from fastwhisper.whisper.network import Whisper

__all__ = ["Compute", "choose_dtype", "find_device"]


@dataclass(frozen=True, slots=True)
class Compute:
    """The stages of one load, with the dtype and the device that were chosen once.

    Attributes:
        checkpoint: The checkpoint as inspected.
        dtype: The dtype of floating parameters; None keeps the file's, for `load_model`.
        device: What MLX computes on.
        memory_map: Whether weights are mapped where that is possible.
    """

    checkpoint: Checkpoint
    dtype: DtypeName | None
    device: Device
    memory_map: bool = False

    @classmethod
    def choose(cls, checkpoint: Checkpoint, options: LoadOptions) -> Self:
        """Choose the device, and the dtype if none is given.

        Raises:
            NotEnoughMemoryError: The weights exceed the limit of the container.
            BackendMissingError: Weights shall be mapped, and MLX can't do that.
        """
        device = find_device()
        dtype = options.dtype or choose_dtype(device)
        chosen = cls(checkpoint, dtype, device, options.memory_map)
        if options.memory_map:
            from fastwhisper.engine.pages import check_support  # noqa: PLC0415  rarely needed

            check_support(device)
        chosen.check_memory()
        return chosen

    @property
    def network_dtype(self) -> DtypeName:
        """The dtype of arrays that the network makes itself."""
        return self.dtype or "float32"

    def check_memory(self) -> None:
        """Check that the weights fit into the memory of the container, if it has a limit.

        Raises:
            NotEnoughMemoryError: They do not: the system would kill this process.
        """
        # A GPU has memory of its own, or the limits of a Mac, which are no control groups.
        limit_bytes = memory.find_limit_bytes() if find_device() == "cpu" else None
        if limit_bytes is None:
            return
        needed_bytes = self.checkpoint.count_bytes(self.dtype) + memory.find_resident_bytes()
        if needed_bytes > limit_bytes:
            raise NotEnoughMemoryError(str(self.checkpoint.path), needed_bytes, limit_bytes)

    def read(
        self,
        share: Checkpoint,
        *,
        on_group: Callable[[int], object] = int,
        on_mapped: Callable[[int], object] = int,
    ) -> dict[str, mx.array]:
        """Map tensors, or read them group by group and cast them. All are evaluated.

        Args:
            share: A share of the checkpoint.
            on_group: Called with the bytes of each group that was mapped or read.
            on_mapped: Called with the bytes that were mapped.

        Returns:
            The arrays by their MLX names.

        Raises:
            InvalidModelFormatError: A file has changed since it was inspected.
        """
        arrays: dict[str, mx.array] = {}
        stored_bytes = {plan.name: plan.size_bytes for plan in share.tensors}
        if self.memory_map:
            from fastwhisper.checkpoint.mapping import map_tensors  # noqa: PLC0415  rarely needed
            from fastwhisper.engine import pages  # noqa: PLC0415  rarely needed

            arrays = map_tensors(share, dtype=self.dtype, pages=pages)
            share = share.leave_out(arrays)
            mapped_bytes = sum(stored_bytes[name] for name in arrays)
            on_mapped(mapped_bytes)
            on_group(mapped_bytes)
        for group in read_shards(share, dtype=self.dtype, allocate=self._allocate):
            threads.check()
            arrays |= group
            on_group(sum(stored_bytes[name] for name in group))
        return arrays

    @property
    def _allocate(self) -> Callable[[int], mx.array] | None:
        """What gives memory for blocks; None lets MLX read, which a GPU and a Mac do best.

        A program that uses MLX itself could call `mx.clear_cache` during an allocation, and hang.
        """
        is_linux_cpu = sys.platform == "linux" and find_device() == "cpu"
        return blocks.allocate if is_linux_cpu and not backend.is_mlx_shared() else None

    def build(self) -> Whisper:
        """Build the network without weights."""
        # Imported beside the read, which need not wait for it: 40 ms.
        from fastwhisper.whisper.params import build_module  # noqa: PLC0415

        return build_module(self.checkpoint, dtype=self.network_dtype, device=self.device)

    def apply(self, module: nn.Module, params: Mapping[str, mx.array]) -> None:
        """Put the weights into the network.

        Raises:
            InvalidModelFormatError: They are not the parameters of the network.
        """
        from fastwhisper.whisper.params import apply_params  # noqa: PLC0415  see build

        apply_params(module, params, path=self.checkpoint.path)

    def keep_converted(self, *, on_group: Callable[[int], object] = int) -> None:
        """Write a checkpoint that is slow to read to the cache, for the next load.

        Args:
            on_group: Called with the bytes of each group that was written.
        """
        from fastwhisper.sources import converted  # noqa: PLC0415  see stages.inspect

        groups = self._read_stored(on_group)
        copy = converted.store(self.checkpoint, groups, check=threads.check)
        if copy is not None:
            # Confirmed now, so that the next load need not import safetensors.
            stages.confirm(inspect_checkpoint(copy, confirm=False))

    def _read_stored(self, on_group: Callable[[int], object]) -> Iterator[Mapping[str, mx.array]]:
        for group in read_shards(self.checkpoint):
            yield group
            on_group(sum(array.nbytes for array in group.values()))


def choose_dtype(device: Device) -> DtypeName:
    """Return the dtype to compute in: float16 on a GPU, float32 on a CPU.

    On a CPU MLX multiplies quantized matrices about 70 times faster in float32.
    """
    return "float32" if device == "cpu" else "float16"


def find_device() -> Device:
    """Return what MLX computes on."""
    if mx.default_device().type != mx.gpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"
