"""LoRA-GA (arXiv 2407.05000): the adapter starts in the leading singular directions of each weight's gradient."""

from __future__ import annotations

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from gora.core.initial import leading_components
from gora.errors import InputError
from gora.methods.base import Wrapping, lora_config, wrap_with
from gora.methods.residual import Residual, move

_GAMMA = 16.0


class LoraGa(Residual):
    """LoRA-GA as it was published, on the mean gradients that gora collects."""

    name = "lora-ga"

    def wrap(self, model: PreTrainedModel, wrapping: Wrapping) -> PeftModel:
        """See `Residual`.

        Raises:
            InputError: a layer has fewer directions than the two blocks of them that the start takes.
        """
        initial = wrapping.initial
        if initial is None:
            gradient_of = wrapping.gradients()
            initial = {
                name: starting_factors(name, gradient_of(name), wrapping.settings.rank) for name in wrapping.targets
            }
        wrapped = wrap_with(model, lora_config(wrapping))
        move(wrapped, initial)
        return wrapped


def starting_factors(name: str, gradient: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A in the first right singular vectors of G, B in the left ones that follow, both of one length ("stable").

    With `out` outputs every row of A and every column of B has the length out^(1/4) / sqrt(16), whatever the size of
    the gradient (paper, sections 3.2 and 3.3).

    Args:
        name: the layer's name, for the message.
        gradient: G, the mean gradient, (out, in).
        rank: r.

    Returns:
        A (rank, in) and B (out, rank), float32, on the gradient's device.

    Raises:
        InputError: the smaller side of G is less than twice the rank.
    """
    if 2 * rank > min(gradient.shape):
        rows, columns = gradient.shape
        raise InputError(
            f"adapter.method: lora-ga takes {2 * rank} singular directions at rank {rank}, and {name} is {rows} x "
            f"{columns}. Lower adapter.rank, or put it into adapter.exclude."
        )
    left, _, right = leading_components(gradient, 2 * rank)
    length = gradient.shape[0] ** 0.25 / _GAMMA**0.5
    return (length * right[:rank]).float().contiguous(), (length * left[:, rank:]).float().contiguous()
