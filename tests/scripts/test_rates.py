"""What the page on learning rates says of the judged combinations, recomputed from their runs."""

import json
from statistics import mean, median

from scripts.rates.table import best_between, rows
from tests.conftest import ROOT


def test_the_page_says_what_the_runs_say():
    page = (ROOT / "docs" / "learning-rate.md").read_text().replace("\n", " ")
    judged = rows(json.loads((ROOT / "docs" / "data" / "rate-judged.json").read_text()))
    above = [row["above the best of the grid"] for row in judged]
    within = [sum(each <= limit for each in above) for limit in (0.01, 0.02)]
    assert all(row["loss"] < row["base"] for row in judged)
    assert (
        f"**{within[0]} of {len(judged)} end within 1 % of the best of their grid, {within[1]} within 2 %; "
        f"in the middle {median(above):.1%} above it, on average {mean(above):.1%}; none above the base model.**"
    ).replace("%", " %").replace("  %", " %") in page
    small = [row for row in judged if row["model"] == "base-28m" and row["method"] != "gora paper"]
    assert all(1.75 <= row["best rate"] / row["rate"] <= 2.2 for row in small)
    assert len(small) == 7


def test_the_best_between_points_of_a_parabola_is_its_least():
    rate, loss = best_between([(10.0**x, 1 + (x - 0.3) ** 2) for x in (-1, 0, 1, 2)])
    assert abs(rate / 10**0.3 - 1) < 1e-9
    assert abs(loss - 1) < 1e-9
