"""Trains a small model of every family of transformers, and writes what works into docs/models.md.

    python scripts/families/sweep.py RESULTS.json [--kind causal] [--family NAME] [--minutes 10] [--seconds 120]
    python scripts/families/sweep.py RESULTS.json --table

Each family has a process of its own and a time limit. What `RESULTS.json` holds already is not run again, unless it was
run with other versions of the libraries. All of them take some ten minutes of one core.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import re
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import RLock
from typing import Any

import torch
from peft import PeftModel
from tqdm import tqdm
from transformers import PreTrainedModel

# Everything is imported here, so that a process that forks off has it at once.
from gora.errors import InputError
from gora.gradients.archive import ArchivedStatistics
from gora.models.head import settle_padding
from gora.models.load import load_model
from gora.models.source import Source, find_model
from gora.models.targets import as_out_in
from gora.planning.micro_batches import MicroBatches
from gora.recipe.load import load_recipe
from gora.recipe.schema import Recipe
from gora.runs.context import RunContext
from gora.runs.folder import RunFolder
from gora.runs.loss import evaluate_loss
from gora.runs.results import versions
from gora.stages.merge import merge
from gora.stages.precompute import precompute
from gora.stages.run import run
from gora.training.finish import Trained
from scripts.families.small import KINDS, TOKENIZER, build

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- families: written by scripts/families/sweep.py -->", "<!-- families: end -->"
TARGETS, METHODS = ("attention", "all-linear"), ("gora", "lora")
# Shares of the base model's loss: what training has to change at least, what rounding may; a share of that change.
_TRACE, _ROUNDING, _SHARE = 5e-6, 1e-6, 0.02


def main() -> None:
    """Run what is missing, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--family", action="append")
    parser.add_argument("--minutes", type=float, default=600, help="begin no family after this long")
    parser.add_argument("--seconds", type=float, default=120, help="for each family")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    results = json.loads(given.results.read_text()) if given.results.exists() else {}
    if given.table:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
        return
    if results.get("versions") != versions():
        results = {"versions": versions(), "families": {}}
    _import_everything()
    done = results["families"]
    end = time.monotonic() + 60 * given.minutes
    for kind, (families, _) in KINDS.items():
        if given.kind not in (None, kind):
            continue
        for family in given.family or families:
            if family in families and f"{kind}/{family}" not in done and time.monotonic() < end:
                done[f"{kind}/{family}"] = found = alone(kind, family, given.seconds)
                results["date"] = time.strftime("%Y-%m-%d", time.gmtime())
                given.results.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
                print(f"{kind}/{family}: {json.dumps(found)}", flush=True)


def _import_everything() -> None:
    """Load what every family needs, so that a process that forks off has it, and leaves it out of its collections."""
    with TemporaryDirectory() as folder:
        for kind, family in (("causal", "llama"), ("encoder-decoder", "t5"), ("encoder", "bert")):
            build(kind, family, Path(folder) / family)
    # A bar of progress has a lock that processes share, and one that is killed may hold it.
    tqdm.set_lock(RLock())
    gc.collect()
    gc.freeze()


