"""Loading base models and tokenizers from the hub, a folder, or what ships with gora."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForZeroShotImageClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_flash_attn_2_available

from gora import assets
from gora.disk import FULL, advice_for, is_full
from gora.errors import GoraError, InputError
from gora.models.checkpoint_files import (
    check_config,
    check_tokenizer_files,
    check_weights,
    has_tokenizer_files,
    refuse_code_of_others,
    refuse_files_elsewhere,
    refuse_what_is_no_checkpoint,
)
from gora.models.encoders import make_classifier, refuse_encoder, refuse_no_language_model
from gora.models.head import in_head
from gora.models.quantization import (
    bytes_per_weight,
    loading_arguments,
    quantization_of,
    refuse_unreadable,
    settle_unpacked,
    stored_quantization,
)
from gora.models.tokenizer import add_new_tokens, check_tokenizer, embeddings_of, settle_padding_token
from gora.models.vision import make_image_classifier, make_zero_shot
from gora.models.zero_shot import hold_scalars
from gora.recipe.schema import Head, ModelSection
from gora.runtime.console import output
from gora.runtime.out_of_memory import is_out_of_memory

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
        raise _explained(settings.name, path, error) from None
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


def load_tokenizer(settings: ModelSection, source: Source) -> PreTrainedTokenizerBase:
    """Load the tokenizer the recipe names, else the model's own, with the recipe's new tokens.

    Raises:
        InputError: there is none, a file of it is broken, or it is not the model's.
    """
    name = settings.tokenizer or settings.name
    path = assets.resolve(settings.tokenizer, "models") if settings.tokenizer else source.path
    if (place := Path(path).expanduser()).is_dir():
        path = str(place)
        check_tokenizer_files(place)
    arguments: dict[str, Any] = {"trust_remote_code": source.trust_remote_code}
    if source.revision is not None and not settings.tokenizer:
        arguments["revision"] = source.revision
    try:
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(path, **arguments))
        # Some of what its settings say wrongly shows in use only.
        tokenizer("a")
    except Exception as error:  # the tokenizers library raises plain Exceptions
        if place.is_dir() and not has_tokenizer_files(place) and "trust_remote_code" not in str(error):
            raise InputError(
                f"model {name!r}: {place} holds no tokenizer (tokenizer.json, or the files that its class reads). "
                "Download the whole model again, or name a tokenizer with model.tokenizer."
            ) from None
        raise _explained(name, path, error) from None
    embeddings = embeddings_of(source.config)
    check_tokenizer(name, path, tokenizer, embeddings)
    settle_padding_token(tokenizer, embeddings)
    add_new_tokens(tokenizer, settings.new_tokens)
    return tokenizer


def load_model(settings: ModelSection, source: Source, device: torch.device, *, seed: int = 0) -> PreTrainedModel:
    """Load the base model onto one device, frozen, in evaluation mode.

    Only safetensors weights are read.

    Args:
        settings: the recipe's section.
        source: what `find_model` found.
        device: where it goes.
        seed: draws what a checkpoint lacks of a classifier's head; the state of torch's generators is not touched.

    Raises:
        InputError: the weights are missing, or the attention kernel asked for cannot run.
    """
    family = source.family
    dtype = base_dtype(settings.dtype, device)
    arguments: dict[str, Any] = {"trust_remote_code": source.trust_remote_code, "use_safetensors": True}
    if source.revision is not None:
        arguments["revision"] = source.revision
    attention = attention_kernel(settings.attention, dtype, device, has_flash(source))
    if attention is None and source.asks_for_flash:
        # The checkpoint asks for what does not run here; transformers would fetch a kernel of the hub for it.
        attention = _plain_attention(family, source.config)
    if attention is not None:
        arguments["attn_implementation"] = attention
    arguments |= loading_arguments(settings, source.config, dtype, device)
    if source.draws_head:
        # A head for other labels is drawn anew; of any other weight a wrong shape is refused below.
        arguments |= {"config": copy.deepcopy(source.config), "ignore_mismatched_sizes": True}
    try:
        with _drawing_with(seed, device):
            loaded: Any = family.from_pretrained(source.path, dtype=dtype, output_loading_info=True, **arguments)
        model, found = loaded
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise _explained(settings.name, source.path, error) from None
    _refuse_invented_weights(settings.name, model, found)
    _name_what_is_not_loaded(source, found)
    model.requires_grad_(False)
    if source.head == "image-zero-shot":
        hold_scalars(model)
    if quantization_of(settings, source) is None:
        nn.Module.to(model, device)
    settle_unpacked(model, source.config, dtype)
    _keep_4bit_layout(model)
    return cast(PreTrainedModel, model.eval())


def empty_model(source: Source) -> PreTrainedModel:
    """The model's layers without memory for its weights (the meta device).

    Raises:
        InputError: transformers has no such model for this configuration, or cannot build it.
    """
    arguments: dict[str, Any] = {"trust_remote_code": source.trust_remote_code}
    if source.asks_for_flash:
        arguments["attn_implementation"] = _plain_attention(source.family, source.config)
    try:
        with torch.device("meta"):
            model = source.family.from_config(source.config, **arguments)
    except Exception as error:  # a configuration can be wrong in any way
        raise _explained(source.path, source.path, error) from None
    return cast(PreTrainedModel, model)


def default_device() -> torch.device:
    """The first accelerator, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def base_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Resolve `model.dtype`: auto is bfloat16 on a GPU that computes in it, else float32."""
    if wanted == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    # Nothing is trained in float16; a merged model may be stored in it.
    return {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}[wanted]


def computes_bfloat16_slowly(device: torch.device) -> bool:
    """Whether float32 is much the faster one: x86 processors with AVX2 and no AVX-512 lack fast bfloat16 products."""
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"


def weight_bytes(model: PreTrainedModel, settings: ModelSection, device: torch.device) -> int:
    """Bytes that the weights of a model will take in memory; the model itself may be empty."""
    width = torch.finfo(base_dtype(settings.dtype, device)).bits / 8
    kind = quantization_of(settings, model)
    head = model.get_output_embeddings()
    linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
    packed = sum(module.weight.numel() for module in linear) if kind else 0
    rest = sum(parameter.numel() for parameter in model.parameters()) - packed
    return round(rest * width + packed * bytes_per_weight(kind, width))


def _keep_4bit_layout(model: nn.Module) -> None:
    """On some CPUs a 4-bit layer reorders its weight at its first use, into a form that cannot be dequantised."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def has_flash(source: Source) -> bool:
    """Whether the model's class knows FlashAttention-2; one with code of its own is not asked for it by itself."""
    return bool(getattr(_class_of(source.family, source.config), "_supports_flash_attn", False))


