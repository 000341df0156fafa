"""Training: groups, schedule, metrics, resuming bit for bit, refusing, stopping, and what is saved."""

import json
import math
import os
import signal
from array import array
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

import gora.training.finish as finish
import gora.training.saving as saving_module
from gora import manifest
from gora.data import Collator
from gora.data.encode import Encoded
from gora.data.examples import Examples
from gora.errors import GoraError, InputError, Interrupted
from gora.models.fingerprint import base_weights, weights_fingerprint
from gora.models.probe import probe_logits
from gora.models.source import find_model
from gora.models.weight_files import read_stored_weights
from gora.plan import read_plan
from gora.recipe import load_recipe
from gora.recipe.schema import ModelSection, TrainSection
from gora.runs.owner import mark
from gora.runtime.world import World
from gora.stages.merge import merge
from gora.stages.precompute import precompute
from gora.stages.train import train
from gora.training.batches import MicroBatchRows
from gora.training.groups import check_groups, parameter_groups
from gora.training.metrics import Metrics
from gora.training.schedule import make_schedule, optimizer_steps
from gora.training.trainer import GoraTrainer
from tests.conftest import TINY
from tests.helpers.callbacks import call_too

# 39 rows in micro-batches of 4: five optimizer steps an epoch, the last of them with a short micro-batch.
SMALL = (
    "data.train.max_rows=39",
    "data.eval.max_rows=8",
    "data.max_length=160",
    "gora.steps=4",
    "train.batch_size=8",
    "train.micro_batch_size=4",
    "train.epochs=2",
    "train.log_steps=1",
    "evaluation.steps=null",
)

FEW = ("train.max_steps=2", "gora.steps=2", "data.eval.max_rows=5")


def small_recipe(output, *more):
    return load_recipe("quickstart", [*SMALL, *more, f"output={output}"]).recipe


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run with dropout, checkpoints at steps 3, 6, 9 and 10 of 10, and its logits at the end of training."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    recipe = small_recipe(folder, "adapter.dropout=0.1", "train.save_steps=3", "train.keep_checkpoints=9")
    precompute(recipe)
    held = {}
    save = saving_module.save_adapter

    def remember(path, model, tokenizer, **note):
        held["logits"] = probe_logits(model, tokenizer)
        save(path, model, tokenizer, **note)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving_module, "save_adapter", remember)
        result = train(recipe)
    return recipe, folder, result, held["logits"]


def test_the_loss_on_evaluation_rows_falls_at_the_start_and_in_training(trained):
    _, folder, result, _ = trained
    losses = result.losses
    assert losses["final"] < losses["initial"] < losses["base"]
    written = json.loads((folder / "results.json").read_text())
    # The prompt of one of the eight leaves no room for its answer.
    assert (written["rows"], written["loss"]) == (7, losses)
    assert written["trainable_parameters"] > 0
    assert written["peak_bytes"]["host"] > 10**8
    assert written["versions"]["torch"] == torch.__version__


def test_metrics_hold_every_step_with_the_learning_rates_that_were_used(trained):
    _, folder, _, _ = trained
    steps = [line for line in lines(folder) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 11))
    for line in steps:
        done = line["step"] - 1
        # Cosine from the peak to a tenth of it; one step of warm-up (3 % of 10 steps, rounded up).
        factor = 0.0 if done == 0 else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (done - 1) / 9))
        assert line["learning_rate_a"] == pytest.approx(5e-4 * factor, rel=1e-12)
        assert line["learning_rate_b"] == pytest.approx(16 * 5e-4 * factor, rel=1e-12)
    assert steps[-1]["tokens"] > 0
    assert steps[-1]["epoch"] == 2


def test_the_adapter_loads_with_plain_peft_to_the_logits_at_the_end_of_training(trained):
    _, folder, _, logits = trained
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, folder / "adapter")
    from transformers import AutoTokenizer

    assert (probe_logits(loaded, AutoTokenizer.from_pretrained(TINY)) - logits).abs().max() < 1e-5


