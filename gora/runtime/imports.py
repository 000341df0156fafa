"""Importing the libraries that a stage needs, which takes longer than anything else at the start."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

from gora.runtime.phases import phases


@contextmanager
def importing() -> Iterator[None]:
    """Leave garbage alone while torch, transformers and PEFT are imported, and torch's compiler until it is called.

    They make some hundred thousand objects that stay until the end. Looking through these again and again, also in all
    that is done afterwards, frees nothing and takes a quarter of the start: here they are left out for good.
    """
    gc.disable()
    try:
        with phases.within("imports"), _compiling_when_called():
            yield
        gc.freeze()
    finally:
        gc.enable()


@contextmanager
def _compiling_when_called() -> Iterator[None]:
    """Functions that are compiled with `torch.compile` where they are defined are compiled when first called.

    PEFT imports bitsandbytes where it is installed, which has four of them for CPUs. The compiler for these, five
    hundred modules and half a second of every start, is hardly ever called.
    """
    import torch

    compile_now = torch.compile

    def compile_later(model: Any = None, **settings: Any) -> Any:
        if model is None:
            return lambda function: compile_later(function, **settings)
        compiled = cache(lambda: compile_now(model, **settings))

        @wraps(model)
        def first_compiling(*arguments: Any, **named: Any) -> Any:
            return compiled()(*arguments, **named)

        return first_compiling

    torch.compile = compile_later  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_now