def _class_of(family: Any, config: PreTrainedConfig) -> Any:
    """The class that a family has for a configuration, the first where there are several (DeiT); None without."""
    known = family._model_mapping.get(type(config), None)
    return known[0] if isinstance(known, tuple) else known


def _plain_attention(family: Any, config: PreTrainedConfig) -> str:
    known = _class_of(family, config)
    return "sdpa" if getattr(known, "_supports_sdpa", False) else "eager"


def attention_kernel(wanted: str, dtype: torch.dtype, device: torch.device, has_flash: bool = True) -> str | None:
    """Resolve `model.attention`; None leaves SDPA or, for a model without it, the plain kernel to transformers.

    Raises:
        InputError: FlashAttention-2 is asked for where it cannot run, with every reason.
    """
    reasons = []
    if not is_flash_attn_2_available():
        reasons.append("the package flash-attn is not installed, or finds no GPU")
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        reasons.append(f"the device ({device.type}) is not an NVIDIA GPU of compute capability 8.0 or newer")
    if dtype != torch.bfloat16:
        reasons.append(f"it computes in bfloat16, and the base weights are {dtype}".replace("torch.", ""))
    if wanted == "flash_attention_2" and reasons:
        raise InputError("model.attention: FlashAttention-2 cannot run here. `auto` takes the best that can.", reasons)
    if wanted == "auto":
        return None if reasons or not has_flash else "flash_attention_2"
    return wanted


@contextmanager
def _drawing_with(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _refuse_invented_weights(name: str, model: nn.Module, found: dict[str, Any]) -> None:
    """Transformers fills weights that a checkpoint lacks with random values, and says so in a line at most.

    A classifier's head is meant to begin with such values.
    """
    of_head = in_head(model)
    missing = sorted(key for key in found.get("missing_keys", ()) if not of_head(key))
    wrong = sorted(str(key) for key in found.get("mismatched_keys", ()) if not of_head(str(_first_of(key))))
    if missing or wrong:
        problems = [f"{key} is missing" for key in missing[:5]] + [f"{key} has another shape" for key in wrong[:5]]
        total = len(missing) + len(wrong)
        raise InputError(f"model {name!r}: {total} weights of the checkpoint cannot be used", problems)


def _name_what_is_not_loaded(source: Source, found: dict[str, Any]) -> None:
    """A checkpoint may hold more than the model that is loaded: towers, extra heads. A classifier's base does."""
    keys = sorted(map(str, found.get("unexpected_keys", ())))
    if keys and source.head == "language":
        parts = dict.fromkeys(".".join(key.split(".")[:2]) for key in keys)
        some = ", ".join(list(parts)[:3]) + (", ..." if len(parts) > 3 else "")
        output.warn_once(f"{len(keys)} tensors of the checkpoint are not loaded ({some}): the model has no such part.")


def _first_of(key: Any) -> Any:
    """The name in what transformers reports of a weight of another shape: the name, or name and both shapes."""
    return key[0] if isinstance(key, tuple) else key


def _explained(name: str, path: str, error: Exception) -> GoraError:
    if is_full(error):
        # Of the hub's cache: nothing else is written while a model is loaded.
        return GoraError(advice_for(error) or str(error), code=FULL)
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    # Some messages begin with the heading of a list.
    first_line = " ".join(lines) if lines[0].endswith(":") else lines[0]
    if "trust_remote_code" in str(error):
        return InputError(
            f"model {name!r} brings Python code of its own, which gora does not run unless told to. "
            "Read that code, then add --trust-remote-code to the command."
        )
    if Path(path).is_dir():
        return InputError(f"model {name!r}: the folder cannot be loaded: {first_line}")
    return InputError(
        f"model {name!r} is neither a folder here nor a model that the hub answers for: {first_line}",
        ["Check the name; log in with `hf auth login` for a gated model; offline, give a downloaded folder."],
    )
