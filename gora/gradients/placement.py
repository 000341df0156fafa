"""Where gradient sums live: on the device while they fit there, else in pinned host memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from gora.disk import size_text
from gora.errors import InputError
from gora.gradients.buffered import BufferedSums, buffered_bytes, micro_batches_to_buffer
from gora.gradients.host import HostSums, staging_bytes
from gora.gradients.sums import DeviceSums, Shape, SplitSums, Sums

Offload = Literal["auto", "none", "cpu"]
# Left free on a GPU for what an allocator cannot use: fragments, libraries' workspaces, longer micro-batches.
_SPARE_SHARE, _SPARE_BYTES = 0.03, 10**9


@dataclass(frozen=True)
class Operands:
    """What a micro-batch contributes to a sum: a product of tokens x out and tokens x in values.

    Attributes:
        tokens: tokens of the longest micro-batch, padding included.
        width: bytes of one value.
    """

    tokens: int
    width: int


@dataclass(frozen=True)
class Placement:
    """Which sums live where.

    Attributes:
        on_device: keys whose sums stay on the computing device.
        on_host: keys whose sums live in pinned host memory.
        shapes: (out, in) of every key.
        together: how many micro-batches are added at once to a sum in host memory.
    """

    on_device: tuple[str, ...]
    on_host: tuple[str, ...]
    shapes: Mapping[str, Shape]
    together: int = 1

    def make(self, device: torch.device) -> Sums:
        """Sums of zero, each in its place."""
        near = DeviceSums({key: self.shapes[key] for key in self.on_device}, device)
        if not self.on_host:
            return near
        far: Sums = HostSums({key: self.shapes[key] for key in self.on_host}, device)
        if self.together > 1:
            far = BufferedSums(far, self.together)
        return SplitSums(near, far) if self.on_device else far

    def facts(self) -> dict[str, Any]:
        """Bytes of sums on the device and in host memory, and micro-batches added at once to the latter."""
        near, far = (sum_bytes({key: self.shapes[key] for key in keys}) for keys in (self.on_device, self.on_host))
        return {"kind": "whole", "device_bytes": near, "host_bytes": far, "micro_batches_at_once": self.together}

    def text(self, device: torch.device) -> str:
        """`5.37 GB float32 on cuda:0`, or both places with their bytes."""
        near, far = (sum_bytes({key: self.shapes[key] for key in keys}) for keys in (self.on_device, self.on_host))
        parts = [f"{size_text(near)} float32 on {device}"] if near or not far else []
        parts += [f"{size_text(far)} float32 in pinned host memory"] if far else []
        parts += [f"added to every {self.together} micro-batches"] if far and self.together > 1 else []
        return ", ".join(parts)


def sum_bytes(shapes: Mapping[str, Shape]) -> int:
    """Bytes of float32 sums."""
    return 4 * sum(math.prod(shape) for shape in shapes.values())


def place(
    offload: Offload,
    shapes: Mapping[str, Shape],
    device: torch.device,
    operands: Operands,
    measure: Callable[[], int],
) -> Placement:
    """Decide where each sum lives.

    Args:
        offload: `none` keeps all on the device, `cpu` all in host memory with the least memory on the device; `auto`
            keeps on the device what fits there beside the activations, the first layers first.
        shapes: (out, in) of every key.
        device: what computes. On a CPU there is one place only.
        operands: size of a micro-batch.
        measure: runs a micro-batch without sums and returns the bytes of the device's memory that it leaves free.

    Raises:
        InputError: what has to lie somewhere does not fit there.
    """
    keys = tuple(shapes)
    if device.type != "cuda" or offload == "none":
        return Placement(keys, (), shapes)
    if offload == "cpu":
        return Placement((), keys, shapes)
    total = torch.cuda.get_device_properties(device).total_memory
    free = measure() - _SPARE_SHARE * total - _SPARE_BYTES
    return split(shapes, free, operands)


def split(shapes: Mapping[str, Shape], free: float, operands: Operands) -> Placement:
    """As many sums on the device as `free` bytes hold.

    Where not all fit, room is taken off first for the copies, and for as many micro-batches as are worth adding at
    once to what lies far away.
    """
    if sum_bytes(shapes) <= free:
        return Placement(tuple(shapes), (), shapes)
    free -= staging_bytes(shapes)
    together = micro_batches_to_buffer(operands.tokens)
    held = _held(shapes, operands, together)
    while together > 1 and sum(held.values()) > free:
        together //= 2
        held = _held(shapes, operands, together)
    free -= sum(held.values())
    near: list[str] = []
    for key, shape in shapes.items():
        more = sum_bytes({key: shape}) - held[key]
        if more <= free:
            near.append(key)
            free -= more
    return Placement(tuple(near), tuple(key for key in shapes if key not in set(near)), shapes, together)


def _held(shapes: Mapping[str, Shape], operands: Operands, together: int) -> dict[str, int]:
    return {key: buffered_bytes(shape, operands.tokens, together, operands.width) for key, shape in shapes.items()}


def refuse_what_cannot_fit(
    offload: Offload, weight_bytes: int, sums: int, *, device_bytes: int | None, host_bytes: int
) -> str:
    """Compare what a collection certainly needs with what there is, before anything is loaded.

    Args:
        offload: as the recipe says.
        weight_bytes: bytes of the base model's weights in each process.
        sums: bytes of the gradient sums in each process.
        device_bytes: memory of the accelerator; None where the CPU computes.
        host_bytes: host memory that is free for each process.

    Returns:
        The estimate in one line; activations come on top.

    Raises:
        InputError: with the numbers, and what to change.
    """
    needs = f"weights {size_text(weight_bytes)}, gradient sums {size_text(sums)}"
    advice = "Choose fewer targets (adapter.targets), or add --low-memory."
    if device_bytes is None:
        if weight_bytes + sums > host_bytes:
            raise InputError(f"{needs}: more than the {size_text(host_bytes)} of free memory. {advice}")
        return f"{needs} of {size_text(host_bytes)} free"
    on_device = weight_bytes + (sums if offload == "none" else 0)
    if on_device > device_bytes:
        instead = (
            "Set gora.offload: auto. " if weight_bytes < device_bytes else "Take a larger GPU or a smaller model. "
        )
        raise InputError(f"{needs}: more than the GPU's {size_text(device_bytes)}. {instead}{advice}")
    certainly_hosted = max(0, sums if offload == "cpu" else weight_bytes + sums - device_bytes)
    if offload != "none" and certainly_hosted > host_bytes:
        raise InputError(
            f"{needs}: at least {size_text(certainly_hosted)} have to lie in host memory, of which "
            f"{size_text(host_bytes)} are free. {advice}"
        )
    return f"{needs}; GPU {size_text(device_bytes)}, {size_text(host_bytes)} of host memory free"
