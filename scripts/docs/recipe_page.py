"""Writes docs/recipe.md from the recipe's schema: every setting with its text, type, default and which way it pulls.

Run `python scripts/docs/recipe_page.py` after a setting was added or changed.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from gora.recipe.data_schema import MixedSource, Section, SourceSection
from gora.recipe.schema import Recipe

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"
PULLS = {
    "model.dtype": "float32 doubles the memory of the base weights; bfloat16 halves it on GPUs that compute in it.",
    "model.quantization": "less memory for the base weights (a quarter or half), slower steps, slightly higher loss.",
    "model.attention": "`eager` is slowest, works everywhere and packs no rows.",
    "data.max_length": "higher keeps more of long rows; memory and time of a micro-batch grow with it.",
    "data.overlong": "`truncate` keeps every row but trains answers without their end; `drop` keeps whole rows only.",
    "data.holdout": "higher makes the eval loss steadier and leaves fewer rows to train on.",
    "data.packing": "`packed` is fastest on rows of mixed lengths; `none` is plainest.",
    "data.shuffle_buffer": "higher mixes a sorted stream better; memory and start-up grow with it.",
    "data.supervise": "`code` trains on fewer tokens, those of fenced code only.",
    "adapter.rank": "higher fits more and takes more memory; lower `gora.gamma` with it.",
    "adapter.alpha": "higher makes updates larger, much as a higher learning rate does.",
    "adapter.dropout": "higher counters overfitting on few rows and slows learning.",
    "adapter.targets": "`all-linear` fits more than `attention`, with more memory and time.",
    "adapter.experts": "fits mixtures more closely; gradient sums take as much memory as the experts in float32.",
    "adapter.dora": "sometimes a lower loss; slower steps and more memory.",
    "gora.steps": "more micro-batches make ranks and first step steadier, at the cost of time before training.",
    "gora.gamma": "higher begins further along the gradient, too high worse than the base; lower it at high ranks.",
    "gora.rank_min": "higher keeps every layer adaptable; lower lets ranks follow the gradients more closely.",
    "gora.rank_max": "higher lets single layers take more of the budget; serving needs room for the largest rank.",
    "gora.temperature": "lower makes ranks more unequal; higher brings them together.",
    "gora.tolerance": "lower takes more micro-batches.",
    "gora.offload": "`cpu` frees the most GPU memory and is slowest; `none` is fastest and needs room for all sums.",
    "train.epochs": "more epochs fit the rows more closely, and learn few rows by heart.",
    "train.max_steps": "lower ends earlier; the schedule is stretched over the steps there are.",
    "train.batch_size": "higher makes steps steadier and fewer; raise the learning rate with it.",
    "train.micro_batch_size": "higher is faster and takes more memory; the result is the same.",
    "train.learning_rate": "higher learns faster until training becomes unstable; too low changes little.",
    "train.loraplus_lr_ratio": "higher moves B faster than A; lower the learning rate with it.",
    "train.warmup_ratio": "higher begins more gently, which a high learning rate or a first step needs.",
    "train.warmup_steps": "as `warmup_ratio`.",
    "train.min_lr_ratio": "higher keeps learning until the end; 0 settles.",
    "train.weight_decay": "higher holds values small.",
    "train.max_grad_norm": "lower tames spikes and slows learning where most steps are clipped.",
    "train.precision": "bf16 is several times faster on GPUs that have it; fp32 is the more exact.",
    "train.kernels": "`liger` and `fused` save time and memory; `none` is the arithmetic of transformers and PEFT.",
    "train.activation_checkpointing": "true takes far less memory and about a third more time; the result is the same.",
    "train.log_steps": "lower gives finer curves.",
    "train.save_steps": "lower loses less after a failure and writes more often.",
    "train.save_minutes": "lower loses less after a failure and writes more often.",
    "train.keep_checkpoints": "higher takes more disk.",
    "train.keep": "`best` guards against overfitting; it needs evaluations during training.",
    "train.patience": "lower ends earlier, also before a loss that would have fallen again.",
    "evaluation.steps": "lower shows overfitting earlier and takes more time.",
    "evaluation.samples": "more answers take more time at each evaluation.",
    "distributed": "`zero2-offload` and `zero3` take the least GPU memory; `ddp` is fastest where the model fits.",
    "seed": "another seed is another draw of rows and values: compare methods over several.",
}
_LINKED = re.compile(r"`docs/([\w-]+)\.md`")
_BOUNDS = {Gt: "above", Ge: "at least", Lt: "below", Le: "at most"}
_INTRODUCTION = """# Recipe

<!-- written by scripts/docs/recipe_page.py: change the schema, not this page -->

