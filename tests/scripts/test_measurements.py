"""Tables of measurements are those of their data, and the study of images looks for rates by itself."""

import argparse
import json
import sys

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "vision"))

import study
from vision_search import AUTO, Results

DATA = ROOT / "docs" / "data"
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text()
TRIED = (0.0003, 0.001, 0.003)


def data(name):
    return json.loads((DATA / name).read_text())


def test_the_table_of_images_is_that_of_the_runs():
    rows = study.table(Results(DATA / "images-h200.json"), argparse.Namespace(methods=list(study.METHODS)))
    page = (ROOT / "docs" / "results.md").read_text()
    for row in rows.splitlines()[2:]:
        assert row in page


def test_the_accuracies_of_the_preset_at_other_rates_are_those_of_the_runs():
    page = (ROOT / "docs" / "results.md").read_text()
    for title, kind in (("five other classes", "cifar"), ("digits", "digits")):
        runs = [run for run in data("images-h200.json")["runs"] if (run["set"], run["method"]) == (kind, AUTO)]
        tried = sorted((run["rate"], 100 * run["accuracy"]) for run in runs if run["rate"])
        assert f"| {title} | {' | '.join(f'{accuracy:.1f}' for _, accuracy in tried)} |" in page
        assert f"| rate | {' | '.join(f'{rate:g}' for rate, _ in tried)} |" in page


def test_the_table_of_engines_on_two_gpus_is_that_of_the_runs():
    rows = data("distributed-two-h200.json")["rows"]
    alone = rows[0]
    assert alone["gpus"] == 1
    for row in rows:
        gpus = row["gpus"]
        cells = [
            f"`{row['engine_asked']}`",
            str(gpus),
            f"{row['gradient_rate'] / gpus:,.0f}",
            f"{row['gradient_rate'] / alone['gradient_rate']:.2f}",
            f"{row['late_rate'] / gpus:,.0f}",
            f"{row['late_rate'] / alone['late_rate']:.2f}",
            ", ".join(f"{stage['gpu'] / 1e9:.1f}" for stage in row["memory"]),
        ]
        assert f"| {' | '.join(cells)} |" in PERFORMANCE


def test_the_table_of_memory_is_that_of_the_runs():
    rows = data("memory-h200.json")["rows"]
    for row in rows:
        share = row["error_share"]
        off = "0.0 %" if abs(share) < 5e-4 else f"{100 * share:+.1f} %"
        measured, estimate = f"{row['measured'] / 1e9:.2f}", f"{row['estimate']['total'] / 1e9:.2f}"
        assert f"| {measured} | {estimate} | {off} | {row['reserved'] / row['measured']:.2f} |" in PERFORMANCE
    assert max(abs(row["error_share"]) for row in rows) < 0.019


def ran(results, losses, seed=0):
    for rate, loss in losses.items():
        results.content["runs"].append(
            {"set": "cifar", "method": "lora", "rate": rate, "seed": seed, "loss": loss, "accuracy": 0.5}
        )


@pytest.mark.parametrize(
    ("losses", "more"),
    [((3.0, 2.0, 1.0), (0.01, 0)), ((1.0, 2.0, 3.0), (0.0001, 0)), ((2.0, 1.0, None), (0.001, 1))],
    ids=["upwards", "downwards", "found"],
)
def test_rates_are_looked_for_until_the_best_lies_between_others(tmp_path, losses, more):
    given, results = argparse.Namespace(rates=TRIED, seeds=2, around=[]), Results(tmp_path / "results.json")
    assert results.next("cifar", "lora", given) == [("cifar", "lora", rate, 0) for rate in TRIED]
    ran(results, dict(zip(TRIED, losses, strict=True)))
    assert results.next("cifar", "lora", given)[0] == ("cifar", "lora", *more)
    ran(results, {0.001: 1.0}, seed=1)
    if more[1]:
        assert results.next("cifar", "lora", given) == [("cifar", "lora", 0.001, 2)]


def test_the_preset_is_run_on_every_seed_and_at_no_rate_of_the_study(tmp_path):
    given, results = argparse.Namespace(rates=TRIED, seeds=2, around=[]), Results(tmp_path / "results.json")
    assert results.next("cifar", AUTO, given) == [("cifar", AUTO, 0.0, 1), ("cifar", AUTO, 0.0, 2)]
