"""Several processes and hosts: who is started by whom, engines and their files, real launches."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext

import psutil
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from gora.errors import GoraError, InputError
from gora.recipe import load_recipe
from gora.runs.context import RunContext
from gora.runs.ignored_settings import ignored_settings
from gora.runtime import launch as launch_module
from gora.runtime.engine import NAMES, Engine
from gora.runtime.failure import FAILURE_FILE, first_to_fail
from gora.runtime.launch import Launch
from gora.runtime.waiting import Wait
from gora.runtime.world import World, find, join
from gora.training.engine_training import refuse_what_cannot_train
from tests.conftest import ROOT
from tests.helpers.environment import clean_environment

SRUN = {
    "SLURM_STEP_NUM_TASKS": "9",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),1",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "2",
    "SLURM_NODEID": "1",
}
TINY_RUN = (
    "data.train.max_rows=32",
    "data.eval.max_rows=4",
    "data.max_length=64",
    "gora.steps=2",
    "gora.micro_batch_size=1",
    "train.max_steps=2",
    "train.micro_batch_size=1",
    "train.batch_size=2",
    "evaluation.steps=null",
)


@pytest.fixture
def environment(monkeypatch):
    """Sets the variables of a launcher, in place of any other's, in a copy of the environment."""

    def become(**variables):
        monkeypatch.setattr(os, "environ", clean_environment(**variables))

    become()
    return become


@pytest.fixture
def started(monkeypatch):
    """How many processes the launcher was told to start on this host, instead of starting them."""
    counts = []
    monkeypatch.setattr(launch_module, "_run", lambda launch, count, command: counts.append(count))
    return counts


