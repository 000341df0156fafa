"""What the page on learning rates says of the judged combinations, recomputed from their runs."""

import json
import re
from statistics import mean

import numpy as np
import pytest

from gora.core.learning_rate import COMMON_RATES, TRIALS_OVER_RUN, lowest, rate_of_trials, rate_under_new_head
from scripts.rates.choose import WAYS, above_best, judged, language_models
from scripts.rates.table import PROPORTIONAL, TEXTS, above_with_what_ships, best_between, rate_that_ships, rows
from tests.conftest import ROOT


def page_on_rates():
    return (ROOT / "docs" / "learning-rate.md").read_text().replace("\n", " ")


def runs_of(name):
    return json.loads((ROOT / "docs" / "data" / f"rate-judged{name}.json").read_text())


@pytest.fixture(scope="module")
def combinations():
    return rows(runs_of(""))


def near(above, limit=0.01):
    return sum(each <= limit for each in above)


def shares(combinations):
    return [row["above the best of the grid"] for row in combinations]


def test_the_page_says_what_the_runs_say(combinations):
    page = page_on_rates()
    texts = [row for row in combinations if row["set"] in TEXTS]
    others = [row for row in combinations if row["set"] not in TEXTS]
    assert f"## Judged on other combinations  {len(combinations)} combinations" in page
    assert (
        f"{near(shares(texts))} of {len(texts)} end within 1 % of the best of their grid, the last one "
        f"{100 * max(shares(texts)):.2f} % above it.** Of the seven others {near(shares(others))} do"
    ) in page
    assert len(others) == 7
    words = shares(row for row in others if row["model"] != "minilm")
    assert f"({100 * min(words):.1f} to {100 * max(words):.1f} %)" in page
    encoder = sorted(shares(row for row in others if row["model"] == "minilm"))
    assert {row["seeds"] for row in others if row["model"] == "minilm"} == {3}
    assert f"({100 * encoder[-2]:.1f} and {100 * encoder[-1]:.1f} % above)" in page


def test_the_page_says_what_other_rates_than_the_best_cost():
    searches = json.loads((ROOT / "docs" / "data" / "learning-rate.json").read_text())["searches"]

    def above(search, factor):
        rates, losses = np.log(search["rates"]), search["loss"]
        best = lowest(search["rates"], losses)
        return 100 * (np.interp(np.log(factor * best), rates, losses) / min(losses) - 1)

    lower = sorted(above(search, 1 / 3) for search in searches)
    higher = sorted(above(search, 3) for search in searches)
    lost = [each for each in higher if each > 100]
    kept, of = higher[: -len(lost)], len(searches)
    assert (
        f"a third of the best rate costs {lower[0]:.1f} to {lower[-1]:.1f} % of the evaluation loss, three times the "
        f"best {kept[0]:.1f} to {kept[-1]:.1f} %, or the whole run (in {len(lost)} of the {of} searches below)"
    ) in page_on_rates()


def test_the_page_says_which_runs_ended_above_the_base_model():
    autos = [(name, run["loss"]) for name, runs in runs_of("").items() for run in runs if run.get("auto")]
    worse = [name for name, loss in autos if loss["final"] > loss["base"]]
    assert all(name.startswith("minilm mnli") for name in worse)
    assert f"{['No', 'One', 'Two'][len(worse)]} of the {len(autos)} runs with `auto` ended above" in page_on_rates()


def test_the_page_says_what_earlier_rules_did():
    page = page_on_rates()
    for name, text in (("-range-test", "in {}, and {:.1f} % above"), ("-short-trials", "{}, and {:.1f} %")):
        above = shares(rows(runs_of(name)))
        assert text.format(near(above), 100 * mean(above)) in page
    earlier = rows(runs_of("-one-divisor"))
    texts = [row for row in earlier if row["set"] in TEXTS]
    assert f": {near(shares(earlier))} within 1 %, {near(shares(texts))} of their {len(texts)} texts" in page
    encoder = [above_with_what_ships(row) for row in earlier if row["model"] == "minilm"]
    far = [100 * each for each in encoder if each > 0.01]
    assert f"for {near(encoder)} of the {len(encoder)} encoders of the earlier 41" in page
    assert f"the others {min(far):.1f} to {max(far):.1f} % above" in page


