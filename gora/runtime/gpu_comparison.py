"""Do the GPUs of this host compute alike and hand each other what they should, and how fast?"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

_VALUES = 2**26
_REPEATS = 5


def compare_gpus(devices: list[torch.device], values: int = _VALUES) -> dict[str, Any]:
    """Copy between every two devices and sum over all; each result is compared with the one that it has to be.

    Args:
        devices: the GPUs; on CPUs the copies are made and nothing is summed.
        values: float32 values that are moved at a time.

    Returns:
        `copies`: for each ordered pair the bytes per second and whether the copy was right. `products`: whether a
        matrix product is the same on all. `all_reduce`: bytes per second of NCCL's bus, and whether the sum was right;
        None for a single device.
    """
    return {
        "copies": [_copy(first, second, values) for first, second in permutations(devices, 2)],
        "products": _products_agree(devices),
        "all_reduce": _all_reduce(devices, values) if len(devices) > 1 and devices[0].type == "cuda" else None,
    }


def gpu_problems(result: dict[str, Any]) -> list[str]:
    """What is wrong with the GPUs, one sentence each."""
    advice = "Take it out with CUDA_VISIBLE_DEVICES, or set NCCL_P2P_DISABLE=1 and test again."
    found = [
        f"A copy from {each['from']} to {each['to']} is wrong. {advice}"
        for each in result["copies"]
        if not each["right"]
    ]
    if not result["products"]:
        found.append(f"The GPUs do not compute the same product. {advice}")
    if result["all_reduce"] and not result["all_reduce"]["right"]:
        found.append(f"NCCL's sum over all GPUs is wrong. {advice}")
    return found


def _copy(source: torch.device, target: torch.device, values: int) -> dict[str, Any]:
    original = torch.randn(values, generator=torch.Generator().manual_seed(0)).to(source)
    there = torch.empty_like(original, device=target)
    seconds = _seconds(lambda: there.copy_(original), [source, target])
    right = torch.equal(there.cpu(), original.cpu())
    return {"from": str(source), "to": str(target), "bytes_per_second": 4 * values / seconds, "right": right}


def _products_agree(devices: list[torch.device]) -> bool:
    # Whole numbers, so that every order of summing gives the same.
    left, right = (torch.randint(-4, 5, (512, 512), generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    wanted = (left @ right).float()
    return all(torch.equal((left.float().to(each) @ right.float().to(each)).cpu(), wanted) for each in devices)


def _all_reduce(devices: list[torch.device], values: int) -> dict[str, Any]:
    def parts() -> list[Tensor]:
        return [torch.full((values,), float(index + 1), device=device) for index, device in enumerate(devices)]

    summed = parts()
    torch.cuda.nccl.all_reduce(summed)
    wanted = len(devices) * (len(devices) + 1) / 2
    right = all(bool((part == wanted).all()) for part in summed)
    moved = parts()
    seconds = _seconds(lambda: torch.cuda.nccl.all_reduce(moved), devices)
    traffic = 4 * values * 2 * (len(devices) - 1) / len(devices)
    return {"bytes_per_second": traffic / seconds, "right": right}


def _seconds(work: Callable[[], object], devices: list[torch.device]) -> float:
    """Median seconds of something asynchronous, after it has run once."""
    taken = []
    for _ in range(_REPEATS + 1):
        _wait(devices)
        start = time.perf_counter()
        work()
        _wait(devices)
        taken.append(time.perf_counter() - start)
    return sorted(taken[1:])[_REPEATS // 2]


def _wait(devices: list[torch.device]) -> None:
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
