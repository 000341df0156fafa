"""The Trainer of transformers, with gora's optimizer groups, schedule, evaluation and whole checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import DistributedType, patch_environment, send_to_device
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback

from gora.adapters.lean import make_lean, values_at_rest
from gora.methods import Method
from gora.models.checkpointing import recompute_activations
from gora.models.kernels import compile_blocks
from gora.models.rows_apart import forward
from gora.models.supervised_head import PREDICTING, has_supervised_head
from gora.recipe.derived import recomputes_activations
from gora.runs.context import RunContext
from gora.runs.loss import EvaluationLoss
from gora.runtime.console import output
from gora.runtime.cuda_graphs import where_recordings_are_made
from gora.runtime.precision import autocast
from gora.training.arguments import trainer_arguments
from gora.training.batches import Padding, StepBatches, StepCollator, StepNumbers
from gora.training.callbacks import OF_SOURCE
from gora.training.checkpoints import CheckpointTrainer, Kept
from gora.training.course import Course, SinceLastLog
from gora.training.engine_training import make_optimizer, measure_step, reducing_once
from gora.training.fitting import FittingSteps
from gora.training.groups import parameter_groups
from gora.training.layout import StepLayout
from gora.training.loader import IMAGE_WORKERS, StepLoader, Waited, loader_workers, step_loader
from gora.training.pace import Pace
from gora.training.recording import recorded_steps
from gora.training.room import checkpoint_bytes
from gora.training.schedule import make_schedule
from gora.training.skipping import Measured
from gora.training.step_rows import RunSteps

_SUPERVISED = "supervised"


class GoraTrainer(CheckpointTrainer):
    """Trains the adapter of one run.

    Attributes:
        waited: how long it has waited for data.

    Args:
        model: the wrapped model.
        context: recipe, rows, processes, engine, and the folder for checkpoints.
        steps: optimizer steps of the whole run.
        steps_of_run: the rows of each.
        layout: of the rows of a step.
        method: what is trained, and by which optimizer.
        lr_ratio: learning rate of B over that of A.
        all_used: whether every trained parameter is known to get a gradient.
        evaluate_loss: mean loss per token on the evaluation rows; None where there are none.
        provenance: what the run is of, saved with every checkpoint.
        course: how training goes, saved with every checkpoint.
        halved: told of the rows of a micro-batch when memory has asked for fewer; None where there may not be fewer.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        context: RunContext,
        *,
        steps: int,
        steps_of_run: RunSteps,
        layout: StepLayout,
        method: Method,
        lr_ratio: float,
        all_used: bool,
        evaluate_loss: Callable[[], EvaluationLoss] | None,
        provenance: dict[str, Any],
        course: Course,
        halved: Callable[[int], None] | None = None,
    ) -> None:
        recipe = context.recipe
        self._wrapped, self._recipe = model, recipe
        self._precision, self._world, self._engine = context.precision, context.world, context.engine
        self._layout, self._settings = layout, context.forward_settings
        self._numbers, self.waited = StepNumbers(steps_of_run.per_epoch), Waited()
        self._lean = context.fuses and not context.engine.shards_weights and make_lean(model)
        self._most_workers = 1 if context.inputs.of_text else IMAGE_WORKERS
        self._told_places = has_supervised_head(model.get_base_model() if isinstance(model, PeftModel) else model)
        self._method, self._lr_ratio, self._evaluate_loss = method, lr_ratio, evaluate_loss
        self.kept = Kept(
            folder=context.folder,
            world=context.world,
            number=recipe.train.keep_checkpoints,
            bytes_at_least=checkpoint_bytes(model),
            provenance=provenance,
            course=course,
            steps=steps_of_run,
        )
        self._steps: StepLoader | None = None
        self._rows_seen: torch.Tensor | None = None
        self.padding = Padding()
        self.pace = Pace(model, context.device, context.world.size, self.waited, of_text=context.inputs.of_text)
        self.course, self.since_log = course, SinceLastLog()
        self._losses: list[torch.Tensor] = []
        self._norm: torch.Tensor | float | None = None
        self.last_evaluation = (-1, 0.0)
        # `accelerate launch --mixed_precision` would have Accelerate compute otherwise than the recipe says.
        with patch_environment(accelerate_mixed_precision="no"):
            super().__init__(
                model=model,
                args=trainer_arguments(context, steps, evaluates=evaluate_loss is not None, all_used=all_used),
                train_dataset=StepBatches(steps_of_run, layout, context.world.index),
                eval_dataset=context.data.train if evaluate_loss else None,
                data_collator=StepCollator(context.collator, layout.end_to_end),
            )
        self.remove_callback(PrinterCallback)
        # The loss is normalised below, for every family alike; neither the Trainer nor Accelerate may divide again.
        self.model_accepts_loss_kwargs = True
        self.accelerator.gradient_accumulation_steps = 1
        if recomputes_activations(recipe.train):
            recompute_activations(model, True)
        if recipe.train.kernels == "compile":
            compile_blocks(model)
        self._recorded = recorded_steps(model, context, layout, steps=steps, lean=self._lean)
        self.fitting = FittingSteps(
            layout.size, context.device, forget=self._forget, remake=self._in_micro_batches_of, halved=halved
        )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The optimizer steps, each with the micro-batches of this process."""
        batches: Any = self.train_dataset
        collator: Any = self.data_collator
        pin = self.args.dataloader_pin_memory
        workers = loader_workers(self.args.device, self._world, self._most_workers)
        self._steps = step_loader(batches, self._numbers, collator, last=self.args.max_steps, workers=workers, pin=pin)
        # They are dealt out already: Accelerate is only to bring them to the device.
        # Images are large: their copies need not wait for what the GPU is doing.
        behind = pin and self._most_workers > 1
        loader: Any = prepare_data_loader(
            self._steps, self.args.device, num_processes=1, process_index=0, put_on_device=True, non_blocking=behind
        )
        # It has made a loader of its own, which ends with the epoch.
        loader.base_dataloader = self._steps
        return loader  # type: ignore[no-any-return]

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The method's optimizer, with a group for each of its parts."""
        if self.optimizer is None:
            model = model or self._wrapped
            groups = parameter_groups(model, self._recipe.train, self._lr_ratio, self._method.parts)
            own = self._method.optimizer(model, groups)
            self.optimizer = own or make_optimizer(groups, self._engine, self._world)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The recipe's schedule."""
        if self.lr_scheduler is None:
            optimizer = optimizer or self.create_optimizer()
            schedule: Any = make_schedule(optimizer, self._recipe.train, num_training_steps)
            self.lr_scheduler = schedule
        return self.lr_scheduler

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | None]:
        """The step, and the supervised tokens in it, those of all processes."""
        with self.waited.measuring():
            step = next(epoch_iterator, None)
        if step is None:
            return [], None
        if "refused" in step:
            raise step["refused"]
        for line in step["remarks"]:
            output.warn(line)
        self._rows_seen = step["checksum"]
        totals = torch.tensor([sum(step["supervised"]), step["tokens"], step["computed"]])
        if self._world.size > 1:
            totals = totals.to(device)
            self._world.sum_everywhere(totals)
        supervised, tokens, computed = totals.tolist()
        self.state.num_input_tokens_seen += tokens
        self.padding.add(tokens, computed)
        self.pace.add(tokens, computed)
        return [step], torch.tensor(supervised)

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Both passes of every micro-batch of a step; gradients are exchanged with the last.

        In one process under data parallelism, a step that does not fit leaves no trace.

        Returns:
            The mean loss over all supervised tokens of the step, or this process's part of it.
        """
        if self._world.size > 1 or self._engine.kind != "ddp":
            return self._run_step(model, inputs, num_items_in_batch)
        return self.fitting.run(inputs, lambda step: self._run_step(model, step, num_items_in_batch))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers does; where several processes record passes, on the stream of recordings."""
        several = self._recorded is not None and self._world.size > 1
        with where_recordings_are_made() if several else nullcontext():
            return super().train(*args, **kwargs)

    def release_recordings(self) -> None:
        """Give the memory of recorded passes back; no more are recorded."""
        if self._recorded is not None:
            self._recorded.release()

    def release_workers(self) -> None:
        """End the workers that make batches."""
        if self._steps is not None:
            self._steps.close()

    def _forget(self) -> None:
        """Drop what a step that did not fit has left, and what it can do without."""
        self.release_recordings()
        self._wrapped.zero_grad()

    def _in_micro_batches_of(self, size: int) -> dict[str, Any]:
        """The step that is being taken, in micro-batches of another size."""
        batches: Any = self.train_dataset
        layout = replace(self._layout, size=size)
        step = self.data_collator(batches.micro_batches(self.state.global_step + 1, layout))
        return send_to_device(step, self.args.device)  # type: ignore[no-any-return]

    def _run_step(self, model: torch.nn.Module, inputs: dict[str, Any], tokens: torch.Tensor | int | None) -> Any:
        self._losses.clear()
        batches, gradients = inputs["micro_batches"], self.accelerator.gradient_state
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        total = torch.zeros((), device=self.args.device)
        recorded = self._recorded.step() if self._recorded is not None else nullcontext()
        with reducing_once(model) if deepspeed else nullcontext(), recorded, values_at_rest():
            for place, (batch, supervised, whole) in enumerate(
                zip(batches, inputs["supervised"], inputs["whole"], strict=True)
            ):
                if whole and self._recorded is not None:
                    # It says nothing, and models wait for the device to learn that.
                    batch = {key: value for key, value in batch.items() if key != "attention_mask"}
                # What is recorded sums over processes itself; DeepSpeed, once the context ends.
                last = place == len(batches) - 1 and self._recorded is None and not deepspeed
                # Told that no pass is the last, Accelerate leaves the step of DeepSpeed to the context.
                gradients._set_sync_gradients(last)
                with nullcontext() if last or deepspeed else self.accelerator.no_sync(model):
                    total += super().training_step(model, {**batch, _SUPERVISED: supervised}, tokens)
        gradients._set_sync_gradients(True)
        return total

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Mean loss over all supervised tokens of the optimizer step: each micro-batch counts by its tokens.

        Where a row has one label, it counts as one token.
        """
        supervised, predicting = inputs.pop(_SUPERVISED), inputs.pop(PREDICTING, None)
        known = {PREDICTING: predicting} if self._told_places and predicting is not None else {}
        with nullcontext() if self._lean else autocast(self._precision, self.args.device):
            outputs = forward(model, inputs, **self._settings, **known)
        loss = outputs.loss
        if not supervised:
            # A process without rows takes part in the step with a gradient of zero; the mean of no tokens is no number.
            loss = outputs.logits.sum() * 0.0 if outputs.logits is not None else loss * 0.0
        elif num_items_in_batch is not None:
            # Every engine takes the mean of the processes' gradients, where a sum is wanted.
            share = torch.tensor(supervised * self._world.size) / num_items_in_batch
            self._losses.append(loss.detach() * share)
            # An infinite loss may have an ordinary gradient: as NaN, it is noticed by engines that step by themselves.
            loss = loss * (share + 0.0 * loss.detach())
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        self._norm = super()._get_grad_norm(*args, **kwargs)
        return self._norm

    def measure(self, held: Sequence[torch.Tensor]) -> Measured:
        """What this process knows of the step whose gradients are complete; see `measure_step`."""
        loss = torch.stack(self._losses).sum() if self._losses else torch.zeros(())
        return measure_step(self, loss, self._norm, held)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted."""
        return 0

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Leave skipped steps out of the mean, and add which rows the step was taken on; see `rows_checksum`."""
        if "loss" in logs:
            if not (taken := self.since_log.flush()):
                return
            logs |= taken
        if "loss" in logs and self._rows_seen is not None:
            seen = self._rows_seen.clone().to(self.args.device)
            self._world.sum_everywhere(seen)
            logs["rows"] = f"{seen.item() % 2**64:016x}"  # type: ignore[assignment]
        super().log(logs, *args, **kwargs)

    def _run_epoch(self, model: torch.nn.Module, epoch: int, *args: Any, **kwargs: Any) -> None:
        """Where a checkpoint of the last step is taken up, there is no step left, also in the middle of an epoch; nor
        where patience has run out."""
        # After a resume, a loader that skips rows stands between: not every transformers then hands the epoch on.
        self._numbers.set_epoch(epoch)
        if self.state.global_step < self.state.max_steps and not self.course.is_over(self._recipe.train.patience):
            super()._run_epoch(model, epoch, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean loss per supervised token, which does not depend on how rows fall into micro-batches."""
        assert self._evaluate_loss is not None
        loss = self._evaluate_loss()
        metrics = {"eval_loss": loss.mean, **{OF_SOURCE + name: each for name, each in loss.by_source.items()}}
        self.last_evaluation = (self.state.global_step, loss.mean)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
