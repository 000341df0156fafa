"""Mean weight gradients of anyone's model, rows and loss: the gradient pass as one call, without a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gora.errors import InputError
from gora.gradients.attach import Attachment
from gora.gradients.checkpoint import NoCheckpoint
from gora.gradients.collect import Collection, Pace, Step
from gora.gradients.statistics import SummedStatistics
from gora.gradients.sums import DeviceSums
from gora.models.experts import Matrix, Target, expert_counts, matrices_of
from gora.models.targets import find_experts, find_targets, weight_of, weight_shape


@dataclass(frozen=True, kw_only=True, eq=False)
class MeanGradients(Mapping[str, Tensor]):
    """Mean gradients by layer, and the weights they are of: float32 (out, in), on the model's device.

    Attributes:
        statistics: answers of which a plan is made; they read the model's weights when they are asked.
        shapes: (out, in) of every layer, and of every expert of fused ones.
        experts: how many experts each group of fused experts has, by its name.
        module_names: all names of the model's modules.
        losses: mean loss of every micro-batch that counts, by its number.
        left_out: micro-batches whose loss or gradient was not finite, with the reason.
    """

    statistics: SummedStatistics
    shapes: Mapping[str, tuple[int, int]]
    experts: Mapping[str, int]
    module_names: tuple[str, ...]
    losses: Mapping[int, float]
    left_out: Mapping[int, str]

    @property
    def counted(self) -> int:
        """How many micro-batches the mean is over."""
        return self.statistics.counted

    def __getitem__(self, name: str) -> Tensor:
        """Mean gradient of one layer: a copy."""
        if name not in self.shapes:
            raise KeyError(name)
        return self.statistics.mean(name)

    def __iter__(self) -> Iterator[str]:
        """Names of the layers, in the model's order."""
        return iter(self.shapes)

    def __len__(self) -> int:
        """How many layers there are."""
        return len(self.shapes)


def mean_gradients(
    model: nn.Module,
    targets: str | Sequence[str] | Mapping[str, Target],
    batches: Iterable[Any],
    loss: Callable[[Any], Tensor] | None = None,
    *,
    exclude: Sequence[str] = (),
    experts: bool = False,
) -> MeanGradients:
    """Collect the mean gradient of every target weight over micro-batches.

    Layers are tapped, so that also frozen and quantised weights have one. Sums are float32 on the model's device: as
    many bytes as the target weights have in float32. The model is put into evaluation mode for the pass; afterwards
    it is as it was.

    Args:
        model: any model; weights of DeepSpeed ZeRO-3 and of FSDP are not supported here.
        targets: `attention`, `all-linear`, names, or a regular expression, as in a recipe; or layers by their names.
        batches: micro-batches, all of which are kept in memory and may be run more than once. Tensors in mappings are
            moved to the model's device.
        loss: mean loss of a micro-batch, a scalar with a graph; None is `model(**batch).loss`.
        exclude: names that are left out of the targets.
        experts: also the fused experts of a mixture.

    Raises:
        InputError: there are no micro-batches, or a target cannot be found.
        GoraError: more than a tenth of the micro-batches are not finite, or no gradient reaches any target.
    """
    rows = list(batches)
    if not rows:
        raise InputError("There are no micro-batches. Give at least one; 64 are usual.")
    if isinstance(targets, Mapping):
        chosen = dict(targets)
    else:
        chosen = {**find_targets(model, targets, exclude, beside_experts=experts)}
        chosen |= find_experts(model, exclude) if experts else {}
    matrices = matrices_of(chosen)
    device = next(model.parameters()).device
    attachment = Attachment(model, matrices)
    sums = DeviceSums({attachment.keys[name]: weight_shape(matrix) for name, matrix in matrices.items()}, device)
    losses: dict[int, float] = {}

    def tell(step: Step) -> None:
        losses[step.index] = step.loss

    with _evaluating(model):
        progress = Collection(
            attachment=attachment,
            sums=sums,
            batch_of=lambda index: _moved(rows[index], device),
            loss_of=loss or (lambda batch: model(**batch).loss),
            pace=Pace.alone(len(rows)),
            checkpoint=NoCheckpoint(),
            on_step=tell,
        ).run()
    return MeanGradients(
        statistics=SummedStatistics(sums, attachment.keys, _weights(matrices), progress.counted),
        shapes={name: weight_shape(matrix) for name, matrix in matrices.items()},
        experts=expert_counts(chosen),
        module_names=tuple(name for name, _ in model.named_modules()),
        losses={index: value for index, value in losses.items() if index not in progress.left_out},
        left_out=dict(progress.left_out),
    )


def _weights(matrices: Mapping[str, Matrix]) -> Callable[[str], Tensor]:
    return lambda name: weight_of(matrices[name])


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if not isinstance(batch, Mapping):
        return batch
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
