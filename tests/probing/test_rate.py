"""`train.learning_rate: auto`: what is tried leaves no trace but the rate."""

import json
import math
import os
import signal
from contextlib import ExitStack
from shutil import copytree
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from gora.core.learning_rate import rising_rates
from gora.errors import GoraError, InputError, Interrupted
from gora.probing import rate as module
from gora.probing.range_test import RangeTest
from gora.probing.rehearsal import Rehearsal, rehearsing
from gora.recipe import load_recipe
from gora.runs.context import RunContext
from gora.runs.folder import RunFolder
from gora.stages.train import train
from gora.training.start import wrap_model
from tests.helpers.callbacks import call_too
from tests.helpers.classifiers import write_recipe

SMALL = (
    "data.train.max_rows=24",
    "data.eval=null",
    "data.max_length=224",
    "adapter.method=lora",
    "adapter.dropout=0.1",
    "train.batch_size=4",
    "train.micro_batch_size=2",
    "train.log_steps=1",
    "evaluation.steps=null",
)


def recipe_in(folder, *more):
    return load_recipe("quickstart", [*SMALL, *more, f"output={folder}"]).recipe


class StopAfterTwo(TrainerCallback):
    """A signal in the second step."""

    def on_step_end(self, args, state, control, **named):
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def adapter(folder):
    return load_file(RunFolder(folder).adapter / "adapter_model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A run whose rate was found, and what it wrote about it."""
    folder = tmp_path_factory.mktemp("rate") / "run"
    train(recipe_in(folder, "train.learning_rate=auto", "train.save_steps=2", "train.keep_checkpoints=9"))
    return folder, json.loads(RunFolder(folder).decisions.read_text())["train.learning_rate"]


def test_the_run_is_that_of_the_rate_that_was_found(found, tmp_path):
    folder, decision = found
    train(recipe_in(tmp_path / "given", f"train.learning_rate={decision['value']}"))
    assert same(adapter(folder), adapter(tmp_path / "given"))


def test_the_rate_lies_below_the_one_at_which_the_loss_rises(found):
    folder, decision = found
    rates, losses = zip(*decision["curve"], strict=True)
    assert decision["from"] == "measured"
    assert 1e-4 < decision["value"] < rates[-1] / 5
    assert losses[-1] > losses[0] > min(losses)
    written = load_recipe(str(RunFolder(folder).recipe), []).recipe
    assert written.train.learning_rate == decision["value"]


def test_a_run_that_is_resumed_goes_on_with_its_rate_and_tries_nothing(found, tmp_path, monkeypatch):
    folder, _ = found
    recipe = recipe_in(tmp_path / "again", "train.learning_rate=auto", "train.save_steps=2", "train.keep_checkpoints=9")
    with monkeypatch.context() as patched:
        call_too(patched, StopAfterTwo())
        with pytest.raises(Interrupted):
            train(recipe)
    monkeypatch.setattr(module, "decide", lambda *_: pytest.fail("tried again"))
    train(recipe, mode="resume")
    assert same(adapter(folder), adapter(tmp_path / "again"))


def test_a_damaged_decision_is_refused_by_name(found, tmp_path):
    folder = tmp_path / "run"
    copytree(found[0], folder)
    RunFolder(folder).decisions.write_text("[1]")
    for path in (RunFolder(folder).results, *RunFolder(folder).adapter.iterdir()):
        path.unlink()
    RunFolder(folder).adapter.rmdir()
    with pytest.raises(InputError, match=r"decisions\.json is damaged"):
        train(recipe_in(folder, "train.learning_rate=auto", "train.save_steps=2"), mode="resume")


def test_a_loss_that_never_rises_ends_the_command(tmp_path, monkeypatch):
    level = RangeTest(rates=rising_rates(1e-5, 1.0, 45), losses=[2.0] * 45, before=[2.0] * 45)
    monkeypatch.setattr(module.ranging, "range_test", lambda *_, **__: level)
    with pytest.raises(GoraError, match="the loss rose at no rate"):
        train(recipe_in(tmp_path / "run", "train.learning_rate=auto"))


@pytest.fixture
def opened(tmp_path):
    """A run with the model that it trains, by settings."""
    with ExitStack() as stack:

        def of(*settings):
            recipe = recipe_in(
                tmp_path / "run",
                "train.learning_rate=auto",
                "adapter.dropout=0",
                "data.max_length=160",
                *settings,
            )
            context = stack.enter_context(RunContext.open(recipe, command="a test"))
            return context, wrap_model(context, None, steps=6, resumed=False).model

        yield of


@pytest.mark.parametrize("method", ["full", "lora-pro", "dora", "adalora"])
def test_any_method_is_tried_and_left_as_it_was(opened, method, monkeypatch):
    monkeypatch.setattr(module.ranging, "STEPS", 15)
    monkeypatch.setattr(module.trials, "STEPS", 3)
    monkeypatch.setattr(module.trials, "FEWEST", 3)
    settings = ("adapter.method=lora", "adapter.dora=true") if method == "dora" else (f"adapter.method={method}",)
    context, model = opened(*settings, "train.max_steps=2000")
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    state = torch.random.get_rng_state()
    decision = module.decide(context, model, 1.0, 2000)
    assert "3 steps, annealed" in decision.why
    assert len(decision.curve) > 1
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert all(value.grad is None for value in model.parameters())


def test_a_step_is_that_of_plain_torch_and_its_micro_batches_make_one(opened):
    context, model = opened("train.weight_decay=0.1", "train.max_grad_norm=0.5")
    rows = [3, 5, 8, 13, 21]  # three micro-batches of two rows and fewer
    with rehearsing(context, model, 2.0) as rehearsal:
        found = [rehearsal.learn(rows, rate) for rate in (1e-3, 2e-3)]
        after = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    assert all(
        torch.equal(value, torch.zeros_like(value)) for name, value in model.named_parameters() if "lora_B" in name
    )

    train = context.recipe.train
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    groups = [
        {"params": [v for n, v in trained.items() if "lora_A" in n]},
        {"params": [v for n, v in trained.items() if "lora_B" in n]},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(train.beta1, train.beta2), eps=train.epsilon, weight_decay=0.1)
    expected = []
    for rate in (1e-3, 2e-3):
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = rate, 2 * rate
        optimizer.zero_grad()
        losses = []
        for chunk in (rows[:2], rows[2:4], rows[4:]):
            batch = context.collate(model, [context.data.train[row] for row in chunk])
            loss = model(**batch).loss
            (loss * len(chunk) / 5).backward()
            losses.append(loss.item() * len(chunk) / 5)
        torch.nn.utils.clip_grad_norm_(list(trained.values()), 0.5)
        optimizer.step()
        expected.append(sum(losses))
    assert found == pytest.approx(expected, rel=1e-5)
    for name, value in trained.items():
        torch.testing.assert_close(after[name], value.detach(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("size", "tries"), [(5, True), (1, False)])
def test_no_more_rows_than_those_of_sixty_micro_batches_are_spent(opened, monkeypatch, size, tries):
    """Of a short run; a forward pass is a third of one that learns."""
    context, model = opened(f"train.micro_batch_size={size}", f"train.batch_size={max(size, 4)}")
    spent = []
    learn, loss = Rehearsal.learn, Rehearsal.loss
    monkeypatch.setattr(Rehearsal, "learn", lambda self, rows, rate: spent.append(len(rows)) or learn(self, rows, rate))
    monkeypatch.setattr(Rehearsal, "loss", lambda self, rows: spent.append(len(rows) / 3) or loss(self, rows))
    assert ("annealed" in module.decide(context, model, 1.0, 6).why) == tries
    assert 0 < sum(spent) <= 60 * size


def test_trials_end_where_training_falls_apart_and_the_lowest_is_told(opened):
    context, model = opened("train.micro_batch_size=4")
    batches = [list(range(4 * step, 4 * step + 4)) for step in range(5)]
    with rehearsing(context, model, 1.0) as rehearsal:
        start = sum(rehearsal.loss(rows) for rows in batches) / len(batches)
        slow, better, apart = module.trials.try_rates(rehearsal, [1e-6, 1e-3, 30.0], batches, start=start)
    assert better < slow
    assert apart == pytest.approx(2 * start)


class Learner:
    """Learns a little faster with a higher rate, on rows of which each has a loss of its own."""

    def begin(self):
        self.learned = 0.0

    def learn(self, rows, rate):
        loss = sum(rows) / len(rows) - self.learned
        self.learned += rate
        return loss


def test_first_rows_that_are_much_easier_than_the_others_do_not_make_every_trial_fall_apart():
    batches = [[1.0], *[[3.0]] * 11]
    ends = module.trials.try_rates(Learner(), [1e-3, 1e-2], batches, start=2.8)
    assert 2.9 < ends[1] < ends[0] < 3.0


def test_a_row_whose_loss_is_never_finite_ends_no_trial_and_is_left_out_of_the_range_test():
    class Rows(Learner):
        def loss(self, rows):
            return rows[0]

    bad, good = [math.nan], [[3.0]] * 29
    batches = [*good[:27], bad, *good[27:]]
    with_it, without = (module.trials.try_rates(Rows(), [1e-3, 1e-2], each, start=3.0) for each in (batches, good))
    assert with_it[1] < with_it[0] < 3.0
    assert with_it == pytest.approx(without, rel=0.05)
    rows = Rows()
    rows.begin()
    assert len(module.ranging.range_test(rows, batches, whole_weights=False).before) == 29
    with pytest.raises(GoraError, match=r"the loss of 4 of 33 micro-batches is NaN or infinity before training"):
        module.ranging.range_test(rows, [*good, *[bad] * 4], whole_weights=False)


def test_a_step_that_is_not_finite_changes_nothing(opened):
    context, model = opened()
    with rehearsing(context, model, 1.0) as rehearsal:
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        usual = rehearsal._loss_of
        rehearsal._loss_of = lambda batch: usual(batch) * math.nan
        assert math.isnan(rehearsal.learn([0, 1], 1e-2))
        assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
        rehearsal._loss_of = usual
        assert math.isfinite(rehearsal.learn([0, 1], 1e-2))
        assert not all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_where_training_falls_apart_at_all_rates_the_next_one_is_lower():
    class FallsApart(Learner):
        def learn(self, rows, rate):
            return float("inf")

    rates, ends = module.trials.try_around(FallsApart(), 1e-3, [[1.0]] * 3, start=1.0)
    assert rates == [2.5e-4, 5e-4, 1e-3, 2e-3]
    assert ends == [2.0] * 4


@pytest.mark.parametrize(
    ("ends", "beyond"), [([3.0, 2.0, 1.9], 4e-3), ([3.0, 2.0, 2.5], None), ([1.9, 2.0, 2.5], 2.5e-4)]
)
def test_a_fourth_trial_goes_beyond_the_best_where_that_is_the_lowest_or_the_highest(monkeypatch, ends, beyond):
    known = {5e-4: ends[0], 1e-3: ends[1], 2e-3: ends[2], beyond: 9.0}
    monkeypatch.setattr(module.trials, "try_rates", lambda _, rates, __, start: [known[rate] for rate in rates])
    rates, found = module.trials.try_around(None, 1e-3, [], start=3.0)
    assert rates == sorted(rate for rate in known if rate)
    assert found == [known[rate] for rate in rates]


@pytest.mark.parametrize(("micro_batch", "rows", "trial_steps"), [(16, 4, 45), (8, 2, 22), (5, 1, 14), (4, 4, 0)])
def test_fewer_rows_make_shorter_trials_and_too_few_a_better_range_test_alone(
    opened, monkeypatch, micro_batch, rows, trial_steps
):
    context, model = opened(
        f"train.micro_batch_size={micro_batch}", "train.batch_size=80", "train.max_steps=2", "data.train.max_rows=64"
    )
    seen = {}

    def tested(rehearsal, batches, *, whole_weights):
        seen["rows"] = len(batches[0])
        return module.ranging.RangeTest(rates=[1e-3, 1e-1], losses=[2.0, 9.0], before=[2.0, 2.0])

    monkeypatch.setattr(module.ranging, "range_test", tested)
    monkeypatch.setattr(module.trials, "try_rates", lambda _, rates, batches, start: [len(batches) for _ in rates])
    decision = module.decide(context, model, 1.0, steps=2)
    assert seen["rows"] == rows
    assert (f"{trial_steps} steps, annealed" in decision.why) == (trial_steps > 0)


def test_where_all_trials_fall_apart_a_warning_says_that_the_rate_is_a_guess(opened, monkeypatch, capsys):
    context, model = opened("train.micro_batch_size=8", "train.batch_size=16")
    tested = module.ranging.RangeTest(rates=[1e-3, 1e-1], losses=[2.0, 9.0], before=[2.0, 2.0])
    monkeypatch.setattr(module.ranging, "range_test", lambda *_, **__: tested)
    monkeypatch.setattr(module.trials, "try_rates", lambda _, rates, __, start: [2 * start for _ in rates])
    module.decide(context, model, 1.0, steps=6)
    assert "training fell apart in all trials" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("method", "rate"), [("lora", 5e-4), ("lora+", 1.25e-4), ("full", 2e-3)])
def test_a_new_head_makes_no_trials_and_adapters_take_what_is_common(tmp_path, monkeypatch, method, rate):
    recipe = load_recipe(
        str(write_recipe(tmp_path)),
        [f"adapter.method={method}", "train.learning_rate=auto", "train.micro_batch_size=8"],
    ).recipe
    tested = SimpleNamespace(limit=15 * 2e-3, losses=[2.0], before=[2.0], curve=())
    monkeypatch.setattr(module.ranging, "range_test", lambda *_, **__: tested)
    with RunContext.open(recipe, command="a test") as context:
        model = wrap_model(context, None, steps=6, resumed=False).model
        decision = module.decide(context, model, 16.0 if method == "lora+" else 1.0, steps=6)
    assert decision.value == pytest.approx(rate, rel=0.05)
    assert "the head begins as noise" in decision.why
    assert "annealed" not in decision.why
    assert ("over the square root of 16, B's rate over A's" in decision.why) == (method == "lora+")
