"""Two processes with gloo, under every engine that a CPU has, against one process."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file

from gora.gradients.archive import ArchivedStatistics
from gora.plan import read_factors, read_plan
from gora.recipe import load_recorded
from gora.runs.owner import mark
from gora.stages.precompute import plan_from_gradients, precompute
from gora.stages.run import run
from gora.stages.train import train
from tests.conftest import ROOT
from tests.helpers import forks, processes
from tests.helpers.processes import ENGINES, SETTINGS, STOP_AFTER, STREAMED, UNEVEN, recipe

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def several(folder, *scenarios):
    """Run scenarios in two processes of an outer torchrun, inside which gora starts nothing again.

    Returns:
        The folder of what a scenario has made, by its name; one that failed fails those tests only that ask for it.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    launcher += [f"--max-restarts={len(scenarios)}", f"--log-dir={folder / 'torchrun'}"]
    worker = [str(ROOT / "tests" / "helpers" / "processes.py"), str(folder), *scenarios]
    done = subprocess.run([*launcher, *worker], env=ENVIRONMENT, capture_output=True, text=True, timeout=1800)

    def made_by(scenario):
        if not all((folder / f"{scenario}.done-{rank}").exists() for rank in (0, 1)):
            reasons = [path.read_text() for path in folder.glob(f"{scenario}.failed-*")]
            pytest.fail("\n".join(reasons) or done.stdout[-3000:] + done.stderr[-6000:], pytrace=False)
        return folder

    return made_by


