"""LoRA (arXiv 2106.09685): one rank for every layer, scaling alpha / rank, B starts at zero."""

from __future__ import annotations

from collections.abc import Mapping

from peft import LoraConfig, PeftModel
from torch import nn

from gora.methods.base import AdapterSettings, wrap_with_lora
from gora.plan import Factors, Plan


class Lora:
    """The baseline."""

    needs_plan = False
    lr_ratio = 1.0

    def wrap(
        self,
        model: nn.Module,
        targets: Mapping[str, nn.Module],
        settings: AdapterSettings,
        plan: Plan | None,
        factors: Factors,
    ) -> PeftModel:
        """Wrap with equal ranks; see `Method`."""
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]
            lora_dropout=settings.dropout,
            target_modules=list(targets),
        )
        return wrap_with_lora(model, config)
