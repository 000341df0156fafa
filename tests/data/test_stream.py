"""Streams: blocks are the same from wherever they are begun, and what is behind the first is read when it is needed."""

import json
import multiprocessing
from collections import Counter
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from transformers import AutoTokenizer

from gora.assets import resolve
from gora.data import prepare, stream
from gora.errors import GoraError, InputError
from gora.recipe.schema import DataSection, MixedSource, SourceSection
from gora.runtime.row_cache import entries

ROWS = [{"prompt": f"Count to {n}.", "response": f"Here: {n}"} for n in range(25)]


@pytest.fixture(scope="module")
def tiny():
    return AutoTokenizer.from_pretrained(resolve("builtin:tiny-6m", "models"))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("rows.jsonl", ROWS)
    return tmp_path


def write(name, rows):
    with open(name, "w") as file:
        file.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def streamed(tokenizer, train="rows.jsonl", *, cache="cache", seed=3, buffer=8, step=4, say=lambda line: None, **more):
    train = SourceSection(path=train) if isinstance(train, str) else train
    data = DataSection(train=train, cache=cache, streaming=True, shuffle_buffer=buffer, **more)
    return prepare(data, tokenizer, seed, encoder_decoder=False, say=say, step_rows=step)


def places(block):
    return [block.examples.where(index).rpartition("/")[2] for index in range(len(block.examples))]


def blocks(data, numbers):
    return [places(data.stream.block(number)) for number in numbers]


def test_every_row_comes_once_before_any_comes_again_and_each_block_is_shuffled(tiny):
    data = streamed(tiny)
    found = [place for block in blocks(data, range(25)) for place in block]
    # Eight passes over 25 rows in 25 blocks of 8.
    for number in range(1, 26):
        counts = Counter(found[: 8 * number])
        assert len(counts) == min(25, 8 * number)
        assert max(counts.values()) - min(counts.values()) <= 1
    first = [f"rows.jsonl:{line}" for line in range(1, 9)]
    assert sorted(found[:8]) == sorted(first)
    assert found[:8] != first


def test_a_block_has_a_multiple_of_the_rows_of_a_step(tiny):
    assert streamed(tiny, buffer=9, step=4).stream.block_size == 12
    assert streamed(tiny, buffer=1, step=4).stream.block_size == 4


def test_a_block_is_the_same_when_the_stream_begins_with_it(tiny, monkeypatch):
    """As a resumed run does, in another cache: what comes before the block is neither made nor tokenised again."""
    whole = streamed(tiny)
    expected = blocks(whole, range(7))
    state = json.loads(json.dumps(whole.stream.state(5)))
    assert state["block"] == 5
    later = streamed(tiny, cache="other")
    later.stream.resume(state)
    made = []
    make = stream.Stream._make
    monkeypatch.setattr(stream.Stream, "_make", lambda self, number: made.append(number) or make(self, number))
    assert blocks(later, [5, 6]) == expected[5:]
    assert made == [5, 6]
    # And without a state it is reached from the start.
    assert blocks(streamed(tiny, cache="third"), [5]) == [expected[5]]


def test_a_state_of_another_stream_is_refused(tiny):
    data = streamed(tiny, [MixedSource(path="rows.jsonl"), MixedSource(path="rows.jsonl")])
    with pytest.raises(ValueError, match="1 sources"):
        data.stream.resume({"block": 2, "start": [[0, 5, 0]]})


def test_the_seed_orders_a_block_and_the_settings_make_it(tiny):
    first, other = streamed(tiny).stream.block(0), streamed(tiny, seed=4).stream.block(0)
    assert sorted(places(first)) == sorted(places(other))
    assert places(first) != places(other)
    assert len(entries(Path("cache"))) == 1
    prints = {
        streamed(tiny).fingerprint,
        streamed(tiny, seed=4).fingerprint,
        streamed(tiny, template="qa").fingerprint,
        streamed(tiny, buffer=12).fingerprint,
    }
    assert len(prints) == 4
    assert streamed(tiny, cache="elsewhere").fingerprint == streamed(tiny).fingerprint


def test_old_blocks_are_deleted_and_the_first_one_stays(tiny):
    data = streamed(tiny)
    blocks(data, range(6))
    names = sorted(int(entry.path.name.rpartition("-")[2]) for entry in entries(Path("cache")))
    assert names == [0, 4, 5]
    assert {entry.source for entry in entries(Path("cache"))} == {"rows.jsonl (part of a stream)"}


def test_a_block_that_is_needed_soon_is_made_in_the_meantime(tiny, monkeypatch):
    data = streamed(tiny)
    data.stream.make_ahead(1)
    data.stream._join()
    monkeypatch.setattr(stream.Stream, "_write", lambda *_: pytest.fail("made a second time"))
    data.stream.block(1)


def _places_in_process(tokenizer, results):
    results.put(blocks(streamed(tokenizer), range(4)))


