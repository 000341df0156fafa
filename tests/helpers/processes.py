"""What several processes do in the tests: `torchrun tests/helpers/processes.py FOLDER SCENARIO...`."""

import ctypes
import gc
import json
import os
import shutil
import signal
import sys
import traceback
from functools import partial
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from gora.adapters import dry_wrap
from gora.errors import GoraError, Interrupted
from gora.gradients.attach import Attachment
from gora.gradients.checkpoint import NoCheckpoint
from gora.gradients.collect import Collection, Pace
from gora.gradients.sharded import ShardedSums, assign_owners
from gora.gradients.sums import DeviceSums
from gora.models.targets import find_targets, weight_shape
from gora.planning.micro_batches import MicroBatches
from gora.recipe import load_recipe
from gora.runs.context import RunContext
from gora.runs.owner import mark
from gora.runtime.world import join
from gora.stages.precompute import precompute
from gora.stages.run import run
from gora.stages.train import train
from gora.training import assembly, start
from gora.training import trainer as trainer_module
from gora.training.trainer import GoraTrainer
from tests.helpers.classifiers import opposite_rows, write_recipe
from tests.helpers.mixtures import gpt_oss, made, recipe_on

ENGINES = ("zero3", "ddp", "zero2", "zero2-offload")
SETTINGS = (
    "data.max_length=96",
    "data.eval.max_rows=7",
    "gora.steps=7",
    "gora.micro_batch_size=2",
    "train.micro_batch_size=2",
    "train.batch_size=8",
    "train.max_steps=12",
    "train.log_steps=1",
    "train.save_steps=null",
)
# 13 rows in steps of 8: in the last step of an epoch one process has two and then one, the other two and then none.
UNEVEN = (
    "adapter.method=lora",
    "data.train.max_rows=13",
    "data.max_length=224",
    "train.max_steps=null",
    "train.epochs=2",
    "train.save_steps=3",
    # With Adam's usual epsilon, rounding decides the direction in which weights without a gradient go.
    "train.epsilon=1e-3",
)
PACKED = ("data.packing=packed", "train.micro_batch_size=4", "train.kernels=fused")
# Blocks of 16 rows, twelve of the first source and four of the second, whose nine rows begin again in the third block.
STREAMED = (
    "adapter.method=lora",
    "data.train=[{path: 'builtin:gsm8k/train.jsonl', max_rows: 40, weight: 3.0},"
    " {path: 'builtin:gsm8k/train.jsonl', max_rows: 9, template: alpaca}]",
    "data.streaming=true",
    "data.shuffle_buffer=15",
    "data.max_length=224",
    "train.max_steps=7",
    "train.save_steps=3",
    "train.keep_checkpoints=9",
    "train.epsilon=1e-3",
)
POISONED = 3
STOP_AFTER = 6


def recipe(output, *more):
    return load_recipe("quickstart", [*SETTINGS, f"output={output}", *more]).recipe


def engine(name, folder):
    """The whole chain under an engine."""
    settings = recipe(folder / name, f"distributed={name}")
    precompute(settings, keep="fp32")
    if name == "zero3":
        # Nothing of the engine may be left when process 0 loads the model again.
        run(settings, merge_too=True, mode="resume")
    else:
        train(settings)
    if join().main:
        gc.collect()
        left = sum(type(each).__name__ in ("DeepSpeedEngine", "LlamaForCausalLM") for each in gc.get_objects())
        (folder / name / "engines_left").write_text(str(left))


def directions(folder):
    """Plans whose A, N or gamma follows the gradients: with whole sums in each process, and with shares of them."""
    for name, offload in (("along whole", "none"), ("along shared", "cpu")):
        precompute(recipe(folder / name, "gora.init_a=gradient", f"gora.offload={offload}"))
    for name, offload in (("settled whole", "none"), ("settled shared", "cpu")):
        precompute(recipe(folder / name, "gora.steps=auto", "gora.gamma=auto", f"gora.offload={offload}"))


