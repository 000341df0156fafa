"""The scripts behind docs/results.md: which learning rates are tried, what is not run again, which runs count."""

import argparse
import json
import math
import sys

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "results"))

import run as results
import tables as results_tables
from catalogue import CHANGED, METHODS

BEST = {"LoRA": 1e-2, "GoRA": 6e-4}


def loss(method, rate):
    """A bowl over the logarithm of the rate; it diverges at three times the best one and above."""
    best = BEST[method.partition(",")[0]]
    return None if rate > 2.9 * best else 2 + math.log(rate / best) ** 2


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Comparisons that were asked for, each as (folder's name, labels, seeds); none is run."""
    asked = []

    def compare(name, output, variants, seeds, settings, given):
        asked.append((output.name, list(variants), seeds))
        output.mkdir(parents=True, exist_ok=True)
        rows = []
        for label in variants:
            method, _, rate = label.rpartition(" at ")
            found = loss(method, float(rate))
            diverged = [{"seed": 0, "code": "not-finite", "message": "..."}]
            rows.append(
                {"label": label, "loss": {"mean": found} if found else None, "failures": [] if found else diverged}
            )
        (output / "comparison.json").write_text(json.dumps(rows))

    monkeypatch.setattr(results, "compare", compare)

    def run(known=None, **more):
        given = {"methods": list(BEST), "rates": (3e-4, 1e-3, 3e-3), "rounds": 2, "output": tmp_path, "seeds": "1,2"}
        given |= {"search_seed": "0", "without_changes": True, **more}
        asked.clear()
        results.run_set("code", known or {}, argparse.Namespace(**given))
        return asked

    return run


def test_rates_are_extended_beyond_the_ends_and_then_refined_around_the_best(made, tmp_path):
    asked = made()
    assert [len(labels) for _, labels, _ in asked] == [6, 1, 1, 4, 2]
    found = json.loads((tmp_path / "code" / "search.json").read_text())
    assert set(found["LoRA"]) == {"0.0003", "0.001", "0.003", "0.01", "0.03", "0.0056", "0.018"}
    assert set(found["GoRA"]) == {"0.0003", "0.001", "0.003", "0.00056", "0.0018"}
    assert found["LoRA"]["0.03"] is None
    assert asked[-1] == ("final", ["LoRA at 0.01", "GoRA at 0.00056"], "1,2")


def test_what_an_earlier_search_or_earlier_figures_know_is_not_run_again(made):
    made()
    # Diverged runs are not tried again either; seeds are asked for again, and are found finished by `gora compare`.
    assert [name for name, _, _ in made()] == ["final"]
    runs = [{"seed": seed} for seed in (1, 2)]
    known = {"final": {"LoRA": {"learning_rate": 1e-2, "runs": runs}, "GoRA": {"learning_rate": 1e-3, "runs": runs}}}
    assert made(known) == [("final", ["GoRA at 0.00056"], "1,2")]


def test_changes_are_tried_around_the_best_rate_of_what_they_change(made):
    asked = made(without_changes=False)
    (_, labels, _) = asked[-2]
    changes = [name for name, (method, _) in CHANGED.items() if method in BEST]
    assert {label.rpartition(" at ")[0] for label in labels} == set(changes)
    assert {label.rpartition(" at ")[2] for label in labels if label.startswith("GoRA")} == {
        "0.0003",
        "0.00056",
        "0.001",
    }
    assert asked[-1][0] == "changed" and len(asked[-1][1]) == len(changes)


def test_a_failure_that_is_no_divergence_is_tried_again(tmp_path):
    rows = [
        {"label": "a at 1", "loss": {"mean": 1.5}, "failures": []},
        {"label": "b at 1", "loss": None, "failures": [{"seed": 0, "code": "not-finite", "message": "any words"}]},
        {"label": "c at 1", "loss": None, "failures": [{"seed": 0, "code": "out-of-memory", "message": "NaN"}]},
    ]
    (tmp_path / "comparison.json").write_text(json.dumps(rows))
    assert results.losses_found(tmp_path / "comparison.json") == {"a at 1": 1.5, "b at 1": None}


@pytest.mark.parametrize("method", ["LoRA-GA as in PEFT, B at a quarter", "GoRA, nuclear norm of W * G"])
def test_runs_are_found_by_method_rate_and_seed(tmp_path, method):
    assert method in {**METHODS, **CHANGED}
    for name, content in {"a": '{"loss": {"final": 1.0}}', "b": '{"precompute": {}}'}.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "results.json").write_text(content)
    trials = [
        {"label": f"{method} at 0.018", "seed": seed, "folder": name} for seed, name in ((3, "a"), (4, "b"), (5, "c"))
    ]
    (tmp_path / "runs.json").write_text(json.dumps(trials))
    assert list(results_tables.read_runs(tmp_path)) == [(method, 0.018, {"seed": 3, "loss": {"final": 1.0}})]


def test_the_rate_with_the_most_seeds_counts_and_among_equals_the_best():
    losses = {"0.001": 1.4, "0.003": 1.2, "0.01": 1.3}
    assert results_tables.rate_that_counts({1e-3: 3, 3e-3: 1}, losses) == 1e-3
    assert results_tables.rate_that_counts({1e-3: 3, 3e-3: 3, 1e-2: 3}, losses) == 3e-3
    assert results_tables.rate_that_counts({3e-1: 2}, losses) == 3e-1


def test_sets_that_were_not_run_are_neither_in_the_file_nor_in_the_tables(tmp_path, monkeypatch, capsys):
    run = tmp_path / "runs" / "code" / "final" / "runs" / "LoRA_at_0.01_seed=1"
    run.mkdir(parents=True)
    (run / "results.json").write_text('{"loss": {"final": 1.25}}')
    trial = {"label": "LoRA at 0.01", "seed": 1, "folder": run.name}
    (run.parents[1] / "runs.json").write_text(json.dumps([trial]))
    (tmp_path / "runs" / "code" / "search.json").write_text('{"LoRA": {"0.01": 1.5}}')
    arguments = ["tables.py", str(tmp_path / "found.json"), str(tmp_path / "runs"), "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    results_tables.main()
    assert list(json.loads((tmp_path / "found.json").read_text())) == ["code"]
    said = capsys.readouterr().out
    assert "| LoRA | **1.2500** |" in said
    assert "instruction" not in said
