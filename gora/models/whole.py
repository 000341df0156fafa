"""What lies in a checkpoint beside the model that is loaded from it: a merged model would lack it."""

from __future__ import annotations

import math
import re
from pathlib import Path

from gora.models.language import senses
from gora.models.load import Source, empty_model
from gora.models.weight_files import find_file, tensor_shapes

_CONFIGURATIONS = ("config.json", "generation_config.json")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_TOWER = re.compile(r"(?:^|\.)((?:vision|visual|audio|image|multi_modal|mm)_?\w*)\.")
_EXTRA_HEAD = re.compile(r"(?:^|\.)(mtp\w*)\.")
# Buffers that older versions of transformers saved, and the like, are no loss.
_LEAST_SHARE = 0.001


def not_loaded(source: Source) -> list[str]:
    """Parts of a language model's checkpoint that gora neither loads nor writes again, in words; empty for most.

    Tensors count that the model's class passes over, and towers and extra heads that the class does not have.

    Raises:
        InputError: the weight files cannot be read.
    """
    if source.head != "language":
        return []
    model = empty_model(source)
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    foreign = [_EXTRA_HEAD] if not any(_EXTRA_HEAD.search(f"{name}.") for name, _ in model.named_modules()) else []
    foreign += [] if senses(model) else [_TOWER]
    has = {part for name, _ in model.named_modules() for part in name.split(".")}
    # With and without the first part, which checkpoints of a bare model lack. Patterns of what is ignored are loose.
    own = {key for name in model.state_dict() for key in (name, name.partition(".")[2])}
    sizes: dict[str, int] = {}
    total = 0
    for name, shape in tensor_shapes(source).items():
        total += math.prod(shape)
        parts = [hit[1] for pattern in foreign if (hit := pattern.search(name)) and hit[1] not in has]
        if not parts and name not in own and any(pattern.search(name) for pattern in ignored):
            parts = [".".join(name.split(".")[:3])]
        for part in parts[:1]:
            sizes[part] = sizes.get(part, 0) + math.prod(shape)
    found = [
        f"{part} ({size / total:.0%} of the weights)" for part, size in sizes.items() if size >= _LEAST_SHARE * total
    ]
    return found + [name for name in _PROCESSORS if _path_of(source, name)]


def beside_weights(source: Source) -> dict[str, Path]:
    """The configurations of a checkpoint, those of processors among them, by name."""
    paths = {name: _path_of(source, name) for name in (*_CONFIGURATIONS, *_PROCESSORS)}
    return {name: path for name, path in paths.items() if path is not None}


def _path_of(source: Source, name: str) -> Path | None:
    if Path(source.path).is_dir():
        path = Path(source.path) / name
        return path if path.is_file() else None
    return find_file(source, name, source.revision or "main")
