"""What evaluations on the way are for: the best values are kept, and a training that gets no better ends."""

import json

import pytest
import torch
from safetensors.torch import load_file

from gora.errors import GoraError, InputError
from gora.evaluation.task import Options
from gora.recipe import load_recipe
from gora.runs.base_model import load_base_model
from gora.runs.folder import RunFolder
from gora.runs.loss import evaluate_loss
from gora.stages.evaluate import Job, deciding_task, evaluate, task_jobs
from gora.stages.train import train
from gora.training.course import Course
from gora.training.metrics import read_metrics
from gora.training.schedule import warmup_steps
from tests.conftest import opened
from tests.helpers.classifiers import opposite_rows, write_recipe

# At such a rate the loss falls first and rises later.
SETTINGS = (
    "adapter.method=lora",
    "data.train.max_rows=16",
    "data.eval.max_rows=4",
    "data.max_length=160",
    "train.micro_batch_size=4",
    "train.batch_size=4",
    "train.max_steps=8",
    "train.epochs=4",
    "train.schedule=constant",
    "train.warmup_ratio=0",
    "train.learning_rate=4e-2",
    "train.log_steps=1",
    "evaluation.steps=1",
)


BEST = ("train.keep=best", "evaluation.samples=2", "train.save_steps=2")


def recipe(folder, *more):
    return load_recipe("quickstart", [*SETTINGS, f"output={folder}", *more]).recipe


