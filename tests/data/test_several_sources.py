"""Several sources: each read in its own way, and each with its share of every epoch."""

import json
import pickle
from collections import Counter

import pytest
from transformers import AutoTokenizer

from gora.assets import resolve
from gora.data import draw_rows, epoch_order, prepare
from gora.errors import InputError
from gora.recipe.schema import DataSection, MixedSource, SourceSection
from gora.runtime.row_cache import entries

SUMS = [{"question": f"{n} + {n}?", "answer": str(2 * n)} for n in range(10)]
CHATS = [
    {"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"Here: {n}"}]}
    for n in range(6)
]


@pytest.fixture(scope="module")
def tiny():
    return AutoTokenizer.from_pretrained(resolve("builtin:tiny-6m", "models"))


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, rows in (("sums", SUMS), ("chats", CHATS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def sums(**settings):
    return MixedSource(path="sums.jsonl", prompt="question", response="answer", template="qa", **settings)


def chats(**settings):
    return MixedSource(path="chats.jsonl", format="chat", **settings)


def mixed(tokenizer, *sources, seed=3, say=lambda line: None, **settings):
    data = DataSection(train=list(sources), cache="cache", chat_template="plain", **settings)
    return prepare(data, tokenizer, seed, encoder_decoder=False, say=say)


def places(rows, indices):
    return Counter(rows.where(index) for index in indices)


def test_each_source_is_read_in_its_own_format_and_keeps_its_places(tiny, files):
    together = mixed(tiny, sums(), chats())
    alone = [mixed(tiny, sums()), mixed(tiny, chats())]
    assert len(together.train) == 16
    for index in range(16):
        rows, at = (alone[0].train, index) if index < 10 else (alone[1].train, index - 10)
        assert together.train[index] == rows[at]
        assert together.train.where(index) == rows.where(at) == f"{'sums' if index < 10 else 'chats'}.jsonl:{at + 1}"
    assert "Question: 3 + 3?" in tiny.decode(together.train[3]["input_ids"])
    assert len(entries(files / "cache")) == 2  # the rows of a source are kept for every mixture that has it


def test_without_shares_an_epoch_has_every_row_of_every_source_once(tiny, files):
    rows = mixed(tiny, sums(), chats()).train
    orders = [epoch_order(rows, 3, epoch) for epoch in range(2)]
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert orders[0] != orders[1]
    # The sources are mixed and not one behind the other.
    assert len({index < 10 for index in orders[0][:8]}) == 2


def test_weights_and_counts_say_how_many_rows_of_a_source_come(tiny, files):
    rows = mixed(tiny, sums(weight=2), chats(rows=4)).train
    assert rows.per_epoch == 24
    for epoch in range(3):
        found = places(rows, epoch_order(rows, 3, epoch))
        assert [found[f"sums.jsonl:{line}"] for line in range(1, 11)] == [2] * 10
        assert sum(count for place, count in found.items() if place.startswith("chats")) == 4
        assert max(count for place, count in found.items() if place.startswith("chats")) == 1


def test_no_row_comes_again_before_all_of_its_source_have_come(tiny, files):
    rows = mixed(tiny, sums(weight=0.5), chats(rows=9)).train
    seen = [places(rows, epoch_order(rows, 3, epoch)) for epoch in range(4)]
    halves = [{place for place in found if place.startswith("sums")} for found in seen]
    assert all(len(half) == 5 for half in halves)
    assert len(halves[0] | halves[1]) == len(halves[2] | halves[3]) == 10
    assert halves[0] != halves[2]  # redrawn, not repeated
    for number in range(1, 5):
        total = sum(seen[:number], Counter())
        counts = [total[f"chats.jsonl:{line}"] for line in range(1, 7)]
        assert sum(counts) == 9 * number
        assert max(counts) - min(counts) <= 1


def test_the_seed_chooses_the_rows_and_nothing_else_does(tiny, files):
    draw = [mixed(tiny, sums(weight=0.5), chats(), seed=seed).train.members(0).tolist() for seed in (3, 3, 4)]
    assert draw[0] == draw[1] != draw[2]


def test_the_gradient_pass_draws_from_the_mixture(tiny, files):
    rows = mixed(tiny, sums(rows=2), chats(rows=6)).train
    drawn = draw_rows(rows, 12, seed=5)
    # The first eight are those of one epoch: two sums, and every chat.
    found = places(rows, drawn[:8])
    assert sum(count for place, count in found.items() if place.startswith("sums")) == 2
    assert [found[f"chats.jsonl:{line}"] for line in range(1, 7)] == [1] * 6
    assert len(drawn) == 12
    assert drawn == draw_rows(rows, 12, seed=5) != draw_rows(rows, 12, seed=6)


def test_shares_and_content_change_the_fingerprint_and_a_second_command_finds_the_same(tiny, files):
    prints = [
        mixed(tiny, *sources).fingerprint
        for sources in (
            (sums(), chats()),
            (chats(), sums()),
            (sums(weight=2), chats()),
            (sums(rows=4), chats()),
            (sums(max_rows=4), chats()),
            (sums(weight=1), chats(rows=6)),
        )
    ]
    assert len(set(prints[:5])) == 5
    assert prints[5] == prints[0]


def test_a_bad_row_is_named_with_its_source_and_line(tiny, files):
    with open("chats.jsonl", "a") as file:
        file.write('{"messages": []}\n')
    with open("sums.jsonl", "a") as file:
        file.write('{"question": "?"\n')
    with pytest.raises(InputError) as refused:
        mixed(tiny, sums(), chats())
    assert refused.value.headline.startswith(
        "sums.jsonl: 1 of 11 rows cannot be used; chats.jsonl: 1 of 7 rows cannot be used."
    )
    assert [problem.partition(": ")[0] for problem in refused.value.problems] == ["sums.jsonl:11", "chats.jsonl:7"]
    said = []
    data = mixed(tiny, sums(rows=5), chats(), bad_rows="skip", say=said.append)
    assert (data.counts.train.rows, data.counts.train.bad, data.counts.train.used) == (18, 2, 16)
    assert "chats.jsonl:7" in said[-1]


def test_a_source_without_the_columns_of_its_format_is_named(tiny, files):
    with pytest.raises(InputError, match=r"No row of chats\.jsonl has what the recipe asks for"):
        mixed(tiny, sums(), MixedSource(path="chats.jsonl"))


def test_rows_set_aside_come_from_all_sources_and_the_rest_keeps_its_shares(tiny, files):
    data = mixed(tiny, sums(weight=2), chats(), holdout=5)
    held = {data.eval.where(index) for index in range(5)}
    trained = places(data.train, epoch_order(data.train, 3, 0))
    assert len(held) == 5
    assert not held & set(trained)
    assert set(trained.values()) == {1, 2}
    assert len(trained) == 11
    assert data.train.per_epoch == sum(trained.values())


def test_evaluation_rows_of_several_sources_follow_each_other(tiny, files):
    data = mixed(tiny, sums(), eval=[chats(max_rows=2), sums(max_rows=3)])
    assert [data.eval.where(index) for index in range(5)] == [
        *(f"chats.jsonl:{line}" for line in (1, 2)),
        *(f"sums.jsonl:{line}" for line in (1, 2, 3)),
    ]
    assert (data.counts.eval.used, data.eval.per_epoch) == (5, 5)


def test_a_process_that_is_started_has_the_same_mixture(tiny, files):
    rows = mixed(tiny, sums(weight=0.5), chats()).train
    copy = pickle.loads(pickle.dumps(rows))
    assert epoch_order(copy, 3, 1) == epoch_order(rows, 3, 1)
    assert [copy[index] for index in range(16)] == [rows[index] for index in range(16)]


def test_one_source_is_what_it_was_before_there_were_several(tiny, files):
    data = DataSection(train=SourceSection(path="sums.jsonl"), prompt="question", response="answer", cache="cache")
    rows = prepare(data, tiny, 0, encoder_decoder=False, say=print)
    assert rows.train.mixture is None
    assert rows.fingerprint == rows.train.fingerprint()
