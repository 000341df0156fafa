"""The model's own preparation of images, by Pillow: the same pixels on every machine, with or without torchvision."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

from gora.errors import InputError
from gora.models.source import Source
from gora.models.tokenizer import load_tokenizer
from gora.recipe.schema import ModelSection

if TYPE_CHECKING:
    from PIL.Image import Image

FILE = "preprocessor_config.json"
_FILES = (FILE, "processor_config.json")
_TRIED = ((40, 30), (30, 40))
_ROUNDING = 2e-6


@dataclass(frozen=True)
class ImageReader:
    """Turns pictures into what a model is given.

    Attributes:
        processor: of transformers.
        tokenizer: of a model that compares images with texts.
    """

    processor: Any
    tokenizer: PreTrainedTokenizerBase | None = None

    def pixels(self, picture: Image) -> Tensor:
        """What a model is given of an RGB picture: float32, channels x height x width, as many for every picture."""
        made = self.processor(picture, return_tensors="np")["pixel_values"][0]
        return torch.from_numpy(np.ascontiguousarray(made, dtype=np.float32))

    def stored(self, picture: Image) -> Tensor:
        """The same before it is brought to the model's scale, as bytes (uint8), a fourth of the size; see `scaled`.

        Where the processor does more than rescale and normalise, it is `pixels`.
        """
        if not self._scales_last:
            return self.pixels(picture)
        return torch.from_numpy(np.ascontiguousarray(self._cut(picture)))

    def scaled(self, stored: Tensor) -> Tensor:
        """`pixels` of what `stored` made, on whichever device: (images x) channels x height x width."""
        if stored.dtype != torch.uint8:
            return stored
        mean, std = (
            torch.tensor(values, device=stored.device).view(-1, 1, 1)
            for values in (self.processor.image_mean, self.processor.image_std)
        )
        return (stored.float() * self.processor.rescale_factor - mean) / std

    @cached_property
    def _scales_last(self) -> bool:
        """Whether bytes are all that has to be kept of a picture: seen on one of noise."""
        import PIL.Image

        noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        picture = PIL.Image.fromarray(noise)
        if not (getattr(self.processor, "do_rescale", False) and getattr(self.processor, "do_normalize", False)):
            return False
        cut, whole = self._cut(picture), self.pixels(picture)
        if cut.dtype != np.uint8 or cut.shape != tuple(whole.shape):
            return False
        return bool((self.scaled(torch.from_numpy(cut)) - whole).abs().max() < _ROUNDING)

    def _cut(self, picture: Image) -> Any:
        return self.processor(picture, return_tensors="np", do_rescale=False, do_normalize=False)["pixel_values"][0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what it makes."""
        import PIL.Image

        shape = self.pixels(PIL.Image.new("RGB", _TRIED[0])).shape
        return shape[1], shape[2]

    def save_pretrained(self, folder: str) -> None:
        """Write what others load it from."""
        self.processor.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


def take_stored(model: PreTrainedModel, reader: ImageReader) -> None:
    """Let a model be given images as `ImageReader.stored` makes them, besides those that are scaled already."""
    forward = model.forward

    def scaling(self: PreTrainedModel, pixel_values: Tensor, **inputs: Any) -> Any:
        return forward(pixel_values=reader.scaled(pixel_values), **inputs)

    model.forward = MethodType(scaling, model)  # type: ignore[method-assign]


Processor = PreTrainedTokenizerBase | ImageReader
"""What makes inputs of rows."""


def load_image_reader(settings: ModelSection, source: Source, folder: Path | None = None) -> ImageReader:
    """Load the image processor of a model, and the tokenizer where the model reads texts as well.

    Args:
        settings: the recipe's section.
        source: the model.
        folder: an adapter's, whose own files come first.

    Raises:
        InputError: there is none, it cannot be read, or it makes images of different sizes.
    """
    own = folder is not None and any((folder / name).is_file() for name in _FILES)
    path = str(folder) if own else source.path
    arguments: dict[str, Any] = {"trust_remote_code": source.trust_remote_code, "backend": "pil"}
    if source.revision is not None and not own:
        arguments["revision"] = source.revision
    try:
        processor = AutoImageProcessor.from_pretrained(path, **arguments)
    except Exception as error:  # a configuration can be wrong in any way
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"model {settings.name!r}: its image processor ({FILE}) cannot be loaded: {first.rstrip('.')}. Download "
            "the whole model again."
        ) from None
    tokenizer = None
    if source.head == "image-zero-shot":
        if folder is not None and (folder / "tokenizer_config.json").is_file():
            settings = settings.model_copy(update={"tokenizer": str(folder)})
        tokenizer = load_tokenizer(settings, source)
    reader = ImageReader(processor, tokenizer)
    _refuse_different_sizes(settings.name, reader)
    return reader


def _refuse_different_sizes(name: str, reader: ImageReader) -> None:
    import PIL.Image

    try:
        shapes = [tuple(reader.pixels(PIL.Image.new("RGB", size)).shape) for size in _TRIED]
    except Exception as error:  # a processor may want what another kind of model needs
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"model {name!r}: its image processor fails on a plain picture: {first}") from None
    if len(set(shapes)) > 1 or len(shapes[0]) != 3:
        shown = " and ".join(" x ".join(map(str, shape)) for shape in shapes)
        raise InputError(
            f"model {name!r}: its image processor makes images of different shapes ({shown}), which cannot share a "
            f"micro-batch. Set do_resize with a height and a width, or do_center_crop, in its {FILE}."
        )
