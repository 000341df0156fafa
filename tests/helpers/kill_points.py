"""Runs that are killed at a chosen point of their file operations, and what `--resume` makes of them.

The libraries are imported once; every run is a fork of this process, which therefore wants OMP_NUM_THREADS=1. Each
operation on the run folder (opening to write, fsync, rename, unlink, rmdir; mkdir with one process only, as several
race for it) is a point. An unbroken run counts them; then WANTED of them, spread evenly over all (0: every one), are
tried: process 0 of a new run ends itself with SIGKILL just before the operation, the other is ended as its launcher
would, and the run is resumed. One JSON object per point is printed: where it was, and whether the resumed run equals
the unbroken one bit for bit.
"""

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from gora.recipe import load_recipe
from gora.stages.run import run
from tests.conftest import TINY
from tests.helpers.hashes import run_hash

SETTINGS = (
    "data.train.max_rows=12",
    "data.eval.max_rows=4",
    "data.max_length=96",
    "gora.steps=2",
    "gora.micro_batch_size=2",
    "train.batch_size=4",
    "train.micro_batch_size=2",
    "train.max_steps=3",
    "train.log_steps=1",
    "train.save_steps=1",
    "train.keep_checkpoints=2",
    "evaluation.steps=null",
    "adapter.dropout=0.1",
)


def make_model(folder: Path) -> Path:
    """A Llama of two small layers with the tokenizer of the quickstart's model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=4096, max_position_embeddings=512, num_key_value_heads=2, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    for file in TINY.glob("*token*"):
        shutil.copy(file, folder / "model")
    return folder / "model"


def main(folder: Path, processes: int, wanted: int, overwrite: bool) -> None:
    """Print one line per point."""
    make_model(folder)
    whole = folder / "whole"
    assert attempt(whole, "new", processes) == [0] * processes, "the unbroken run failed"
    expected = facts(whole)
    counted = folder / "counted"
    if overwrite:
        shutil.copytree(whole, counted)
    mode = "overwrite" if overwrite else "new"
    assert attempt(counted, mode, processes, count_to=folder / "points") == [0] * processes
    points = (folder / "points").read_text().splitlines()
    for point in spread(len(points), wanted):
        place = folder / f"killed-{point}"
        if overwrite:
            shutil.copytree(whole, place)
        ended = attempt(place, mode, processes, kill_at=point)
        resumed = attempt(place, "resume", processes)
        found = facts(place) if resumed == [0] * processes else {}
        left = [str(path.relative_to(place)) for path in place.rglob(".writing-*")]
        report = {
            "point": point,
            "of": len(points),
            "operation": points[point],
            "killed": ended[0] == -signal.SIGKILL,
            "resumed": resumed,
            "same": found == expected,
            "differing": [key for key in expected if found.get(key) != expected[key]],
            "left": left,
        }
        print(json.dumps(report), flush=True)
        shutil.rmtree(place, ignore_errors=True)


def spread(count: int, wanted: int) -> list[int]:
    """So many of the numbers below `count`, the first and the last among them; all for 0."""
    if not wanted:
        return list(range(count))
    return sorted({round(place * (count - 1) / (wanted - 1)) for place in range(wanted)})


def facts(run_folder: Path) -> dict[str, object]:
    """What a resumed run has to share with an unbroken one."""
    lines = map(json.loads, (run_folder / "metrics.jsonl").read_text().splitlines())
    results = json.loads((run_folder / "results.json").read_text())
    return {
        "hash": run_hash(run_folder),
        "metrics": [[line["step"], line.get("loss"), line.get("rows")] for line in lines],
        "loss": results["loss"],
    }


def attempt(
    place: Path, mode: str, processes: int, kill_at: int | None = None, count_to: Path | None = None
) -> list[int]:
    """Exit codes of the processes of one run; negative for a signal."""

    def work(index: int) -> int:
        kill, count = (kill_at, count_to) if index == 0 else (None, None)
        try:
            if kill is not None or count is not None:
                watch(place, kill, count, folders=processes == 1)
            model = f"model.name={place.parent / 'model'}"
            run(load_recipe("quickstart", [*SETTINGS, model, f"output={place}"]).recipe, mode=mode)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            return 1
        return 0

    return forked(place, processes, work)


def forked(place: Path, processes: int, work: Callable[[int], int]) -> list[int]:
    """Exit codes of forks of this process that are started as a launcher would, and ended when one of them fails.

    Args:
        place: what they print goes beside it, to `PLACE.log-INDEX`.
        processes: how many.
        work: called in each with its index; returns the exit code.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = []
    for index in range(processes):
        child = os.fork()
        if child == 0:
            log = os.open(f"{place}.log-{index}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if processes > 1:
                names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
                values = map(str, (index, processes, index, processes, "localhost", port))
                os.environ |= dict(zip(names, values, strict=True))
            code = 1
            try:
                code = work(index)
            finally:
                os._exit(code)
        children.append(child)
    codes: dict[int, int] = {}
    while len(codes) < processes:
        child, status = os.wait()
        codes[child] = os.waitstatus_to_exitcode(status)
        if codes[child] != 0:
            for other in children:
                if other not in codes:
                    os.kill(other, signal.SIGKILL)
    return [codes[child] for child in children]


def watch(place: Path, kill_at: int | None, count_to: Path | None, *, folders: bool) -> None:
    """Count operations on the run folder from here on; write each down, or end the process at one of them."""
    seen = 0
    root = str(place)
    watched = {"os.rename", "os.remove", "os.rmdir", "os.truncate"} | ({"os.mkdir"} if folders else set())
    note = count_to.open("w") if count_to else None

    def at(operation: str, path: object) -> None:
        nonlocal seen
        text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        if not text.startswith(root):
            return
        if note:
            print(operation, text.removeprefix(root).lstrip("/"), file=note, flush=True)
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if flags is not None and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                at("open", path)
        elif event in watched:
            at(event.removeprefix("os."), arguments[0])

    real = os.fsync

    def fsync(descriptor: int) -> None:
        at("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    os.fsync = fsync
    sys.addaudithook(hook)