def evaluations(folder):
    return {line["step"]: line["eval_loss"] for line in read_metrics(RunFolder(folder).metrics) if "eval_loss" in line}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same training with the last values, and with the best and answers on the way, which change nothing."""
    folder = tmp_path_factory.mktemp("keep")
    train(recipe(folder / "last"))
    train(recipe(folder / "best", *BEST))
    return folder


def test_the_best_values_become_the_adapter(runs):
    losses = evaluations(runs / "best")
    assert losses == evaluations(runs / "last") and len(losses) == 8
    step = min(losses, key=losses.get)
    assert 1 <= step < 8, "the rate of this test should make the loss rise at the end"
    results = {keep: json.loads((runs / keep / "results.json").read_text()) for keep in ("last", "best")}
    assert results["best"]["loss"]["final"] == losses[step] < results["last"]["loss"]["final"] == losses[8]
    assert f"best      the values after step {step}" in (runs / "best" / "log.txt").read_text()

    # What was saved has that loss, measured again by the public loader.
    from peft import PeftModel

    context = opened(recipe(runs / "best"))
    model = PeftModel.from_pretrained(load_base_model(context), str(runs / "best" / "adapter"))
    assert evaluate_loss(model, context) == pytest.approx(losses[step], rel=1e-5)


def test_a_resumed_run_keeps_the_same_values(runs, tmp_path):
    import shutil

    again = tmp_path / "again"
    shutil.copytree(runs / "best", again)
    shutil.rmtree(again / "adapter")
    (again / "results.json").unlink()
    shutil.rmtree(again / "checkpoints" / "checkpoint-8")
    train(recipe(again, *BEST), mode="resume")
    mine, theirs = (load_file(place / "adapter" / "adapter_model.safetensors") for place in (again, runs / "best"))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert (again / "samples.jsonl").read_text() == (runs / "best" / "samples.jsonl").read_text()


def test_answers_are_written_at_every_evaluation(runs):
    lines = [json.loads(line) for line in (runs / "best" / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [step for step in range(1, 9) for _ in range(2)]
    assert len({line["prompt"] for line in lines}) == 2
    assert all(line["prompt"].startswith("Question: ") and line["expected"] for line in lines)
    assert len({line["output"] for line in lines}) > 2


def test_training_ends_when_patience_runs_out_and_a_resumed_one_there_too(tmp_path):
    folder = tmp_path / "run"
    settings = ("train.patience=2", "train.max_steps=30", "train.epochs=9", "train.keep=best")
    trained = train(recipe(folder, *settings))
    losses = evaluations(folder)
    best = min(losses, key=losses.get)
    assert trained.steps == max(losses) == best + 2 < 30
    assert trained.losses["final"] == losses[best]
    assert "2 evaluations in a row were not better than that of step" in (folder / "log.txt").read_text()


# By a task's figure


def figures(folder, name):
    return {line["step"]: line[name] for line in read_metrics(RunFolder(folder).metrics) if name in line}


def test_the_best_values_may_be_those_of_a_task_s_figure(tmp_path):
    """Here of a task whose rows say the opposite: the longer the training, the fewer are right."""
    path = write_recipe(tmp_path)
    opposite = opposite_rows(tmp_path)
    task = f"evaluation.tasks=[{{name: glue/sst2, path: '{opposite}'}}]"
    more = ("adapter.method=lora", "evaluation.steps=12", "train.keep=best", "train.keep_by=glue/sst2", task)
    folder = tmp_path / "run"
    trained = train(load_recipe(str(path), [*more, f"output={folder}"]).recipe)
    accuracies, losses = figures(folder, "glue/sst2 accuracy"), evaluations(folder)
    assert accuracies.keys() == losses.keys() and len(losses) > 3
    best = max(losses, key=lambda step: (accuracies[step], -losses[step]))
    assert best < min(losses, key=losses.get)
    assert trained.losses["final"] == losses[best]
    assert f"best      the values after step {best}" in (folder / "log.txt").read_text()
    (job,) = task_jobs(["glue/sst2"], Options(folder=tmp_path, data=str(opposite)))
    found = evaluate(str(folder / "adapter"), Job(tasks=[job]), destination=tmp_path / "again")
    assert found["glue/sst2"]["trained"].metrics == {"accuracy": accuracies[best]}


def test_a_task_that_is_asked_on_the_way_changes_nothing_in_training(tmp_path):
    few = ("train.max_steps=3", "adapter.dropout=0.1", "train.keep=best", "train.schedule=cosine")
    task = "evaluation.tasks=[{name: gsm8k, path: 'builtin:gsm8k/test.jsonl', max_rows: 2, max_new_tokens: 4}]"
    train(recipe(tmp_path / "alone", *few))
    train(recipe(tmp_path / "asked", *few, task, "train.keep_by=gsm8k"))
    assert evaluations(tmp_path / "alone") == evaluations(tmp_path / "asked")
    assert list(figures(tmp_path / "asked", "gsm8k exact_match")) == [1, 2, 3]


def test_a_task_that_cannot_tell_the_best_is_refused_before_anything_is_loaded(tmp_path):
    for more, message in (
        (("train.keep_by=gsm8k",), "gsm8k must be `loss` or one of evaluation.tasks (there are none)"),
        (("train.keep_by=gsm8k", "train.keep=last", "evaluation.tasks=[{name: gsm8k}]"), "add keep: best, or a"),
    ):
        with pytest.raises(InputError) as refused:
            load_recipe("quickstart", ["train.keep=best", *more])
        assert any(message in problem for problem in refused.value.problems)
    asked = recipe(tmp_path / "run", *BEST, "train.keep_by=mbpp", "evaluation.tasks=[{name: mbpp}]")
    with pytest.raises(InputError, match="mbpp cannot be asked at every evaluation"):
        deciding_task(asked)


def test_a_figure_decides_before_the_loss_and_the_loss_between_equal_figures():
    course = Course()
    told = [(2.0, 0.5), (1.0, 0.4), (3.0, 0.6), (2.5, 0.6), (2.6, 0.6), (float("nan"), 0.9)]
    better = [course.evaluate(step, loss, figure) for step, (loss, figure) in enumerate(told, start=1)]
    assert better == [True, False, True, True, False, False]
    assert (course.best_step, course.best_loss, course.best_figure, course.not_better) == (4, 2.5, 0.6, 2)


def test_patience_counts_evaluations_and_survives_a_checkpoint(tmp_path):
    course = Course()
    better = [course.evaluate(step, loss) for step, loss in enumerate([3.0, 2.0, 2.5, float("nan"), 1.9], start=1)]
    assert better == [True, True, False, False, True]
    assert (course.best_step, course.best_loss, course.not_better) == (5, 1.9, 0)
    course.evaluate(6, 2.0)
    assert course.is_over(1) and not course.is_over(2) and not course.is_over(None)
    (tmp_path / "course.json").write_text(json.dumps(course.as_json()))
    assert Course.read(tmp_path) == course


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.keep=best", "there are no evaluations during training; say with evaluation.steps"),
        ("train.patience=2", "there are no evaluations during training"),
        ("evaluation.samples=2", "there are no evaluations during training"),
    ],
)
def test_what_looks_at_evaluations_needs_some(setting, message):
    with pytest.raises(InputError, match=message):
        load_recipe("quickstart", [setting, "evaluation.steps=null"])


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(InputError, match="best values of a whole model are not kept"):
        load_recipe("quickstart", ["train.keep=best", "adapter.method=full"])
    with pytest.raises(InputError, match=r"warmup_steps \(5\) and warmup_ratio \(0.1\) both say it"):
        load_recipe("quickstart", ["train.warmup_steps=5", "train.warmup_ratio=0.1"])


def test_warm_up_may_be_said_in_steps():
    settings = load_recipe("quickstart", ["train.warmup_steps=7"]).recipe.train
    assert warmup_steps(settings, 100) == 7 and warmup_steps(settings, 5) == 4
    assert warmup_steps(load_recipe("quickstart", ["train.warmup_steps=0"]).recipe.train, 100) == 0


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("gora.training.trackers.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"report_to: wandb is not installed: pip install wandb"):
        train(recipe(tmp_path / "run", "train.report_to=[wandb]"))
    assert not (tmp_path / "run" / "adapter").exists()


def test_sharded_weights_cannot_be_kept_or_asked_on_the_way(tmp_path):
    for setting, what in (("train.keep=best", "train.keep: best"), ("evaluation.samples=1", "evaluation.samples")):
        with pytest.raises(GoraError, match=f"{what} needs whole weights, which zero3 shards"):
            from gora.runtime.engine import Engine
            from gora.training.trackers import refuse_what_cannot_be_watched

            refuse_what_cannot_be_watched(recipe(tmp_path, setting), Engine.of("zero3"))
