"""Rows are tokenised once: what is kept is used again, never where it would be other rows, and never when damaged."""

import errno
import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import struct
import sys
import time
from array import array
from pathlib import Path

import datasets
import psutil
import pytest
from transformers import AutoTokenizer

from gora.assets import resolve
from gora.data import DataCounts, Encoder, Examples, PreparedData, jsonl, kept, making, preparation, prepare
from gora.data.store import Store, Writer
from gora.errors import GoraError, InputError
from gora.files import sweep
from gora.recipe.schema import DataSection, SourceSection
from gora.runtime import workers
from gora.runtime.row_cache import entries, prune
from gora.runtime.world import World

TINY = resolve("builtin:tiny-6m", "models")
ROWS = [{"prompt": f"Count to {n}.", "response": f"Here: {' '.join(map(str, range(n)))}"} for n in range(1, 31)]
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def tiny():
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture
def rows(tmp_path):
    return write(tmp_path / "rows.jsonl", ROWS)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def made(tokenizer, path, cache, *, seed=0, encoder_decoder=False, say=lambda line: None, **settings) -> PreparedData:
    data = DataSection(train=SourceSection(path=str(path)), cache=str(cache), **settings)
    return prepare(data, tokenizer, seed, encoder_decoder=encoder_decoder, say=say)


def content(examples: Examples):
    return [(examples[index], examples.where(index), examples.truncated(index)) for index in range(len(examples))]


def only_entry(cache: Path) -> Path:
    (entry,) = entries(cache)
    return entry.path


# --- once -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{}, {"holdout": 7}, {"max_length": 40, "overlong": "drop"}, {"encoder_decoder": True}], ids=str
)
def test_a_second_command_maps_what_the_first_has_made(tiny, rows, tmp_path, monkeypatch, settings):
    with open(rows, "a") as file:
        file.write('{"prompt": "x"}\n')
    said: list[list[str]] = [[], []]
    first = made(tiny, rows, tmp_path / "cache", bad_rows="skip", say=said[0].append, **settings)
    monkeypatch.setattr(Encoder, "__call__", lambda *_: pytest.fail("rows are tokenised a second time"))
    monkeypatch.setattr(jsonl, "json_parts", lambda *_: pytest.fail("rows are read a second time"))
    second = made(tiny, rows, tmp_path / "cache", bad_rows="skip", say=said[1].append, **settings)
    assert content(second.train) == content(first.train)
    assert (second.eval is None) == (first.eval is None) == ("holdout" not in settings)
    assert second.eval is None or content(second.eval) == content(first.eval)
    assert (second.counts, second.fingerprint) == (first.counts, first.fingerprint)
    assert "rows.jsonl:31" in said[0][-1]
    assert said[1] == said[0]
    with pytest.raises(InputError, match="1 of 31 rows cannot be used"):
        made(tiny, rows, tmp_path / "cache", **settings)


def test_training_and_evaluation_rows_are_kept_apart_and_found_again(tiny, rows, tmp_path):
    other = write(tmp_path / "other.jsonl", ROWS[:4])
    first = made(tiny, rows, tmp_path / "cache", eval=SourceSection(path=str(other)))
    assert [entry.rows for entry in sorted(entries(tmp_path / "cache"), key=lambda entry: entry.rows)] == [4, 30]
    again = made(tiny, other, tmp_path / "cache", eval=SourceSection(path=str(rows)))
    assert len(entries(tmp_path / "cache")) == 2
    assert content(again.train) == content(first.eval)
    assert again.fingerprint == first.eval.fingerprint()


def test_the_fingerprint_is_that_of_ids_and_labels_in_their_order(tiny, rows, tmp_path):
    data = made(tiny, rows, tmp_path / "cache", holdout=3)
    digest = hashlib.sha256()
    for index in range(len(data.train)):
        example = data.train[index]
        ids, labels = example["input_ids"], example["labels"]
        digest.update(struct.pack(f"<II{len(ids)}i{len(labels)}i", len(ids), len(labels), *ids, *labels))
    assert data.fingerprint == data.train.fingerprint() == digest.hexdigest()
    whole = made(tiny, rows, tmp_path / "cache")
    assert whole.fingerprint == whole.train.fingerprint() != data.fingerprint


def test_plans_of_the_first_version_know_their_rows(tiny, tmp_path):
    path = "builtin:gsm8k/train.jsonl"
    columns = {"prompt": "question", "response": "answer"}
    data = made(tiny, path, tmp_path / "cache", template="qa", max_length=64, **columns)
    assert data.fingerprint == "d6eeda542d2c8b2a41f8890e77bc38708441782f214af455c12ccb46c0db593e"
    data = made(tiny, path, tmp_path / "cache", encoder_decoder=True, max_length=60, holdout=10, **columns)
    assert data.fingerprint == "8aa2457f29020cd077fad5906af817cce8d4065df83b23f02bdfdb83dcbe8a20"


