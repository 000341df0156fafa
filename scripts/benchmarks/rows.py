"""Rows that are tokenised once: cold and warm starts, memory of several processes, and TRL and `datasets.map` beside.

    OMP_NUM_THREADS=2 python scripts/benchmarks/rows.py --trl FOLDER --output docs/data/rows.json

Two sets of rows, made of the words of the built-in GSM8K rows: short ones, a question of ten words and an answer of
five, and rows like those of MetaMathQA, of about 330 tokens together. All ways of tokenising are given the same file,
the same prompt, the same tokenizer and the same number of processes, one after the other and in turns; what counts is
their ratio. `datasets.map` is what a training script writes: load the file, map a function that makes the ids of the
prompt and of the whole text, and the labels. TRL is what its SFTTrainer does with rows of a prompt and a completion
before it trains; it is left out without `--trl`, a folder into which TRL was installed
(`pip install --no-deps --target FOLDER trl`). Memory and warm starts are measured with all rows, the ways on
`--compared` of them.

A start ends with the first step's batch in hand. The model is not loaded: that takes as long with every way.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gora.assets import resolve
from gora.data import Collator, padding_id, prepare
from gora.recipe.schema import DataSection, SourceSection
from gora.runtime.workers import cores
from gora.training.batches import StepBatches, StepCollator
from gora.training.layout import StepLayout
from gora.training.step_rows import KeptSteps

MAX_LENGTH = 512
TEMPLATE = "Question: {prompt}\nAnswer: "
SHAPES = {"short": (10, 5), "math": (45, 105)}
"""Words of the question and of the answer."""
PROCESSES = (1, 2, 4)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is tokenised, with what, and where there is room for it."""

    rows: Path
    work: Path
    tokenizer: PreTrainedTokenizerBase


def main() -> None:
    """Measure everything and write JSON."""
    arguments = _arguments()
    if arguments.trl:
        sys.path.insert(0, str(arguments.trl))
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    libraries = ("datasets", "tokenizers", "transformers", *(["trl"] if arguments.trl else []))
    result: dict[str, Any] = {"cores": cores(), "versions": {name: version(name) for name in libraries}}
    ways = {"gora": tokenise_with_gora, "datasets.map": tokenise_with_datasets}
    ways |= {"trl": tokenise_with_trl} if arguments.trl else {}
    for name, count in (("short", arguments.short), ("math", arguments.math)):
        work: Path = arguments.work / name
        work.mkdir(parents=True, exist_ok=True)
        few = Task(rows=work / "few.jsonl", work=work, tokenizer=tokenizer)
        compared = round(count * arguments.compared)
        make_rows(few.rows, compared, name)
        result[name] = {"compared_rows": compared, **compare(few, ways, arguments.rounds)}
        task = Task(rows=work / "rows.jsonl", work=work, tokenizer=tokenizer)
        size = make_rows(task.rows, count, name)
        result[name] |= {"rows": count, "megabytes": size / 1e6, **starts(task)}
        print(name, json.dumps(result[name]), flush=True)
    work = arguments.work / "line"
    work.mkdir(exist_ok=True)
    task = Task(rows=work / "rows.jsonl", work=work, tokenizer=tokenizer)
    make_rows(task.rows, 500, "math", long=arguments.line)
    result["long_line"] = {"megabytes": arguments.line, **in_process(tokenise_with_gora, task)}
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--short", type=int, default=500_000, help="short rows")
    parser.add_argument("--math", type=int, default=100_000, help="rows like those of MetaMathQA")
    parser.add_argument("--compared", type=float, default=1.0, help="share of the rows that all ways tokenise")
    parser.add_argument("--rounds", type=int, default=2, help="times that each way starts without what is kept")
    parser.add_argument("--line", type=int, default=50, help="megabytes of the long line")
    parser.add_argument("--tokenizer", default=resolve("builtin:tiny-6m", "models"))
    parser.add_argument("--trl", type=Path, help="folder into which TRL was installed")
    parser.add_argument("--work", type=Path, default=Path("/tmp/gora-rows"), help="room for 3 GB")
    parser.add_argument("--output", type=Path, default=Path("rows.json"))
    return parser.parse_args()