def poison():
    """The loss of one micro-batch is NaN, whichever process runs it."""
    last = []
    get, make = MicroBatches.__getitem__, RunContext.loss_of

    def remember(self, index):
        last[:] = [index]
        return get(self, index)

    def loss_of(self, model):
        loss = make(self, model)
        return lambda batch: loss(batch) * (float("nan") if last == [POISONED] else 1.0)

    MicroBatches.__getitem__, RunContext.loss_of = remember, loss_of


def nan(folder):
    """A micro-batch that cannot be used, with whole and with shared sums."""
    get, make = MicroBatches.__getitem__, RunContext.loss_of
    poison()
    for name, offload in (("whole", "none"), ("shared", "cpu")):
        precompute(recipe(folder / name, "gora.steps=11", f"gora.offload={offload}"))
    MicroBatches.__getitem__, RunContext.loss_of = get, make


def nan_in_training(folder):
    """A loss that is NaN in one process, in the third step, under each engine; and a step that is left out by hand.

    Under data parallelism also three such steps in a row, which end the run, and what is resumed then.
    """
    compute, take, last = GoraTrainer.compute_loss, torch.optim.AdamW.step, join().size - 1
    bad, calls = {3}, []

    def poisoned(self, model, inputs, *arguments, **named):
        def made(**batch):
            outputs = model(**batch)
            outputs.loss = outputs.loss * float("nan")
            return outputs

        here = self.state.global_step + 1 in bad and join().index == last
        return compute(self, made if here else model, inputs, *arguments, **named)

    def planned(self, closure=None):
        calls.append(1)
        return None if len(calls) == 3 else take(self, closure)

    more = ("adapter.method=lora", "train.max_steps=6")
    torch.optim.AdamW.step = planned
    train(recipe(folder / "planned", *more))
    torch.optim.AdamW.step, GoraTrainer.compute_loss = take, poisoned
    for name in ENGINES:
        train(recipe(folder / f"nan under {name}", *more, f"distributed={name}"))
    bad.update((4, 5))
    ended = recipe(folder / "ended", *more)
    try:
        train(ended)
    except GoraError as error:
        assert "the latest 3 steps in a row was NaN" in str(error)
        assert "checkpoint-5 holds what step 2 left" in str(error)
    else:
        raise AssertionError("nothing was noticed")
    GoraTrainer.compute_loss = compute
    train(ended, mode="resume")


def unused(folder):
    """A target layer that no row reaches, as the vision tower of a model that is given text only."""
    load, empty = start.load_base_model, dry_wrap.empty_model

    def with_spare(make):
        def made(*arguments):
            model = make(*arguments)
            model.model.spare = torch.nn.Linear(8, 8, bias=False).requires_grad_(False)
            torch.nn.init.ones_(model.model.spare.weight)
            return model

        return made

    start.load_base_model, dry_wrap.empty_model = with_spare(load), with_spare(empty)
    train(recipe(folder / "unused", "adapter.method=lora", "adapter.targets=[q_proj,spare]", "train.max_steps=2"))
    start.load_base_model, dry_wrap.empty_model = load, empty


def retaken(folder):
    """Gradient passes that are stopped, and taken up when memory would have the sums elsewhere."""
    get = MicroBatches.__getitem__

    def stopping(self, index):
        if index >= 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return get(self, index)

    for name, before, after in (("whole first", "none", "cpu"), ("shared first", "cpu", "none")):
        MicroBatches.__getitem__ = stopping
        try:
            precompute(recipe(folder / name, f"gora.offload={before}"))
        except Interrupted:
            MicroBatches.__getitem__ = get
        precompute(recipe(folder / name, f"gora.offload={after}"), mode="resume")


