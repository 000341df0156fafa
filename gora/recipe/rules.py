"""Settings that contradict each other, each rule beside the keys that it concerns."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import PurePath

from gora.errors import InputError
from gora.recipe.derived import automatic, gradient_steps, micro_batch_size, rank_bounds, training_micro_batch_size
from gora.recipe.method_facts import METHOD_FACTS, facts_of
from gora.recipe.schema import DataSection, Recipe, SourceSection, TrainSection

TEMPLATES = ("plain", "alpaca", "qa")
FORMATS_OF = {
    "prompt": ("instruction",),
    "prompt_pair": ("instruction",),
    "response": ("instruction",),
    "choices": ("instruction",),
    "template": ("instruction",),
    "messages": ("chat",),
    "chat_template": ("chat",),
    "system": ("chat",),
    "tools": ("chat",),
    "turns": ("chat",),
    "first_turn": ("chat",),
    "text": ("text",),
    "supervise": ("instruction", "chat"),
    "train_on": ("instruction", "chat"),
}
"""The formats that read a setting, where not all do."""
_MOST_ROWS = 10**8
_LARGEST_RANK = 2**17
_FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Contradiction:
    """Two or more settings that cannot all hold.

    Args:
        keys: the dotted keys concerned, the one to look at first in front.
        text: what is wrong and what to do.
    """

    keys: tuple[str, ...]
    text: str


Rule = Callable[[Recipe], Iterator[Contradiction]]
_RULES: list[Rule] = []


def contradictions(recipe: Recipe) -> list[Contradiction]:
    """All contradictions in a recipe whose values are each valid by themselves."""
    return [found for rule in _RULES for found in rule(recipe)]


def accumulation_steps(train: TrainSection, processes: int) -> int:
    """How many forward and backward passes of each process make one optimizer step; with `auto`, for one row at a time.

    Args:
        train: the training section.
        processes: how many processes share the global batch, at least 1.

    Raises:
        InputError: the batch cannot be shared out evenly.
    """
    if train.micro_batch_size == "auto":
        if train.batch_size % processes:
            below = train.batch_size // processes * processes
            batches = " or ".join(str(size) for size in (below, below + processes) if size)
            raise InputError(
                f"train.batch_size ({train.batch_size}) is not a multiple of the {processes} processes. "
                f"Set train.batch_size: {batches}."
            )
        return train.batch_size // processes
    unit = train.micro_batch_size * processes
    if train.batch_size % unit:
        raise InputError(
            f"train.batch_size ({train.batch_size}) is not a multiple of train.micro_batch_size x processes "
            f"({train.micro_batch_size} x {processes} = {unit}). {_remedy(train, processes)}"
        )
    return train.batch_size // unit


def _remedy(train: TrainSection, processes: int) -> str:
    size = training_micro_batch_size(train)
    unit = size * processes
    below = train.batch_size // unit * unit
    batches = " or ".join(str(size) for size in (below, below + unit) if size)
    share, rest = divmod(train.batch_size, processes)
    # The bound keeps the search short for absurd sizes.
    smaller = range(min(size - 1, share, 4096), 0, -1)
    fitting = next((size for size in smaller if not rest and share % size == 0), None)
    instead = f", or train.micro_batch_size: {fitting}" if fitting else ""
    return f"Set train.batch_size: {batches}{instead}."


def _rule(rule: Rule) -> Rule:
    _RULES.append(rule)
    return rule


@_rule
def _ranks(recipe: Recipe) -> Iterator[Contradiction]:
    """The reference rank's budget has to lie between the bounds; `auto` bounds always leave room for it."""
    if not facts_of(recipe.adapter.method).needs_plan:
        return
    low, high, rank = recipe.gora.rank_min, recipe.gora.rank_max, recipe.adapter.rank
    concerned = ("adapter.rank", "adapter.method")
    if isinstance(low, int) and low > rank:
        text = f"rank_min ({low}) is above adapter.rank ({rank}), whose budget can then not be met"
        yield Contradiction(("gora.rank_min", *concerned), text)
    if isinstance(high, int) and high < rank:
        text = f"rank_max ({high}) is below adapter.rank ({rank}), whose budget can then not be used up"
        yield Contradiction(("gora.rank_max", *concerned), text)
    bounds = rank_bounds(recipe.gora, recipe.adapter)
    if bounds.largest is not None and bounds.smallest > bounds.largest:
        text = f"rank_min ({_resolved(low, bounds.smallest)}) is above rank_max ({_resolved(high, bounds.largest)})"
        yield Contradiction(("gora.rank_min", "gora.rank_max", *concerned), text)


def _resolved(written: int | str, value: int) -> str:
    return f"auto, here {value}" if written == "auto" else str(value)