def make_rows(path: Path, count: int, shape: str, long: int = 0) -> int:
    """Write rows, and one line of so many megabytes; the size of the file."""
    draw = random.Random(0)
    asked, answered = SHAPES[shape]
    with open(resolve("builtin:gsm8k/train.jsonl", "data")) as file:
        real = [json.loads(line) for line in file]
    words = " ".join(f"{row['question']} {row['answer']}" for row in real).split()
    with open(path, "w") as file:
        for _ in range(count):
            row = {
                "query": " ".join(draw.choices(words, k=asked)),
                "response": " ".join(draw.choices(words, k=answered)),
            }
            file.write(json.dumps(row) + "\n")
        if long:
            file.write(json.dumps({"query": "big", "response": " ".join(draw.choices(words, k=long * 190_000))}) + "\n")
    return path.stat().st_size


def compare(task: Task, ways: dict[str, Callable[[Task], Any]], rounds: int) -> dict[str, Any]:
    """Starts without anything kept, the ways in turns."""
    cold: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for number in range(rounds):
        # Whoever comes first finds the file unread.
        for name in list(ways) if number % 2 == 0 else reversed(list(ways)):
            forget(task)
            cold[name].append(in_process(ways[name], task))
            print(name, json.dumps(cold[name][-1]), flush=True)
    ratios = {
        name: [ours["seconds"] / theirs["seconds"] for ours, theirs in zip(cold["gora"], cold[name], strict=True)]
        for name in ways
        if name != "gora"
    }
    return {"compared": cold, "gora_over": ratios}


def starts(task: Task) -> dict[str, Any]:
    """One start without anything kept, and then starts of several processes with it."""
    forget(task)
    cold = in_process(tokenise_with_gora, task)
    print("cold", json.dumps(cold), flush=True)
    warm = [measured(tokenise_with_gora, task, processes) for processes in PROCESSES]
    kept = sum(file.stat().st_size for file in (task.work / "cache").rglob("*") if file.is_file()) / 1e6
    return {"cold": cold, "warm": warm, "kept_megabytes": kept}


def forget(task: Task) -> None:
    """Delete what earlier starts have kept."""
    for folder in ("cache", "datasets"):
        shutil.rmtree(task.work / folder, ignore_errors=True)


def tokenise_with_gora(task: Task) -> Any:
    """The rows as gora keeps them, and the batch of the first step."""
    cache = str(task.work / "cache")
    source = SourceSection(path=str(task.rows))
    data = DataSection(train=source, prompt="query", template="qa", max_length=MAX_LENGTH, cache=cache)
    rows = prepare(data, task.tokenizer, 0, encoder_decoder=False, say=print).train
    layout = StepLayout(kind="packed", size=8, longest=max(rows.lengths), processes=1)
    step = StepBatches(KeptSteps(rows, 64, 0), layout, 0).micro_batches(1, layout)
    assert StepCollator(Collator(padding_id(task.tokenizer)), True)(step)["tokens"]
    return rows


def tokenise_with_datasets(task: Task) -> Any:
    """The rows as a training script tokenises them."""
    tokenizer = task.tokenizer
    eos = str(tokenizer.eos_token)

    def tokenise(row: dict[str, str]) -> dict[str, list[int]]:
        prompt = TEMPLATE.format(prompt=row["query"])
        ids = tokenizer(prompt + row["response"] + eos)["input_ids"][:MAX_LENGTH]
        asked = len(tokenizer(prompt)["input_ids"])
        return {"input_ids": ids, "labels": [-100] * min(asked, len(ids)) + ids[asked:]}

    rows = _loaded(task)
    return rows.map(tokenise, remove_columns=rows.column_names, num_proc=_processes())


