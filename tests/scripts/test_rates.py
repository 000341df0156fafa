"""What the page on learning rates says of the judged combinations, recomputed from their runs."""

import json
from statistics import mean, median

import pytest

from gora.core.learning_rate import BELOW_DIVERGENCE_NEW_HEAD, COMMON_RATES, rate_of_trials, rate_under_new_head
from scripts.rates.choose import WAYS, above_best, judged, language_models
from scripts.rates.table import JUDGED_WITH, above_with_what_ships, best_between, rows
from tests.conftest import ROOT

TEXTS = ("math", "code", "instruction")


def page_on_rates():
    return (ROOT / "docs" / "learning-rate.md").read_text().replace("\n", " ")


@pytest.fixture(scope="module")
def combinations():
    return rows(json.loads((ROOT / "docs" / "data" / "rate-judged.json").read_text()))


def near(above, limit=0.01):
    return sum(each <= limit for each in above)


def test_the_page_says_what_the_runs_say(combinations):
    page = page_on_rates()
    above = [row["above the best of the grid"] for row in combinations]
    assert all(row["loss"] < row["base"] for row in combinations)
    assert (
        f"**{near(above)} of {len(above)} end within 1 % of the best of their grid, {near(above, 0.02)} within 2 %; "
        f"in the middle {100 * median(above):.2f} % above it, on average {100 * mean(above):.1f} %; "
        "none above the base model.**"
    ) in page
    texts = [row["above the best of the grid"] for row in combinations if row["set"] in TEXTS]
    assert f"{near(texts)} of {len(texts)}, {near(texts, 0.02)} within 2 %, {100 * max(texts):.1f} % at worst" in page
    encoder = [row for row in combinations if row["model"] == "minilm"]
    assert {row["seeds"] for row in encoder} == {3}
    assert near(row["above the best of the grid"] for row in encoder) == len(encoder) / 2 == 4


def test_the_page_says_what_earlier_rules_did():
    page = page_on_rates()
    for name, text in (("range-test", "in {}, and {:.1f} % above it on average"), ("short-trials", "{}, and {:.1f} %")):
        judged = rows(json.loads((ROOT / "docs" / "data" / f"rate-judged-{name}.json").read_text()))
        above = [row["above the best of the grid"] for row in judged]
        assert text.format(near(above), 100 * mean(above)) in page


def test_the_page_says_where_the_rule_that_ships_would_end(combinations):
    models = [row for row in combinations if row["model"] != "minilm"]
    above = [above_with_what_ships(row) for row in models]
    texts = [above_with_what_ships(row) for row in models if row["set"] in TEXTS]
    assert (
        f"within 1 % in {near(above)} of {len(above)} language models, on texts in {near(texts)} of {len(texts)}"
    ) in page_on_rates()


def test_the_page_says_what_the_middle_is_worth_under_a_new_head(combinations):
    found = [
        (rate * BELOW_DIVERGENCE_NEW_HEAD, 16.0 if row["method"] == "lora+" else 1.0, row["grid"])
        for row in combinations
        if row["model"] == "minilm"
        for rate in row["rates"]
    ]
    counts = [
        near(above_best(grid, rate_under_new_head(limit, common, ratio)) for limit, ratio, grid in found)
        for common in (COMMON_RATES["classification"], None)
    ]
    assert f"for {counts[0]} of the {len(found)} seeds" in page_on_rates()
    assert f"where the limit alone does for {counts[1]}" in page_on_rates()


def test_what_ships_is_the_rule_of_the_trials(combinations):
    row = next(row for row in combinations if row["model"] == "smollm2" and row["set"] == "instruction")
    found = row["rates"][0] * JUDGED_WITH  # the rate that ended lowest in trials
    assert above_with_what_ships(row) == above_best(row["grid"], rate_of_trials([found], [1.0], row["base"]))


def test_the_page_has_the_table_of_the_trials():
    page = page_on_rates()
    searches = language_models(json.loads((ROOT / "docs" / "data" / "rate-trials.json").read_text())["searches"])
    for name, way in WAYS.items():
        ratio, above = judged(searches, way)
        within = [sum(each <= limit for each in above) for limit in (0.01, 0.02)]
        figures = f"{mean(above):.1%} | {max(above):.1%} |"
        assert f"| {name} | {ratio:.2f} | {within[0]} of {len(above)} | {within[1]} | {figures}" in page


def test_a_loss_between_two_rates_is_on_the_curve_and_never_below_what_was_measured():
    grid = [(10.0**x, 2 + (x - 1) ** 2) for x in (-1, 0, 1, 2, 3)]
    assert above_best(grid, 10.0) == 0
    assert abs(above_best(grid, 10**1.5) - 0.125) < 1e-9
    assert above_best([(1.0, 3.0), (2.0, 2.0), (4.0, 9.0)], 1.9) >= 0


def test_the_best_between_points_of_a_parabola_is_its_least():
    rate, loss = best_between([(10.0**x, 1 + (x - 0.3) ** 2) for x in (-1, 0, 1, 2)])
    assert abs(rate / 10**0.3 - 1) < 1e-9
    assert abs(loss - 1) < 1e-9
