"""The plan: ranks and initial values of every target layer, as one safetensors file.

Tensors are `<module>.lora_A` (r, in) and `<module>.lora_B` (out, r), float32, for every module with a rank above zero.
Fused experts of a block count as one module, named after their parameter: they share a rank, and their tensors are
(experts, r, in) and (experts, out, r).
The rest is one JSON document in the file's header, under `gora`; its `sha256` covers the document and all tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gora.core.ranks import Allocation, Rule
from gora.errors import InputError
from gora.files import parse_json, publish

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 2
_READ_VERSIONS = (1, 2)
"""Version 1 knew no experts; what else it says means the same in version 2, whose fields have defaults for the rest."""
Factors = dict[str, tuple["Tensor", "Tensor"]]
Source = Literal["default", "recipe", "preset", "computed", "measured"]
"""Who decides a setting: the schema's default, the recipe with its overrides, the preset; or what stands for `auto` was
computed from the model, the rows or the machine, or measured by passes over rows."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class ModelIdentity(_Record):
    """Which base model a plan belongs to."""

    name: str
    """Hub id or folder, as the recipe named it; not compared, since the same model can lie in many places."""
    config: str
    """SHA-256 of the model's architecture settings."""
    weights: str
    """SHA-256 over name, shape, data type and value of every tensor in the model's files, targets or not."""
    tensors: str = ""
    """The first eight hexadecimal digits of each tensor's own SHA-256, sorted and joined."""


class DataIdentity(_Record):
    """Which rows the gradients come from."""

    fingerprint: str
    """SHA-256 of the token ids and labels of the training rows, in order."""


class ModulePlan(_Record):
    """What one target layer gets, or each of the fused experts of a block."""

    name: str
    shape: tuple[int, int]
    """(out, in)."""
    experts: int | None = None
    """How many experts share the rank; None for a layer."""
    importance: float
    """Of experts, the sum."""
    advantage: float
    rank: int
    scaling: float
    """alpha / sqrt(rank); 0 for rank 0."""
    gradient_norm: float
    """Frobenius norm of the mean gradient."""
    signal: float | None = None
    """Which share of that norm is signal and not noise, from 0 to 1; None where it is not known."""

    @property
    def size(self) -> int:
        """How many matrices have this rank."""
        return 1 if self.experts is None else self.experts

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """(out, in), or (experts, out, in)."""
        return self.shape if self.experts is None else (self.experts, *self.shape)

    @property
    def parameters(self) -> int:
        """Entries of A and B."""
        return self.rank * self.parameters_per_rank

    @property
    def parameters_per_rank(self) -> int:
        """What one more rank adds to A and B."""
        return self.size * sum(self.shape)


class Decision(_Record):
    """What was decided, and on what grounds."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", allow_inf_nan=False, populate_by_name=True, serialize_by_alias=True
    )

    value: Any
    """Anything JSON can say."""
    origin: Source = Field(validation_alias="from", serialization_alias="from")
    """Under `from` in the document."""
    why: str = ""
    curve: tuple[tuple[float, float], ...] = ()
    """What was tried, and its loss, in order of what was tried."""


class Plan(_Record):
    """A rank and a scaling for every target layer, and where they come from."""

    format_version: Literal[2] = 2
    gora_version: str
    model: ModelIdentity
    data: DataIdentity
    steps: int
    micro_batch_size: int
    seed: int
    gamma: float
    init_a: str = "random"
    step: str = "gradient"
    """What gamma is a fraction of."""
    scale: str = "mean"
    balance: bool = False
    alpha: float
    reference_rank: int
    asked_parameters: int | None = None
    """The budget, where it is another than LoRA's at the reference rank."""
    rank_min: int
    rank_max: int | None
    """None is unbounded."""
    importance: str
    budget: str
    allocation: Allocation = "proportional"
    temperature: float | None = None
    """Of allocation softmax."""
    decisions: dict[str, Decision] = {}
    """What was not taken as the recipe has it, by setting such as `gora.gamma`."""
    modules: tuple[ModulePlan, ...]

    @model_validator(mode="after")
    def _names_are_unique(self) -> Plan:
        names = [module.name for module in self.modules]
        if len(set(names)) != len(names):
            raise ValueError("a module is named twice")
        return self

    def asked(self, setting: str, made: Any, wanted: Any) -> Any:
        """What the plan was made with, as a recipe would have it: `auto` where that was asked for and is still.

        Args:
            setting: dotted key.
            made: the value in the plan.
            wanted: the value in the recipe.
        """
        found = setting in self.decisions and self.decisions[setting].origin in ("computed", "measured")
        return "auto" if found and wanted == "auto" else made

    @property
    def rule(self) -> Rule:
        """How importances became shares of the budget."""
        return Rule(self.allocation) if self.temperature is None else Rule(self.allocation, self.temperature)

    @property
    def adapted(self) -> tuple[ModulePlan, ...]:
        """The modules with a rank above zero."""
        return tuple(module for module in self.modules if module.rank > 0)

    @property
    def parameters(self) -> int:
        """Trainable parameters of the adapter."""
        return sum(module.parameters for module in self.modules)

    @property
    def lora_parameters(self) -> int:
        """Trainable parameters of LoRA at the reference rank on the same layers."""
        return sum(self.reference_rank * module.parameters_per_rank for module in self.modules)


