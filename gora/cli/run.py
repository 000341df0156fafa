"""gora run"""

from pathlib import Path
from typing import Annotated

import typer

from gora.cli.options import (
    CodeExecutionOption,
    DataOption,
    GpusOption,
    ModelOption,
    NodeRankOption,
    NodesOption,
    OptionalRecipeArgument,
    OverwriteOption,
    ProcessesOption,
    RendezvousOption,
    ResumeOption,
    SetOption,
    TrustOption,
    WeakSandboxOption,
    loaded_recipe,
    mode_of,
    started_elsewhere,
)
from gora.runtime.imports import importing


def run_command(
    recipe: OptionalRecipeArgument = None,
    model: ModelOption = None,
    data: DataOption = None,
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
    allow_weak_sandbox: WeakSandboxOption = False,
    trust_remote_code: TrustOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and what `gora check` says, and stop.")
    ] = False,
) -> None:
    """Precompute, train and evaluate."""
    loaded = loaded_recipe(recipe, model, data, overrides, begin=overwrite, trust_remote_code=trust_remote_code)
    mode = mode_of(resume=resume, overwrite=overwrite)
    if dry_run:
        with importing():
            from gora.recipe import dump_recipe
            from gora.report.check import check_page
            from gora.runtime.console import output
            from gora.stages.check import check

        count = (gpus or processes) and (gpus or processes or 1) * nodes
        found = check(loaded.recipe, processes=count, mode=mode, merge_too=merge, trust_remote_code=trust_remote_code)
        output.say(dump_recipe(found.recipe))
        output.say(check_page(found.problems, found.notes, found.facts))
        raise typer.Exit(found.exit_code)
    if started_elsewhere(
        gpus=gpus,
        processes=processes,
        nodes=nodes,
        node_rank=node_rank,
        rendezvous=rendezvous,
        output=loaded.recipe.output,
        command="gora run",
    ):
        return
    with importing():
        from gora.stages.run import run

    run(
        loaded.recipe,
        merge_too=merge,
        gradients=from_gradients,
        mode=mode,
        allow_code_execution=allow_code_execution,
        allow_weak_sandbox=allow_weak_sandbox,
        trust_remote_code=trust_remote_code,
    )
