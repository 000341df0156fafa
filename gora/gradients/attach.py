"""Connects the target layers of a model to whatever receives their gradients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Protocol

from torch import Tensor, nn

from gora.gradients.taps import Sink, tapped
from gora.models.experts import Expert, Matrix
from gora.models.targets import as_out_in


class Receiver(Protocol):
    """Takes what the backward pass says about a weight."""

    def add(self, key: str, gradient: Tensor, inputs: Tensor) -> None:
        """The gradient of a layer's output, (..., out), and its input, (..., in)."""
        ...

    def add_matrix(self, key: str, matrix: Tensor) -> None:
        """A whole weight gradient, (out, in)."""
        ...


class Attachment:
    """Sends every contribution to a target's weight gradient to a receiver.

    Most layers are tapped, with all weights frozen. A weight that something other than a target uses too (an output
    head tied to the embedding), or whose layer is passed by without being called, is left to autograd instead; so are
    fused experts, which no layer of their own multiplies with.

    Args:
        model: the base model.
        targets: its linear layers and experts, by name.
    """

    def __init__(self, model: nn.Module, targets: Mapping[str, Matrix]) -> None:
        self.model = model
        self._targets = dict(targets)
        first: dict[tuple[int, int], str] = {}
        self._keys = {name: first.setdefault(_identity(target), name) for name, target in targets.items()}
        self._by_autograd = {
            name for name, target in targets.items() if isinstance(target, Expert) or self._is_used_elsewhere(name)
        }
        self._seen: set[str] = set()
        self._stack = ExitStack()
        self.receiver: Receiver | None = None
        """Who takes the contributions; may change between micro-batches."""

    @property
    def keys(self) -> Mapping[str, str]:
        """Each target's key: the name of the first target that has the same weight."""
        return self._keys

    @property
    def all_tapped(self) -> bool:
        """Whether no layer is left to autograd."""
        return not self._by_autograd

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside the block contributions flow; afterwards every parameter requires what it required before."""
        required = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
        self.model.requires_grad_(False)
        try:
            with ExitStack() as self._stack:
                self._stack.enter_context(self._inputs_that_require_gradients())
                self._stack.enter_context(tapped(self._tapped(), self._sink))
                self._ask_autograd(self._by_autograd)
                yield
        finally:
            for parameter, before in required.items():
                parameter.requires_grad_(before)
                parameter.grad = None

    def adopt_silent(self) -> bool:
        """Leave those layers to autograd, from now on, that have contributed nothing so far.

        Returns:
            Whether there were any, so that what was collected has to be collected again.
        """
        silent = {name for name, key in self._keys.items() if key not in self._seen} - self._by_autograd
        # A quantised weight cannot have a gradient; its layer is simply not used.
        silent = {name for name in silent if self._targets[name].weight.is_floating_point()}  # type: ignore[operator, union-attr]
        self._ask_autograd(silent)
        self._by_autograd |= silent
        return bool(silent)

    def _tapped(self) -> dict[str, nn.Module]:
        return {
            name: target
            for name, target in self._targets.items()
            if name not in self._by_autograd and not isinstance(target, Expert)
        }

    def _sink(self, name: str) -> Sink:
        key = self._keys[name]

        def sink(gradient: Tensor, inputs: Tensor) -> None:
            if name in self._by_autograd:
                return
            self._seen.add(key)
            self.receiver.add(key, gradient, inputs)  # type: ignore[union-attr]

        return sink

    def _ask_autograd(self, names: Iterable[str]) -> None:
        # Fused experts have one weight, which holds several matrices.
        of_weight: dict[nn.Parameter, list[str]] = defaultdict(list)
        for name in sorted(names):
            if self._keys[name] == name:
                of_weight[self._targets[name].weight].append(name)  # type: ignore[index]
        for weight, keys in of_weight.items():
            weight.requires_grad_(True)
            hook = weight.register_post_accumulate_grad_hook(self._weight_hook(keys))
            self._stack.callback(hook.remove)

    def _weight_hook(self, keys: Iterable[str]) -> Callable[[Tensor], None]:
        def add(weight: Tensor) -> None:
            assert weight.grad is not None
            for key in keys:
                self._seen.add(key)
                self.receiver.add_matrix(key, as_out_in(self._targets[key], weight.grad))  # type: ignore[union-attr]
            weight.grad = None

        return add

    @contextmanager
    def _inputs_that_require_gradients(self) -> Iterator[None]:
        """Reentrant activation checkpointing drops blocks whose inputs require no gradient."""
        recomputes = any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules())
        if not recomputes:
            yield
            return
        self.model.enable_input_require_grads()  # type: ignore[operator]
        try:
            yield
        finally:
            self.model.disable_input_require_grads()  # type: ignore[operator]

    def _is_used_elsewhere(self, name: str) -> bool:
        weight = self._targets[name].weight
        return any(owner not in self._targets for owner in _owners(self.model)[id(weight)])


def _identity(target: Matrix) -> tuple[int, int]:
    """What two names of one matrix have in common: the weight, and the place in it."""
    return id(target.weight), target.index if isinstance(target, Expert) else 0


def _owners(model: nn.Module) -> Mapping[int, list[str]]:
    """Names of the modules that hold each parameter, by the parameter's id."""
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)].append(name)
    return owners
