"""`distributed: auto`: whole weights on every GPU where they leave room to train, shares of them elsewhere."""

from __future__ import annotations

import torch

from gora.disk import size_text
from gora.models.load import empty_model
from gora.models.quantization import weight_bytes
from gora.models.source import find_model
from gora.recipe.derived import with_distributed
from gora.recipe.origins import Origin
from gora.recipe.schema import Recipe
from gora.runtime.console import output

AUTO = "auto"
_WEIGHTS = 0.7
"""Share of a GPU that whole weights may take: the rest is for activations, which are recomputed if need be."""


def choose_engine(
    recipe: Recipe, *, processes: int, device: torch.device, trust_remote_code: bool, weights: bool = True
) -> Recipe:
    """Put an engine's name in the place of `auto`, and say why.

    An adapter's optimizer states are megabytes: there is nothing to gain from sharing out anything but the weights.

    Args:
        recipe: any recipe.
        processes: of the run.
        device: what computes; all processes are taken to have the like.
        trust_remote_code: let the model run Python code of its own.
        weights: whether the weights have to be there.

    Raises:
        InputError: the model is not found.
    """
    if recipe.distributed != AUTO:
        return recipe
    if processes == 1 or device.type != "cuda":
        return _decided(recipe, "ddp", "one process, or no GPUs")
    source = find_model(recipe.model, labels=recipe.data.choices, trust_remote_code=trust_remote_code, weights=weights)
    needed = weight_bytes(empty_model(source), recipe.model, device)
    total = torch.cuda.get_device_properties(device).total_memory
    fits = needed <= _WEIGHTS * total or recipe.model.quantization is not None
    name = "ddp" if fits else "fsdp"
    output.say(f"engine    {name} (auto): the weights take {size_text(needed)} of a GPU's {size_text(total)}")
    why = f"the weights take {size_text(needed)} of a GPU's {size_text(total)}"
    return _decided(recipe, name, why)


def _decided(recipe: Recipe, name: str, why: str) -> Recipe:
    return with_distributed(recipe, name).with_origins({"distributed": Origin("computed", why)})
