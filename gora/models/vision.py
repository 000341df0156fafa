"""Vision models: which of them can have a head for classes, and which part of them sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PreTrainedConfig,
)

from gora.errors import InputError

_TWO_TOWERS = ("CLIPModel", "SiglipModel", "MetaClip2Model")
_COMPARING = ("clip", "siglip", "metaclip_2")
_CLASSIFIER = "ForImageClassification"
_TOWER = "vision_model"
# DeiT's second head learns from a teacher, and its class computes no loss.
_WITH_TEACHER = "WithTeacher"


def is_two_towers(model: nn.Module) -> bool:
    """Whether a model compares images with texts, each by a tower of its own, as CLIP and SigLIP do."""
    return type(model).__name__ in _TWO_TOWERS


def sees_images(model: nn.Module) -> bool:
    """Whether a model that is not wrapped is given images alone."""
    return is_two_towers(model) or type(model).__name__.endswith(_CLASSIFIER)


def head_for(base_class: str) -> Literal["image-classification", "image-zero-shot"] | None:
    """The head of a model of transformers, by the name of its class; None where it sees no images."""
    if base_class in _TWO_TOWERS:
        return "image-zero-shot"
    return "image-classification" if base_class.endswith(_CLASSIFIER) else None


def image_head_of(config: PreTrainedConfig) -> Literal["image-classification", "image-zero-shot"] | None:
    """The head that a vision model would be trained with; None for other models."""
    if config.model_type in _COMPARING:
        return "image-zero-shot"
    return "image-classification" if type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING else None


def in_vision(model: nn.Module) -> Callable[[str], bool]:
    """Whether a module, by its name, belongs to the tower that sees, of a model with two towers."""
    return lambda name: name == _TOWER or name.startswith(f"{_TOWER}.")


def make_image_classifier(name: str, config: PreTrainedConfig, labels: Sequence[str] | None) -> None:
    """Give the configuration its classes, and the kind of their loss.

    Raises:
        InputError: the model cannot classify images.
    """
    _refuse_vision_language(name, config)
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise InputError(
            f"model {name!r} ({config.model_type}) has no form for image classification in transformers. Name a "
            "vision model, such as a ViT, DINOv2, Swin or ConvNeXt."
        )
    config.architectures = [each.removesuffix(_WITH_TEACHER) for each in config.architectures or []]
    _name_classes(config, labels)
    config.problem_type = "single_label_classification"


def make_zero_shot(name: str, config: PreTrainedConfig, labels: Sequence[str] | None) -> None:
    """Give the configuration its classes.

    Raises:
        InputError: the model does not compare images with texts.
    """
    _refuse_vision_language(name, config)
    if config.model_type not in _COMPARING:
        raise InputError(
            f"model {name!r} ({config.model_type}) is not a CLIP or a SigLIP, which image-zero-shot needs. For other "
            "vision models give model.head: image-classification."
        )
    _name_classes(config, labels)


def _refuse_vision_language(name: str, config: PreTrainedConfig) -> None:
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise InputError(
            f"model {name!r} ({config.model_type}) is a vision-language model, which writes text about images. gora "
            "does not train those on images: image heads are for models that classify them (ViT, DINOv2, Swin, "
            "ConvNeXt, CLIP, SigLIP)."
        )


def _name_classes(config: PreTrainedConfig, labels: Sequence[str] | None) -> None:
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
