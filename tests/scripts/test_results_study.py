"""Answers and tables of docs/results.md from invented runs, few and many: recomputed by other means."""

import math
import statistics
import sys
import zlib

import numpy as np
import pytest
from scipy import stats

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "results"))

import answers
import cells
import page
import preset
import protocol
import reading
import runs
from cells import ALL, AUTO, METHODS, TOOLS
from grids import read_grids
from names import ABLATED, NAMES, PUBLISHED, RANK_8, TABLE_2, title

PLAIN = {method: name.replace("**", "") for method, name in NAMES.items()}


def invented(most):
    """The first runs of the plan, with losses of a bowl over the rate, an effect of the method, and noise."""
    found, draw = {}, np.random.default_rng(0)
    while len(found) < most:
        new = [cell for cell in dict.fromkeys(cells.plan(found)) if str(cell) not in found]
        if not new:
            break
        for cell in new[: most - len(found)]:
            level = {"math": 0.7, "code": 0.4, "instruction": 2.1}.get(cell.rows, 0.3)
            effect = (zlib.crc32(cell.method.encode()) % 7) / 100
            bowl = 0.0
            if not isinstance(cell.rate, str) and cell.method in cells._CENTRE:
                bowl = 0.02 * math.log2(cell.rate / cells._CENTRE[cell.method]) ** 2
            loss = level * (1 + effect + bowl + cell.seed / 100 + draw.normal(0, 0.003))
            found[str(cell)] = {
                "loss": {"base": 2 * level, "final": loss},
                "rate": 1e-3,
                "seconds": 1,
                "trainable": 921600,
            }
    return found


@pytest.fixture(scope="module", params=[60, 330, 3000], ids=["hardly begun", "half", "all"])
def found(request):
    return invented(request.param)


def lines_of(table):
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()]
    return {line[0]: line[1:] for line in lines}


def of_tool(found, rows, name, seed):
    rate = "auto" if name.startswith(AUTO) else "own"
    return found.get(f"tools | {rows} | own | {name} | {rate} | {seed}", {}).get("loss", {}).get("final")


def of_method(found, rows, method, seed):
    """At the rate of its own search rather than at one that another set has, where it was run at both."""

    def rates(on):
        start, end = f"fair | {on} | all-linear | {method} | ", f" | {seed}"
        names = [name for name in found if name.startswith(start) and name.endswith(end)]
        return {name.split(" | ")[4]: found[name]["loss"]["final"] for name in names}

    each = rates(rows)
    if len(each) > 1 and rows in cells.SEARCHED_TOO:
        each = {rate: loss for rate, loss in each.items() if rate not in rates("sst2")}
    assert len(each) < 2
    return next(iter(each.values()), None)


def methods_on(found, rows):
    """Losses of adapters over as many of the preset's seeds as two thirds of them have."""
    preset = [of_tool(found, rows, AUTO, seed) for seed in (1, 2, 3)]
    table = {AUTO: preset}
    for method in METHODS:
        each = [
            None if mine is None else of_method(found, rows, method, seed)
            for seed, mine in zip((1, 2, 3), preset, strict=True)
        ]
        if method != "full" and any(value is not None for value in each):
            table[method] = each
    if preset[0] is None:
        return {}
    for count in (3, 2, 1):
        having = {method: values[:count] for method, values in table.items() if None not in values[:count]}
        if having and len(having) >= 2 / 3 * len(table):
            return having
    return {}


def test_the_answer_about_tools_is_that_of_the_runs(found):
    less = {}
    for rows in ALL:
        names = [name for name in TOOLS if any(of_tool(found, rows, name, seed) for seed in (1, 2, 3))]
        shares = []
        for seed in (1, 2, 3):
            each = [of_tool(found, rows, name, seed) for name in (AUTO, *names)]
            if len(names) >= 4 and None not in each:
                shares.append(1 - each[0] / statistics.fmean(each[1:]))
        if shares:
            less[rows] = statistics.fmean(shares)
    text = answers.answer_tools(found)
    if not less:
        assert text == "Not run yet."
        return
    assert f"on {sum(value > 0 for value in less.values())} of {len(less)} sets" in text
    assert f"by at least 3 % on {sum(value >= 0.03 for value in less.values())} (" in text
    assert f"(median {100 * statistics.median(less.values()):.0f} %)" in text
    for rows, value in less.items():
        assert (f"{title(rows)} ({-100 * value:+.1f} %)" in text) == (value < 0.03)


