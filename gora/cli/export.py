"""gora export"""

from pathlib import Path
from typing import Annotated

import typer

from gora.cli.options import OverwriteOption, TrustOption
from gora.runtime.imports import importing


def export_command(
    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="A run's folder, an adapter's, or ORG/NAME on the hub.")
    ],
    runtime: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="RUNTIME",
            help="peft, vllm, vllm@VERSION, llama.cpp, ollama, mlx, or (experimental) sglang, tgi.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder of the exported adapter.")],
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="Base model, if not the one the adapter names.")
    ] = None,
    overwrite: OverwriteOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Write an adapter as a runtime reads it."""
    with importing():
        from gora.stages.export import export

    export(adapter, runtime, output, base=base, overwrite=overwrite, trust_remote_code=trust_remote_code)