# Who starts whom


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"gpus": 2, "processes": 2}, "give one of the two"),
        ({"nodes": 2, "processes": 1}, "--nodes needs --rendezvous HOST:PORT"),
        ({"rendezvous": "a:1"}, "say how many hosts"),
        ({"node_rank": 0, "processes": 2}, "say how many hosts"),
        ({"nodes": 2, "node_rank": 2, "rendezvous": "a:1"}, "the last one is 1"),
        ({"nodes": 2, "rendezvous": "node01"}, "HOST:PORT is expected"),
        ({"nodes": 2, "rendezvous": "node01:70000"}, "HOST:PORT is expected"),
        ({"gpus": 1000}, "GPUs are visible here"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_with_advice(environment, started, options, advice):
    with pytest.raises(InputError, match=advice):
        Launch(**options).start([], nullcontext)
    assert not started


def test_a_launch_that_does_not_fit_ends_the_command_with_code_2(tmp_path):
    done = gora("run", "quickstart", "--nodes", "2", "--processes", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "gora: --nodes needs --rendezvous HOST:PORT, where all hosts reach the first of them.\n"


@pytest.mark.parametrize(
    ("variables", "world"),
    [
        ({}, World()),
        (
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", **SRUN},
            World(index=5, size=8, local_index=1, local_size=4),
        ),
        (
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4"},
            World(index=5, size=8, local_index=1, local_size=4),
        ),
        (SRUN, World(index=6, size=9, local_index=2, local_size=4)),
        (
            SRUN | {"SLURM_PROCID": "8", "SLURM_LOCALID": "0", "SLURM_NODEID": "2"},
            World(index=8, size=9, local_index=0, local_size=1),
        ),
        # A shell in a job of several tasks.
        ({"SLURM_NTASKS": "8", "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}, World()),
    ],
    ids=["alone", "torchrun", "deepspeed", "srun", "srun on the last host", "a shell in a Slurm job"],
)
def test_a_process_finds_its_place_in_its_launchers_environment(environment, variables, world):
    environment(**variables)
    assert find() == world
    assert find().main == (world.index == 0)


@pytest.mark.parametrize(
    "variables", [{"RANK": "0", "WORLD_SIZE": "1"}, {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}]
)
def test_what_torchrun_has_started_starts_nothing_again_and_says_which_options_do_nothing(
    environment, started, capsys, variables
):
    environment(**variables)
    assert not Launch(processes=2).start([], nullcontext)
    assert not Launch(processes=1, nodes=2, rendezvous="a:1").start([], nullcontext)
    assert not Launch().start([], nullcontext)
    assert not started
    said = capsys.readouterr().out.splitlines()
    other = "not used, another launcher has started the processes of this run."
    expected = [f"warning: --processes: {other}", f"warning: --processes, --nodes, --rendezvous: {other}"]
    assert said == (expected if variables["RANK"] == "0" else [])
    # gora's own processes are given the options that started them.
    environment(**variables, **{FAILURE_FILE: "somewhere"})
    assert not Launch(processes=2).start([], nullcontext)
    assert not capsys.readouterr().out


def test_srun_is_the_launcher_until_the_options_say_otherwise(environment, started):
    environment(**SRUN)
    assert not Launch().start([], nullcontext)
    assert Launch(processes=2).start([], nullcontext)
    assert Launch(processes=1, nodes=2, node_rank=1, rendezvous="a:1").start([], nullcontext)
    assert started == [2, 1]
    assert not Launch(processes=1).start([], nullcontext)
    assert find() == World()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_one_process_of_torchrun_is_no_group_to_the_libraries(environment):
    environment(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    assert join.__wrapped__() == World()
    assert "LOCAL_RANK" not in os.environ


def test_a_first_host_that_does_not_answer_is_named():
    with (
        Wait(str, -1) as wait,
        pytest.raises(GoraError, match="localhost:1: the first host does not answer"),
    ):
        launch_module._await_first_host("localhost:1", wait)


def test_only_the_first_to_fail_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv(FAILURE_FILE, str(tmp_path / "first"))
    assert [first_to_fail() for _ in range(3)] == [True, True, True]
    (tmp_path / "by another").touch()
    monkeypatch.setenv(FAILURE_FILE, str(tmp_path / "by another"))
    assert [first_to_fail() for _ in range(2)] == [False, False]
    monkeypatch.setenv(FAILURE_FILE, str(tmp_path / "gone" / "first"))
    assert first_to_fail()
    monkeypatch.delenv(FAILURE_FILE)
    assert first_to_fail()
    assert first_to_fail()


# Engines and their files


@pytest.mark.parametrize(
    ("name", "kind", "stage", "offloads", "shards_weights"),
    [
        ("ddp", "ddp", 0, False, False),
        ("zero2", "deepspeed", 2, False, False),
        ("zero2-offload", "deepspeed", 2, True, False),
        ("zero3", "deepspeed", 3, False, True),
        ("fsdp", "fsdp", 0, False, True),
    ],
)
def test_every_name_is_the_engine_of_its_file(name, kind, stage, offloads, shards_weights):
    for wanted in (name, str(ROOT / "configs" / f"{name}.yaml")):
        engine = Engine.of(wanted)
        assert (engine.kind, engine.stage) == (kind, stage)
        assert (engine.offloads, engine.shards_weights) == (offloads, shards_weights)
    if kind == "deepspeed":
        assert Engine.of(str(ROOT / "configs" / f"{name}.json")).settings == engine.settings
    else:
        assert engine.settings == ({"version": 2} | engine.settings if kind == "fsdp" else {})


def test_names_and_files_are_the_same_set():
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml")} == set(NAMES)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_files_that_ship(path):
    config = load_config_from_file(str(path))
    kind = {"MULTI_GPU": "ddp", "DEEPSPEED": "deepspeed", "FSDP": "fsdp"}[str(config.distributed_type.value)]
    assert kind == Engine.of(path.stem).kind


@pytest.mark.skipif(sys.platform != "linux", reason="DeepSpeed is for Linux")
@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("zero*.json")), ids=lambda path: path.stem)
def test_deepspeed_reads_the_files_that_ship(path):
    from deepspeed.runtime.config import DeepSpeedConfig

    # The Trainer fills in what is `auto`.
    document = json.loads(path.read_text())
    config = DeepSpeedConfig({key: 1 if value == "auto" else value for key, value in document.items()})
    engine = Engine.of(path.stem)
    assert config.zero_optimization_stage == engine.stage
    assert bool(config.zero_config.offload_optimizer) == engine.offloads


def test_a_users_own_files_are_read(tmp_path):
    zero = {"stage": 3, "offload_param": {"device": "cpu"}, "offload_optimizer": None}
    (tmp_path / "own.json").write_text(json.dumps({"zero_optimization": zero, "train_batch_size": "auto"}))
    own = Engine.of(str(tmp_path / "own.json"))
    assert (own.kind, own.stage, own.offloads, own.shards_weights) == ("deepspeed", 3, False, True)
    assert own.settings["zero_optimization"] == zero
    assert "train_batch_size" not in own.settings

    (tmp_path / "inline.yaml").write_text(
        "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 1, offload_optimizer_device: cpu}\n"
    )
    inline = Engine.of(str(tmp_path / "inline.yaml"))
    assert (inline.kind, inline.stage, inline.offloads) == ("deepspeed", 1, True)

    # A file beside it, from whichever folder the command is typed in.
    (tmp_path / "named.yaml").write_text(
        "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: own.json}\n"
    )
    assert Engine.of(str(tmp_path / "named.yaml")).settings == own.settings


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("a.json", '{"zero_optimization": {"stage": 2}, "optimizer": {"type": "Adam"}}', "optimizer: .*learning_rate"),
        ("a.json", '{"zero_optimization": {"stage": 2}, "train_batch_size": 8}', "train_batch_size: 8"),
        ("a.json", '{"zero_optimization": {"stage": 2}, "bf16": {"enabled": true}}', "bf16: .*train.precision"),
        ("a.json", '{"zero_optimization": {"stage": 0}}', "zero_optimization.stage: 0"),
        ("a.json", '{"zero_optimization": {"stage": 2, "compute_grad_norm": false}}', "compute_grad_norm: .*NaN"),
        ("a.json", '{"zero_optimization": 2}', "zero_optimization: 2 is no mapping"),
        ("a.json", '{"zero_optimization": ', r"a\.json cannot be read: .*line 1"),
        ("a.json", "[]", "holds no settings"),
        ("a.yaml", "distributed_type: [", r"a\.yaml cannot be read"),
        ("a.yaml", "distributed_type: MEGATRON_LM", "distributed_type: MEGATRON_LM"),
        (
            "a.yaml",
            "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: no.json}",
            r"no\.json cannot",
        ),
    ],
)
def test_a_file_that_contradicts_the_recipe_or_cannot_be_read_is_refused_by_key(tmp_path, name, text, named):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as refused:
        Engine.of(str(tmp_path / name))
    assert re.search(named, str(refused.value))


def test_an_engine_that_is_not_installed_is_refused_with_what_to_install(environment, monkeypatch):
    monkeypatch.setattr("gora.runs.engine_choice.find_spec", lambda name: None)
    recipe = load_recipe("quickstart", ["distributed=zero2"]).recipe
    refused = pytest.raises(InputError, match=r"zero2 needs DeepSpeed.*pip install deepspeed.*distributed=ddp")
    with refused, RunContext.open(recipe, command="gora train"):
        pass


def test_fully_sharded_training_is_refused_on_cpus():
    with pytest.raises(InputError, match=r"fsdp trains on GPUs only.*Give ddp or zero3"):
        refuse_what_cannot_train(Engine.of("fsdp"), torch.device("cpu"), "lora")
    refuse_what_cannot_train(Engine.of("fsdp"), torch.device("cuda"), "lora")


@pytest.mark.parametrize("engine", ["zero2", "zero3", "fsdp"])
def test_full_fine_tuning_is_refused_where_weights_or_gradients_are_shared_out(engine):
    with pytest.raises(InputError, match=f"adapter.method: full .* which {engine} shares out. Give distributed: ddp"):
        refuse_what_cannot_train(Engine.of(engine), torch.device("cuda"), "full")


ACCELERATE = """\
distributed_type: DEEPSPEED
mixed_precision: {precision}
num_processes: {processes}
num_machines: 1
deepspeed_config: {{zero_stage: 2, gradient_accumulation_steps: {accumulation}, gradient_clipping: {clipping}}}
"""


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (("no", 2, 4, 1.0), []),
        (("'no'", 2, "auto", "auto"), []),
        (
            ("bf16", 8, 1, 0.5),
            [
                "mixed_precision: bf16 (no runs)",
                "num_processes: 8 (2 runs)",
                "gradient_accumulation_steps: 1 (4 runs)",
                "gradient_clipping: 0.5 (1.0 runs)",
            ],
        ),
    ],
)
def test_what_accelerates_file_says_beside_the_engine_is_named_where_something_else_runs(tmp_path, values, named):
    keys = dict(zip(("precision", "processes", "accumulation", "clipping"), values, strict=True))
    (tmp_path / "a.yaml").write_text(ACCELERATE.format(**keys))
    recipe = load_recipe("quickstart", ["train.batch_size=16", "train.micro_batch_size=2"]).recipe
    engine = Engine.of(str(tmp_path / "a.yaml"))
    assert ignored_settings(engine, recipe, World(size=2, local_size=2), "fp32") == named


