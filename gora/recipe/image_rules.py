"""Rules on recipes that train on images."""

from collections.abc import Iterator

from gora.recipe.contradiction import Contradiction, rule
from gora.recipe.data_schema import Head
from gora.recipe.schema import DataSection, Recipe
from gora.recipe.sources import SettledSource, sources_of

IMAGE_HEADS = ("image-classification", "image-zero-shot")
_CLASS = "{class}"


def reads_images(head: Head) -> bool:
    """Whether a model with such a head is given images."""
    return head in IMAGE_HEADS


@rule
def _images(recipe: Recipe) -> Iterator[Contradiction]:
    """Head and format go together, for every source."""
    sources = [*sources_of(recipe.data, "train"), *sources_of(recipe.data, "eval")]
    told = set()
    for source in sources:
        key = source.key_of("format")
        if key not in told and (found := _mismatch(recipe.model.head, source)):
            told.add(key)
            yield Contradiction((key, "model.head"), found)


def _mismatch(head: Head, source: SettledSource) -> str | None:
    found = source.data.format
    if reads_images(head) and found != "image":
        return f"head {head} takes images, and the format is {found}; use format: image"
    if not reads_images(head) and found == "image":
        return f"format image needs an image head, not {head}; use model.head: {' or '.join(IMAGE_HEADS)}"
    return None


@rule
def _text_settings(recipe: Recipe) -> Iterator[Contradiction]:
    """Settings of the model that are about text, or that no image head has."""
    model = recipe.model
    if not reads_images(model.head):
        return
    if model.quantization is not None:
        text = f"a base in {model.quantization} goes with head: language only; use null"
        yield Contradiction(("model.quantization", "model.head"), text)
    if model.new_tokens:
        yield Contradiction(("model.new_tokens", "model.head"), "images have no tokens of their own; leave it out")
    if model.tokenizer is not None and model.head == "image-classification":
        text = "an image classifier reads no text; leave the tokenizer out"
        yield Contradiction(("model.tokenizer", "model.head"), text)
    if recipe.adapter.experts:
        text = "experts are those of language models; set it to false"
        yield Contradiction(("adapter.experts", "model.head"), text)


@rule
def _class_prompts(recipe: Recipe) -> Iterator[Contradiction]:
    prompts = recipe.data.class_prompts
    if recipe.model.head == "image-classification" and prompts != DataSection.model_fields["class_prompts"].default:
        text = "texts of classes are for head: image-zero-shot; the head of a classifier is trained"
        yield Contradiction(("data.class_prompts", "model.head"), text)
    for prompt in prompts:
        if _CLASS not in prompt:
            text = f"{prompt[:60]!r} is the same for every class; write {_CLASS} where the name of the class goes"
            yield Contradiction(("data.class_prompts",), text)


@rule
def _names(recipe: Recipe) -> Iterator[Contradiction]:
    choices = recipe.data.choices or []
    if reads_images(recipe.model.head) and len(set(choices)) < len(choices):
        twice = next(name for name in choices if choices.count(name) > 1)
        yield Contradiction(("data.choices",), f"the class {twice!r} is named twice; every class has one name")