def test_the_page_says_where_what_ships_would_end(combinations):
    page = page_on_rates()
    ends = {"minilm": [], "language models": []}
    for row in combinations:
        kind = "minilm" if row["model"] == "minilm" else "language models"
        as_run = row["set"] in TEXTS
        ends[kind].append(row["above the best of the grid"] if as_run else above_with_what_ships(row))
        if as_run:
            assert 1 / 1.2 < rate_that_ships(row) / row["rates"][0] < 1.2
    models, encoder = ends["language models"], ends["minilm"]
    assert (
        f"**With what ships {near(models)} of {len(models)} language models and {near(encoder)} of {len(encoder)} "
        "encoders end within 1 %**"
    ) in page
    higher = [rate_that_ships(row) / row["rates"][0] for row in combinations if row["model"] == "smollm2"]
    assert f"gives rates {min(each for each in higher if each > 1.2):.1f} to {max(higher):.1f} times as high" in page


def test_the_page_says_what_the_limit_changes_under_a_new_head():
    """Limits are those that the runs told, rates read off the grids."""
    lowered, ends = [], {}
    for name in ("", "-one-divisor"):
        found = runs_of(name)
        encoders = [row for row in rows(found) if row["model"] == "minilm"]
        ends[name] = []
        for row in encoders:
            ratio = 16.0 if row["method"] == "lora+" else 1.0
            key = f"minilm {row['set']} {row['targets']} {row['method']} {row['steps']}"
            runs = [run for each in found if each.split(" seed ")[0] == key for run in found[each] if run.get("auto")]
            limits = [float(re.search(r"above its start from (\S+) on", run["why"])[1]) for run in runs]
            common = COMMON_RATES["classification"]
            ship = [rate_under_new_head(limit, common, ratio) for limit in limits]
            lowered += [common / ratio**0.5 / rate for rate in ship]
            ends[name].append(mean(above_best(row["grid"], rate) for rate in ship))
    now, before = ends[""], sorted(ends["-one-divisor"])
    further = before[near(before) :]
    assert near(now) == len(now) == 3
    assert (
        f"is lower than this in {sum(each > 1 for each in lowered)} of the {len(lowered)} runs of all eleven, by up to "
        f"{max(lowered):.1f} times: at the rates that come of it the three still end within 1 %, and so do "
        f"{near(before)} of the {len(before)}, the others {100 * further[0]:.1f} to {100 * further[-1]:.1f} % above."
    ) in page_on_rates()


def test_what_ships_is_what_gora_takes(combinations):
    """From what the trials of a run ended at lowest."""
    row = next(row for row in combinations if row["set"] == "openbookqa")
    found = row["rates"][0] * TRIALS_OVER_RUN * row["base"] / PROPORTIONAL
    assert rate_that_ships(row) == pytest.approx(rate_of_trials([found], [1.0], row["base"]))
    for row in combinations:
        if row["model"] == "minilm":
            ratio = 16.0 if row["method"] == "lora+" else 1.0
            assert rate_that_ships(row) == rate_under_new_head(1.0, COMMON_RATES["classification"], ratio)


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


def test_the_preset_ends_where_a_search_did_on_a_recipe_of_a_model_and_rows():
    page = (ROOT / "docs" / "preset.md").read_text()
    found = json.loads((ROOT / "docs" / "data" / "rate-five-lines.json").read_text())
    for method in ("gora", "lora"):
        name = f"smollm2 math auto {method} 440"
        auto = next(run["loss"]["final"] for run in found[name] if run.get("auto"))
        searched = min(run["loss"]["final"] for run in runs_of("-range-test")[name])
        assert auto < 1.01 * searched
        assert f"{auto:.4f}" in page
        assert f"{searched:.4f}" in page
