"""gora.gamma: auto, and what is said of a first step: the losses are those of the adapter that training starts from."""

import json

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from gora.errors import InputError
from gora.methods import METHODS, AdapterSettings, Wrapping
from gora.models.targets import find_targets
from gora.plan import read_factors, read_plan
from gora.planning.first_step import trying_steps
from gora.planning.micro_batches import HELD_BACK, MicroBatches
from gora.recipe import load_recipe
from gora.runs.base_model import load_base_model
from gora.runs.loss import evaluate_loss
from gora.runs.provenance import plan_differences
from gora.stages.precompute import plan_from_gradients, precompute
from tests.conftest import TINY, opened

SMALL = ("data.train.max_rows=96", "data.max_length=128", "gora.steps=4", "gora.micro_batch_size=2")
SETUPS = {
    "the paper's start": (),
    "against the weights": ("adapter.targets=all-linear", "gora.init_a=gradient", "gora.step=weight"),
    "a random Llama": ("model.name={llama}", "gora.step=spectral", "gora.init_a=sign", "gora.balance=true"),
}


def recipe(folder, *more):
    return load_recipe("quickstart", [*SMALL, *more, f"output={folder}"]).recipe


@pytest.fixture(scope="module")
def random_llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    shape = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=SETUPS)
def searched(request, tmp_path_factory, random_llama):
    settings = [setting.format(llama=random_llama) for setting in SETUPS[request.param]]
    asked = recipe(tmp_path_factory.mktemp("run"), "gora.gamma=auto", "data.eval.max_rows=32", *settings)
    return asked, precompute(asked)


def test_gamma_is_within_one_bracket_of_a_dense_grid_and_starts_below_the_base(searched):
    asked, made = searched
    decision = made.plan.decisions["gora.gamma"]
    assert decision.origin == "measured"
    assert decision.value == made.plan.gamma > 0
    tried = [value for value, _ in decision.curve]
    assert len(tried) <= 15
    place = tried.index(made.plan.gamma)
    context = opened(asked)
    with trying_steps(context, load_base_model(context), made.plan, read_factors(made.path, made.plan)) as loss_at:
        grid = [made.plan.gamma * 1.3**step for step in range(-6, 7)]
        dense = min(grid, key=loss_at)
        for value, loss in decision.curve[: place + 1 : place]:
            assert loss_at(value) == pytest.approx(loss, rel=1e-5)
    assert tried[place - 1] <= dense <= tried[place + 1]
    assert dict(decision.curve)[made.plan.gamma] < decision.curve[0][1]


def test_the_losses_that_are_tried_are_those_of_the_wrapped_model(searched):
    """On evaluation rows and on the held-back ones, with PEFT's adapter instead of hooks."""
    asked, made = searched
    context, factors = opened(asked), read_factors(made.path, made.plan)
    model = load_base_model(context)
    batches = MicroBatches(context, model)
    base = evaluate_loss(model, context)
    with trying_steps(context, model, made.plan, factors) as loss_at:
        tried = loss_at(made.plan.gamma)
    targets = find_targets(model, asked.adapter.targets)
    settings = AdapterSettings(rank=8, alpha=16.0, dropout=0.0)
    wrapped = METHODS["gora"].wrap(model, Wrapping(targets=targets, settings=settings, plan=made.plan, factors=factors))
    assert evaluate_loss(wrapped, context) < base
    with torch.no_grad():
        losses = [context.loss_of(wrapped)(batches.held_back(index)).item() for index in range(HELD_BACK)]
    assert tried == pytest.approx(sum(losses) / HELD_BACK, rel=1e-5)


def test_a_plan_with_the_found_gamma_given_as_a_number_is_the_same(searched, tmp_path):
    asked, made = searched
    number = asked.model_copy(
        update={"gora": asked.gora.model_copy(update={"gamma": made.plan.gamma}), "output": str(tmp_path / "run")}
    )
    again = precompute(number)
    assert again.plan.modules == made.plan.modules
    mine, yours = (read_factors(each.path, each.plan) for each in (again, made))
    assert all(torch.equal(a, b) for name in mine for a, b in zip(mine[name], yours[name], strict=True))
    assert plan_differences(made.plan, asked) == plan_differences(made.plan, number) == []
    assert plan_differences(again.plan, asked) == [f"gora.gamma: {made.plan.gamma} in the plan, auto in the recipe"]


def test_held_back_rows_are_not_those_of_the_gradients(tmp_path):
    context = opened(recipe(tmp_path / "run"))
    batches = MicroBatches(context)
    seen = [row.tolist() for index in range(batches.steps) for row in batches[index]["input_ids"]]
    held = [row.tolist() for index in range(HELD_BACK) for row in batches.held_back(index)["input_ids"]]

    def text(row):
        return tuple(token for token in row if token)

    assert len(held) == HELD_BACK * batches.size
    assert not {text(row) for row in seen} & {text(row) for row in held}
    assert batches.held_back_and_seen(batches.steps) == 0


def test_rows_that_have_to_be_held_back_and_seen_are_counted(tmp_path):
    context = opened(recipe(tmp_path / "run", "data.train.max_rows=10"))
    batches, rows = MicroBatches(context), len(context.data.train)
    assert rows < 2 * (4 + HELD_BACK)
    assert batches.held_back_and_seen(4) >= 2 * (4 + HELD_BACK) - rows
    assert batches.held_back_and_seen(0) == 0


def test_a_step_that_is_too_large_is_said_with_what_to_set_and_one_that_helps_is_not(tmp_path, gora_here):
    arguments = ("precompute", "quickstart", *(part for setting in SMALL for part in ("--set", setting)))
    code, out, err = gora_here(*arguments, "--set", "gora.gamma=40", "--set", "output=much", cwd=tmp_path)
    assert code == 0
    assert "The first step raises the loss from" in out + err
    assert "Set gora.gamma: auto" in (out + err).replace("\n", " ")
    code, out, err = gora_here(*arguments, "--set", "output=right", cwd=tmp_path)
    assert "with the base model" in out + err
    assert "raises the loss" not in out + err
    decision = read_plan(tmp_path / "right" / "plan.safetensors").decisions["gora.gamma"]
    assert (decision.value, decision.origin) == (0.05, "recipe")


def test_auto_is_refused_where_there_is_no_model_to_try_it_on(tmp_path):
    with pytest.raises(InputError, match=r"gora\.gamma: auto tries first steps on the model"):
        plan_from_gradients(recipe(tmp_path / "run", "gora.gamma=auto"), tmp_path / "gradients")
    with pytest.raises(InputError) as refused:
        load_recipe("quickstart", ["gora.gamma=auto", "adapter.experts=true"])
    assert any("cannot try a first step on fused experts" in problem for problem in refused.value.problems)


def test_the_curve_is_in_the_plan_s_document(searched):
    _, made = searched
    with open(made.path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    document = json.loads(header["__metadata__"]["gora"])
    assert document["decisions"]["gora.gamma"]["from"] == "measured"
    assert document["decisions"]["gora.gamma"]["curve"][0][0] == 0
    assert read_plan(made.path) == made.plan
