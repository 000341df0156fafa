"""Gradients on their way to optimizer states in host memory: a bucket at a time.

DeepSpeed takes an adapter's many small tensors one by one: it asks the GPU whether each is finite, takes its norm,
copies it to the host, and waits for the norm. Its reduction has left them side by side in one buffer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def send_whole_buckets(optimizer: Any) -> None:
    """Have a ZeRO optimizer with states in host memory take all that a reduction has left at once.

    Its norm says what its search for NaN and infinity says. Gradients have to be reduced once a step.

    Args:
        optimizer: DeepSpeed's; others than those of stage 1 and 2 with offloaded states are left alone.
    """
    if getattr(optimizer, "cpu_offload", False) and "copy_grads_in_partition" not in vars(optimizer):
        _Buckets(optimizer).install()


class _Buckets:
    def __init__(self, optimizer: Any) -> None:
        self._optimizer, self._reduce = optimizer, optimizer.reduce_ipg_grads
        self._held: dict[int, list[tuple[int, Tensor]]] = {}
        self._squares: dict[int, float] = {}

    def install(self) -> None:
        optimizer = self._optimizer
        optimizer.copy_grads_in_partition = self._hold
        optimizer.reduce_ipg_grads = self._reduce_and_send
        optimizer.complete_grad_norm_calculation_for_cpu_offload = self._norm

    def _hold(self, parameter: Tensor, group: int) -> None:
        """Note where in the bucket this process's part of a gradient lies."""
        optimizer = self._optimizer
        _, start, place, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
        gradient = optimizer.get_param_gradient_attribute(parameter)
        self._held.setdefault(group, []).append((place, gradient.view(-1).narrow(0, start, count)))
        optimizer.clear_grad_attribute(parameter)

    def _reduce_and_send(self, comm_dtype: torch.dtype | None = None) -> None:
        """Sum a bucket over processes, then bring this process's part of it to the host, and take its norm."""
        from deepspeed.accelerator import get_accelerator

        self._reduce(comm_dtype=comm_dtype)
        optimizer, accelerator = self._optimizer, get_accelerator()
        stream = optimizer.reduction_stream if optimizer.overlap_comm else accelerator.current_stream()
        with accelerator.stream(stream):
            for group, parts in self._held.items():
                target = optimizer.single_partition_of_fp32_groups[group].grad.view(-1)
                for place, whole in _joined(parts):
                    target[place : place + len(whole)].copy_(whole)
                    norm = torch.linalg.vector_norm(whole, dtype=torch.float64).item()
                    self._squares[group] = self._squares.get(group, 0.0) + norm**2
        self._held.clear()

    def _norm(self, parameters: list[Tensor]) -> Tensor:
        """Norm of a group's gradients over all processes; -1 where it is NaN or infinite."""
        from deepspeed.accelerator import get_accelerator

        optimizer, device = self._optimizer, get_accelerator().current_device_name()
        (group,) = [place for place, each in enumerate(optimizer.params_in_partition) if each is parameters]
        squares = torch.tensor(self._squares.pop(group, 0.0), dtype=torch.float64, device=device)
        torch.distributed.all_reduce(squares, group=optimizer.dp_process_group)
        norm = squares.sqrt().cpu().float()
        return norm if norm.isfinite() else torch.tensor(-1.0)


def _joined(parts: list[tuple[int, Tensor]]) -> list[tuple[int, Tensor]]:
    """Pieces that follow each other as one: where it begins, and its values."""
    runs: list[tuple[int, list[Tensor]]] = []
    end = -1
    for place, part in sorted(parts, key=lambda part: part[0]):
        if place != end:
            runs.append((place, []))
        runs[-1][1].append(part)
        end = place + len(part)
    return [(place, torch.cat(pieces)) for place, pieces in runs]
