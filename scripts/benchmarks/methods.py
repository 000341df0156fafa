"""How long methods take for one recipe, GoRA's precompute counted: the setting of the paper's Table 8, on one GPU.

    python scripts/benchmarks/methods.py --output methods.json

One model with random weights is in memory, and every method has an adapter of its own for it. Their trainings take
their steps in turn, so that what changes in the course of a measurement, such as clocks, changes for all of them:
compared are the steps of one round. GoRA's plan is made before by its gradient pass on the same rows. From the median
step and the seconds of the precompute follows the time of a run of `--whole` steps, which no run has taken.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from in_memory import SHAPES, card, context_of, fixed, make_model, put_on, take_off, the_device, versions
from own_ways import settings_of, trainer_of
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import LlamaForCausalLM
from turns import InTurn, Turns

from gora.methods import METHODS, AdapterSettings, Wrapping
from gora.methods.base import wrap_with
from gora.models.targets import weight_shape
from gora.plan import DataIdentity, ModelIdentity
from gora.planning.decisions import PassInputs, make_plan
from gora.planning.first_step import compare_start
from gora.planning.gradient_pass import collect_gradients
from gora.runs.base_model import speed_up
from gora.runs.context import RunContext

MIXED = "lora, ranks from 4 to 16"
WAYS = ("lora", "gora", MIXED, "adalora")
WARM_UP = 2
"""Rounds that do not count: kernels are loaded and memory is taken."""


@dataclass
class Measured:
    """What is known of one way."""

    precompute: float = 0.0
    parameters: int = 0
    ranks: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    error: str = ""


def main() -> None:
    """Measure, print a table, write JSON after each round."""
    arguments = _arguments()
    until = time.perf_counter() + arguments.seconds
    measured = {way: Measured() for way in arguments.ways}
    facts = {"card": card(the_device()), "versions": versions(), "command": sys.argv[1:], "whole": arguments.whole}

    def write() -> None:
        ways = {way: vars(each) for way, each in measured.items()}
        arguments.output.write_text(json.dumps({**facts, "ways": ways}, indent=1))

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, Path(folder))
        adapters = {way: bench.adapter(way, each) for way, each in measured.items()}
        write()
        turns = Turns(list(measured), until=until, told=write)
        threads = [
            threading.Thread(target=bench.train, args=(turns, way, *adapters[way], each))
            for way, each in measured.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    write()
    print(table(measured, arguments.whole))


class Bench:
    """The model, its rows and a recipe, on which all ways are measured."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self._folder, self._rounds = folder, arguments.rounds
        rows = max(arguments.batch_size * arguments.rounds, arguments.micro_batches * 4)
        self._rows = fixed(arguments.tokens, int(SHAPES[arguments.shape]["vocab_size"]), rows)
        self._model = make_model(arguments.shape, the_device()).eval()
        pass_settings = {"gora.steps": arguments.micro_batches, "gora.micro_batch_size": 4, "data.packing": "auto"}
        self._settings = settings_of(4, arguments.batch_size, arguments.rounds, **pass_settings)
        speed_up(self._context("lora"), self._model)

    def adapter(self, way: str, measured: Measured) -> tuple[PeftModel, dict[str, nn.Module]]:
        """The wrapped model, and the layers of its adapter, which are taken off again."""
        context = self._context("gora")
        layers = {name: self._model.get_submodule(name) for name in context.chosen.layers}
        shared = AdapterSettings(rank=8, alpha=16, dropout=0.0)
        wrapping: dict[str, Any] = {"targets": layers, "settings": shared, "steps": self._steps(way)}
        if way == "gora":
            began = time.perf_counter()
            wrapping["plan"], wrapping["factors"] = planned(context, self._model, layers)
            measured.precompute = time.perf_counter() - began
            measured.ranks = [module.rank for module in wrapping["plan"].adapted]
        if way == MIXED:
            generator = random.Random(0)
            ranks = {name: generator.choice([4, 4, 5, 6, 7, 8, 8, 10, 12, 16]) for name in layers}
            config = LoraConfig(r=8, lora_alpha=16, target_modules=list(layers), rank_pattern=ranks)
            wrapped, measured.ranks = wrap_with(self._model, config), list(ranks.values())
        else:
            wrapped = METHODS[way].wrap(self._model, Wrapping(**wrapping))  # type: ignore[assignment]
        measured.parameters = sum(value.numel() for value in wrapped.parameters() if value.requires_grad)
        return wrapped, take_off(self._model)

    def train(
        self, turns: Turns, way: str, wrapped: PeftModel, layers: dict[str, nn.Module], measured: Measured
    ) -> None:
        """Take the steps of one way, each when it is its turn."""
        method = "lora" if way == MIXED else way
        try:
            with turns.taking_part(way, measured.seconds, lambda: put_on(self._model, layers)) as turn:
                trainer = trainer_of(wrapped, self._context(method), self._steps(way), method)
                # Whether the GPU waits, which decides on recording, may be seen otherwise in each of them.
                trainer._recorded = None
                for callback in (InTurn(turn), *METHODS[method].callbacks(wrapped)):
                    trainer.add_callback(callback)
                trainer.train()
        except Exception as error:  # the other ways are worth having all the same
            traceback.print_exc()
            measured.error = f"{type(error).__name__}: {error}"[:300]

    def _steps(self, way: str) -> int:
        # Its steps take longest, and are not looked at as closely.
        return self._rounds // 2 if way == "adalora" else self._rounds

    def _context(self, method: str) -> RunContext:
        settings = {**self._settings, "adapter.method": method}
        return context_of(self._model, self._rows, settings, self._folder / method)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("methods.json"))
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=12, help="steps that each takes at most")
    parser.add_argument("--seconds", type=float, default=600, help="no round begins so long after the start")
    parser.add_argument("--batch-size", type=int, default=64, help="rows of a training step")
    parser.add_argument("--micro-batches", type=int, default=64, help="of the gradient pass, of 4 rows")
    parser.add_argument("--whole", type=int, default=1562, help="steps of a whole run: 100k rows in batches of 64")
    return parser.parse_args()


