"""The model card of what a run has trained: the README.md that stands beside it, here and on the hub."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from gora.plan import Decision, Plan
from gora.recipe.schema import Recipe
from gora.recipe.sources import SettledSource, sources_of
from gora.report.decisions import decisions_of, value_text
from gora.report.grid import arrange
from gora.report.heatmap import HeatMap
from gora.report.summary import clipped, parameter_ratio, summarize_kinds
from gora.runtime.progress import clock

BASE = "BASE"
"""What commands call a base model that is not on the hub."""
_WIDTH = 100
"""Columns of the picture of ranks."""
_OF_IMAGES = {
    "image-classification": "AutoModelForImageClassification",
    "zero-shot-image-classification": "AutoModelForZeroShotImageClassification",
}
"""The class that loads the base of each task of images."""
_HEADED, _CLASSES_SHOWN = "image-classification", 20
_OF_THE_ADAPTER = ("method", "dora", "rank", "alpha", "dropout", "targets", "exclude", "experts")
_OF_TRAINING = (
    "epochs",
    "max_steps",
    "batch_size",
    "learning_rate",
    "schedule",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
)


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says.

    Attributes:
        place: what commands call the adapter or model: its name on the hub, or a word for its folder.
        recipe: the run's.
        title: of the method.
        base: what the base model is called; a folder of one machine by its last name.
        base_on_hub: whether that is a name of the hub.
        pipeline: the hub's name of the task, such as `text-generation`.
        prompt: how a question is put to the model, in Markdown.
        plan: of the adapter; None for a method without one.
        decisions: what else was decided, by setting.
        results: `results.json`.
        commands: how servers are started with it.
        adapter: whether it is an adapter, and not a whole model.
    """

    place: str
    recipe: Recipe
    title: str
    base: str
    base_on_hub: bool
    pipeline: str
    prompt: str
    results: Mapping[str, Any]
    plan: Plan | None = None
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    commands: Sequence[str] = ()
    adapter: bool = True


def card_text(facts: CardFacts) -> str:
    """The card in Markdown, with the front matter that the hub reads; no path of this machine is in it."""
    sections = [
        _front_matter(facts),
        _head(facts),
        _section("Evaluation", _evaluation(facts.results)),
        _section("Load it", _loading(facts)),
        _section("Prompt format", facts.prompt),
        _section("Data", _data(facts.recipe)),
        _section("Recipe", _recipe(facts)),
        _section("Decisions", _decisions(facts)),
        _section("Ranks", _ranks(facts.plan) if facts.plan else ""),
        _section("Versions", _versions(facts.results)),
    ]
    return "\n".join(section for section in sections if section)


def source_name(source: SettledSource) -> list[str]:
    """What a card calls the files or the set of a source: names of the hub whole, files by their last name."""
    paths = source.section.path
    return [path if on_hub(path) or path.startswith("builtin:") else _last(path) for path in _listed(paths)]


