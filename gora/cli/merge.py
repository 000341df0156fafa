"""gora merge"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gora.cli.options import OverwriteOption, TrustOption
from gora.runtime.imports import importing


class MergedType(StrEnum):
    """Data type of the merged weights."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def merge_command(
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder of the merged model.")],
    base: Annotated[
        str | None, typer.Option("--base", metavar="MODEL", help="Base model, if not the one the adapter names.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Argument(metavar="ADAPTER", help="A run's folder, an adapter's, or ORG/NAME on the hub.")
    ] = None,
    weighted: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="PATH=WEIGHT", help="One of several adapters, with the factor on it."),
    ] = None,
    dtype: Annotated[
        MergedType, typer.Option("--dtype", help="Type of the weights; auto: as in training.")
    ] = MergedType.auto,
    overwrite: OverwriteOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Fold an adapter into its base model."""
    with importing():
        from gora.adapters.merge_job import weighted_adapters
        from gora.stages.merge import merge

    adapters = weighted_adapters(adapter, weighted or [])
    merge(adapters, output, base=base, dtype=dtype.value, overwrite=overwrite, trust_remote_code=trust_remote_code)
