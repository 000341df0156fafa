"""Ways of having the gradients of a micro-batch, for `precompute.py` to time.

Each is a context manager that takes the model, the layers by name and the tokens of a micro-batch, and yields a
function of the model's inputs: forward and backward of one micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gora.gradients.attach import Attachment
from gora.gradients.buffered import BufferedSums, micro_batches_to_buffer
from gora.gradients.host import HostSums
from gora.gradients.replay import LONGEST, Replay
from gora.gradients.sums import DeviceSums, Sums
from gora.models.targets import weight_shape

DEVICE = torch.device("cuda")
Step = Callable[[dict[str, Any]], None]
Way = Callable[[nn.Module, dict[str, nn.Module], int], AbstractContextManager[Step]]


@contextmanager
def reference(model: nn.Module, layers: dict[str, nn.Module], tokens: int) -> Iterator[Step]:
    """A hook for each weight: synchronise, scan, copy to the host, add there."""
    weights = {name: layer.weight for name, layer in layers.items()}
    sums: dict[str, Tensor] = {}

    def harvest(gradient: Tensor) -> Tensor:
        torch.cuda.synchronize()
        for name, weight in model.named_parameters():
            if weight.requires_grad and weight.grad is not None:
                host = weight.grad.detach().cpu()
                sums[name] = sums[name].add_(host) if name in sums else host
                weight.grad = None
        return gradient

    hooks = []
    for weight in weights.values():
        weight.requires_grad_(True)
        hooks.append(weight.register_hook(harvest))
    try:
        yield lambda inputs: model(**inputs).loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
        _freeze(model)


@contextmanager
def plain(model: nn.Module, layers: dict[str, nn.Module], tokens: int) -> Iterator[Step]:
    """Autograd accumulates into `.grad`."""
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    try:
        yield lambda inputs: model(**inputs).loss.backward()
    finally:
        _freeze(model)


@contextmanager
def lora(model: nn.Module, layers: dict[str, nn.Module], tokens: int) -> Iterator[Step]:
    """PEFT's LoRA at rank 8."""
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(model, LoraConfig(r=8, target_modules=list(layers)))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()

    def step(inputs: dict[str, Any]) -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = wrapped(**inputs).loss
        loss.backward()
        wrapped.zero_grad()

    try:
        yield step
    finally:
        wrapped.unload()
        _freeze(model)


def gora_on_device(model: nn.Module, layers: dict[str, nn.Module], tokens: int) -> AbstractContextManager[Step]:
    """The collector with its sums on the device."""
    return _gora(model, layers, DeviceSums(shapes_of(layers), DEVICE))


def gora_on_host(model: nn.Module, layers: dict[str, nn.Module], tokens: int) -> AbstractContextManager[Step]:
    """The collector with its sums in pinned host memory."""
    return _gora(model, layers, HostSums(shapes_of(layers), DEVICE))


def gora_held(model: nn.Module, layers: dict[str, nn.Module], tokens: int) -> AbstractContextManager[Step]:
    """The collector with its sums in pinned host memory, several micro-batches at a time."""
    return _gora(model, layers, BufferedSums(HostSums(shapes_of(layers), DEVICE), micro_batches_to_buffer(tokens)))


@contextmanager
def _gora(model: nn.Module, layers: dict[str, nn.Module], sums: Sums) -> Iterator[Step]:
    attachment = Attachment(model, layers)
    attachment.receiver = sums
    with attachment.attached():
        yield lambda inputs: model(**inputs).loss.backward()


def shapes_of(layers: dict[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """The shape of each layer's weight: outputs, inputs."""
    return {name: weight_shape(layer) for name, layer in layers.items()}


@contextmanager
def gora_replayed(model: nn.Module, layers: dict[str, nn.Module], tokens: int) -> Iterator[Step]:
    """The collector as `gora precompute` runs it: recorded where a micro-batch is small."""
    attachment = Attachment(model, layers)
    sums = DeviceSums(shapes_of(layers), DEVICE)
    attachment.receiver = sums
    recorded: list[Replay] = []

    def loss_of(inputs: Any) -> Tensor:
        return model(**inputs, use_cache=False).loss

    def step(inputs: dict[str, Any]) -> None:
        batch = {key: value for key, value in inputs.items() if isinstance(value, Tensor)}
        if tokens > LONGEST:
            loss_of(batch).backward()
            return
        if not recorded:
            recorded.append(Replay(attachment, sums, loss_of, batch))
        recorded[0](batch)

    with attachment.attached():
        yield step


def _freeze(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None


WAYS: dict[str, Way] = {
    "plain": plain,
    "lora": lora,
    "gora": gora_replayed,
    "gora-eager": gora_on_device,
    "gora-cpu": gora_on_host,
    "gora-held": gora_held,
    "reference": reference,
}
