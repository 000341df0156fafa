"""What the page on learning rates says of the judged combinations, recomputed from their runs."""

import dataclasses
import json
import math
import re
from statistics import mean

import numpy as np
import pytest
import yaml

from gora.core.learning_rate import COMMON_RATES, lowest, rate_of_trials, rate_under_new_head
from scripts.rates import formula
from scripts.rates.choose import WAYS, above_best, judged, language_models
from scripts.rates.table import (
    TEXTS,
    above_with_what_ships,
    best_between,
    rate_that_ships,
    rows,
    seconds,
    table,
)
from tests.conftest import ROOT


def page_on(name):
    return (ROOT / "docs" / f"{name}.md").read_text().replace("\n", " ")


def page_on_rates():
    return page_on("learning-rate")


def runs_of(name):
    return json.loads((ROOT / "docs" / "data" / f"rate-judged{name}.json").read_text())


@pytest.fixture(scope="module")
def combinations():
    return rows(runs_of(""))


def near(above, limit=0.01):
    return sum(each <= limit for each in above)


def shares(combinations):
    return [row["above the best of the grid"] for row in combinations]


def test_the_page_has_the_table_of_the_runs(combinations):
    lines = (ROOT / "docs" / "learning-rate.md").read_text().splitlines()
    first = lines.index(table(combinations)[0])
    assert lines[first : first + len(combinations) + 2] == table(combinations)


def test_the_page_says_what_the_runs_say(combinations):
    page = page_on_rates()
    texts = [row for row in combinations if row["set"] in TEXTS]
    ships = [
        row["above the best of the grid"] if row["set"] in TEXTS else above_with_what_ships(row) for row in combinations
    ]
    assert f"As run, {near(shares(combinations))} of {len(combinations)} end within 1 %" in page
    assert f"with what ships it is {near(ships)} of {len(combinations)}" in page
    assert f"it is for texts (math, code, instructions): {near(shares(texts))} of {len(texts)} as run" in page
    for row in texts:
        assert 5 / 6 < row["rates"][0] / rate_that_ships(row) < 6 / 5


def test_the_page_names_each_miss_and_why(combinations):
    page = page_on_rates()
    misses = {name_of(row): row for row in combinations if row["above the best of the grid"] > 0.01}
    told = page[page.index("The six misses:") : page.index("So two things were changed:")]
    assert len(misses) == 6

    dora = misses.pop("base-28m math attention dora")
    *others, last = trials_of("base-28m math attention dora 150 seed 7")[1]
    assert last < min(others)
    assert dora["rates"][0] / dora["best rate"] == pytest.approx(2, rel=0.01)
    assert f"DoRA ({100 * dora['above the best of the grid']:.2f} %)" in told

    qnli, openbookqa = (
        misses.pop(f"smollm2 {name}") for name in ("qnli all-linear gora", "openbookqa all-linear lora")
    )
    assert f"QNLI and OpenBookQA on all linear layers ({per_cent(qnli)} and {per_cent(openbookqa)} %)" in told
    for row in (qnli, openbookqa):
        assert min(row["grid"], key=lambda point: point[1])[0] == 2 * row["rates"][0]

    boolq = misses.pop("smollm2 boolq attention gora")
    half, twice = (100 * (boolq["loss"] / boolq["grid"][index][1] - 1) for index in (0, 2))
    assert f"BoolQ ({per_cent(boolq)} %): half and twice the rate end lower, by {half:.1f} and {twice:.1f} %" in told

    plus = misses.pop("minilm qnli all-linear lora+")
    assert f"LoRA+ ({per_cent(plus)} %)" in told
    assert round(max(plus["rates"]) / plus["best rate"]) == 2

    ((_, mnli),) = misses.items()
    seeds = {name: runs for name, runs in runs_of("").items() if name.startswith("minilm mnli")}
    learned = {name: [run["loss"]["final"] < run["loss"]["base"] for run in runs] for name, runs in seeds.items()}
    autos = {name: next(run for run in runs if run.get("auto")) for name, runs in seeds.items()}
    lost = [run["rate"] for run in autos.values() if run["loss"]["final"] >= run["loss"]["base"]]
    assert f"GoRA ({per_cent(mnli)} %): the same took {lost[0]:g} and {lost[1]:g} with two seeds" in told
    assert sum(not any(each) for each in learned.values()) == 1


