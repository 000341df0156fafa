"""Whether a runtime reads an adapter as PEFT does: every rule that is broken, none of which the runtime may mention."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gora.adapters.forms import LoraTensors
from gora.adapters.runtimes import Runtime

_HEADS = {"classifier", "score"}
_CLOSE = 1e-6


def misreadings(lora: LoraTensors, runtime: Runtime, layers: Mapping[str, tuple[int, int]] | None = None) -> list[str]:
    """What a runtime would refuse, drop or compute otherwise than PEFT; empty where it reads the adapter rightly.

    Args:
        lora: the adapter in the form that the runtime is given.
        runtime: its rules.
        layers: all layers of the adapted kinds in the base model, where they are known.
    """
    found = [*_settings(lora.config, runtime), *_tensors(lora)]
    if not found:
        # Scales and ranks of an adapter that is more than B A mean something else.
        found = [*_ranks(lora, runtime), *_scales(lora, runtime), *_targets(lora, runtime, layers)]
    return found


def form_refusals(lora: LoraTensors, runtime: Runtime) -> list[str]:
    """What no form of the adapter can express for a runtime: known before anything is made."""
    greatest = lora.greatest_rank
    limits = [runtime.ranks[-1]] if runtime.ranks else []
    return [
        *_settings(lora.config, runtime, converted=runtime.form != "native"),
        *_tensors(lora),
        *(f"rank {greatest}: {runtime.name} takes {limit} at most." for limit in limits if greatest > limit),
    ]


def _settings(config: Any, runtime: Runtime, *, converted: bool = False) -> Iterator[str]:
    for key, reason in runtime.refuses.items():
        value = getattr(config, key, None)
        if not value or (key == "bias" and value == "none"):
            continue
        if key == "modules_to_save" and runtime.name == "vllm" and set(value) <= _HEADS:
            continue
        yield f"{key}: {reason}."
    start = getattr(config, "init_lora_weights", True)
    if not converted and str(start) in runtime.initialisations:
        yield f"init_lora_weights: {start}: {runtime.name} refuses it."
    if not config.base_model_name_or_path:
        yield "base_model_name_or_path: it does not name its base model."


def _tensors(lora: LoraTensors) -> Iterator[str]:
    if lora.config.modules_to_save or getattr(lora.config, "trainable_token_indices", None):
        return
    if others := [name for name in lora.rest if ".experts." not in name and "magnitude" not in name]:
        yield f"{others[0]}: {_count(others)} that belong to no pair of A and B."
    if empty := [name for name, pair in lora.pairs.items() if not all(value.numel() for value in pair)]:
        yield f"{empty[0]}: {_count(empty)} of size zero."
    elif not any(b.any() for _, b in lora.pairs.values()) and not lora.rest:
        yield "every B is zero: the adapter changes nothing."


def _ranks(lora: LoraTensors, runtime: Runtime) -> Iterator[str]:
    ranks = {name: a.shape[0] for name, (a, _) in lora.pairs.items()}
    other = [name for name, rank in ranks.items() if rank != lora.config.r]
    if runtime.one_rank and other:
        yield (
            f"{other[0]}: rank {ranks[other[0]]}, where {runtime.name} expects r = {lora.config.r} in every layer "
            f"({len(other)} of {len(ranks)} layers)."
        )
    if runtime.ranks and (greatest := lora.greatest_rank) > runtime.ranks[-1]:
        yield f"rank {greatest}: {runtime.name} takes {runtime.ranks[-1]} at most."


def _scales(lora: LoraTensors, runtime: Runtime) -> Iterator[str]:
    config = lora.config
    alpha = config.lora_alpha
    if runtime.whole_alpha and alpha != int(alpha):
        yield f"lora_alpha: {alpha:g}: {runtime.name} reads a whole number."
    if runtime.scale == "alpha / rank of the tensor" and not alpha:
        yield f"lora_alpha: 0 means scale 1 to {runtime.name}."
        return
    wrong = {}
    for name, (a, _) in lora.pairs.items():
        right, read = lora.scale(name), _scale_read(lora, name, a.shape[0], runtime)
        if not math.isclose(read, right, rel_tol=_CLOSE):
            wrong[name] = read / right if right else math.inf
    if wrong:
        worst = max(wrong, key=lambda name: abs(math.log(wrong[name])) if 0 < wrong[name] < math.inf else math.inf)
        yield (
            f"{worst}: {runtime.name} scales it {wrong[worst]:.3g} times as much as PEFT ({len(wrong)} of "
            f"{len(lora.pairs)} layers are scaled wrongly)."
        )


def _scale_read(lora: LoraTensors, name: str, rank: int, runtime: Runtime) -> float:
    config = lora.config
    if runtime.scale == "per layer":
        return lora.scale(name)
    divisor = rank if runtime.scale == "alpha / rank of the tensor" else config.r
    return float(config.lora_alpha / (math.sqrt(divisor) if config.use_rslora and runtime.rslora else divisor))


def _targets(lora: LoraTensors, runtime: Runtime, layers: Mapping[str, tuple[int, int]] | None) -> Iterator[str]:
    targets = lora.config.target_modules
    if runtime.leaf_names:
        named = [targets] if isinstance(targets, str) else sorted(targets or ())
        long = [name for name in named if isinstance(targets, str) or "." in name]
        if long:
            yield f"target_modules: {long[0]}: {runtime.name} expects names such as q_proj."
    if runtime.every_layer and layers is not None and (missing := [name for name in layers if name not in lora.pairs]):
        yield (
            f"{missing[0]}: it has no pair of A and B, without which {runtime.name} drops every layer of its kind "
            f"({_count(missing)} missing)."
        )


def _count(names: Iterable[str]) -> str:
    count = len(list(names))
    return "1 tensor" if count == 1 else f"{count} tensors"
