"""Folding an adapter into its base model, and comparing the two before the result appears."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from gora import manifest
from gora.adapters.destination import check_destination
from gora.adapters.load import find_adapter, read_config
from gora.adapters.merge_job import Merge, MergeJob, refuse_several
from gora.adapters.mergeable import incomplete_merge, unsteady_merge
from gora.adapters.save import ADAPTER_NOTE
from gora.adapters.serving import model_commands
from gora.adapters.streamed_merge import StreamedMerge
from gora.adapters.whole_merge import WholeMerge
from gora.errors import GoraError, InputError
from gora.files import publish
from gora.models.streamed import changes_weights
from gora.models.whole import not_loaded
from gora.runs.owner import is_owned, owning
from gora.runtime.console import output
from gora.runtime.quiet import quiet_libraries


@dataclass(frozen=True)
class Merged:
    """What the stage made."""

    path: Path
    largest_difference: float
    """Largest absolute difference of any logit between adapter and merged model."""
    largest_logit: float


def merge(
    adapter: Path | Sequence[tuple[Path, float]],
    destination: Path,
    *,
    base: str | None = None,
    dtype: str = "auto",
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Merged:
    """Write base plus adapter as an ordinary model folder.

    Each merged weight is computed in float32 and rounded to `dtype`, once. Weights are read and written one by one; a
    base whose weights transformers converts, a classifier and new tokens are loaded as a whole.

    Args:
        adapter: an adapter of PEFT (a folder, or `ORG/NAME[@REVISION]` on the hub), or a run folder that holds one; or
            several of one base, each with the factor on its update.
        destination: the new folder.
        base: the base model; None is the one that the adapter names.
        dtype: `float32`, `bfloat16`, `float16`, or `auto` for the type the base weights had in training.
        overwrite: replace an existing model folder; anything else is never replaced.
        trust_remote_code: let the model run Python code of its own.

    Raises:
        InputError: the adapter is damaged or cannot be folded into a weight, the base is not the one it was trained on,
            or the destination cannot be written.
        GoraError: the merged model does not compute what base and adapter compute.
    """
    quiet_libraries()
    job = _look(adapter, destination, base, dtype, overwrite, trust_remote_code)
    with output.terminal.status("merging"):
        way = _way(job)
    writing = publish(destination, way.bytes)
    with _owning_run_of(destination), writing as aside, output.terminal.status("writing and comparing"):
        digests = way.write(aside)
        job.processor.save_pretrained(str(aside))
        if (job.adapter / ADAPTER_NOTE).exists():
            # Whoever asks the merged model something needs the form that was trained.
            shutil.copyfile(job.adapter / ADAPTER_NOTE, aside / ADAPTER_NOTE)
        found = way.logits_of(aside)
        result = Merged(destination, (found - way.expected).abs().max().item(), way.expected.abs().max().item())
        _refuse_wrong(result, job.tolerance)
        manifest.seal(aside, known=digests)
    output.say(
        f"merged    {destination}: {job.dtype}; largest difference of a logit to the adapter "
        f"{result.largest_difference:.2g} (largest logit {result.largest_logit:.3g})"
    )
    if job.source.causal:
        output.say("\n".join(f"serve     {command}" for command in model_commands(destination)))
    return result


def _look(
    adapter: Path | Sequence[tuple[Path, float]],
    destination: Path,
    base: str | None,
    dtype: str,
    overwrite: bool,
    trust_remote_code: bool,
) -> MergeJob:
    """Refuse what cannot be merged before anything is loaded."""
    weighted = [(adapter, 1.0)] if isinstance(adapter, Path) else list(adapter)
    adapters = [(find_adapter(path), weight) for path, weight in weighted]
    configs = [read_config(path, with_tokens=True, with_experts=True, foldable=True) for path, _ in adapters]
    name = base or configs[0].base_model_name_or_path
    if not name:
        raise InputError(f"{adapters[0][0]} does not name its base model: give it with --base.")
    for path, _ in adapters:
        check_destination(destination, path, name, overwrite)
    refuse_several(adapters, configs)
    return MergeJob.of(adapters, configs[0], base, dtype, trust_remote_code)


def _way(job: MergeJob) -> Merge:
    """Weight by weight, or where that cannot be in memory."""
    if changes_weights(job.source):
        raise InputError(f"{job.adapter} is not merged: {unsteady_merge(job.settings.name)}")
    if (found := StreamedMerge.of(job)) is not None:
        return found
    if lost := not_loaded(job.source):
        raise InputError(f"{job.adapter} is not merged: {incomplete_merge(job.settings.name, lost)}")
    return WholeMerge.of(job)


def _owning_run_of(destination: Path) -> AbstractContextManager[None]:
    """A merged model that is written into a run folder keeps other commands out of it."""
    folder = destination.parent
    return owning(folder, command="gora merge", option="--output") if is_owned(folder) else nullcontext()


def _refuse_wrong(result: Merged, tolerance: float) -> None:
    if not result.largest_difference <= tolerance * result.largest_logit:
        raise GoraError(
            f"The merged model differs from base and adapter by {result.largest_difference:.3g} in a logit "
            f"(largest logit {result.largest_logit:.3g}): it was not kept."
        )