# --- never other rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"template": "qa"},
        {"max_length": 40},
        {"max_length": 40, "overlong": "drop"},
        {"response": "prompt"},
        {"format": "text", "text": "response"},
        {"encoder_decoder": True},
        {"train": {"max_rows": 5}},
    ],
    ids=str,
)
def test_other_settings_make_other_rows(tiny, rows, tmp_path, settings):
    made(tiny, rows, tmp_path / "cache")
    source = SourceSection(path=str(rows), **settings.pop("train", {}))
    encoder_decoder = settings.pop("encoder_decoder", False)
    results = []
    for cache in ("cache", "fresh"):
        data = DataSection(train=source, cache=str(tmp_path / cache), **settings)
        results.append(prepare(data, tiny, 0, encoder_decoder=encoder_decoder, say=print))
    assert len(entries(tmp_path / "cache")) == 2
    assert content(results[0].train) == content(results[1].train)


def test_other_content_tokenizer_or_template_makes_other_rows(tiny, rows, tmp_path):
    cache = tmp_path / "cache"
    first = made(tiny, rows, cache)
    stat = rows.stat()
    rows.write_text(rows.read_text().replace("Here", "Hare"))
    os.utime(rows, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert made(tiny, rows, cache).fingerprint != first.fingerprint
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.add_tokens(["Hare"])
    added = made(tokenizer, rows, cache)
    assert len(tiny) in added.train[3]["input_ids"]
    chats = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    write(rows, chats)
    template = tmp_path / "chat.jinja"
    found = []
    for word in ("Q", "R"):
        template.write_text(f"{{% for m in messages %}}{word}{{{{ m.content }}}}{{% endfor %}}{word}")
        template_settings = {"format": "chat", "chat_template": str(template)}
        found.append(made(tiny, rows, cache, **template_settings).train[0]["input_ids"])
    assert found[0] != found[1]
    assert len(entries(cache)) == 5


def test_what_only_chooses_between_rows_makes_no_others(tiny, rows, tmp_path):
    for settings in ({}, {"seed": 1}, {"holdout": 3}, {"bad_rows": "skip"}):
        made(tiny, rows, tmp_path / "cache", **settings)
    assert len(entries(tmp_path / "cache")) == 1


def test_a_file_that_changes_while_it_is_read_is_refused(tiny, rows, tmp_path, monkeypatch):
    key = making.row_key

    def appending(*args):
        found = key(*args)
        with open(rows, "a") as file:
            file.write("{}\n")
        return found

    monkeypatch.setattr(making, "row_key", appending)
    with pytest.raises(GoraError, match="has changed while it was read"):
        made(tiny, rows, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


# --- damage, kills, neighbours ----------------------------------------------------------------------------------------


def shorten(entry: Path) -> None:
    file = entry / "examples.arrow"
    file.write_bytes(file.read_bytes()[:-100])


def flip(entry: Path) -> None:
    file = entry / "examples.arrow"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def change_note(entry: Path) -> None:
    file = entry / "about.json"
    file.write_text(file.read_text().replace('"untrained": 0', '"untrained": 1'))


@pytest.mark.parametrize(
    "damage",
    [
        shorten,
        flip,
        change_note,
        lambda entry: (entry / "about.json").write_text("{"),
        lambda entry: (entry / "about.json").write_text("[]"),
        lambda entry: (entry / "examples.arrow").unlink(),
        lambda entry: (entry / "about.json").unlink(),
    ],
)
def test_what_is_damaged_is_made_again(tiny, rows, tmp_path, damage):
    cache = tmp_path / "cache"
    first = made(tiny, rows, cache)
    expected, entry = content(first.train), only_entry(cache)
    damage(entry)
    again = made(tiny, rows, cache)
    assert (content(again.train), again.counts) == (expected, first.counts)
    assert list(cache.iterdir()) == [entry]
    assert sorted(path.name for path in entry.iterdir()) == ["about.json", "examples.arrow"]


def test_a_killed_writer_leaves_nothing_that_is_taken_for_whole(tiny, rows, tmp_path, monkeypatch):
    cache = tmp_path / "cache"

    def killed():
        add = Writer.add
        monkeypatch.setattr(Writer, "add", lambda *args: (add(*args), os.kill(os.getpid(), signal.SIGKILL)))
        made(tiny, rows, cache)

    process = FORK.Process(target=killed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert entries(cache) == []
    assert any(path.name.startswith(".writing-new") for path in cache.iterdir())
    assert len(made(tiny, rows, cache).train) == 30
    assert not any(path.name.startswith(".writing") for path in cache.iterdir())


def test_of_two_commands_one_makes_the_rows_and_the_other_waits(tiny, rows, tmp_path, monkeypatch):
    cache, write_rows = tmp_path / "cache", kept._write
    ready = FORK.Barrier(2)
    whole, says = kept.whole_note, []

    def meeting(entry):
        found = whole(entry)
        if not says:
            says.append("looked")
            ready.wait()  # both have seen that nothing is kept before either of them goes on
        return found

    def counted(*args):
        (tmp_path / f"written-{os.getpid()}").touch()
        write_rows(*args)

    def run():
        monkeypatch.setattr(kept, "whole_note", meeting)
        monkeypatch.setattr(kept, "_write", counted)
        fingerprint = made(tiny, rows, cache).fingerprint
        (tmp_path / f"fingerprint-{os.getpid()}").write_text(fingerprint)

    processes = [FORK.Process(target=run) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(tmp_path.glob("written-*"))) == 1
    assert len({file.read_text() for file in tmp_path.glob("fingerprint-*")}) == 1


def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(tiny, rows, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be kept in .*file.*data\.cache"):
        made(tiny, rows, tmp_path / "file" / "cache")


def test_a_full_disk_is_named_with_what_makes_room(tiny, rows, tmp_path, monkeypatch):
    cache = tmp_path / "cache"

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Writer, "add", full)
    with pytest.raises(GoraError, match=r"No space left on device.*gora cache --prune.*data\.cache"):
        made(tiny, rows, cache)
    assert list(cache.iterdir()) == []


# --- several processes ------------------------------------------------------------------------------------------------


def many(path: Path) -> Path:
    lines = [json.dumps(row) for row in ROWS * 4]
    lines[17], lines[40], lines[90] = "", '{"prompt": "x"}', "no JSON"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "json"])
def test_worker_processes_make_the_same_examples(tiny, tmp_path, monkeypatch, kind, capfd):
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        many(path)
    elif kind == "json":
        path.write_text(json.dumps([*ROWS, {"prompt": 1}, *ROWS], indent=1))
    else:
        table = datasets.Dataset.from_list([*ROWS, {"prompt": "empty", "response": ""}, *ROWS])
        table.to_csv(path) if kind == "csv" else table.to_parquet(path)
    results, said = [], []
    for count in (1, 3):
        for module in ("jsonl", "tables", "parts"):
            monkeypatch.setattr(f"gora.data.{module}.PART_ROWS", 1000 if count == 1 else 7)
        monkeypatch.setattr(making, "cores", lambda processes, count=count: count)
        lines: list[str] = []
        results.append(made(tiny, path, tmp_path / str(count), bad_rows="skip", max_length=40, say=lines.append))
        said.append(lines)
    assert content(results[0].train) == content(results[1].train)
    assert (results[0].counts, results[0].fingerprint) == (results[1].counts, results[1].fingerprint)
    assert said[0] == said[1]
    assert results[0].counts.train.bad == (2 if kind == "jsonl" else 1)
    shown = capfd.readouterr().out
    assert "rows/s" in shown
    assert "left" in shown


def test_a_worker_that_is_killed_ends_the_command_with_a_reason():
    def work(part):
        if part == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return part

    with pytest.raises(GoraError, match="worker process has ended"):
        list(workers.in_order(work, range(9), 2))


def test_workers_end_with_the_process_that_forked_them(tmp_path):
    def killed():
        def work(part):
            (tmp_path / str(os.getpid())).touch()
            if len(list(tmp_path.iterdir())) == 2:
                os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()

        list(workers.in_order(work, range(9), 2))

    process = FORK.Process(target=killed)
    process.start()
    process.join()
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=60)
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


