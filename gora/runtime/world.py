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

from gora.errors import GoraError, InputError
from gora.runtime.meeting import meet
from gora.runtime.waiting import PATIENCE, Wait

T = TypeVar("T")
# The processes wait for each other while one of them writes large files; a dead one is noticed by its connections.
_PATIENCE = timedelta(hours=2)
_NOT_A_LAUNCH = "no launcher sets this in the environment; unset it to run in one process."
SRUN_TASKS = "SLURM_STEP_NUM_TASKS"
"""The variable in which srun says how many tasks it has started."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among all of a run.

    Attributes:
        index: which one this is, from 0.
        size: how many there are.
        local_index: which one on this host.
        local_size: how many on this host.
    """

    index: int = 0
    size: int = 1
    local_index: int = 0
    local_size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes and prints."""
        return self.index == 0

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
        """What each process says, in order of their index; anything JSON can say, bit for bit."""
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

    def refuse_together(self, check: Callable[[], object] | None) -> None:
        """Run a check in process 0; what it refuses, every process refuses.

        Args:
            check: raises an InputError or not; not called elsewhere than in process 0.

        Raises:
            InputError: as process 0's check.
        """
        refusal: InputError | None = None
        if self.main and check is not None:
            try:
                check()
            except InputError as error:
                refusal = error
        told = self.from_main(lambda: {"line": refusal.headline, "problems": refusal.problems} if refusal else None)
        if told is not None:
            raise refusal or InputError(str(told["line"]), told["problems"])

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
        # srun may show each task a single GPU, which is then its first.
        torch.cuda.set_device(world.local_index % torch.cuda.device_count())
    else:
        # DeepSpeed looks for an accelerator otherwise, and says at length that it finds none.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if (world.size > 1 or alone_too) and not dist.is_initialized():
        _complete_environment(world)
        _connect(world, meet(world.index, world.size))
    if not dist.is_initialized():
        # Under `torchrun --nproc-per-node 1` there is one process, which Accelerate would take for one of several.
        os.environ.pop("LOCAL_RANK", None)
    return world


def _connect(world: World, store: dist.Store) -> None:
    """Make the group of processes that have met, within minutes; what they wait for each other later may take hours."""
    gpu = torch.cuda.current_device() if torch.cuda.is_available() else None

    def connect() -> None:
        store.set_timeout(_PATIENCE)
        backend = "gloo" if gpu is None else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=store, rank=world.index, world_size=world.size, timeout=_PATIENCE)
        if gpu is not None:
            # GPUs that cannot reach each other are better noticed here than after the first hour.
            torch.cuda.set_device(gpu)
            dist.all_reduce(torch.zeros(1, device="cuda"))
            # Connected by other ways than the one before, which would otherwise be made in the gradient pass.
            dist.reduce(torch.zeros(1, device="cuda"), 0)
            torch.cuda.synchronize()

    with Wait(lambda: f"connecting {world.size} processes" if world.main else "", PATIENCE) as wait:
        try:
            wait.call(connect)
        except TimeoutError:
            raise GoraError(
                f"{world.size} processes have met, but could not be connected within {PATIENCE / 60:.0f} minutes. "
                "Set NCCL_DEBUG=INFO to see what their GPUs do, GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to say which "
                "network they use."
            ) from None


def launched() -> bool:
    """Whether torchrun, accelerate, deepspeed or gora's own launcher has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def find() -> World:
    """This process as its launcher's environment describes it: torchrun, accelerate, deepspeed, or srun."""
    number = _number
    if launched():
        rank, size = number("RANK"), number("WORLD_SIZE")
        if rank >= size:
            raise InputError(f"RANK={rank}, WORLD_SIZE={size}: {_NOT_A_LAUNCH}")
        # The second name is DeepSpeed's.
        local_size = number("LOCAL_WORLD_SIZE", number("LOCAL_SIZE", size))
        return World(index=rank, size=size, local_index=number("LOCAL_RANK"), local_size=local_size)
    # SLURM_NTASKS may be of the whole job, in which this is a shell; the step's own number is of what srun started.
    size = number(SRUN_TASKS, 1)
    if size > 1:
        return World(
            index=number("SLURM_PROCID"), size=size, local_index=number("SLURM_LOCALID"), local_size=_tasks_here(size)
        )
    return World()


def _tasks_here(size: int) -> int:
    """How many tasks of srun's step are on this host, from a list such as `4(x2),1`."""
    runs = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    counts = [int(count) for count, hosts in runs for _ in range(int(hosts or 1))]
    return counts[_number("SLURM_NODEID")] if counts else size


def _number(name: str, otherwise: int = 0) -> int:
    text = os.environ.get(name) or str(otherwise)
    if not text.isdecimal():
        raise InputError(f"{name}={text}: {_NOT_A_LAUNCH}")
    return int(text)


def _complete_environment(world: World) -> None:
    """The variables by which torch, Accelerate and DeepSpeed find each other, where the launcher has not set them."""
    known = {
        "RANK": world.index,
        "WORLD_SIZE": world.size,
        "LOCAL_RANK": torch.cuda.current_device() if torch.cuda.is_available() else world.local_index,
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