def per_cent(row):
    return f"{100 * row['above the best of the grid']:.1f}"


def name_of(row):
    return " ".join(row[key] for key in ("model", "set", "targets", "method"))


def trials_of(name):
    """Rates and ends of a run's trials, as it told them."""
    why = next(run["why"] for run in runs_of("")[name] if run.get("auto"))
    ends, rates = zip(*re.findall(r"([\d.]+) at ([\d.e-]+)", why), strict=True)
    return [float(rate) for rate in rates], [float(end) for end in ends]


def test_the_page_says_how_runs_with_what_ships_ended():
    page = page_on_rates()
    found = {row["set"]: row for row in rows(runs_of("-on-cpu"))}
    assert "Three combinations were run afresh with what ships, on a CPU" in page
    assert len(found) == 3
    for name, text in {
        "openbookqa": "`base-28m` on OpenBookQA (LoRA, attention) at {loss:.4f} with {rate}, {above} % above the best",
        "cola": "`minilm` on CoLA (GoRA, attention, three seeds) at {loss:.4f} with {rate}, {above} % above",
        "arc": "on ARC-Easy (GoRA, attention) ends at {loss:.4f} with {rate}, {above} % above {best:.4f} at twice",
    }.items():
        row = found[name]
        (rate,) = set(row["rates"])
        best_rate, best = min(row["grid"], key=lambda point: point[1])
        assert text.format(loss=row["loss"], rate=rate, above=per_cent(row), best=best) in page
        tried = [point / rate for point, _ in row["grid"]]
        assert tried == pytest.approx([0.25, 0.5, 1, 2] if name == "cola" else [0.5, 1, 2])
        assert best_rate == 2 * rate
    assert [name for name, row in found.items() if row["above the best of the grid"] > 0.01] == ["arc"]


def test_the_page_says_what_finding_a_rate_takes():
    found = seconds(runs_of(""))
    assert (
        "In the runs judged below they took {:.0f} s beside {:.0f} s of 150 steps (SmolLM2), {:.0f} s beside {:.0f} s "
        "(a model of 28 million parameters), and {:.0f} s, without trials, beside {:.0f} s of 600 steps (an encoder)"
    ).format(*found["smollm2"], *found["base-28m"], *found["minilm"]) in page_on_rates()


def test_the_page_says_what_a_formula_does():
    page, searches = page_on_rates(), formula.known_searches()
    lines = (ROOT / "docs" / "learning-rate.md").read_text().splitlines()
    first = lines.index(formula.table()[0])
    assert lines[first : first + len(formula.table())] == formula.table()
    assert f"the best rates of {len(searches)} searches" in page
    assert {search.alpha for search in searches} == {16} != {search.alpha for search in formula.of_the_study()}
    fit = formula.fitted(searches, formula.SIZES)
    lora = next(search for search in searches if search.method == "lora")
    power = math.log2(fit(dataclasses.replace(lora, hidden=1024)) / fit(dataclasses.replace(lora, hidden=512)))
    assert f"(its power is {power:.1f}: at 4,096 the rate would be 1/{8**-power / 1000:.0f},000 of that at 512)" in page
    above = formula.on_other_combinations()
    assert (
        f"On the {len(above)} language models [judged below](#judged-on-other-combinations) it ends within 1 % in "
        f"{near(above)}, {100 * mean(above):.1f} % above the best on average"
    ) in page


