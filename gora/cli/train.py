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
    mode_of,
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
    """Train the plan's adapter."""
    from gora.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or (), begin=overwrite)
    if show_sample:
        with importing():
            from gora.stages.sample import show_sample as show

        show(loaded.recipe, trust_remote_code=trust_remote_code)
        return
    mode = mode_of(resume=resume, overwrite=overwrite)
    if started_elsewhere(
        gpus=gpus,
        processes=processes,
        nodes=nodes,
        node_rank=node_rank,
        rendezvous=rendezvous,
        output=loaded.recipe.output,
        command="gora train",
    ):
        return
    with importing():
        from gora.stages.train import train

    train(loaded.recipe, mode=mode, trust_remote_code=trust_remote_code)
