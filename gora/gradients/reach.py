"""Which target layers the loss depends on, and how: asked with one row, before all others are run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from gora.errors import InputError
from gora.gradients.attach import Attachment
from gora.models.experts import Matrix


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


def find_passed_by(model: nn.Module, targets: Mapping[str, Matrix], loss: Callable[[], Tensor]) -> list[str]:
    """The targets whose weight the loss depends on although nobody calls them, so that an adapter does nothing there.

    Args:
        model: loaded, not wrapped; left as it was.
        targets: linear layers and experts of it, by name.
        loss: computes the loss of a row, a scalar with a graph.

    Raises:
        InputError: no target has a gradient: training them would change nothing.
    """
    attachment, reach = Attachment(model, targets), _Reach()
    attachment.receiver = reach
    with attachment.attached():
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
    return [name for name, key in attachment.keys.items() if key in reach.keys - by_their_output]


def _run(loss: Callable[[], Tensor]) -> None:
    value = loss()
    if value.requires_grad:
        value.backward()
