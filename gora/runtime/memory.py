"""Peak memory of this process and of its accelerator."""

import resource
import sys

import torch


def reset_peak() -> None:
    """Start measuring the accelerator's peak from here on; the process's own peak cannot be reset."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> dict[str, int]:
    """Peak memory of this process on the `host`, and on the `gpu` where there is one."""
    unit = 1 if sys.platform == "darwin" else 1024
    host = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    return host | ({"gpu": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {})


def peak_text() -> str:
    """Peak memory in words, such as `peak memory 1.2 GB, GPU 19.8 GB`."""
    peak = peak_bytes()
    return f"peak memory {peak['host'] / 1e9:.2f} GB" + (f", GPU {peak['gpu'] / 1e9:.2f} GB" if "gpu" in peak else "")
