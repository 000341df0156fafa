"""OLoRA (arXiv 2406.01775): the adapter starts with an orthonormal basis of each weight, by a QR decomposition."""

from __future__ import annotations

from peft import LoraConfig

from gora.methods.base import Wrapping, lora_config
from gora.methods.residual import Residual


class Olora(Residual):
    """PEFT's OLoRA."""

    name = "olora"

    def moving_config(self, wrapping: Wrapping) -> LoraConfig:
        """See `Residual`."""
        return lora_config(wrapping, init_lora_weights="olora")
