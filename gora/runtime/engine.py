"""Which engine keeps several processes in step, and how it is configured.

The configuration files of `configs/` are those of Accelerate (YAML) and DeepSpeed (JSON); a user's own may stand in
their place.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from gora import assets
from gora.errors import InputError
from gora.files import read_json

NAMES = ("ddp", "zero2", "zero2-offload", "zero3", "fsdp")
_KINDS: dict[str, Literal["ddp", "deepspeed", "fsdp"]] = {
    "NO": "ddp",
    "MULTI_GPU": "ddp",
    "MULTI_CPU": "ddp",
    "DEEPSPEED": "deepspeed",
    "FSDP": "fsdp",
}
# What the recipe says, and a second voice could only contradict.
_OWN = {"optimizer": "train.learning_rate and its neighbours", "scheduler": "train.schedule"}
_BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine and its configuration.

    Attributes:
        name: as the recipe says.
        kind: `ddp`, `deepspeed` or `fsdp`.
        settings: DeepSpeed's JSON document, or Accelerate's `fsdp_config` without the prefix of its keys.
        unread: what else Accelerate's file says; the recipe and the launcher decide it.
    """

    name: str
    kind: Literal["ddp", "deepspeed", "fsdp"] = "ddp"
    settings: dict[str, Any] = field(default_factory=dict)
    unread: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, wanted: str) -> Engine:
        """The engine that a recipe names.

        Raises:
            InputError: it is neither a name nor a file, or the file cannot be used.
        """
        if wanted in NAMES:
            return _read(wanted, assets.folder("configs") / f"{wanted}.yaml")
        path = Path(wanted).expanduser()
        if not path.is_file():
            raise InputError(f"distributed: {wanted!r} is neither a file nor one of auto, {', '.join(NAMES)}.")
        return _read(wanted, path)

    @property
    def stage(self) -> int:
        """DeepSpeed's ZeRO stage; 0 elsewhere."""
        return int(self._zero.get("stage", 0))

    @property
    def offloads(self) -> bool:
        """Whether optimizer states, and with them gradient sums, live in host memory."""
        return (self._zero.get("offload_optimizer") or {}).get("device", "none") != "none"

    @property
    def shards_weights(self) -> bool:
        """Whether each process holds a share of the base weights only."""
        return self.kind == "fsdp" or self.stage == 3

    @property
    def _zero(self) -> dict[str, Any]:
        return self.settings["zero_optimization"] if self.kind == "deepspeed" else {}


def _read(name: str, path: Path) -> Engine:
    if path.suffix == ".json":
        return _deepspeed(name, path, _document(path))
    document = _document(path)
    kind = _KINDS.get(str(document.get("distributed_type", "NO")))
    if kind is None:
        raise InputError(
            f"{path}: distributed_type: {document['distributed_type']} must be one of {', '.join(_KINDS)}."
        )
    if kind == "deepspeed":
        section = _section(path, document, "deepspeed_config")
        return replace(_deepspeed(name, path, _settings_of(path, section)), unread={**document, **section})
    settings = {key.removeprefix("fsdp_"): value for key, value in _section(path, document, "fsdp_config").items()}
    return Engine(name=name, kind=kind, settings=settings if kind == "fsdp" else {}, unread=document)


def _document(path: Path) -> dict[str, Any]:
    try:
        document = read_json(path) if path.suffix == ".json" else _plain_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no settings: a mapping of keys is expected.")
    return document


def _plain_yaml(text: str) -> Any:
    # A few aliases of aliases would be gigabytes once somebody writes them out.
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
        raise ValueError("aliases are not supported")
    return yaml.safe_load(text)


def _section(path: Path, document: dict[str, Any], key: str) -> dict[str, Any]:
    section = document.get(key) or {}
    if not isinstance(section, dict):
        raise InputError(f"{path}: {key}: {section!r} is no mapping of keys.")
    return section


def _settings_of(path: Path, section: dict[str, Any]) -> dict[str, Any]:
    """DeepSpeed's document from Accelerate's section, which names a file or says the most common settings itself."""
    if file := section.get("deepspeed_config_file"):
        if not isinstance(file, str):
            raise InputError(f"{path}: deepspeed_config_file: {file!r} is not the name of a file.")
        return _document(path.parent / file)
    zero: dict[str, Any] = {"stage": section.get("zero_stage", 2)}
    for part in ("optimizer", "param"):
        device = section.get(f"offload_{part}_device", "none")
        if device != "none":
            zero[f"offload_{part}"] = {"device": device, "pin_memory": True}
    return {"zero_optimization": zero}


def _deepspeed(name: str, path: Path, document: dict[str, Any]) -> Engine:
    problems = [f"{key}: gora takes it from {where}; remove it." for key, where in _OWN.items() if key in document]
    problems += [
        f"{key}: {document[key]!r} says a second time what the recipe says; remove it, or write auto."
        for key in _BATCH
        if document.get(key, "auto") != "auto"
    ]
    stage = _section(path, document, "zero_optimization").get("stage", 0)
    if stage not in (1, 2, 3):
        problems.append(f"zero_optimization.stage: {stage!r} must be one of 1, 2, 3; without ZeRO take `ddp`.")
    if not _section(path, document, "zero_optimization").get("compute_grad_norm", True):
        problems.append("zero_optimization.compute_grad_norm: without the norm no NaN is noticed. Remove it.")
    for kind in ("fp16", "bf16"):
        if _section(path, document, kind).get("enabled", False) not in (False, "auto"):
            problems.append(f"{kind}: the arithmetic is train.precision; adapter values stay float32. Remove it.")
    if problems:
        raise InputError(f"{path} cannot be used with gora.", problems)
    # `train_batch_size: auto` fails on CPUs; DeepSpeed works it out from the other two.
    settings = {key: value for key, value in document.items() if key not in ("train_batch_size", "bf16", "fp16")}
    common = {
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 10**9,
    }
    return Engine(name=name, kind="deepspeed", settings={**common, **settings})