def alone(kind: str, family: str, seconds: float) -> dict[str, str]:
    """Try a family in a process of its own."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    # The folder is this process's own: a child that is killed deletes nothing.
    with TemporaryDirectory() as folder:
        child = fork.Process(target=_send, args=(theirs, kind, family, Path(folder)))
        child.start()
        theirs.close()
        try:
            late = {"all": f"fault: still running after {seconds} s"}
            found: dict[str, str] = ours.recv() if ours.poll(seconds) else late
        except EOFError:
            found = {"all": "fault: the process died"}
        child.kill()
        child.join()
    return found


def _send(pipe: Any, kind: str, family: str, folder: Path) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1), os.dup2(nowhere, 2)
    pipe.send(attempt(kind, family, folder))


def attempt(kind: str, family: str, folder: Path) -> dict[str, str]:
    """What becomes of a family under each pair of targets and method: `works`, `refused: ...` or `fault: ...`.

    One that transformers cannot build so small is `not built: ...`.
    """
    model = folder / "model"
    try:
        build(kind, family, model)
    except Exception as error:  # a configuration can be wrong in any way
        return {"all": f"not built: {_line(error)}"}
    return {
        f"{targets}/{method}": _outcome(kind, model, folder / f"{targets}-{method}", targets, method)
        for targets in TARGETS
        for method in METHODS
    }


def _outcome(kind: str, model: Path, output: Path, targets: str, method: str) -> str:
    try:
        return _train_and_merge(kind, model, output, targets, method)
    except InputError as error:
        late = (output / "adapter").exists() or (output / "plan.safetensors").exists()
        return f"{'fault: refused late' if late else 'refused'}: {_line(error)}"
    except Exception as error:  # all others are what the sweep looks for
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"fault: {type(error).__name__}: {_line(error)} ({Path(frame.filename).name}:{frame.lineno})"


def _train_and_merge(kind: str, model: Path, output: Path, targets: str, method: str) -> str:
    rows = {"path": str(model / "rows.jsonl")}
    document: dict[str, Any] = {
        "model": {"name": str(model), "tokenizer": str(model / TOKENIZER), "dtype": "float32"},
        "data": {"train": rows, "holdout": 4, "max_length": 64},
        "adapter": {"targets": targets, "method": method, "rank": 2, "alpha": 4},
        "gora": {"steps": 2},
        "train": {"max_steps": 2, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 3e-2, "log_steps": 1},
        "output": str(output),
    }
    if kind == "encoder":
        document["model"]["head"] = "classification"
        document["data"]["choices"] = ["bad", "good"]
    path = output.with_suffix(".json")
    path.write_text(json.dumps(document), encoding="utf-8")
    recipe = load_recipe(str(path)).recipe
    if (targets, method) == ("all-linear", "gora") and (wrong := _wrong_gradient(recipe, output.with_suffix(".pass"))):
        return f"fault: {wrong}"
    trained = run(recipe)
    context = RunContext.alone(recipe)
    reloaded = PeftModel.from_pretrained(_base(context, context.source), str(trained.adapter))
    if wrong := _other_loss(evaluate_loss(reloaded.eval(), context), trained):
        return f"fault: reloaded with PEFT, {wrong}"
    try:
        merge(trained.adapter, output / "merged")
    except InputError as error:
        # As `gora run --merge` says before it trains.
        return f"refused: merging alone: {_line(error)}"
    section = recipe.model.model_copy(update={"name": str(output / "merged")})
    merged = _base(context, find_model(section, labels=recipe.data.choices))
    if wrong := _other_loss(evaluate_loss(merged, context), trained):
        return f"fault: merged, {wrong}"
    return "works"


def _base(context: RunContext, source: Source) -> PreTrainedModel:
    section = context.recipe.model.model_copy(update={"name": source.path})
    base = load_model(section, source, context.device, seed=context.recipe.seed)
    settle_padding(base, context.collator.pad_token_id)
    return base


def _other_loss(loss: float, trained: Trained) -> str | None:
    """What is wrong with a loss that should be the one after training; what training did is told from rounding."""
    base, final = trained.losses["base"], trained.losses["final"]
    if not abs(base - final) > _TRACE * abs(base):
        return f"training changed the loss by no more than {abs(base - final):.1g}"
    if not abs(loss - final) <= _ROUNDING * abs(base) + _SHARE * abs(base - final):
        return f"the loss is {loss:.6f} instead of {final:.6f} ({base:.6f} without adapter)"
    return None


def _wrong_gradient(recipe: Recipe, output: Path) -> str | None:
    """Compare the mean gradients of the pass with those that autograd has for the weights themselves."""
    precompute(recipe.model_copy(update={"output": str(output)}), keep="fp32")
    kept = ArchivedStatistics(RunFolder.of(str(output)).gradients)
    context = RunContext.alone(recipe)
    model = _base(context, context.source)
    layers = {name: model.get_submodule(name) for name in kept.shapes}
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    batches = MicroBatches(context)
    for index in range(batches.steps):
        (context.loss_of(model)(batches[index]) / batches.steps).backward()
    for name, layer in layers.items():
        expected = torch.zeros_like(layer.weight) if layer.weight.grad is None else layer.weight.grad
        expected = as_out_in(layer, expected).float()
        norm, off = expected.norm().item(), (kept._read(name) - expected).norm().item()
        if not off <= 1e-3 * norm + 1e-8:
            return f"the gradient of {name} is off by {off:.2g} (its norm is {norm:.2g})"
    return None


def _line(error: Exception) -> str:
    lines = [line.strip() for line in (str(error).strip() or type(error).__name__).splitlines()]
    return re.sub(r"/tmp/\S*/", "", " ".join(lines[:2]))[:200]


def with_table(page: str, results: dict[str, Any]) -> str:
    """The page, with what a file of results holds between its two markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    with_what = ", ".join(f"{name} {version}" for name, version in results["versions"].items() if name != "device")
    run, all_there_are = len(results["families"]), sum(len(families) for families, _ in KINDS.values())
    told = f"{run} of {all_there_are} families were run, last on {results['date']}, on a CPU, with {with_what}."
    return f"{before}{BEGIN}\n{told}\n\n{table(results['families'])}\n{END}{after}"