class SignalHere(TrainerCallback):
    """Asks this process alone to stop, after a step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == STOP_AFTER - 1 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)


def interrupt(folder):
    """Training that one process is asked to stop; the run under ZeRO is then taken up again."""
    report = assembly.Report

    class Signalling(report, SignalHere):
        pass

    for name in ("ddp", "zero2"):
        settings = recipe(folder / "interrupted" / name, "adapter.method=lora", f"distributed={name}")
        assembly.Report = Signalling
        try:
            train(settings)
        except Interrupted as stopped:
            assert stopped.exit_code == 128 + signal.SIGTERM
        else:
            raise AssertionError("nothing was interrupted")
        assembly.Report = report
        if name == "zero2":
            train(settings, mode="resume")


def uneven(folder):
    """Epochs whose last step has too few rows for all processes; also taken up in the middle of the second."""
    folder, world = folder / "uneven", join()
    for name in ("ddp", "zero2"):
        train(recipe(folder / name, *UNEVEN, f"distributed={name}"))
    for name in ("ddp", "zero2-offload", "zero3"):
        train(recipe(folder / f"packed {name}", *UNEVEN, *PACKED, f"distributed={name}"))
    if world.main:
        mark(folder / "again")
        shutil.copytree(folder / "ddp" / "checkpoints" / "checkpoint-3", folder / "again" / "checkpoints/checkpoint-3")
    world.barrier()
    train(recipe(folder / "again", *UNEVEN), mode="resume")


def streamed(folder):
    """A stream, whose blocks the processes share, with batches that workers make; also taken up in a block's middle."""
    folder, world, workers = folder / "streamed", join(), trainer_module.loader_workers
    trainer_module.loader_workers = lambda *_: 1
    train(recipe(folder / "whole", *STREAMED, f"data.cache={folder / 'cache'}"))
    if world.main:
        mark(folder / "again")
        shutil.copytree(folder / "whole/checkpoints/checkpoint-3", folder / "again/checkpoints/checkpoint-3")
    world.barrier()
    train(recipe(folder / "again", *STREAMED, f"data.cache={folder / 'cache'}"), mode="resume")
    trainer_module.loader_workers = workers


def undecided(folder):
    """A run whose rank, rate and sizes are left to gora, and the same again when it is finished."""
    settings = (
        "train.learning_rate=auto",
        "adapter.targets=auto",
        "adapter.rank=auto",
        "train.micro_batch_size=auto",
        "distributed=auto",
        "train.max_steps=2",
    )
    run(recipe(folder / "undecided", *settings))
    run(recipe(folder / "undecided", *settings), mode="resume")


def kept(folder):
    """Values kept, and training ended, by the figure of a task, which gets worse while the loss gets better."""
    folder, world = folder / "kept", join()
    if world.main:
        folder.mkdir()
        write_recipe(folder)
        opposite_rows(folder)
        # Processes draw dropout each for itself.
        config = folder / "bert" / "config.json"
        none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config.write_text(json.dumps(json.loads(config.read_text()) | none))
    world.barrier()
    train(by_a_figure(folder, folder / "two"))


def by_a_figure(folder, output):
    """A recipe of `write_recipe` whose best values are told by rows that say the opposite."""
    settings = (
        "adapter.method=lora",
        "evaluation.steps=12",
        f"evaluation.tasks=[{{name: glue/sst2, path: '{folder / 'opposite.jsonl'}'}}]",
        "train.keep=best",
        "train.keep_by=glue/sst2",
        "train.patience=2",
    )
    return load_recipe(str(folder / "bert.yaml"), [*settings, f"output={output}"]).recipe


def experts(folder):
    """A mixture: sums whole in each process and shared out, and its training under two engines."""
    made_by_process_0 = folder / "experts" / "mixture"
    world = join()
    if world.main:
        recipe_on(made_by_process_0, made(gpt_oss))
    world.barrier()
    for name, distributed, offload in (("whole", "ddp", "none"), ("shared", "zero2", "cpu")):
        run(of_mixture(made_by_process_0, folder / "experts" / name, distributed, offload))


