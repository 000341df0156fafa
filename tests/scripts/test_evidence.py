"""The runner behind docs/results.md: what is run in which order, at which rates, and what is told from noise."""

import json
import math
import sys
from concurrent.futures import Future
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
from scipy import stats

from gora.recipe import load_recipe
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "results"))

import accuracy
import cells
import evidence
import making
import preset
import processes
import reading
import sets
from cells import AUTO, GRID, METHODS, SEEDS, Cell, best_rate, plan

BEST = {"lora": 2.9e-3, "gora paper": 1e-4, "full": 9e-2}


def bowl(rate, best):
    return {"loss": {"base": 2.0, "final": 1 + 0.1 * math.log2(rate / best) ** 2}}


def searched(method, rows="math"):
    """The cells of one method's search on a set, in the order in which they are asked for, until it is over."""
    found, asked = {}, []
    while best_rate(found, rows, "all-linear", method) is None:
        new = [
            cell
            for cell in plan(found, ["fair"])
            if (cell.rows, cell.targets, cell.method) == (rows, "all-linear", method) and str(cell) not in found
        ]
        asked.append(new[0].rate)
        found[str(new[0])] = bowl(new[0].rate, BEST[method])
    return found, asked


def test_a_search_ends_at_the_least_of_a_parabola():
    found, asked = searched("lora")
    assert len(asked) == 3
    assert best_rate(found, "math", "all-linear", "lora") == pytest.approx(BEST["lora"], rel=0.01)


@pytest.mark.parametrize("method", ["gora paper", "full"])
def test_a_search_goes_on_beyond_its_edge_and_stops_after_four_rates(method):
    found, asked = searched(method)
    assert len(asked) == len(set(asked)) == cells.MOST_RATES
    losses = {rate: found[str(Cell("fair", "math", "all-linear", method, rate, 0))]["loss"]["final"] for rate in asked}
    best = best_rate(found, "math", "all-linear", method)
    assert abs(math.log2(best / min(losses, key=losses.get))) <= 1


def test_a_rate_at_which_training_falls_apart_is_worse_than_any():
    found, asked = searched("lora")
    found[str(Cell("fair", "math", "all-linear", "lora", max(asked), 0))] = {"failed": "GoraError: not finite"}
    assert best_rate(found, "math", "all-linear", "lora") in asked


def test_other_sets_begin_at_half_the_rate_and_some_take_rates_over():
    found, _ = searched("lora")
    first = {
        rows: next(cell.rate for cell in plan(found) if (cell.rows, cell.method, cell.seed) == (rows, "lora", 0))
        for rows in ("math", "code")
    }
    assert first == {"math": 3.2e-3, "code": 1.6e-3}
    of_sst2, _ = searched("lora", "sst2")
    taken = [cell for cell in plan(of_sst2, ["fair"]) if cell.rows in cells.NEAREST and not cell.searches]
    assert {cell.rate for cell in taken} == {best_rate(of_sst2, "sst2", "all-linear", "lora")}
    assert {cell.rows for cell in taken} == {"cola", "mrpc", "qnli", "mnli", "rte"}
    assert not [cell for cell in plan(found, ["fair"]) if cell.rows in cells.NEAREST and not cell.searches]


def test_where_rates_are_taken_over_an_own_search_counts_once_it_was_run():
    found = searched("lora", "sst2")[0] | searched("lora", "qnli")[0]
    taken, own = (best_rate(found, rows, "all-linear", "lora") for rows in ("sst2", "qnli"))
    found[str(Cell("fair", "sst2", "all-linear", "lora", GRID[3], 0))] = bowl(1e-4, 1e-4)  # below all others
    taken = best_rate(found, "sst2", "all-linear", "lora")
    assert taken != own

    def read(*rates):
        finals = {str(Cell("fair", "qnli", "all-linear", "lora", rate, 1)): {"loss": {"final": rate}} for rate in rates}
        return reading.fair_losses(found | finals, "qnli")["lora"][1]

    assert read(taken) == taken and read(taken, own) == own
    finals = {cell.rate for cell in plan(found, ["fair"]) if (cell.rows, cell.method, cell.seed) == ("qnli", "lora", 1)}
    assert finals == {own}


