"""What `gora inspect-ranks` prints: one plan, with what its pass took where that is known, or two."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gora.errors import InputError
from gora.files import read_json
from gora.plan import Plan, read_plan
from gora.report.ranks import rank_data, rank_report
from gora.report.two_plans import compare_plans, comparison_report
from gora.runtime.console import output


def show_plan(place: Path, *, as_json: bool = False, plot: Path | None = None) -> None:
    """Print a plan, and draw it if asked.

    Args:
        place: a plan file, or a run folder that holds one.
        as_json: print everything as JSON instead of tables.
        plot: where a picture goes.

    Raises:
        InputError: there is no plan, it cannot be read, or not be drawn.
    """
    path, plan = _read(place)
    taken = pass_taken(path)
    if plot is not None:
        from gora.report.plot import plot_ranks

        plot_ranks(plan, plot)
    if as_json:
        print(json.dumps(rank_data(plan) | ({"pass": taken} if taken else {}), indent=2))
    else:
        output.say(rank_report(plan, taken))
    if plot is not None:
        print(f"picture   {plot}", file=sys.stderr if as_json else sys.stdout)


def show_two_plans(place: Path, other: Path, *, as_json: bool = False, plot: Path | None = None) -> None:
    """Print in what two plans differ.

    Raises:
        InputError: one of them cannot be read, or a picture was asked for.
    """
    if plot is not None:
        raise InputError("--plot draws one plan. Leave out the second one, or --plot.")
    (path, one), (second_path, second) = _read(place), _read(other)
    if as_json:
        print(json.dumps(compare_plans(one, second), indent=2))
    else:
        output.say(comparison_report(one, second, (str(path), str(second_path))))


def pass_taken(plan: Path) -> dict[str, Any]:
    """Tokens a second, seconds and memory of the gradient pass, from the results beside a plan; empty where unknown.

    They differ from run to run, and are not in the plan: the same recipe makes the same file every time.
    """
    try:
        facts = read_json(plan.parent / "results.json")["precompute"]
        taken = {key: facts[key] for key in ("tokens_per_second", "seconds", "peak_bytes", "processes", "engine")}
        return {**taken, "unit": facts.get("unit", "tokens")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _read(place: Path) -> tuple[Path, Plan]:
    path = place / "plan.safetensors" if place.is_dir() else place
    if place.is_dir() and not path.exists() and (place / "adapter").exists():
        raise InputError(
            f"{place}: a run without a plan, since its method has one rank for all layers or chooses ranks by itself. "
            f"`gora report {place}` shows what was decided for it."
        )
    return path, read_plan(path)