def test_the_note_beside_the_adapter_names_the_untouched_base(trained):
    _, folder, _, _ = trained
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.bfloat16)
    note = json.loads((folder / "adapter" / "gora.json").read_text())
    assert note["base_fingerprint"] == weights_fingerprint(base_weights(base))
    assert note["base_weights"] == asdict(read_stored_weights(find_model(ModelSection(name=str(TINY)))).note)
    assert (note["method"], note["base_dtype"]) == ("gora", "float32")


def test_training_starts_from_the_plan_and_keeps_its_ranks(trained):
    _, folder, _, _ = trained
    plan = read_plan(folder / "plan.safetensors")
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == plan.parameters
    for module in plan.modules:
        assert tensors[f"base_model.model.{module.name}.lora_A.weight"].shape == (module.rank, module.shape[1])


@pytest.mark.parametrize("step", [3, 6])
def test_a_run_resumed_from_a_checkpoint_equals_an_unbroken_one_bit_for_bit(trained, tmp_path, step):
    recipe, folder, _, _ = trained
    again = tmp_path / "run"
    mark(again)
    for name in ("plan.safetensors", "metrics.jsonl"):
        (again / name).write_bytes((folder / name).read_bytes())
    import shutil

    shutil.copytree(folder / "checkpoints" / f"checkpoint-{step}", again / "checkpoints" / f"checkpoint-{step}")
    result = train(recipe.model_copy(update={"output": str(again)}), mode="resume")
    expected = load_file(folder / "adapter" / "adapter_model.safetensors")
    found = load_file(again / "adapter" / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert result.losses == trained[2].losses
    keys = ("step", "loss", "grad_norm", "learning_rate_a", "learning_rate_b", "tokens", "rows")
    assert [[line.get(key) for key in keys] for line in lines(again)] == [
        [line.get(key) for key in keys] for line in lines(folder)
    ]


def test_the_checkpoints_are_whole_and_in_place(trained):
    _, folder, _, _ = trained
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["checkpoint-10", "checkpoint-3", "checkpoint-6", "checkpoint-9"]
    for name in names:
        files = {path.name for path in (folder / "checkpoints" / name).iterdir()}
        assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"} <= files


def test_a_used_folder_is_refused_unless_told_what_to_do(trained):
    recipe, _, _, _ = trained
    with pytest.raises(InputError, match=r"already holds plan.safetensors.*--overwrite"):
        precompute(recipe)
    with pytest.raises(InputError, match=r"already holds adapter.*--overwrite"):
        train(recipe)
    with pytest.raises(InputError, match="nothing to resume"):
        train(recipe, mode="resume")


def test_a_plan_made_with_other_settings_is_refused_with_each_of_them(trained):
    _recipe, folder, _, _ = trained
    other = small_recipe(folder, "adapter.alpha=32", "gora.gamma=0.1", "gora.rank_max=16", "seed=7")
    with pytest.raises(InputError) as refused:
        train(other, mode="overwrite")
    assert {problem.partition(":")[0] for problem in refused.value.problems} == {
        "adapter.alpha",
        "gora.gamma",
        "gora.rank_max",
        "seed",
    }
    assert (folder / "adapter").exists()


def test_a_plan_for_other_weights_or_targets_is_refused_with_the_difference(trained, tmp_path):
    import shutil

    recipe, folder, _, _ = trained
    other = tmp_path / "other"
    shutil.copytree(TINY, other, copy_function=shutil.copyfile)
    weights = load_file(other / "model.safetensors")
    weights["model.layers.3.self_attn.k_proj.weight"][0, 0] += 0.125
    from safetensors.torch import save_file

    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    changed = recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": str(other)})})
    with pytest.raises(InputError, match=r"model.weights: .*\(1 of \d+ tensors differ: model.layers.3.self"):
        train(changed, mode="overwrite")
    narrower = recipe.model_copy(update={"adapter": recipe.adapter.model_copy(update={"targets": ["q_proj"]})})
    with pytest.raises(InputError, match="18 planned layers are not targets of this run"):
        train(narrower, mode="overwrite")
    assert (folder / "adapter").exists()


class SignalAt(TrainerCallback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_termination_request_saves_a_checkpoint_and_resuming_equals_an_unbroken_run(trained, tmp_path, monkeypatch):
    recipe, folder, _, _ = trained
    again = tmp_path / "run"
    mark(again)
    (again / "plan.safetensors").write_bytes((folder / "plan.safetensors").read_bytes())
    recipe = small_recipe(again, "adapter.dropout=0.1")
    with monkeypatch.context() as patched:
        call_too(patched, SignalAt(4))
        with pytest.raises(Interrupted, match=r"checkpoint-4 holds step 4 of 10; add --resume") as stopped:
            train(recipe)
    assert stopped.value.exit_code == 143
    assert not (again / "adapter").exists()
    train(recipe, mode="resume")
    expected = load_file(folder / "adapter" / "adapter_model.safetensors")
    found = load_file(again / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_resuming_with_other_settings_names_them_and_a_setting_that_is_newer_than_the_run_is_at_its_default(
    trained, tmp_path
):
    recipe, folder, _, _ = trained
    import shutil

    again = tmp_path / "run"
    shutil.copytree(folder, again, ignore=shutil.ignore_patterns("adapter"))
    for state in again.glob("checkpoints/*/provenance.json"):
        origin = json.loads(state.read_text())
        assert origin["recipe"]["gora"].pop("init_a") == "random"
        state.write_text(json.dumps(origin))
        manifest.seal(state.parent)
    other = recipe.model_copy(
        update={"output": str(again), "train": recipe.train.model_copy(update={"learning_rate": 1.0, "log_steps": 3})}
    )
    with pytest.raises(InputError) as refused:
        train(other, mode="resume")
    assert refused.value.problems == ("train.learning_rate: 0.0005 when the run began, 1.0 now",)


def test_only_the_newest_checkpoints_are_kept_and_lora_has_one_learning_rate(tmp_path):
    folder = tmp_path / "run"
    train(small_recipe(folder, "adapter.method=lora", "train.save_steps=1", "train.max_steps=4", "evaluation.steps=2"))
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["checkpoint-3", "checkpoint-4"]
    steps = [line for line in lines(folder) if "loss" in line]
    assert all(line["learning_rate_a"] == line["learning_rate_b"] for line in steps)
    assert [line["step"] for line in lines(folder) if "eval_loss" in line] == [2, 4]
    final = json.loads((folder / "results.json").read_text())["loss"]["final"]
    assert final == lines(folder)[-1]["eval_loss"]


def test_activation_checkpointing_trains_to_the_same_adapter(tmp_path):
    found = {}
    for enabled in ("false", "true"):
        folder = tmp_path / enabled
        recipe = small_recipe(folder, f"train.activation_checkpointing={enabled}", *FEW)
        precompute(recipe)
        train(recipe)
        found[enabled] = load_file(folder / "adapter" / "adapter_model.safetensors")
    for name, tensor in found["false"].items():
        torch.testing.assert_close(found["true"][name], tensor, rtol=1e-4, atol=1e-6)


def test_the_loss_does_not_depend_on_how_rows_fall_into_micro_batches(tmp_path):
    losses = []
    for size in (1, 4, 8):
        folder = tmp_path / str(size)
        recipe = small_recipe(folder, "adapter.method=lora", f"train.micro_batch_size={size}", *FEW)
        train(recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"micro_batch_size": size})}))
        losses.append([line["loss"] for line in lines(folder) if "loss" in line] + [lines(folder)[-1]["step"]])
        losses[-1] += list(json.loads((folder / "results.json").read_text())["loss"].values())
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=0)
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[2]), rtol=1e-4, atol=0)


