"""What a fine-tuning method is: a way to wrap the base model, and the ratio of its learning rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn

from gora.plan import Factors, Plan


@dataclass(frozen=True)
class AdapterSettings:
    """Settings that every low-rank method shares."""

    rank: int
    alpha: float
    dropout: float


class Method(Protocol):
    """One fine-tuning method."""

    needs_plan: bool
    """Whether `gora precompute` has to run before."""
    lr_ratio: float
    """Learning rate of B over that of A, where the recipe says `auto`."""

    def wrap(
        self,
        model: nn.Module,
        targets: Mapping[str, nn.Module],
        settings: AdapterSettings,
        plan: Plan | None,
        factors: Factors,
    ) -> PeftModel:
        """Put the adapter round the model; its values are float32 and ready to train."""
        ...


def wrap_with_lora(model: nn.Module, config: LoraConfig) -> PeftModel:
    """Wrap a model with PEFT's LoRA, adapter values in float32."""
    encoder_decoder = getattr(model.config, "is_encoder_decoder", False)  # type: ignore[union-attr]
    config.task_type = TaskType.SEQ_2_SEQ_LM if encoder_decoder else TaskType.CAUSAL_LM
    return get_peft_model(model, config, autocast_adapter_dtype=True)  # type: ignore[arg-type, return-value]
