"""The sentences of docs/results.md about tools, tuned methods and a second machine, from whatever has been run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from cells import ALL, AUTO, AUTO_LORA, KEPT, NEAREST, SEARCHED, TOOLS, Found, again
from names import NAMES, NOT_YET, named, plain, points, signed, title, titles
from preset import (
    Margin,
    accuracies_against,
    columns,
    less_than_mean,
    margins,
    rows_in_a_step,
    settings_columns,
    tools_over_auto,
)
from reading import (
    adapters,
    complete,
    critical_difference,
    fair_losses,
    interval,
    mean,
    noise,
    places,
    tool_cells,
)

ENOUGH = 0.03
"""How much less than the tools' mean is wanted, as a share."""


def compared(found: Found, sets: Sequence[str] = ALL) -> dict[str, float]:
    """How much less loss than the tools' mean the preset has, by set, where it and most tools have been run."""
    less = {rows: less_than_mean(found, rows) for rows in sets}
    return {rows: value for rows, value in less.items() if value is not None}


def answer_tools(found: Found) -> str:
    """Whether the preset is better than what people use."""
    less = compared(found)
    if not less:
        return NOT_YET
    enough = [rows for rows, value in less.items() if value >= ENOUGH]
    missed = [f"{title(rows)} ({signed(-value)})" for rows, value in less.items() if value < ENOUGH]
    text = (
        f"**`preset: auto` ends with less loss than five tools' documented settings do on average, on "
        f"{sum(value > 0 for value in less.values())} of {len(less)} sets and by at least 3 % on {len(enough)} (median "
        f"{100 * statistics.median(less.values()):.0f} %).**"
    )
    return f"{text}{f' Not 3 % less: {named(missed)}.' if missed else ''} {_best_tool(found, list(less))}"


def nearest_tool(found: Found, sets: Sequence[str]) -> str:
    """The tool whose settings end with the least loss beside the preset's, by the median over sets."""
    return min(TOOLS, key=lambda name: statistics.median(tools_over_auto(found, name, sets).values()))


def _best_tool(found: Found, sets: Sequence[str]) -> str:
    name = nearest_tool(found, sets)
    over = tools_over_auto(found, name, sets)
    middle, below = statistics.median(over.values()), [rows for rows, value in over.items() if value < 0]
    trained, own = (found[str(tool_cells("math", one)[0])]["trainable"] for one in (name, AUTO))
    return (
        f"{NAMES[name]}'s, the best of them, take {rows_in_a_step(AUTO) / rows_in_a_step(name):g} times the steps and "
        f"{trained / own:.1f} times the trained values, and end {100 * abs(middle):.1f} % "
        f"{'above' if middle > 0 else 'below'} the preset (median; below on {titles(below)})."
    )


def more_of_tools(found: Found) -> str:
    """Accuracies beside the best tool's, the preset with LoRA, and places."""
    sets = list(compared(found))
    if not sets:
        return NOT_YET
    lora, beside = tools_over_auto(found, AUTO_LORA, sets), ""
    if lora:
        low = sum(value < 0 for value in lora.values())
        middle = signed(statistics.median(lora.values()))
        beside = f"With LoRA in GoRA's place the preset has less loss on {low} of {len(lora)} sets (median {middle})."
    return points([_accuracies(found, nearest_tool(found, sets)), beside, _level(settings_columns(found), "sets")])


def _accuracies(found: Found, name: str) -> str:
    """How many accuracies differ from those of a tool beyond chance."""
    gaps = accuracies_against(found, name)
    if not gaps:
        return ""
    higher = [task for task, (_, low, _) in gaps.items() if low > 0]
    lower = [task for task, (_, _, high) in gaps.items() if high < 0]
    told = f"`preset: auto` is above {NAMES[name]}'s settings on {titles(higher)}, below them on {titles(lower)}"
    return f"Of the {len(gaps)} accuracies that say something {told}; the others are tied."


def _level(table: Mapping[str, Mapping[str, float]], what: str) -> str:
    """Who is first by mean place, and who is tied with it."""
    if not table:
        return ""
    order = places(table)
    near = critical_difference(len(order), len(table))
    first, *rest = sorted(order, key=order.__getitem__)
    level = [f"{plain(name)} ({order[name]:.1f})" for name in rest if order[name] - order[first] <= near]
    text = (
        f"By mean place over {len(table)} {what} {plain(first)} is first of {len(order)} ({order[first]:.1f}); places "
        f"nearer than {near:.1f} are tied (Nemenyi): {named(level)}."
    )
    return text + ("" if order[AUTO] - order[first] <= near else f" `preset: auto` is not, at {order[AUTO]:.1f}.")


def answer_fair(found: Found) -> str:
    """Whether the preset keeps up with methods whose rate was looked for."""
    every = margins(found)
    if not every:
        return NOT_YET
    reached = [rows for rows, one in every.items() if one.reached]
    missed = [f"{title(rows)} ({_missed_by(one)})" for rows, one in every.items() if rows not in reached]
    text = (
        "**`preset: auto` is no worse than the best of the tuned methods - within 0.5 % of its loss, or one standard "
        f"error of its accuracy - on {len(reached)} of {len(every)} sets.**"
    )
    parts = []
    for what, sets in (("where their rates were looked for", SEARCHED), ("that take rates over", tuple(NEAREST))):
        if here := [rows for rows in sets if rows in every]:
            parts.append(f"{sum(rows in reached for rows in here)} of {len(here)} {what}")
    return f"{text} These are {named(parts)}.{f' Not on {named(missed)}.' if missed else ''}"