def test_the_most_valuable_cells_come_first_and_none_twice_in_a_table():
    order = list(dict.fromkeys(plan({})))
    preset = {(cell.table, cell.rows, cell.method) for cell in order[: 2 * len(cells.ALL)]}
    assert preset == {("tools", rows, name) for rows in cells.ALL for name in (AUTO, cells.AUTO_LORA)}
    assert order[len(preset) : len(preset) + len(list(cells.again()))] == list(cells.again())
    assert {cell.rows for cell in order if cell.table == "tools"} == set(sets.SETS) == set(cells.ALL)
    names = [str(cell) for cell in order]
    assert len(names) == len(set(names))
    assert {cell.table for cell in order} == set(cells.TABLES)


def test_sets_that_decided_the_preset_are_not_those_that_judge_it():
    assert set(cells.KEPT) | set(cells.DECIDED) == set(cells.ALL) and not set(cells.KEPT) & set(cells.DECIDED)


def some_cells():
    """One of every kind."""
    fair = [Cell("fair", "math", targets, method, 1e-3, 0) for targets in cells.TARGETS for method in METHODS]
    paper = [Cell("paper", "code", "attention", method, 2e-4, 1) for method in (*cells.PAPER_METHODS, *cells.ABLATIONS)]
    tools = [Cell("tools", rows, "own", name, "own", 1) for rows in sets.SETS for name in (AUTO, *cells.TOOLS)]
    return [*fair, *paper, *tools, *cells.again(), Cell("answers", "math", "own", AUTO, "auto", 1)]


def test_every_cell_is_a_valid_recipe(tmp_path):
    budget = set()
    for cell in some_cells():
        made = making.recipe_of(cell, "builtin:tiny-6m", tmp_path)
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps({**made, "output": str(tmp_path / "run")}))
        recipe = load_recipe(str(path)).recipe
        assert recipe.seed == cell.seed
        assert ("choose" in recipe.data.eval.path) == (cell.table == "fair")
        assert ("first" in recipe.data.train.path) == (cell.table == "again")
        asked = {"answers": "gsm8k", "again": None}.get(cell.table, sets.SETS[cell.rows].task)
        tasks = {task.name for task in recipe.evaluation.tasks}
        assert tasks == (set() if asked is None or (asked == "gsm8k" and cell.table != "answers") else {asked})
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
    sizes = [len(questions[file]) for file in ("train", "choose", "test")]
    assert sizes == list(sets.SIZES) and sizes == [len(files[file]) for file in ("train", "choose", "test")]
    assert not questions["train"] & questions["choose"] and all("test" in text for text in questions["test"])
    assert not any(text.endswith("7") for texts in questions.values() for text in texts)
    alone = sets.cut(sets.Set(sources={"a": "a"}, data={}), tmp_path, lambda row: 5, sets.Sizes(900, 200, 300))
    questions = {file: {row["q"] for row in rows} for file, rows in alone.items()}
    assert [len(each) for each in questions.values()] == [900, 200, 300]
    assert not questions["test"] & (questions["train"] | questions["choose"])


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


def test_seeds_count_that_two_of_three_methods_have():
    table = losses_with(0.01, dict.fromkeys("abcdef", 0.0))
    assert reading.complete(table) == table
    fewer = {name: values if name in "abc" else {1: values[1], 2: values[2]} for name, values in table.items()}
    assert {tuple(values) for values in reading.complete(fewer).values()} == {(1, 2)}
    assert len(reading.complete(fewer)) == 6
    late = {**table, "f": {1: 0.5}}
    assert set(reading.complete(late)) == set("abcde")
    assert reading.noise({name: {1: values[1]} for name, values in table.items()}) is None