def test_settings_of_a_file_that_nothing_reads_are_said_once(tmp_path, environment, capsys):
    (tmp_path / "a.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 8\ndynamo_config: {backend: X}\n")
    settings = [*TINY_RUN, f"distributed={tmp_path / 'a.yaml'}", f"output={tmp_path / 'run'}"]
    for _ in range(2):
        with RunContext.open(load_recipe("quickstart", settings).recipe, command="gora train"):
            pass
    said = [line for line in capsys.readouterr().out.splitlines() if "a.yaml" in line]
    assert len(said) == 1
    assert said[0].endswith("only the engine is taken from this file, not num_processes: 8 (1 runs), dynamo_config.")


def test_a_name_that_is_no_engine_is_answered_with_the_names():
    with pytest.raises(
        InputError, match="'zero4' is neither a file nor one of auto, ddp, zero2, zero2-offload, zero3, fsdp"
    ):
        Engine.of("zero4")


# Real processes


def gora(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "gora", *arguments],
        cwd=cwd,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def executable(path, text):
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def job_with_a_free_port():
    """A Slurm job whose port in scripts/slurm.sh is free."""
    for job in range(os.getpid(), os.getpid() + 100):
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("", 20000 + job % 10000))
            return str(job)
    raise AssertionError("no port is free")


