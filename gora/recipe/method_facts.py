"""The fine-tuning methods that a recipe may name, and what is known of each without loading torch.

A record here and a class in `gora/methods/` with the same `name` are all that a method needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True, kw_only=True)
class MethodFacts:
    """What the recipe, the documentation and the stages have to know of a method.

    Attributes:
        name: the value of `adapter.method`.
        title: the name in prose.
        summary: what the method does and whose implementation runs, in one line.
        paper: arXiv id; None for what has no paper of its own.
        supports_dora: whether `adapter.dora: true` goes together with it.
        supports_experts: whether `adapter.experts: true` does.
        needs_plan: whether `gora precompute` has to make a plan before.
        saved_as: an `adapter` beside the untouched base, or the whole `model`.
    """

    name: str
    title: str
    summary: str
    paper: str | None = None
    supports_dora: bool = False
    supports_experts: bool = False
    needs_plan: bool = False
    saved_as: Literal["adapter", "model"] = "adapter"


METHOD_FACTS: tuple[MethodFacts, ...] = (
    MethodFacts(
        name="gora",
        title="GoRA",
        paper="2502.12171",
        summary="ranks, A and B from the gradients of the training rows; scaling alpha / sqrt(rank)",
        supports_dora=True,
        supports_experts=True,
        needs_plan=True,
    ),
    MethodFacts(
        name="lora",
        title="LoRA",
        paper="2106.09685",
        summary="one rank for every layer, B = 0, scaling alpha / rank (PEFT)",
        supports_dora=True,
        supports_experts=True,
    ),
    MethodFacts(
        name="rslora",
        title="rsLoRA",
        paper="2312.03732",
        summary="LoRA with scaling alpha / sqrt(rank) (PEFT, by alpha)",
        supports_dora=True,
        supports_experts=True,
    ),
    MethodFacts(
        name="dora",
        title="DoRA",
        paper="2402.09353",
        summary="LoRA with magnitudes of the weights' columns trained apart (PEFT)",
        supports_dora=True,
    ),
    MethodFacts(
        name="lora+",
        title="LoRA+",
        paper="2402.12354",
        summary="LoRA whose B learns faster than A (parameter groups)",
        supports_dora=True,
        supports_experts=True,
    ),
    MethodFacts(
        name="olora",
        title="OLoRA",
        paper="2406.01775",
        summary="starts with a QR decomposition of each weight (PEFT)",
    ),
    MethodFacts(
        name="pissa",
        title="PiSSA",
        paper="2404.02948",
        summary="starts with the largest singular components of each weight (PEFT, fast SVD with 64 iterations)",
    ),
    MethodFacts(
        name="milora",
        title="MiLoRA",
        paper="2406.09044",
        summary="starts with the smallest singular components of each weight",
    ),
    MethodFacts(
        name="lora-ga",
        title="LoRA-GA",
        paper="2407.05000",
        summary="starts in the leading singular directions of gora's mean gradients, A and B of one length",
    ),
    MethodFacts(
        name="lora-ga-peft",
        title="LoRA-GA as in PEFT",
        summary="LoRA-GA whose B carries the gradient's singular values, and is nearly zero (PEFT)",
    ),
    MethodFacts(
        name="lora-one",
        title="LoRA-One",
        paper="2502.01235",
        summary="starts as the best step of its rank against gora's mean gradients; scaling alpha / sqrt(rank)",
    ),
    MethodFacts(
        name="eva",
        title="EVA",
        paper="2410.07170",
        summary="A from the directions of each layer's inputs, ranks from their variance (PEFT)",
    ),
    MethodFacts(
        name="adalora",
        title="AdaLoRA",
        paper="2303.10512",
        summary="ranks shrink in training from 1.5 times the rank to the rank (PEFT)",
    ),
    MethodFacts(
        name="lora-pro",
        title="LoRA-Pro",
        paper="2407.18242",
        summary="gradients of A and B adjusted to move W as its own gradient would; then AdamW",
    ),
    MethodFacts(
        name="lora-fa",
        title="LoRA-FA",
        paper="2308.03303",
        summary="A stays as drawn, B's gradient is corrected for it (PEFT's optimizer)",
    ),
    MethodFacts(
        name="full",
        title="full fine-tuning",
        summary="the target weights themselves, in float32",
        saved_as="model",
    ),
)

METHOD_NAMES = tuple(facts.name for facts in METHOD_FACTS)
_BY_NAME = dict(zip(METHOD_NAMES, METHOD_FACTS, strict=True))

if TYPE_CHECKING:
    MethodName = str
else:
    # Pydantic takes the names from here; a type checker cannot compute a Literal.
    MethodName = Literal[METHOD_NAMES]


def facts_of(name: str) -> MethodFacts:
    """The record of a method.

    Raises:
        KeyError: there is none of that name.
    """
    return _BY_NAME[name]
