"""`gora init`: from a model and rows to a recipe that fits them, with a reason beside every line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers import MODEL_FOR_MASKED_LM_MAPPING, PreTrainedConfig

from gora.data.detect import Detected, detect
from gora.data.first_rows import first_rows, that_renders, token_lengths
from gora.data.sources import find_source
from gora.errors import InputError
from gora.files import write_text
from gora.models.source import Source, find_model
from gora.models.tokenizer import load_tokenizer
from gora.recipe import LoadedRecipe
from gora.recipe.commented import commented, put
from gora.recipe.load import parse_recipe
from gora.recipe.schema import ModelSection, SourceSection
from gora.runtime.quiet import quiet_libraries
from gora.stages.check import Checked, check

_LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
_MOST_HELD_OUT = 200
_TRAIN, _EVAL = ("train",), ("validation", "test")


_WHY = {
    "model.head": "an encoder with a head for labels",
    "data.eval": "a split of its own",
    "data.holdout": "rows set aside for the eval loss",
    "preset": "layers, rank, learning rate and sizes are decided by gora: gora recipes show FILE --complete",
}


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A recipe for a model and rows.

    Attributes:
        name: what the recipe is called, and its run folder: after the rows.
        text: YAML, commented.
        loaded: the recipe that it is, with the settings of the command line.
    """

    name: str
    text: str
    loaded: LoadedRecipe


@dataclass(frozen=True, kw_only=True)
class Written:
    """A recipe that was written, and what `gora check` says of it."""

    path: Path
    text: str
    checked: Checked


def propose(
    model: str,
    data: str,
    settings: Sequence[str] = (),
    *,
    name: str | None = None,
    begin: bool = False,
    trust_remote_code: bool = False,
) -> Proposal:
    """Look at a model's configuration and at the first rows, and write a recipe that fits both.

    Args:
        model: hub id or folder.
        data: file, pattern, folder or hub id of the rows.
        settings: `section.key=value`, which replace what was found.
        name: of the recipe; None is that of the rows.
        begin: see `load_recipe`.
        trust_remote_code: let the model run Python code of its own.

    Raises:
        InputError: the model or the rows cannot be used, it is not clear what the columns are, or a setting is wrong.
    """
    quiet_libraries()
    section, source = _found_model(model, trust_remote_code)
    tokenizer = load_tokenizer(section, source)
    train = _train_section(data, settings)
    found = find_source(train, _TRAIN)
    rows, count = first_rows(found, enough=20 * _MOST_HELD_OUT)
    detected = _detected(rows, found.name, settings, classifier=source.head == "classification")
    detected = that_renders(detected, data, rows, source.head, tokenizer)
    lengths = token_lengths(detected, data, rows, source.head, tokenizer)
    length, of_length = _max_length(lengths, source.config)
    values = _values(section, data, {**detected.data, "max_length": length}, _held_out(train, count, settings))
    why = {f"data.{key}": reason for key, reason in {**detected.why, "max_length": of_length}.items()}
    for setting in settings:
        put(values, setting)
    name = name or _name(data)
    loaded = parse_recipe(commented(values, why | _WHY), f"{name}.yaml", settings, begin=begin)
    return Proposal(name=name, text=commented(values, why | _WHY), loaded=loaded)