@_rule
def _above_noise(recipe: Recipe) -> Iterator[Contradiction]:
    """Halves are known when the pass is over, and not kept of experts."""
    if recipe.gora.importance != "above-noise" or not facts_of(recipe.adapter.method).needs_plan:
        return
    if recipe.gora.steps == "auto":
        text = "above-noise compares halves of a whole pass, which auto would have to end; give gora.steps a number"
        yield Contradiction(("gora.importance", "gora.steps"), text)
    if recipe.adapter.experts:
        text = "halves of the gradients of experts are not kept; use another importance, or experts: false"
        yield Contradiction(("gora.importance", "adapter.experts"), text)


@_rule
def _automatic_start(recipe: Recipe) -> Iterator[Contradiction]:
    if not (recipe.adapter.experts and facts_of(recipe.adapter.method).needs_plan):
        return
    if recipe.gora.gamma == "auto":
        text = "auto cannot try a first step on fused experts; give a number, or experts: false"
        yield Contradiction(("gora.gamma", "adapter.experts"), text)
    if recipe.gora.steps == "auto":
        text = "auto waits for every expert by itself, which few rows reach; give a number, or experts: false"
        yield Contradiction(("gora.steps", "adapter.experts"), text)


@_rule
def _balance(recipe: Recipe) -> Iterator[Contradiction]:
    if recipe.gora.balance and recipe.gora.init_a == "random" and facts_of(recipe.adapter.method).needs_plan:
        text = "a random A has no singular values to share; use init_a: gradient or sign, or balance: false"
        yield Contradiction(("gora.balance", "gora.init_a"), text)


@_rule
def _dora(recipe: Recipe) -> Iterator[Contradiction]:
    adapter = recipe.adapter
    if adapter.dora and not facts_of(adapter.method).supports_dora:
        able = ", ".join(facts.name for facts in METHOD_FACTS if facts.supports_dora)
        text = f"dora does not go together with {adapter.method}; methods that have it: {able}"
        yield Contradiction(("adapter.dora", "adapter.method"), text)


@_rule
def _experts(recipe: Recipe) -> Iterator[Contradiction]:
    """What PEFT refuses for parameters that are no layer's weight."""
    adapter = recipe.adapter
    if not adapter.experts:
        return
    if not facts_of(adapter.method).supports_experts:
        able = ", ".join(facts.name for facts in METHOD_FACTS if facts.supports_experts)
        text = f"experts does not go together with {adapter.method}; methods that have it: {able}"
        yield Contradiction(("adapter.experts", "adapter.method"), text)
    if adapter.dropout:
        text = (
            f"dropout ({adapter.dropout:g}) cannot be put in front of fused experts; set it to 0, or experts to false"
        )
        yield Contradiction(("adapter.dropout", "adapter.experts"), text)
    if adapter.dora:
        text = "magnitudes of fused experts cannot be trained (DoRA); set dora or experts to false"
        yield Contradiction(("adapter.dora", "adapter.experts"), text)


@_rule
def _batch(recipe: Recipe) -> Iterator[Contradiction]:
    train = recipe.train
    if train.micro_batch_size != "auto" and train.batch_size % train.micro_batch_size:
        text = f"batch_size ({train.batch_size}) is not a multiple of micro_batch_size ({train.micro_batch_size})"
        yield Contradiction(("train.batch_size", "train.micro_batch_size"), f"{text}. {_remedy(train, 1)}")


@_rule
def _evaluation_rows(recipe: Recipe) -> Iterator[Contradiction]:
    data = recipe.data
    if data.eval and data.holdout:
        text = f"evaluation rows are given twice, as data.eval and as data.holdout ({data.holdout}); keep one of them"
        yield Contradiction(("data.holdout", "data.eval"), text)
    if recipe.evaluation.steps and not data.eval and not data.holdout:
        text = "there are no rows to evaluate on; give data.eval or data.holdout"
        yield Contradiction(("evaluation.steps", "data.eval", "data.holdout"), text)
    if data.eval and _rows(data.eval, "test") & _rows(data.train, "train"):
        text = "the evaluation rows are the training rows; name others, or set some aside with data.holdout"
        yield Contradiction(("data.eval", "data.train"), text)


def _rows(source: SourceSection, split: str) -> set[tuple[str, str | None, str | None]]:
    """Which rows are meant; a file has no splits, elsewhere null is another split for training than for evaluation."""
    paths = [PurePath(path) for path in ([source.path] if isinstance(source.path, str) else source.path)]
    return {(str(path), source.subset, source.split or (None if path.suffix in _FILES else split)) for path in paths}


