"""AdaLoRA (arXiv 2303.10512): ranks shrink during training, from 1.5 times the rank to the rank on average."""

from __future__ import annotations

from typing import Any, ClassVar

from peft import AdaLoraConfig, PeftModel, PeftType
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gora.methods.base import ADAPTER, Method, Wrapping, wrap_with

_WARM_UP, _FINAL = 150, 900


class AdaLora(Method):
    """PEFT's AdaLoRA: 150 steps before ranks shrink and 900 after, in shorter runs a tenth and a half of all steps."""

    name = "adalora"
    parts: ClassVar = {**Method.parts, "E": ".lora_E."}
    whole_gradients = True
    plain_lora = False
    merges = False
    # One to warm up, one in which ranks shrink, and one after that.
    fewest_steps = 3

    def wrap(self, model: PreTrainedModel, wrapping: Wrapping) -> PeftModel:
        """See `Method`."""
        wrapped = wrap_with(model, self.config(wrapping))
        for name, value in wrapped.named_parameters():
            # A count, which PEFT freezes; under a bfloat16 base it then casts it to float32, and that thaws it.
            if ".ranknum." in name:
                value.requires_grad_(False)
        return wrapped

    def config(self, wrapping: Wrapping) -> AdaLoraConfig:
        """See `Method`."""
        shared, steps = wrapping.settings, wrapping.steps
        return AdaLoraConfig(
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

    def callbacks(self, model: nn.Module) -> list[TrainerCallback]:
        """See `Method`."""
        return [_Allocate(model)]

    def model_for_loss(self, model: nn.Module) -> nn.Module:
        """See `Method`. PEFT adds a penalty outside the base model, which has the adapted layers inside."""
        return model.get_base_model() if isinstance(model, PeftModel) and model.peft_type == PeftType.ADALORA else model


class _Allocate(TrainerCallback):
    """Shares out the budget again after a step, while its gradients are still there."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        config: Any = self._model.peft_config[ADAPTER]  # type: ignore[union-attr, index]
        step, has_gradients = state.global_step + 1, any(p.grad is not None for p in self._model.parameters())
        # A skipped step has no gradients, and importances stay; from the final ranks on they are not looked at.
        if has_gradients or step >= config.total_step - config.tfinal:
            self._model.base_model.update_and_allocate(step)  # type: ignore[union-attr, operator]