def write_proposal(
    model: str,
    data: str,
    settings: Sequence[str] = (),
    *,
    destination: Path | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Written:
    """Write the recipe that `propose` makes to a file, and look at it as `gora check` does.

    Args:
        model, data, settings, trust_remote_code: see `propose`.
        destination: the file; None is one in this folder, called after the rows.
        overwrite: replace it if it exists.

    Raises:
        InputError: as `propose`, or the file exists.
    """
    path = destination or Path(f"{_name(data)}.yaml")
    if path.is_dir():
        raise InputError(
            f"{path} is a folder. Give the name of the new file: --output {path / (_name(data) + '.yaml')}."
        )
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists. Add --overwrite to replace it, or name another file with --output.")
    if any(place.exists() and not place.is_dir() for place in path.absolute().parents):
        raise InputError(f"--output {path}: it lies below a file. Give a name in a folder.")
    made = propose(model, data, settings, name=path.stem, trust_remote_code=trust_remote_code)
    write_text(path, made.text)
    checked = check(made.loaded.recipe, trust_remote_code=trust_remote_code)
    return Written(path=path, text=made.text, checked=checked)


def _found_model(model: str, trust_remote_code: bool) -> tuple[ModelSection, Source]:
    """The model as one that writes text, or as an encoder with a head for labels."""
    section = ModelSection(name=model)
    classifier = section.model_copy(update={"head": "classification"})
    try:
        source = find_model(section, trust_remote_code=trust_remote_code, weights=False)
    except InputError:
        with suppress(InputError):
            return classifier, find_model(classifier, trust_remote_code=trust_remote_code, weights=False)
        raise
    if not _reads_only(source.config):
        return section, source
    return classifier, find_model(classifier, trust_remote_code=trust_remote_code, weights=False)


def _reads_only(config: PreTrainedConfig) -> bool:
    """Whether a model fills masks or tells labels; some of these could also be built as decoders."""
    if config.is_encoder_decoder or getattr(config, "is_decoder", False):
        return False
    made_for = str((config.architectures or [""])[0])
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING or made_for.endswith("ForSequenceClassification")


def _detected(rows: Sequence[dict[str, Any]], name: str, settings: Sequence[str], *, classifier: bool) -> Detected:
    """What fits the rows; columns that the user names are taken at their word."""
    named = {key for key, _, _ in (setting.partition("=") for setting in settings)}
    if named & {"data.format", "data.response", "data.messages", "data.text"}:
        return Detected(data={}, labels=classifier)
    return detect(rows, name, classifier=classifier)


def _max_length(lengths: Sequence[int], config: PreTrainedConfig) -> tuple[int, str]:
    """The least usual length that holds 99 rows in 100, and what it was taken from."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None) or _LENGTHS[-1]
    most = min(context, _LENGTHS[-1])
    if not lengths:
        return min(most, 1024), "tokens of the longest row"
    wanted = lengths[(len(lengths) - 1) * 99 // 100]
    chosen = next((length for length in _LENGTHS if wanted <= length <= most), most)
    return chosen, f"99 % of the first {len(lengths)} rows have at most {wanted} tokens"


def _values(model: ModelSection, data: str, found: Mapping[str, Any], held_out: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the recipe says, by section."""
    head = {} if model.head == "language" else {"head": model.head}
    return {
        "model": {"name": model.name, **head},
        "data": {"train": {"path": data}, **held_out, **found},
        "preset": "auto",
    }


def _train_section(data: str, settings: Sequence[str]) -> SourceSection:
    """The source of the rows, with what the user says of it, such as a subset."""
    values: dict[str, Any] = {"data": {"train": {"path": data}}}
    for setting in settings:
        if setting.startswith("data.train."):
            put(values, setting)
    try:
        return SourceSection.model_validate(values["data"]["train"])
    except ValidationError:
        # Which setting is wrong is said when the recipe is read.
        return SourceSection(path=data)


def _held_out(train: SourceSection, count: int, settings: Sequence[str]) -> dict[str, Any]:
    """Evaluation rows, unless the user names some: a split of their own where there is one, else a twentieth."""
    if any(setting.startswith(("data.eval", "data.holdout")) for setting in settings):
        return {}
    try:
        held = find_source(train.model_copy(update={"split": None, "max_rows": None}), _EVAL)
    except InputError:
        held = None
    if held is not None and held.identity() != find_source(train, _TRAIN).identity():
        subset = {"subset": train.subset} if train.subset else {}
        return {"eval": {"path": train.path, **subset, "max_rows": _MOST_HELD_OUT}}
    rows = min(_MOST_HELD_OUT, max(count // 20, min(count // 4, 8)))
    return {"holdout": rows} if rows else {}


def _name(data: str) -> str:
    """A name after the rows: the file's, or the last part of the folder or hub id."""
    stem = Path(data.removeprefix("builtin:")).name.partition(".")[0]
    folder = Path(data.removeprefix("builtin:")).parent.name
    name = folder if stem in ("train", "data", "rows") and folder else stem
    return "".join(character if character.isalnum() or character in "-_" else "-" for character in name) or "recipe"
