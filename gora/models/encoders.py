"""What a model is made for by its configuration, and what encoders and classifiers take."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PreTrainedConfig,
)

from gora.errors import InputError
from gora.models.positions import positions_of
from gora.models.vision import image_head_of


def make_classifier(name: str, config: PreTrainedConfig, labels: Sequence[str] | None) -> None:
    """Give the configuration its labels, and everything else that transformers would otherwise guess later.

    Raises:
        InputError: the model cannot have a classification head.
    """
    if config.is_encoder_decoder:
        raise InputError(
            f"model {name!r} is an encoder-decoder, which answers with the texts of data.choices: "
            "give model.head: language."
        )
    has_code = "AutoModelForSequenceClassification" in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING and not has_code:
        raise InputError(f"model {name!r} ({config.model_type}) has no form for classification in transformers.")
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = "single_label_classification"


def refuse_encoder(name: str, config: PreTrainedConfig) -> None:
    """An encoder that fills masks sees the tokens that it would be trained to predict.

    Raises:
        InputError: the model is one.
    """
    made_for = (config.architectures or [""])[0]
    if made_for.endswith("ForMaskedLM") and not config.is_encoder_decoder and not getattr(config, "is_decoder", False):
        raise InputError(
            f"model {name!r} is an encoder ({made_for}), which cannot continue a text. For labels give "
            "model.head: classification and data.choices."
        )


def refuse_no_language_model(name: str, config: PreTrainedConfig) -> None:
    """Refuse a model that transformers has no class for that continues texts, or answers them.

    Raises:
        InputError: the model is one, saying what it is instead.
    """
    kind = "encoder-decoder" if config.is_encoder_decoder else "causal"
    known = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) in known or getattr(config, "auto_map", None):
        return
    if (head := image_head_of(config)) is not None:
        raise InputError(
            f"model {name!r} ({config.model_type}) sees images and writes no text. To tell classes apart give "
            f"model.head: {head} and data.format: image (docs/images.md)."
        )
    senses = type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING
    instead = ", only one that reads images or sound as well as text" if senses else ""
    raise InputError(
        f"model {name!r} is of the type {config.model_type}, for which transformers has no {kind} language model"
        f"{instead}. Name a language model, such as the one that it was made from."
    )


def knows_token_types(config: PreTrainedConfig) -> bool:
    """Whether the model tells the texts of a pair apart by types of tokens; RoBERTa has one type only."""
    return bool(getattr(config, "type_vocab_size", 2) > 1)


def longest_input(model: nn.Module) -> int | None:
    """The most tokens that the model's positions allow; None where nothing says so.

    RoBERTa and its kin begin to count behind the padding token's id.
    """
    positions = positions_of(model.config)  # type: ignore[arg-type]
    if positions is None:
        return None
    tables = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
    first = [module.padding_idx for module in tables if isinstance(module, nn.Embedding)]
    return positions - max((index + 1 for index in first if index is not None), default=0)
