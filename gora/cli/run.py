"""gora run"""

from pathlib import Path
from typing import Annotated

import typer

from gora.cli.options import (
    CodeExecutionOption,
    GpusOption,
    NodeRankOption,
    NodesOption,
    OverwriteOption,
    ProcessesOption,
    RecipeArgument,
    RendezvousOption,
    ResumeOption,
    SetOption,
    TrustOption,
    started_elsewhere,
)
from gora.runtime.imports import importing


def run_command(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    merge: Annotated[bool, typer.Option("--merge", help="Also write the merged model.")] = False,
    from_gradients: Annotated[
        Path | None,
        typer.Option("--from-gradients", metavar="DIR", help="Make the plan from gradients that precompute kept."),
    ] = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    gpus: GpusOption = None,
    processes: ProcessesOption = None,
    nodes: NodesOption = 1,
    node_rank: NodeRankOption = None,
    rendezvous: RendezvousOption = None,
    allow_code_execution: CodeExecutionOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Precompute, train and evaluate."""
    from gora.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    if started_elsewhere(gpus, processes, nodes, node_rank, rendezvous):
        return
    with importing():
        from gora.stages.run import run

    run(
        loaded.recipe,
        merge_too=merge,
        gradients=from_gradients,
        resume=resume,
        overwrite=overwrite,
        allow_code_execution=allow_code_execution,
        trust_remote_code=trust_remote_code,
    )
