"""What lies in a checkpoint beside the model that is loaded from it: a merged model would lack it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from gora.models.language import senses
from gora.models.load import empty_model
from gora.models.source import Source
from gora.models.weight_files import find_file, tensor_shapes

_CONFIGURATIONS = ("config.json", "generation_config.json")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_TOWER = re.compile(r"(?:^|\.)((?:vision|visual|audio|image|multi_modal|mm)_?\w*)\.")
_EXTRA_HEAD = re.compile(r"(?:^|\.)(mtp\w*)\.")
# Of what the model's class passes over: T5 has a table in its files that no layer reads.
_LEAST_SHARE = 0.001
_NAMED = 5
# Constants that older versions of transformers saved: masks, frequencies of rotary positions, and numbers of positions.
_CONSTANT = re.compile(r"(?:attn|attention)\.(?:masked_)?bias$|inv_freq$|position_ids$")


def not_loaded(source: Source) -> list[str]:
    """Parts of a language model's checkpoint that gora neither loads nor writes again, in words; empty for most.

    Tensors count for which the model has no place, by the names under which transformers loads them, or which its class
    passes over.

    Raises:
        InputError: the weight files cannot be read.
    """
    if source.head != "language":
        return []
    model = empty_model(source)
    foreign = [_EXTRA_HEAD] if not any(_EXTRA_HEAD.search(f"{name}.") for name, _ in model.named_modules()) else []
    foreign += [] if senses(model) else [_TOWER]
    stored = tensor_shapes(source)
    homeless = set(_homeless(model, stored))
    sizes: dict[str, int] = {}
    for name in stored:
        if name in homeless:
            named = next((hit[1] for pattern in foreign if (hit := pattern.search(name))), None)
            part = named or ".".join(name.split(".")[:3])
            sizes[part] = sizes.get(part, 0) + math.prod(stored[name])
    total = sum(map(math.prod, stored.values()))
    found = [f"{part} ({size / total:.0%} of the weights)" for part, size in sizes.items()]
    found = found if len(found) <= _NAMED else [*found[:_NAMED], f"{len(found) - _NAMED} other parts"]
    return found + [name for name in _PROCESSORS if _path_of(source, name)]


def _homeless(model: PreTrainedModel, stored: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """Names of stored tensors that the model has no parameter or buffer for, constants apart."""
    own = model.state_dict()
    known = {key for name in own for key in (name, name.partition(".")[2])}
    changes = get_model_conversion_mapping(model)
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    least = _LEAST_SHARE * sum(map(math.prod, stored.values()))
    for name, shape in stored.items():
        is_constant = _CONSTANT.search(name) and not (name.endswith("bias") and len(shape) == 1)
        if is_constant or (math.prod(shape) < least and any(pattern.search(name) for pattern in ignored)):
            continue
        loaded = rename_source_key(name, renamings, converters, model.base_model_prefix, own)[0]
        # Some changes depend on those of other names; a name that fits as it is, or without its first part, is known.
        if loaded not in own and name not in known:
            yield name


def beside_weights(source: Source) -> dict[str, Path]:
    """The configurations of a checkpoint, those of processors among them, by name."""
    paths = {name: _path_of(source, name) for name in (*_CONFIGURATIONS, *_PROCESSORS)}
    return {name: path for name, path in paths.items() if path is not None}


def _path_of(source: Source, name: str) -> Path | None:
    if Path(source.path).is_dir():
        path = Path(source.path) / name
        return path if path.is_file() else None
    return find_file(source, name, source.revision or "main")
