"""AdaLoRA (arXiv 2303.10512): ranks shrink during training, from 1.5 times the rank to the rank on average."""

from __future__ import annotations

from typing import Any, ClassVar

from peft import AdaLoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gora.methods.base import Method, Wrapping, wrap_with

_WARM_UP, _FINAL = 150, 900


class AdaLora(Method):
    """PEFT's AdaLoRA: 150 steps before ranks shrink and 900 after, in shorter runs a tenth and a half of all steps."""

    parts: ClassVar = {**Method.parts, "E": ".lora_E."}
    whole_gradients = True

    def wrap(self, model: PreTrainedModel, wrapping: Wrapping) -> PeftModel:
        """See `Method`."""
        shared, steps = wrapping.settings, wrapping.steps
        config = AdaLoraConfig(
            init_r=round(1.5 * shared.rank),
            target_r=shared.rank,
            lora_alpha=shared.alpha,  # type: ignore[arg-type]
            lora_dropout=shared.dropout,
            target_modules=list(wrapping.targets),
            tinit=min(_WARM_UP, steps // 10),
            tfinal=min(_FINAL, steps // 2),
            deltaT=10 if steps > 100 else 1,
            total_step=steps,
        )
        return wrap_with(model, config)

    def callbacks(self, model: nn.Module) -> list[TrainerCallback]:
        """See `Method`."""
        return [_Allocate(model)]


class _Allocate(TrainerCallback):
    """Shares out the budget anew after a step, while its gradients are still there."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._model.base_model.update_and_allocate(state.global_step + 1)  # type: ignore[union-attr, operator]
