"""What pydantic found wrong, told in sentences that name what was expected and what was probably meant."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from math import isfinite
from typing import Any

from gora.recipe.data_schema import SOURCE, SOURCES
from gora.recipe.document import KeyPath, dotted
from gora.recipe.schema import Recipe

ITEM = "#"
"""In paths of known keys: any item of a list of sections, which has its index in a document."""

# Names of other toolkits for what a recipe calls otherwise.
FOREIGN_NAMES = {
    "adam_beta1": "train.beta1",
    "adam_beta2": "train.beta2",
    "adam_epsilon": "train.epsilon",
    "attn_implementation": "model.attention",
    "base_model": "model.name",
    "cutoff_len": "data.max_length",
    "dataset": "data.train.path",
    "eval_steps": "evaluation.steps",
    "exclude_modules": "adapter.exclude",
    "gradient_checkpointing": "train.activation_checkpointing",
    "logging_steps": "train.log_steps",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "lora_r": "adapter.rank",
    "lora_rank": "adapter.rank",
    "lr": "train.learning_rate",
    "lr_scheduler_type": "train.schedule",
    "max_seq_length": "data.max_length",
    "model_name_or_path": "model.name",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "output_dir": "output",
    "per_device_eval_batch_size": "evaluation.micro_batch_size",
    "per_device_train_batch_size": "train.micro_batch_size",
    "r": "adapter.rank",
    "save_total_limit": "train.keep_checkpoints",
    "target_modules": "adapter.targets",
    "torch_dtype": "model.dtype",
}


@dataclass(frozen=True)
class Key:
    """What the schema says of one key: its JSON schema, and whether it is a section, may be null and must be given."""

    schema: dict[str, Any]
    section: bool
    nullable: bool
    required: bool


@cache
def known_keys() -> dict[KeyPath, Key]:
    """Every key of a recipe, sections before what they hold."""
    whole = Recipe.model_json_schema()
    keys: dict[KeyPath, Key] = {}

    def walk(section: dict[str, Any], path: KeyPath) -> None:
        for name, schema in section["properties"].items():
            kinds = list(_kinds(schema))
            inner = next((defined(kind) for kind in kinds if "$ref" in kind), None)
            nullable = {"type": "null"} in kinds
            keys[*path, name] = Key(schema, inner is not None, nullable, name in section.get("required", ()))
            if inner:
                walk(inner, (*path, name))
            item = next((kind["items"] for kind in kinds if "$ref" in kind.get("items", ())), None)
            if item:
                keys[*path, name, ITEM] = Key(item, section=True, nullable=False, required=False)
                walk(defined(item), (*path, name, ITEM))

    def defined(reference: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = whole["$defs"][reference["$ref"].rpartition("/")[2]]
        return found

    walk(whole, ())
    return keys


def _kinds(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The branches of a schema."""
    branches = schema.get("anyOf") or schema.get("oneOf")
    for branch in branches or ():
        yield from _kinds(branch)
    if not branches:
        yield schema


def known_key(path: KeyPath) -> Key | None:
    """What the schema says of a key of a document, whose items of lists are numbers."""
    return known_keys().get(_as_known(path))


def _as_known(path: KeyPath) -> KeyPath:
    return tuple(ITEM if part.isdecimal() else part for part in path)


def key_path(location: Sequence[str | int]) -> KeyPath:
    """The part of a pydantic location that names keys, without branches of unions and indexes of lists of values."""
    path: KeyPath = ()
    for part in location:
        key = known_key(path)
        is_item = isinstance(part, int) and (*_as_known(path), ITEM) in known_keys()
        if path and not is_item and not (key and key.section):
            break
        if not (part in (SOURCE, SOURCES) and (*_as_known(path), ITEM) in known_keys()):
            path = (*path, str(part))
    return path


def explain(path: KeyPath, value: Any, errors: Sequence[Any]) -> tuple[str, tuple[KeyPath, ...]]:
    """One sentence for all that pydantic says about one key, and the known keys that an unknown one may stand for.

    Args:
        path: the key.
        value: its value, as it was written.
        errors: pydantic's details, of which a union has several.
    """
    key = known_key(path)
    if key is None:
        return _unknown(path)
    schema = key.schema
    about = schema.get("description", "")
    if errors[0]["type"] == "missing":
        return _with(f"missing; expected {expected(schema)}", about), ()
    if key.section:
        several = ", or a list of them" if (*path, ITEM) in known_keys() else ""
        return f"expected a section with keys such as {_names(path)[0]!r}{several}, got {_shown(value)}", ()
    item = next((error["loc"][-1] for error in errors if isinstance(error["loc"][-1], int)), None)
    where = f" (item {item + 1} is {_shown(value[item])})" if item is not None else ""
    hint = _hint(schema, value if item is None else value[item])
    return _with(f"expected {expected(schema)}, got {_shown(value)}{where}{hint}", about), ()


