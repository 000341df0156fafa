"""The examples of a run, as a torch data set, and what became of the rows they were made of."""

from __future__ import annotations

import hashlib
import struct
import sys
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from gora.data.encode import IGNORED, Encoded

_LABELS_SHOWN = 6


class Examples(torch.utils.data.Dataset[dict[str, list[int]]]):
    """Encoded rows in a fixed order.

    Args:
        encoded: the examples.
        places: where each came from, as in `train.jsonl:17`.
        encoder_decoder: whether the labels are a sequence of their own.
        choices: names of the labels, where an example has one label instead of supervised tokens.
    """

    def __init__(
        self,
        encoded: Sequence[Encoded],
        places: Sequence[str],
        *,
        encoder_decoder: bool = False,
        choices: Sequence[str] = (),
    ) -> None:
        self._encoded = list(encoded)
        self._places = list(places)
        self.encoder_decoder = encoder_decoder
        self.choices = tuple(choices)

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        """`input_ids` and `labels` of one example, as lists of int; labels are -100 where nothing is trained.

        A classifier's has `token_type_ids` as well, where its tokenizer makes them.
        """
        example = self._encoded[index]
        types = {} if example.token_types is None else {"token_type_ids": example.token_types.tolist()}
        return {"input_ids": example.input_ids.tolist(), **types, "labels": example.labels.tolist()}

    @cached_property
    def lengths(self) -> list[int]:
        """The tokens of each example; for an encoder-decoder those of its inputs and of its labels together."""
        return [len(one.input_ids) + (len(one.labels) if self.encoder_decoder else 0) for one in self._encoded]

    @cached_property
    def largest_id(self) -> int:
        """The largest token id of all inputs."""
        return max(max(one.input_ids) for one in self._encoded)

    @cached_property
    def supervised(self) -> list[int]:
        """How many tokens of each example are trained on; the label of a classifier's example counts as one."""
        return [len(one.labels) - one.labels.count(IGNORED) for one in self._encoded]

    @property
    def label_counts(self) -> dict[str, int]:
        """How many examples have each label, by its name."""
        found = Counter(one.labels[0] for one in self._encoded) if self.choices else Counter[int]()
        return {name: found[number] for number, name in enumerate(self.choices)}

    def where(self, index: int) -> str:
        """Where an example came from: `train.jsonl:17`."""
        return self._places[index]

    def truncated(self, index: int) -> bool:
        """Whether an example was cut at the longest length allowed."""
        return self._encoded[index].truncated

    def subset(self, indices: Sequence[int]) -> Examples:
        """Some of the examples, in the order of `indices`."""
        encoded = [self._encoded[index] for index in indices]
        places = [self._places[index] for index in indices]
        return Examples(encoded, places, encoder_decoder=self.encoder_decoder, choices=self.choices)

    def fingerprint(self) -> str:
        """SHA-256 over what all examples hold, in order, in hexadecimal; the same on every machine."""
        digest = hashlib.sha256()
        for one in self._encoded:
            digest.update(struct.pack("<II", len(one.input_ids), len(one.labels)))
            digest.update(_little_endian(one.input_ids))
            digest.update(_little_endian(one.labels))
            digest.update(_little_endian(one.token_types or array("i")))
        return digest.hexdigest()


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
        return f"{rows}, {self.tokens:,} tokens, {self._trained()}"

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
    truncated = sum(examples.truncated(index) for index in range(len(examples)))
    tokens, supervised = sum(examples.lengths), sum(examples.supervised)
    labels = examples.label_counts
    return Counts(
        rows=rows,
        used=len(examples),
        bad=bad,
        dropped=dropped,
        held_out=held_out,
        truncated=truncated,
        tokens=tokens,
        supervised_tokens=supervised,
        labels=labels,
        without_code=without_code,
    )


def _little_endian(ids: array[int]) -> bytes:
    if sys.byteorder == "little":
        return ids.tobytes()
    swapped = array(ids.typecode, ids)
    swapped.byteswap()
    return swapped.tobytes()