def test_the_slurm_script_runs_a_recipe_on_two_hosts(tmp_path):
    # Two parents on this machine stand for two hosts.
    tools = tmp_path / "tools"
    tools.mkdir()
    executable(tools / "gora", f'exec "{sys.executable}" -m gora "$@"')
    executable(tools / "scontrol", '[ "$*" = "show hostnames node[1-2]" ] && printf "localhost\\nnode2\\n"')
    executable(
        tools / "srun",
        """while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_ID=0 SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE="1(x2)" SLURM_LOCALID=0
SLURM_NODEID=0 SLURM_PROCID=0 "$@" & first=$!
SLURM_NODEID=1 SLURM_PROCID=1 "$@" || exit
wait "$first" """,
    )
    environment = clean_environment(
        PATH=f"{tools}:{os.environ['PATH']}",
        SLURM_JOB_ID=job_with_a_free_port(),
        SLURM_JOB_NUM_NODES="2",
        SLURM_JOB_NODELIST="node[1-2]",
    )
    settings = [part for value in (*TINY_RUN, "output=out of 'two'") for part in ("--set", value)]
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "slurm.sh", "quickstart", "--processes", "1", *settings],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "x 2 processes" in done.stdout
    assert done.stdout.count("plan      out of 'two'/plan.safetensors") == 1
    assert (tmp_path / "out of 'two'" / "plan.safetensors").is_file()
    assert (tmp_path / "out of 'two'" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_wrong_input_of_several_processes_is_explained_once(tmp_path):
    done = gora("run", "quickstart", "--processes", "2", "--set", "model.name=nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("gora: ") == 1
    assert done.stderr.count("nowhere") >= 1
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


def workers(scenario, **more):
    """gora's launcher with two processes of `tests/helpers/workers.py`."""
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "workers.py"), scenario]
    environment = clean_environment(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, **more)


def test_a_process_that_fails_shows_its_own_traceback_and_those_that_fail_with_it_nothing():
    _, said = (parent := workers("failing")).communicate(timeout=120)
    assert parent.returncode == 1
    assert said.count("Traceback") == said.count("ValueError: what went wrong") == 1
    assert "Connection" not in said
    assert "another process" not in said.lower()


def test_the_code_and_message_of_the_first_of_several_failures_are_those_of_the_run():
    _, said = (parent := workers("refusing")).communicate(timeout=120)
    assert parent.returncode == 2
    assert said == "gora: the first to fail\n"


def test_a_killed_process_is_the_cause_also_where_another_failed_in_the_same_second(tmp_path):
    (tmp_path / "first-failure").write_text("1")
    ended = {0: ProcessFailure(0, 10, 1, "<N/A>"), 1: ProcessFailure(1, 11, -signal.SIGKILL, "<N/A>")}
    with pytest.raises(GoraError, match=r"Process 1 was ended by signal 9 \(SIGKILL\)\. Most often the host"):
        launch_module._report(ended, str(tmp_path))
    aborted = {0: ProcessFailure(0, 10, 1, "<N/A>"), 1: ProcessFailure(1, 11, -signal.SIGABRT, "<N/A>")}
    with pytest.raises(SystemExit) as ending:
        launch_module._report(aborted, str(tmp_path))
    assert ending.value.code == 1


def test_signals_without_end_stop_processes_in_the_middle_of_a_step_and_leave_none_behind():
    with workers("unending", stdout=subprocess.PIPE) as parent:
        assert [parent.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
        processes = psutil.Process(parent.pid).children()
        assert len(processes) == 2
        for _ in range(200):
            parent.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                parent.wait(timeout=0.3)
                break
        assert parent.returncode == 130
        assert not any(process.is_running() for process in processes)
        said = parent.stderr.read()
    assert said.count("Stopping after this step") == 1
    assert said.count("gora: Stopped by signal") == 1
    assert len(said.strip().splitlines()) == 2
