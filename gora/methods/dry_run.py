"""Whether PEFT adapts exactly the layers that are asked for, tried on an empty model before anything long begins."""

from __future__ import annotations

from collections.abc import Iterable

from peft import LoraConfig
from torch import nn

from gora.errors import InputError
from gora.methods.base import adapted_layers, wrap_with


def refuse_what_peft_changes(model: nn.Module, targets: Iterable[str]) -> None:
    """Wrap an empty model, which is of no use afterwards.

    PEFT redirects names of some families to other parameters (the fused experts of mixtures), and refuses others.

    Args:
        model: on the meta device.
        targets: full names of the layers to adapt.

    Raises:
        InputError: PEFT refuses the model, or other layers would be adapted; with their names.
    """
    wanted = set(targets)
    try:
        wrapped = wrap_with(model, LoraConfig(r=1, target_modules=sorted(wanted), init_lora_weights=False))
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, RuntimeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"adapter.targets: PEFT cannot adapt these layers of this model: {reason[0]}") from None
    if problems := differences(wanted, adapted_layers(wrapped)):
        raise InputError(
            "adapter.targets: PEFT would adapt other layers of this model. Leave these out (adapter.exclude), or name "
            "others.",
            problems,
        )


def differences(wanted: Iterable[str], adapted: Iterable[str]) -> list[str]:
    """Where adapted layers are not those that were asked for, one sentence for each of the two ways."""
    wanted, adapted = set(wanted), set(adapted)
    told = {
        "asked for and not adapted": sorted(wanted - adapted),
        "adapted and not asked for": sorted(adapted - wanted),
    }
    return [f"{len(names)} {how}: {_some(names)}" for how, names in told.items() if names]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
