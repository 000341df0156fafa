"""A model that sees images, as a subject: it says which class each shows, and writes no text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from gora.data.examples import Examples
from gora.errors import InputError
from gora.evaluation.task import Recognised, Sampling
from gora.methods import model_for_loss
from gora.recipe.derived import training_micro_batch_size
from gora.runs.context import RunContext
from gora.runs.loss import batch_of_rows
from gora.runtime.console import output
from gora.runtime.precision import autocast
from gora.runtime.progress import Meter


@dataclass(frozen=True)
class Seeing:
    """The backend of a model that generates nothing.

    Attributes:
        batch_size: images at a time.
    """

    batch_size: int

    @property
    def facts(self) -> dict[str, Any]:
        """See `Backend`."""
        return {"backend": "image head", "batch_size": self.batch_size}

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, advance: Callable[[int, int], None], *, base: bool
    ) -> NoReturn:
        """A head for classes has no words."""
        raise InputError("A model with an image head writes no text: give --task image or loss.")

    def likelihoods(
        self, pairs: Sequence[tuple[list[int], list[int]]], advance: Callable[[int, int], None], *, base: bool
    ) -> NoReturn:
        """Nor are they likely or not."""
        raise InputError("A model with an image head writes no text: give --task image or loss.")


@dataclass(frozen=True)
class OfImages:
    """What stands for the form of prompts.

    Attributes:
        title: what messages call it.
    """

    title: str

    def __getattr__(self, name: str) -> NoReturn:
        raise InputError(f"This model sees images ({self.title}): give --task image or loss.")


def recognise(model: PreTrainedModel | PeftModel, context: RunContext, rows: Examples) -> Recognised:
    """The likeliest class of every image.

    Args:
        model: with its adapter if it has one, on the device that computes; left in evaluation mode.
        context: arithmetic and sizes.
        rows: the images.
    """
    size = context.recipe.evaluation.micro_batch_size or training_micro_batch_size(context.recipe.train)
    truth, found = [], []
    computing: nn.Module = model_for_loss(model)
    model.eval()
    with torch.no_grad(), autocast(context.precision, context.device), Meter(output, "images", len(rows)) as meter:
        for start in range(0, len(rows), size):
            batch = batch_of_rows(model, context, rows, range(start, min(start + size, len(rows))))
            truth += batch.pop("labels").tolist()
            found += computing(**batch).logits.argmax(dim=1).tolist()
            meter.advance(steps=len(truth) - start)
    places = [rows.where(index) for index in range(len(rows))]
    return Recognised(names=rows.choices, places=places, truth=truth, found=found)
