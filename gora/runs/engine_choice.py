"""The engine of a run. `distributed: auto`: whole weights on each GPU where they leave room, shares elsewhere."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from gora.disk import size_text
from gora.errors import InputError
from gora.models.device import default_device
from gora.models.load import empty_model
from gora.models.quantization import weight_bytes
from gora.models.source import find_model
from gora.recipe.derived import with_distributed
from gora.recipe.origins import Origin
from gora.recipe.schema import Recipe
from gora.runtime.console import output
from gora.runtime.engine import Engine
from gora.runtime.world import World, join

_AUTO = "auto"
_WEIGHTS = 0.7
"""Share of a GPU that whole weights may take: the rest is for activations, which are recomputed if need be."""


def join_run(recipe: Recipe, *, trust_remote_code: bool) -> tuple[Recipe, Engine, World]:
    """Join the other processes of a run, if there are any; the recipe comes back with the engine's name.

    Raises:
        InputError: there is no such engine, or it cannot run here.
    """
    if recipe.distributed != _AUTO:
        engine = Engine.of(recipe.distributed)
        _refuse_what_cannot_run(engine, recipe)
        return recipe, engine, join(alone_too=engine.kind != "ddp")
    world = join()
    if not world.main:
        output.mute()
    recipe = choose_engine(recipe, processes=world.size, device=default_device(), trust_remote_code=trust_remote_code)
    return recipe, Engine.of(recipe.distributed), world


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
    if recipe.distributed != _AUTO:
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


def _refuse_what_cannot_run(engine: Engine, recipe: Recipe) -> None:
    if engine.kind == "deepspeed" and find_spec("deepspeed") is None:
        raise InputError(
            f"distributed: {engine.name} needs DeepSpeed, which is not installed. Install it (pip install deepspeed), "
            "or give --set distributed=ddp."
        )
    if engine.shards_weights and recipe.model.quantization:
        raise InputError(
            f"distributed: {engine.name} shards base weights, which {recipe.model.quantization} ones cannot be. "
            "Give ddp or zero2, or model.quantization: null."
        )
