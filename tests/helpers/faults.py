"""Runs into which a fault is injected, one in each phase, and what `--resume` makes of them.

As in `kill_points.py`, the libraries are imported once and every process of every run is a fork, which runs the command
line. One JSON object per fault is printed.
"""

import errno
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import gora.adapters.streamed_merge as streamed_merge
import gora.cli
import gora.planning.micro_batches as micro_batches
import gora.runs.inputs as inputs
import gora.stages.precompute as precompute_stage
import gora.stages.train as train_stage
import gora.training.checkpoints as checkpoints
import gora.training.finish as finish
import gora.training.saving as saving
import gora.training.trainer as trainer
from gora.runs.folder import RunFolder
from gora.runtime.failure import FAILURE_FILE
from tests.helpers.kill_points import SETTINGS, facts, forked, make_model


def broken(owner, name, error, *, at_call=1):
    """A function that raises instead of doing its work when it is called for that time."""
    real, calls = getattr(owner, name), []

    def call(*arguments, **named):
        calls.append(1)
        if len(calls) == at_call:
            raise error
        return real(*arguments, **named)

    setattr(owner, name, call)


def signalled(owner, name, *, at_call=1):
    """A function during whose call a termination request arrives."""
    real, calls = getattr(owner, name), []

    def call(*arguments, **named):
        calls.append(1)
        if len(calls) == at_call:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **named)

    setattr(owner, name, call)


def broken_in_step_2():
    """A pass of the second step that raises, whatever the number of micro-batches."""
    real = trainer.GoraTrainer.compute_loss

    def compute_loss(self, *arguments, **named):
        if self.state.global_step == 1:
            raise ValueError("a library broke")
        return real(self, *arguments, **named)

    trainer.GoraTrainer.compute_loss = compute_loss


FULL = OSError(errno.ENOSPC, "No space left on device")
# Where process 0 works alone, the fault is there; elsewhere it is in the last process.
FAULTS = {
    "rows": ("last", lambda: broken(inputs, "prepare", ValueError("a tokenizer broke"))),
    "pass": ("last", lambda: broken(micro_batches.MicroBatches, "__getitem__", RuntimeError("a kernel broke"))),
    "pass, signal": ("last", lambda: signalled(micro_batches.MicroBatches, "__getitem__")),
    "plan": ("first", lambda: broken(precompute_stage, "write_plan", FULL)),
    "start": ("last", lambda: broken(train_stage, "wrap_model", KeyError("lora_A"))),
    "step": ("last", broken_in_step_2),
    "step, signal": ("last", lambda: signalled(trainer.GoraTrainer, "compute_loss")),
    "checkpoint": ("first", lambda: broken(checkpoints.manifest, "seal", FULL, at_call=2)),
    "saving": ("first", lambda: broken(saving, "save_adapter", TypeError("not serialisable"))),
    "evaluation": ("last", lambda: broken(finish, "final_loss", AssertionError("shapes differ"))),
    "evaluation, signal": ("last", lambda: signalled(finish, "final_loss")),
    "merge": ("first", lambda: broken(streamed_merge, "folded_pieces", RuntimeError("dtypes differ"))),
}


def main(folder: Path, processes: int) -> None:
    """Print one line per fault."""
    make_model(folder)
    whole = folder / "whole"
    assert attempt(whole, processes) == [0] * processes, Path(f"{whole}.log-0").read_text()
    expected = facts(whole)
    for number, (name, (where, inject)) in enumerate(FAULTS.items()):
        place = folder / f"fault-{number}"
        at = 0 if where == "first" else processes - 1
        codes = attempt(place, processes, inject=inject, at=at)
        run = RunFolder(place)
        failure = json.loads(run.failure.read_text()) if run.failure.exists() else None
        checkpoints = [path.name for path in run.all_checkpoints()]
        report = {
            "fault": name,
            "code": codes[at],
            "said": [Path(f"{place}.log-{index}").read_text() for index in range(processes)],
            "at": at,
            "failure": failure,
            "log": run.log.read_text() if run.log.exists() else "",
            "checkpoints": checkpoints,
            "resumed": attempt(place, processes, "--resume"),
        }
        found = facts(place) if report["resumed"] == [0] * processes else {}
        report["differing"] = [key for key in expected if found.get(key) != expected[key]]
        report["merged"] = (run.merged / "model.safetensors").exists()
        report["failure after"] = run.failure.exists()
        print(json.dumps(report), flush=True)
        shutil.rmtree(place, ignore_errors=True)


def attempt(place: Path, processes: int, *more: str, inject=None, at=0) -> list[int]:
    """Exit codes of `gora run` in several processes."""
    settings = [*SETTINGS, f"model.name={place.parent / 'model'}", f"output={place}"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    claim = Path(f"{place}.claim")
    claim.unlink(missing_ok=True)

    def work(index: int) -> int:
        os.environ[FAILURE_FILE] = str(claim)
        sys.argv = ["gora", "run", "quickstart", "--merge", *arguments, *more]
        if inject is not None and index == at:
            inject()
        try:
            gora.cli.run_command_line()
        except SystemExit as end:
            sys.stdout.flush()
            sys.stderr.flush()
            return int(end.code or 0)
        return 0

    return forked(place, processes, work)
