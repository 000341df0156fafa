"""The processes of a run: which one this is, and how they talk to each other.

Only numbers, JSON and tensors travel between processes.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
# The processes wait for each other while one of them writes large files; a dead one is noticed by its connections.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class World:
    """This process among all of a run.

    Attributes:
        rank: which one this is, from 0.
        size: how many there are.
        local_rank: which one on this host.
        local_size: how many on this host.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            self.total(0)

    def total(self, value: float) -> float:
        """Sum of a number over all processes, exact for whole numbers up to 2^53."""
        if self.size == 1:
            return value
        sums = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(sums)
        return float(sums.item())

    def most(self, value: int) -> int:
        """The greatest of a whole number over all processes."""
        return max(self.gather(value))

    def any(self, value: bool) -> bool:
        """Whether it holds in any process."""
        return self.total(float(value)) > 0

    def gather(self, value: Any) -> list[Any]:
        """What each process says, in order of rank; anything JSON can say, bit for bit."""
        if self.size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([text.numel()]))
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: text.numel()] = text
        texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(texts, padded)
        return [json.loads(bytes(each[: int(size)].tolist()).decode()) for each, size in zip(texts, sizes, strict=True)]

    def from_main(self, make: Callable[[], T]) -> T:
        """What process 0 makes, told to all."""
        told: T = self.gather(make() if self.main else None)[0]
        return told

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """A tensor of process `source`, filled in place elsewhere."""
        if self.size > 1:
            dist.broadcast(tensor, source)
        return tensor

    def sum_everywhere(self, tensor: Tensor) -> None:
        """Sum a tensor over all processes, in place, in every one."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def sum_to(self, owner: int, tensor: Tensor) -> None:
        """Sum a tensor over all processes, in place, at process `owner`; elsewhere its values are lost."""
        if self.size > 1:
            dist.reduce(tensor, owner)


@cache
def join(*, alone_too: bool = False) -> World:
    """Join the processes that a launcher started; the first call decides.

    Args:
        alone_too: make a group of one process as well, for an engine that asks for a group.
    """
    world = find()
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)
    else:
        # DeepSpeed looks for an accelerator otherwise, and says at length that it finds none.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if (world.size > 1 or alone_too) and not dist.is_initialized():
        _complete_environment(world)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=_PATIENCE)
        if torch.cuda.is_available():
            # GPUs that cannot reach each other are better noticed here than after the first hour.
            dist.all_reduce(torch.zeros(1, device="cuda"))
    return world


def find() -> World:
    """This process as its launcher's environment describes it: torchrun, accelerate, deepspeed, or srun."""
    number = _number
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        rank, size = number("RANK"), number("WORLD_SIZE")
        return World(rank, size, number("LOCAL_RANK"), number("LOCAL_WORLD_SIZE", size))
    if "SLURM_STEP_ID" in os.environ and number("SLURM_NTASKS", 1) > 1:
        size = number("SLURM_NTASKS")
        local_size = int(os.environ.get("SLURM_STEP_TASKS_PER_NODE", str(size)).partition("(")[0].partition(",")[0])
        return World(number("SLURM_PROCID"), size, number("SLURM_LOCALID"), local_size)
    return World()


def _number(name: str, otherwise: int = 0) -> int:
    return int(os.environ.get(name) or otherwise)


def _complete_environment(world: World) -> None:
    """The variables by which torch, Accelerate and DeepSpeed find each other, where the launcher has not set them."""
    known = {
        "RANK": world.rank,
        "WORLD_SIZE": world.size,
        "LOCAL_RANK": world.local_rank,
        "LOCAL_WORLD_SIZE": world.local_size,
        "MASTER_ADDR": _first_host(),
        "MASTER_PORT": _port(world),
    }
    for name, value in known.items():
        os.environ.setdefault(name, str(value))


def _first_host() -> str:
    nodes = os.environ.get("SLURM_STEP_NODELIST", "localhost")
    found = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes


def _port(world: World) -> int:
    if world.size > 1:
        return 29500 + _number("SLURM_JOB_ID") % 1000
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])
