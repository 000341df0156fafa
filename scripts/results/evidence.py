"""The runs behind docs/results.md, from nothing to raw data.

    python scripts/results/sets.py DATA MODEL SETS
    python scripts/results/evidence.py --model MODEL --sets SETS --work FOLDER --output evidence.json --table tools
    python scripts/results/evidence.py ... --table fair
    python scripts/results/evidence.py ... --table paper
    python scripts/results/page.py

Without `--table` all are run together, the most valuable cells first (`cells.py`). Runs are made by gora's own
stages, several at a time on each GPU, each worker process one after another. Finished runs are kept in OUTPUT and not
repeated, so that it can be stopped at any time and started again; what was not run stays empty. With `--minutes` no run
is begun that would not be done by then, as far as runs of the same kind tell.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import islice
from pathlib import Path

from cells import AUTO, TABLES, Cell, Run, plan
from making import recipe_of
from processes import Worker, context_of_workers, devices_of

TRIES = 3
"""Of a run that may have failed because of its neighbours on a GPU."""
POLL = 5.0
"""Seconds after which it is seen whether there are more GPUs."""


class Study:
    """Runs that go on, and those that are over.

    Args:
        given: the options of the command.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._end = time.monotonic() + 60 * given.minutes
        self._found: dict[str, Run] = json.loads(given.output.read_text()) if given.output.exists() else {}
        self._running: dict[Future[Run], tuple[Cell, Worker]] = {}
        self._workers: list[Worker] = []
        self._context = context_of_workers()
        self._kinds: set[tuple[str, str, str]] = set()
        self._times: Counter[str] = Counter()

    def run(self) -> None:
        """Make runs until none is left, or none would be done in time."""
        self._fill()
        while self._running:
            finished, _ = wait(self._running, timeout=POLL, return_when=FIRST_COMPLETED)
            for future in finished:
                self._take(future)
            if finished:
                _keep(self._given.output, self._found)
            self._fill()
        for worker in self._workers:
            worker.pool.shutdown()

    def _fill(self) -> None:
        """Give free workers the next cells; more GPUs get workers of their own."""
        given = self._given
        for device in devices_of(given.devices)[len(self._workers) // given.workers :]:
            self._workers.extend(Worker(device, not given.loud, self._context) for _ in range(given.workers))
        busy = [worker for _, worker in self._running.values()]
        free = [worker for worker in self._workers if worker not in busy]
        for cell, worker in zip(islice(self._ready(), len(free)), free, strict=False):
            recipe = recipe_of(cell, given.model, given.sets, given.steps)
            folder = given.work / "".join(letter if letter.isalnum() else "_" for letter in str(cell))
            base_too = cell.method == AUTO and cell.seed == 1
            self._running[worker.submit(recipe, str(folder), base_too)] = cell, worker

    def _ready(self) -> Iterator[Cell]:
        """Cells to begin with now, each once."""
        given, seconds = self._given, longest(self._found)
        begun = {str(cell) for cell, _ in self._running.values()} | self._found.keys()
        for cell in plan(self._found, given.table or TABLES):
            kind = (cell.table, cell.targets, cell.method)
            if str(cell) in begun or (given.only is not None and given.only not in str(cell)):
                continue
            late = time.monotonic() + seconds.get(cell.method, 0.0) > self._end
            if late or (given.first_of_each and kind in self._kinds):
                continue
            begun.add(str(cell))
            self._kinds.add(kind)
            yield cell

    def _take(self, future: Future[Run]) -> None:
        """Keep what came of a run, unless its neighbours on the GPU may have spoilt it."""
        cell, worker = self._running.pop(future)
        broken = future.exception()
        result = {"failed": f"the process ended: {broken}", "seconds": 0.0} if broken else future.result()
        failed = result.get("failed", "")
        self._times[str(cell)] += 1
        if broken or "CUDA error" in failed:
            worker.begin()
        if (broken or "CUDA" in failed or "memory" in failed.lower()) and self._times[str(cell)] < TRIES:
            # Its neighbours on the GPU may have taken the memory: that says nothing of the method.
            print(f"{cell}: again, {failed[:200]}", flush=True)
            return
        self._found[str(cell)] = result
        text = failed or f"{result['loss']['final']:.4f} ({result['loss']['base']:.4f})"
        print(f"{cell}: {text} {result['seconds']:.0f} s", flush=True)


def main() -> None:
    """All cells, as far as the time goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--sets", type=Path, required=True, help="what sets.py made")
    parser.add_argument("--work", type=Path, required=True, help="for runs, which are deleted when they are finished")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", action="append", choices=TABLES, help="may be repeated")
    parser.add_argument("--only", help="cells whose names hold this")
    parser.add_argument("--workers", type=int, default=1, help="on each device")
    parser.add_argument(
        "--devices",
        default="",
        help="numbers of GPUs, with commas between; or a file with them, to which more may be added while runs go on",
    )
    parser.add_argument("--minutes", type=float, default=1e6, help="end by then")
    parser.add_argument("--steps", type=int, help="instead of one epoch, to try it out")
    parser.add_argument("--first-of-each", action="store_true", help="one cell of each kind, to try it out")
    parser.add_argument("--loud", action="store_true", help="print what the runs print")
    Study(parser.parse_args()).run()


def longest(found: Mapping[str, Run]) -> dict[str, float]:
    """Seconds of the longest run so far, by method."""
    seconds: dict[str, float] = {}
    for name, run in found.items():
        method = name.split(" | ")[3]
        seconds[method] = max(run["seconds"], seconds.get(method, 0.0))
    return seconds


def _keep(path: Path, found: dict[str, Run]) -> None:
    """Written aside first, so that whoever stops this loses nothing."""
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(found))
    aside.replace(path)


if __name__ == "__main__":
    main()
