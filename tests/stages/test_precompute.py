"""The gradient pass as a stage: low memory, kept gradients, interruption, and the same plan by every way."""

import json
import os
import signal

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

import gora.gradients.checkpoint as checkpoint
from gora import manifest
from gora.core.importance import importance
from gora.core.initial import draw_a, solve_b
from gora.errors import GoraError, InputError, Interrupted
from gora.gradients.attach import Attachment
from gora.gradients.checkpoint import NoCheckpoint
from gora.gradients.collect import Collection, Pace
from gora.gradients.sampled import SampledStatistics
from gora.gradients.statistics import Start
from gora.models import supervised_head
from gora.models.targets import find_targets, weight_of, weight_shape
from gora.plan import read_factors
from gora.planning import gradient_pass as stage
from gora.planning.micro_batches import MicroBatches
from gora.recipe import load_recipe
from gora.runs.base_model import load_base_model
from gora.runs.context import RunContext
from gora.stages.precompute import plan_from_gradients, precompute
from tests.conftest import opened
from tests.gradients.test_gradients import collect, text_batches
from tests.helpers.checkpoints import recipe_for, save_llama, save_rows

SMALL = (
    "data.train.max_rows=64",
    "data.eval.max_rows=8",
    "data.max_length=128",
    "gora.steps=6",
    "gora.micro_batch_size=2",
)


def recipe(output, *more):
    return load_recipe("quickstart", [*SMALL, *more, f"output={output}"]).recipe


def same(one, other, tolerance=0.0):
    assert one.plan.modules == other.plan.modules if not tolerance else True
    left, right = (read_factors(made.path, made.plan) for made in (one, other))
    assert left.keys() == right.keys()
    for name in left:
        for mine, yours in zip(left[name], right[name], strict=True):
            assert (mine - yours).norm() <= tolerance * yours.norm()


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept") / "run"
    return folder, precompute(recipe(folder), keep="fp32")


def test_a_plan_from_kept_gradients_is_the_plan_of_the_pass(kept, tmp_path):
    folder, made = kept
    again = plan_from_gradients(recipe(tmp_path / "again"), folder / "gradients")
    assert again.plan == made.plan
    same(again, made)
    assert again.path.read_bytes() == made.path.read_bytes()


def test_the_pass_says_beforehand_where_tokens_are_predicted(kept, tmp_path, monkeypatch):
    def searched(labels):
        raise AssertionError("the host would have to wait for a GPU to find them")

    run = Collection.run

    def watched(collection):
        monkeypatch.setattr(supervised_head, "predicting_places", searched)
        return run(collection)

    monkeypatch.setattr(Collection, "run", watched)
    made = precompute(recipe(tmp_path / "run", "train.kernels=fused", "data.packing=packed"))
    assert [module.rank for module in made.plan.modules] == [module.rank for module in kept[1].plan.modules]
    same(kept[1], made, tolerance=1e-4)


def test_micro_batches_that_share_passes_make_the_plan_of_those_that_do_not(tmp_path, monkeypatch):
    passes, told = [], []
    get, tell = MicroBatches.together, Collection._tell
    monkeypatch.setattr(
        MicroBatches, "together", lambda self, indices: passes.append(list(indices)) or get(self, indices)
    )

    def telling(collection, losses):
        tell_step = collection.on_step
        collection.on_step = lambda step: told.append(step) or tell_step(step)
        try:
            return tell(collection, losses)
        finally:
            collection.on_step = tell_step

    monkeypatch.setattr(Collection, "_tell", telling)
    more = ("train.kernels=fused", "data.packing=packed", "gora.steps=8")
    alone = precompute(recipe(tmp_path / "alone", *more))
    losses = [step.loss for step in told]
    assert not passes
    told.clear()
    monkeypatch.setattr(MicroBatches, "share_passes", True)
    monkeypatch.setattr(MicroBatches, "most_tokens", 600)  # more than two micro-batches have
    shared = precompute(recipe(tmp_path / "shared", *more))
    taken = [index for each in passes for index in each]
    assert max(map(len, passes)) > 1
    assert len(set(taken)) == len(taken)
    assert not any({3, 4} <= set(each) for each in passes)  # signal and noise are told apart by halves
    assert [step.index for step in told] == list(range(8))
    assert [step.loss for step in told] == pytest.approx(losses, rel=1e-5)
    assert [module.rank for module in shared.plan.modules] == [module.rank for module in alone.plan.modules]
    assert [module.signal for module in shared.plan.modules] == pytest.approx(
        [module.signal for module in alone.plan.modules], rel=1e-3
    )
    same(shared, alone, tolerance=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        ["adapter.rank=16", "gora.gamma=0.2", "adapter.alpha=32"],
        ["gora.importance=nuclear-gradient"],
        ["gora.importance=nuclear-product"],
        ["gora.init_a=gradient"],
        ["gora.rank_min=0", "gora.rank_max=unbounded", "gora.budget=parameters"],
        ["gora.allocation=softmax", "gora.temperature=0.1"],
        ["gora.importance=above-noise", "gora.allocation=sqrt"],
        ["gora.step=weight-spectral", "gora.importance=effective-rank"],
        ["gora.step=weight", "gora.init_a=sign", "gora.balance=true"],
    ],
)
def test_another_plan_from_kept_gradients_is_the_plan_of_another_pass(kept, tmp_path, change):
    folder, _ = kept
    again = plan_from_gradients(recipe(tmp_path / "again", *change), folder / "gradients")
    anew = precompute(recipe(tmp_path / "anew", *change))
    assert [module.rank for module in again.plan.modules] == [module.rank for module in anew.plan.modules]
    same(again, anew, tolerance=1e-6)


