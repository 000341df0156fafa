"""What sets encoders and classifiers apart: what they are made for, and what they take."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedConfig

from gora.errors import InputError
from gora.models.positions import positions_of


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
