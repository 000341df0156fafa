"""All tasks by name."""

from __future__ import annotations

from gora.data.messages import did_you_mean
from gora.errors import InputError
from gora.evaluation.mtbench import MTBench
from gora.evaluation.task import Task
from gora.evaluation.tasks.choice import Choice
from gora.evaluation.tasks.exact import Exact
from gora.evaluation.tasks.glue import glue_tasks
from gora.evaluation.tasks.gsm8k import Gsm8k
from gora.evaluation.tasks.humaneval import HumanEval
from gora.evaluation.tasks.image import ImageTask
from gora.evaluation.tasks.loss import Loss
from gora.evaluation.tasks.mbpp import Mbpp

_ALL: list[Task] = [Gsm8k(), HumanEval(), Mbpp(), MTBench(), *glue_tasks(), Choice(), Exact(), ImageTask(), Loss()]
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
