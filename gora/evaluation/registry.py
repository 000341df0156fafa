"""All tasks by name."""

from __future__ import annotations

from gora.data.wording import did_you_mean
from gora.errors import InputError
from gora.evaluation.glue import glue_tasks
from gora.evaluation.gsm8k import Gsm8k
from gora.evaluation.humaneval import HumanEval
from gora.evaluation.loss import Loss
from gora.evaluation.mbpp import Mbpp
from gora.evaluation.mtbench import MTBench
from gora.evaluation.task import Task

_ALL: list[Task] = [Gsm8k(), HumanEval(), Mbpp(), MTBench(), *glue_tasks(), Loss()]
TASKS = {task.name: task for task in _ALL}


def task_named(name: str) -> Task:
    """The task of that name.

    Raises:
        InputError: there is none.
    """
    if name not in TASKS:
        raise InputError(
            f"--task {name}: there is no such task{did_you_mean(name, TASKS) or '.'} Known: {', '.join(TASKS)}."
        )
    return TASKS[name]
