"""Trackers of experiments: those of transformers' Trainer, told where a run is and what it is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from gora.errors import InputError
from gora.recipe.schema import Recipe, Tracker
from gora.runtime.engine import Engine

_PACKAGES: dict[Tracker, tuple[tuple[str, ...], str]] = {
    "tensorboard": (("tensorboard", "tensorboardX"), "tensorboard"),
    "wandb": (("wandb",), "wandb"),
    "mlflow": (("mlflow",), "mlflow"),
    "trackio": (("trackio",), "trackio"),
}


def refuse_what_cannot_be_watched(recipe: Recipe, engine: Engine) -> None:
    """End before anything is loaded where a run could not be watched or kept as the recipe says.

    Raises:
        InputError: a tracker is not installed, or weights are sharded, so that no process holds what is to be kept.
    """
    asked = {
        "train.keep: best": recipe.train.keep == "best",
        "train.keep_by": recipe.train.keep_by != "loss",
        "evaluation.samples": recipe.evaluation.samples > 0,
    }
    for what in (what for what, asks in asked.items() if asks and engine.shards_weights):
        raise InputError(f"{what} needs whole weights, which {engine.name} shards. Leave it out, or give ddp or zero2.")
    for tracker in recipe.train.report_to:
        modules, package = _PACKAGES[tracker]
        if not any(find_spec(module) for module in modules):
            raise InputError(f"train.report_to: {tracker} is not installed: pip install {package}. Or leave it out.")


@contextmanager
def tracking(recipe: Recipe, folder: Path) -> Iterator[None]:
    """Tell the trackers where the run is, unless the environment does; afterwards the environment is as it was.

    TensorBoard writes into `tracking/` of the run folder, Weights & Biases' and MLflow's local files lie there as well.
    """
    place = folder / "tracking"
    told = {
        "TENSORBOARD_LOGGING_DIR": str(place),
        "WANDB_DIR": str(place),
        "WANDB_PROJECT": "gora",
        "WANDB_NAME": folder.name,
        "MLFLOW_TRACKING_URI": f"sqlite:///{(place / 'mlflow.db').resolve()}",
        "MLFLOW_EXPERIMENT_NAME": "gora",
    }
    set_here = [name for name in told if name not in os.environ] if recipe.train.report_to else []
    if set_here:
        place.mkdir(parents=True, exist_ok=True)
    os.environ.update({name: told[name] for name in set_here})
    try:
        yield
    finally:
        if "wandb" in recipe.train.report_to and "wandb" in sys.modules:
            # Until then its run is not whole, and the next one in this process would go on with it.
            sys.modules["wandb"].finish()
        for name in set_here:
            os.environ.pop(name, None)
