"""What `gora check` says of a recipe, against what a run of it does."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from gora.errors import InputError
from gora.planning import time_probe, workload
from gora.runs.context import RunContext
from gora.runtime.gpu_comparison import compare_gpus, gpu_problems
from gora.stages.check import check
from gora.stages.run import run
from scripts.families.small import small_config
from tests.helpers.checkpoints import recipe_for, save_llama, save_rows


@pytest.fixture
def home(tmp_path):
    """A tiny model and sixteen rows."""
    save_llama(tmp_path / "base")
    save_rows(tmp_path / "rows.jsonl")
    return tmp_path


def recipe(home, *settings):
    method = {"adapter": {"method": "gora"}, "train": {"max_steps": 3}}
    return recipe_for(home / "base", home / "rows.jsonl", home / "run", *settings, **method)


def test_the_page_says_what_the_run_then_does_and_writes_nothing(home):
    found = check(recipe(home, "train.micro_batch_size=auto"))
    assert (found.problems, found.exit_code) == ([], 0)
    assert not (home / "run").exists()
    facts = found.facts
    trained = run(recipe(home, "train.micro_batch_size=auto"))
    results = json.loads((home / "run" / "results.json").read_text())
    assert facts["steps"]["optimizer_steps"] == trained.steps == 3
    assert facts["steps"]["micro_batch_size"] == results["train"]["micro_batch_size"] == 4
    assert facts["rows"]["train"]["used"] == 16
    assert facts["rows"]["length"]["most"] >= facts["rows"]["length"]["p90"] >= facts["rows"]["length"]["least"] > 0
    assert facts["model"]["parameters"] == 19_616
    assert facts["targets"]["kinds"] == {"q_proj": 2, "k_proj": 2, "v_proj": 2, "o_proj": 2}
    # Before a plan every layer counts with the reference rank, afterwards with its own.
    assert facts["targets"]["trainable"] == 8 * 2 * (32 + 32)
    assert check(recipe(home)).facts["targets"]["trainable"] == results["trainable_parameters"]
    adapter = (home / "run" / "adapter" / "adapter_model.safetensors").stat().st_size
    assert facts["disk"]["adapter"] <= adapter
    assert facts["machine"]["versions"]["torch"] == torch.__version__


def test_a_tokenizer_of_another_model_and_a_kernel_that_is_not_there_are_problems_among_others(home):
    found = check(recipe(home, "model.tokenizer=builtin:tiny-6m", "model.attention=flash_attention_2"))
    assert found.exit_code == 2
    assert any("makes token ids up to" in problem for problem in found.problems)
    assert any("FlashAttention-2 cannot run here" in problem for problem in found.problems)
    assert found.facts["rows"]["train"]["used"] == 16


def test_weights_need_not_be_there_but_are_missed(home):
    (home / "base" / "model.safetensors").unlink()
    found = check(recipe(home))
    assert found.exit_code == 2
    assert len(found.problems) == 1 and str(home / "base") in found.problems[0]
    assert found.facts["memory"]["peaks"]["training"]["total"] > 0


def sharded(folder, kept):
    """Distribute the weights over two files with an index, those that are kept."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {}
    for number in (0, 1):
        part = {name: values for name, values in list(weights.items())[number::2] if name in kept}
        save_file(part, folder / f"model-{number}.safetensors", {"format": "pt"})
        places |= dict.fromkeys(part, f"model-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("files", ["one file", "shards"])
def test_weights_of_another_model_are_told_before_they_are_read(home, files):
    base = home / "base"
    lacking = "model.layers.1.mlp.up_proj.weight"
    names = load_file(base / "model.safetensors").keys() - {lacking}
    if files == "shards":
        sharded(base, names)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    found = check(recipe(home))
    assert found.exit_code == 2
    (problem,) = found.problems
    assert "config.json and its weights are not of one model: download both again" in problem
    assert "model.layers.0.mlp.up_proj.weight is (48, 32) in the checkpoint, and (40, 32) by config.json" in problem
    assert (f"{lacking} is missing" in problem) == (files == "shards")
    with pytest.raises(InputError) as refused:
        run(recipe(home))
    assert str(refused.value) == problem


def test_what_does_not_fit_is_a_problem_with_the_cheapest_changes_and_their_effect(home, monkeypatch):
    fitting = check(recipe(home, "train.micro_batch_size=4"))
    needs = fitting.facts["memory"]["peaks"]["training"]["total"]
    halved = check(recipe(home, "train.micro_batch_size=2")).facts["memory"]["peaks"]["training"]["total"]
    monkeypatch.setattr(workload, "memory_limit", lambda context: needs - 1)
    found = check(recipe(home, "train.micro_batch_size=4", "gora.micro_batch_size=1"))
    assert found.exit_code == 2
    (problem,) = found.problems
    assert problem.startswith("Training takes ")
    first = problem.splitlines()[1]
    assert first.startswith("  - --set train.micro_batch_size=2: ")
    assert f"{(needs - halved) / 1e3:.0f} kB less" in first
    assert found.facts["memory"]["largest_micro_batch"]["training"] == 2


def test_a_rank_that_takes_most_of_the_memory_is_the_change_that_helps(home, monkeypatch):
    settings = ("adapter.method=lora", "adapter.rank=8000", "train.micro_batch_size=1")
    needs = check(recipe(home, *settings)).facts["memory"]["peaks"]["training"]["total"]
    monkeypatch.setattr(workload, "memory_limit", lambda context: needs - 1)
    (problem,) = check(recipe(home, *settings)).problems
    assert "--set adapter.rank=4000: " in problem and "half as many values are trained" in problem
    halved = check(recipe(home, *settings[:1], "adapter.rank=4000", *settings[2:]))
    assert halved.problems == []
    assert halved.facts["memory"]["peaks"]["training"]["total"] < 0.75 * needs


def test_every_problem_is_named_at_once(home):
    found = check(recipe(home, "train.batch_size=6", "train.micro_batch_size=2", "distributed=fsdp"), processes=2)
    assert found.exit_code == 2
    assert any("fsdp trains on GPUs only" in problem for problem in found.problems)
    assert any("is not a multiple of train.micro_batch_size x processes" in problem for problem in found.problems)
    assert found.facts["rows"]["train"]["used"] == 16


def test_the_command_prints_problems_first_or_everything_as_json(home, gora_here):
    recipe(home)
    code, out, err = gora_here("check", home / "run.json", "--json", cwd=home)
    document = json.loads(out)
    assert (code, err, document["problems"]) == (0, "", [])
    assert document["memory"]["engines"].keys() == {"ddp", "zero2", "zero2-offload", "zero3", "fsdp"}
    assert document["recipe"]["adapter"]["rank"] == 2
    with open(home / "rows.jsonl", "a") as rows:
        rows.write('{"prompt": \n')
    code, out, _ = gora_here("check", home / "run.json", cwd=home)
    assert code == 2
    assert out.startswith("problem   ") and "rows.jsonl:17" in out


def test_a_dry_run_is_the_resolved_recipe_and_the_check_of_that_very_command(home, gora_here):
    recipe(home)
    code, out, _ = gora_here(
        "run", home / "run.json", "--dry-run", "--set", "train.activation_checkpointing=auto", cwd=home
    )
    assert code == 0
    resolved = yaml.safe_load(out[: out.index("No problem was found.")])
    assert (resolved["train"]["activation_checkpointing"], resolved["train"]["warmup_ratio"]) == (False, 0.03)
    assert not (home / "run").exists()
    code, out, _ = gora_here("run", home / "run.json", "--dry-run", "--resume", cwd=home)
    assert code == 0
    (home / "run").mkdir()
    (home / "run" / "something").write_text("")
    code, out, _ = gora_here("run", home / "run.json", "--dry-run", cwd=home)
    assert code == 2


def test_the_time_of_all_blocks_is_measured_on_few_with_random_weights(home, monkeypatch):
    context = RunContext.alone(recipe(home))
    made = []
    real = time_probe._small_model

    def remember(context, source, layers):
        made.append(real(context, source, layers))
        return made[-1]

    monkeypatch.setattr(time_probe, "_small_model", remember)
    monkeypatch.setattr(time_probe, "_seconds", lambda context, source, layers, ids: float(layers) + 10)
    # Ten seconds beside the blocks and one for each of the two.
    assert time_probe.seconds_of_micro_batch(context) == 12
    monkeypatch.undo()
    monkeypatch.setattr(time_probe, "_small_model", remember)
    assert time_probe.seconds_of_micro_batch(context) is not None
    assert [model.config.num_hidden_layers for model in made] == [1, 3]
    assert all(any(value.requires_grad for value in model.parameters()) for model in made)
    assert context.source.config.num_hidden_layers == 2
    assert time_probe.mean_width([3, 3, 9, 9], 4) == 9


@pytest.mark.parametrize("family", ["deepseek_v3", "phimoe", "mamba2", "qwen2"])
def test_the_time_is_measured_with_the_layers_that_training_adapts(family, home, monkeypatch):
    # PEFT refuses some layers of these, and lists of kinds of layers are as short as the model.
    context = RunContext.alone(recipe(home, "adapter.targets=all-linear"))
    config = small_config(family)
    config.vocab_size = 4096
    inputs = replace(context.inputs, source=replace(context.source, config=config))
    monkeypatch.setitem(context.__dict__, "inputs", inputs)
    assert time_probe.seconds_of_micro_batch(context) is not None


def test_devices_are_compared_by_what_arrives():
    devices = [torch.device("cpu"), torch.device("cpu", 0)]
    result = compare_gpus(devices, values=1000)
    assert [copy["right"] for copy in result["copies"]] == [True, True]
    assert all(copy["bytes_per_second"] > 0 for copy in result["copies"])
    assert gpu_problems(result) == []
    result["copies"][1]["right"] = False
    assert gpu_problems(result) == [
        "A copy from cpu:0 to cpu is wrong. Take it out with CUDA_VISIBLE_DEVICES, or set NCCL_P2P_DISABLE=1 and test "
        "again."
    ]