def test_a_formula_finds_the_powers_that_rates_follow():
    def search(method, **sizes):
        what = {"hidden": 512, "rank": 8, "alpha": 16, "steps": 100, "rows_per_step": 16} | sizes
        best = {"lora": 1.0, "dora": 3.0}[method] * what["steps"] ** -0.5 * what["rank"] ** 0.25
        grid = tuple((best * 2.0**power, 1 + power**2) for power in (-2, -1, 0, 1, 2))
        return formula.Search(model="m", rows="r", method=method, grid=grid, **what)

    known = [search(m, steps=s, rank=r) for m in ("lora", "dora") for s in (50, 200) for r in (2, 8)]
    fit = formula.fitted(known, formula.SIZES)
    unseen = search("dora", steps=800, rank=64)
    assert fit(unseen) == pytest.approx(unseen.best)
    assert fit(search("lora", hidden=4096)) == pytest.approx(search("lora").best)
    assert fit(dataclasses.replace(unseen, method="pissa")) is None


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
    words = [row for row in combinations if row["set"] not in TEXTS and row["model"] != "minilm"]
    higher = [rate_that_ships(row) / row["rates"][0] for row in words]
    assert near([above_with_what_ships(row) for row in words]) == len(words) == 4
    assert f"It gives rates {min(higher):.1f} to {max(higher):.1f} times as high, and all four end within 1 %" in page
    encoder = [above_with_what_ships(row) for row in combinations if row["model"] == "minilm"]
    assert near(encoder) == len(encoder) == 3
    assert "within 1 % for all three" in page


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
    """From the trials that a run told: they, and its start, are rounded there."""
    for row in combinations:
        if row["model"] == "minilm":
            ratio = 16.0 if row["method"] == "lora+" else 1.0
            assert rate_that_ships(row) == rate_under_new_head(1.0, COMMON_RATES["classification"], ratio)
        else:
            found = rate_of_trials(*trials_of(f"{name_of(row)} 150 seed 7"), row["start"])
            assert rate_that_ships(row) == pytest.approx(found, rel=0.12)


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


def test_the_preset_s_page_says_how_its_recipe_of_the_quickstart_ended():
    page = page_on("preset")
    found = json.loads((ROOT / "docs" / "data" / "preset-quickstart.json").read_text())
    auto, shipped = found["auto"], found["quickstart"]
    assert auto["steps"] == shipped["steps"] == 40
    assert (
        f"`auto` ends at **{auto['loss']['final']:.4f}** from {auto['loss']['base']:.4f} after {auto['steps']} steps, "
        f"at a rate of {auto['learning_rate']}"
    ) in page
    assert f"the paper's settings, at {shipped['loss']['final']:.4f}" in page
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "preset.md").read_text(), re.DOTALL)
    assert yaml.safe_load(blocks[-1]) == found["recipe"]


def test_the_preset_s_page_says_where_a_start_was_above_the_base_model():
    starts = {
        (loss["initial"] / loss["base"], loss["initial"], loss["base"], name)
        for name, runs in runs_of("").items()
        for loss in (run["loss"] for run in runs if "loss" in run)
        if " gora " in name
    }
    share, initial, base, name = max(starts)
    assert share > 1.01 > sorted(starts)[-2][0]
    assert name.startswith("minilm mnli")
    assert f"one seed starts at {initial:.4f} from {base:.4f}" in page_on("preset")


def test_the_preset_s_page_says_what_equal_ranks_are_worth():
    found = json.loads((ROOT / "docs" / "data" / "results.json").read_text())

    def loss(rows, method):
        return mean(run["loss"]["final"] for run in found[rows]["final"][method]["runs"])

    less = [
        loss(rows, "GoRA, one rate") - loss(rows, "GoRA, one rate, equal ranks")
        for rows in ("math", "code", "instruction")
    ]
    assert "with a random A by {:.3f} on math, {:.3f} on code and {:.3f} on instructions".format(*less) in page_on(
        "preset"
    )
    tried = json.loads((ROOT / "docs" / "data" / "trials.json").read_text())["ways of choosing A and ranks"]
    for each in ("code", "instruction"):
        assert min(tried[each]["gradient soft"].values()) > 1.002 * min(tried[each]["gradient equal"].values())
