"""A model with a classification head: it labels rows by the likeliest class, and writes no text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gora.data import LabelledText
from gora.errors import InputError
from gora.evaluation.models.classify import predict
from gora.evaluation.models.generate import without_adapter
from gora.evaluation.task import Sampling


@dataclass(frozen=True)
class Classifier:
    """Labels rows; as a `Backend` it refuses to generate.

    Attributes:
        model: with its adapter if it has one.
        tokenizer: the model's.
        batch_size: rows at a time.
        max_length: longer inputs are cut to this many tokens, as in training.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    max_length: int | None

    @property
    def facts(self) -> dict[str, Any]:
        """See `Backend`."""
        return {"backend": "classification head", "batch_size": self.batch_size}

    def generate(
        self, prompts: Sequence[list[int]], sampling: Sampling, advance: Callable[[int, int], None], *, base: bool
    ) -> NoReturn:
        """A head for labels has no words."""
        raise InputError("A model with a classification head writes no text: only tasks of labels fit it.")

    def likelihoods(
        self, pairs: Sequence[tuple[list[int], list[int]]], advance: Callable[[int, int], None], *, base: bool
    ) -> NoReturn:
        """Nor are they likely or not."""
        raise InputError("A model with a classification head writes no text: only tasks of labels fit it.")

    def label(self, rows: Sequence[LabelledText], *, base: bool) -> list[int]:
        """The number of the likeliest label of each row."""
        pairs = [row.pair or "" for row in rows] if any(row.pair is not None for row in rows) else None
        with without_adapter(self.model, base):
            return predict(
                self.model,  # type: ignore[arg-type]
                self.tokenizer,
                [row.text for row in rows],
                pairs,
                batch_size=self.batch_size,
                max_length=self.max_length,
            )
