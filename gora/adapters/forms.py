"""A LoRA adapter as tensors and settings, and the forms of it that compute the same with fewer settings.

Runtimes differ in whether they read ranks and scales of single layers, and some do not say so when they ignore them.
Layer t has factors A (rank, in) and B (out, rank) and a scale s; its update is s B A in every form:

- native: as trained, with PEFT's patterns;
- compact: B' = B s rank / alpha with one whole alpha, so that alpha / rank is the scale of every layer;
- uniform: padded with zeros to one rank, B' = B s, alpha = rank, so that the scale is 1.

Scales are folded in float32.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import Tensor

from gora.adapters.runtimes import RANKS
from gora.errors import InputError
from gora.files import publish

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, kw_only=True)
class LoraTensors:
    """An adapter's settings and tensors.

    Attributes:
        config: PEFT's.
        pairs: A (rank, in) and B (out, rank) of every adapted layer, by its name in the base model.
        rest: all other tensors, by their names in the file.
    """

    config: Any
    pairs: Mapping[str, tuple[Tensor, Tensor]]
    rest: Mapping[str, Tensor]

    def scale(self, name: str) -> float:
        """What PEFT multiplies B A with in this layer."""
        pattern = self.config.alpha_pattern
        alpha = pattern.get(get_pattern_key(pattern.keys(), name), self.config.lora_alpha)
        rank = self.pairs[name][0].shape[0]
        return float(alpha / (math.sqrt(rank) if self.config.use_rslora else rank))

    @property
    def greatest_rank(self) -> int:
        """The greatest rank of a layer."""
        return max((a.shape[0] for a, _ in self.pairs.values()), default=0)

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        pairs = sum(a.nbytes + b.nbytes for a, b in self.pairs.values())
        return pairs + sum(value.nbytes for value in self.rest.values())


def read_lora(adapter: Path) -> LoraTensors:
    """Read an adapter's folder, whose tensors are known to be whole."""
    tensors = load_file(adapter / _WEIGHTS)
    names = [name.removesuffix(_A) for name in tensors if name.endswith(_A) and name.removesuffix(_A) + _B in tensors]
    pairs = {name.removeprefix(_PREFIX): (tensors.pop(name + _A), tensors.pop(name + _B)) for name in names}
    return LoraTensors(config=PeftConfig.from_pretrained(str(adapter)), pairs=pairs, rest=tensors)


def write_lora(lora: LoraTensors, folder: Path) -> None:
    """Write PEFT's two files into a folder that is being made."""
    tensors = dict(lora.rest)
    for name, (a, b) in lora.pairs.items():
        tensors |= {f"{_PREFIX}{name}{_A}": a.contiguous(), f"{_PREFIX}{name}{_B}": b.contiguous()}
    folder.mkdir(exist_ok=True)
    lora.config.save_pretrained(str(folder))
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})


def compact(lora: LoraTensors) -> LoraTensors:
    """One whole-number alpha for all layers; ranks stay, and so does the size."""
    alpha = max(1, round(lora.config.lora_alpha))
    pairs = {
        name: (a.float(), b.float() * (lora.scale(name) * a.shape[0] / alpha)) for name, (a, b) in lora.pairs.items()
    }
    config = copy.deepcopy(lora.config)
    config.lora_alpha, config.alpha_pattern, config.use_rslora, config.init_lora_weights = alpha, {}, False, True
    return replace(lora, config=config, pairs=pairs)


def uniform(lora: LoraTensors, layers: Mapping[str, tuple[int, int]] | None = None) -> LoraTensors:
    """One rank for all layers, and scale 1.

    Args:
        lora: a plain LoRA adapter.
        layers: (out, in) of every layer of the adapted kinds; those without a pair get zeros. None adds no layer.

    Raises:
        InputError: a rank is above all that runtimes take.
    """
    rank = served_rank(lora)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name, (a, b) in lora.pairs.items():
        a, b = a.float(), b.float() * lora.scale(name)
        padded_b = torch.cat([b, b.new_zeros(len(b), rank - b.shape[1])], dim=1)
        pairs[name] = torch.cat([a, a.new_zeros(rank - len(a), a.shape[1])]), padded_b
    for name, (rows, columns) in (layers or {}).items():
        if name not in pairs:
            pairs[name] = torch.zeros(rank, columns), torch.zeros(rows, rank)
    config = copy.deepcopy(lora.config)
    config.r = config.lora_alpha = rank
    config.rank_pattern, config.alpha_pattern, config.use_rslora, config.init_lora_weights = {}, {}, False, True
    config.target_modules, config.target_parameters = sorted({name.rpartition(".")[2] for name in pairs}), None
    return replace(lora, config=config, pairs=pairs)


def served_rank(lora: LoraTensors) -> int:
    """The least of the ranks that runtimes keep room for which holds the greatest of the adapter.

    Raises:
        InputError: there is none.
    """
    greatest = lora.greatest_rank
    rank = next((known for known in RANKS if known >= greatest), None)
    if rank is None:
        raise InputError(f"The adapter has a layer of rank {greatest}; runtimes take {RANKS[-1]} at most.")
    return rank


def write_uniform(adapter: Path, destination: Path) -> int:
    """Write an adapter again in the uniform form, and return its rank; see `uniform`.

    Raises:
        InputError: a rank is above all that runtimes take.
    """
    made = uniform(read_lora(adapter))
    with publish(destination, made.bytes) as aside:
        write_lora(made, aside)
    return int(made.config.r)