def test_what_needs_whole_gradients_is_refused_with_low_memory_before_anything_begins(tmp_path):
    asked = ("gora.init_a=gradient", "gora.importance=nuclear-product", "gora.rank_max=unbounded")
    with pytest.raises(InputError, match="--low-memory never has whole gradients") as refused:
        precompute(recipe(tmp_path, *asked), low_memory=True, keep="bf16")
    assert [problem.split(":")[0] for problem in refused.value.problems] == [
        "--keep-gradients",
        "gora.init_a",
        "gora.importance",
        "gora.rank_max",
    ]
    assert not any(tmp_path.iterdir())


def test_an_importance_of_halves_needs_halves(tmp_path):
    with pytest.raises(InputError, match="compares two halves of the gradients"):
        precompute(recipe(tmp_path / "run", "gora.importance=above-noise", "gora.steps=1"))
    with pytest.raises(InputError) as refused:
        recipe(tmp_path / "run", "gora.importance=above-noise", "gora.steps=auto")
    assert any("give gora.steps a number" in problem for problem in refused.value.problems)


def test_gradients_kept_in_bfloat16_are_as_good_as_bfloat16_is(kept, tmp_path):
    _, made = kept
    precompute(recipe(tmp_path / "run"), keep="bf16")
    again = plan_from_gradients(recipe(tmp_path / "again"), tmp_path / "run" / "gradients")
    assert [module.rank for module in again.plan.modules] == [module.rank for module in made.plan.modules]
    same(again, made, tolerance=5e-3)


def test_kept_gradients_of_another_pass_and_broken_ones_are_refused(kept, tmp_path):
    folder, _ = kept
    with pytest.raises(InputError, match="another pass") as refused:
        plan_from_gradients(recipe(tmp_path / "a", "gora.steps=5", "seed=3"), folder / "gradients")
    assert refused.value.problems == ("seed: 42 there, 3 in the recipe", "gora.steps: 6 there, 5 in the recipe")
    with pytest.raises(InputError, match=r"none is not a folder of kept gradients\. `gora precompute RECIPE"):
        plan_from_gradients(recipe(tmp_path / "b"), tmp_path / "none")
    with pytest.raises(InputError, match=r"is not a folder of kept gradients\. Give .*gradients\."):
        plan_from_gradients(recipe(tmp_path / "b"), folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "state.json").write_text(json.dumps({"tensors": {}}))
    with pytest.raises(InputError, match=r"manifest\.json is missing"):
        plan_from_gradients(recipe(tmp_path / "c"), other)
    manifest.seal(other)
    with pytest.raises(InputError, match="does not hold kept gradients"):
        plan_from_gradients(recipe(tmp_path / "c"), other)


def sampled(llama, share):
    llama.requires_grad_(False)
    targets = find_targets(llama, "all-linear")
    attachment = Attachment(llama, targets)
    shapes = {name: weight_shape(module) for name, module in targets.items()}
    statistics = SampledStatistics(
        shapes, 16, share, 0, torch.device("cpu"), attachment.keys, lambda name: weight_of(targets[name])
    )
    batches = list(text_batches(4))
    llama.config.use_cache = False
    run = Collection(
        attachment=attachment,
        sums=statistics,
        batch_of=batches.__getitem__,
        loss_of=lambda b: llama(**b).loss,
        pace=Pace.alone(4),
        checkpoint=NoCheckpoint(),
    )
    statistics.counted = run.run().counted
    means, _ = collect(llama, targets, batches)
    return statistics, means, targets


def test_low_memory_has_the_same_a_and_b_without_the_gradient(llama):
    statistics, means, _ = sampled(llama, 1 / 8)
    for name, mean in means.items():
        for rank in (1, 5, 16):
            factor_a, factor_b = statistics.factors(name, rank, Start(0, 0.05, 16.0))
            assert torch.equal(factor_a, draw_a(name, rank, mean.shape[1], 0))
            expected = solve_b(mean.float(), factor_a, 0.05, 16.0)
            assert (factor_b - expected).norm() <= 1e-5 * expected.norm()