def tokenise_with_trl(task: Task) -> Any:
    """The rows as TRL's SFTTrainer makes them ready."""
    from trl import SFTConfig, SFTTrainer

    rows = _loaded(task).map(
        lambda row: {"prompt": TEMPLATE.format(prompt=row["query"]), "completion": row["response"]},
        remove_columns=["query", "response"],
        num_proc=_processes(),
    )
    settings = SFTConfig(
        output_dir=str(task.work / "trl"),
        max_length=MAX_LENGTH,
        dataset_num_proc=_processes(),
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    model = resolve("builtin:tiny-6m", "models")
    trainer = SFTTrainer(model=str(model), args=settings, train_dataset=rows, processing_class=task.tokenizer)
    assert len(next(iter(trainer.get_train_dataloader()))["input_ids"])
    return trainer.train_dataset


def _loaded(task: Task) -> Any:
    import datasets

    datasets.disable_progress_bars()
    folder = str(task.work / "datasets")
    return datasets.load_dataset("json", data_files=str(task.rows), split="train", cache_dir=folder)


def _processes() -> int | None:
    return cores() if cores() > 1 else None


def clocks() -> tuple[float, float]:
    """Seconds on the clock, and of processors in this process and those that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(each.ru_utime + each.ru_stime for each in used)


def measured(way: Callable[[Task], Any], task: Task, processes: int) -> dict[str, Any]:
    """What a start costs each of some processes, which read all rows and then look at their memory together."""
    context = multiprocessing.get_context("fork")
    results, barrier = context.Queue(), context.Barrier(processes)
    workers = [context.Process(target=_start, args=(way, task, results, barrier)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    found = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return {"processes": processes, "each": found}


def in_process(way: Callable[[Task], Any], task: Task) -> dict[str, Any]:
    """The same for one process."""
    found: dict[str, Any] = measured(way, task, 1)["each"][0]
    return found


def _start(way: Callable[[Task], Any], task: Task, results: Any, barrier: Any) -> None:
    before, start = memory(), clocks()
    rows = way(task)
    seconds, processors = (after - since for since, after in zip(start, clocks(), strict=True))
    started = memory()
    for index in range(len(rows)):
        rows[index]
    barrier.wait()
    after = memory()
    barrier.wait()
    peaks = [resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    results.put(
        {
            "seconds": seconds,
            "processor_seconds": processors,
            "rows": len(rows),
            "start_megabytes": {name: (started[name] - before[name]) / 1e6 for name in before},
            "all_read_megabytes": {name: (after[name] - before[name]) / 1e6 for name in before},
            "peak_megabytes": (max(peaks) - before["resident"]) / 1e6,
        }
    )


def table(result: dict[str, Any]) -> str:
    """The tables of `docs/performance.md`."""
    lines = ["| rows | way | seconds | of processors | gora's time over it |", "|---|---|---|---|---|"]
    for name in SHAPES:
        for way, each in (found := result[name])["compared"].items():
            seconds, used = (median(one[key] for one in each) for key in ("seconds", "processor_seconds"))
            ratios = ", ".join(f"{ratio:.2f}" for ratio in found["gora_over"].get(way, []))
            lines.append(f"| {found['compared_rows']:,} {name} | {way} | {seconds:.0f} | {used:.0f} | {ratios} |")
    lines += ["", "| rows | cold | processes | warm | own memory of each |", "|---|---|---|---|---|"]
    for name in SHAPES:
        found = result[name]
        for start in found["warm"]:
            seconds = max(one["seconds"] for one in start["each"])
            own = max(one["all_read_megabytes"]["private_dirty"] for one in start["each"])
            count, cold = start["processes"], found["cold"]["seconds"]
            lines.append(f"| {found['rows']:,} {name} | {cold:.0f} s | {count} | {seconds:.1f} s | {own:.0f} MB |")
    return "\n".join(lines)


def memory() -> dict[str, int]:
    """Bytes of this process: resident, what only it holds (USS), and of those what is no page of a file."""
    found = dict.fromkeys(("Rss", "Private_Clean", "Private_Dirty"), 0)
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        name = line.partition(":")[0]
        if name in found:
            found[name] += int(line.split()[1]) * 1024
    return {
        "resident": found["Rss"],
        "uss": found["Private_Clean"] + found["Private_Dirty"],
        "private_dirty": found["Private_Dirty"],
    }


if __name__ == "__main__":
    main()