def on_hub(path: str) -> bool:
    """Whether a name can be one of the hub, and not a file, a folder or a pattern."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    files = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz")
    return not path.endswith(files) and not path.startswith((".", "~"))


def _section(title: str, content: str) -> str:
    return f"## {title}\n\n{content.strip()}\n" if content.strip() else ""


def _front_matter(facts: CardFacts) -> str:
    from huggingface_hub import ModelCardData

    sources = sources_of(facts.recipe.data, "train")
    sets = [name for source in sources for name in source_name(source) if on_hub(name)]
    base = facts.base if facts.base_on_hub else None
    data = ModelCardData(
        base_model=base,
        datasets=sorted(set(sets)) or None,
        library_name="peft" if facts.adapter else "transformers",
        pipeline_tag=facts.pipeline,
        tags=["gora", *(["lora"] if facts.adapter else []), *([f"base_model:adapter:{base}"] if base else [])],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _head(facts: CardFacts) -> str:
    recipe, results = facts.recipe, facts.results
    what = "An adapter" if facts.adapter else "A model"
    lines = [f"# {_last(facts.place) if '/' in facts.place else _last(recipe.output or facts.base)}\n"]
    if recipe.description:
        lines.append(f"{recipe.description.strip().rstrip('.')}.\n")
    revision = f", revision `{recipe.model.revision}`" if recipe.model.revision else ""
    trained = f", {results['trainable_parameters']:,} trained parameters" if "trainable_parameters" in results else ""
    lines.append(
        f"{what} for `{facts.base}`{revision}, trained with {facts.title} by "
        f"[gora](https://arxiv.org/abs/2502.12171){trained}.\n"
    )
    return "\n".join(lines)


def _evaluation(results: Mapping[str, Any]) -> str:
    loss: Mapping[str, float] = results.get("loss") or {}
    text = ""
    if "final" in loss:
        rows = f" on {results['rows']:,} rows" if results.get("rows") else ""
        start = [("at the start of training", loss["initial"])] if "initial" in loss else []
        found = [("base model", loss["base"]), *start, ("trained", loss["final"])]
        text += _table([f"evaluation loss{rows}", ""], [(name, f"{value:.4f}") for name, value in found])
        if results.get("worse_than_base"):
            text += "\nThe loss is above that of the base model.\n"
    if figures := list(_task_rows(results.get("tasks") or {})):
        text += ("\n" if text else "") + _table(["task", "metric", "base model", "trained", "questions"], figures)
    return text or "Not evaluated yet.\n"


def _task_rows(tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for task, sides in tasks.items():
        either = sides.get("trained") or sides["base"]
        asked = either.get("questions") or either.get("limit") or ""
        for metric in either["metrics"]:
            figures = [sides[side]["metrics"].get(metric) if side in sides else None for side in ("base", "trained")]
            yield (task, metric, *("" if value is None else f"{value:.4f}" for value in figures), f"{asked}")


def _loading_of_images(facts: CardFacts) -> str:
    name = _OF_IMAGES[facts.pipeline]
    labels = facts.recipe.data.choices or ()
    of_head = f", num_labels={len(labels)}, ignore_mismatched_sizes=True" if facts.pipeline == _HEADED else ""
    lines = ["from peft import PeftModel"] if facts.adapter else []
    lines += [f"from transformers import AutoImageProcessor, {name}", ""]
    if facts.adapter:
        lines += [f'base = {name}.from_pretrained("{_base(facts)}"{of_head})']
        lines += [f'model = PeftModel.from_pretrained(base, "{facts.place}")']
    else:
        lines += [f'model = {name}.from_pretrained("{facts.place}")']
    lines += [f'processor = AutoImageProcessor.from_pretrained("{facts.place}")']
    named = ", ".join(f"{number} {label}" for number, label in enumerate(labels[:_CLASSES_SHOWN]))
    more = f", and {len(labels) - _CLASSES_SHOWN} more in gora.json" if len(labels) > _CLASSES_SHOWN else ""
    told = "```python\n" + "\n".join(lines) + f"\n```\n\nClasses: {named}{more}.\n"
    if facts.pipeline != _HEADED:
        prompts = " and ".join(f"`{prompt}`" for prompt in facts.recipe.data.class_prompts)
        told += f"\nEach class is the mean of the text embeddings of {prompts}.\n"
    return told + _places(facts)


def _loading(facts: CardFacts) -> str:
    if facts.pipeline in _OF_IMAGES:
        return _loading_of_images(facts)
    kinds = {"text-classification": "SequenceClassification", "text2text-generation": "Seq2SeqLM"}
    kind = kinds.get(facts.pipeline, "CausalLM")
    told = "```python\n" + "\n".join(_python(facts, kind)) + "\n```\n"
    if facts.commands:
        told += "\n```bash\n" + "\n".join(facts.commands) + "\n```\n"
    elif facts.adapter and kind == "CausalLM":
        told += (
            "\nServers read plain LoRA adapters, and this one is more than that: merge it first, "
            f"`gora merge {facts.place} --output merged`.\n"
        )
    return told + _places(facts)


def _places(facts: CardFacts) -> str:
    """What the names in the commands stand for, where they are no names of the hub."""
    told = f"\n`{facts.place}` is this folder, or its name on the hub.\n" if "/" not in facts.place else ""
    if facts.adapter and not facts.base_on_hub:
        told += f"\n`{BASE}` is the folder of the base model, `{facts.base}`.\n"
    return told


def _base(facts: CardFacts) -> str:
    return facts.base if facts.base_on_hub else BASE


def _python(facts: CardFacts, kind: str) -> list[str]:
    tokenizer = f'tokenizer = AutoTokenizer.from_pretrained("{facts.place}")'
    whole = f"AutoModelFor{kind}"
    labels = facts.recipe.data.choices if facts.pipeline == "text-classification" else None
    if facts.adapter and facts.base_on_hub and not labels:
        auto = f"AutoPeftModelFor{kind}"
        imports = [f"from peft import {auto}", "from transformers import AutoTokenizer"]
        return [*imports, "", f'model = {auto}.from_pretrained("{facts.place}")', tokenizer]
    if facts.adapter:
        imports = ["from peft import PeftModel", f"from transformers import {whole}, AutoTokenizer"]
        of_head = f", num_labels={len(labels)}" if labels else ""
        base = f'base = {whole}.from_pretrained("{_base(facts)}"{of_head})'
        return [*imports, "", base, f'model = PeftModel.from_pretrained(base, "{facts.place}")', tokenizer]
    imports = [f"from transformers import {whole}, AutoTokenizer"]
    return [*imports, "", f'model = {whole}.from_pretrained("{facts.place}")', tokenizer]


def _data(recipe: Recipe) -> str:
    lines = []
    for name, told in (("train", "trained on"), ("eval", "evaluated on")):
        for source in sources_of(recipe.data, name):  # type: ignore[arg-type]
            section = source.section
            more = [f"{key} {value}" for key in ("subset", "split") if (value := getattr(section, key))]
            more += [f"the first {section.max_rows:,} rows"] if section.max_rows else []
            where = ", ".join(f"`{path}`" for path in source_name(source))
            lines.append(f"- {told} {where}{' (' + ', '.join(more) + ')' if more else ''}")
    if recipe.data.holdout:
        lines.append(f"- evaluated on rows set aside from them (`holdout: {recipe.data.holdout}`)")
    return "\n".join(lines)


def _recipe(facts: CardFacts) -> str:
    recipe, train = facts.recipe, facts.results.get("train") or {}
    shown = {
        "adapter": {name: getattr(recipe.adapter, name) for name in _OF_THE_ADAPTER},
        "train": {name: getattr(recipe.train, name) for name in _OF_TRAINING},
    }
    rows = [
        (f"`{section}.{name}`", f"`{value_text(value)}`")
        for section, values in shown.items()
        for name, value in values.items()
        if value not in (None, False, [], "")
    ]
    rows += [("`data.max_length`", f"`{recipe.data.max_length}`"), ("`seed`", f"`{recipe.seed}`")]
    text = _table(["setting", "value"], rows)
    if train:
        text += (
            f"\n{train['steps']:,} optimizer steps, {train['tokens']:,} tokens, {clock(train['seconds'])} in "
            f"{train['processes']} process{'' if train['processes'] == 1 else 'es'}.\n"
        )
    return text


def _decisions(facts: CardFacts) -> str:
    decided = {**(decisions_of(facts.plan) if facts.plan else {}), **facts.decisions}
    rows = [
        (f"`{setting}`", f"`{value_text(decision.value)}`", decision.origin, _one_line(decision.why))
        for setting, decision in decided.items()
    ]
    return _table(["setting", "value", "from", "why"], rows) if rows else ""


def _ranks(plan: Plan) -> str:
    grid = arrange(module.name for module in plan.modules)
    console = Console(file=io.StringIO(), width=_WIDTH, color_system=None, force_terminal=False)
    console.print(HeatMap(grid, {module.name: module.rank for module in plan.modules}))
    picture = "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]
    ratio = parameter_ratio(plan)
    kinds = [
        (f"`{kind.kind}`", f"{kind.layers}", f"{kind.rank_min} to {kind.rank_max}", f"{kind.rank_mean:.1f}")
        for kind in summarize_kinds(plan, grid, clipped(plan))
    ]
    compared = "" if ratio is None else f", {ratio:.2f} times those of LoRA at rank {plan.reference_rank}"
    return (
        f"The rank of each layer, by block and kind; {plan.parameters:,} parameters{compared}.\n\n"
        f"```text\n{picture.strip(chr(10))}\n```\n\n" + _table(["kind", "layers", "ranks", "mean"], kinds)
    )


def _versions(results: Mapping[str, Any]) -> str:
    found: Mapping[str, str] = results.get("versions") or {}
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _listed(paths: str | list[str]) -> list[str]:
    return [paths] if isinstance(paths, str) else paths


def _last(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]