def write_plan(path: Path | str, plan: Plan, factors: Factors) -> None:
    """Publish the plan file.

    Args:
        path: where it appears.
        plan: the document.
        factors: A (r, in) and B (out, r) of every adapted module; of experts A (experts, r, in) and B
            (experts, out, r). Any float dtype; stored as float32 on the CPU.
    """
    from safetensors.torch import save_file

    tensors = {}
    for module in plan.adapted:
        factor_a, factor_b = factors[module.name]
        tensors[f"{module.name}.lora_A"] = factor_a.detach().float().cpu().contiguous()
        tensors[f"{module.name}.lora_B"] = factor_b.detach().float().cpu().contiguous()
    document = plan.model_dump(mode="json")
    contents = ((name, "F32", list(value.shape), value.numpy().tobytes()) for name, value in sorted(tensors.items()))
    document["sha256"] = _digest(document, contents)
    with publish(path, sum(value.nbytes for value in tensors.values())) as aside:
        # One entry only: several are written in no fixed order, and the same plan should be the same file.
        save_file(tensors, aside, metadata={"gora": json.dumps(document)})


def add_decision(path: Path | str, setting: str, decision: Decision) -> None:
    """Write one more decision into a plan file; its ranks and values stay.

    Raises:
        InputError: see `read_plan` and `read_factors`.
    """
    plan = read_plan(path)
    decided = plan.model_copy(update={"decisions": {**plan.decisions, setting: decision}})
    write_plan(path, decided, read_factors(path, plan))


def read_plan(path: Path | str) -> Plan:
    """Read and check the document of a plan file, without the tensors and without torch.

    Raises:
        InputError: no such file, not a safetensors file, not a plan, changed after it was written, or a plan of another
            format version.
    """
    document = _read_document(Path(path))
    claimed = document.pop("sha256", None)
    version = document.get("format_version")
    if version not in _READ_VERSIONS:
        readable = " and ".join(map(str, _READ_VERSIONS))
        raise InputError(f"{path}: plan format version {version!r}, but this gora reads versions {readable}.")
    try:
        plan = Plan.model_validate({**document, "format_version": FORMAT_VERSION})
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, issue['loc'])) or 'plan'}: {issue['msg']}" for issue in error.errors()]
        raise InputError(f"{path}: not a valid plan", problems) from None
    if claimed != _digest(document, _tensor_contents(Path(path))):
        raise InputError(
            f"{path} is damaged: it was changed after it was written (SHA-256 differs). Make it again with "
            "`gora precompute --overwrite`."
        )
    return plan