def test_processes_share_blocks_and_have_the_same(tiny):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_places_in_process, args=(tiny, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    one, other = (results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    assert one == other == blocks(streamed(tiny, cache="alone"), range(4))


@pytest.mark.parametrize("kind", ["csv", "parquet", "folder"])
def test_other_files_are_streamed_with_their_places(tiny, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    if kind == "csv":
        lines = ["prompt,response", *(f"{row['prompt']},{row['response']}" for row in ROWS)]
        write("rows.csv", lines)
        path, named = "rows.csv", "rows.csv:2"
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), "rows.parquet", row_group_size=7)
        path, named = "rows.parquet", "rows.parquet row 1"
    else:
        (tmp_path / "set").mkdir()
        for part in (0, 1):
            write(f"set/train-{part}.jsonl", ROWS[part * 12 : part * 12 + 12])
        path, named = "./set", "set[train] row 1"
    data = streamed(tiny, path)
    assert named in places(data.stream.block(0))
    state = data.stream.state(2)
    expected = blocks(data, [2, 3])
    later = streamed(tiny, path, cache="other")
    later.stream.resume(state)
    assert blocks(later, [2, 3]) == expected


def test_a_hub_set_is_streamed_and_never_loaded(tiny, monkeypatch):
    """A stand-in for the hub: an IterableDataset and a builder with a revision."""
    asked = []

    class Builder:
        hash = "abc123"

    def load(path, name=None, streaming=False, **_):
        assert streaming, "the whole set is loaded"
        asked.append((path, name))
        return datasets.IterableDatasetDict(
            train=datasets.IterableDataset.from_generator(lambda: iter(ROWS)),
            test=datasets.IterableDataset.from_generator(lambda: iter(ROWS[:3])),
        )

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: Builder)
    data = streamed(tiny, SourceSection(path="org/name", subset="main"))
    assert asked == [("org/name", "main")]
    assert sorted(blocks(data, [0])[0])[0] == "name/main[train] row 1".rpartition("/")[2]
    before = data.fingerprint
    Builder.hash = "def456"
    assert streamed(tiny, SourceSection(path="org/name", subset="main")).fingerprint != before
    with pytest.raises(InputError, match="`split` must be one of 'train', 'test'"):
        streamed(tiny, SourceSection(path="org/name", split="train[:5]"))


def test_a_hub_that_breaks_off_is_named(tiny, monkeypatch):
    def broken():
        yield from ROWS[:9]
        raise ConnectionError("the hub is gone")

    class Builder:
        hash = "abc123"

    found = datasets.IterableDatasetDict(train=datasets.IterableDataset.from_generator(broken))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: found)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: Builder)
    with pytest.raises(GoraError, match=r"org/name\[train\] cannot be read on: the hub is gone"):
        streamed(tiny, "org/name", buffer=24)


def test_sources_of_a_stream_come_by_their_weights(tiny):
    write("more.jsonl", [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 5)
    mixture = [MixedSource(path="rows.jsonl", weight=3.0), MixedSource(path="more.jsonl", format="chat")]
    data = streamed(tiny, mixture, chat_template="plain")
    for number in range(4):
        found = Counter(place.partition(":")[0] for place in places(data.stream.block(number)))
        assert found == {"rows.jsonl": 6, "more.jsonl": 2}
    with pytest.raises(InputError, match=r"data\.train\.1\.weight \(0\.01\) is less than one row of the 8"):
        streamed(tiny, [MixedSource(path="rows.jsonl"), MixedSource(path="more.jsonl", weight=0.01)])


def test_a_bad_row_is_refused_where_it_is_met_or_left_out_and_named_once(tiny):
    write("rows.jsonl", [*ROWS[:12], '{"prompt": "x"', *ROWS[12:]])
    data = streamed(tiny)  # behind the first block
    with pytest.raises(InputError) as refused:
        data.stream.block(1)
    assert refused.value.headline.startswith("rows.jsonl: 1 of 9 rows cannot be used.")
    assert refused.value.problems[0].startswith("rows.jsonl:13: ")
    data = streamed(tiny, cache="other", bad_rows="skip")
    blocks(data, range(3))
    (line,) = data.stream.take_remarks()
    assert "rows.jsonl:13: " in line
    assert data.stream.take_remarks() == []


def test_bad_rows_in_front_end_the_command_at_once(tiny):
    write("rows.jsonl", ['{"prompt": 1', *ROWS])
    said = []
    with pytest.raises(InputError, match="1 of 9 rows cannot be used"):
        streamed(tiny)
    streamed(tiny, bad_rows="skip", say=said.append)
    assert "rows.jsonl:1: " in said[-1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "rows.jsonl is empty"),
        ([{"question": "a", "answer": "b"}] * 3, "No row of rows.jsonl has what the recipe asks for"),
        ([{"prompt": "word " * 90, "response": "b"}] * 3, "leaves no token to train on"),
        ([{"prompt": "a"}, {"response": "b"}] * 6000, "none of 10,000 rows can be used"),
    ],
    ids=["empty", "columns", "too long", "bad"],
)
def test_a_source_without_a_usable_row_ends_the_command(tiny, rows, message):
    write("rows.jsonl", rows)
    with pytest.raises(InputError, match=message):
        streamed(tiny, max_length=40, overlong="drop", bad_rows="skip")


def test_a_row_with_several_examples_may_lie_in_two_blocks(tiny):
    turns = [{"role": role, "content": f"{role} {n}"} for n in range(5) for role in ("user", "assistant")]
    write("rows.jsonl", [{"messages": turns}] * 3)
    settings = {"format": "chat", "chat_template": "plain", "turns": "separate", "buffer": 4, "step": 4}
    data = streamed(tiny, **settings)
    found = blocks(data, range(15))
    flat = [place for block in found for place in block]
    assert set(Counter(flat).values()) == {4}
    assert len(set(flat)) == 15
    later = streamed(tiny, cache="other", **settings)
    later.stream.resume(data.stream.state(7))
    assert blocks(later, [7, 8]) == found[7:9]


def test_a_damaged_block_is_made_again(tiny):
    data = streamed(tiny)
    expected = blocks(data, range(3))
    for entry in entries(Path("cache")):
        content = bytearray((entry.path / "examples.arrow").read_bytes())
        content[len(content) // 2] ^= 1
        (entry.path / "examples.arrow").write_bytes(content)
    assert blocks(streamed(tiny), range(3)) == expected
