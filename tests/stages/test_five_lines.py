"""A recipe of five lines: what is decided for it, and that every document says so."""

import json
import re

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from gora.errors import InputError
from gora.models.targets import find_targets, weight_shape
from gora.plan import read_plan
from gora.recipe import load_recipe, load_recorded
from gora.runs.folder import RunFolder
from gora.stages.check import check
from gora.stages.precompute import plan_from_gradients, precompute
from gora.stages.run import run
from gora.stages.train import train
from tests.conftest import TINY

FIVE = """model: {name: builtin:tiny-6m}
data:
  train: {path: builtin:gsm8k/train.jsonl, max_rows: 96}
  prompt: question
  response: answer
"""
SHORT = ("data.max_length=128", "train.batch_size=4", "train.max_steps=2")


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    path = tmp_path_factory.mktemp("five") / "five.yaml"
    path.write_text(FIVE)
    return path


@pytest.fixture(scope="module")
def finished(five, tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("run") / "run")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gora.probing.range_test.STEPS", 24)
        run(load_recipe(str(five), [*SHORT, f"output={folder.path}"]).recipe)
    return folder


def per_rank(targets):
    from accelerate import init_empty_weights

    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY))
    return sum(sum(weight_shape(layer)) for layer in find_targets(model, targets).values())


def test_all_linear_layers_share_the_parameters_of_rank_8_on_attention(finished):
    plan = read_plan(finished.plan)
    assert len(plan.modules) == 42
    budget = 8 * per_rank("attention")
    assert plan.asked_parameters == budget
    assert abs(plan.parameters / budget - 1) <= 0.005
    assert plan.reference_rank == round(budget / per_rank("all-linear"))
    ranks = {module.rank for module in plan.modules}
    assert ranks == {plan.reference_rank, plan.reference_rank + 1} or ranks == {plan.reference_rank}


def test_plan_decisions_and_recipe_say_the_same_of_every_value(finished):
    plan, recipe = read_plan(finished.plan), load_recorded(finished.recipe)
    decided = json.loads(finished.decisions.read_text())
    assert plan.decisions["adapter.targets"].origin == "preset"
    assert plan.decisions["adapter.rank"].origin == "computed"
    assert plan.decisions["gora.gamma"].origin == "measured"
    rate = plan.decisions["train.learning_rate"]
    assert rate.model_dump(mode="json", by_alias=True) == decided["train.learning_rate"]
    assert len(rate.curve) > 3
    assert recipe.train.learning_rate == rate.value
    assert recipe.adapter.rank == plan.reference_rank == decided["adapter.rank"]["value"]
    assert decided["train.micro_batch_size"]["from"] == "computed"
    notes = finished.recipe.read_text()
    assert f"learning_rate: {rate.value}  # measured: {rate.why}" in notes


def test_the_start_is_not_above_the_base(finished):
    curve = read_plan(finished.plan).decisions["gora.gamma"].curve
    value = read_plan(finished.plan).gamma
    losses = dict(curve)
    assert value == 0 or losses[value] == min(losses.values())


def test_a_second_command_finds_the_run_finished(finished, five, gora_here, tmp_path):
    settings = [argument for setting in (*SHORT, f"output={finished.path}") for argument in ("--set", setting)]
    code, _, err = gora_here("run", five, *settings, cwd=tmp_path)
    assert (code, "already" in err or "finished" in err) == (2, True)
    code, out, _ = gora_here("run", five, "--resume", *settings, cwd=tmp_path)
    assert (code, "is finished" in out) == (0, True)


def test_decisions_come_first_when_a_plan_is_shown(finished, gora_here, tmp_path):
    code, out, _ = gora_here("inspect-ranks", finished.path, "--plot", tmp_path / "ranks.svg", cwd=tmp_path)
    assert code == 0
    assert out.index("train.learning_rate") < out.index("q_proj")
    assert "train.learning_rate" in (tmp_path / "ranks.svg").read_text()


def test_a_check_settles_the_rank_without_weights(five):
    found = check(load_recipe(str(five), [*SHORT, "adapter.method=lora"]).recipe, processes=1)
    assert found.problems == []
    assert found.recipe.adapter.rank == round(8 * per_rank("attention") / per_rank("all-linear"))


def test_a_plan_is_made_again_from_kept_gradients_and_trained(five, tmp_path):
    """Without the model no first step can be tried: the paper's is taken, and said."""
    settings = [*SHORT, "gora.steps=2", "train.learning_rate=1e-3", "adapter.parameters=rank 2 on attention"]
    precompute(load_recipe(str(five), [*settings, f"output={tmp_path / 'kept'}"]).recipe, keep="fp32")
    again = load_recipe(str(five), [*settings, f"output={tmp_path / 'again'}"]).recipe
    made = plan_from_gradients(again, tmp_path / "kept" / "gradients").plan
    assert made.asked_parameters == 2 * per_rank("attention")
    assert (made.gamma, made.decisions["gora.gamma"].origin) == (0.05, "computed")
    assert [module.rank for module in made.modules] == [
        module.rank for module in read_plan(tmp_path / "kept" / "plan.safetensors").modules
    ]
    assert train(again).steps == 2


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (("adapter.parameters=50000", "adapter.rank=8"), "is rank 2 on these layers, and adapter.rank is 8"),
        (("adapter.parameters=30000", "gora.rank_min=4"), "gora.rank_min: rank_min \\(4\\) is above adapter.rank"),
    ],
)
def test_a_budget_that_contradicts_a_rank_or_its_bounds_is_refused(five, tmp_path, settings, sentence):
    recipe = load_recipe(str(five), [*SHORT, *settings, f"output={tmp_path / 'run'}"]).recipe
    with pytest.raises(InputError) as caught:
        run(recipe)
    assert re.search(sentence, str(caught.value))
