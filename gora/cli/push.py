"""gora push"""

from pathlib import Path
from typing import Annotated

import typer

from gora.runtime.imports import importing


def push_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run's folder.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="ORG/NAME on the hub; made if there is none.")],
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="The base's name on the hub, if the run has a folder.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it; private otherwise.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List files and sizes, and upload nothing.")] = False,
) -> None:
    """Put the adapter of a run on the hub, with its model card (experimental)."""
    with importing():
        from gora.stages.push import push

    push(run, repository, base=base, public=public, dry_run=dry_run)
