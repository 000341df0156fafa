"""What the page on learning rates says of the judged combinations, recomputed from their runs."""

import json
from statistics import mean, median

from scripts.rates.choose import WAYS, above_best, judged, language_models
from scripts.rates.table import best_between, rows
from tests.conftest import ROOT


def page_on_rates():
    return (ROOT / "docs" / "learning-rate.md").read_text().replace("\n", " ")


def test_the_page_says_what_the_runs_say():
    page = page_on_rates()
    judged = rows(json.loads((ROOT / "docs" / "data" / "rate-judged.json").read_text()))
    above = [row["above the best of the grid"] for row in judged]
    within = [sum(each <= limit for each in above) for limit in (0.01, 0.02)]
    assert all(row["loss"] < row["base"] for row in judged)
    assert (
        f"**{within[0]} of {len(judged)} end within 1 % of the best of their grid, {within[1]} within 2 %; "
        f"in the middle {100 * median(above):.2f} % above it, on average {100 * mean(above):.1f} %; "
        "none above the base model.**"
    ) in page
    large = [row["above the best of the grid"] for row in judged if row["model"] == "smollm2"]
    near = sum(each <= 0.01 for each in large)
    assert f"{near} of {len(large)}, and three more by a tenth of a percent" in page
    assert sum(0.01 < each <= 0.012 for each in large) == 3


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