def test_results_come_in_order_and_parts_are_taken_only_a_few_ahead():
    taken = []

    def parts():
        for part in range(40):
            taken.append(part)
            yield part

    seen = []
    for result in workers.in_order(lambda part: part * 2, parts(), 2):
        seen.append(result)
        assert len(taken) <= len(seen) + 8
    assert seen == [part * 2 for part in range(40)]


def test_cores_are_those_of_the_affinity_and_of_the_threads_that_are_asked_for(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    for threads, processes, expected in (("", 1, 8), ("2", 1, 2), ("2", 3, 6), ("2", 8, 8), ("x", 1, 8)):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        assert workers.cores(processes) == expected


class Told(World):
    """A process of two hosts with two processes each, told what the first processes say."""

    def gather(self, value):
        said = [{"made": [], "refused": None} for _ in range(4)]
        said[0], said[2] = SAID
        said[self.index] = value if self.local_index == 0 else said[self.index]
        return said


SAID: list[dict] = []


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        ({"made": ["/a/x"], "refused": None}, {"made": ["/b/x"], "refused": None}, ["/b/x"]),
        ({"made": ["/a/x"], "refused": None}, {"made": ["/b/y"], "refused": None}, "read different rows"),
        ({"made": [], "refused": ["two rows are bad", ["x:1"]]}, {"made": ["/b/x"], "refused": None}, "two rows"),
    ],
)
def test_the_first_process_of_each_host_makes_the_rows_for_all_of_it(first, second, outcome):
    SAID[:] = [first, second]
    world = Told(index=3, size=4, local_index=1, local_size=2)

    def make():
        pytest.fail("another process makes them")

    if isinstance(outcome, list):
        assert preparation._first_of_each_host(world, make) == outcome
    else:
        with pytest.raises(InputError, match=outcome):
            preparation._first_of_each_host(world, make)