def test_low_memory_with_every_row_sampled_is_exact_and_says_so(llama):
    statistics, means, targets = sampled(llama, 1.0)
    for name, mean in means.items():
        expected = importance(targets[name].weight, mean.float())
        assert statistics.importance(name, "sensitivity") == pytest.approx(expected, rel=1e-5)
        assert statistics.gradient_norm(name) == pytest.approx(mean.norm().item(), rel=1e-5)
        assert statistics.relative_error(name) == 0


def test_the_reported_sampling_error_is_that_of_repeated_samples():
    """Independent of the estimator's own formula: the spread of many samples of one known matrix."""
    torch.manual_seed(0)
    rows, columns = 512, 40
    weight, gradient = torch.randn(rows, columns), torch.randn(rows, columns) * torch.rand(rows, 1)
    exact = (weight * gradient).abs().mean().item()
    estimates, errors = [], []
    for seed in range(200):
        statistics = SampledStatistics(
            {"w": (rows, columns)}, 4, 1 / 8, seed, torch.device("cpu"), {"w": "w"}, lambda name: weight
        )
        statistics.add_matrix("w", gradient)
        estimates.append(statistics.importance("w", "sensitivity"))
        errors.append(statistics.relative_error("w"))
    spread = torch.tensor(estimates).std().item() / exact
    assert torch.tensor(estimates).mean().item() == pytest.approx(exact, rel=0.02)
    assert torch.tensor(errors).mean().item() == pytest.approx(spread, rel=0.15)


def test_low_memory_makes_a_plan_near_the_full_one_and_reports_its_error(kept, tmp_path, capsys):
    _, made = kept
    low = precompute(recipe(tmp_path / "run"), low_memory=True)
    assert "standard error of the importances" in capsys.readouterr().out
    for mine, yours in zip(low.plan.modules, made.plan.modules, strict=True):
        assert abs(mine.rank - yours.rank) <= 3


@pytest.mark.parametrize("low_memory", [False, True])
def test_an_interrupted_pass_says_what_it_kept_and_goes_on_to_the_same_plan(tmp_path, monkeypatch, low_memory):
    unbroken = precompute(recipe(tmp_path / "unbroken"), low_memory=low_memory)
    real = RunContext.loss_of
    calls = []

    def loss_of(setup, model):
        loss = real(setup, model)

        def signalled(batch):
            calls.append(1)
            if len(calls) == 4:  # the first was on the row that is tried
                os.kill(os.getpid(), signal.SIGTERM)
            return loss(batch)

        return signalled

    monkeypatch.setattr(RunContext, "loss_of", loss_of)
    mine = recipe(tmp_path / "run")
    with pytest.raises(Interrupted, match=r"gradients.checkpoint holds the sums of 3 of 6 micro-batches; add --resume"):
        precompute(mine, low_memory=low_memory)
    assert not (tmp_path / "run" / "plan.safetensors").exists()
    with pytest.raises(InputError, match=r"already holds gradients.checkpoint.*--resume"):
        precompute(mine, low_memory=low_memory)
    monkeypatch.setattr(RunContext, "loss_of", real)
    resumed = precompute(mine, mode="resume", low_memory=low_memory)
    assert resumed.path.read_bytes() == unbroken.path.read_bytes()
    assert not (tmp_path / "run" / "gradients.checkpoint").exists()


@pytest.mark.parametrize("settled", ["importance", "start"])
def test_an_interrupted_pass_that_ends_by_itself_ends_where_an_unbroken_one_does(tmp_path, monkeypatch, settled):
    """Saved after every micro-batch, and read back before it: what was seen so far goes with the sums."""
    asked = ("gora.steps=auto", f"gora.settled={settled}", "gora.micro_batch_size=2", "gora.tolerance=0.3")
    unbroken = precompute(recipe(tmp_path / "unbroken", *asked))
    decision = unbroken.plan.decisions["gora.steps"]
    assert (decision.value, decision.origin) == (unbroken.plan.steps, "measured")
    assert 4 <= unbroken.plan.steps < 64
    mine, mode, broken = recipe(tmp_path / "run", *asked), "new", 0
    real = checkpoint.PassCheckpoint.due
    monkeypatch.setattr(checkpoint.PassCheckpoint, "due", lambda self: True)
    monkeypatch.setattr(checkpoint.PassCheckpoint, "save", stopping(checkpoint.PassCheckpoint.save))
    while True:
        try:
            resumed = precompute(mine, mode=mode)
            break
        except KeyboardInterrupt:
            mode, broken = "resume", broken + 1
    monkeypatch.setattr(checkpoint.PassCheckpoint, "due", real)
    assert broken == unbroken.plan.steps - 1
    assert resumed.path.read_bytes() == unbroken.path.read_bytes()


