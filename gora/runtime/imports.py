"""Importing the libraries that a stage needs, which takes longer than anything else at the start."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from gora.runtime.phases import phases


@contextmanager
def importing() -> Iterator[None]:
    """Leave garbage alone while torch, transformers and PEFT are imported.

    They make some hundred thousand objects that stay until the end. Looking through these again and again, also in all
    that is done afterwards, frees nothing and takes a quarter of the start: here they are left out for good.
    """
    gc.disable()
    try:
        with phases.within("imports"):
            yield
        gc.freeze()
    finally:
        gc.enable()
