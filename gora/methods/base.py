"""What a fine-tuning method is: how it wraps the base model, what learns at which rate, and what it needs for that."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NoReturn

from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, TrainerCallback

from gora.errors import GoraError
from gora.models.head import head_modules, train_head
from gora.models.vision import sees_images
from gora.plan import Factors, Plan
from gora.recipe.method_facts import METHOD_NAMES, facts_of

ADAPTER = "default"


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """Settings that every low-rank method shares."""

    rank: int
    alpha: float
    dropout: float
    dora: bool = False


def _not_offered(what: str) -> Callable[[], Any]:
    def refuse() -> NoReturn:
        raise GoraError(f"The method asks for {what}, which it was not offered: a fault in gora.")

    return refuse


@dataclass(frozen=True, kw_only=True)
class Wrapping:
    """What a method may use when it wraps a model.

    Attributes:
        targets: the linear layers to adapt, by name.
        experts: names of the parameters with fused experts to adapt, for methods with `supports_experts`.
        settings: rank, alpha, dropout and whether columns are normalised.
        steps: optimizer steps of the whole run.
        plan: for methods with `needs_plan`, which read it as `required_plan`.
        factors: the plan's initial values.
        gradients: collects the mean gradients of the targets and answers for a layer: float32, (out, in).
        batches: the micro-batches of the gradient pass, on the model's device.
        initial: A and B of a run that is resumed, for methods that move a part of the base weights into them.
    """

    targets: Mapping[str, nn.Module]
    settings: AdapterSettings
    experts: tuple[str, ...] = ()
    steps: int = 1
    plan: Plan | None = None
    factors: Factors = field(default_factory=dict)
    gradients: Callable[[], Callable[[str], Tensor]] = field(default=_not_offered("gradients"))
    batches: Callable[[], Iterable[dict[str, Tensor]]] = field(default=_not_offered("micro-batches"))
    initial: Factors | None = None

    @property
    def required_plan(self) -> Plan:
        """The plan.

        Raises:
            GoraError: there is none, because the method's facts do not say that it needs one.
        """
        return self.plan or _not_offered("a plan")()


class Method:
    """One fine-tuning method; what stands here is LoRA training.

    A class with a `name` of its own is the method that `METHOD_FACTS` has a record of, and takes its facts from there.
    """

    name: ClassVar[str]
    """The value of `adapter.method`."""
    title: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str | None]
    supports_dora: ClassVar[bool]
    supports_experts: ClassVar[bool]
    needs_plan: ClassVar[bool]
    saved_as: ClassVar[Literal["adapter", "model"]]

    lr_ratio: ClassVar[float] = 1.0
    """Learning rate of B over that of A, where the recipe says `auto`."""
    parts: ClassVar[Mapping[str, str]] = {"A": ".lora_A.", "B": ".lora_B.", "magnitudes": ".lora_magnitude_vector."}
    """Parameter groups: a name, and what the names of its parameters hold. B alone has a rate of its own."""
    moves_weights: ClassVar[bool] = False
    """Whether a part of the base weights is moved into the initial adapter, so that the rest is what training sees."""
    whole_gradients: ClassVar[bool] = False
    """Whether it needs the gradients of all processes in each one, which only data parallelism has."""
    fewest_steps: ClassVar[int] = 1
    """Optimizer steps that it needs at least."""
    plain_lora: ClassVar[bool] = True
    """Whether what is saved is B A beside each weight and no more."""
    may_leave_out: ClassVar[bool] = False
    """Whether it may give targets no rank, and leave them without an adapter."""
    merges: ClassVar[bool] = True
    """Whether what is saved can be folded into the base weights."""

    def __init_subclass__(cls) -> None:
        """Take over the facts that the recipe knows.

        Raises:
            GoraError: there is no record of that name, or the class states one of its facts again.
        """
        own = vars(cls)
        if "name" not in own:
            return
        if cls.name not in METHOD_NAMES:
            raise GoraError(f"{cls.__module__}: the method {cls.name!r} has no record in METHOD_FACTS. Add one.")
        for fact, value in vars(facts_of(cls.name)).items():
            if fact != "name" and fact in own:
                raise GoraError(f"{cls.__module__}: {fact} is said in METHOD_FACTS. Take it out of the class.")
            setattr(cls, fact, value)

    def config(self, wrapping: Wrapping) -> PeftConfig:
        """What PEFT is asked for, as far as it is known before weights and rows are; `full` does not ask."""
        return lora_config(wrapping)

    def wrap(self, model: PreTrainedModel, wrapping: Wrapping) -> PreTrainedModel | PeftModel:
        """Put the adapter round the model; its values are float32 and ready to train."""
        raise NotImplementedError

    def optimizer(self, model: nn.Module, groups: list[dict[str, Any]]) -> Optimizer | None:
        """An optimizer of its own; None is AdamW."""
        return None

    def callbacks(self, model: nn.Module) -> list[TrainerCallback]:
        """What it does around training steps."""
        return []

    def model_for_loss(self, model: nn.Module) -> nn.Module:
        """The part of a model that computes the loss of rows alone, without what this method adds to it in training.

        Args:
            model: trained or loaded, with this method's adapter or any other; that of another is returned as it is.
        """
        return model


def lora_config(wrapping: Wrapping, **settings: Any) -> LoraConfig:
    """PEFT's configuration with one rank for all targets; `settings` add to it or replace."""
    shared = wrapping.settings
    common = {
        "r": shared.rank,
        "lora_alpha": shared.alpha,
        "lora_dropout": shared.dropout,
        "use_dora": shared.dora,
        "target_modules": list(wrapping.targets),
    }
    if wrapping.experts:
        common["target_parameters"] = list(wrapping.experts)
    return LoraConfig(**{**common, **settings})


