"""The model card of a run: written beside what was trained, from what the run's files say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gora import assets, manifest
from gora.adapters.serving import adapter_commands
from gora.data.instruction import TEMPLATES
from gora.errors import GoraError
from gora.files import read_json, write_text
from gora.methods import METHODS
from gora.plan import read_plan
from gora.recipe import load_recipe
from gora.recipe.image_rules import reads_images
from gora.recipe.schema import Recipe
from gora.recipe.sources import asked_as
from gora.report.card import BASE, CardFacts, card_text, on_hub
from gora.runs.decisions import read_decisions
from gora.runs.folder import RunFolder
from gora.runs.results import read_results
from gora.runtime.console import output

CARD = "README.md"
_HERE = "ADAPTER"
_OF_HEADS = {"image-classification": "image-classification", "image-zero-shot": "zero-shot-image-classification"}
_PIPELINES = {"SEQ_CLS": "text-classification", "SEQ_2_SEQ_LM": "text2text-generation"}


def write_card(folder: RunFolder) -> None:
    """Write the card beside what the run has trained, in place of an earlier one; the manifest does not list it.

    A card that cannot be made is no reason to lose what follows: the user is told.
    """
    trained = folder.trained
    # Where an earlier gora has sealed PEFT's own, another text would be taken for damage.
    if trained is None or CARD in manifest.listed(trained):
        return
    try:
        write_text(trained / CARD, make_card(folder))
    except GoraError as error:
        output.warn(f"{trained / CARD}, the model card, is not up to date: {error}")


def make_card(folder: RunFolder, *, place: str = _HERE, base: str | None = None) -> str:
    """The card of what a run has trained.

    Args:
        folder: the run's, which has an adapter or a model.
        place: what the card calls it, such as its name on the hub.
        base: what the card calls the base model; None is what the recipe calls it.

    Raises:
        InputError: a file of the run cannot be read.
    """
    recipe, trained = load_recipe(str(folder.recipe)).recipe, folder.trained
    assert trained is not None
    adapter, of_text = trained == folder.adapter, not reads_images(recipe.model.head)
    # The last name of a folder of this machine may well be that of another model on the hub.
    public = base or public_name(recipe.model.name)
    name, shared = public or Path(recipe.model.name).name, public is not None and on_hub(public)
    plan = read_plan(folder.plan) if METHODS[recipe.adapter.method].needs_plan and folder.plan.exists() else None
    return card_text(
        CardFacts(
            place=place,
            recipe=recipe,
            title=METHODS[recipe.adapter.method].title,
            base=name,
            base_on_hub=shared,
            pipeline=_OF_HEADS.get(recipe.model.head) or _pipeline(trained),
            prompt=_prompt(recipe),
            plan=plan,
            decisions=read_decisions(folder),
            results=read_results(folder),
            commands=adapter_commands(trained, place=place, base=name if shared else BASE)
            if adapter and of_text
            else [],
            adapter=adapter,
        )
    )


def public_name(model: str) -> str | None:
    """What others can call a base model: its name on the hub, or `builtin:NAME`; None for a folder of this machine."""
    if model.startswith(assets.BUILTIN):
        return model
    place = Path(model).expanduser()
    if place.is_relative_to(shipped := assets.folder("models").resolve()):
        return f"{assets.BUILTIN}{place.relative_to(shipped)}"
    return model if on_hub(model) and not place.exists() else None


def _pipeline(trained: Path) -> str:
    try:
        told: dict[str, Any] = read_json(trained / "adapter_config.json")
    except (OSError, ValueError):
        return "text-generation"
    return _PIPELINES.get(str(told.get("task_type")), "text-generation")


def _prompt(recipe: Recipe) -> str:
    data = asked_as(recipe.data)
    if recipe.model.head != "language" or data.format == "text":
        return ""
    if data.format == "chat":
        return "The chat template of the tokenizer: `tokenizer.apply_chat_template(messages)`."
    template = TEMPLATES.get(data.template, data.template).rstrip(" ")
    return f"The prompt that answers were trained on, where `{{prompt}}` is the question:\n\n```text\n{template}\n```"
