"""gora precompute"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gora.cli.options import (
    GpusOption,
    NodeRankOption,
    NodesOption,
    OverwriteOption,
    ProcessesOption,
    RecipeArgument,
    RendezvousOption,
    ResumeOption,
    SetOption,
    ShowSampleOption,
    TrustOption,
    mode_of,
    started_elsewhere,
)
from gora.runtime.imports import importing


class GradientType(StrEnum):
    """Type of kept gradients."""

    bf16 = "bf16"
    fp32 = "fp32"


def precompute_command(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    show_sample: ShowSampleOption = False,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="An eighth of the memory for sums; importances are estimated.")
    ] = False,
    keep_gradients: Annotated[
        GradientType | None, typer.Option("--keep-gradients", help="Also write the mean gradients, in this type.")
    ] = None,
    from_gradients: Annotated[
        Path | None,
        typer.Option("--from-gradients", metavar="DIR", help="Make a plan from kept gradients, without the model."),
    ] = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    gpus: GpusOption = None,
    processes: ProcessesOption = None,
    nodes: NodesOption = 1,
    node_rank: NodeRankOption = None,
    rendezvous: RendezvousOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Turn gradients into ranks and initial values: the plan."""
    from gora.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or (), begin=overwrite)
    if show_sample:
        with importing():
            from gora.stages.sample import show_sample as show

        show(loaded.recipe, trust_remote_code=trust_remote_code)
        return
    mode = mode_of(resume=resume, overwrite=overwrite)
    if from_gradients is not None:
        with importing():
            from gora.stages.precompute import plan_from_gradients

        plan_from_gradients(loaded.recipe, from_gradients, mode=mode)
        return
    if started_elsewhere(
        gpus=gpus,
        processes=processes,
        nodes=nodes,
        node_rank=node_rank,
        rendezvous=rendezvous,
        output=loaded.recipe.output,
        command="gora precompute",
    ):
        return
    with importing():
        from gora.stages.precompute import precompute

    precompute(
        loaded.recipe,
        mode=mode,
        low_memory=low_memory,
        keep=keep_gradients.value if keep_gradients else None,  # type: ignore[arg-type]
        trust_remote_code=trust_remote_code,
    )
