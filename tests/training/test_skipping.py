"""Steps that are not finite: skipped, named, counted, resumed across; spikes; checkpoints by the clock."""

import json
import math
import shutil
from collections import defaultdict
from functools import partial
from statistics import median

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from gora.errors import GoraError
from gora.recipe import load_recipe
from gora.runs.failure import read_failure
from gora.runs.folder import RunFolder
from gora.runs.owner import mark
from gora.runtime.interrupt import StopRequest
from gora.runtime.world import World
from gora.stages.train import train
from gora.training import assembly
from gora.training.callbacks import StopOrSave
from gora.training.course import Course
from gora.training.step_rows import name_rows
from gora.training.trainer import GoraTrainer
from tests.helpers.callbacks import call_too
from tests.helpers.kill_points import make_model

# Steps of 4 rows in micro-batches of 2: five of 18 rows in an epoch, the last of them with 2.
SMALL = (
    "adapter.method=lora",
    "adapter.dropout=0.1",
    "data.train.max_rows=18",
    "data.eval=null",
    "evaluation.steps=null",
    "data.max_length=224",
    "data.packing=none",
    "train.batch_size=4",
    "train.micro_batch_size=2",
    "train.max_steps=8",
    "train.epochs=9",
    "train.log_steps=1",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def small(model, tmp_path):
    """A recipe of a few steps, in a folder of its own."""

    def make(name="run", *more):
        return load_recipe("quickstart", [*SMALL, f"model.name={model}", f"output={tmp_path / name}", *more]).recipe

    return make


def lines(recipe):
    return [json.loads(line) for line in RunFolder.of(recipe.output).metrics.read_text().splitlines()]


def adapter(recipe):
    return load_file(RunFolder.of(recipe.output).adapter / "adapter_model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def poisoned(monkeypatch, *steps, value=math.nan):
    """The loss of the first micro-batch of these steps is NaN, or infinite with an ordinary gradient."""
    compute, seen = GoraTrainer.compute_loss, defaultdict(int)

    def compute_loss(self, model, inputs, *arguments, **named):
        step = self.state.global_step + 1
        seen[step] += 1

        def made(**batch):
            outputs = model(**batch)
            outputs.loss = outputs.loss * value if math.isnan(value) else outputs.loss + value
            return outputs

        bad = step in steps and seen[step] % 2 == 1
        return compute(self, made if bad else model, inputs, *arguments, **named)

    monkeypatch.setattr(GoraTrainer, "compute_loss", compute_loss)


class InfiniteGradient(TrainerCallback):
    """A gradient that is infinite in one place, after losses were ordinary."""

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 2:
            kwargs["optimizer"].param_groups[1]["params"][0].grad[0, 0] = math.inf


def planned(monkeypatch, *steps):
    """Training in which the optimizer of torch does nothing when it is called for these steps."""
    take, calls = torch.optim.AdamW.step, []

    def step(self, closure=None):
        calls.append(1)
        return None if len(calls) in steps else take(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)


@pytest.mark.parametrize(
    ("by", "packing"), [("nan", "none"), ("nan", "packed"), ("-inf", "none"), ("gradient", "none")]
)
def test_a_run_with_a_skipped_step_leaves_the_bits_of_a_run_that_was_planned_that_way(small, monkeypatch, by, packing):
    with monkeypatch.context() as patched:
        planned(patched, 3)
        expected = small("planned", f"data.packing={packing}")
        train(expected)
    found = small("skipped", f"data.packing={packing}")
    if by == "gradient":
        call_too(monkeypatch, InfiniteGradient())
    else:
        poisoned(monkeypatch, 3, value=float(by))
    train(found)
    assert same(adapter(found), adapter(expected))
    mine, others = lines(found), lines(expected)
    assert [line["step"] for line in mine if "loss" in line] == [1, 2, 4, 5, 6, 7, 8]
    keys = ("step", "loss", "grad_norm", "learning_rate_a", "rows", "tokens")
    assert [[line[key] for key in keys] for line in mine if "loss" in line] == [
        [line[key] for key in keys] for line in others if line["step"] != 3
    ]
    (skipped,) = [line for line in mine if "skipped" in line]
    assert skipped["step"] == 3
    told = skipped["skipped"]
    if by == "gradient":
        assert (told["loss"], told["grad_norm"]) == (others[2]["loss"], "inf")
    else:
        assert (told["loss"], told["grad_norm"]) == (by, "nan")
    assert json.loads(RunFolder.of(found.output).results.read_text())["train"]["skipped_steps"] == 1


@pytest.mark.parametrize("max_norm", ["1.0", "null"])
@pytest.mark.parametrize("method", ["lora-fa", "lora-pro", "adalora", "full"])
def test_methods_with_optimizers_and_steps_of_their_own_skip_as_well(small, monkeypatch, method, max_norm):
    poisoned(monkeypatch, 1, 4)
    recipe = small("run", f"adapter.method={method}", f"train.max_grad_norm={max_norm}")
    made = train(recipe).adapter
    assert [line["step"] for line in lines(recipe) if "skipped" in line] == [1, 4]
    values = load_file(next(made.glob("*model.safetensors")))
    assert all(value.isfinite().all() for value in values.values())


def test_the_rows_of_a_skipped_step_are_those_that_the_step_was_made_of(small, monkeypatch, capsys):
    """All rows of the step as the model met them, in an epoch after the first too."""
    met, compute = defaultdict(list), GoraTrainer.compute_loss

    def compute_loss(self, model, inputs, *arguments, **named):
        step = self.state.global_step + 1
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
            met[step].append(ids[mask != 0].tolist())
        loss = compute(self, model, inputs, *arguments, **named)
        return loss * (math.nan if step in (2, 7) else 1.0)

    monkeypatch.setattr(GoraTrainer, "compute_loss", compute_loss)
    recipe, held = small(), []
    of = assembly._step_rows

    def hold(context, model, steps):
        held.append(context.data.train)
        return of(context, model, steps)

    monkeypatch.setattr(assembly, "_step_rows", hold)
    train(recipe)
    (rows,) = held
    place = {tuple(rows[index]["input_ids"]): rows.where(index) for index in range(len(rows))}
    told = {line["step"]: line["skipped"]["rows"] for line in lines(recipe) if "skipped" in line}
    for step in (2, 7):
        numbers = sorted(int(place[tuple(ids)].rpartition(":")[2]) for ids in met[step])
        assert len(numbers) == 4
        assert told[step] == "builtin:gsm8k/train.jsonl:" + ", ".join(map(str, numbers))
        assert f"its rows: {told[step]}." in capsys.readouterr().out or step == 7


@pytest.mark.parametrize(
    ("places", "named"),
    [
        (["a.jsonl:12", "a.jsonl:2", "b.jsonl:3"], "a.jsonl:2, 12; b.jsonl:3"),
        (["a:b.json:4 (row 2)", "a:b.json:10 (message 3)"], "a:b.json:4 (row 2), 10 (message 3)"),
        (["hub row 3", "hub row 1"], "hub row 1, hub row 3"),
    ],
)
def test_rows_are_named_by_file_and_line(places, named):
    assert name_rows(places) == named
    assert name_rows([f"a.jsonl:{number}" for number in range(1, 9)], 2) == "a.jsonl:1, 2 and 6 more"


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_run_that_is_resumed_before_between_and_after_skipped_steps_is_the_unbroken_one(small, monkeypatch, step):
    poisoned(monkeypatch, 3, 4)
    unbroken, again = (small(name, "train.save_steps=1", "train.keep_checkpoints=9") for name in ("whole", "again"))
    train(unbroken)
    folder, other = RunFolder.of(unbroken.output), RunFolder.of(again.output)
    mark(other.path)
    shutil.copytree(folder.checkpoints / f"checkpoint-{step}", other.checkpoints / f"checkpoint-{step}")
    shutil.copy(folder.metrics, other.metrics)
    train(again, mode="resume")
    assert same(adapter(again), adapter(unbroken))
    timed = ("tokens_per_second", "computed_per_second", "waiting")
    without_rate = [[{**line, **dict.fromkeys(timed, 0)} for line in lines(each)] for each in (unbroken, again)]
    assert without_rate[0] == without_rate[1]
    courses = [Course.read(each.checkpoints / "checkpoint-8") for each in (folder, other)]
    assert courses[0] == courses[1]
    assert (courses[0].taken, courses[0].skipped, courses[0].in_a_row) == (6, 2, 0)


def test_too_many_skipped_steps_in_a_row_end_the_run_with_what_the_last_good_step_left(small, monkeypatch, gora_here):
    recipe = small("run", "train.save_minutes=null")
    folder = RunFolder.of(recipe.output)
    with monkeypatch.context() as patched:
        poisoned(patched, 3, 4, 5)
        with pytest.raises(GoraError, match=r"latest 3 steps in a row was NaN") as ended:
            train(recipe)
    assert ended.value.exit_code == 1
    assert "checkpoint-5 holds what step 2 left; --resume continues after the skipped rows" in str(ended.value)
    failure = read_failure(folder)
    assert failure.code == "not-finite"
    assert len(failure.rows) == len(set(failure.rows)) == 4 + 4 + 2
    assert all(row.startswith("builtin:gsm8k/train.jsonl:") for row in failure.rows)
    assert "learning_rate" in failure.message
    assert folder.log.read_text().splitlines()[-1] in f"error: {failure.message}"
    assert not folder.adapter.exists()
    two, planned_so = small("two", "train.save_steps=1", "train.keep_checkpoints=9"), small("planned")
    train(two)
    kept, good = (
        load_file(RunFolder.of(each.output).checkpoints / name / "adapter_model.safetensors")
        for each, name in ((recipe, "checkpoint-5"), (two, "checkpoint-2"))
    )
    assert same(kept, good)
    train(recipe, mode="resume")
    with monkeypatch.context() as patched:
        planned(patched, 3, 4, 5)
        train(planned_so)
    assert same(adapter(recipe), adapter(planned_so))


def test_what_is_bad_after_a_resume_ends_the_run_at_once_and_more_may_be_allowed(small, monkeypatch):
    poisoned(monkeypatch, 3, 4, 5, 6)
    recipe = small()
    for step in (5, 6):
        with pytest.raises(GoraError, match=rf"training ends at step {step} "):
            train(recipe, mode="new" if step == 5 else "resume")
    more = small("run", "train.max_skipped_steps=9")
    train(more, mode="resume")
    assert [line["step"] for line in lines(more) if "skipped" in line] == [3, 4, 5, 6]


def test_a_run_whose_last_steps_were_skipped_is_completed_once_more_may_be(small, monkeypatch):
    poisoned(monkeypatch, 6, 7, 8)
    recipe = small()
    with pytest.raises(GoraError, match=r"checkpoint-8 holds what step 5 left; --resume and a larger number complete"):
        train(recipe)
    with pytest.raises(GoraError, match=r"training ends at step 8 .*\n?.*metrics.jsonl names the rows"):
        train(recipe, mode="resume")
    train(small("run", "train.max_skipped_steps=4"), mode="resume")
    assert RunFolder.of(recipe.output).adapter.exists()


def test_a_run_of_which_every_step_was_skipped_does_not_pass_for_a_trained_one(small, monkeypatch):
    poisoned(monkeypatch, 1, 2)
    recipe = small("run", "train.max_steps=2")
    with pytest.raises(GoraError, match="was NaN or infinite"):
        train(recipe)
    assert not RunFolder.of(recipe.output).adapter.exists()


@pytest.fixture(scope="module")
def infinite_word(model, tmp_path_factory):
    """A model with an infinite embedding, rows of which one has its token, and the number of that row."""
    folder = tmp_path_factory.mktemp("word")
    base = shutil.copytree(model, folder / "base")
    from transformers import AutoTokenizer

    words = ["river", "stone", "cloud", "green", "seven", "window", "paper", "silver"]
    its = AutoTokenizer.from_pretrained(base)
    rows = [{"question": f"Say {word}.", "answer": f"I say {word}."} for word in words]
    ids = [set(its(f"{row['question']} {row['answer']}")["input_ids"]) for row in rows]
    token = next(token for token in ids[5] if not any(token in other for other in ids[:5] + ids[6:]))
    tensors = load_file(base / "model.safetensors")
    (key,) = [name for name in tensors if "embed_tokens" in name]
    tensors.setdefault("lm_head.weight", tensors[key].clone())
    tensors[key][token] = math.inf
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    for name, chosen in (("rows", rows), ("good", rows[:5]), ("other", rows[:6])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return base, folder


def with_word(infinite_word, tmp_path, evaluated):
    base, folder = infinite_word
    rows = f"data.train={{path: {folder / 'rows.jsonl'}}}"
    others = f"data.eval={{path: {folder / evaluated}}}"
    return load_recipe(
        "quickstart", [*SMALL, rows, "data.train.max_rows=null", others, f"model.name={base}", f"output={tmp_path}/run"]
    ).recipe


def test_a_row_whose_loss_is_not_finite_by_itself_is_named_alone(infinite_word, tmp_path, capsys):
    recipe = with_word(infinite_word, tmp_path, "good.jsonl")
    result = train(recipe)
    place = f"{infinite_word[1] / 'rows.jsonl'}:6"
    skipped = [line["skipped"] for line in lines(recipe) if "skipped" in line]
    assert len(skipped) == 4  # once in an epoch of two steps
    assert {each["not_finite"] for each in skipped} == {place}
    assert f"the loss of these rows is not finite: {place}." in capsys.readouterr().out
    assert math.isfinite(result.losses["final"])


def test_an_evaluation_that_is_not_finite_names_its_rows_before_training(infinite_word, tmp_path):
    with pytest.raises(
        GoraError, match=r"evaluation loss of the base model is NaN or infinity .*in 1 of 6 rows"
    ) as ended:
        train(with_word(infinite_word, tmp_path, "other.jsonl"))
    assert f"{infinite_word[1] / 'other.jsonl'}:6" in str(ended.value)


def test_a_step_far_above_the_usual_loss_is_told_with_its_rows(small, monkeypatch):
    compute = GoraTrainer.compute_loss

    def compute_loss(self, model, *arguments, **named):
        def made(**batch):
            outputs = model(**batch)
            outputs.loss = outputs.loss * (3.0 if self.state.global_step + 1 == 20 else 1.0)
            return outputs

        return compute(self, made, *arguments, **named)

    monkeypatch.setattr(GoraTrainer, "compute_loss", compute_loss)
    recipe = small("run", "train.max_steps=22", "train.learning_rate=1e-5")
    train(recipe)
    losses = {line["step"]: line["loss"] for line in lines(recipe) if "loss" in line}
    (spike,) = [line for line in lines(recipe) if "spike" in line]
    assert spike["step"] == 20
    assert spike["spike"]["loss"] == losses[20]
    assert spike["spike"]["usual"] == median(losses[step] for step in range(1, 20))
    assert spike["spike"]["rows"].count(",") == 1  # the last step of the fourth epoch has two rows
    assert "spike     loss " in RunFolder.of(recipe.output).log.read_text()


def test_the_bound_of_a_spike_is_a_robust_one():
    random = np.random.default_rng(0)
    losses = random.normal(2.0, 0.1, 200).tolist()
    losses[90] = 9.0
    course, spikes = Course(), []
    for step, loss in enumerate(losses, start=1):
        if course.taken >= 16:
            window = np.array(losses[max(0, step - 65) : step - 1])
            usual = np.median(window)
            bound = max(usual + 10 * np.median(abs(window - usual)), 1.1 * usual)
            assert course.bound == pytest.approx(bound, rel=1e-12)
        else:
            assert course.bound is None
        if course.take(step, loss, 1.0):
            spikes.append(step)
    assert spikes == [91]
    assert Course(**json.loads(json.dumps(course.as_json()))) == course


class Hours(TrainerCallback):
    """A clock that goes eleven minutes ahead in every step."""

    now = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self.now += 11 * 60


@pytest.mark.parametrize(
    ("settings", "saved"),
    [
        ((), [3, 6]),
        (("train.save_steps=4", "train.keep_checkpoints=9"), [3, 4, 7, 8]),
        (("train.save_minutes=11", "train.keep_checkpoints=3"), [5, 6, 7]),
        (("train.save_minutes=null",), []),
    ],
)
def test_a_checkpoint_is_saved_when_minutes_have_passed(small, monkeypatch, settings, saved):
    hours = Hours()
    call_too(monkeypatch, hours)
    monkeypatch.setattr(assembly, "StopOrSave", partial(StopOrSave, clock=lambda: hours.now))
    recipe = small("run", *settings)
    train(recipe)
    assert [int(path.name.partition("-")[2]) for path in RunFolder.of(recipe.output).all_checkpoints()] == saved


@pytest.mark.parametrize(("index", "other_is_due", "saves"), [(0, False, True), (1, False, False), (1, True, True)])
def test_the_clock_of_process_0_decides_for_all(index, other_is_due, saves):
    class Two(World):
        def sum_everywhere(self, tensor):
            tensor += torch.tensor([0, int(other_is_due)])

    ticks = iter([0.0, 3600.0])
    callback = StopOrSave(StopRequest(), Two(index=index, size=2), 30.0, clock=lambda: next(ticks))

    class Control:
        should_log = should_save = should_training_stop = False

    class State:
        global_step, max_steps = 1, 9

    callback.on_train_begin(None, State, Control)
    callback.on_step_end(None, State, Control)
    assert (Control.should_save, Control.should_log, Control.should_training_stop) == (saves, saves, False)