def test_the_merged_model_loads_with_plain_transformers_and_agrees_in_float32(trained, tmp_path):
    _, folder, _, logits = trained
    merged = merge(folder, tmp_path / "merged")
    assert merged.largest_difference < 1e-4
    from transformers import AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert (probe_logits(model, tokenizer) - logits).abs().max() < 1e-4
    assert {path.suffix for path in (tmp_path / "merged").iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_merged_weights_are_the_float32_sum_rounded_once(trained, tmp_path):
    _, folder, _, _ = trained
    merge(folder / "adapter", tmp_path / "merged", dtype="bfloat16")
    plan = read_plan(folder / "plan.safetensors")
    base, adapter = load_file(TINY / "model.safetensors"), load_file(folder / "adapter" / "adapter_model.safetensors")
    found = load_file(tmp_path / "merged" / "model.safetensors")
    for module in plan.modules:
        factors = [adapter[f"base_model.model.{module.name}.lora_{part}.weight"].double() for part in "AB"]
        exact = base[f"{module.name}.weight"].double() + module.scaling * factors[1] @ factors[0]
        half_a_step = exact.abs() * 2**-8
        assert found[f"{module.name}.weight"].dtype == torch.bfloat16
        assert ((found[f"{module.name}.weight"].double() - exact).abs() <= half_a_step + 1e-7).all()


def test_merge_refuses_what_it_cannot_merge(trained, tmp_path):
    _, folder, _, _ = trained
    with pytest.raises(InputError, match=r"not an adapter folder: no adapter_config.json"):
        merge(tmp_path, tmp_path / "merged")
    (begun := tmp_path / "begun").mkdir()
    (begun / "recipe.yaml").write_text("")
    with pytest.raises(InputError, match=r"begun is a run that has no adapter yet. Finish it with `gora run --resume`"):
        merge(begun, tmp_path / "merged")
    (begun / "model").mkdir()
    with pytest.raises(InputError, match=r"begun/model is a model already, and there is no adapter"):
        merge(begun, tmp_path / "merged")
    (tmp_path / "merged").mkdir()
    with pytest.raises(InputError, match="exists"):
        merge(folder, tmp_path / "merged")


def test_a_merge_that_computes_something_else_is_not_kept(trained, tmp_path, monkeypatch):
    import gora.adapters.streamed_merge as streamed_merge

    _, folder, _, _ = trained
    folded = streamed_merge.folded_pieces
    scaled = lambda layer, weight: (1.1 * piece for piece in folded(layer, weight))  # noqa: E731
    monkeypatch.setattr(streamed_merge, "folded_pieces", scaled)
    with pytest.raises(GoraError, match="it was not kept"):
        merge(folder, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_process_without_rows_adds_a_gradient_of_zero(request, family):
    model = request.getfixturevalue(family)
    rows = Examples(
        [
            Encoded(array("i", [5, 6, 7]), array("i", [6, 7, 8]), False),
            Encoded(array("i", [5, 9]), array("i", [9, 9]), False),
        ],
        ["a", "b"],
        encoder_decoder=family == "t5",
    )
    (filler,) = MicroBatchRows(rows)[[len(rows)]]
    assert filler == {"input_ids": [5, 9], "labels": [-100, -100]}
    trainer = object.__new__(GoraTrainer)
    trainer.args = SimpleNamespace(device=torch.device("cpu"))
    collator = Collator(0, family == "t5")
    trainer._precision, trainer._lean, trainer._world, trainer._settings = "fp32", False, World(size=2), {}
    trainer._told_places = False
    batch = {**collator([filler]), "supervised": 0}
    loss = trainer.compute_loss(model, batch, num_items_in_batch=torch.tensor(7))
    loss.backward()
    assert loss.item() == 0
    gradients = [value.grad for value in model.parameters()]
    assert any(gradient is not None for gradient in gradients)
    assert not any(gradient.any() for gradient in gradients if gradient is not None)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 64])
