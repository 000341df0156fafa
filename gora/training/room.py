"""Room on disk for what training writes: checkpoints and the result, asked for before the first step."""

from __future__ import annotations

from collections.abc import Iterable

from peft import PeftModel
from torch import nn

from gora.disk import free_bytes, require_room, size_of, size_text
from gora.recipe.schema import TrainSection
from gora.runs.folder import RunFolder
from gora.runtime.console import output

# AdamW's two moments, float32, for every trained value.
_MOMENTS = 8


def result_bytes(model: nn.Module) -> int:
    """Least size of what a model is saved as: its adapter, or all of it; may be asked before weights are sharded."""
    return sum(value.nbytes for value in _saved(model))


def checkpoint_bytes(model: nn.Module) -> int:
    """Least size of a checkpoint: the values and what AdamW keeps of those that are trained."""
    return result_bytes(model) + _MOMENTS * sum(value.numel() for value in _trained(model))


def needed_by_next(folder: RunFolder, least: int) -> int:
    """Size of the next checkpoint: that of the newest one, or what the first takes at least."""
    made = folder.all_checkpoints()
    return max(least, size_of(made[-1])) if made else least


def check_room(folder: RunFolder, model: nn.Module, settings: TrainSection, steps: int) -> None:
    """Refuse a training whose result or first checkpoint has no room, and warn where its last ones may have none.

    Args:
        folder: where checkpoints and result go.
        model: wrapped, with whole weights.
        settings: say how many checkpoints are kept.
        steps: optimizer steps that are left.

    Raises:
        GoraError: there is less room than training takes at the very least.
    """
    result, checkpoint = result_bytes(model), checkpoint_bytes(model)
    saves = steps // settings.save_steps if settings.save_steps else 0
    # An older checkpoint is deleted once the next one is whole.
    at_a_time = min(saves, settings.keep_checkpoints + 1)
    result_path = folder.adapter if isinstance(model, PeftModel) else folder.model
    require_room(folder.checkpoints if saves else result_path, result + min(at_a_time, 1) * checkpoint)
    needed = result + max(0, at_a_time - len(folder.all_checkpoints())) * checkpoint
    if (free := free_bytes(folder.path)) < needed:
        output.warn(
            f"{size_text(free)} are free in {folder.path}, and {at_a_time} checkpoints and the result take "
            f"{size_text(needed)} at least. Lower train.keep_checkpoints, or make room."
        )


def _saved(model: nn.Module) -> Iterable[nn.Parameter]:
    return _trained(model) if isinstance(model, PeftModel) else model.parameters()


def _trained(model: nn.Module) -> Iterable[nn.Parameter]:
    return (value for value in model.parameters() if value.requires_grad)
