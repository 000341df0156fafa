"""gora train"""

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
    started_elsewhere,
)
from gora.runtime.imports import importing


def train_command(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    show_sample: ShowSampleOption = False,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    gpus: GpusOption = None,
    processes: ProcessesOption = None,
    nodes: NodesOption = 1,
    node_rank: NodeRankOption = None,
    rendezvous: RendezvousOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Train the adapter: reads the plan, writes the adapter."""
    from gora.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    if show_sample:
        with importing():
            from gora.stages.sample import show_sample as show

        show(loaded.recipe, trust_remote_code=trust_remote_code)
        return
    if started_elsewhere(gpus, processes, nodes, node_rank, rendezvous):
        return
    with importing():
        from gora.stages.train import train

    train(loaded.recipe, resume=resume, overwrite=overwrite, trust_remote_code=trust_remote_code)
