"""What the user names for an evaluation - a run, an adapter or a model - and where its parts lie."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftConfig
from pydantic import ValidationError

from gora.adapters.hub import NoAdapterThere, fetch_adapter, may_be_on_hub
from gora.adapters.load import head_of, read_base_note, verify_files
from gora.adapters.save import ADAPTER_NOTE
from gora.data.prompting import read_prompt_format
from gora.errors import InputError
from gora.files import read_json
from gora.models.hub_names import split_revision
from gora.models.vision import head_for
from gora.recipe import load_recorded
from gora.recipe.schema import DataSection, Head, ModelSection, Recipe
from gora.runs.folder import RunFolder
from gora.runs.state import find_progress


@dataclass(frozen=True, kw_only=True)
class Named:
    """Where the parts of a subject lie.

    Attributes:
        name: what results call it.
        model: the base model, or the model itself.
        adapter: PEFT's folder, or None.
        base: the model without what was trained: the same as `model` where there is an adapter.
        prompt_format: how rows became text in training; None is the tokenizer's own way.
        run: the folder of the run that made it, if the user named one.
        recipe: that run's.
    """

    name: str
    model: ModelSection
    adapter: Path | None
    base: ModelSection | None
    prompt_format: DataSection | None
    run: RunFolder | None = None
    recipe: Recipe | None = None

    @property
    def folder(self) -> RunFolder:
        """Where results go unless the user says otherwise."""
        return self.run or RunFolder(Path("runs") / f"eval-{Path(self.name).name}")


def find_subject(reference: str) -> Named:
    """Look at what the user named.

    Args:
        reference: a run folder; an adapter: a folder, or `ORG/NAME[@REVISION]` on the hub; or a model: a folder,
            a hub id with or without a revision, or `builtin:NAME`.

    Raises:
        InputError: it is a run that has not finished, or its files are damaged.
    """
    path = Path(reference).expanduser()
    if (path / "recipe.yaml").is_file():
        return _run(RunFolder(path))
    if (path / "adapter_config.json").is_file():
        return _adapter(path)
    if may_be_on_hub(reference):
        # What is no adapter there is taken for a model.
        with suppress(NoAdapterThere):
            return replace(_adapter(fetch_adapter(reference)), name=reference)
    if path.is_dir():
        verify_files(path)
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(
            f"{reference} is neither a run (recipe.yaml), nor an adapter (adapter_config.json), nor a model "
            "(config.json)."
        )
    prompt_format = _read_prompt_format(path / ADAPTER_NOTE) if path.is_dir() else None
    name, revision = split_revision(reference)
    return Named(
        name=reference,
        model=ModelSection(name=name, revision=revision, head=_head(path)),
        adapter=None,
        base=None,
        prompt_format=prompt_format,
    )


def _run(folder: RunFolder) -> Named:
    recipe = load_recorded(folder.recipe)
    name, progress = str(folder.path), find_progress(folder)
    if progress.trained is None:
        raise InputError(
            f"{folder.path} is a run without a whole adapter or model ({progress.state.name.lower()}). Finish it with "
            "`gora run --resume`.",
            progress.damage,
        )
    if progress.trained == folder.adapter:
        found = _adapter(folder.adapter)
        # The adapter says what its base was; the recipe, how attention and kernels were chosen.
        model = recipe.model.model_copy(update={"dtype": found.model.dtype})
        return Named(
            name=name,
            model=model,
            adapter=folder.adapter,
            base=model,
            prompt_format=recipe.data,
            run=folder,
            recipe=recipe,
        )
    model = recipe.model.model_copy(update={"name": str(folder.model), "revision": None, "tokenizer": None})
    return Named(
        name=name,
        model=model,
        adapter=None,
        base=recipe.model,
        prompt_format=recipe.data,
        run=folder,
        recipe=recipe,
    )


def _adapter(path: Path) -> Named:
    verify_files(path)
    try:
        config = PeftConfig.from_pretrained(str(path))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path / 'adapter_config.json'} cannot be read: {error}") from None
    if not config.base_model_name_or_path:
        raise InputError(f"{path} does not name its base model (base_model_name_or_path).")
    origin = read_base_note(path)
    settings: dict[str, Any] = {
        "name": config.base_model_name_or_path,
        "revision": config.revision,
        "head": head_of(config),
    }
    if origin:
        # Of other formats the checkpoint says so itself.
        quantization = origin.quantization if origin.quantization in ("nf4", "int8") else None
        settings |= {"dtype": origin.dtype, "quantization": quantization}
    model = ModelSection(**settings)
    return Named(
        name=str(path), model=model, adapter=path, base=model, prompt_format=_read_prompt_format(path / ADAPTER_NOTE)
    )


def _head(folder: Path) -> Head:
    """What a model in a folder has on top; one on the hub is taken for a language model."""
    try:
        kinds = list(read_json(folder / "config.json").get("architectures") or [])
    except (OSError, ValueError, TypeError, AttributeError):
        return "language"
    if any(str(kind).endswith("ForSequenceClassification") for kind in kinds):
        return "classification"
    return next((head for kind in kinds if (head := head_for(str(kind)))), "language")


def _read_prompt_format(note: Path) -> DataSection | None:
    if not note.is_file():
        return None
    try:
        content = read_json(note)
        # The second name is that of adapters from before 0.1.0.
        prompt_format = content.get("prompt_format") or content.get("form")
        return read_prompt_format(prompt_format) if prompt_format else None
    except (OSError, ValueError, TypeError, AttributeError, ValidationError) as error:
        raise InputError(f"{note} cannot be read: {error}") from None