@pytest.mark.parametrize(("epochs", "accumulation"), [(1.0, 1), (2.5, 3), (0.3, 2)])
def test_optimizer_steps_equal_a_count_of_the_loop(rows, epochs, accumulation):
    settings = TrainSection(epochs=epochs, micro_batch_size=4, batch_size=4 * accumulation)
    micro_batches = len(range(0, rows, 4))
    per_epoch = len(range(0, micro_batches, accumulation))
    assert optimizer_steps(rows, settings) == math.ceil(per_epoch * epochs)
    capped = settings.model_copy(update={"max_steps": 2})
    assert optimizer_steps(rows, capped) == min(2, math.ceil(per_epoch * epochs))


@pytest.mark.parametrize(("schedule", "last"), [("cosine", 0.1), ("linear", 0.0), ("constant", 1.0)])
def test_schedules_warm_up_and_end_where_they_should(schedule, last):
    settings = TrainSection(schedule=schedule, warmup_ratio=0.1, min_lr_ratio=0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    running = make_schedule(optimizer, settings, steps=100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        running.step()
    assert rates[0] == 0
    assert max(rates) == rates[10] == 1.0
    assert rates == sorted(rates[:11]) + rates[11:]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(last)


def adapted(llama):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(llama, LoraConfig(target_modules=["q_proj"]))


def test_groups_hold_every_parameter_once_at_its_rate(llama):
    model = adapted(llama)
    settings = TrainSection(learning_rate=2e-4, weight_decay=0.1, beta2=0.95, epsilon=1e-6)
    group_a, group_b = parameter_groups(model, settings, lr_ratio=16)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all("lora_A" in names[id(parameter)] for parameter in group_a["params"])
    assert all("lora_B" in names[id(parameter)] for parameter in group_b["params"])
    assert len(group_a["params"]) == len(group_b["params"]) == 2
    assert (group_a["lr"], group_b["lr"]) == (2e-4, 16 * 2e-4)
    assert group_a["weight_decay"] == 0.1
    assert group_a["betas"] == (0.9, 0.95)
    assert group_a["eps"] == 1e-6


def test_a_frozen_half_leaves_no_empty_group(llama):
    model = adapted(llama)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    assert [group["name"] for group in parameter_groups(model, TrainSection(), 16)] == ["B"]


def test_a_parameter_that_belongs_nowhere_is_named(llama):
    model = adapted(llama)
    model.base_model.model.lm_head.weight.requires_grad_(True)
    with pytest.raises(GoraError, match="lm_head"):
        parameter_groups(model, TrainSection(), 16)


@pytest.mark.parametrize(
    "change",
    [
        lambda groups: groups.pop(),
        lambda groups: groups[1].update(lr=1.0),
        lambda groups: groups[0].update(betas=(0.9, 0.9)),
        lambda groups: groups[0].update(weight_decay=1.0),
        lambda groups: groups[1].update(params=[]),
    ],
)
def test_an_engine_that_changes_a_group_is_caught(llama, change):
    wanted = parameter_groups(adapted(llama), TrainSection(), 16)
    running = [dict(group) for group in wanted]
    check_groups(running, wanted)
    change(running)
    with pytest.raises(GoraError):
        check_groups(running, wanted)


def test_metrics_of_later_steps_and_torn_lines_are_dropped_on_resuming(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n{"step": 3, "lo')
    metrics = Metrics(path, last_step=1)
    metrics.add(2, loss=float("nan"))
    assert path.read_text() == '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": "nan"}\n'


def random_t5(folder):
    """A tiny encoder-decoder on disk, with the embedded model's tokenizer."""
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    tokens = {"vocab_size": 4096, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    T5ForConditionalGeneration(T5Config(**sizes, **tokens)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_loss_and_gradient_do_not_depend_on_accumulation(tmp_path, family):
    found = []
    for size in (1, 8):
        folder = tmp_path / str(size)
        recipe = small_recipe(folder, "adapter.method=lora", f"train.micro_batch_size={size}", "train.max_steps=3")
        if family == "t5":
            name = random_t5(tmp_path / "t5")
            recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": name})})
        train(recipe)
        found.append([[line["loss"], line["grad_norm"]] for line in lines(folder) if "loss" in line])
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(found[1]), rtol=1e-3, atol=1e-5)


def test_the_same_lora_recipe_gives_the_same_adapter(tmp_path):
    found = []
    for number in range(2):
        torch.manual_seed(number)
        train(small_recipe(tmp_path / str(number), "adapter.method=lora", "train.max_steps=2"))
        found.append(load_file(tmp_path / str(number) / "adapter" / "adapter_model.safetensors"))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_run_of_one_step_trains(tmp_path):
    result = train(small_recipe(tmp_path / "run", "adapter.method=lora", "train.max_steps=1"))
    assert result.losses["final"] != result.losses["initial"]


def test_what_was_trained_while_its_base_changed_is_kept_and_is_not_the_result(tmp_path, monkeypatch):
    class Meddle(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            with torch.no_grad():
                kwargs["model"].get_input_embeddings().weight[0, 0] += 1

    call_too(monkeypatch, Meddle())
    with pytest.raises(GoraError, match=r"base weights changed.*kept in .*adapter\.rejected"):
        train(small_recipe(tmp_path / "run", "adapter.method=lora", "train.max_steps=1"))
    assert not (tmp_path / "run" / "adapter").exists()
    kept = load_file(tmp_path / "run" / "adapter.rejected" / "adapter_model.safetensors")
    assert any(value.any() for name, value in kept.items() if "lora_B" in name)


@pytest.mark.parametrize(("method", "saving"), [("lora", "PreTrainedTokenizerBase"), ("full", "PreTrainedModel")])
def test_values_outlive_a_library_that_cannot_write_them(tmp_path, monkeypatch, method, saving):
    def broken(*_, **__):
        raise ValueError("GenerationConfig is invalid")

    class BreakAtTheEnd(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            monkeypatch.setattr(f"transformers.{saving}.save_pretrained", broken)

    call_too(monkeypatch, BreakAtTheEnd())
    with pytest.raises(GoraError, match=r"could not be saved as usual.*GenerationConfig is invalid.*adapter\.rejected"):
        train(small_recipe(tmp_path / "run", f"adapter.method={method}", "train.max_steps=2"))
    kept = load_file(tmp_path / "run" / "adapter.rejected" / "values.safetensors")
    assert len(kept) == (48 if method == "lora" else 24)
    assert all(value.isfinite().all() for value in kept.values())


def test_an_interruption_of_the_last_evaluation_keeps_the_adapter(tmp_path, monkeypatch):
    from gora.runtime.interrupt import StopSignal

    calls = []

    def evaluate(model, setup, what):
        calls.append(1)
        if len(calls) == 1:
            raise StopSignal(2)
        return 1.0

    monkeypatch.setattr(finish, "finite_loss", evaluate)
    with pytest.raises(StopSignal):
        train(small_recipe(tmp_path / "run", "adapter.method=lora", "train.max_steps=2"))
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()


def test_resuming_with_another_plan_or_other_rows_is_refused(trained, tmp_path):
    import shutil

    recipe, folder, _, _ = trained
    again = tmp_path / "run"
    shutil.copytree(folder, again, ignore=shutil.ignore_patterns("adapter"))
    mine = recipe.model_copy(update={"output": str(again)})
    rows = (TINY.parents[1] / "data" / "gsm8k" / "train.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(rows[:39]) + "\n")
    source = recipe.data.train.model_copy(update={"path": str(tmp_path / "rows.jsonl")})
    moved = mine.model_copy(update={"data": recipe.data.model_copy(update={"train": source})})
    with pytest.raises(InputError, match="other settings"):
        train(moved, mode="resume")
    state = again / "checkpoints" / "checkpoint-10" / "provenance.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "data": "other"}))
    manifest.seal(state.parent)
    with pytest.raises(InputError, match="training rows are not those"):
        train(mine, mode="resume")
    plan = again / "plan.safetensors"
    plan.write_bytes(plan.read_bytes() + b" ")
    with pytest.raises(InputError, match=r"not a whole safetensors|other settings"):
        train(mine, mode="resume")