def gora(*arguments, cwd):
    command = [sys.executable, "-m", "gora", *arguments]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def overrides(*more):
    return [part for setting in (*SETTINGS, *more) for part in ("--set", setting)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The chain in one process."""
    folder = tmp_path_factory.mktemp("one")
    precompute(recipe(folder), keep="fp32")
    train(recipe(folder))
    return folder


SCENARIOS = (
    "directions",
    "nan",
    "nan_in_training",
    "retaken",
    "unused",
    "interrupt",
    "uneven",
    "streamed",
    "experts",
    "memory",
    "undecided",
    "kept",
)


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory):
    """Everything that two processes of a launcher do here, one thing after the other, which start and import once."""
    return several(tmp_path_factory.mktemp("scenarios"), *ENGINES, *SCENARIOS)


@pytest.fixture(scope="module")
def two(scenarios):
    """The chain in two processes, a folder for each engine."""
    return lambda engine: scenarios(engine) / engine


@pytest.fixture(scope="module")
def uneven_alone(tmp_path_factory):
    """Rows that two processes cannot share evenly, in one."""
    folder = tmp_path_factory.mktemp("uneven-alone")
    train(recipe(folder, *UNEVEN))
    return folder


@pytest.fixture(scope="module")
def settled_alone(tmp_path_factory):
    """A pass that ends when its gradients have settled, in one process."""
    return precompute(recipe(tmp_path_factory.mktemp("settled-alone"), "gora.steps=auto", "gora.gamma=auto"))


@pytest.fixture(scope="module")
def poisoned_alone(tmp_path_factory):
    """A pass with a micro-batch that cannot be used, in one process."""
    folder = tmp_path_factory.mktemp("poisoned-alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes.MicroBatches, "__getitem__", processes.MicroBatches.__getitem__)
        patch.setattr(processes.RunContext, "loss_of", processes.RunContext.loss_of)
        processes.poison()
        precompute(recipe(folder, "gora.steps=11"))
    return folder


@pytest.fixture(scope="module")
def experts_alone(scenarios, tmp_path_factory):
    """The mixture of the two processes, in one."""
    folder = tmp_path_factory.mktemp("experts-alone")
    run(processes.of_mixture(scenarios("experts") / "experts" / "mixture", folder))
    return folder


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_plan(found, expected):
    plan, reference = (read_plan(folder / "plan.safetensors") for folder in (found, expected))
    assert [module.rank for module in plan.modules] == [module.rank for module in reference.modules]
    for mine, other in zip(plan.modules, reference.modules, strict=True):
        assert mine.importance == pytest.approx(other.importance, rel=1e-5)
        assert mine.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-5)
    factors, others = (
        read_factors(folder / "plan.safetensors", plan) for folder, plan in ((found, plan), (expected, reference))
    )
    for name, (factor_a, factor_b) in factors.items():
        assert torch.equal(factor_a, others[name][0])
        assert (factor_b - others[name][1]).norm() <= 1e-5 * others[name][1].norm()


@pytest.mark.parametrize("engine", ENGINES)
def test_each_engine_makes_the_plan_of_one_process(one, two, engine):
    assert_same_plan(two(engine), one)
    kept, expected = ArchivedStatistics(two(engine) / "gradients"), ArchivedStatistics(one / "gradients")
    assert kept.shapes == expected.shapes
    for name in expected.shapes:
        difference = (kept._read(name) - expected._read(name)).norm()
        assert difference <= 1e-5 * expected._read(name).norm() != 0


@pytest.mark.parametrize(
    ("engine", "line"),
    [
        ("ddp", "engine    data parallelism, 2 processes; optimizer AdamW"),
        ("zero2", "engine    DeepSpeed ZeRO stage 2, 2 processes; optimizer AdamW"),
        ("zero2-offload", "engine    DeepSpeed ZeRO stage 2, optimizer states in host memory, 2 processes"),
        ("zero3", "engine    DeepSpeed ZeRO stage 3, 2 processes"),
    ],
)
def test_each_engine_really_runs_and_trains_as_one_process_does(one, two, engine, line):
    assert line in (two(engine) / "log.txt").read_text()
    found, expected = lines(two(engine)), lines(one)
    assert [each["step"] for each in found] == [each["step"] for each in expected]
    assert len(found) >= 12
    for mine, other in zip(found, expected, strict=True):
        loss = "loss" if "loss" in other else "eval_loss"
        assert mine[loss] == pytest.approx(other[loss], rel=1e-3)
        for rate in ("learning_rate_a", "learning_rate_b", "tokens"):
            assert mine.get(rate) == other.get(rate)
    losses, others = (json.loads((f / "results.json").read_text())["loss"] for f in (two(engine), one))
    assert losses == pytest.approx(others, rel=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_left_of_a_model_that_an_engine_has_trained(two, engine):
    assert (two(engine) / "engines_left").read_text() == "0"


@pytest.mark.parametrize("engine", ENGINES)
def test_each_engine_saves_a_whole_adapter(one, two, engine):
    saved, expected = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (two(engine), one))
    assert saved.keys() == expected.keys()
    for name, value in expected.items():
        assert saved[name].shape == value.shape
        assert (saved[name] - value).norm() <= 2e-2 * value.norm()


def test_what_zero3_has_trained_is_merged_by_the_same_run(two):
    """Merging compares the merged model with base and adapter before it appears."""
    assert (two("zero3") / "merged" / "model.safetensors").exists()
    assert "merged model" in (two("zero3") / "log.txt").read_text()


def test_process_0_alone_writes_the_log(two):
    for engine in ENGINES:
        text = (two(engine) / "log.txt").read_text()
        assert text.count("training 12/12") + text.count("adapter   gora") == 1


@pytest.mark.parametrize("name", ["along whole", "along shared"])
def test_an_a_along_the_gradient_is_that_of_one_process(scenarios, one, tmp_path, name):
    expected = plan_from_gradients(recipe(tmp_path / "one", "gora.init_a=gradient"), one / "gradients")
    plan = read_plan(scenarios("directions") / name / "plan.safetensors")
    assert [module.rank for module in plan.modules] == [module.rank for module in expected.plan.modules]
    found, others = (
        read_factors(folder / "plan.safetensors", plan) for folder in (scenarios("directions") / name, tmp_path / "one")
    )
    for layer, (factor_a, factor_b) in found.items():
        other_a, other_b = others[layer]
        assert (factor_a - other_a).norm() <= 1e-2 * other_a.norm()
        assert (factor_b @ factor_a - other_b @ other_a).norm() <= 1e-4 * (other_b @ other_a).norm()


@pytest.mark.parametrize("name", ["settled whole", "settled shared"])
def test_processes_agree_on_when_gradients_have_settled_and_on_the_first_step(scenarios, settled_alone, name):
    alone = settled_alone
    plan = read_plan(scenarios("directions") / name / "plan.safetensors")
    assert plan.decisions["gora.steps"].origin == "measured"
    assert 0 <= plan.steps - alone.plan.steps <= 1
    assert plan.gamma == pytest.approx(alone.plan.gamma, rel=0.5)
    found = dict(plan.decisions["gora.gamma"].curve)
    assert found[0.0] == pytest.approx(dict(alone.plan.decisions["gora.gamma"].curve)[0.0], rel=1e-4)
    for mine, other in zip(plan.modules, alone.plan.modules, strict=True):
        assert mine.signal == pytest.approx(other.signal, abs=0.15)


def test_processes_train_with_the_one_rate_that_process_0_has_found(scenarios):
    folder = scenarios("undecided") / "undecided"
    decided = json.loads((folder / "decisions.json").read_text())
    rate = decided["train.learning_rate"]["value"]
    assert decided["train.learning_rate"]["from"] == "measured"
    assert load_recorded(folder / "recipe.yaml").train.learning_rate == rate
    assert read_plan(folder / "plan.safetensors").reference_rank == decided["adapter.rank"]["value"]
    assert (folder / "log.txt").read_text().count("(auto): with a rising rate") == 1


def test_the_figure_of_a_task_keeps_values_and_ends_training_as_in_one_process(scenarios, tmp_path):
    """By the loss, which falls all the way, neither process would end."""
    folder = scenarios("kept") / "kept"
    alone = train(processes.by_a_figure(folder, tmp_path / "one"))
    found, expected = lines(folder / "two"), lines(tmp_path / "one")
    name = "glue/sst2 accuracy"
    figures, others = ({line["step"]: line[name] for line in each if name in line} for each in (found, expected))
    assert figures == others and list(figures) == [12, 24, 36]
    assert figures[12] > max(figures[24], figures[36])
    losses = [line["eval_loss"] for line in found if "eval_loss" in line]
    assert losses == pytest.approx([line["eval_loss"] for line in expected if "eval_loss" in line], rel=1e-4)
    assert losses == sorted(losses, reverse=True)
    assert max(line["step"] for line in found) == alone.steps == 36
    log = (folder / "two" / "log.txt").read_text()
    assert log.count("2 evaluations in a row were not better than that of step 12") == 1
    assert "best      the values after step 12" in log
    adapters = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (folder / "two", tmp_path / "one")]
    assert adapters[0].keys() == adapters[1].keys()
    for key, value in adapters[1].items():
        assert (adapters[0][key] - value).norm() <= 1e-3 * value.norm(), key


@pytest.mark.parametrize("name", ["whole", "shared"])
def test_experts_get_the_plan_and_the_training_of_one_process(scenarios, experts_alone, name):
    folder = scenarios("experts") / "experts" / name
    assert_same_plan(folder, experts_alone)
    saved, expected = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (folder, experts_alone))
    assert saved.keys() == expected.keys()
    for key, value in expected.items():
        assert (saved[key] - value).norm() <= 1e-3 * value.norm(), key


@pytest.mark.parametrize("name", ["whole", "shared"])
def test_a_micro_batch_with_nan_in_one_process_is_left_out_in_all(scenarios, poisoned_alone, name):
    assert_same_plan(scenarios("nan") / name, poisoned_alone)
    log = (scenarios("nan") / name / "log.txt").read_text()
    assert "warning: micro-batch 3 is left out: its loss is nan" in log
    assert "gradients 10 micro-batches of 2 rows in 2 processes" in log


@pytest.mark.parametrize("engine", ENGINES)
def test_a_nan_in_one_process_is_skipped_in_all_as_if_it_had_been_planned(scenarios, engine):
    """Under data parallelism to the same bits as where the optimizer was told not to step."""
    folder = scenarios("nan_in_training")
    found, expected = (folder / name for name in (f"nan under {engine}", "planned"))
    steps, others = ([line for line in lines(run) if "loss" in line] for run in (found, expected))
    assert [line["step"] for line in steps] == [1, 2, 4, 5, 6]
    for mine, its in zip(steps, (line for line in others if line["step"] != 3), strict=True):
        assert mine["loss"] == pytest.approx(its["loss"], rel=1e-4)
        assert (mine["learning_rate_b"], mine["rows"]) == (its["learning_rate_b"], its["rows"])
    (skipped,) = [line["skipped"] for line in lines(found) if "skipped" in line]
    assert skipped["loss"] == "nan"
    assert skipped["rows"].count(",") == 7  # those of both processes
    adapters = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (found, expected)]
    for name, value in adapters[1].items():
        if engine == "ddp":
            assert torch.equal(adapters[0][name], value)
        assert (adapters[0][name] - value).norm() <= 1e-4 * value.norm()


def test_too_many_skipped_steps_end_all_processes_with_a_checkpoint_that_resumes(scenarios):
    run = scenarios("nan_in_training") / "ended"
    assert [line["step"] for line in lines(run) if "skipped" in line] == [3, 4, 5]
    assert [line["step"] for line in lines(run) if "loss" in line] == [1, 2, 6]
    assert (run / "adapter" / "adapter_model.safetensors").exists()


def test_a_layer_that_no_gradient_reaches_does_not_keep_the_others_from_training(scenarios):
    saved = load_file(scenarios("unused") / "unused" / "adapter" / "adapter_model.safetensors")
    moved = {name: bool(value.any()) for name, value in saved.items() if "lora_B" in name}
    assert len(moved) == 7
    assert [name for name, has in moved.items() if not has] == ["base_model.model.model.spare.lora_B.weight"]


@pytest.mark.parametrize("name", ["whole first", "shared first"])
def test_a_gradient_pass_goes_on_as_it_began_whatever_memory_is_free_later(scenarios, one, name):
    assert_same_plan(scenarios("retaken") / name, one)
    log = (scenarios("retaken") / name / "log.txt").read_text()
    assert log.count("a share of ") == (0 if name == "whole first" else 2)
    assert log.count("in each of 2 processes") == 2


def test_a_last_step_that_leaves_a_process_without_rows_is_the_step_of_one_process(scenarios, uneven_alone):
    """Also in a run that is taken up in the middle of its second epoch."""
    expected = load_file(uneven_alone / "adapter" / "adapter_model.safetensors")
    steps = [(line["step"], line["loss"], line["tokens"]) for line in lines(uneven_alone) if "loss" in line]
    assert [step for step, _, _ in steps] == [1, 2, 3, 4]
    for name in ("ddp", "zero2", "again"):
        run = scenarios("uneven") / "uneven" / name
        found = [(line["step"], line["loss"], line["tokens"]) for line in lines(run) if "loss" in line]
        assert found == [(step, pytest.approx(loss, rel=1e-5), tokens) for step, loss, tokens in steps[-len(found) :]]
        saved = load_file(run / "adapter" / "adapter_model.safetensors")
        for key, value in expected.items():
            assert (saved[key] - value).norm() <= 1e-5 * value.norm()


def test_processes_that_share_a_stream_take_the_steps_of_one_process(scenarios, tmp_path):
    """Also in a run that is resumed, which another number of processes could do as well."""
    train(recipe(tmp_path / "run", *STREAMED, f"data.cache={tmp_path / 'cache'}"))
    expected = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    steps = {line["step"]: line for line in lines(tmp_path / "run") if "loss" in line}
    assert list(steps) == list(range(1, 8))
    for name in ("whole", "again"):
        run = scenarios("streamed") / "streamed" / name
        found = {line["step"]: line for line in lines(run) if "loss" in line}
        assert set(found) >= {4, 5, 6, 7}
        for step, line in found.items():
            assert (line["rows"], line["tokens"]) == (steps[step]["rows"], steps[step]["tokens"])
            assert line["loss"] == pytest.approx(steps[step]["loss"], rel=1e-5)
        saved = load_file(run / "adapter" / "adapter_model.safetensors")
        for key, value in expected.items():
            assert (saved[key] - value).norm() <= 1e-5 * value.norm()


@pytest.mark.parametrize("engine", ["ddp", "zero2-offload", "zero3"])
def test_rows_packed_in_several_processes_train_as_padded_ones_in_one(scenarios, uneven_alone, engine):
    expected, run = lines(uneven_alone), scenarios("uneven") / "uneven" / f"packed {engine}"
    assert "rows end to end" in (run / "log.txt").read_text()
    for mine, other in zip(lines(run), expected, strict=True):
        assert mine.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=1e-4)
        assert (mine["step"], mine.get("rows"), mine.get("tokens")) == (
            other["step"],
            other.get("rows"),
            other.get("tokens"),
        )
    saved = load_file(run / "adapter" / "adapter_model.safetensors")
    for key, value in load_file(uneven_alone / "adapter" / "adapter_model.safetensors").items():
        assert (saved[key] - value).norm() <= 1e-3 * value.norm()


def test_a_stop_that_reaches_one_process_ends_all_after_the_same_step_and_any_number_may_go_on(scenarios):
    """Data parallelism goes on in one process; ZeRO went on in two."""
    runs = scenarios("interrupt") / "interrupted"
    checkpoint = runs / "ddp" / "checkpoints" / f"checkpoint-{STOP_AFTER}"
    assert json.loads((checkpoint / "provenance.json").read_text())["processes"] == 2
    assert not (runs / "ddp" / "adapter").exists()
    train(recipe(runs / "ddp", "adapter.method=lora"), mode="resume")
    resumed, other = lines(runs / "ddp"), lines(runs / "zero2")
    assert [line["step"] for line in resumed] == [line["step"] for line in other]
    assert [line["step"] for line in resumed if "loss" in line] == list(range(1, 13))
    for mine, its in zip(resumed, other, strict=True):
        assert mine.get("loss", 0) == pytest.approx(its.get("loss", 0), rel=1e-3)
        assert mine.get("learning_rate_b") == its.get("learning_rate_b")


def test_states_that_are_shared_out_are_not_resumed_with_another_number_of_processes(scenarios, tmp_path):
    run = tmp_path / "run"
    (scenarios("interrupt") / "interrupted" / "zero2" / "checkpoints").rename(tmp_path / "kept")
    mark(run)
    (tmp_path / "kept").rename(run / "checkpoints")
    settings = overrides("adapter.method=lora", "distributed=zero2", f"output={run}")
    done = forks.run("train", "quickstart", "--resume", *settings, cwd=tmp_path)
    assert done.returncode == 2
    assert "holds the optimizer's state in 2 shards" in done.stderr
    assert "Resume with 2." in done.stderr


def test_each_process_holds_its_share_of_the_sums_only(scenarios):
    for rank in (0, 1):
        measured = json.loads((scenarios("memory") / f"memory-{rank}.json").read_text())
        assert measured["whole"] > 0.9 * measured["sums"]
        assert measured["shared"] < 0.55 * measured["sums"]


def start(*arguments, cwd, until, before=None, count=2):
    """A run in several processes that has come to a certain line."""
    log = open(cwd / "output.txt", "w+")  # noqa: SIM115 - read while the process writes
    command = [sys.executable, "-m", "gora", *arguments, "--processes", str(count)]
    streams = {"stdout": log, "stderr": subprocess.STDOUT, "text": True}
    parent = subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, preexec_fn=before, **streams)
    deadline = time.monotonic() + 120
    while until not in (text := (cwd / "output.txt").read_text()):
        assert parent.poll() is None and time.monotonic() < deadline, text
        time.sleep(0.1)
    return parent


def without_hangups():
    """What nohup does."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@pytest.mark.parametrize(("verb", "until"), [("precompute", "sums      "), ("train", "engine    ")])
def test_killing_one_process_ends_the_run_at_once_and_leaves_nothing_under_a_final_name(tmp_path, verb, until):
    method = "gora" if verb == "precompute" else "lora"
    more = ("gora.steps=5000", "train.max_steps=5000", "train.epochs=1000", f"adapter.method={method}")
    settings = overrides(*more, f"output={tmp_path / 'run'}")
    parent = start(verb, "quickstart", *settings, cwd=tmp_path, until=until)
    workers = psutil.Process(parent.pid).children()
    assert len(workers) == 2
    workers[1].kill()
    assert parent.wait(timeout=30) == 1
    assert "Process 1 was ended by signal 9 (SIGKILL)" in (tmp_path / "output.txt").read_text()
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    left = {path.relative_to(tmp_path / "run").parts[0] for path in (tmp_path / "run").rglob("*") if path.is_file()}
    unfinished = "gradients.checkpoint" if verb == "precompute" else "metrics.jsonl"
    assert left <= {".gora", ".gora-lock", "failure.json", "log.txt", "recipe.yaml", unfinished}


@pytest.mark.slow
def test_one_of_four_killed_in_each_stage_and_resumed_gives_what_an_unbroken_run_gives(tmp_path):
    more = ("train.batch_size=8", "train.micro_batch_size=1", "train.save_steps=2", "gora.steps=8")
    settings = overrides(*more, "output=run")
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    done = gora("run", "quickstart", *settings, "--processes", "4", cwd=tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    for until, resume in (("sums      ", ()), ("engine    ", ("--resume",))):
        parent = start("run", "quickstart", *settings, *resume, cwd=tmp_path / "killed", until=until, count=4)
        workers = psutil.Process(parent.pid).children()
        assert len(workers) == 4
        while resume and not (tmp_path / "killed" / "run" / "checkpoints" / "checkpoint-4").exists():
            assert parent.poll() is None
            time.sleep(0.1)
        workers[2].kill()
        began = time.monotonic()
        assert parent.wait(timeout=60) == 1
        print(f"ended {time.monotonic() - began:.1f} s after one of four was killed")
        assert "Process 2 was ended by signal 9 (SIGKILL)" in (tmp_path / "killed" / "output.txt").read_text()
        assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    done = gora("run", "quickstart", *settings, "--resume", "--processes", "4", cwd=tmp_path / "killed")
    assert done.returncode == 0, done.stderr
    found, expected = (
        load_file(tmp_path / name / "run" / "adapter" / "adapter_model.safetensors") for name in ("killed", "whole")
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # The sum of four numbers depends on their order, which data parallelism settles again in each command.
        assert (found[name] - value).norm() <= 1e-5 * value.norm(), name


def test_processes_whose_launcher_is_killed_stop_after_a_step_with_a_checkpoint(tmp_path):
    more = ("train.max_steps=5000", "train.epochs=1000", "adapter.method=lora", "evaluation.steps=null")
    settings = overrides(*more, f"output={tmp_path / 'run'}")
    parent = start("train", "quickstart", *settings, cwd=tmp_path, until="engine    ")
    workers = psutil.Process(parent.pid).children()
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    gone, _ = psutil.wait_procs(workers, timeout=60)
    assert len(gone) == 2
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert json.loads((checkpoint / "provenance.json").read_text())["processes"] == 2
    assert (tmp_path / "output.txt").read_text().count("gora: Stopped by signal 15.") == 1


def test_ctrl_c_saves_the_sums_of_all_processes_and_resuming_makes_the_plan_of_an_unbroken_pass(tmp_path):
    """Under nohup, where the end of the terminal is not one of the signals that stop a run."""
    settings = overrides("gora.steps=60", f"output={tmp_path / 'run'}")
    nohup = {"before": without_hangups}
    parent = start("precompute", "quickstart", *settings, cwd=tmp_path, until="sums      ", **nohup)
    parent.send_signal(signal.SIGHUP)
    parent.send_signal(signal.SIGINT)
    # A hangup that was not left alone would have been the first, and would answer with 129.
    assert parent.wait(timeout=60) == 130
    text = (tmp_path / "output.txt").read_text()
    assert text.count("add --resume to continue from them") == 1
    assert "Traceback" not in text
    other = forks.run("precompute", "quickstart", "--resume", *settings, cwd=tmp_path)
    assert other.returncode == 2
    assert "was begun with 2 processes" in other.stderr
    again = gora("precompute", "quickstart", "--resume", "--processes", "2", *settings, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert not (tmp_path / "run" / "gradients.checkpoint").exists()
    precompute(recipe(tmp_path / "one", "gora.steps=60"))
    assert_same_plan(tmp_path / "run", tmp_path / "one")
