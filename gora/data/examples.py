"""The examples of a run, as a torch data set, and what became of the rows they were made of."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from gora.data.encode import Encoded
from gora.data.mixture import Mixture
from gora.data.store import Store, add_to_fingerprint

Unit = Literal["tokens", "images"]
_LABELS_SHOWN = 6


class Examples(torch.utils.data.Dataset[dict[str, list[int]]]):
    """Encoded rows in a fixed order.

    Args:
        encoded: the examples, or a store that holds them.
        places: where each came from, as in `train.jsonl:17`; a store knows.
        encoder_decoder: whether the labels are a sequence of their own.
        choices: names of the labels, where an example has one label instead of supervised tokens.
        indices: which of them, in this order; None is all.
        mixture: what an epoch has of them; None is each of them once.
    """

    unit: Unit = "tokens"
    """What `lengths` count."""

    def __init__(
        self,
        encoded: Sequence[Encoded] | Store,
        places: Sequence[str] = (),
        *,
        encoder_decoder: bool = False,
        choices: Sequence[str] = (),
        indices: np.ndarray | None = None,
        mixture: Mixture | None = None,
    ) -> None:
        self._store = encoded if isinstance(encoded, Store) else Store.of(encoded, places)
        self._indices = indices
        self.mixture = mixture
        self.encoder_decoder = encoder_decoder
        self.choices = tuple(choices)

    def __len__(self) -> int:
        return len(self._store) if self._indices is None else len(self._indices)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        """`input_ids` and `labels` of one example, as lists of int; labels are -100 where nothing is trained.

        A classifier's has `token_type_ids` as well, where its tokenizer makes them.
        """
        batch, place = self._store.find(self._stored(index))
        ids, labels, types = batch.parts(place)
        more = {} if types is None else {"token_type_ids": types.tolist()}
        return {"input_ids": ids.tolist(), **more, "labels": labels.tolist()}

    @property
    def per_epoch(self) -> int:
        """Examples in an epoch."""
        return len(self) if self.mixture is None else self.mixture.per_epoch

    def members(self, epoch: int) -> np.ndarray | None:
        """Indices of the examples of an epoch, in no order that means something (int64); None is all, as they are."""
        return None if self.mixture is None else self.mixture.members(epoch)

    @cached_property
    def sources(self) -> np.ndarray:
        """The number of the source that each example is of (int64), from 0 in the order of the recipe."""
        return self._chosen(np.repeat(np.arange(len(self._store.parts)), self._store.parts))

    @property
    def per_source(self) -> list[int]:
        """How many of the examples are of each source."""
        found: list[int] = np.bincount(self.sources, minlength=len(self._store.parts)).tolist()
        return found

    @cached_property
    def lengths(self) -> Sequence[int]:
        """The tokens of each example (an array of int32); for an encoder-decoder those of its inputs and labels
        together."""
        counts = self._store.id_counts + (self._store.label_counts if self.encoder_decoder else 0)
        return _array(self._chosen(counts))

    @cached_property
    def largest_id(self) -> int:
        """The largest token id of all inputs."""
        return int(self._chosen(self._store.column("largest")).max())

    @cached_property
    def supervised(self) -> Sequence[int]:
        """How many tokens of each example are trained on (an array of int32); the label of a classifier's example
        counts as one."""
        return _array(self._chosen(self._store.column("supervised")))

    @cached_property
    def rows(self) -> Sequence[int]:
        """The number of the row that each example is of; a row may have several examples."""
        return self._chosen(self._store.rows).tolist()

    @property
    def cut(self) -> int:
        """How many examples were cut at the longest length allowed."""
        return int(self._chosen(self._store.column("truncated")).sum())

    @property
    def label_counts(self) -> dict[str, int]:
        """How many examples have each label, by its name."""
        found = Counter(map(self._label, range(len(self)))) if self.choices else Counter[int]()
        return {name: found[number] for number, name in enumerate(self.choices)}

    def _label(self, index: int) -> int:
        batch, place = self._store.find(self._stored(index))
        return int(batch.parts(place)[1][0])

    def where(self, index: int) -> str:
        """Where an example came from: `train.jsonl:17`."""
        return self._store.place(self._stored(index))

    def truncated(self, index: int) -> bool:
        """Whether an example was cut at the longest length allowed."""
        return bool(self._store.column("truncated")[self._stored(index)])

    def subset(self, indices: Sequence[int]) -> Examples:
        """Some of the examples, in the order of `indices`."""
        chosen = np.asarray(indices, dtype=np.int64)
        return self._with(chosen if self._indices is None else self._indices[chosen])

    def take(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several examples, in the order of `indices`."""
        return [self[index] for index in indices]

    def in_epoch(self, epoch: int) -> Examples:
        """The same examples as an epoch of training shows them."""
        return self

    def _with(self, indices: np.ndarray) -> Examples:
        return Examples(self._store, encoder_decoder=self.encoder_decoder, choices=self.choices, indices=indices)

    def fingerprint(self) -> str:
        """SHA-256 over what all examples hold, in order, in hexadecimal; the same on every machine."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            batch, place = self._store.find(self._stored(index))
            add_to_fingerprint(digest, batch, [place])
        return digest.hexdigest()

    def _stored(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{index} of {len(self)} examples")
        index = index % len(self)
        return index if self._indices is None else int(self._indices[index])

    def _chosen(self, values: np.ndarray) -> np.ndarray:
        return values if self._indices is None else values[self._indices]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What became of the rows of one set: `rows = used + bad + dropped + held_out + without_code`.

    Attributes:
        rows: read from the source, where with `data.turns: separate` every trained turn counts as one; for a holdout,
            drawn from the training rows.
        used: made into examples.
        bad: not usable, see `data.bad_rows`.
        dropped: too long, or with nothing to train on once cut.
        held_out: set aside for evaluation.
        truncated: those of `used` that were cut.
        tokens: of all examples.
        supervised_tokens: those of `tokens` that are trained on, or the labels of a classifier's examples.
        unit: what `tokens` counts.
        labels: how many examples have each label, by its name; empty without choices of a classifier.
        without_code: without a code block, where only those are trained.
    """

    rows: int
    used: int
    bad: int
    dropped: int
    held_out: int
    truncated: int
    tokens: int
    supervised_tokens: int
    labels: Mapping[str, int] = field(default_factory=dict)
    without_code: int = 0
    unit: Unit = "tokens"

    def summary(self) -> str:
        """`7,470 of 7,473 (12 cut at the end, 3 bad), 1,234,567 tokens, 37 % of them supervised`.

        The end is the labels for a classifier: `labels negative 44 %, positive 56 %`.
        """
        named = {
            "cut" if self.labels else "cut at the end": self.truncated,
            "bad": self.bad,
            "dropped as too long": self.dropped,
            "held out": self.held_out,
            "without code": self.without_code,
        }
        left_out = ", ".join(f"{number:,} {what}" for what, number in named.items() if number)
        rows = f"{self.used:,} of {self.rows:,}" + (f" ({left_out})" if left_out else "")
        size = f"{self.tokens:,} tokens, " if self.unit == "tokens" else ""
        return f"{rows}, {size}{self._trained()}"

    def _trained(self) -> str:
        if not self.labels:
            share = round(100 * self.supervised_tokens / self.tokens) if self.tokens else 0
            return f"{share} % of them supervised"
        most = sorted(self.labels.items(), key=lambda item: -item[1])[:_LABELS_SHOWN]
        shares = ", ".join(f"{name} {round(100 * number / self.used) if self.used else 0} %" for name, number in most)
        rest = len(self.labels) - len(most)
        return f"labels {shares}" + (f" and {rest} more" if rest else "")


@dataclass(frozen=True)
class DataCounts:
    """What became of the training rows and, where there are any, of the evaluation rows."""

    train: Counts
    eval: Counts | None = None

    def summary(self) -> str:
        """Both in one line."""
        evaluated = f"; eval {self.eval.summary()}" if self.eval else ""
        return f"train {self.train.summary()}{evaluated}"


def count(
    examples: Examples, *, rows: int, bad: int = 0, dropped: int = 0, held_out: int = 0, without_code: int = 0
) -> Counts:
    """Add what the examples say to what became of the rows."""
    tokens, supervised = sum(examples.lengths), sum(examples.supervised)
    labels = examples.label_counts
    return Counts(
        rows=rows,
        used=len(examples),
        bad=bad,
        dropped=dropped,
        held_out=held_out,
        truncated=examples.cut,
        tokens=tokens,
        supervised_tokens=supervised,
        labels=labels,
        without_code=without_code,
        unit=examples.unit,
    )


def _array(values: np.ndarray) -> array[int]:
    """An array that gives Python's own numbers."""
    return array("i", values.astype(np.int32).tobytes())
