"""Batches of the next steps: made ahead or not, of one source or several, resumed or not, they are the same."""

import json
import multiprocessing
import os
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from gora.assets import resolve
from gora.data import Collator
from gora.errors import InputError, Interrupted
from gora.planning.micro_batches import MicroBatches
from gora.recipe import load_recipe
from gora.runs.context import RunContext
from gora.runs.owner import mark
from gora.runtime.world import World
from gora.stages.check import check
from gora.stages.precompute import precompute
from gora.stages.train import train
from gora.training import trainer as trainer_module
from gora.training.batches import StepBatches, StepCollator, StepNumbers
from gora.training.layout import StepLayout
from gora.training.loader import Waited, loader_workers, step_loader
from gora.training.step_rows import steps_of
from tests.helpers.callbacks import call_too
from tests.helpers.kill_points import make_model
from tests.training.test_layout import examples

SMALL = (
    "data.eval={path: 'builtin:gsm8k/test.jsonl', max_rows: 4}",
    "data.max_length=160",
    "gora.steps=2",
    "train.batch_size=8",
    "train.micro_batch_size=4",
    "train.epochs=2",
    "train.log_steps=1",
    "evaluation.steps=null",
    "adapter.dropout=0.1",
)


def small(folder, *more):
    """A recipe on two sources of 30 and 12 rows: 15 (half of them) and 20 in an epoch, two epochs are ten steps."""
    rows = Path(resolve("builtin:gsm8k/train.jsonl", "data")).read_text().splitlines(keepends=True)
    names = [folder / "first.jsonl", folder / "second.jsonl"]
    for name, part in zip(names, (rows[:30], rows[30:42]), strict=True):
        name.write_text("".join(part))
    sources = f"data.train=[{{path: {names[0]}, weight: 0.5}}, {{path: {names[1]}, rows: 20, template: alpaca}}]"
    model = f"model.name={make_model(folder)}"
    return load_recipe("quickstart", [model, sources, *SMALL, *more, f"output={folder / 'run'}"]).recipe


def adapter(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def told(folder):
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["rows"]) for line in steps if "rows" in line]


class Signal(TrainerCallback):
    """Asks this process and its workers to stop in the middle of a step, as a scheduler does with all of a job."""

    def __init__(self, step):
        self.step, self.others = step, set(workers_of(os.getpid()))

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            processes = [*(set(workers_of(os.getpid())) - self.others), os.getpid()]
            subprocess.run(["kill", "-TERM", *map(str, processes)], check=True)


def workers_of(process):
    return [child.pid for child in psutil.Process(process).children(recursive=True)]


