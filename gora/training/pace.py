"""How fast training goes between two log lines, and what it waits for."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch
from torch import nn

from gora.runtime.machine import bf16_peak
from gora.runtime.memory import peak_bytes
from gora.training.loader import Waited

_PASSES = 4
"""Floating-point operations per weight and token: two forward, two backward for the inputs; frozen weights need no
gradient of their own."""
_PASSES_IN_FULL = 6


class Pace:
    """Measures laps: from one log line to the next.

    Args:
        model: what is trained, before an engine wraps it.
        device: what computes.
        processes: how many share the tokens.
        waited: how long rows have been waited for.
        of_text: whether tokens are counted; of images, nothing is said of the share of what a GPU could compute.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, processes: int, waited: Waited, *, of_text: bool = True
    ) -> None:
        peak = bf16_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" and of_text else None
        self._peak = peak * processes if peak else None
        self._operations = operations_per_token(model)
        self._tokens = self._computed = 0
        self._waited, self._waited_before = waited, waited.total
        self._began = perf_counter()

    def add(self, tokens: int, computed: int) -> None:
        """Count a step's tokens, of all processes, without padding and with it."""
        self._tokens += tokens
        self._computed += computed

    def lap(self) -> dict[str, Any]:
        """Rates since the last lap, for a line of metrics.

        Returns:
            `tokens_per_second` of rows; `computed_per_second`, with padding; `waiting`, the share of the time in which
            rows were waited for; `peak_share`, the share of what the GPUs could compute in bf16 by their data sheets;
            `gpu_bytes`, the most memory so far. The last two on known GPUs only.
        """
        now = perf_counter()
        seconds = max(now - self._began, 1e-9)
        rate = self._tokens / seconds
        values: dict[str, Any] = {
            "tokens_per_second": round(rate, 1),
            "computed_per_second": round(self._computed / seconds, 1),
            "waiting": round((self._waited.total - self._waited_before) / seconds, 4),
        }
        if self._peak:
            values["peak_share"] = round(rate * self._operations / self._peak, 4)
        if (gpu := peak_bytes().get("gpu")) is not None:
            values["gpu_bytes"] = gpu
        self._tokens = self._computed = 0
        self._waited_before, self._began = self._waited.total, now
        return values


def operations_per_token(model: nn.Module) -> int:
    """Floating-point operations that weights take part in for each token; attention's products are not counted."""
    embeddings = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    looked_up = {id(weight) for weight in embeddings}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    multiplied = [value for value in model.parameters() if id(value) not in looked_up]
    if head is not None and id(head.weight) in looked_up:
        multiplied.append(head.weight)
    trained = sum(value.numel() for value in multiplied if value.requires_grad)
    weights = sum(value.numel() for value in multiplied)
    return _PASSES * (weights - trained) + _PASSES_IN_FULL * trained
