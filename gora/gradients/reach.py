"""Whether the loss depends on the target layers at all: asked with one row, before all others are run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from gora.errors import InputError
from gora.gradients.attach import Attachment
from gora.models.experts import Matrix


class _Reach:
    """Notices the first contribution that is not zero."""

    def __init__(self) -> None:
        self.found = False

    def add(self, key: str, gradient: Tensor, inputs: Tensor) -> None:
        self.found = self.found or bool((gradient != 0).any() and (inputs != 0).any())

    def add_matrix(self, key: str, matrix: Tensor) -> None:
        self.found = self.found or bool((matrix != 0).any())


def refuse_unreachable(model: nn.Module, targets: Mapping[str, Matrix], loss: Callable[[], Tensor]) -> None:
    """Refuse targets of which none has a gradient: training them would change nothing.

    Args:
        model: loaded, not wrapped; left as it was.
        targets: linear layers and experts of it, by name.
        loss: computes the loss of a row, a scalar with a graph.

    Raises:
        InputError: no target has one.
    """
    attachment, reach = Attachment(model, targets), _Reach()
    attachment.receiver = reach
    with attachment.attached():
        _run(loss)
        if not reach.found and attachment.adopt_silent():
            # Layers that are passed by without being called have their gradients from autograd.
            _run(loss)
    if not reach.found:
        some = ", ".join(list(targets)[:3]) + (", ..." if len(targets) > 3 else "")
        raise InputError(
            f"adapter.targets: the loss does not depend on any of these {len(targets)} layers ({some}), so that "
            "training them would change nothing. Name others."
        )


def _run(loss: Callable[[], Tensor]) -> None:
    value = loss()
    if value.requires_grad:
        value.backward()