def test_margins_are_to_the_best_method_with_the_noise_of_a_two_way_layout(found):
    lines = lines_of(runs.margins_table(found))
    for rows in ALL:
        table = {method: np.array(values) for method, values in methods_on(found, rows).items()}
        if AUTO not in table or len(table) < 2:
            assert title(rows) not in lines
            continue
        means = {method: values.mean() for method, values in table.items()}
        best = min((method for method in means if method != AUTO), key=means.get)
        share, seeds = means[AUTO] / means[best] - 1, len(table[AUTO])
        expected = f"{100 * share:+.1f} %"
        if seeds > 1 and len(table) > 2:
            # Least squares on dummies of method and seed.
            values = np.array(list(table.values()))
            design = np.zeros((values.size, sum(values.shape)))
            for place in range(values.size):
                design[place, place // seeds] = design[place, len(values) + place % seeds] = 1
            rest = values.ravel() - design @ np.linalg.lstsq(design, values.ravel(), rcond=None)[0]
            freedom = (len(values) - 1) * (seeds - 1)
            half = stats.t.ppf(0.975, freedom) * np.sqrt((rest**2).sum() / freedom) * np.sqrt(2 / seeds) / means[best]
            expected += f" (± {100 * half:.1f})"
        aim = "yes" if share <= 0.005 else "no"
        assert lines[title(rows)][:5] == [f"{NAMES[best]} ({len(table) - 1})", expected, "", aim, str(seeds)]


def test_the_answer_about_methods_counts_sets_and_places(found):
    margins = preset.margins(found)
    if not margins:
        assert answers.answer_fair(found) == answers.more_of_fair(found) == "Not run yet."
        return
    shares = [one.share for one in margins.values()]
    assert f"on {sum(share <= 0.005 for share in shares)} of {len(shares)} sets" in answers.answer_fair(found)
    for rows, one in margins.items():
        assert (f"{title(rows)} ({100 * one.share:+.1f} %)" in answers.answer_fair(found)) == (one.share > 0.005)
    columns = {rows: {method: np.mean(values) for method, values in methods_on(found, rows).items()} for rows in ALL}
    columns = {rows: values for rows, values in columns.items() if len(values) > 3}
    methods = sorted(set.intersection(*map(set, columns.values())))
    ranks = [stats.rankdata([values[method] for method in methods]) for values in columns.values()]
    places = dict(zip(methods, np.mean(ranks, axis=0), strict=True))
    first = min(places, key=places.get)
    if not columns:
        assert "By mean place" not in answers.more_of_fair(found)
        return
    told = f"By mean place over {len(columns)} sets {PLAIN[first]} is first of {len(methods)} ({places[first]:.1f})"
    assert told in answers.more_of_fair(found)
    shown = lines_of(page.fair_table(found))
    assert all(shown[NAMES[method]][-1] == f"{place:.1f}" for method, place in places.items() if NAMES[method] in shown)


def test_the_answer_about_the_paper_has_the_rank_correlations(found):
    text = protocol.answer_paper(found)
    if not any(name.startswith("paper | math") for name in found):
        assert text == "Not run yet."
        return
    said = []
    for score, rows in enumerate(("math", "code")):
        every = {
            method: [
                run["loss"]["final"]
                for seed in (1, 2, 3)
                if (run := found.get(f"paper | {rows} | attention | {method} | 0.0002 | {seed}"))
            ]
            for method in TABLE_2
        }
        counts = {len(values) for values in every.values()}
        if len(counts) > 1:
            return
        means = [np.mean(every[method]) for method in TABLE_2]
        order = [stats.rankdata(means), stats.rankdata([-PUBLISHED[method][score] for method in TABLE_2])]
        said.append(f"{np.corrcoef(order)[0, 1]:.2f}")
    assert f"(rank correlation {' and '.join(said)})" in text


def test_every_part_can_be_written_however_much_has_been_run(found):
    before = reading.read(reading.FIRST)
    for made in page.parts(found, read_grids(), before).values():
        for name, make in made.items():
            assert make().strip(), name
    assert "<svg" in page.picture(found)


def test_what_is_tied_is_bold_and_with_one_seed_nothing_is():
    whole, begun = invented(3000), invented(330)
    bold = {name: cells_ for name, cells_ in lines_of(page.fair_table(whole)).items() if "**" in "".join(cells_[:4])}
    tied = reading.tied_with_first(reading.adapters(reading.fair_losses(whole, "math")))
    assert tied and {NAMES[method] for method in tied} == {name for name, cells_ in bold.items() if "**" in cells_[0]}
    assert reading.complete(reading.fair_losses(begun, "instruction")) == {} or not reading.tied_with_first(
        reading.adapters(reading.fair_losses(begun, "instruction"))
    )


def test_everything_of_the_plan_has_a_name():
    for cell in cells.plan(invented(3000)):
        assert cell.method in NAMES or cell.method in ABLATED
    assert set(RANK_8) <= set(METHODS)
