"""Micro-batches that gora chooses, and what happens when memory runs out."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from gora.errors import InputError
from gora.planning import workload
from gora.planning.memory_advice import OutOfMemory
from gora.recipe import dump_recipe, load_recipe
from gora.runs import context as contexts
from gora.runtime.out_of_memory import is_out_of_memory
from gora.stages.precompute import precompute
from gora.stages.train import train
from gora.training.trainer import GoraTrainer
from tests.conftest import ROOT
from tests.helpers.checkpoints import WORDS, recipe_for, save_llama
from tests.helpers.environment import clean_environment

AUTO = ("train.micro_batch_size=auto", "adapter.dropout=0.2", "train.batch_size=8", "train.log_steps=1")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny model, and twenty rows of which no two neighbours have the same length."""
    folder = tmp_path_factory.mktemp("home")
    save_llama(folder / "base")
    answers = [" ".join(WORDS[2 : 4 + number % 9]) for number in range(20)]
    rows = [json.dumps({"prompt": f"what is {WORDS[n % 6]}", "response": answer}) for n, answer in enumerate(answers)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    return folder


def recipe(home, output, *settings):
    sections = {"train": {"max_steps": 4, "epochs": 2.0}, "data": {"packing": "none"}}
    return recipe_for(home / "base", home / "rows.jsonl", output, *settings, **sections)


def adapter(folder):
    return {name: value for name, value in load_file(folder / "adapter" / "adapter_model.safetensors").items()}


def same(one, other):
    first, second = adapter(one), adapter(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def holds_rows(monkeypatch, rows, *, from_step=0):
    """A device whose memory holds micro-batches of so many rows, from some step on; the last of a step shows it."""
    compute = GoraTrainer.compute_loss

    def limited(self, model, inputs, *args, **kwargs):
        loss = compute(self, model, inputs, *args, **kwargs)
        last = self.accelerator.gradient_state.sync_gradients
        if last and self.fitting.rows > rows and self.state.global_step >= from_step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss

    monkeypatch.setattr(GoraTrainer, "compute_loss", limited)


def resolved(folder):
    return yaml.safe_load((folder / "recipe.yaml").read_text())


def test_auto_takes_the_largest_micro_batch_within_the_limit_and_says_so_everywhere(home, tmp_path, monkeypatch):
    context = contexts.RunContext.alone(recipe(home, tmp_path / "any", "train.batch_size=8"))
    work = workload.workload_of(context)
    needs = {rows: work.training(rows, checkpointing=False).total for rows in (1, 2, 4, 8)}
    assert needs[1] < needs[2] < needs[4] < needs[8]
    monkeypatch.setattr(workload, "memory_limit", lambda context: (needs[4] + needs[8]) // 2)
    train(recipe(home, tmp_path / "run", *AUTO))
    assert resolved(tmp_path / "run")["train"]["micro_batch_size"] == 4
    assert json.loads((tmp_path / "run" / "results.json").read_text())["train"]["micro_batch_size"] == 4
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "train.micro_batch_size: 4" in log
    assert "4 per micro-batch x 2 accumulation steps" in log


def test_the_trial_step_leaves_no_trace_in_weights_and_random_state(home, tmp_path):
    train(recipe(home, tmp_path / "auto", *AUTO))
    assert resolved(tmp_path / "auto")["train"]["micro_batch_size"] == 8
    train(recipe(home, tmp_path / "planned", *AUTO[1:], "train.micro_batch_size=8"))
    assert same(tmp_path / "auto", tmp_path / "planned")


def test_activation_checkpointing_is_on_only_where_memory_asks_for_it(home, tmp_path, monkeypatch):
    settings = ("train.activation_checkpointing=auto", "train.batch_size=8", "train.micro_batch_size=8")
    context = contexts.RunContext.alone(recipe(home, tmp_path / "any", *settings))
    work = workload.workload_of(context)
    recomputed, kept = (work.training(8, checkpointing=flag).total for flag in (True, False))
    assert recomputed < kept
    for name, limit in (("ample", 2 * kept), ("tight", (recomputed + kept) // 2)):
        monkeypatch.setattr(workload, "memory_limit", lambda context, limit=limit: limit)
        train(recipe(home, tmp_path / name, *settings))
        assert resolved(tmp_path / name)["train"]["activation_checkpointing"] is (name == "tight")


@pytest.mark.parametrize("packing", ["none", "auto"])
def test_a_first_step_that_does_not_fit_becomes_the_run_that_was_planned_with_less(
    home, tmp_path, monkeypatch, packing
):
    settings = (*AUTO[1:], f"data.packing={packing}")
    train(recipe(home, tmp_path / "planned", *settings, "train.micro_batch_size=2"))
    holds_rows(monkeypatch, 2)
    train(recipe(home, tmp_path / "auto", *settings, AUTO[0]))
    assert same(tmp_path / "auto", tmp_path / "planned")
    assert resolved(tmp_path / "auto")["train"]["micro_batch_size"] == 2
    assert json.loads((tmp_path / "auto" / "results.json").read_text())["train"]["micro_batch_size"] == 2


def test_a_later_step_that_does_not_fit_continues_as_a_run_resumed_with_half(home, tmp_path, monkeypatch):
    settings = (*AUTO[1:], "train.save_steps=2", "train.keep_checkpoints=9")
    train(recipe(home, tmp_path / "first", *settings, "train.micro_batch_size=8"))
    for name in ("adapter", "checkpoints/checkpoint-4", "results.json"):
        (tmp_path / "first" / name).rename(tmp_path / f"whole-{name.rpartition('/')[2]}")
    train(recipe(home, tmp_path / "first", *settings, "train.micro_batch_size=4"), mode="resume")
    holds_rows(monkeypatch, 4, from_step=2)
    train(recipe(home, tmp_path / "auto", *settings, "train.micro_batch_size=auto"))
    assert same(tmp_path / "first", tmp_path / "auto")
    assert resolved(tmp_path / "auto")["train"]["micro_batch_size"] == 4


def test_without_auto_the_command_ends_with_advice_and_a_checkpoint_that_resumes_with_half(
    home, tmp_path, monkeypatch, gora_here
):
    settings = (*AUTO[1:], "train.micro_batch_size=8")
    made = recipe(home, tmp_path / "run", *settings)
    arguments = [str(tmp_path / "run.json"), *(part for each in settings for part in ("--set", each))]
    with monkeypatch.context() as patch:
        holds_rows(patch, 4, from_step=1)
        code, out, err = gora_here("train", *arguments, cwd=tmp_path)
    assert code == 1
    assert "Traceback" not in out + err
    assert "Out of memory in training, in step 2: CUDA out of memory. Tried to allocate 2.00 GiB." in err
    assert "By the estimate: " in err and "activations" in err
    changes = [line for line in err.splitlines() if line.startswith("  - --set ")]
    assert len(changes) == 3
    assert changes[0].startswith("  - --set train.micro_batch_size=4: ")
    assert "checkpoint-1 holds step 1; add --resume to continue, with --set train.micro_batch_size=4" in err
    assert err.split("gora: ", 1)[1].strip() in (tmp_path / "run" / "log.txt").read_text()
    failure = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert (failure["code"], failure["exit_code"]) == ("out-of-memory", 1)
    smaller = made.model_copy(update={"train": made.train.model_copy(update={"micro_batch_size": 4})})
    assert train(smaller, mode="resume").steps == 4


def test_a_pass_that_does_not_fit_makes_the_plan_of_half_its_micro_batch(home, tmp_path, monkeypatch):
    gora = ("adapter.method=gora", "gora.steps=4", "train.batch_size=8")
    precompute(recipe(home, tmp_path / "planned", *gora, "train.micro_batch_size=8", "gora.micro_batch_size=2"))
    loss_of = contexts.RunContext.loss_of
    seen = []

    def limited(self, model):
        loss = loss_of(self, model)

        def holding_two_rows(batch):
            if len(batch["input_ids"]) > 1:
                seen.append(len(batch["input_ids"]))
            # A row is tried when the model is loaded. The trial passes; memory runs out with a micro-batch in the sums.
            if len(batch["input_ids"]) > 2 and len(seen) > 2:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")
            return loss(batch)

        return holding_two_rows

    monkeypatch.setattr(contexts.RunContext, "loss_of", limited)
    automatic = (*gora, "train.micro_batch_size=8", "gora.micro_batch_size=auto")
    made = precompute(recipe(home, tmp_path / "run", *automatic))
    assert seen[:2] == [8, 8] and {4, 2} <= set(seen)
    assert made.plan.micro_batch_size == 2
    planned, found = (load_file(tmp_path / name / "plan.safetensors") for name in ("planned", "run"))
    assert all(torch.equal(planned[name], found[name]) for name in planned)
    monkeypatch.undo()
    # Training takes the micro-batch of the plan, whatever it would choose by itself.
    assert train(recipe(home, tmp_path / "run", *automatic)).steps == 4


def test_two_processes_agree_in_the_trial_and_name_the_way_on_after_a_later_failure(home, tmp_path):
    settings = ("train.batch_size=8", "train.save_steps=1", "train.log_steps=1")
    planned = recipe(home, tmp_path / "run", *settings, "train.micro_batch_size=auto")
    path = tmp_path / "auto.yaml"
    path.write_text(dump_recipe(planned))
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "workers.py"), "running_out", str(path)]
    environment = clean_environment(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert "A micro-batch of the 4 longest rows does not fit: 2 are taken." in done.stdout
    assert resolved(tmp_path / "run")["train"]["micro_batch_size"] == 2
    assert done.stderr.count("gora: ") == 1
    assert "Traceback" not in done.stderr
    assert "Out of memory in training, in step 2: CUDA error: out of memory" in done.stderr
    assert "checkpoint-1 holds step 1; add --resume to continue, with --set train.micro_batch_size=1" in done.stderr
    # The named size is accepted, and the micro-batch of the gradient pass stays what it was.
    resumed = recipe(home, tmp_path / "run", *settings, "train.micro_batch_size=1")
    assert train(resumed, mode="resume").steps == 4


def test_a_model_that_does_not_fit_is_explained_too(home, tmp_path, monkeypatch):
    def load(context):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16.00 GiB.")

    for module in ("gora.training.start", "gora.stages.precompute"):
        monkeypatch.setattr(f"{module}.load_base_model", load)
    for work in (train, precompute):
        with pytest.raises(OutOfMemory, match=r"while the model was loaded(?s:.*)Tried to allocate 16(?s:.*)--set "):
            work(recipe(home, tmp_path / work.__name__))


def test_a_batch_that_processes_cannot_share_out_is_refused(home, tmp_path):
    from gora.recipe import accumulation_steps

    settings = load_recipe("quickstart", ["train.micro_batch_size=auto", "train.batch_size=10"]).recipe.train
    assert accumulation_steps(settings, 2) == 5
    with pytest.raises(InputError, match=r"not a multiple of the 4 processes\. Set train\.batch_size: 8 or 12\."):
        accumulation_steps(settings, 4)


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (
            RuntimeError("NCCL error: ncclUnhandledCudaError: Call failed. Last error: out of memory"),
            True,
        ),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_every_library_that_runs_out_of_memory_is_understood(error, found):
    assert is_out_of_memory(error) is found
