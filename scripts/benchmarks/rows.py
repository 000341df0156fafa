"""Rows that are tokenised once: cold and warm starts, memory of one process and of two, and `datasets.map` beside them.

    OMP_NUM_THREADS=2 python scripts/benchmarks/rows.py --rows 395000 --output rows.json

Rows are like those of MetaMathQA: a question and an answer of about 330 tokens together, made of the words of the
built-in GSM8K rows. Both ways of tokenising are given the same file, the same prompt and the same number of processes,
one after the other and twice; what counts is their ratio. The other way is what a training script writes with
`datasets`: load the file, map a function that makes the ids of the prompt and of the whole text, and the labels.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import shutil
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from gora.assets import resolve
from gora.data import prepare
from gora.recipe.schema import DataSection, SourceSection
from gora.runtime.workers import cores

MAX_LENGTH = 512
TEMPLATE = "Question: {prompt}\nAnswer: "


def main() -> None:
    """Measure everything and write JSON."""
    arguments = _arguments()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    rows, few = work / "rows.jsonl", work / "few.jsonl"
    size = make_rows(rows, arguments.rows)
    result: dict[str, Any] = {"cores": cores(), "rows": arguments.rows, "megabytes": size / 1e6}
    make_rows(few, arguments.compared)
    result["compared"] = [compare(few, work, tokenizer) for _ in range(2)]
    print(json.dumps(result["compared"]), flush=True)
    cache = work / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    result["cold"] = one_process(rows, cache, tokenizer)
    print(json.dumps(result["cold"]), flush=True)
    result["warm"] = [measured(rows, cache, tokenizer, processes) for processes in (1, 2)]
    result["kept_megabytes"] = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) / 1e6
    make_rows(work / "line.jsonl", 500, long=arguments.line)
    result["long_line"] = {"megabytes": arguments.line, **one_process(work / "line.jsonl", work / "line", tokenizer)}
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=395_000)
    parser.add_argument("--compared", type=int, default=20_000, help="rows that both ways tokenise")
    parser.add_argument("--line", type=int, default=50, help="megabytes of the long line")
    parser.add_argument("--tokenizer", default=resolve("builtin:tiny-6m", "models"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/gora-rows"), help="room for 3 GB")
    parser.add_argument("--output", type=Path, default=Path("rows.json"))
    return parser.parse_args()


def make_rows(path: Path, count: int, long: int = 0) -> int:
    """Write rows, and one line of so many megabytes; the size of the file."""
    draw = random.Random(0)
    with open(resolve("builtin:gsm8k/train.jsonl", "data")) as file:
        real = [json.loads(line) for line in file]
    words = " ".join(f"{row['question']} {row['answer']}" for row in real).split()
    with open(path, "w") as file:
        for _ in range(count):
            row = {"query": " ".join(draw.choices(words, k=45)), "response": " ".join(draw.choices(words, k=105))}
            file.write(json.dumps(row) + "\n")
        if long:
            file.write(json.dumps({"query": "big", "response": " ".join(draw.choices(words, k=long * 190_000))}) + "\n")
    return path.stat().st_size


def section(path: Path, cache: Path) -> DataSection:
    """A recipe's section for these rows."""
    source = SourceSection(path=str(path))
    return DataSection(train=source, prompt="query", template="qa", max_length=MAX_LENGTH, cache=str(cache))


def compare(path: Path, work: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Seconds of both ways, from the file to the file that is mapped, and those of processors that they used."""
    shutil.rmtree(work / "few", ignore_errors=True)
    times = [clocks()]
    ours = prepare(section(path, work / "few"), tokenizer, 0, encoder_decoder=False, say=print)
    times.append(clocks())
    theirs = mapped(path, work / "datasets", tokenizer)
    times.append(clocks())
    assert len(theirs) == len(ours.train)
    (gora, gora_cpu), (other, other_cpu) = (
        [after - before for before, after in zip(*pair, strict=True)] for pair in pairwise(times)
    )
    found = {"gora": gora, "datasets.map": other, "ratio": gora / other}
    return {**found, "gora_cpu": gora_cpu, "datasets.map_cpu": other_cpu, "ratio_cpu": gora_cpu / other_cpu}


def clocks() -> tuple[float, float]:
    """Seconds on the clock, and of processors in this process and those that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(each.ru_utime + each.ru_stime for each in used)


def mapped(path: Path, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The rows as a training script tokenises them."""
    import datasets

    datasets.disable_progress_bars()
    shutil.rmtree(folder, ignore_errors=True)
    eos = str(tokenizer.eos_token)

    def tokenise(row: dict[str, str]) -> dict[str, list[int]]:
        prompt = TEMPLATE.format(prompt=row["query"])
        ids = tokenizer(prompt + row["response"] + eos)["input_ids"][:MAX_LENGTH]
        asked = len(tokenizer(prompt)["input_ids"])
        return {"input_ids": ids, "labels": [-100] * min(asked, len(ids)) + ids[asked:]}

    rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(folder))
    return rows.map(tokenise, remove_columns=rows.column_names, num_proc=cores() if cores() > 1 else None)


def measured(path: Path, cache: Path, tokenizer: PreTrainedTokenizerBase, processes: int) -> dict[str, Any]:
    """What a start with kept rows costs each of some processes, which read all rows and then look at their memory."""
    context = multiprocessing.get_context("fork")
    results, barrier = context.Queue(), context.Barrier(processes)
    workers = [
        context.Process(target=_start, args=(path, cache, tokenizer, results, barrier)) for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    found = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return {"processes": processes, "each": found}


def one_process(path: Path, cache: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The same for one process."""
    found: dict[str, Any] = measured(path, cache, tokenizer, 1)["each"][0]
    return found


def _start(path: Path, cache: Path, tokenizer: PreTrainedTokenizerBase, results: Any, barrier: Any) -> None:
    before, start = memory(), time.perf_counter()
    data = prepare(section(path, cache), tokenizer, 0, encoder_decoder=False, say=print)
    seconds = time.perf_counter() - start
    started = memory()
    for index in range(len(data.train)):
        data.train[index]
    barrier.wait()
    after = memory()
    barrier.wait()
    peaks = [resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    results.put(
        {
            "seconds": seconds,
            "tokens": data.counts.train.tokens,
            "start_megabytes": {name: (started[name] - before[name]) / 1e6 for name in before},
            "all_read_megabytes": {name: (after[name] - before[name]) / 1e6 for name in before},
            "peak_megabytes": (max(peaks) - before["resident"]) / 1e6,
        }
    )


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
