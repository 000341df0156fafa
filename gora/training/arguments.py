"""A recipe as arguments of transformers' Trainer."""

from __future__ import annotations

import torch
from transformers import TrainingArguments

from gora.recipe.derived import training_micro_batch_size
from gora.runs.context import RunContext
from gora.training.engine_training import engine_arguments


def trainer_arguments(context: RunContext, steps: int, *, evaluates: bool, all_used: bool) -> TrainingArguments:
    """What the Trainer is told.

    Args:
        context: the run.
        steps: optimizer steps of the whole run.
        evaluates: whether there are rows to evaluate on.
        all_used: whether every trained parameter is known to get a gradient.
    """
    recipe, train, evaluation = context.recipe, context.recipe.train, context.recipe.evaluation
    arguments = TrainingArguments(
        output_dir=str(context.folder.checkpoints),
        max_steps=steps,
        per_device_train_batch_size=training_micro_batch_size(train),
        # The loader's item is a whole step, whose micro-batches `training_step` runs.
        gradient_accumulation_steps=1,
        max_grad_norm=train.max_grad_norm or 0.0,
        logging_steps=train.log_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluates and evaluation.steps else "no",
        eval_steps=evaluation.steps,
        save_strategy="steps" if train.save_steps else "no",
        save_steps=train.save_steps or steps,
        # Tokens are counted, and summed over processes, in `get_batch_samples`.
        include_num_input_tokens_seen="no",
        average_tokens_across_devices=False,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to=list(train.report_to) if context.world.main else [],
        run_name=context.folder.path.name,
        seed=recipe.seed,
        data_seed=recipe.seed,
        **engine_arguments(context.engine, context.device, all_used=all_used),
    )
    # One process trains on one device: the Trainer would otherwise wrap the model in DataParallel on several GPUs.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