A recipe is a YAML file. `model.name` and `data.train.path` are required, everything else has the default below. Unknown
keys and values of another type are refused with file, line and the nearest name. `gora recipes show NAME --complete`
prints a recipe with every setting, `--set section.key=value` overrides one on the command line, and `extends:` begins
with another recipe.

**What to change first.** Out of memory: `train.micro_batch_size: auto`, `train.activation_checkpointing: auto`, a
lower `data.max_length`, `model.quantization: nf4`. Too slow: a higher `train.micro_batch_size`, `data.packing: auto`,
fewer `train.epochs`. Not good enough: `train.learning_rate`, then `adapter.targets: all-linear`, then `adapter.rank`,
and more rows before any of them.
"""


def main() -> None:
    """Replace the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The page of today."""
    parts = [_INTRODUCTION]
    top = {key: info for key, info in Recipe.model_fields.items() if _section(info) is None}
    parts.append(_part("At the top", "", "", top))
    for name, info in Recipe.model_fields.items():
        if (section := _section(info)) is not None:
            parts.append(_part(f"`{name}`", info.description or "", name, section.model_fields))
    parts.append(_part("A source", "What `data.train` and `data.eval` hold.", "data.train", SourceSection.model_fields))
    own = {key: info for key, info in MixedSource.model_fields.items() if key not in SourceSection.model_fields}
    parts.append(
        _part(
            "One of several sources",
            "Beside the settings of a source; `data.train` is then a list.",
            "data.train.0",
            {key: info for key, info in own.items() if key in ("weight", "rows")},
        )
        + "\nEvery other setting of `data` that says how rows are read may stand here for this source alone: "
        + ", ".join(f"`{key}`" for key in own if key not in ("weight", "rows"))
        + ".\n"
    )
    return "\n".join(parts)


def _section(info: FieldInfo) -> type[Section] | None:
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _part(title: str, text: str, prefix: str, fields: dict[str, FieldInfo]) -> str:
    lines = [f"## {title}\n", f"{text}\n" if text else ""]
    for key, info in fields.items():
        name = f"{prefix}.{key}" if prefix else key
        lines.append(f"### `{name}`\n")
        lines.append(f"{kind_text(info.annotation, info.metadata)}; default {_default(info)}.\n")
        text = " ".join((info.description or "").split())
        lines.append(_LINKED.sub(_link, text) + "\n")
        if name in PULLS:
            lines.append(f"*Which way it pulls:* {PULLS[name]}\n")
    return "\n".join(line for line in lines if line)


def _link(named: re.Match[str]) -> str:
    page = f"{named[1]}.md"
    return f"[{page}]({page})" if (PAGE.parent / page).exists() else named[0]


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "none, it is required"
    if value is None:
        return "`null`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else "empty"


def kind_text(kind: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """A type as a reader of YAML would say it: `whole number above 0, or auto`."""
    return ", or ".join(dict.fromkeys(_kinds(kind, list(metadata)))) or "value"


def _kinds(kind: Any, metadata: list[Any]) -> Iterator[str]:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        yield from _kinds(arguments[0], [*metadata, *arguments[1:]])
    elif origin in (Union, types.UnionType):
        for each in arguments:
            yield from _kinds(each, metadata if len(arguments) == 1 else _shared(each, metadata))
    elif origin is Literal:
        yield ", ".join(f"`{value}`" for value in arguments)
    elif kind is type(None):
        yield "`null`"
    elif origin is list:
        least = [each.min_length for each in metadata if isinstance(each, MinLen)] + _flat(metadata)
        several = f" of {max(least)} or more" if least and max(least) > 1 else ""
        yield f"list of {kind_text(arguments[0])}{several}"
    elif isinstance(kind, type) and issubclass(kind, Section):
        yield "section"
    else:
        names = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}
        yield " ".join([names.get(kind, "value"), *_bounds(metadata)])


def _shared(kind: Any, metadata: list[Any]) -> list[Any]:
    """Bounds of a whole union hold for its numbers."""
    return metadata if kind in (int, float) or get_origin(kind) is Annotated else []


def _flat(metadata: list[Any]) -> list[int]:
    """Least lengths inside of pydantic's `Field`."""
    inner = [each for item in metadata for each in getattr(item, "metadata", ())]
    return [each.min_length for each in inner if isinstance(each, MinLen)]


def _bounds(metadata: list[Any]) -> Iterator[str]:
    flat = [each for item in metadata for each in (getattr(item, "metadata", None) or [item])]
    told = []
    for each in flat:
        for bound, words in _BOUNDS.items():
            if isinstance(each, bound):
                value = getattr(each, bound.__name__.lower())
                told.append(f"{words} {value:,}" if isinstance(value, int) and value < 10**9 else f"{words} {value}")
    if told:
        yield " and ".join(dict.fromkeys(told))


if __name__ == "__main__":
    main()
