"""Arithmetic of the forward and backward pass."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from gora.errors import InputError

Precision = Literal["bf16", "fp32"]


def resolve_precision(wanted: str, device: torch.device) -> Precision:
    """Resolve `train.precision`: auto is bf16 on a GPU that has it, else fp32.

    Raises:
        InputError: bf16 is asked for on a device that does not compute in it.
    """
    able = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if wanted == "bf16" and not able:
        raise InputError(f"train.precision: bf16 needs a GPU that computes in bfloat16; this device is {device.type}.")
    return "bf16" if able and wanted != "fp32" else "fp32"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Context in which matrix products run in `precision`."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
