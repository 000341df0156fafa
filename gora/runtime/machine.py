"""What a machine is and has: versions, GPUs, optional packages."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from gora import __version__

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "deepspeed", "datasets", "safetensors")
OPTIONAL = {
    "flash-attn": "model.attention: flash_attention_2",
    "liger-kernel": "train.kernels: liger",
    "bitsandbytes": "model.quantization",
    "matplotlib": "gora inspect-ranks --plot",
    "lm-eval": "gora eval --tasks lm-eval",
    "vllm": "gora eval --engine vllm",
}
"""Packages that gora can do without, and what each is for."""


def describe_machine() -> dict[str, Any]:
    """Versions, host, GPUs and optional packages, as JSON says it; None for what is not there."""
    return {
        "versions": {
            "gora": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
        "optional": {name: _version(name) for name in OPTIONAL},
        "host": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": psutil.cpu_count(),
            "memory": psutil.virtual_memory().total,
            "available": psutil.virtual_memory().available,
        },
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else None,
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
    }


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return {
        "name": properties.name,
        "memory": total,
        "free": free,
        "capability": f"{properties.major}.{properties.minor}",
        "bfloat16": torch.cuda.is_bf16_supported(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    words = text.splitlines()[0].split()
    return next((word for word in words if word.count(".") >= 1 and word[0].isdigit()), None)


_BF16_PEAKS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H800": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L4 ": 121.0,
    "A10 ": 125.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}


def bf16_peak(name: str) -> float | None:
    """Operations per second of a GPU in bfloat16 with float32 sums, dense, by its data sheet; None if not known.

    Args:
        name: as the driver says it, such as `NVIDIA H100 80GB HBM3`.
    """
    return next((1e12 * peak for key, peak in _BF16_PEAKS.items() if key in f"{name} "), None)