# --- the store --------------------------------------------------------------------------------------------------------


def test_the_file_is_an_arrow_stream_that_datasets_reads(tiny, rows, tmp_path):
    data = made(tiny, rows, tmp_path / "cache")
    table = datasets.Dataset.from_file(str(only_entry(tmp_path / "cache") / "examples.arrow"))
    assert table["input_ids"] == [data.train[index]["input_ids"] for index in range(30)]
    assert table["labels"] == [data.train[index]["labels"] for index in range(30)]


def own_memory():
    """Bytes that this process holds for itself, without pages of files."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_mapped_examples_take_no_memory_of_their_own(tmp_path):
    path = tmp_path / "examples.arrow"
    batch = kept.batch_of([kept.Encoded(_ids(2000), _ids(2000))] * 500, range(500), ["x"] * 500)
    with open(path, "wb") as file:
        writer = Writer(file)
        for _ in range(20):
            writer.add(batch)
        writer.close()
    assert path.stat().st_size > 150e6
    results = FORK.Queue()

    def read():
        before = own_memory()
        examples = Examples(Store.mapped(path))
        tokens = sum(len(examples[index]["input_ids"]) for index in range(len(examples)))
        results.put((tokens, own_memory() - before, len(pickle.dumps(examples))))

    process = FORK.Process(target=read)
    process.start()
    tokens, grown, pickled = results.get()
    process.join()
    assert tokens == 20_000_000
    assert grown < 20e6
    assert pickled < 10_000


def _ids(count):
    return array("i", range(count))


def test_examples_of_a_pickle_are_the_same(tiny, rows, tmp_path):
    data = made(tiny, rows, tmp_path / "cache", holdout=5)
    assert content(pickle.loads(pickle.dumps(data.train))) == content(data.train)
    memory = Examples([kept.Encoded(_ids(3), _ids(3))], ["here"])
    assert content(pickle.loads(pickle.dumps(memory))) == content(memory)
    with pytest.raises(IndexError):
        memory[1]


# --- gora cache -------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_listed_and_deleted(tiny, rows, tmp_path, gora_here, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.chdir(tmp_path)
    made(tiny, rows.name, cache)
    made(tiny, rows.name, cache, template="qa")
    old, new = entries(cache)[::-1]
    week_ago = time.time() - 7 * 86_400
    os.utime(old.path / "about.json", (week_ago, week_ago))
    code, out, _ = gora_here("cache", "--folder", str(cache), cwd=tmp_path)
    assert code == 0
    assert all(each.path.name in out for each in (old, new))
    assert "rows.jsonl" in out
    assert sum(file.stat().st_size for file in old.path.iterdir()) == old.size
    assert gora_here("cache", "--folder", str(cache), "--older-than", "3", cwd=tmp_path)[0] == 2
    code, out, _ = gora_here("cache", "--folder", str(cache), "--prune", "--older-than", "3", cwd=tmp_path)
    assert code == 0
    assert old.path.name in out
    assert [each.path for each in entries(cache)] == [new.path]
    mapped = made(tiny, rows.name, cache, template="qa")
    before = content(mapped.train)
    prune(cache)
    assert list(cache.iterdir()) == []
    assert content(mapped.train) == before
    assert "no rows" in gora_here("cache", "--folder", str(cache), cwd=tmp_path)[1]


def test_using_rows_again_is_noted(tiny, rows, tmp_path):
    cache = tmp_path / "cache"
    made(tiny, rows, cache)
    week_ago = time.time() - 7 * 86_400
    os.utime(only_entry(cache) / "about.json", (week_ago, week_ago))
    made(tiny, rows, cache)
    assert prune(cache, older_than=1) == []


def test_the_folder_is_in_the_hubs_unless_the_recipe_names_another(tiny, rows, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hub"))
    prepare(DataSection(train=SourceSection(path=str(rows))), tiny, 0, encoder_decoder=False, say=print)
    sweep(tmp_path)
    assert len(entries(tmp_path / "hub" / "gora" / "rows")) == 1
    assert isinstance(made(tiny, rows, tmp_path / "own").counts, DataCounts)
    assert len(entries(tmp_path / "own")) == 1
