"""A second opinion: the same model, asked and scored by EleutherAI's lm-evaluation-harness (package lm-eval).

`SecondOpinion` gives it the rows and the prompts of a task of ours and keeps its filters and metrics; `Foreign` runs
one of its tasks just as it comes. Tokens, batches, decoding and scores are the harness' in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gora.data.messages import did_you_mean
from gora.errors import InputError
from gora.evaluation.models.generate import Generator
from gora.evaluation.models.subject import LocalSubject
from gora.evaluation.task import Options, Scores, Subject, Task
from gora.evaluation.tasks import lm_harness
from gora.evaluation.tasks.glue import Glue
from gora.evaluation.tasks.gsm8k import LONGEST, Gsm8k

PREFIX = "harness:"
"""Stands before the name of a task of the harness' own."""

_LABEL_TOKENS = 64


class SecondOpinion:
    """A task of ours, put to the model by the harness.

    Args:
        task: the task.
    """

    def __init__(self, task: Gsm8k | Glue) -> None:
        self._task = task
        self._folder, _, subset = task.name.partition("/")
        self._theirs = subset or self._folder

    @property
    def name(self) -> str:
        """`gsm8k/harness`."""
        return f"{self._task.name}/harness"

    def check(self, options: Options) -> None:
        """The harness is installed, and decodes as it is asked to."""
        lm_harness.check_installed()
        if options.temperature:
            raise InputError("--harness takes the likeliest token each time: leave --temperature or --harness out.")

    def evaluate(self, subject: Subject, options: Options) -> Scores:
        """Ask every question in the form that was trained; see `Task`."""
        local, generator = _parts(subject)
        questions = self._task.questions(options)
        prompts = self._prompts(local, questions.rows)
        ids = local.prompting.ids(prompts)
        width = max(len(one) for one in ids)
        wanted = options.max_new_tokens or LONGEST if isinstance(self._task, Gsm8k) else _LABEL_TOKENS
        room = generator.room(width, wanted)
        if room < 1:
            raise InputError(f"{self.name}: a prompt of {width:,} tokens fills the model's context; leave its row out.")
        with generator.lent(base=local.base, own_settings=False) as model:
            # Told of less, the harness would cut the front off a prompt to keep room for the longest answer.
            lm = lm_harness.language_model(model, generator, max_length=width + room)
            changes = self._generation(lm, room) if isinstance(self._task, Gsm8k) else self._choices(local)
            loaded = lm_harness.manager(self._folder).load([self._description(prompts, questions.rows, changes)])
            results = lm_harness.ask(lm, loaded)
            read_otherwise = sum(lm.tok_encode(text) != one for text, one in zip(prompts, ids, strict=True))
        facts = {
            **questions.facts,
            "lm_eval": lm_harness.version(),
            "prompts": "as trained",
            "prompts_in_other_tokens": read_otherwise,
            "cut_short": len(prompts) if room < wanted else 0,
        }
        return Scores(
            lm_harness.metrics(results), lm_harness.rows(results, [where for where, _ in questions.rows]), facts
        )

    def _prompts(self, local: LocalSubject, rows: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        if isinstance(self._task, Glue):
            return local.row_prompts(rows)
        return [local.prompting.conversation([{"role": "user", "content": row["question"]}]) for _, row in rows]

    def _description(
        self, prompts: list[str], rows: Sequence[tuple[str, dict[str, Any]]], changes: dict[str, Any]
    ) -> dict[str, Any]:
        """The harness' own description of the task, with our rows and prompts in it."""
        from datasets import Dataset

        gold = "answer" if isinstance(self._task, Gsm8k) else "label"
        asked = [{"prompt": prompt, gold: row[gold]} for prompt, (_, row) in zip(prompts, rows, strict=True)]
        changed = {
            "task": self._theirs,
            "custom_dataset": lambda **_: {"test": Dataset.from_list(asked)},
            **dict.fromkeys(("training_split", "validation_split", "fewshot_split")),
            "test_split": "test",
            "num_fewshot": 0,
            "doc_to_text": "prompt",
            **changes,
        }
        # Only a member of a group is laid over the description that the harness has; alone it would replace it.
        return {"group": "gora", "task": [changed]}

    @staticmethod
    def _generation(lm: Any, room: int) -> dict[str, Any]:
        """Greedy until the end of the sequence, as in training, or until there is no room."""
        arguments = {"until": [], "do_sample": False, "max_gen_toks": room}
        if lm.backend == "seq2seq":
            # The harness would add the length of the prompt, which is the encoder's.
            arguments["max_length"] = room + 1
        return {"generation_kwargs": arguments}

    @staticmethod
    def _choices(local: LocalSubject) -> dict[str, Any]:
        """The labels' texts as they were trained; the harness takes the likeliest of them."""
        return {"doc_to_choice": local.prompting.choices, "target_delimiter": local.prompting.separator}


class Foreign:
    """A task, group or YAML file of the harness' own, with its data, its prompts and its examples.

    Args:
        reference: its name, or the path of the file.
    """

    def __init__(self, reference: str) -> None:
        self._reference = reference

    @property
    def name(self) -> str:
        """`harness:hellaswag`; a file goes by its name without folder and ending."""
        path = Path(self._reference)
        return PREFIX + (path.stem if path.suffix in (".yaml", ".yml") else self._reference)

    def check(self, options: Options) -> None:
        """The harness is installed, has such a task and can load it."""
        lm_harness.check_installed()
        asked = f"--task {PREFIX}{self._reference}"
        given = {
            "--data": options.data,
            "--max-new-tokens": options.max_new_tokens,
            "--temperature": options.temperature,
        }
        if settled := [option for option, value in given.items() if value is not None]:
            raise InputError(
                f"{asked} comes with its data and settings: leave {', '.join(settled)} out. "
                "Others can be written into a YAML file of lm-eval, whose path is then given in place of the name."
            )
        if not Path(self._reference).is_file() and self._reference not in (known := lm_harness.manager().all_tasks):
            raise InputError(
                f"{asked} is neither a task of lm-eval nor a file{did_you_mean(self._reference, known) or '.'}"
            )
        self._loaded()

    def evaluate(self, subject: Subject, options: Options) -> Scores:
        """Run it as it comes; see `Task`."""
        local, generator = _parts(subject)
        loaded = self._loaded()
        with generator.lent(base=local.base, own_settings=True) as model:
            results = lm_harness.ask(lm_harness.language_model(model, generator), loaded, options.limit)
        facts = {
            "lm_eval": lm_harness.version(),
            "prompts": "of lm-eval",
            "num_fewshot": results["n-shot"],
            "task_versions": results["versions"],
            "cut_short": None,
        }
        return Scores(lm_harness.metrics(results), lm_harness.rows(results), facts)

    def _loaded(self) -> dict[str, Any]:
        try:
            loaded: dict[str, Any] = lm_harness.manager().load([self._reference])
        except Exception as error:  # whatever a task's data, templates and functions may raise
            raise InputError(
                f"{self.name} cannot be loaded; most tasks of lm-eval fetch their data from the hub: {error}"
            ) from error
        if unsafe := [name for name, task in loaded["tasks"].items() if getattr(task, "UNSAFE_CODE", False)]:
            raise InputError(
                f"{', '.join(unsafe)}: lm-eval would run programs of the model's without a sandbox. "
                "For humaneval and mbpp use gora's own tasks; start others with lm-eval itself."
            )
        return loaded


def second_opinion(task: Task) -> SecondOpinion:
    """What the harness is asked beside a task.

    Raises:
        InputError: it has no counterpart there.
    """
    if not isinstance(task, Gsm8k | Glue):
        raise InputError(
            f"--harness gives a second opinion on gsm8k and glue/NAME, not on {task.name}. "
            f"A task of lm-eval's own is asked for with --task {PREFIX}NAME."
        )
    return SecondOpinion(task)


def check_place(tasks: Sequence[Task], *, backend: str, processes: int) -> None:
    """Refuse the harness where it does not have the whole model to itself.

    Raises:
        InputError: it is asked for beside vLLM or in several processes.
    """
    asked = [task.name for task in tasks if isinstance(task, SecondOpinion | Foreign)]
    if asked and backend != "hf":
        raise InputError(f"{asked[0]}: lm-eval is given the model that transformers has loaded; use --backend hf.")
    if asked and processes > 1:
        raise InputError(f"{asked[0]}: lm-eval works in one process here, not in {processes}; give --gpus 1.")


def _parts(subject: Subject) -> tuple[LocalSubject, Generator]:
    assert isinstance(subject, LocalSubject) and isinstance(subject.backend, Generator)
    return subject, subject.backend
