"""Fine-tuning methods, one small file each: a class with the name of a record in `METHOD_FACTS`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pkgutil import iter_modules

from torch import nn

from gora.errors import GoraError
from gora.methods.base import AdapterSettings, Method, Wrapping
from gora.recipe.method_facts import METHOD_NAMES


def _classes() -> Iterator[type[Method]]:
    """Every class of this package's modules that has a name of its own."""
    for found in iter_modules(__path__):
        module = import_module(f"{__name__}.{found.name}")
        for value in vars(module).values():
            here = isinstance(value, type) and value.__module__ == module.__name__
            if here and issubclass(value, Method) and "name" in vars(value):
                yield value


def by_name(classes: Iterable[type[Method]], names: Sequence[str]) -> dict[str, Method]:
    """An instance of each class under its name, in the order of the names.

    Raises:
        GoraError: a name has no class, or two.
    """
    found: dict[str, type[Method]] = {}
    for method in classes:
        if (other := found.setdefault(method.name, method)) is not method:
            places = f"{other.__module__} and {method.__module__}"
            raise GoraError(f"The method {method.name!r} is defined twice, in {places}. Give one of them another name.")
    if missing := [name for name in names if name not in found]:
        listed = ", ".join(map(repr, missing))
        raise GoraError(f"METHOD_FACTS has {listed}, but no class in {__name__} has that `name`. Add one.")
    return {name: found[name]() for name in names}


METHODS = by_name(_classes(), METHOD_NAMES)


def model_for_loss(model: nn.Module) -> nn.Module:
    """The part of a model that computes the loss of rows alone, whichever method its adapter is of."""
    for method in METHODS.values():
        model = method.model_for_loss(model)
    return model


__all__ = ["METHODS", "AdapterSettings", "Method", "Wrapping", "model_for_loss"]