def of_mixture(mixture, output, distributed="ddp", offload="auto"):
    settings = (f"output={output}", f"distributed={distributed}", f"gora.offload={offload}", "train.micro_batch_size=1")
    return load_recipe(str(mixture / "recipe.json"), list(settings)).recipe


def give_back_freed_memory():
    """From here on, tensors come from the system and go back to it at once: what a process takes is what it holds."""
    threshold_of_mmap = -3
    assert ctypes.CDLL(None).mallopt(threshold_of_mmap, 65536) == 1


def own_memory():
    """Bytes of this process's own: the system may drop pages of files, such as libraries, at any time."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines["RssAnon"].split()[0])


def memory(folder):
    """What the sums of a wide model take in each process: whole, and a share of them."""
    world = join()
    give_back_freed_memory()
    torch.manual_seed(0)
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 6, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=97, **sizes)).eval().requires_grad_(False)
    targets = find_targets(model, "all-linear")
    shapes = {name: weight_shape(layer) for name, layer in targets.items()}
    owners = assign_owners(shapes, world.size)
    mine = {key: shape for key, shape in shapes.items() if owners[key] == world.index}
    batch = {"input_ids": torch.arange(32)[None], "labels": torch.arange(32)[None]}
    device, grown = torch.device("cpu"), {}

    def collect(sums, pace):
        loss_of = lambda batch: model(**batch, use_cache=False).loss  # noqa: E731
        Collection(
            attachment=Attachment(model, targets),
            sums=sums,
            batch_of=lambda index: batch,
            loss_of=loss_of,
            pace=pace,
            checkpoint=NoCheckpoint(),
        ).run()

    collect(DeviceSums({}, device), Pace.alone(0))
    model(**batch, use_cache=False)
    for name in ("shared", "whole"):
        # What earlier scenarios have freed would be taken again without the process growing.
        ctypes.CDLL(None).malloc_trim(0)
        before = own_memory()
        if name == "shared":
            sums = ShardedSums(DeviceSums(mine, device), shapes, owners, world, device)
            collect(sums, Pace(indices=[world.index], rounds=1, total=world.size, agree=world.any))
        else:
            sums = DeviceSums(shapes, device)
            collect(sums, Pace(indices=[world.index], rounds=1, total=world.size))
        # Held is what is left after freed memory was given back.
        ctypes.CDLL(None).malloc_trim(0)
        grown[name] = own_memory() - before
        del sums
    whole = 4 * sum(rows * columns for rows, columns in shapes.values())
    (folder / f"memory-{world.index}.json").write_text(json.dumps({**grown, "sums": whole}))


def one_after_the_other(folder, scenarios):
    """Run scenarios; when one has failed and torchrun has started all processes again, go on with the next.

    Each leaves `NAME.done-RANK` or, with its traceback, `NAME.failed-RANK`.
    """
    rank, attempt = os.environ["RANK"], int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    for name, scenario in scenarios.items():
        if any((folder / f"{name}.begun-{earlier}").exists() for earlier in range(attempt)):
            continue
        (folder / f"{name}.begun-{attempt}").touch()
        try:
            scenario(folder)
        except BaseException:
            (folder / f"{name}.failed-{rank}").write_text(traceback.format_exc())
            raise
        (folder / f"{name}.done-{rank}").touch()


if __name__ == "__main__":
    # As the command line does after its imports.
    gc.freeze()
    of_engines = {name: partial(engine, name) for name in ENGINES}
    others = (
        directions,
        nan,
        nan_in_training,
        retaken,
        unused,
        interrupt,
        uneven,
        streamed,
        memory,
        experts,
        undecided,
        kept,
    )
    known = {**of_engines, **{each.__name__: each for each in others}}
    one_after_the_other(Path(sys.argv[1]), {name: known[name] for name in sys.argv[2:]})
