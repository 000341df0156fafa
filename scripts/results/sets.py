"""The sets of the evidence: how rows are asked, and a cut of them: rows to train on, to choose rates by, and to judge.

    python scripts/results/sets.py DATA MODEL OUTPUT

DATA has the public sets in the columns of the hub; MODEL is a folder with the tokenizer that rows are measured with. Of
every set OUTPUT gets `train.jsonl` (1,600 rows), `choose.jsonl` (256 other training rows), `test.jsonl` (512 rows for
the loss, where there are as many) and, for accuracies, up to 1,000 rows of each test set. Rows of more than 240 tokens
are left out. `OUTPUT/first` has the rows of earlier runs that are made again. The same arguments make the same files.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cells import AGAIN

ASKED, LONGEST = 1000, 240
Row = dict[str, Any]


class Sizes(NamedTuple):
    """How many rows of a set are for what."""

    train: int = 1600
    choose: int = 256
    held_out: int = 512


SIZES, FIRST = Sizes(), Sizes(2400, 256, 256)
"""Those of the evidence, and of the runs on another machine before."""


@dataclass(frozen=True, kw_only=True)
class Set:
    """One set.

    Attributes:
        sources: folders or files of DATA that are mixed, in equal parts.
        data: the recipe's section, but for its files.
        held_out: the file of a source that is not trained on; None cuts it off the training rows.
        task: by which accuracy is measured, and the columns that it is told; None has loss alone.
        columns: see `task`.
    """

    sources: dict[str, str]
    data: dict[str, Any]
    held_out: str | None = None
    task: str | None = None
    columns: dict[str, str] = field(default_factory=dict)


def _glue(task: str, template: str, choices: list[str]) -> Set:
    return Set(
        sources={task: f"glue/{task}"},
        data={"template": template, "response": "label", "choices": choices, "ignore": ["idx"]},
        held_out="validation.jsonl",
        task="choice",
        columns={"answer": "label"},
    )


SETS: dict[str, Set] = {
    "math": Set(
        sources={"gsm8k": "gsm8k"},
        data={"prompt": "question", "response": "answer"},
        held_out="test.jsonl",
        task="gsm8k",
    ),
    "code": Set(
        sources={"code": "code_feedback_standin"},
        data={"format": "chat", "chat_template": "plain", "ignore": ["id"]},
    ),
    "instruction": Set(
        sources={"instruction": "wizardlm_70k_standin"}, data={"prompt": "instruction", "response": "output"}
    ),
    "commonsense": Set(
        sources={name: f"commonsense/{name}" for name in ("boolq", "arc_easy", "arc_challenge", "openbookqa")},
        data={"prompt": "question", "ignore": ["choices", "label"]},
        held_out="test.jsonl",
        task="choice",
        columns={"answer": "label"},
    ),
    "sst2": _glue("sst2", "{sentence}\nSentiment: ", ["negative", "positive"]),
    "cola": _glue("cola", "{sentence}\nIs this acceptable English? ", ["no", "yes"]),
    "mrpc": _glue("mrpc", "First: {sentence1}\nSecond: {sentence2}\nDo they say the same? ", ["no", "yes"]),
    "qnli": _glue("qnli", "Question: {question}\nText: {sentence}\nDoes it answer the question? ", ["yes", "no"]),
    "mnli": _glue("mnli", "{premise}\nHypothesis: {hypothesis}\nDoes it follow? ", ["yes", "maybe", "no"]),
    "rte": _glue("rte", "{sentence1}\nHypothesis: {sentence2}\nDoes it follow? ", ["yes", "no"]),
}


def cut(one: Set, data: Path, length: Any, sizes: Sizes = SIZES) -> dict[str, list[Row]]:
    """Rows by file.

    Args:
        one: the set.
        data: where the sources are.
        length: the number of tokens in the texts of a row.
        sizes: how many there are to be.
    """
    files: dict[str, list[Row]] = {"train": [], "choose": [], "test": []}
    parts = len(one.sources)
    for name, folder in one.sources.items():
        rows = _short(data / folder / "train.jsonl", length)
        random.Random(0).shuffle(rows)
        if one.held_out is None:
            test, rows = rows[: sizes.held_out], rows[sizes.held_out :]
        else:
            test = _short(data / folder / one.held_out, length)
            random.Random(0).shuffle(test)
        train = rows[: sizes.train // parts]
        files["train"] += train
        files["choose"] += rows[len(train) : len(train) + sizes.choose // parts]
        files["test"] += test[: sizes.held_out // parts]
        if one.task is not None:
            files[name] = test[: sizes.held_out if one.task == "gsm8k" else ASKED // min(parts, 2)]
    return files


def _short(path: Path, length: Any) -> list[Row]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if length(row) <= LONGEST]


def main() -> None:
    """All sets."""
    from transformers import AutoTokenizer

    data, model, output = map(Path, sys.argv[1:4])
    tokenizer = AutoTokenizer.from_pretrained(model)

    def length(row: Row) -> int:
        texts = [value for value in row.values() if isinstance(value, str)]
        texts += [message["content"] for message in row.get("messages", [])]
        return sum(len(ids) for ids in tokenizer(texts)["input_ids"])

    def write(folder: Path, files: dict[str, list[Row]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for file, rows in files.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{file}.jsonl").write_text(text, encoding="utf-8")
            print(f"{folder / file}.jsonl: {len(rows):,} rows")

    for name, one in SETS.items():
        write(output / name, cut(one, data, length))
    for name in AGAIN:
        write(output / "first" / name, cut(SETS[name], data, length, FIRST))


if __name__ == "__main__":
    main()
