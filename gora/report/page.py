"""A run on one page: a file of its own that a browser shows without a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from gora.disk import size_text
from gora.plan import Decision, Plan
from gora.report.decisions import value_text
from gora.report.drawing import Points, heat_map, line_chart
from gora.report.grid import arrange

_STYLE = """
:root{--ink:#1b1b1b;--pale:#666;--line:#ddd;--back:#fff;--c0:#2c728e;--c1:#d55e00;--c2:#6a4c93;--c3:#238b45}
@media(prefers-color-scheme:dark){
:root{--ink:#e6e6e6;--pale:#a0a0a0;--line:#3a3a3a;--back:#161616;--c0:#6cb8d6;--c1:#ff9a4d;--c2:#b79ae0;--c3:#6fce8c}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back)}
body{max-width:72rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem;border-bottom:1px solid var(--line)}
p{margin:.3rem 0}.pale{color:var(--pale)}.bad{color:#c0392b;font-weight:600}
table{border-collapse:collapse}td,th{padding:.2rem .7rem .2rem 0;text-align:left;vertical-align:top;font-weight:400}
thead th{color:var(--pale)}.wide{overflow-x:auto}
.heat td,.heat th{padding:.1rem .5rem;text-align:center;font-variant-numeric:tabular-nums}.heat th{color:var(--pale)}
figure{margin:.5rem 0}svg{width:100%;max-width:44rem;height:auto}
.grid{stroke:var(--line);fill:none}.tick{font-size:11px;fill:var(--pale);text-anchor:middle}.tick.end{text-anchor:end}
.line{fill:none;stroke-width:1.8}.level{stroke:var(--pale);stroke-dasharray:5 4;fill:none}
.line.c0{stroke:var(--c0)}.line.c1{stroke:var(--c1)}.line.c2{stroke:var(--c2)}.line.c3{stroke:var(--c3)}
.spot.c0{fill:var(--c0)}.spot.c1{fill:var(--c1)}.spot.c2{fill:var(--c2)}.spot.c3{fill:var(--c3)}
.key{margin-right:1.2rem;font-size:.85rem;border-left:.9rem solid var(--pale);padding-left:.4rem}
.key.c0{border-color:var(--c0)}.key.c1{border-color:var(--c1)}
.key.c2{border-color:var(--c2)}.key.c3{border-color:var(--c3)}
pre,code{background:rgba(128,128,128,.12);border-radius:.2rem}
pre{white-space:pre-wrap;padding:.5rem;margin:.3rem 0}code{padding:0 .25rem}
"""
_LONGEST_TEXT = 1200
_EXAMPLES = 4


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What is known of a run; whatever is missing leaves its part of the page out.

    Attributes:
        name: of the run.
        recipe: as it ran, as plain values.
        plan: ranks.
        decisions: by setting.
        metrics: lines of `metrics.jsonl`.
        results: `results.json`.
        samples: answers on the way: `step`, `prompt`, `expected`, `output`.
        examples: of each task and side, some rows as they were written.
        failure: why the last command ended early; empty where it did not.
        files: names and bytes of the files in the folder.
        commands: what to do next, each with what it is for.
    """

    name: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    plan: Plan | None = None
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    results: Mapping[str, Any] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()
    examples: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    failure: str = ""
    files: Sequence[tuple[str, int]] = ()
    commands: Sequence[tuple[str, str]] = ()


def run_page(figures: Figures) -> str:
    """The page, as HTML."""
    parts = "".join(_parts(figures))
    # The policy keeps a browser from fetching anything, whatever a row of the data says.
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(figures.name)} - gora</title><style>{_STYLE}</style></head><body>{parts}</body></html>\n"
    )


def _parts(figures: Figures) -> Iterator[str]:
    yield f"<h1>{escape(figures.name)}</h1>"
    if description := figures.recipe.get("description"):
        yield f'<p class="pale">{escape(str(description))}</p>'
    if figures.failure:
        yield f'<p class="bad">The last command ended early: {escape(figures.failure)}</p>'
    yield _section("Result", _table(_result(figures)))
    yield _section("Decisions", _decisions(figures.decisions))
    if figures.plan is not None and figures.plan.modules:
        yield _section("Ranks", _ranks(figures.plan))
    yield _section("Loss", _losses(figures))
    yield _section("Learning rates", line_chart(_named(figures.metrics, "learning_rate_", "learning rate of ")))
    yield _section("Throughput and memory", _throughput(figures))
    yield _section("Answers during training", _samples(figures.samples))
    yield _section("Evaluation", _evaluation(figures))
    yield _section("Files", _table((escape(name), size_text(size)) for name, size in figures.files))
    commands = (f'<p class="pale">{escape(what)}</p><pre>{escape(command)}</pre>' for command, what in figures.commands)
    yield _section("Next", "".join(commands))


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def _table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Cells are HTML."""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    if not body:
        return ""
    titles = f"<thead><tr>{''.join(f'<th>{title}</th>' for title in head)}</tr></thead>" if head else ""
    return f'<div class="wide"><table>{titles}<tbody>{body}</tbody></table></div>'


def _result(figures: Figures) -> Iterator[tuple[str, str]]:
    results, recipe = figures.results, figures.recipe
    if model := recipe.get("model"):
        yield "model", escape(str(model.get("name")))
    if data := recipe.get("data"):
        yield "rows", escape(_paths(data.get("train")))
    if adapter := recipe.get("adapter"):
        yield "method", escape(f"{adapter.get('method')}, rank {adapter.get('rank')}, on {adapter.get('targets')}")
    if losses := results.get("loss"):
        worse = ' <span class="bad">worse than its base</span>' if results.get("worse_than_base") else ""
        known = [f"{losses[name]:.4f} {what}" for name, what in _LOSSES.items() if name in losses]
        yield "eval loss", ", ".join(known) + worse
    if "trainable_parameters" in results:
        yield "trainable", f"{results['trainable_parameters']:,} parameters"
    train = results.get("train", {})
    unit = train.get("unit", "tokens")
    if "tokens_per_second" in train:
        yield (
            "training",
            f"{train.get('steps', 0):,} steps, {train.get('tokens', 0):,} {unit}, {train['seconds']:,.0f} s, "
            f"{train['tokens_per_second']:,.0f} {unit}/s, {escape(str(train.get('runs_as', '')))}",
        )
        if skipped := train.get("skipped_steps"):
            yield "skipped", f"{skipped} steps whose loss or gradient was not finite"
    peaks = {stage: results.get(stage, {}).get("peak_bytes", {}) for stage in ("precompute", "train")}
    told = [
        f"{stage} {', '.join(f'{size_text(size)} {place}' for place, size in peak.items() if size)}"
        for stage, peak in peaks.items()
        if peak
    ]
    if told:
        yield "peak memory", "; ".join(told)
    if versions := results.get("versions"):
        yield "versions", escape(", ".join(f"{name} {value}" for name, value in versions.items()))


_LOSSES = {"base": "with the base model", "initial": "with the initial values", "final": "after training"}


def _paths(source: Any) -> str:
    sources = source if isinstance(source, list) else [source]
    return ", ".join(str(each.get("path")) for each in sources if isinstance(each, dict))


def _decisions(decisions: Mapping[str, Decision]) -> str:
    rows = (
        (
            f"<code>{escape(setting)}</code>",
            escape(value_text(decision.value)),
            decision.origin,
            escape(decision.why) + _curve(decision),
        )
        for setting, decision in decisions.items()
    )
    return _table(rows, ("setting", "value", "from", "why"))


def _curve(decision: Decision) -> str:
    if len(decision.curve) < 2:
        return ""
    tried = ", ".join(f"{value:.3g}: {loss:.4f}" for value, loss in decision.curve)
    return f'<br><span class="pale">loss of what was tried: {tried}</span>'


def _ranks(plan: Plan) -> str:
    ranks = {module.name: module.rank for module in plan.modules}
    line = (
        f"{len(plan.adapted)} of {len(plan.modules)} layers, {plan.parameters:,} parameters, "
        f"{plan.parameters / plan.lora_parameters:.2f} x LoRA at rank {plan.reference_rank}; gradients of "
        f"{plan.steps} micro-batches"
    )
    return f"<p>{line}</p>{heat_map(arrange(ranks), ranks)}"


def _points(lines: Sequence[Mapping[str, Any]], key: str) -> Points:
    return [(line["step"], float(line[key])) for line in lines if isinstance(line.get(key), int | float)]


def _named(lines: Sequence[Mapping[str, Any]], start: str, title: str) -> dict[str, Points]:
    keys = list(dict.fromkeys(key for line in lines for key in line if key.startswith(start)))
    return {title + key.removeprefix(start).upper(): _points(lines, key) for key in keys}


def _losses(figures: Figures) -> str:
    base = figures.results.get("loss", {}).get("base")
    series = {
        "training loss": _points(figures.metrics, "loss"),
        "eval loss": _points(figures.metrics, "eval_loss"),
    }
    return line_chart(series, level=None if base is None else ("eval loss of the base model", base))


def _throughput(figures: Figures) -> str:
    rates = {
        "tokens per second": _points(figures.metrics, "tokens_per_second"),
        "with padding": _points(figures.metrics, "computed_per_second"),
    }
    memory = [(step, size / 1e9) for step, size in _points(figures.metrics, "gpu_bytes")]
    waiting = [(step, 100 * share) for step, share in _points(figures.metrics, "waiting")]
    return (
        line_chart(rates)
        + line_chart({"GPU memory, GB": memory})
        + line_chart({"waiting for rows, %": waiting} if memory else {})
    )


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    prompts = list(dict.fromkeys(str(line.get("prompt")) for line in samples))[:_EXAMPLES]
    parts = []
    for prompt in prompts:
        mine = [line for line in samples if line.get("prompt") == prompt]
        expected = str(mine[-1].get("expected", ""))
        rows = ((f"step {line['step']}", _text(line.get("output"))) for line in mine)
        parts.append(f"<pre>{_text(prompt)}</pre>{_table([*rows, ('the row says', _text(expected))])}")
    return "".join(parts)


def _evaluation(figures: Figures) -> str:
    rows = [
        (
            escape(task),
            escape(side),
            ", ".join(f"{escape(name)} {value:.4f}" for name, value in found.get("metrics", {}).items()),
        )
        for task, sides in figures.results.get("tasks", {}).items()
        for side, found in sides.items()
    ]
    examples = "".join(
        f'<p class="pale">{escape(name)}</p>' + "".join(_example(row) for row in found[:_EXAMPLES])
        for name, found in figures.examples.items()
    )
    return _table(rows, ("task", "model", "figures")) + examples


def _example(row: Mapping[str, Any]) -> str:
    return _table((f"<code>{escape(str(key))}</code>", _text(value)) for key, value in row.items())


def _text(value: Any) -> str:
    text = str(value)
    return escape(text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + " ...")