def wrap_with(model: nn.Module, config: PeftConfig) -> PeftModel:
    """Wrap a model with PEFT, adapter values in float32; a classifier's head is trained and saved beside them.

    Raises:
        GoraError: PEFT has adapted other layers or parameters than those that were asked for.
    """
    # PEFT rewrites the configuration: it shortens lists of names, and turns some into names of fused experts.
    asked = set(config.target_modules or ())  # type: ignore[attr-defined]
    experts = set(getattr(config, "target_parameters", None) or ())
    encoder_decoder = getattr(model.config, "is_encoder_decoder", False)  # type: ignore[union-attr]
    head = head_modules(model)
    if sees_images(model):
        # PEFT has no task of images; the class of the base says what an adapter is for.
        config.modules_to_save = list(head) or None  # type: ignore[attr-defined]
        config.auto_mapping = {  # type: ignore[attr-defined]
            "base_model_class": type(model).__name__,
            "parent_library": type(model).__module__,
        }
    elif head:
        config.task_type = TaskType.SEQ_CLS
        # PEFT adds these names by itself.
        to_save = [name for name in head if name not in SEQ_CLS_HEAD_NAMES]
        config.modules_to_save = to_save or None  # type: ignore[attr-defined]
    else:
        config.task_type = TaskType.SEQ_2_SEQ_LM if encoder_decoder else TaskType.CAUSAL_LM
    with warnings.catch_warnings():
        # PEFT looks for the keys of patterns among layers only, and says so of those that it has used for parameters.
        warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys", RuntimeWarning)
        wrapped: PeftModel = get_peft_model(model, config, autocast_adapter_dtype=True)  # type: ignore[arg-type, assignment]
    _refuse_other_layers(wrapped, asked, experts)
    train_head(wrapped)
    return wrapped


def _refuse_other_layers(wrapped: PeftModel, asked: set[str], experts: set[str]) -> None:
    config: Any = wrapped.peft_config[ADAPTER]
    if instead := set(getattr(config, "target_parameters", None) or ()) - experts:
        raise GoraError(
            f"PEFT adapts fused experts under these names instead of the layers: {', '.join(sorted(instead))}"
        )
    if experts:
        # A set in some families, whose order would change from process to process.
        config.target_parameters = sorted(experts)
    if told := differences(asked | experts, adapted_layers(wrapped)):
        raise GoraError(f"PEFT adapts other layers than those: {'; '.join(told)}")


def differences(wanted: Iterable[str], adapted: Iterable[str]) -> list[str]:
    """Where adapted layers are not those that were asked for, one sentence for each of the two ways."""
    wanted, adapted = set(wanted), set(adapted)
    told = {
        "asked for and not adapted": sorted(wanted - adapted),
        "adapted and not asked for": sorted(adapted - wanted),
    }
    return [f"{len(names)} {how}: {some(names)}" for how, names in told.items() if names]


def some(names: Sequence[str]) -> str:
    """The first three of these."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def lora_layers(wrapped: PeftModel) -> dict[str, LoraLayer]:
    """The adapted layers by their name in the base model; for fused experts, that of the parameter."""
    inner: nn.Module = wrapped.base_model.model  # type: ignore[assignment, union-attr]
    layers = {name: module for name, module in inner.named_modules() if isinstance(module, LoraLayer)}
    return {_own_name(name, layer): layer for name, layer in layers.items()}


def adapted_layers(wrapped: PeftModel) -> list[str]:
    """Names, in the base model, of the layers and parameters that PEFT has adapted, whatever the kind of adapter."""
    inner: nn.Module = wrapped.base_model.model  # type: ignore[assignment, union-attr]
    return [
        _own_name(name, module)
        for name, module in inner.named_modules()
        if isinstance(module, BaseTunerLayer) and not isinstance(module, TrainableTokensLayer)
    ]


def _own_name(name: str, module: object) -> str:
    """The name of what is adapted; wrappers of several parameters of one module lie inside each other."""
    if not isinstance(module, ParamWrapper):
        return name
    return ".".join([part for part in name.split(".") if part != "base_layer"] + [module.parameter_name])


def factors_of(wrapped: PeftModel) -> Factors:
    """A and B of every adapted layer, float32 on the CPU."""
    factors: Factors = {}
    for name, layer in lora_layers(wrapped).items():
        a, b = (weight.detach().float().cpu().clone() for weight in pair(layer))
        factors[name] = (a, b)
    return factors


def pair(layer: LoraLayer) -> tuple[nn.Parameter, nn.Parameter]:
    """A (rank, in) and B (out, rank) of a layer."""
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight  # type: ignore[union-attr, return-value]
