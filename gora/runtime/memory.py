"""Peak memory of this process and of its accelerator."""

import resource
import sys

import torch


def reset_peak() -> None:
    """Start measuring the accelerator's peak anew; the process's own peak cannot be reset."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_text() -> str:
    """Peak memory in words, such as `peak memory 1.2 GB, GPU 19.8 GB`."""
    unit = 1 if sys.platform == "darwin" else 1024
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    text = f"peak memory {host / 1e9:.2f} GB"
    if torch.cuda.is_available():
        text += f", GPU {torch.cuda.max_memory_allocated() / 1e9:.2f} GB"
    return text
