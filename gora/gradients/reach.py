"""Which target layers an adapter can change the loss through: asked with one row, before all others are run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from gora.errors import GoraError, InputError
from gora.gradients.attach import Attachment
from gora.models.experts import Matrix
from gora.runtime.out_of_memory import is_out_of_memory

_PLAIN = (nn.Linear.forward, Conv1D.forward)
# Shares of a layer's largest output that rounding explains, in float32 and in shorter types.
_ROUNDING, _COARSE_ROUNDING = 1e-3, 0.05


class _Reach:
    """Notes whose contributions are not all zero."""

    def __init__(self) -> None:
        self.keys: set[str] = set()

    def add(self, key: str, gradient: Tensor, inputs: Tensor) -> None:
        if key not in self.keys and bool((gradient != 0).any() and (inputs != 0).any()):
            self.keys.add(key)

    def add_matrix(self, key: str, matrix: Tensor) -> None:
        if key not in self.keys and bool((matrix != 0).any()):
            self.keys.add(key)


def without_effect(model: nn.Module, targets: Mapping[str, Matrix], loss: Callable[[], Tensor]) -> dict[str, str]:
    """The targets on which an adapter does nothing, or other than a change of their weight would, and why.

    Args:
        model: loaded, not wrapped; left as it was.
        targets: linear layers and experts of it, by name.
        loss: computes the loss of a row, a scalar with a graph.

    Raises:
        InputError: no target has a gradient, so that training them would change nothing; or the model's code does not
            let gradients be taken.
    """
    attachment, reach = Attachment(model, targets), _Reach()
    attachment.receiver = reach
    with attachment.attached():
        with _watching(targets) as odd:
            _run(loss)
        by_their_output = set(reach.keys)
        if attachment.adopt_silent():
            # Autograd knows of weights that something else multiplies with, as Mamba does with that of its `dt_proj`.
            _run(loss)
    if not reach.keys:
        some = ", ".join(list(targets)[:3]) + (", ..." if len(targets) > 3 else "")
        raise InputError(
            f"adapter.targets: the loss does not depend on any of these {len(targets)} layers ({some}), so that "
            "training them would change nothing. Name others."
        )
    passed_by = [name for name, key in attachment.keys.items() if key in reach.keys - by_their_output]
    return dict.fromkeys(passed_by, "the model uses their weights without calling them") | odd


def _run(loss: Callable[[], Tensor]) -> None:
    try:
        value = loss()
        if value.requires_grad:
            value.backward()
    except Exception as error:  # a model's code may do what autograd does not allow, such as writing into its inputs
        if is_out_of_memory(error) or isinstance(error, GoraError | torch.AcceleratorError):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"adapter.targets: no gradients can be taken of this model ({type(error).__name__}: {first.rstrip('.')}). "
            "Name other layers, or give another model."
        ) from error


@contextmanager
def _watching(targets: Mapping[str, Matrix]) -> Iterator[dict[str, str]]:
    """Inside the block, layers of a class of its own that do more than multiply are noted, with the reason."""
    odd: dict[str, str] = {}
    layers = {name: layer for name, layer in targets.items() if isinstance(layer, nn.Linear)}
    unusual = {name: layer for name, layer in layers.items() if type(layer).forward not in _PLAIN}
    handles = [
        layer.register_forward_hook(_noting(name, odd), with_kwargs=True)
        for name, layer in unusual.items()
        if layer.weight.is_floating_point()
    ]
    try:
        yield odd
    finally:
        for handle in handles:
            handle.remove()


def _noting(name: str, odd: dict[str, str]) -> Callable[..., None]:
    @torch.no_grad()
    def look(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor) -> None:
        (inputs,) = args[:1] or tuple(kwargs.values())[:1]
        expected = linear(inputs.to(layer.weight.dtype), layer.weight, layer.bias)
        exact = expected.dtype == result.dtype == torch.float32
        allowed = (_ROUNDING if exact else _COARSE_ROUNDING) * expected.abs().max()
        if (result.float() - expected.float()).abs().max() > allowed:
            odd[name] = "they compute more than the product with their weight"

    return look