@_rule
def _format(recipe: Recipe) -> Iterator[Contradiction]:
    """A setting of another format would have no effect. A complete recipe lists those too, with their defaults."""
    for name, formats in FORMATS_OF.items():
        is_set = getattr(recipe.data, name) != DataSection.model_fields[name].default
        if is_set and recipe.data.format not in formats:
            others = " or ".join(formats)
            text = f"{name} belongs to data.format: {others}, but the format is {recipe.data.format}"
            yield Contradiction((f"data.{name}", "data.format"), text)


@_rule
def _trained_turns(recipe: Recipe) -> Iterator[Contradiction]:
    data = recipe.data
    if isinstance(data.train_on, list) and data.format == "instruction":
        text = "rows with a prompt and a response have no roles; use all or last"
        yield Contradiction(("data.train_on", "data.format"), text)
    if isinstance(data.train_on, list) and data.supervise == "code" and data.train_on != ["assistant"]:
        text = "only the assistant's answers are searched for code; use response, or train_on: [assistant]"
        yield Contradiction(("data.supervise", "data.train_on"), text)


@_rule
def _supervise(recipe: Recipe) -> Iterator[Contradiction]:
    data = recipe.data
    if data.supervise == "code" and data.format == "instruction" and data.choices is not None:
        text = "the responses are choices, which have no code blocks; train all of them (response)"
        yield Contradiction(("data.supervise", "data.choices"), text)


@_rule
def _template(recipe: Recipe) -> Iterator[Contradiction]:
    template = recipe.data.template
    if recipe.data.format != "instruction" or template in TEMPLATES or re.search(r"\{[^{}]+\}", template):
        return
    near = get_close_matches(template, TEMPLATES, n=1)
    meant = f"did you mean {near[0]!r}?" if near else f"write one, as {{prompt}}, or take {', '.join(TEMPLATES)}"
    text = f"a template of your own needs a column in braces, and {template[:60]!r} has none; {meant}"
    yield Contradiction(("data.template", "data.format"), text)


@_rule
def _classification(recipe: Recipe) -> Iterator[Contradiction]:
    """A classification head reads texts and gives numbers; nothing of a response is ever read or written."""
    model, data = recipe.model, recipe.data
    if model.head != "classification":
        if data.prompt_pair is not None:
            text = "pairs of texts are for classification; a language model takes both in data.template"
            yield Contradiction(("data.prompt_pair", "model.head"), text)
        return
    if data.format != "instruction":
        kind = "conversations" if data.format == "chat" else "texts alone"
        text = f"a classification head takes rows with texts and a label, not {kind}; use instruction"
        yield Contradiction(("data.format", "model.head"), text)
    elif data.choices is None:
        text = "a classification head needs data.choices, the names of the labels in the order of their numbers"
        yield Contradiction(("data.choices", "model.head"), text)
    if data.template in TEMPLATES and data.template != "plain":
        text = f"{data.template} asks for an answer in words, which a classification head does not give; use plain"
        yield Contradiction(("data.template", "model.head"), text)
    if data.train_on != "all":
        text = "a classification head has no turns to choose from; use all"
        yield Contradiction(("data.train_on", "model.head"), text)
    if data.prompt_pair == data.prompt:
        text = f"both texts of a pair come from the column {data.prompt!r}; name another one, or null for one text"
        yield Contradiction(("data.prompt_pair", "data.prompt"), text)
    if model.quantization is not None:
        text = f"a base in {model.quantization} goes with head: language only; use null"
        yield Contradiction(("model.quantization", "model.head"), text)


@_rule
def _sizes(recipe: Recipe) -> Iterator[Contradiction]:
    """Sizes that no run has, and that would fill the memory before anything is refused."""
    # `auto` is at most the rows of a step.
    size = recipe.train.batch_size if "gora.micro_batch_size" in automatic(recipe) else micro_batch_size(recipe)
    rows = gradient_steps(recipe) * size
    if facts_of(recipe.adapter.method).needs_plan and rows > _MOST_ROWS:
        text = f"the gradient pass would draw {rows:,} rows, and may draw {_MOST_ROWS:,}; lower one of the two"
        yield Contradiction(("gora.steps", "gora.micro_batch_size", "train.micro_batch_size"), text)
    if recipe.adapter.rank > _LARGEST_RANK:
        text = f"rank {recipe.adapter.rank:,} is above {_LARGEST_RANK:,}, which no layer can use"
        yield Contradiction(("adapter.rank",), text)


@_rule
def _targets(recipe: Recipe) -> Iterator[Contradiction]:
    import regex

    targets = recipe.adapter.targets
    for target in [targets] if isinstance(targets, str) else targets:
        try:
            regex.compile(target)
        except (regex.error, OverflowError, RecursionError) as error:
            yield Contradiction(("adapter.targets",), f"{target[:60]!r} is not a valid regular expression: {error}")