def stopping(save):
    def saved(self, sums, progress):
        save(self, sums, progress)
        raise KeyboardInterrupt

    return saved


def test_a_plan_from_kept_gradients_of_a_pass_that_ended_by_itself(tmp_path):
    asked = ("gora.steps=auto", "gora.micro_batch_size=2", "gora.tolerance=0.3")
    made = precompute(recipe(tmp_path / "run", *asked), keep="fp32")
    again = plan_from_gradients(recipe(tmp_path / "again", *asked), tmp_path / "run" / "gradients")
    assert again.path.read_bytes() == made.path.read_bytes()
    number = (f"gora.steps={made.plan.steps}", "gora.micro_batch_size=2", "gora.gamma=0.1")
    assert plan_from_gradients(recipe(tmp_path / "number", *number), tmp_path / "run" / "gradients").plan.gamma == 0.1
    with pytest.raises(InputError, match="another pass"):
        plan_from_gradients(recipe(tmp_path / "fixed", "gora.micro_batch_size=2"), tmp_path / "run" / "gradients")


def test_sums_are_saved_on_the_way_and_survive_a_killed_process(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(checkpoint, "_TIMES_AS_LONG", 0.0)
    real = RunContext.loss_of
    calls = []

    def loss_of(setup, model):
        loss = real(setup, model)

        def dying(batch):
            calls.append(1)
            if len(calls) == 6:  # the first was on the row that is tried
                raise GoraError("as if killed")
            return loss(batch)

        return dying

    mine = recipe(tmp_path / "run")
    monkeypatch.setattr(RunContext, "loss_of", loss_of)
    with pytest.raises(GoraError, match="as if killed"):
        precompute(mine)
    document = json.loads((tmp_path / "run" / "gradients.checkpoint" / "state.json").read_text())
    assert document["progress"]["cursor"] == 4
    monkeypatch.setattr(RunContext, "loss_of", real)
    resumed = precompute(mine, mode="resume")
    same(resumed, precompute(recipe(tmp_path / "unbroken")))


def test_a_micro_batch_that_cannot_be_used_is_named_with_its_rows(tmp_path, monkeypatch, capsys):
    real = RunContext.loss_of

    def loss_of(setup, model):
        loss = real(setup, model)
        first = stage.MicroBatches(setup)[1]["input_ids"]
        return lambda batch: loss(batch) * (float("nan") if torch.equal(batch["input_ids"], first) else 1)

    monkeypatch.setattr(RunContext, "loss_of", loss_of)
    made = precompute(recipe(tmp_path / "run", "gora.steps=20", "gora.micro_batch_size=2"))
    said = capsys.readouterr().out
    assert "micro-batch 1 is left out: its loss is nan (rows builtin:gsm8k/train.jsonl:" in said
    assert "19 micro-batches of 2 rows" in said
    assert all(factor_b.isfinite().all() for _, factor_b in read_factors(made.path, made.plan).values())


def test_what_cannot_fit_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch):
    class Little:
        available = 10**6

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Little)
    monkeypatch.setattr("gora.stages.precompute.load_base_model", lambda context: pytest.fail("the model was loaded"))
    with pytest.raises(InputError, match=r"weights 21\.6 MB, gradient sums 4\.7 MB: more than the 1\.0 MB"):
        precompute(recipe(tmp_path / "run"))


@pytest.mark.parametrize(
    ("capability", "dtype", "told"),
    [("AVX2", "bfloat16", 1), ("AVX512", "bfloat16", 0), ("DEFAULT", "bfloat16", 0), ("AVX2", "float32", 0)],
)
def test_a_processor_that_is_slow_in_bfloat16_is_named(tmp_path, monkeypatch, capsys, capability, dtype, told):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    load_base_model(opened(recipe(tmp_path / "run", f"model.dtype={dtype}")))
    said = capsys.readouterr()
    assert (said.out + said.err).count("Add --set model.dtype=float32") == told


def test_gradients_that_float32_cannot_hold_are_told_with_the_layers(tmp_path):
    save_rows(tmp_path / "rows.jsonl")
    file = save_llama(tmp_path / "base") / "model.safetensors"
    weights = load_file(file)
    # The norms after it undo its size for the loss, and not for the gradients of what lies before.
    weights["model.layers.0.self_attn.q_proj.weight"] *= 1e30
    save_file(weights, file, metadata={"format": "pt"})
    asked = recipe_for(tmp_path / "base", tmp_path / "rows.jsonl", tmp_path / "run", adapter={"method": "gora"})
    with pytest.raises(GoraError, match=r"too large for float32 \(model\.layers\.0.*adapter\.exclude"):
        precompute(asked)