def _missed_by(one: Margin) -> str:
    loss = signed(one.share)
    return loss if one.points is None else f"{loss}, accuracy {100 * one.points:+.1f} points"


def more_of_fair(found: Found) -> str:
    """How the preset stands, GoRA beside LoRA, what is noise, and mean places."""
    table = columns(found)
    return points([_standing(margins(found)), _gora_and_lora(found), _noise(found), _level(table, "sets")])


def _standing(every: Mapping[str, Margin]) -> str:
    """The middle, on what sets accuracy or noise decides, and the sets that judge."""
    if not every:
        return ""
    kept = {rows: one for rows, one in every.items() if rows in KEPT}
    by_accuracy = [rows for rows, one in every.items() if one.reached and not one.by_loss]
    tied = [rows for rows, one in every.items() if one.tied and not one.reached]
    text = (
        f"At the median its loss is {100 * statistics.median(one.share for one in every.values()):+.1f} % to the best"
    )
    text += f", within the aim by accuracy alone on {titles(by_accuracy)}" if by_accuracy else ""
    text += f", within noise on {titles(tied)}." if tied else "."
    counts: dict[int, list[str]] = {}
    for rows, one in every.items():
        counts.setdefault(one.methods, []).append(rows)
    text += f" That is the best of {named([f'{count} on {titles(sets)}' for count, sets in counts.items()])}."
    if kept:
        text += (
            f" Of the {len(kept)} sets that were kept to judge the preset {sum(one.reached for one in kept.values())} "
            "are within the aim."
        )
    return text


def gap(found: Found, method: str, other: str) -> list[float]:
    """How much more loss one method ends with than another, each at its own rate, as a share, by set."""
    shares = []
    for rows in SEARCHED:
        every = fair_losses(found, rows)
        shared = sorted(every.get(method, {}).keys() & every.get(other, {}).keys())
        if shared:
            shares.append(statistics.fmean(every[method][seed] / every[other][seed] - 1 for seed in shared))
    return shares


def _gora_and_lora(found: Found) -> str:
    shares = gap(found, "gora auto", "lora")
    if len(shares) < 2:
        return ""
    middle, low, high = (100 * value for value in interval(shares))
    verdict = "level with" if low < 0 < high else "behind" if low > 0 else "ahead of"
    return (
        f"GoRA with the preset's settings is {verdict} LoRA, each at its own rate: {middle:+.1f} % over the "
        f"{len(shares)} searched sets (95 % interval {low:+.1f} to {high:+.1f} %)."
    )


def chance(found: Found) -> dict[str, float]:
    """How far two tuned adapters lie apart by chance on one seed (95 %, one comparison), as a share, by set."""
    shares = {}
    for rows in SEARCHED:
        table = complete(adapters(fair_losses(found, rows)))
        if spread := noise(table):
            level = statistics.fmean(mean(values) for values in table.values())
            shares[rows] = spread.half() * spread.seeds**0.5 / level
    return shares


def _noise(found: Found) -> str:
    parts = [f"{100 * share:.1f} % on {title(rows)}" for rows, share in chance(found).items()]
    return f"On one seed two methods differ by chance by up to {named(parts)} (95 %)." if parts else ""


def answer_rules(found: Found, other: Found) -> str:
    """What the preset comes to with the rule for rates that does not ship, run on some of the sets."""
    sets = [rows for rows in ALL if any(str(cell) in other for cell in tool_cells(rows, AUTO))]
    shipped = margins(found)
    if not sets or not shipped:
        return NOT_YET
    changed = {**found, **other}
    more = {rows: changed[name]["loss"]["final"] / found[name]["loss"]["final"] - 1
            for rows in sets if (name := str(tool_cells(rows, AUTO)[0])) in found}  # fmt: skip
    lower = [rows for rows, value in more.items() if value < 0]
    less = statistics.median(compared(changed).values())
    name = nearest_tool(changed, list(compared(changed)))
    over = statistics.median(tools_over_auto(changed, name, list(compared(changed))).values())
    reached = [sum(one.reached for one in each.values()) for each in (margins(changed), shipped)]
    return (
        f"Two rules for the rate were run on {titles(sets)}. With the one that does not ship loss is "
        f"{signed(statistics.median(more.values()))} (median; lower on {titles(lower)}). Of all ten sets {reached[0]} "
        f"instead of {reached[1]} are then within the aim; the preset has {100 * less:.0f} % less loss than the tools' "
        f"mean, and {plain(name)} {signed(over)} to it (medians)."
    )


def differences_of_machines(found: Found, first: Found) -> dict[str, float]:
    """By settings, how much more loss the second machine ended with than the first, as a share."""
    shares = {}
    for cell in again():
        now, then = found.get(str(cell), {}), first.get(str(cell._replace(table="tools")), {})
        if "loss" in now and "loss" in then:
            shares[cell.method] = now["loss"]["final"] / then["loss"]["final"] - 1
    return shares


def answer_again(found: Found, first: Found) -> str:
    """How far two machines lie apart."""
    shares = differences_of_machines(found, first)
    if not shares:
        return NOT_YET
    fixed = [abs(value) for name, value in shares.items() if name in TOOLS]
    looked = {name: value for name, value in shares.items() if name not in TOOLS}
    parts = [f"{len(fixed)} with fixed rates differ by {100 * max(fixed):.2f} % at most"] if fixed else []
    parts += [f"{plain(name)}, whose rate is looked for, by {100 * value:+.2f} %" for name, value in looked.items()]
    return f"Of the runs of {titles([again_set()])} on a second machine {named(parts)}."


def again_set() -> str:
    """The set that was run twice."""
    (rows,) = {cell.rows for cell in again()}
    return rows
