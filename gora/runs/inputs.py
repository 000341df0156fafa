"""What a run reads: its rows as examples, and what makes inputs of them. Here a recipe is one of text or of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gora.data import Collator, ImageCollator, LabelCollator, PreparedData, named_template, padding_id, prepare
from gora.data.image_preparation import class_names, prepare_images
from gora.data.unknown import refuse_unknown_words
from gora.errors import InputError
from gora.models.encoders import knows_token_types, longest_input
from gora.models.head import settle_padding
from gora.models.image_processor import ImageReader, Processor, load_image_reader, take_stored
from gora.models.new_tokens import embedding_rows
from gora.models.source import Source
from gora.models.tokenizer import load_tokenizer
from gora.models.zero_shot import use_classes
from gora.recipe.derived import with_settings
from gora.recipe.image_rules import reads_images
from gora.recipe.schema import Recipe
from gora.runtime.console import output
from gora.runtime.world import World

AnyCollator = Collator | LabelCollator | ImageCollator


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a recipe's rows are.

    Attributes:
        source: the base model, found and not loaded.
        data: training and evaluation examples.
        collator: makes micro-batches of them.
        processor: what makes inputs of rows, as it will be saved with the adapter.
    """

    of_text: ClassVar[bool]

    source: Source
    data: PreparedData
    collator: AnyCollator
    processor: Processor

    @property
    def padding(self) -> int:
        """The id that pads inputs; 0 where nothing is padded."""
        return 0

    @property
    def text_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of rows of text."""
        raise TypeError("images have no tokenizer")

    def fit(self, model: PreTrainedModel) -> None:
        """Tell a loaded model what it needs to know of the rows; raises InputError where it cannot take them."""
        raise NotImplementedError

    def collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A micro-batch, padded where that is needed."""
        return self.collator(rows)


@dataclass(frozen=True, kw_only=True)
class TextInputs(Inputs):
    """Tokens."""

    of_text: ClassVar[bool] = True

    collator: Collator | LabelCollator
    processor: PreTrainedTokenizerBase

    @property
    def padding(self) -> int:
        """See `Inputs`."""
        return self.collator.pad_token_id

    @property
    def text_tokenizer(self) -> PreTrainedTokenizerBase:
        """See `Inputs`."""
        return self.processor

    def fit(self, model: PreTrainedModel) -> None:
        """See `Inputs`."""
        settle_padding(model, self.padding)
        sets = [self.data.train] + ([self.data.eval] if self.data.eval else [])
        largest = max(rows.largest_id for rows in sets)
        vocabulary = embedding_rows(model)
        if vocabulary is not None and largest >= vocabulary:
            raise InputError(
                f"model.tokenizer makes token ids up to {largest:,}, but the model has {vocabulary:,} embeddings. "
                "Name the model's own tokenizer, or the tokens that are new with model.new_tokens."
            )
        if vocabulary is not None and self.padding >= vocabulary:
            raise InputError(
                f"The padding token has the id {self.padding:,}, but the model has {vocabulary:,} "
                "embeddings. Set `pad_token` in tokenizer_config.json to a token that the model knows."
            )
        longest = max([self.data.longest, *(max(rows.lengths) for rows in sets)])
        positions = longest_input(model)
        if positions is not None and longest > positions and not self.source.encoder_decoder:
            raise InputError(
                f"data.max_length: the longest row has {longest:,} tokens, but the model takes {positions:,}."
            )


@dataclass(frozen=True, kw_only=True)
class ImageInputs(Inputs):
    """Pixels.

    Attributes:
        prompts: `data.class_prompts`.
    """

    of_text: ClassVar[bool] = False

    collator: ImageCollator
    processor: ImageReader
    prompts: Sequence[str]

    def fit(self, model: PreTrainedModel) -> None:
        """See `Inputs`."""
        fit_images(model, self.processor, self.data.train.choices, self.prompts)


def fit_images(model: PreTrainedModel, reader: ImageReader, names: Sequence[str], prompts: Sequence[str]) -> None:
    """Let a loaded model take images as they are read, and give a zero-shot classifier its classes."""
    if reader.tokenizer is not None:
        use_classes(model, reader.tokenizer, names, prompts)
    take_stored(model, reader)


def read_inputs(recipe: Recipe, source: Source, world: World) -> Inputs:
    """Read what a recipe trains on; all processes of a run ask together.

    Raises:
        InputError: the tokenizer, the image processor or the rows cannot be used.
    """
    return _images(recipe, source, world) if reads_images(source.head) else _text(recipe, source, world)


def with_class_names(recipe: Recipe, world: World) -> Recipe:
    """A recipe of images with the names of its classes, which the data know; all processes of a run ask together."""
    if not reads_images(recipe.model.head) or recipe.data.choices is not None:
        return recipe
    names: list[str] = []
    in_words = recipe.model.head == "image-zero-shot"
    world.refuse_together(lambda: names.extend(class_names(recipe.data, in_words=in_words)))
    return with_settings(recipe, {"data.choices": world.from_main(lambda: names)})


def _text(recipe: Recipe, source: Source, world: World) -> TextInputs:
    tokenizer = load_tokenizer(recipe.model, source)
    data = prepare(
        recipe.data,
        tokenizer,
        recipe.seed,
        encoder_decoder=source.encoder_decoder,
        say=output.warn,
        head=source.head,
        world=world,
        step_rows=recipe.train.batch_size,
    )
    refuse_unknown_words(tokenizer, data.train)
    if recipe.data.chat_template is not None:
        # Whoever uses the tokenizer that is saved with the adapter meets the template that was trained.
        tokenizer.chat_template = named_template(recipe.data.chat_template, tokenizer)[0]
    return TextInputs(source=source, processor=tokenizer, data=data, collator=_collator(tokenizer, source))


def _images(recipe: Recipe, source: Source, world: World) -> ImageInputs:
    reader = load_image_reader(recipe.model, source)
    data = prepare_images(recipe.data, reader.stored, recipe.seed, say=output.warn, world=world)
    return ImageInputs(
        source=source, processor=reader, data=data, collator=ImageCollator(), prompts=recipe.data.class_prompts
    )


def _collator(tokenizer: PreTrainedTokenizerBase, source: Source) -> Collator | LabelCollator:
    if source.head == "language":
        return Collator.of(tokenizer, source.encoder_decoder)
    if padding_id(tokenizer) is None:
        raise InputError(
            "The tokenizer has no padding token, without which texts of different lengths cannot share a batch. Name "
            "another one with `model.tokenizer`, or set `pad_token` in its tokenizer_config.json."
        )
    return LabelCollator(padding_id(tokenizer), knows_token_types(source.config))