def table(families: dict[str, dict[str, str]]) -> str:
    """Counts for each kind, then the families that are not all `works`, those of one outcome together."""
    lines = [
        "| kind | families | all work | partly or wholly refused | faults | could not be made small |",
        "|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        verdicts = Counter(_verdict(found) for name, found in families.items() if name.startswith(f"{kind}/"))
        counts = (verdicts.total(), *(verdicts[verdict] for verdict in ("works", "refused", "fault", "not built")))
        lines.append(f"| {kind} | {' | '.join(map(str, counts))} |")
    together: dict[tuple[str, str], list[str]] = {}
    for name, found in sorted(families.items()):
        by_outcome: dict[str, list[str]] = {}
        for pair, outcome in found.items():
            by_outcome.setdefault(_sentence(outcome), []).append(pair)
        for outcome, pairs in by_outcome.items():
            together.setdefault((outcome, _pairs(pairs)), []).append(name)
    lines += ["", "| outcome | of | families |", "|---|---|---|"]
    for (outcome, pairs), names in sorted(together.items()):
        if outcome != "works":
            lines.append(f"| {_cell(outcome)} | {pairs} | {', '.join(f'`{name}`' for name in names)} |")
    for kind in KINDS:
        working = [
            name.partition("/")[2]
            for name, found in sorted(families.items())
            if name.startswith(f"{kind}/") and _verdict(found) == "works"
        ]
        lines += ["", f"All four combinations work ({kind}): {', '.join(working) or 'none'}."]
    return "\n".join(lines)


def _pairs(pairs: list[str]) -> str:
    """Which of the combinations, in short."""
    if len(pairs) == len(TARGETS) * len(METHODS) or pairs == ["all"]:
        return "all"
    for targets in TARGETS:
        if sorted(pairs) == sorted(f"{targets}/{method}" for method in METHODS):
            return targets
    return ", ".join(pairs)


def _sentence(outcome: str) -> str:
    """An outcome's first sentence, without what differs between models that are refused for the same reason."""
    first = outcome.partition(". ")[0].removesuffix(".")
    first = re.sub(r"model 'model'( \(\w+\))?", "the model", first)
    first = re.sub(r"of the type \w+, ", "of a type ", first)
    return re.sub(r" \(\d+% of the weights\)", "", first)


def _verdict(found: dict[str, str]) -> str:
    beginnings = {outcome.partition(":")[0] for outcome in found.values()}
    return next((verdict for verdict in ("fault", "not built", "refused") if verdict in beginnings), "works")


def _cell(outcome: str) -> str:
    return outcome.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())
