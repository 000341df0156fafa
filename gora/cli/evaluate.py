"""gora eval"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from gora.cli.options import (
    CodeExecutionOption,
    GpusOption,
    ProcessesOption,
    TrustOption,
    WeakSandboxOption,
    started_elsewhere,
)
from gora.runtime.imports import importing

Backend = Literal["hf", "vllm"]
JUDGE, GENERATION = "Judge (mtbench, experimental)", "Generation"


def evaluate_command(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="RUN|ADAPTER|MODEL", help="A run, an adapter or a model: a folder, or a name on the hub."
        ),
    ],
    tasks: Annotated[
        list[str],
        typer.Option(
            "--task",
            metavar="NAME",
            help="gsm8k, glue/NAME, humaneval, mbpp, mtbench, choice, exact, image, loss, or harness:NAME for a task "
            "of lm-eval; may be repeated.",
        ),
    ],
    data: Annotated[
        str | None, typer.Option("--data", metavar="PATH", help="Questions from here instead of the published set.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="ROLE=NAME",
            help="Which column of --data is the prompt, the choices or the answer (choice, exact); may be repeated.",
        ),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Evaluate the base model, without what was trained.")] = False,
    both: Annotated[bool, typer.Option("--both", help="Evaluate both, and show the difference.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Evaluate only the first N examples.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of whatever is drawn.")] = 0,
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Answers to each question (pass@k).", rich_help_panel=GENERATION)
    ] = 1,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", min=0.0, help="0 is greedy; the task's own by default.", rich_help_panel=GENERATION
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            min=1,
            help="Longest answer in tokens; the task's own by default.",
            rich_help_panel=GENERATION,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Prompts at a time.", rich_help_panel=GENERATION)
    ] = 64,
    backend: Annotated[
        Backend,
        typer.Option("--backend", help="What generates; vllm is experimental.", rich_help_panel=GENERATION),
    ] = "hf",
    destination: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Where results go; a run's own folder by default.")
    ] = None,
    harness: Annotated[
        bool, typer.Option("--harness", help="Ask and score gsm8k and glue/NAME with lm-eval too, for comparison.")
    ] = False,
    allow_code_execution: CodeExecutionOption = False,
    allow_weak_sandbox: WeakSandboxOption = False,
    judge_url: Annotated[
        str | None,
        typer.Option(
            "--judge-url",
            metavar="URL",
            help="OpenAI-compatible endpoint that rates answers (mtbench).",
            rich_help_panel=JUDGE,
        ),
    ] = None,
    judge_model: Annotated[
        str | None,
        typer.Option("--judge-model", metavar="NAME", help="What the endpoint calls the judge.", rich_help_panel=JUDGE),
    ] = None,
    judge_key_env: Annotated[
        str,
        typer.Option(
            "--judge-key-env",
            metavar="NAME",
            help="Environment variable with the endpoint's key.",
            rich_help_panel=JUDGE,
        ),
    ] = "OPENAI_API_KEY",
    judge_prompts: Annotated[
        Path | None,
        typer.Option(
            "--judge-prompts", metavar="FILE", help="Judge prompts in FastChat's form.", rich_help_panel=JUDGE
        ),
    ] = None,
    judge_parallel: Annotated[
        int, typer.Option("--judge-parallel", min=1, help="Requests at a time.", rich_help_panel=JUDGE)
    ] = 4,
    gpus: GpusOption = None,
    processes: ProcessesOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Ask a trained model, its base, or both, and score the answers."""
    from gora.errors import InputError

    if base and both:
        raise InputError("--base evaluates the base model alone, --both the trained one as well: give one of the two.")
    if (judge_url is None) != (judge_model is None):
        raise InputError("--judge-url and --judge-model belong together: which model, and where it is asked.")
    if started_elsewhere(gpus=gpus, processes=processes):
        return
    with importing():
        from gora.evaluation.task import JudgeSettings, Options
        from gora.stages.evaluate import Job, Which, columns_named, evaluate, task_jobs

    judge = None
    if judge_url and judge_model:
        judge = JudgeSettings(
            base_url=judge_url,
            model=judge_model,
            api_key_env=judge_key_env,
            parallel=judge_parallel,
            prompts=judge_prompts,
        )
    options = Options(
        folder=Path(),
        data=data,
        limit=limit,
        seed=seed,
        samples=samples,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        columns=columns_named(columns or []),
        allow_code_execution=allow_code_execution,
        allow_weak_sandbox=allow_weak_sandbox,
        judge=judge,
    )
    which: Which = "both" if both else "base" if base else "trained"
    jobs = task_jobs(tasks, options, harness=harness)
    evaluate(
        subject,
        Job(tasks=jobs, which=which, batch_size=batch_size, backend=backend, trust_remote_code=trust_remote_code),
        destination=destination,
    )
