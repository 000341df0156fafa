"""How the rows of a step are laid out: the step itself is never another one."""

import random
from array import array
from itertools import pairwise

import pytest

from gora.data import Encoded, Examples
from gora.data.collate import Collator
from gora.training.batches import MicroBatchRows, StepBatches, StepCollator, StepNumbers
from gora.training.layout import StepLayout, choose_layout, padding_by_length
from gora.training.step_rows import KeptSteps

KINDS = ("none", "by-length", "padding-free", "packed")


def examples(count, seed=0):
    drawn = random.Random(seed)
    rows = [[drawn.randrange(1, 99) for _ in range(drawn.randrange(2, 40))] for _ in range(count)]
    encoded = [Encoded(array("i", ids), array("i", [-100, *ids[1:]])) for ids in rows]
    return Examples(encoded, [f"rows.jsonl:{number}" for number in range(count)])


def layout(kind, size, processes, rows):
    return StepLayout(kind=kind, size=size, longest=max(rows.lengths), processes=processes)


def steps(rows, kind, processes, batch_size=12, size=2, epoch=2):
    of_run = KeptSteps(rows, batch_size, seed=3)
    numbers = StepNumbers(of_run.per_epoch)
    numbers.set_epoch(epoch)
    dealt = layout(kind, size, processes, rows)
    shares = [StepBatches(of_run, dealt, rank) for rank in range(processes)]
    return [[share.indices(step, dealt) for share in shares] for (step,) in numbers]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 5, 12, 31])
def test_a_step_has_the_same_rows_with_every_layout_and_any_processes(kind, processes, count):
    rows = examples(count)
    alone = [sorted(row for batch in step[0] for row in batch) for step in steps(rows, "none", 1)]
    assert sorted(row for step in alone for row in step) == list(range(count))
    dealt = steps(rows, kind, processes)
    together = [sorted(row for share in step for batch in share for row in batch if row < count) for step in dealt]
    assert together == alone
    # Every process makes as many passes; one without rows has the filler alone.
    assert all(len({len(share) for share in step}) == 1 for step in dealt)
    assert all(
        batch and (count not in batch or batch == [count]) for step in dealt for share in step for batch in share
    )


def test_rows_stay_in_the_order_they_were_drawn_where_nothing_is_packed():
    rows = examples(31)
    order = [row for step in steps(rows, "none", 1) for batch in step[0] for row in batch]
    turns = [turn for step in steps(rows, "none", 3) for turn in zip(*step, strict=True)]
    assert [row for turn in turns for batch in turn for row in batch if row < 31] == order
    other = [row for step in steps(rows, "none", 1, epoch=3) for batch in step[0] for row in batch]
    assert order != other


@pytest.mark.parametrize("processes", [1, 4])
def test_packed_micro_batches_are_few_full_and_never_above_the_tokens_of_the_longest_rows(processes):
    rows = examples(64, seed=5)
    dealt = layout("packed", 2, processes, rows)(range(64), rows.lengths.__getitem__)
    tokens = [sum(rows.lengths[row] for row in batch) for turn in dealt for batch in turn]
    assert max(tokens) <= 2 * max(rows.lengths)
    assert len(dealt) < len(layout("none", 2, processes, rows)(range(64), rows.lengths.__getitem__))
    assert max(tokens) - min(tokens) <= max(rows.lengths)


def test_rows_of_similar_length_share_a_micro_batch():
    rows = examples(12)
    (step,) = steps(rows, "by-length", 1)
    spans = [sorted(rows.lengths[row] for row in batch) for batch in step[0]]
    assert spans == sorted(spans)
    assert all(before[-1] <= after[0] for before, after in pairwise(spans))


@pytest.mark.parametrize("kind", KINDS)
def test_a_collated_step_counts_its_tokens_and_hashes_its_rows_alike_in_every_layout(kind):
    rows = examples(12)
    (step,) = steps(rows, kind, 1)
    collated = StepCollator(Collator(0), kind in ("padding-free", "packed"))([MicroBatchRows(rows)[b] for b in step[0]])
    (plain,) = steps(rows, "none", 1)
    expected = StepCollator(Collator(0), False)([MicroBatchRows(rows)[b] for b in plain[0]])
    assert collated["checksum"] == expected["checksum"]
    assert collated["tokens"] == expected["tokens"] == sum(rows.lengths)
    assert sum(collated["supervised"]) == sum(expected["supervised"])
    assert collated["computed"] <= expected["computed"]
    assert kind not in ("padding-free", "packed") or collated["computed"] == collated["tokens"]


def test_a_model_that_mixes_rows_gets_those_of_similar_length():
    assert choose_layout("auto", keeps_apart=True, padding=0.3) == "packed"
    assert choose_layout("auto", keeps_apart=True, padding=0.0) == "by-length"
    assert choose_layout("auto", keeps_apart=False, padding=0.3) == "by-length"
    assert choose_layout("none", keeps_apart=False, padding=0.3) == "none"


def test_padding_by_length_is_that_of_the_micro_batches():
    assert padding_by_length([7] * 50, batch_size=8, size=4) == 0
    # In each step of four, sorted, two pairs: 1 and 3 tokens, 5 and 9.
    lengths = [1, 3, 5, 9]
    assert padding_by_length(lengths, batch_size=4, size=2) == pytest.approx(1 - 18 / (2 * 3 + 2 * 9))
    assert padding_by_length(lengths, batch_size=4, size=1) == 0
