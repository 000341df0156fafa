"""gora: fine-tuning Hugging Face models with Gradient-driven Adaptive Low Rank Adaptation (arXiv 2502.12171).

What Python programs use is in `gora.api`, and under the same names here; it is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gora.api import GoraError as GoraError
    from gora.api import InputError as InputError
    from gora.api import Interrupted as Interrupted
    from gora.api import MeanGradients as MeanGradients
    from gora.api import Recipe as Recipe
    from gora.api import check as check
    from gora.api import export as export
    from gora.api import load_recipe as load_recipe
    from gora.api import mean_gradients as mean_gradients
    from gora.api import merge as merge
    from gora.api import plan_adapter as plan_adapter
    from gora.api import precompute as precompute
    from gora.api import run as run
    from gora.api import set_initial_values as set_initial_values
    from gora.api import train as train

__version__ = "0.1.0"
__all__ = [
    "GoraError",
    "InputError",
    "Interrupted",
    "MeanGradients",
    "Recipe",
    "__version__",
    "check",
    "export",
    "load_recipe",
    "mean_gradients",
    "merge",
    "plan_adapter",
    "precompute",
    "run",
    "set_initial_values",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'gora' has no attribute {name!r}")
    return getattr(import_module("gora.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
