"""The runner behind docs/results.md: what is run in which order, at which rates, and what is told from noise."""

import json
import math
import sys
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from gora.recipe import load_recipe
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "results"))

import cells
import evidence
import reading
import sets
from cells import AUTO, GRID, METHODS, SEEDS, Cell, best_rate, plan

BEST = {"lora": 2.9e-3, "gora paper": 1e-4, "full": 9e-2}


def bowl(rate, best):
    return {"loss": {"base": 2.0, "final": 1 + 0.1 * math.log2(rate / best) ** 2}}


def searched(method):
    """The cells of one method's search on math, in the order in which they are asked for, until it is over."""
    found, asked = {}, []
    while best_rate(found, "math", "all-linear", method) is None:
        new = [
            cell
            for cell in plan(found, ["fair"])
            if (cell.rows, cell.targets, cell.method) == ("math", "all-linear", method) and str(cell) not in found
        ]
        asked.append(new[0].rate)
        found[str(new[0])] = bowl(new[0].rate, BEST[method])
    return found, asked


def test_a_search_ends_at_the_least_of_a_parabola():
    found, asked = searched("lora")
    assert len(asked) == 3
    assert best_rate(found, "math", "all-linear", "lora") == pytest.approx(BEST["lora"], rel=0.01)


@pytest.mark.parametrize("method", ["gora paper", "full"])
def test_a_search_goes_on_beyond_its_edge_and_stops_after_five_rates(method):
    found, asked = searched(method)
    assert len(asked) == len(set(asked)) == cells.MOST_RATES
    losses = {rate: found[str(Cell("fair", "math", "all-linear", method, rate, 0))]["loss"]["final"] for rate in asked}
    best = best_rate(found, "math", "all-linear", method)
    assert abs(math.log2(best / min(losses, key=losses.get))) <= 1


def test_a_rate_at_which_training_falls_apart_is_worse_than_any():
    found, asked = searched("lora")
    found[str(Cell("fair", "math", "all-linear", "lora", max(asked), 0))] = {"failed": "GoraError: not finite"}
    assert best_rate(found, "math", "all-linear", "lora") in asked


def test_other_sets_begin_where_math_ended_and_some_take_rates_over():
    found, _ = searched("lora")
    start = [cell.rate for cell in plan(found) if (cell.rows, cell.method, cell.seed) == ("code", "lora", 0)][:3]
    assert min(start, key=lambda rate: abs(rate - BEST["lora"])) == start[0]
    assert not [cell for cell in plan(found) if cell.rows in cells.NEAREST and cell.table == "fair"]


def test_the_most_valuable_cells_come_first_and_none_twice_in_a_table():
    order = list(plan({}))
    assert [cell.table for cell in order[:70]] == ["tools"] * 70
    assert {cell.rows for cell in order[:70]} == set(sets.SETS)
    assert order[70].table == "fair" and order[70].rows == "math"
    names = [str(cell) for cell in dict.fromkeys(order)]
    assert len(names) == len(set(names))


def some_cells():
    """One of every kind."""
    fair = [Cell("fair", "math", targets, method, 1e-3, 0) for targets in cells.TARGETS for method in METHODS]
    paper = [Cell("paper", "code", "attention", method, 5e-5, 1) for method in cells.PAPER_METHODS]
    tools = [Cell("tools", rows, "own", name, "own", 1) for rows in sets.SETS for name in (AUTO, *cells.TOOLS)]
    return [*fair, *paper, *tools]


def test_every_cell_is_a_valid_recipe(tmp_path):
    budget = set()
    for cell in some_cells():
        made = evidence.recipe_of(cell, "builtin:tiny-6m", tmp_path)
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps({**made, "output": str(tmp_path / "run")}))
        recipe = load_recipe(str(path)).recipe
        assert recipe.seed == cell.seed
        assert ("choose" in recipe.data.eval.path) == (cell.table == "fair")
        if cell.table == "fair" and cell.method != "full":
            budget.add((cell.targets, recipe.adapter.targets, recipe.adapter.rank, recipe.adapter.parameters))
            assert (recipe.train.batch_size, recipe.train.learning_rate) == (16, 1e-3)
    assert budget == {
        ("attention", "attention", 8, None),
        ("all-linear", "all-linear", "auto", "rank 8 on attention"),
    }