def planned(context: RunContext, model: LlamaForCausalLM, layers: dict[str, nn.Module]) -> tuple[Any, Any]:
    """What `gora precompute` does on a model that is loaded: gradients, ranks, initial values, a look at the start."""
    identity = ModelIdentity(name="random", config="0" * 64, weights="0" * 64)
    collected = collect_gradients(context, model, layers, identity, low_memory=False)
    shapes = {name: weight_shape(layer) for name, layer in layers.items()}
    inputs = PassInputs(
        model=identity,
        data=DataIdentity(fingerprint=context.data.fingerprint),
        steps=collected.steps,
        micro_batch_size=4,
        seed=context.recipe.seed,
        signal=collected.signal.share,
        above_noise=collected.signal.above,
    )
    plan, factors = make_plan(context.recipe, inputs, shapes, collected.statistics)
    compare_start(context, model, plan, factors)
    return plan, factors


def table(measured: dict[str, Measured], whole: int) -> str:
    """A Markdown table; ratios are to the first way: of its steps in the same rounds, and of the whole run."""
    lines = ["| way | precompute s | step s (range) | of the first's step (range) | whole run h | of the first's |"]
    lines.append("|---|---|---|---|---|---|")
    first = next(iter(measured.values()))
    for way, each in measured.items():
        steps = each.seconds[WARM_UP:]
        if not steps:
            lines.append(f"| {way} | {each.precompute:.1f} | failed: {each.error} |")
            continue
        ratios = [mine / other for mine, other in zip(steps, first.seconds[WARM_UP:], strict=False)]
        run, base = (one.precompute + whole * statistics.median(one.seconds[WARM_UP:]) for one in (each, first))
        cells = [way, f"{each.precompute:.1f}", spread(steps, 3), spread(ratios, 4), f"{run / 3600:.3f}"]
        lines.append(f"| {' | '.join(cells)} | {run / base:.4f} |")
    return "\n".join(lines)


def spread(values: list[float], digits: int) -> str:
    """The median, and the least and the most."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