def test_a_method_with_fewer_seeds_gains_nothing_by_an_easy_one():
    table = {
        name: {1: 1.0 + more, 2: 2.0 + more, 3: 3.0 + more} for name, more in zip("abc", (0, 0.1, 0.2), strict=True)
    }
    found = reading.levels({**table, "d": {1: 1.05}})
    assert found["a"] == pytest.approx(2.0) and found["d"] == pytest.approx(2.05)


def preset_beside(rivals, own, rows="math"):
    """Runs on a set with the losses of some methods at known rates, and of the preset."""
    found, share = {}, 1 if rows == "math" else 0.5
    for method, losses in rivals.items():
        for rate in cells._tried({}, rows, "all-linear", method):
            found[str(Cell("fair", rows, "all-linear", method, rate, 0))] = bowl(rate, share * cells._CENTRE[method])
        best = best_rate(found, rows, "all-linear", method)
        found |= {
            str(Cell("fair", rows, "all-linear", method, best, seed)): {"loss": {"final": loss}}
            for seed, loss in enumerate(losses, 1)
        }
    for seed, loss in enumerate(own, 1):
        found[str(Cell("tools", rows, "own", AUTO, "auto", seed))] = {"loss": {"final": loss}}
    return found


def test_the_margin_of_the_preset_is_to_the_best_method_with_an_interval():
    rivals = {"lora": [1.0, 1.1, 1.2], "rslora": [1.01, 1.11, 1.22], "dora": [1.02, 1.13, 1.22]}
    margin = preset.margins(preset_beside(rivals, [1.004, 1.104, 1.204]))["math"]
    assert (margin.best, margin.seeds) == ("lora", 3) and margin.share == pytest.approx(0.004 / 1.1)
    assert margin.reached and margin.tied and margin.half > margin.share
    far = preset.margins(preset_beside(rivals, [1.1, 1.2, 1.3]))["math"]
    assert not far.reached and not far.tied
    alone = preset.margins(preset_beside({name: each[:1] for name, each in rivals.items()}, [1.004]))["math"]
    assert alone.half is None and not alone.tied


def test_less_than_the_mean_of_the_tools_counts_only_where_all_were_run():
    def runs(seed, losses):
        names = (AUTO, *cells.TOOLS)
        rates = ["auto", *["own"] * 5]
        return {
            str(Cell("tools", "math", "own", name, rate, seed)): {"loss": {"final": loss}}
            for name, rate, loss in zip(names, rates, losses, strict=False)
        }

    found = runs(1, [0.9, 0.8, 0.9, 1.0, 1.1, 1.2]) | runs(2, [0.5, 9.0])
    assert preset.less_than_mean(found, "math") == pytest.approx(0.1)
    assert preset.less_than_mean(runs(1, [0.9, 0.8]), "math") is None


def test_gpus_may_be_added_and_runs_that_would_last_too_long_are_told_by_the_longest_of_their_kind(tmp_path):
    assert processes.devices_of("0,2") == ["0", "2"] and processes.devices_of("") == [""]
    told = tmp_path / "gpus"
    told.write_text("3\n")
    assert processes.devices_of(str(told)) == ["3"]
    told.write_text("3\n0\n")
    assert processes.devices_of(str(told)) == ["3", "0"]
    runs = {
        str(Cell("fair", rows, "attention", "dora", 1e-3, 1)): {"seconds": n} for n, rows in enumerate(("math", "code"))
    }
    assert evidence.longest(runs) == {"dora": 1}


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
    middle, low, high = accuracy.accuracy_interval(one, other)
    assert low < 0.1 < high and low > 0
    assert middle == pytest.approx(np.mean([one[seed].mean() - other[seed].mean() for seed in SEEDS]))
    assert accuracy.accuracy_interval(one, one) == (0, 0, 0)


def test_the_interval_of_many_comparisons_is_wider():
    draw = np.random.default_rng(3)
    one, other = ({1: (draw.random(500) < 0.6).astype(int)} for _ in range(2))
    (_, low, high), (_, lower, higher) = (accuracy.accuracy_interval(one, other, count) for count in (1, 10))
    assert lower < low < high < higher


def of_100(count):
    """An accuracy on 100 rows of two choices."""
    return {"metrics": {"accuracy": count / 100}, "right": "1" * count + "0" * (100 - count), "chance": 0.5}


