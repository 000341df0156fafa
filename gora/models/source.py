"""Find a base model on the hub, in a folder, or in what ships with gora: its configuration, and nothing else yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForZeroShotImageClassification,
    PreTrainedConfig,
)

from gora import assets
from gora.models.checkpoint_files import (
    check_config,
    check_weights,
    refuse_code_of_others,
    refuse_files_elsewhere,
    refuse_what_is_no_checkpoint,
)
from gora.models.encoders import make_classifier, refuse_encoder, refuse_no_language_model
from gora.models.load_errors import explained
from gora.models.quantization import refuse_unreadable, stored_quantization
from gora.models.vision import make_image_classifier, make_zero_shot
from gora.recipe.schema import Head, ModelSection

_FAMILIES: dict[Head, Any] = {
    "classification": AutoModelForSequenceClassification,
    "image-classification": AutoModelForImageClassification,
    "image-zero-shot": AutoModelForZeroShotImageClassification,
}
_PREPARE = {
    "classification": make_classifier,
    "image-classification": make_image_classifier,
    "image-zero-shot": make_zero_shot,
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a base model lies and whether its own code may run."""

    path: str
    """Hub id or folder."""
    revision: str | None
    trust_remote_code: bool
    config: PreTrainedConfig
    """For a classifier, with the names of its labels."""
    head: Head = "language"
    asks_for_flash: bool = False
    """Whether its configuration names FlashAttention, which transformers would fetch from the hub where it is not."""

    @property
    def encoder_decoder(self) -> bool:
        """Whether the prompt goes to an encoder and the response to a decoder."""
        return bool(self.config.is_encoder_decoder)

    @property
    def draws_head(self) -> bool:
        """Whether it has a head for its labels, which is drawn where the checkpoint lacks it, and trained."""
        return self.head in ("classification", "image-classification")

    @property
    def causal(self) -> bool:
        """Whether it is a decoder that predicts tokens, each from those before it alone."""
        return self.head == "language" and not self.encoder_decoder

    @property
    def quantized_files(self) -> bool:
        """Whether the model's files hold its weights quantised."""
        return stored_quantization(self.config) is not None

    @property
    def family(self) -> Any:
        """The class of transformers that loads it."""
        if self.head in _FAMILIES:
            return _FAMILIES[self.head]
        return AutoModelForSeq2SeqLM if self.encoder_decoder else AutoModelForCausalLM


def find_model(
    settings: ModelSection,
    *,
    labels: Sequence[str] | None = None,
    trust_remote_code: bool = False,
    weights: bool = True,
) -> Source:
    """Read a model's configuration, and nothing else yet.

    Args:
        settings: the recipe's section.
        labels: names of a classifier's labels; None keeps those of the model.
        trust_remote_code: let the model bring Python code of its own.
        weights: whether its weights have to be there.

    Raises:
        InputError: there is no such model, files of it are missing or broken, it needs code of its own and
            `trust_remote_code` is off, a package is missing that its format needs, or it cannot have the head that is
            asked for.
    """
    path = assets.resolve(settings.name, "models")
    if (place := Path(path).expanduser()).exists():
        # The adapter names its base by this path, from whichever folder it is used later.
        path = str(place.resolve())
        refuse_what_is_no_checkpoint(settings.name, place.resolve())
        check_config(place)
    arguments: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if settings.revision is not None:
        arguments["revision"] = settings.revision
    try:
        config = AutoConfig.from_pretrained(path, **arguments)
    except Exception as error:  # a configuration can be wrong in any way
        raise explained(settings.name, path, error) from None
    _refuse_what_leaves_the_folder(settings, path, arguments)
    if place.exists() and weights:
        check_weights(settings.name, place)
    refuse_unreadable(settings, config)
    if settings.head in _PREPARE:
        _PREPARE[settings.head](settings.name, config, labels)
    else:
        refuse_encoder(settings.name, config)
        refuse_no_language_model(settings.name, config)
    return Source(
        path=path,
        revision=settings.revision,
        trust_remote_code=trust_remote_code,
        config=config,
        head=settings.head,
        asks_for_flash=str(config._attn_implementation).startswith("flash"),
    )


def _refuse_what_leaves_the_folder(settings: ModelSection, path: str, arguments: dict[str, Any]) -> None:
    document, _ = PreTrainedConfig.get_config_dict(path, **arguments)
    refuse_files_elsewhere(settings.name, document)
    if not arguments["trust_remote_code"]:
        refuse_code_of_others(settings.name, document)