def test_rows_to_train_on_to_choose_by_and_to_judge_are_different_ones(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file, count in (("train", 1400), ("test", 300)):
            rows = [{"q": f"{name} {file} {number}"} for number in range(count)]
            (tmp_path / name / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = sets.Set(sources={"a": "a", "b": "b"}, data={}, held_out="test.jsonl", task="choice")
    files = sets.cut(one, tmp_path, lambda row: 999 if row["q"].endswith("7") else 5)
    questions = {file: {row["q"] for row in rows} for file, rows in files.items()}
    assert len(questions["train"]) == sets.TRAIN and len(questions["test"]) == len(files["test"]) == sets.HELD_OUT
    assert not questions["train"] & questions["choose"] and all("test" in text for text in questions["test"])
    assert not any(text.endswith("7") for texts in questions.values() for text in texts)
    alone = sets.cut(sets.Set(sources={"a": "a"}, data={}), tmp_path, lambda row: 5)
    assert not {row["q"] for row in alone["test"]} & {row["q"] for row in alone["train"]}


def losses_with(noise, effects, seeds=SEEDS):
    draw = np.random.default_rng(1)
    shared = draw.normal(0, 0.1, len(seeds))
    return {
        method: {seed: 1 + effect + shared[number] + draw.normal(0, noise) for number, seed in enumerate(seeds)}
        for method, effect in effects.items()
    }


def test_noise_is_what_a_two_way_analysis_leaves_over():
    table = losses_with(0.01, {"a": 0.0, "b": 0.1, "c": 0.0, "d": 0.2})
    found = reading.noise(table)
    # Friedman's layout by hand: residual mean square of method + seed.
    values = np.array([[table[method][seed] for seed in SEEDS] for method in table])
    total = ((values - values.mean()) ** 2).sum()
    between = len(SEEDS) * ((values.mean(1) - values.mean()) ** 2).sum()
    among = len(table) * ((values.mean(0) - values.mean()) ** 2).sum()
    assert found.deviation**2 * found.freedom == pytest.approx(total - between - among)
    assert found.freedom == 6
    assert found.half() == pytest.approx(stats.t.ppf(0.975, 6) * found.deviation * math.sqrt(2 / 3))
    assert found.half(3) > found.half()


def test_what_is_within_noise_of_the_first_is_tied_with_it():
    assert reading.tied_with_first(losses_with(0.001, {"a": 0.0, "b": 0.0005, "c": 0.1, "d": 0.2}))[-1] in ("a", "b")
    assert set(reading.tied_with_first(losses_with(0.05, {"a": 0.0, "b": 0.01, "c": 0.02}))) == {"a", "b", "c"}


def test_the_critical_difference_is_that_of_published_tables():
    # Demsar 2006, Table 5(a): q = 2.850 for 6 methods, 3.164 for 10.
    assert reading.critical_difference(6, 10) == pytest.approx(2.850 * math.sqrt(6 * 7 / 60), rel=2e-3)
    assert reading.critical_difference(10, 10) == pytest.approx(3.164 * math.sqrt(10 * 11 / 60), rel=2e-3)


def test_places_are_means_over_columns():
    assert reading.places({"x": {"a": 1, "b": 2, "c": 3}, "y": {"a": 5, "b": 5, "c": 1}}) == {
        "a": 1.75,
        "b": 2.25,
        "c": 2.0,
    }


def test_the_interval_of_an_accuracy_covers_a_true_difference_and_not_zero_when_it_is_clear():
    draw = np.random.default_rng(2)
    one = {seed: (draw.random(1000) < 0.8).astype(int) for seed in SEEDS}
    other = {seed: (draw.random(1000) < 0.7).astype(int) for seed in SEEDS}
    middle, low, high = reading.accuracy_interval(one, other)
    assert low < 0.1 < high and low > 0
    assert middle == pytest.approx(np.mean([one[seed].mean() - other[seed].mean() for seed in SEEDS]))
    assert reading.accuracy_interval(one, one) == (0, 0, 0)


def test_an_accuracy_near_chance_says_nothing():
    assert reading.says_something(0.60, 1000, [0.5])
    assert not reading.says_something(0.52, 1000, [0.5])
    assert not reading.says_something(0.60, 1000, [0.5, 0.59])


def test_the_grid_has_steps_of_two():
    assert all(later / earlier == pytest.approx(2) for earlier, later in pairwise(GRID))
