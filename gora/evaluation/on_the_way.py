"""A task's figure while training goes on, by which the best values are told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn

from gora.data.prompting import Prompting
from gora.errors import InputError
from gora.evaluation.models.classifier import Classifier
from gora.evaluation.models.generate import Generator
from gora.evaluation.models.seeing import OfImages, Seeing, recognise
from gora.evaluation.models.subject import LocalSubject
from gora.evaluation.task import Options, Recognised, Task
from gora.recipe.image_rules import reads_images
from gora.recipe.schema import Recipe
from gora.runs.context import RunContext
from gora.training.keeping import Figure

# A judge costs money with every evaluation, and programs of a model need permission each time.
_NOT_ON_THE_WAY = ("humaneval", "mbpp", "mtbench")


def task_on_the_way(recipe: Recipe, tasks: Sequence[tuple[Task, Options]]) -> tuple[Task, Options]:
    """The closing task that `train.keep_by` names.

    Raises:
        InputError: it cannot be asked during training.
    """
    wanted = recipe.train.keep_by
    if wanted in _NOT_ON_THE_WAY:
        raise InputError(
            f"train.keep_by: {wanted} cannot be asked at every evaluation. Give `loss`, or another of evaluation.tasks."
        )
    return next((task, options) for task, options in tasks if task.name == wanted)


def figure_on_the_way(context: RunContext, model: nn.Module, task: Task, options: Options) -> Figure:
    """What puts a task to the model in training and returns the name and value of its main figure.

    Args:
        context: rows, prompt format and sizes.
        model: what is trained, whole in this process; its mode and the state of random numbers stay as they are.
        task: what is asked.
        options: its rows and how many.
    """
    place = context.folder.evaluation / f"{task.name.replace('/', '-')}-on-the-way"

    def figure() -> tuple[str, float]:
        place.mkdir(parents=True, exist_ok=True)
        with _as_it_was(model):
            scores = task.evaluate(_subject(context, cast(PeftModel, model)), replace(options, folder=place))
        name, value = next(iter(scores.metrics.items()))
        return f"{task.name} {name}", value

    return figure


def _subject(context: RunContext, model: PeftModel) -> LocalSubject:
    data, size = context.recipe.data, context.recipe.evaluation.batch_size
    if reads_images(context.source.head):

        def see(options: Options, base: bool) -> Recognised:
            rows = context.data.eval
            if rows is None or options.data:
                raise InputError("train.keep_by: image sees the run's own evaluation rows; leave path out of the task.")
            return recognise(model, context, rows.subset(range(min(len(rows), options.limit or len(rows)))))

        return LocalSubject(prompting=OfImages("format image"), backend=Seeing(size), see=see)
    source, tokenizer = context.source, context.tokenizer
    prompting = Prompting(data, tokenizer, head=source.head, encoder_decoder=source.encoder_decoder)
    if source.head == "language":
        return LocalSubject(prompting=prompting, backend=Generator(model, tokenizer, size))
    classifier = Classifier(model, tokenizer, size, data.max_length)
    return LocalSubject(
        prompting=prompting, backend=classifier, classify=lambda rows, base: classifier.label(rows, base=base)
    )


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards it trains on as if nothing had been asked."""
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    training, settings = model.training, getattr(inner, "generation_config", None)
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    model.eval()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        if settings is not None:
            inner.generation_config = settings
        model.train(training)
