"""Arguments and options that several verbs share."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from gora.errors import InputError
from gora.runs.folder import RunFolder
from gora.runs.owner import holding_for_workers
from gora.runs.state import Mode
from gora.runtime.imports import importing
from gora.runtime.launch import Launch

if TYPE_CHECKING:
    from gora.recipe import LoadedRecipe

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a built-in recipe.")]
OptionalRecipeArgument = Annotated[
    str | None, typer.Argument(metavar="[RECIPE]", help="A YAML file, or the name of a built-in recipe.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting of the recipe; may be repeated."),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Resume from the latest checkpoint.")]
ShowSampleOption = Annotated[
    bool, typer.Option("--show-sample", help="Show one tokenized row, its supervised part marked, and stop.")
]
PROCESSES, SAFETY = "Processes", "Code of others"
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Let the model run Python code of its own. Read that code first.",
        rich_help_panel=SAFETY,
    ),
]
CodeExecutionOption = Annotated[
    bool,
    typer.Option(
        "--allow-code-execution",
        help="Run programs that the model writes (humaneval, mbpp), in a sandbox.",
        rich_help_panel=SAFETY,
    ),
]
WeakSandboxOption = Annotated[
    bool,
    typer.Option(
        "--allow-weak-sandbox",
        help="Run them also where the system lacks walls of the sandbox.",
        rich_help_panel=SAFETY,
    ),
]
GpusOption = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        min=1,
        help="GPUs to use on this host, one process each; all visible ones by default.",
        rich_help_panel=PROCESSES,
    ),
]
ProcessesOption = Annotated[
    int | None,
    typer.Option(
        "--processes", min=1, help="Processes on this host, on its CPUs instead of GPUs.", rich_help_panel=PROCESSES
    ),
]
NodesOption = Annotated[
    int,
    typer.Option("--nodes", min=1, help="Hosts (experimental); run this command on each.", rich_help_panel=PROCESSES),
]
NodeRankOption = Annotated[
    int | None,
    typer.Option(
        "--node-rank", min=0, help="Index of this host; host 0 must be the rendezvous host.", rich_help_panel=PROCESSES
    ),
]
RendezvousOption = Annotated[
    str | None,
    typer.Option(
        "--rendezvous", metavar="HOST:PORT", help="Address of the rendezvous, on host 0.", rich_help_panel=PROCESSES
    ),
]


ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="With --data, instead of RECIPE: what to tune.")
]
DataOption = Annotated[
    str | None, typer.Option("--data", metavar="DATA", help="Rows to tune it on; see `gora init` for the recipe.")
]


def loaded_recipe(
    recipe: str | None,
    model: str | None,
    data: str | None,
    overrides: list[str] | None,
    *,
    begin: bool,
    trust_remote_code: bool,
) -> "LoadedRecipe":
    """The recipe that is named, or the one that `gora init` would write."""
    from gora.recipe import load_recipe

    if recipe is not None and model is None and data is None:
        return load_recipe(recipe, overrides or (), begin=begin)
    if recipe is not None or model is None or data is None:
        raise InputError("Give a RECIPE, or --model and --data.")
    with importing():
        from gora.runtime.world import launched
        from gora.stages.init import propose

    made = propose(model, data, overrides or (), begin=begin, trust_remote_code=trust_remote_code)
    if not launched():
        typer.echo(made.text)
    return made.loaded


def mode_of(*, resume: bool, overwrite: bool) -> Mode:
    """What the two options say about a folder that may hold a run."""
    if resume and overwrite:
        raise InputError("--resume continues an earlier run and --overwrite replaces it: give one of the two.")
    return "resume" if resume else "overwrite" if overwrite else "new"


def started_elsewhere(
    *,
    gpus: int | None,
    processes: int | None,
    nodes: int = 1,
    node_rank: int | None = None,
    rendezvous: str | None = None,
    output: str | None = None,
    command: str = "gora",
) -> bool:
    """Run this very command in several processes, if the options or the GPUs here ask for it.

    Args:
        gpus, processes, nodes, node_rank, rendezvous: see `Launch`.
        output: the run folder, which this process then holds for all of them; None where there is none.
        command: told to whoever finds the folder in use.
    """

    def holding() -> AbstractContextManager[object]:
        return holding_for_workers(RunFolder.of(output).path, command=command) if output else nullcontext()

    launch = Launch(gpus=gpus, processes=processes, nodes=nodes, node_rank=node_rank, rendezvous=rendezvous)
    return launch.start(sys.argv[1:], holding)