def of_stream(folder, *more):
    """A recipe on a stream of 60 rows in blocks of 16: ten steps of 8 rows end in its second pass."""
    rows = Path(resolve("builtin:gsm8k/train.jsonl", "data")).read_text().splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(rows[:60]))
    settings = (
        f"model.name={make_model(folder)}",
        f"data.train={{path: {folder / 'rows.jsonl'}}}",
        "data.streaming=true",
        "data.shuffle_buffer=15",
        f"data.cache={folder / 'cache'}",
        "train.max_steps=10",
        "train.save_steps=3",
        "train.keep_checkpoints=9",
    )
    return load_recipe("quickstart", [*SMALL, *settings, *more, f"output={folder / 'run'}"]).recipe


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    """A run on a stream that nothing interrupts."""
    folder = tmp_path_factory.mktemp("streamed")
    recipe = of_stream(folder)
    precompute(recipe)
    assert train(recipe).steps == 10
    return recipe, folder / "run"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A run on two sources that nothing interrupts."""
    folder = tmp_path_factory.mktemp("mixed")
    recipe = small(folder)
    precompute(recipe)
    assert train(recipe).steps == 10
    return recipe, folder / "run"


def again(mixed, folder):
    """Another run with the same plan."""
    mark(folder)
    (folder / "plan.safetensors").write_bytes((mixed[1] / "plan.safetensors").read_bytes())
    return mixed[0].model_copy(update={"output": str(folder)})


@pytest.mark.parametrize(("workers", "step"), [(0, 3), (1, 7)])
def test_a_run_on_several_sources_that_is_stopped_and_resumed_equals_an_unbroken_one(
    mixed, tmp_path, monkeypatch, workers, step
):
    monkeypatch.setattr(trainer_module, "loader_workers", lambda *_: workers)
    recipe, before = again(mixed, tmp_path / "run"), set(workers_of(os.getpid()))
    with monkeypatch.context() as patched:
        call_too(patched, Signal(step))
        with pytest.raises(Interrupted, match=f"checkpoint-{step} holds step {step} of 10"):
            train(recipe)
    assert set(workers_of(os.getpid())) <= before
    train(recipe, mode="resume")
    assert same(adapter(tmp_path / "run"), adapter(mixed[1]))
    assert told(tmp_path / "run") == told(mixed[1])


@pytest.mark.parametrize(("workers", "step"), [(0, 7), (1, 4)])
def test_a_run_on_a_stream_that_is_stopped_and_resumed_equals_an_unbroken_one(
    streamed, tmp_path, monkeypatch, workers, step
):
    """In another cache, as on another host: a checkpoint says where in the stream it is."""
    monkeypatch.setattr(trainer_module, "loader_workers", lambda *_: workers)
    recipe = again(streamed, tmp_path / "run")
    data = recipe.data.model_copy(update={"cache": str(tmp_path / "cache")})
    recipe = recipe.model_copy(update={"data": data})
    with monkeypatch.context() as patched:
        call_too(patched, Signal(step))
        with pytest.raises(Interrupted, match=f"checkpoint-{step} holds step {step} of 10"):
            train(recipe)
    shutil.rmtree(tmp_path / "cache")
    train(recipe, mode="resume")
    assert same(adapter(tmp_path / "run"), adapter(streamed[1]))
    assert told(tmp_path / "run") == told(streamed[1])


def test_a_run_on_a_stream_is_resumed_from_a_checkpoint_in_the_middle_of_a_block(streamed, tmp_path):
    recipe = again(streamed, tmp_path / "run")
    kept = streamed[1] / "checkpoints" / "checkpoint-3"
    shutil.copytree(kept, tmp_path / "run" / "checkpoints" / "checkpoint-3")
    assert json.loads((kept / "stream.json").read_text()) == {"block": 1, "start": [[0, 16, 0]]}
    train(recipe, mode="resume")
    assert same(adapter(tmp_path / "run"), adapter(streamed[1]))


def test_the_gradient_pass_takes_the_rows_of_the_first_steps_of_a_stream(streamed):
    with RunContext.open(streamed[0], command="test", mode="resume") as context:
        batches = MicroBatches(context)
        rows = [row for index in range(batches.steps) for row in batches._rows(index)]
        steps = steps_of(context.data, 8, context.recipe.seed, 10)
        assert rows == steps.rows(1)[1]
        assert steps.rows(1)[0] is context.data.train


def test_a_bad_row_that_a_stream_meets_ends_training_with_its_line(tmp_path, monkeypatch):
    recipe = of_stream(tmp_path, "adapter.method=lora", "data.eval=null")
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines[:20], "{}", *lines[21:]]) + "\n")
    monkeypatch.setattr(trainer_module, "loader_workers", lambda *_: 1)
    with pytest.raises(InputError) as refused:
        train(recipe)
    assert refused.value.headline.startswith(f"{tmp_path}/rows.jsonl: 1 of 17 rows cannot be used.")
    assert refused.value.problems[0].startswith(f"{tmp_path}/rows.jsonl:21: ")
    skipping = recipe.model_copy(update={"data": recipe.data.model_copy(update={"bad_rows": "skip"})})
    assert train(skipping, mode="overwrite").steps == 10
    assert f"{tmp_path}/rows.jsonl:21: " in (tmp_path / "run" / "log.txt").read_text()


def test_a_check_says_what_it_cannot_know_of_a_stream(streamed):
    checked = check(streamed[0], processes=1)
    assert not checked.problems
    assert any("all that is said of them is known of the first 16" in note for note in checked.notes)
    assert checked.facts["steps"]["optimizer_steps"] == 10
    assert checked.facts["memory"]["longest_row"] == streamed[0].data.max_length


def test_other_shares_are_other_rows_that_a_plan_does_not_fit(mixed, tmp_path):
    recipe = again(mixed, tmp_path / "run")
    first, second = recipe.data.train
    data = recipe.data.model_copy(update={"train": [first.model_copy(update={"weight": 1.0}), second]})
    with pytest.raises(InputError, match="made from other training rows"):
        train(recipe.model_copy(update={"data": data}))


def test_the_seconds_waited_for_data_are_in_the_results(mixed):
    facts = json.loads((mixed[1] / "results.json").read_text())["train"]
    assert 0 < facts["data_wait_seconds"] < facts["seconds"]


class Numbered:
    """Steps of a run that fail from one on."""

    per_epoch = 6

    def __init__(self, rows, fails):
        self._rows, self._fails = rows, fails

    def remarks(self):
        return []

    def rows(self, step):
        if step == self._fails:
            raise InputError("rows.jsonl:7: cannot be used", ["no prompt"])
        return self._rows, [step, step + 1]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_steps_come_in_their_order_from_any_workers_and_one_that_is_refused_says_why_in_its_place(workers):
    rows = examples(14)
    layout = StepLayout(kind="none", size=2, longest=max(rows.lengths), processes=1)
    batches, numbers = StepBatches(Numbered(rows, fails=11), layout, 0), StepNumbers(6)
    numbers.set_epoch(1)
    loader = step_loader(batches, numbers, StepCollator(Collator(0), False), last=20, workers=workers, pin=False)
    items = list(loader)
    loader.close()
    for step, item in zip(range(7, 13), items, strict=True):
        if step == 11:
            assert (item["refused"].headline, item["refused"].problems) == (
                "rows.jsonl:7: cannot be used",
                ("no prompt",),
            )
        else:
            (batch,) = item["micro_batches"]
            found = [
                ids[mask == 1].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
            ]
            assert found == [rows[step]["input_ids"], rows[step + 1]["input_ids"]]


class Telling(StepBatches):
    """Tells which steps have been made."""

    def __init__(self, made, *given):
        super().__init__(*given)
        self._made = made

    def __getitem__(self, step):
        item = super().__getitem__(step)
        self._made.put(step)
        return item


def test_workers_make_steps_of_the_next_epoch_before_it_begins_and_none_after_the_last_of_the_run():
    rows, made = examples(14), multiprocessing.get_context("fork").Queue()
    layout = StepLayout(kind="none", size=2, longest=max(rows.lengths), processes=1)
    numbers = StepNumbers(3)
    batches = Telling(made, Numbered(rows, fails=99), layout, 0)
    before, seen, known = set(workers_of(os.getpid())), [], []
    loader = step_loader(batches, numbers, StepCollator(Collator(0), False), last=8, workers=1, pin=False)
    for epoch, ahead in enumerate((5, 8, 8)):
        numbers.set_epoch(epoch)
        assert len(list(loader)) == min(3, 8 - 3 * epoch)
        seen.append(set(workers_of(os.getpid())) - before)
        known += [made.get(timeout=60) for _ in range(ahead - len(known))]
    assert known == list(range(1, 9))
    assert made.empty()
    assert len(seen[0]) == 1
    assert seen[0] == seen[1]
    loader.close()
    assert set(workers_of(os.getpid())) == before


def test_an_epoch_that_does_not_follow_begins_with_its_own_first_step():
    rows = examples(14)
    layout = StepLayout(kind="none", size=2, longest=max(rows.lengths), processes=1)
    numbers = StepNumbers(3)
    batches = StepBatches(Numbered(rows, fails=99), layout, 0)
    loader = step_loader(batches, numbers, StepCollator(Collator(0), False), last=12, workers=0, pin=False)
    assert next(iter(loader))["checksum"] == next(iter(loader))["checksum"]
    firsts = []
    for epoch in (2, 0, 1):
        numbers.set_epoch(epoch)
        firsts.append([item["checksum"] for item in loader])
    whole = [StepCollator(Collator(0), False).loaded([batches[step]])["checksum"] for step in range(1, 10)]
    assert [*firsts[1], *firsts[2], *firsts[0]] == whole


def test_a_worker_is_used_beside_a_gpu_alone_and_where_a_core_is_left(monkeypatch):
    usable = [0]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable[0])))
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    found = []
    for usable[0] in (1, 2, 8):
        found.append((loader_workers(cuda, World()), loader_workers(cpu, World())))
    assert found == [(0, 0), (1, 0), (1, 0)]


def test_waiting_is_measured_for_each_step_and_summed(monkeypatch):
    clock = iter([1.0, 1.5, 4.0, 4.25])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    waited = Waited()
    for seconds in (0.5, 0.25):
        with waited.measuring():
            pass
        assert waited.last == seconds
    assert waited.total == 0.75
