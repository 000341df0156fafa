"""Rules on the `data` section: which rows are read, and how each of its sources becomes text."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import PurePath
from typing import Literal

from gora.recipe.contradiction import Contradiction, rule
from gora.recipe.data_schema import MixedSource
from gora.recipe.schema import DataSection, Recipe, SourceSection
from gora.recipe.sources import SettledSource, sources_of

TEMPLATES = ("plain", "alpaca", "qa")
FORMATS_OF = {
    "prompt": ("instruction",),
    "prompt_pair": ("instruction",),
    "response": ("instruction",),
    "choices": ("instruction", "image"),
    "template": ("instruction",),
    "messages": ("chat",),
    "chat_template": ("chat",),
    "system": ("chat",),
    "tools": ("chat",),
    "turns": ("chat",),
    "first_turn": ("chat",),
    "text": ("text",),
    "image": ("image",),
    "label": ("image",),
    "augment": ("image",),
    "class_prompts": ("image",),
    "supervise": ("instruction", "chat"),
    "train_on": ("instruction", "chat"),
    "max_length": ("instruction", "chat", "text"),
    "overlong": ("instruction", "chat", "text"),
    "packing": ("instruction", "chat", "text"),
    "streaming": ("instruction", "chat", "text"),
}
"""The formats that read a setting, where not all do."""
_FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


@rule
def _evaluation_rows(recipe: Recipe) -> Iterator[Contradiction]:
    data = recipe.data
    if data.eval and data.holdout:
        text = f"evaluation rows are given twice, as data.eval and as data.holdout ({data.holdout}); keep one of them"
        yield Contradiction(("data.holdout", "data.eval"), text)
    if recipe.evaluation.steps and not data.eval and not data.holdout:
        text = "there are no rows to evaluate on; give data.eval or data.holdout"
        yield Contradiction(("evaluation.steps", "data.eval", "data.holdout"), text)
    trained = [rows for source in sources_of(data, "train") for rows in _rows(source.section, "train")]
    if any(_rows(source.section, "test") & set(trained) for source in sources_of(data, "eval")):
        text = "the evaluation rows are the training rows; name others, or set some aside with data.holdout"
        yield Contradiction(("data.eval", "data.train"), text)


def _rows(source: SourceSection, split: str) -> set[tuple[str, str | None, str | None]]:
    """Which rows are meant; a file has no splits, elsewhere null is another split for training than for evaluation."""
    paths = [PurePath(path) for path in ([source.path] if isinstance(source.path, str) else source.path)]
    return {(str(path), source.subset, source.split or (None if path.suffix in _FILES else split)) for path in paths}


@rule
def _shares(recipe: Recipe) -> Iterator[Contradiction]:
    """What a source has of an epoch."""
    for section, key in _several(recipe.data, "train"):
        if section.weight is not None and section.rows is not None:
            text = f"weight ({section.weight:g}) and rows ({section.rows}) both say how many come; keep one of them"
            yield Contradiction((f"{key}.rows", f"{key}.weight"), text)
    for section, key in _several(recipe.data, "eval"):
        for name in ("weight", "rows"):
            if getattr(section, name) is not None:
                text = f"{name} is for training rows; every evaluation row counts once. max_rows takes the first"
                yield Contradiction((f"{key}.{name}",), text)


@rule
def _streaming(recipe: Recipe) -> Iterator[Contradiction]:
    """Of a stream nobody knows how many rows are to come."""
    data = recipe.data
    if not data.streaming:
        return
    if recipe.train.max_steps is None:
        text = "a stream does not say how many rows it has; say with train.max_steps when training ends"
        yield Contradiction(("train.max_steps", "data.streaming"), text)
    if data.holdout:
        text = "rows cannot be drawn from all of a stream; name evaluation rows with data.eval"
        yield Contradiction(("data.holdout", "data.streaming"), text)
    for section, key in _several(data, "train"):
        if section.rows is not None:
            text = "rows counts those of an epoch, which a stream does not have; use weight"
            yield Contradiction((f"{key}.rows", "data.streaming"), text)


def _several(data: DataSection, name: Literal["train", "eval"]) -> Iterator[tuple[MixedSource, str]]:
    for source in sources_of(data, name):
        if isinstance(source.section, MixedSource):
            yield source.section, source.key


def _settled(recipe: Recipe) -> Iterator[SettledSource]:
    yield from sources_of(recipe.data, "train")
    # One source of evaluation rows has the settings of `data`, as a single one of training rows has.
    if isinstance(recipe.data.eval, list):
        yield from sources_of(recipe.data, "eval")


@rule
def _format(recipe: Recipe) -> Iterator[Contradiction]:
    """A setting of another format would have no effect. A complete recipe lists those too, with their defaults."""
    sources = list(_settled(recipe))
    used = {recipe.data.format} if recipe.data.eval or len(sources) == 1 else set()
    used |= {source.data.format for source in sources}
    for name, formats in FORMATS_OF.items():
        others = " or ".join(formats)
        is_set = getattr(recipe.data, name) != DataSection.model_fields[name].default
        if is_set and not used & set(formats):
            text = f"{name} belongs to data.format: {others}, but the format is {' or '.join(sorted(used))}"
            yield Contradiction((f"data.{name}", "data.format"), text)
        for source in sources:
            own = source.key_of(name)
            if own.startswith(f"{source.key}.") and source.data.format not in formats:
                text = f"{name} belongs to format: {others}, but the format is {source.data.format}"
                yield Contradiction((own, source.key_of("format")), text)


@rule
def _trained_turns(recipe: Recipe) -> Iterator[Contradiction]:
    for source in _settled(recipe):
        data = source.data
        if isinstance(data.train_on, list) and data.format == "instruction":
            text = "rows with a prompt and a response have no roles; use all or last"
            yield Contradiction((source.key_of("train_on"), source.key_of("format")), text)
        if isinstance(data.train_on, list) and data.supervise == "code" and data.train_on != ["assistant"]:
            text = "only the assistant's answers are searched for code; use response, or train_on: [assistant]"
            yield Contradiction((source.key_of("supervise"), source.key_of("train_on")), text)


@rule
def _supervise(recipe: Recipe) -> Iterator[Contradiction]:
    for source in _settled(recipe):
        data = source.data
        if data.supervise == "code" and data.format == "instruction" and data.choices is not None:
            text = "the responses are choices, which have no code blocks; train all of them (response)"
            yield Contradiction((source.key_of("supervise"), "data.choices"), text)


@rule
def _answers(recipe: Recipe) -> Iterator[Contradiction]:
    """The same column on both sides would train a model to repeat what it is asked."""
    for source in _settled(recipe):
        data, keys = source.data, (source.key_of("response"), source.key_of("prompt"))
        if data.format == "instruction" and data.prompt == data.response:
            text = f"prompt and response both come from the column {data.prompt!r}; name another one for the answers"
            yield Contradiction(keys, text)


@rule
def _template(recipe: Recipe) -> Iterator[Contradiction]:
    told = set()
    for source in _settled(recipe):
        template, key = source.data.template, source.key_of("template")
        if source.data.format != "instruction" or template in TEMPLATES or re.search(r"\{[^{}]+\}", template):
            continue
        near = get_close_matches(template, TEMPLATES, n=1)
        meant = f"did you mean {near[0]!r}?" if near else f"write one, as {{prompt}}, or take {', '.join(TEMPLATES)}"
        text = f"a template of your own needs a column in braces, and {template[:60]!r} has none; {meant}"
        if key not in told:
            told.add(key)
            yield Contradiction((key, source.key_of("format")), text)


@rule
def _classification(recipe: Recipe) -> Iterator[Contradiction]:
    """A classification head reads texts and gives numbers; nothing of a response is ever read or written."""
    model, data = recipe.model, recipe.data
    if model.head != "classification":
        if data.prompt_pair is not None:
            text = "pairs of texts are for classification; a language model takes both in data.template"
            yield Contradiction(("data.prompt_pair", "model.head"), text)
        return
    if model.quantization is not None:
        text = f"a base in {model.quantization} goes with head: language only; use null"
        yield Contradiction(("model.quantization", "model.head"), text)
    for source in _settled(recipe):
        yield from _classified(source)


def _classified(source: SettledSource) -> Iterator[Contradiction]:
    """What is wrong with one source of a classifier's rows."""
    data, key = source.data, source.key_of
    if data.format != "instruction":
        kind = "conversations" if data.format == "chat" else "texts alone"
        text = f"a classification head takes rows with texts and a label, not {kind}; use instruction"
        yield Contradiction((key("format"), "model.head"), text)
    elif data.choices is None:
        text = "a classification head needs data.choices, the names of the labels in the order of their numbers"
        yield Contradiction(("data.choices", "model.head"), text)
    if data.template in TEMPLATES and data.template != "plain":
        text = f"{data.template} asks for an answer in words, which a classification head does not give; use plain"
        yield Contradiction((key("template"), "model.head"), text)
    if data.train_on != "all":
        text = "a classification head has no turns to choose from; use all"
        yield Contradiction((key("train_on"), "model.head"), text)
    if data.prompt_pair == data.prompt:
        text = f"both texts of a pair come from the column {data.prompt!r}; name another one, or null for one text"
        yield Contradiction((key("prompt_pair"), key("prompt")), text)