def expected(schema: dict[str, Any]) -> str:
    """A JSON schema in plain words: `a whole number greater than 0, or 'auto'`."""
    if "anyOf" in schema or "oneOf" in schema:
        return ", or ".join(expected(branch) for branch in _kinds(schema))
    choices = _choices(schema)
    if choices:
        return " or ".join(filter(None, [", ".join(map(repr, choices[:-1])), repr(choices[-1])]))
    if schema.get("type") == "array":
        least = f" (at least {schema['minItems']})" if "minItems" in schema else ""
        return f"a list of {expected(schema['items'])}{least}"
    if "pattern" in schema and "examples" in schema:
        return f"text such as {schema['examples'][0]!r}"
    words = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
    return words.get(schema.get("type", ""), schema.get("type", "a section")) + _range(schema)


def _with(text: str, about: str) -> str:
    """The sentence, and the field's description after it."""
    return f"{text}{'' if text.endswith('?') else '.'} {about}".rstrip()


def _range(schema: dict[str, Any]) -> str:
    words = {
        "exclusiveMinimum": "greater than",
        "minimum": "at least",
        "maximum": "at most",
        "exclusiveMaximum": "less than",
    }
    bounds = [f"{word} {schema[name]}" for name, word in words.items() if name in schema]
    return f" {' and '.join(bounds)}" if bounds else ""


def _choices(schema: dict[str, Any]) -> list[str]:
    nested = [choice for branch in schema.get("anyOf", ()) for choice in _choices(branch)]
    return nested or schema.get("enum", [schema["const"]] if "const" in schema else [])


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, float) and not isfinite(value):
        return "a number that is not finite"
    text = f"[{', '.join(map(_shown, value))}]" if isinstance(value, list) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _hint(schema: dict[str, Any], value: Any) -> str:
    """What to do about a slip that is easily recognised."""
    words = expected(schema)
    near = get_close_matches(value, _choices(schema), n=1) if isinstance(value, str) else []
    if near:
        return f"; did you mean {near[0]!r}?"
    if isinstance(value, str) and "number" in words and _is_number(value.replace("_", "")):
        return "; write a number without quotes and underscores"
    if isinstance(value, str) and "number" in words and (slip := _slip_in_number(value)):
        return f"; {slip}"
    if "text" in words and isinstance(value, int | float):
        return "; put quotes around text that looks like a number, true or false"
    if "text" in words and isinstance(value, dict):
        return "; put quotes around text with braces or with a colon and a space"
    return ""


def _slip_in_number(text: str) -> str | None:
    """What makes a text no number that looks like one; None where nothing of it does."""
    if not any(character.isdigit() for character in text):
        return None
    if odd := next((character for character in text if not character.isascii()), None):
        return f"{odd!r} in it is {unicodedata.name(odd, 'a character')}, which no number has: type it again"
    return "write a decimal point instead of the comma" if _is_number(text.replace(",", ".")) else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _unknown(path: KeyPath) -> tuple[str, tuple[KeyPath, ...]]:
    name = path[-1]
    plain = name.lower().replace("-", "_")
    spread = (*path[:-1], *name.split("."))
    if spread != path and known_key(spread):
        return f"unknown key {name!r}; a key has no dots: write {_there(spread)}", (spread,)
    if spread != path and _names(spread[:-1]):
        return _unknown(spread)
    elsewhere = tuple(known for known in _named_keys() if known[-1] == plain and known[:-1] != path[:-1])
    if elsewhere and plain not in _names(path[:-1]):
        return f"unknown key {name!r}; {plain!r} belongs {_sections(elsewhere)}", elsewhere
    if plain in FOREIGN_NAMES:
        known: KeyPath = tuple(FOREIGN_NAMES[plain].split("."))
        return f"unknown key {name!r}; here it is {_there(known)}", (known,)
    near = get_close_matches(plain, _names(path[:-1]), n=1)
    if near:
        return f"unknown key {name!r}; did you mean {near[0]!r}?", ((*path[:-1], near[0]),)
    far = get_close_matches(plain, {known[-1] for known in _named_keys()}, n=1, cutoff=0.75)
    if far:
        likely = tuple(known for known in _named_keys() if known[-1] == far[0])
        return f"unknown key {name!r}; did you mean {far[0]!r}, which belongs {_sections(likely)}?", likely
    return f"unknown key {name!r}; known here: {', '.join(_names(path[:-1]))}", ()


def _names(section: KeyPath) -> list[str]:
    return [known[-1] for known in known_keys() if known[:-1] == _as_known(section) and known[-1] != ITEM]


def _named_keys() -> list[KeyPath]:
    """The keys that are not those of a list's items."""
    return [known for known in known_keys() if ITEM not in known]


def _there(path: KeyPath) -> str:
    return f"{path[-1]!r} {_sections([path])}"


def _sections(paths: Sequence[KeyPath]) -> str:
    """`under 'gora:' or under 'evaluation:'`."""
    return " or ".join(f"under '{dotted(path[:-1])}:'" if len(path) > 1 else "at the top level" for path in paths)
