"""PiSSA (arXiv 2404.02948): the adapter starts with the largest singular components of each weight."""

from __future__ import annotations

from peft import LoraConfig

from gora.methods.base import Wrapping, lora_config
from gora.methods.residual import Residual


class Pissa(Residual):
    """PEFT's PiSSA, by a fast SVD with 64 iterations."""

    name = "pissa"

    def moving_config(self, wrapping: Wrapping) -> LoraConfig:
        """See `Residual`."""
        return lora_config(wrapping, init_lora_weights="pissa_niter_64")
