"""A model that training has made worse than its base: said on the way and at the end, with what to change."""

import json
import re
from types import SimpleNamespace

import pytest

from gora.recipe import load_recipe
from gora.recipe.derived import with_settings
from gora.recipe.schema import Recipe
from gora.runs.folder import RunFolder
from gora.stages.precompute import precompute
from gora.stages.run import run
from gora.stages.train import train
from gora.training.course import Course
from gora.training.worse import CompareWithBase, end_warning, likely_cause, start_warning

SMALL = (
    "data.train.max_rows=16",
    "data.eval.max_rows=8",
    "data.max_length=224",
    "gora.steps=2",
    "gora.micro_batch_size=2",
    "train.batch_size=4",
    "train.micro_batch_size=4",
    "train.epochs=9",
    "train.log_steps=1",
    "evaluation.steps=6",
)


@pytest.fixture
def small(tmp_path):
    def make(name, *more):
        return load_recipe("quickstart", [*SMALL, f"output={tmp_path / name}", *more]).recipe

    return make


def test_an_adapter_that_is_worse_than_its_base_says_so_everywhere_and_a_run_as_advised_is_not(small, capsys):
    recipe = small("high", "adapter.method=lora", "train.learning_rate=0.2", "train.max_steps=12")
    losses = run(recipe).losses
    assert losses["final"] > losses["base"]
    folder, said = RunFolder.of(recipe.output), capsys.readouterr().out
    assert json.loads(folder.results.read_text())["worse_than_base"] is True
    assert "worse than its base, see the warning above" in said
    assert "warning: At step 6 the evaluation loss" in folder.log.read_text()
    (end,) = [line for line in folder.log.read_text().splitlines() if line.startswith("warning: The trained adapter")]
    assert f"evaluation loss {losses['final']:.4f}, {losses['base']:.4f} with the base model" in end
    advised = re.search(r"train.learning_rate \(0.2\) is about (\d+) times too high.* Try (\S+)\.$", end)
    assert float(advised[2]) == pytest.approx(0.2 / int(advised[1]), rel=0.1)
    better = small("advised", "adapter.method=lora", f"train.learning_rate={advised[2]}", "train.max_steps=12")
    losses = run(better).losses
    assert losses["final"] < losses["base"]
    assert json.loads(RunFolder.of(better.output).results.read_text())["worse_than_base"] is False
    said = capsys.readouterr().out
    assert "worse than its base" not in said
    assert "The trained adapter" not in said


def test_initial_values_that_are_too_large_are_said_with_the_setting_to_lower(small, capsys):
    recipe = small("gamma", "gora.gamma=300", "train.max_steps=1")
    precompute(recipe)
    train(recipe)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "The initial adapter raises" in line]
    assert "set gora.gamma to about 75 (300 now)" in line


def course_of(losses, rate=lambda step: 1.0):
    course = Course()
    for step, loss in enumerate(losses, start=1):
        course.take(step, loss, rate(step))
    return course


@pytest.fixture
def recipe():
    return load_recipe("quickstart", ["output=runs/x"]).recipe


FALLING = [2.0 - 0.01 * step for step in range(60)]
V_SHAPED = [2.0 - 0.02 * step for step in range(30)] + [1.4 + 0.1 * step for step in range(40)]


@pytest.mark.parametrize(
    ("losses", "course", "said"),
    [
        ({"base": 2.0, "initial": 2.0, "final": 6.0}, course_of(V_SHAPED), r"about 10 times too high.* Try 5e-05"),
        ({"base": 2.0, "initial": 2.0, "final": 2.1}, course_of(V_SHAPED[:45]), r"about 3 times too high"),
        (
            {"base": 2.0, "initial": 2.0, "final": 6.0},
            course_of(V_SHAPED, lambda step: min(step / 1000, 1)),
            r"about 30 times too high",
        ),
        ({"base": 2.0, "initial": 2.5, "final": 2.2}, course_of([2.5] * 20), "20 steps were too few to make up for it"),
        (
            {"base": 2.0, "initial": 2.0, "final": 2.2},
            course_of(FALLING),
            "Likely cause: the rows. .* from 2.0000 to 1.4",
        ),
        ({"base": 2.0, "initial": 2.0, "final": 2.01}, course_of([2.0, 2.0, 2.0]), r"too few steps \(3\)"),
        ({"base": 2.0, "initial": 2.0, "final": 2.01}, Course(), "Likely causes: "),
    ],
)
def test_the_likely_cause_follows_from_the_course_of_training(recipe, losses, course, said):
    assert re.search(said, likely_cause(losses, course, recipe))
    assert end_warning(losses, course, recipe).startswith("The trained adapter is worse than its base")


def test_nothing_is_said_where_nothing_is_worse(recipe):
    assert end_warning({"base": 2.0, "initial": 2.0, "final": 2.0}, Course(), recipe) is None
    assert end_warning({}, Course(), recipe) is None
    assert start_warning({"base": 2.0, "initial": 2.01}, recipe, gamma=0.05) is None
    assert start_warning({}, recipe, gamma=0.05) is None
    assert "pissa" in start_warning(
        {"base": 2.0, "initial": 2.5}, recipe.model_copy(update={"adapter": pissa(recipe)}), gamma=None
    )


def test_a_start_above_the_base_names_the_gamma_of_its_plan_and_the_search_for_one(recipe):
    said = start_warning({"base": 2.0, "initial": 7.8}, recipe, gamma=0.05)
    assert "set gora.gamma to about 0.013 (0.05 now), or to auto" in said
    auto = with_settings(recipe, {"gora.gamma": "auto"})
    assert "or to auto" not in start_warning({"base": 2.0, "initial": 7.8}, auto, gamma=0.4)


def pissa(recipe: Recipe):
    return recipe.adapter.model_copy(update={"method": "pissa"})


@pytest.mark.parametrize(
    ("losses", "after", "warned"),
    [
        ({}, 2.3, True),
        ({}, 2.1, False),
        ({"base": 1.0, "initial": 1.25}, 1.8, True),
        ({"base": 1.0, "initial": 1.0}, 2.1, False),
    ],
)
def test_a_training_loss_that_leaves_the_base_s_is_said_once(recipe, losses, after, warned):
    """The base's loss on training rows is that of the first step, less what the initial values added to it."""
    said, course = [], course_of([2.0])
    callback = CompareWithBase(losses, course, recipe, SimpleNamespace(warn=said.append))
    for step in range(2, 40):
        course.take(step, after, 1.0)
        callback.on_step_end(None, SimpleNamespace(global_step=step), None)
    assert len(said) == warned
    assert not warned or "the training loss" in said[0]
