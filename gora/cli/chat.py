"""gora chat and gora generate"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gora.cli.options import TrustOption
from gora.runtime.imports import importing

if TYPE_CHECKING:
    from gora.evaluation.task import Sampling

SubjectArgument = Annotated[
    str,
    typer.Argument(metavar="RUN|ADAPTER|MODEL", help="A run, an adapter or a model: a folder, or a name on the hub."),
]
BaseOption = Annotated[bool, typer.Option("--base", help="Also answer without what was trained, side by side.")]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token each time.")
]
TopPOption = Annotated[
    float, typer.Option("--top-p", min=0.01, max=1.0, help="Draw from the likeliest tokens of this share only.")
]
NewTokensOption = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer in tokens.")]
StopOption = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="Ends an answer; may be repeated.")
]


def chat_command(
    subject: SubjectArgument,
    base: BaseOption = False,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System message.")] = None,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    max_new_tokens: NewTokensOption = 512,
    stop: StopOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Talk with a run, an adapter or a model in its trained format."""
    with importing():
        from gora.stages.chat import chat

    sampling = _sampling(temperature, top_p, max_new_tokens, stop)
    chat(subject, sampling, system=system, beside_base=base, trust_remote_code=trust_remote_code)


def generate_command(
    subject: SubjectArgument,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompt", metavar="TEXT", help="What to answer; may be repeated.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="Prompts, one per line; in a .jsonl file, the value of `prompt`."),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it stands, without a prompt format.")
    ] = False,
    base: BaseOption = False,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    max_new_tokens: NewTokensOption = 512,
    stop: StopOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Answer prompts: one as it comes, several as lines of JSON."""
    with importing():
        from gora.stages.chat import generate

    generate(
        subject,
        _sampling(temperature, top_p, max_new_tokens, stop),
        prompts=prompts or [],
        file=file,
        raw=raw,
        beside_base=base,
        trust_remote_code=trust_remote_code,
    )


def _sampling(temperature: float, top_p: float, max_new_tokens: int, stop: list[str] | None) -> Sampling:
    from gora.evaluation.task import Sampling

    return Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, stop=tuple(stop or ()))
