"""What is said to lm-eval, and what it says: the model it is lent, its tasks, its figures and its rows."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peft import PeftModel

from gora.data.collate import padding_id
from gora.errors import InputError, pip_extra
from gora.evaluation.models.generate import Generator
from gora.models.encoders import longest_input
from gora.models.new_tokens import embedding_rows


def check_installed() -> None:
    """Raises InputError where there is no lm-eval."""
    if find_spec("lm_eval") is None:
        raise InputError(f"lm-eval is not installed: {pip_extra('lm-eval')}.")


def version() -> str:
    """Of lm-eval."""
    from lm_eval import __version__

    return str(__version__)


@cache
def manager(folder: str | None = None) -> Any:
    """All tasks of the harness, which takes it several seconds to read, or those of one of its folders."""
    import lm_eval.tasks

    if folder is None:
        return lm_eval.tasks.TaskManager()
    return lm_eval.tasks.TaskManager(include_defaults=False, include_path=Path(lm_eval.tasks.__file__).parent / folder)


def language_model(model: Any, generator: Generator, max_length: int | None = None) -> Any:
    """The model for lm-eval to ask; prompts and answers of up to `max_length` tokens, else what its config says."""
    from lm_eval.models.huggingface import HFLM

    # The harness settles padding in the tokenizer that it is given.
    tokenizer = copy.deepcopy(generator.tokenizer)
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    tokenizer.pad_token_id = padding_id(tokenizer, embedding_rows(inner))
    longest = max_length or longest_input(inner)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=generator.batch_size, max_length=longest)


def ask(lm: Any, loaded: dict[str, Any], limit: int | None = None) -> dict[str, Any]:
    """All that lm-eval has to say of loaded tasks, asked of a `language_model`."""
    from lm_eval import evaluate
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    results: dict[str, Any] = evaluate(lm=lm, task_dict=loaded, limit=limit, bootstrap_iters=0)
    return results


def metrics(results: dict[str, Any]) -> dict[str, float]:
    """By the harness' own names, such as `exact_match,strict-match`; those without a filter go by the metric alone."""
    found = {}
    samples = results["samples"]
    for task, figures in results["results"].items():
        for name, value in figures.items():
            metric, comma, filtered = name.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
                shown = metric if filtered == "none" else name
                # A group round a single task says nothing of its own.
                found[shown if len(samples) == 1 else f"{task}/{shown}"] = float(value)
    return found


def rows(results: dict[str, Any], places: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """One row a question: what was answered, and what each of the task's filters made of it."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for task, samples in results["samples"].items():
        for sample in samples:
            number, answers = sample["doc_id"], sample["resps"]
            row = found.setdefault(
                (task, number),
                {
                    "question": places[number] if places else f"{task}:{number + 1}",
                    "prompt": sample["arguments"][0][0],
                    "output": answers[0][0] if len(answers) == 1 else [answer[0] for answer in answers],
                    "gold": sample["target"],
                },
            )
            figures = {metric: sample[metric] for metric in sample["metrics"]}
            row[sample["filter"]] = {"extracted": sample["filtered_resps"], **figures}
    # Tasks may keep anything in a sample.
    plain: list[dict[str, Any]] = json.loads(json.dumps(list(found.values()), default=str))
    return plain
