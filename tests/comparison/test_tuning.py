"""Comparisons in which every method gets its own best value of a setting."""

import json
import math
import re

import pytest

from gora.comparison.trials import make_trials
from gora.comparison.tuning import Tuning
from gora.comparison.tuning_table import Tuned, tuning_table
from gora.errors import InputError
from gora.stages.compare import compare
from tests.comparison.test_compare import SMALL, outcome
from tests.helpers import forks

RATES = "train.learning_rate=1e-9,5e-3"


def test_a_value_is_chosen_on_another_seed_and_the_seeds_that_count_are_run_at_it(tmp_path):
    settings = [part for setting in SMALL for part in ("--set", setting)]
    arguments = ("quickstart", "--methods", "lora", "--tune", RATES, "--output", "made", "--jobs", "2")
    done = forks.compare(*arguments, *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "by evaluation loss on seed 1" in done.stdout
    made = tmp_path / "made"
    (tuned,) = json.loads((made / "tuning.json").read_text())
    assert (tuned["label"], tuned["best"], tuned["at_an_end"]) == ("lora", "5e-3", True)
    for value, loss in tuned["losses"].items():
        run = made / "tuning" / "runs" / f"lora_learning_rate={value}_seed=1"
        assert json.loads((run / "results.json").read_text())["loss"]["final"] == loss
    (row,) = json.loads((made / "comparison.json").read_text())
    assert (row["label"], row["seeds"]) == ("lora learning_rate=5e-3", [0])
    assert [run.name for run in (made / "runs").iterdir()] == ["lora_learning_rate=5e-3_seed=0"]
    again = forks.compare(*arguments, *settings, cwd=tmp_path)
    assert "compare   2 runs, 2 of them finished before" in again.stdout
    assert "compare   1 run, 1 of them finished before" in again.stdout


def trials(tmp_path, **more):
    options = {"methods": ["lora", "gora", "dora"], "variants": (), "vary": [], "seeds": [0, 1], **more}
    return make_trials("quickstart", (), destination=tmp_path, **options)


def test_every_label_has_its_own_value_and_one_that_never_worked_has_none(tmp_path):
    text = "train.learning_rate=1e-3,3e-3,1e-2"
    tuning = Tuning.of(text, [0, 1])
    assert (tuning.name, tuning.values, tuning.seed) == ("learning_rate", ("1e-3", "3e-3", "1e-2"), 2)
    losses = {"lora": (3.0, 2.0, 1.0), "gora": (2.0, 1.5, None), "dora": (None, None, None)}
    outcomes = [
        outcome(f"{label} learning_rate={value}", 2, loss, None if loss else "it diverged")
        for label, found in losses.items()
        for value, loss in zip(tuning.values, found, strict=True)
    ]
    tuned = tuning.choose(outcomes)
    assert [(each.label, each.best, each.at_an_end) for each in tuned] == [
        ("lora", "1e-2", True),
        ("gora", "3e-3", False),
        ("dora", None, False),
    ]
    assert tuned[2].reason.message == "it diverged"
    chosen = tuning.chosen(tuned, trials(tmp_path, vary=[text]))
    assert [(trial.label, trial.seed) for trial in chosen] == [
        (f"{label}={value}", seed)
        for label, value in (("lora learning_rate", "1e-2"), ("gora learning_rate", "3e-3"))
        for seed in (0, 1)
    ]
    assert [trial.recipe.train.learning_rate for trial in chosen] == [1e-2, 1e-2, 3e-3, 3e-3]


def test_a_tuned_setting_goes_with_varied_ones_and_alone(tmp_path):
    tuning = Tuning.of("train.learning_rate=1e-3,3e-3", [0])
    vary = ["adapter.rank=4,8", "train.learning_rate=1e-3,3e-3"]
    made = trials(tmp_path, vary=vary, methods=["lora"], seeds=[0])
    tuned = tuning.choose(
        outcome(trial.label, 1, trial.recipe.adapter.rank / 8 + trial.recipe.train.learning_rate) for trial in made
    )
    assert [(each.label, each.best) for each in tuned] == [("lora rank=4", "1e-3"), ("lora rank=8", "1e-3")]
    alone = tuning.choose([outcome("learning_rate=1e-3", 1, 2.0), outcome("learning_rate=3e-3", 1, 1.0)])
    assert [(each.label, each.best) for each in alone] == [("the recipe", "3e-3")]


def test_only_finite_losses_count_and_only_numbers_have_an_end():
    assert Tuned("a", {"1e-3": math.nan, "3e-3": 2.0, "1e-2": math.inf}, "").best == "3e-3"
    assert Tuned("a", {"attention": 1.0, "all-linear": 2.0}, "").at_an_end is False
    assert Tuned("a", {"3e-4": 2.0, "1e-2": 1.5, "1e-3": 1.0}, "").at_an_end is False
    assert Tuned("a", {"3e-4": 2.0, "1e-2": 1.0, "1e-3": 1.5}, "").at_an_end is True
    table = tuning_table("learning_rate", [Tuned("a", {"1": 1.0, "2": math.pi, "3": None}, "it broke")])
    assert [list(column.cells) for column in table.columns][-1] == ["a better one may lie beyond"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tune": "train.learning_rate"}, r"--tune train\.learning_rate: section\.key=v1,v2 is expected"),
        ({"tune": "train.learning_rate=1e-3"}, "two values are expected at least"),
        ({"tune": RATES, "vary": [RATES]}, r"train\.learning_rate is varied twice"),
        (
            {"tune": RATES, "overrides": ("data.eval=null", "evaluation.steps=null")},
            "--tune chooses by evaluation loss",
        ),
        ({"tune": "train.learning_rate=1e-3,fast"}, "train.learning_rate"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_runs(tmp_path, more, message):
    options = {"overrides": (), **more}
    with pytest.raises(InputError) as refused:
        compare("quickstart", options.pop("overrides"), methods=["lora"], seeds=[0], destination=tmp_path, **options)
    assert re.search(message, "\n".join([refused.value.headline, *refused.value.problems]))
    assert not list(tmp_path.glob("**/output.txt"))