@pytest.mark.parametrize(
    ("mine", "base", "reached", "points"),
    [(89, 50, True, -0.01), (80, 50, False, -0.10), (89, 88, False, None)],
    ids=["within a standard error", "further", "no better than the base"],
)
def test_an_accuracy_within_a_standard_error_is_enough_where_it_says_something(mine, base, reached, points):
    found = preset_beside({"lora": [1.0], "rslora": [1.01], "dora": [1.02]}, [1.2], "sst2")
    for name in [name for name in found if name.endswith("| 1")]:
        found[name]["tasks"] = {"sst2": {"trained": of_100(mine if AUTO in name else 90), "base": of_100(base)}}
    margin = preset.margins(found)["sst2"]
    assert not margin.by_loss and margin.reached == reached
    assert margin.points == (None if points is None else pytest.approx(points)) and margin.error == pytest.approx(0.03)


def test_an_accuracy_near_chance_says_nothing():
    assert accuracy.says_something(0.60, 1000, [0.5])
    assert not accuracy.says_something(0.52, 1000, [0.5])
    assert not accuracy.says_something(0.60, 1000, [0.5, 0.59])


def test_the_grid_has_steps_of_two():
    assert all(later / earlier == pytest.approx(2) for earlier, later in pairwise(GRID))


class Pretended:
    """A worker whose runs are over at once: 7 s each, or what was told to go wrong first."""

    wrong: ClassVar = []
    made: ClassVar = []

    def __init__(self, device, muted, context):
        self.device, self.pool = device, self

    def begin(self):
        self.made.append("a new process")

    def shutdown(self):
        pass

    def submit(self, recipe, folder, base_too):
        future = Future()
        self.made.append(folder.rsplit("/", 1)[1])
        problem = self.wrong.pop(0) if self.wrong else None
        if isinstance(problem, Exception):
            future.set_exception(problem)
        else:
            loss = {"loss": {"base": 2.0, "final": 1.0}}
            future.set_result({**({"failed": problem} if problem else loss), "seconds": 7.0})
        return future


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Makes runs as the command does, and returns what is kept."""
    monkeypatch.setattr(evidence, "Worker", Pretended)
    monkeypatch.setattr(evidence, "context_of_workers", lambda: None)
    monkeypatch.setattr(Pretended, "made", [])
    monkeypatch.setattr(Pretended, "wrong", [])
    output = tmp_path / "cells.json"

    def make(*more):
        folders = [
            "--model",
            "builtin:tiny-6m",
            "--sets",
            str(tmp_path),
            "--work",
            str(tmp_path),
            "--output",
            str(output),
        ]
        monkeypatch.setattr(sys, "argv", ["evidence.py", *folders, "--table", "again", *more])
        evidence.main()
        return json.loads(output.read_text()) if output.exists() else {}

    return make


def test_finished_runs_are_kept_and_not_repeated(study):
    every = study("--workers", "2", "--devices", "0,1")
    assert every.keys() == {str(cell) for cell in cells.again()} and len(Pretended.made) == 7
    assert study() == every and len(Pretended.made) == 7


def test_what_its_neighbours_on_the_gpu_did_to_a_run_is_no_result(study):
    Pretended.wrong += [RuntimeError("died"), "OutOfMemoryError: CUDA out of memory", "GoraError: loss is not finite"]
    every = study("--only", "peft")
    assert Pretended.made == ["again___code___own___peft___own___1", "a new process", *Pretended.made[:1] * 2]
    assert every["again | code | own | peft | own | 1"]["failed"] == "GoraError: loss is not finite"


def test_no_run_is_begun_that_would_not_be_done_in_time(study):
    every = study("--minutes", "0.1")
    assert len(every) == 7  # of the time of which nothing was known: 7 s, as it turned out
    begun = len(Pretended.made)
    assert study("--table", "answers", "--minutes", "0.1") == every and len(Pretended.made) == begun
    assert len(study("--table", "answers", "--minutes", "0.2")) == 14