def read_factors(path: Path | str, plan: Plan) -> Factors:
    """Read A and B of every adapted module, float32 on the CPU.

    Raises:
        InputError: tensors are missing, left over, of another shape or dtype than the plan says, or not finite.
    """
    from safetensors.torch import load_file

    tensors = load_file(path)
    expected = {}
    for module in plan.adapted:
        *experts, rows, columns = module.whole_shape
        expected[f"{module.name}.lora_A"] = (*experts, module.rank, columns)
        expected[f"{module.name}.lora_B"] = (*experts, rows, module.rank)
    problems = [f"tensor {name} is missing" for name in expected if name not in tensors]
    problems += [f"tensor {name} belongs to no module of the plan" for name in tensors if name not in expected]
    for name in expected.keys() & tensors.keys():
        found = f"{tuple(tensors[name].shape)} {str(tensors[name].dtype).removeprefix('torch.')}"
        if found != (wanted := f"{expected[name]} float32"):
            problems.append(f"tensor {name} is {found}, expected {wanted}")
        elif not tensors[name].isfinite().all():
            problems.append(f"tensor {name} holds NaN or infinity")
    if problems:
        raise InputError(f"{path}: tensors and ranks do not agree", sorted(problems))
    return {m.name: (tensors[f"{m.name}.lora_A"], tensors[f"{m.name}.lora_B"]) for m in plan.adapted}


def identity_differences(
    plan: Plan, model: ModelIdentity, shapes: Mapping[str, tuple[int, ...]], *, changed: str = ""
) -> list[str]:
    """What keeps a plan from fitting a model, one sentence per difference; empty when it fits.

    Args:
        plan: the plan.
        model: identity of the loaded model.
        shapes: (out, in) of every target layer of the loaded model, (experts, out, in) of fused experts.
        changed: which weights differ, where they do.
    """
    planned = {module.name: module.whole_shape for module in plan.modules}
    found = []
    if plan.model.config != model.config:
        found.append(
            f"model.config: the plan was made for {plan.model.name!r}, whose architecture is not that of {model.name!r}"
        )
    if missing := sorted(planned.keys() - shapes.keys()):
        found.append(f"targets: {len(missing)} planned layers are not targets of this run ({_some(missing)})")
    if extra := sorted(shapes.keys() - planned.keys()):
        found.append(f"targets: {len(extra)} targets of this run are not in the plan ({_some(extra)})")
    for name in sorted(planned.keys() & shapes.keys()):
        if planned[name] != shapes[name]:
            found.append(f"modules.{name}.shape: {planned[name]} in the plan, {shapes[name]} in the model")
    if not found and plan.model.weights != model.weights:
        found.append(
            f"model.weights: the weights of the base model {model.name!r} differ from those the plan was made from"
            + (f" ({changed})" if changed else "")
        )
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _digest(document: dict[str, Any], contents: Iterable[tuple[str, str, list[int], bytes]]) -> str:
    """SHA-256 over the document and every tensor's name, dtype, shape and bytes, in the order of the names."""
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    for name, dtype, shape, content in contents:
        digest.update(json.dumps([name, dtype, shape]).encode())
        digest.update(content)
    return digest.hexdigest()


def _tensor_contents(path: Path) -> Iterable[tuple[str, str, list[int], bytes]]:
    """Name, dtype, shape and bytes of every tensor, read from the file itself: neither torch nor numpy is needed.

    The format is eight bytes with the length of a JSON header, the header, and the values.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(length))
        for name in sorted(header.keys() - {"__metadata__"}):
            entry = header[name]
            begin, end = entry["data_offsets"]
            file.seek(8 + length + begin)
            yield name, entry["dtype"], entry["shape"], file.read(end - begin)


def _read_document(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path}: no such plan file. `gora precompute` writes one.")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        document = parse_json(metadata["gora"])
    except SafetensorError as error:
        raise InputError(
            f"{path}: not a whole safetensors file ({error}). Make it again with `gora precompute`."
        ) from None
    except (KeyError, ValueError):
        raise InputError(
            f"{path}: a safetensors file, but not a plan of gora (no `gora` document in its header)."
        ) from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: the `gora` document in the header is not an object.")
    return document
