"""Every method trains, saves and reloads; and each does what defines it."""

import json
import math

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from gora import manifest
from gora.errors import GoraError, InputError
from gora.methods import METHODS, AdapterSettings, Wrapping, lora_ga, lora_one, model_for_loss
from gora.methods.base import ADAPTER, lora_layers, pair
from gora.methods.lora_pro import adjusted
from gora.methods.milora import minor_components
from gora.methods.residual import base_weight, product
from gora.models.fingerprint import base_weights
from gora.models.targets import find_targets, weight_of
from gora.recipe import load_recipe
from gora.recipe.schema import TrainSection
from gora.stages.merge import merge
from gora.stages.run import run
from gora.stages.train import train
from gora.training import loop
from gora.training.groups import parameter_groups
from tests.conftest import TINY

SMALL = (
    "data.train.max_rows=64",
    "data.eval.max_rows=4",
    "data.max_length=128",
    "gora.steps=2",
    "gora.micro_batch_size=2",
    "train.micro_batch_size=2",
    "train.batch_size=2",
    "train.max_steps=8",
    "train.log_steps=1",
    "train.learning_rate=1e-3",
)
LOW_RANK = [name for name, method in METHODS.items() if method.saved_as == "adapter"]
MOVING = ["olora", "pissa", "milora", "lora-ga", "lora-ga-peft"]
IDS = torch.arange(5, 45)[None]


def recipe(folder, method, *more):
    return load_recipe("quickstart", [*SMALL, f"adapter.method={method}", f"output={folder}", *more]).recipe


def base(dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=dtype).eval()


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def wrapped(name, rank=4, dtype=torch.float32, **more):
    """The small model under a method, with random gradients where it asks for them."""
    model = base(dtype).requires_grad_(False)
    targets = find_targets(model, "attention")
    torch.manual_seed(0)
    gradients = {layer: decaying(*weight_of(module).shape) for layer, module in targets.items()}
    wrapping = Wrapping(
        targets=targets,
        settings=AdapterSettings(rank=rank, alpha=16.0, dropout=0.0, **more),
        steps=100,
        gradients=lambda: gradients.__getitem__,
        batches=lambda: [{"input_ids": IDS + shift, "attention_mask": torch.ones_like(IDS)} for shift in range(8)],
    )
    return METHODS[name].wrap(model, wrapping), gradients


def decaying(rows, columns):
    """A random matrix whose singular values halve from one to the next."""
    left, right = (torch.linalg.qr(torch.randn(size, 16)).Q for size in (rows, columns))
    return left @ torch.diag(0.5 ** torch.arange(16.0)) @ right.T


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Every method's run, and the logits of the model in memory when it was saved."""
    runs, real = {}, loop.save_trained

    def save(context, start, *more):
        real(context, start, *more)
        runs[context.recipe.adapter.method] = (context.folder, logits(start.model), start.losses)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_trained", save)
        for name in METHODS:
            run(recipe(tmp_path_factory.mktemp("run"), name))
    return runs


@pytest.mark.parametrize("name", METHODS)
def test_a_trained_run_reloads_through_the_public_loader_to_the_same_logits(trained, name):
    folder, expected, losses = trained[name]
    if name == "full":
        found = AutoModelForCausalLM.from_pretrained(folder.model, dtype=torch.float32)
    else:
        found = PeftModel.from_pretrained(base(), folder.adapter)
    assert (logits(found) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (logits(base()) - expected).abs().max() > 1e-4 * expected.abs().max()
    after = json.loads(folder.results.read_text())["loss"]
    assert after["final"] != after["initial"] == losses["initial"]
    assert math.isfinite(after["final"])


def test_every_method_sees_the_same_rows_in_the_same_steps(trained):
    seen = {}
    for name, (folder, _, _) in trained.items():
        lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
        seen[name] = [(line["step"], line["tokens"], line["rows"]) for line in lines if "loss" in line]
    assert len(seen["lora"]) == len({rows for _, _, rows in seen["lora"]}) == 8
    assert all(steps == seen["lora"] for steps in seen.values())


def test_every_method_trains_about_as_many_parameters_as_lora(trained):
    """Within a tenth, but for those that train something else by their definition."""
    results = {name: json.loads(run.results.read_text()) for name, (run, _, _) in trained.items()}
    counts = {name: result["trainable_parameters"] for name, result in results.items()}
    lora = counts["lora"]
    weights = [weight_of(module) for module in find_targets(base(), "attention").values()]
    for name in METHODS:
        if name == "full":
            assert counts[name] == sum(weight.numel() for weight in weights)
        elif name == "adalora":  # 1.5 times the rank at the start, and a singular value for each rank
            assert 1.5 * lora < counts[name] < 1.51 * lora
        elif name == "lora-fa":  # B alone
            assert counts[name] == 8 * sum(weight.shape[0] for weight in weights)
        else:
            assert counts[name] == pytest.approx(lora, rel=0.1), name


@pytest.mark.parametrize("name", [name for name in LOW_RANK if name not in ("gora", "adalora", "lora-fa", "eva")])
def test_trainable_parameters_are_lora_s_within_a_tenth(name):
    count = sum(value.numel() for value in wrapped(name)[0].parameters() if value.requires_grad)
    reference = sum(value.numel() for value in wrapped("lora")[0].parameters() if value.requires_grad)
    assert count == pytest.approx(reference, rel=0.1 if name != "dora" else 0.15)


@pytest.mark.parametrize("name", [name for name in LOW_RANK if name != "gora"])
def test_a_bfloat16_base_changes_nothing_in_what_is_trained_nor_in_its_precision(name):
    under = {
        dtype: {key: value for key, value in wrapped(name, dtype=dtype)[0].named_parameters() if value.requires_grad}
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert under[torch.bfloat16].keys() == under[torch.float32].keys()
    assert {value.dtype for value in under[torch.bfloat16].values()} == {torch.float32}


@pytest.mark.parametrize("name", [name for name in METHODS if name != "gora"])
def test_weights_of_the_base_are_told_from_those_of_an_adapter(name):
    found = [weight for weight, _ in base_weights(wrapped(name)[0])]
    assert sorted(found) == sorted(dict(base().named_parameters()))


@pytest.mark.parametrize("name", ["lora", "adalora"])
def test_the_loss_of_rows_is_their_cross_entropy_without_what_a_method_adds(name):
    model, _ = wrapped(name)
    with torch.no_grad():
        expected = cross_entropy(model(input_ids=IDS).logits[0, :-1], IDS[0, 1:])
        assert model_for_loss(model)(input_ids=IDS, labels=IDS).loss == pytest.approx(expected.item(), rel=1e-5)
        whole = model(input_ids=IDS, labels=IDS).loss
    assert (whole > 1.001 * expected) == (name == "adalora")


def test_what_a_method_is_not_offered_is_named():
    model = base().requires_grad_(False)
    nothing = Wrapping(
        targets=find_targets(model, "attention"), settings=AdapterSettings(rank=4, alpha=16.0, dropout=0.0)
    )
    for name, what in (("gora", "a plan"), ("lora-ga", "gradients"), ("eva", "micro-batches")):
        with pytest.raises(GoraError, match=f"asks for {what}, which it was not offered"):
            METHODS[name].wrap(model, nothing)


def test_a_run_too_short_for_adalora_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch):
    recipe = load_recipe("quickstart", [f"output={tmp_path / 'run'}", "adapter.method=adalora", "train.max_steps=2"])
    monkeypatch.setattr("gora.runs.base_model.load_model", lambda *given, **named: pytest.fail("the model is loaded"))
    with pytest.raises(InputError, match="adalora needs at least 3 optimizer steps; this run has 2"):
        train(recipe.recipe)
    assert not (tmp_path / "run" / "adapter").exists()


def test_adalora_begins_with_one_and_a_half_times_the_parameters_and_ends_at_the_rank(trained):
    config = json.loads((trained["adalora"][0].adapter / "adapter_config.json").read_text())
    ranks = [sum(kept) for kept in config["rank_pattern"].values()]
    assert config["init_r"] == 12
    assert sum(ranks) / len(ranks) == pytest.approx(8, abs=0.5)


@pytest.mark.parametrize("name", MOVING)
def test_what_is_left_of_the_base_and_the_initial_adapter_are_the_base(name):
    model, _ = wrapped(name)
    original = dict(base().named_modules())
    moved = 0.0
    for layer_name, layer in lora_layers(model).items():
        weight = original[layer_name].weight
        assert (base_weight(layer) + product(layer) - weight).abs().max() < 1e-5
        moved = max(moved, (base_weight(layer) - weight).norm() / weight.norm())
    assert moved > 1e-4
    assert (logits(model) - logits(base())).abs().max() < 1e-3


@pytest.mark.parametrize("name", [MOVING[0], *(pytest.param(each, marks=pytest.mark.slow) for each in MOVING[1:])])
def test_a_resumed_run_of_a_method_that_moves_weights_equals_an_unbroken_one(tmp_path, name):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(recipe(whole, name, "train.max_steps=4"))
    train(recipe(broken, name, "train.max_steps=4", "train.save_steps=2"))
    for made in ("adapter", "checkpoints/checkpoint-4"):
        (broken / made).rename(tmp_path / made.replace("/", "-"))
    train(recipe(broken, name, "train.max_steps=4", "train.save_steps=2"), mode="resume")
    pairs = [PeftModel.from_pretrained(base(), folder / "adapter") for folder in (whole, broken)]
    assert (logits(pairs[0]) - logits(pairs[1])).abs().max() < 1e-5


def test_layers_that_eva_gives_no_rank_are_named_and_the_rest_is_saved_resumed_and_merged(tmp_path, capsys):
    more = ("adapter.targets=all-linear", "adapter.rank=1", "train.max_steps=4", "train.save_steps=2")
    train(recipe(tmp_path / "run", "eva", *more))
    told = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("left out"))
    adapter = PeftModel.from_pretrained(base(), tmp_path / "run" / "adapter")
    left_out = find_targets(base(), "all-linear").keys() - lora_layers(adapter).keys()
    assert f"{len(left_out)} of 42 layers got no rank" in told and any(name in told for name in left_out)
    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert len(left_out) > 0 and len(saved) == 2 * (42 - len(left_out)) == 2 * len(lora_layers(adapter))

    for made in ("adapter", "checkpoints/checkpoint-4"):
        (tmp_path / "run" / made).rename(tmp_path / made.replace("/", "-"))
    train(recipe(tmp_path / "run", "eva", *more), mode="resume")
    resumed = PeftModel.from_pretrained(base(), tmp_path / "run" / "adapter")
    assert (logits(resumed) - logits(adapter)).abs().max() < 1e-5
    made = merge(tmp_path / "run", tmp_path / "merged", dtype="float32")
    merged = AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32)
    assert (logits(merged) - logits(adapter)).abs().max() < 1e-4 * made.largest_logit


def test_rslora_scales_by_the_root_of_the_rank():
    for layer in lora_layers(wrapped("rslora", rank=4)[0]).values():
        assert layer.scaling[ADAPTER] == 16 / math.sqrt(4)


def test_lora_plus_and_gora_alone_have_a_rate_of_their_own_for_b():
    assert {name: method.lr_ratio for name, method in METHODS.items() if method.lr_ratio != 1} == {
        "gora": 16.0,
        "lora+": 16.0,
    }


@pytest.mark.parametrize(("name", "more"), [("dora", {}), ("lora", {"dora": True}), ("rslora", {"dora": True})])
def test_dora_normalises_columns_and_trains_their_magnitudes(name, more):
    model, _ = wrapped(name, **more)
    groups = parameter_groups(model, TrainSection(), 1.0, METHODS[name].parts)
    assert [group["name"] for group in groups] == ["A", "B", "magnitudes"]
    layer = next(iter(lora_layers(model).values()))
    magnitude = layer.lora_magnitude_vector[ADAPTER].weight
    assert torch.allclose(magnitude, base_weight(layer).norm(dim=1), rtol=1e-5)


def test_pissa_takes_the_largest_components_and_milora_the_smallest():
    layer = next(iter(lora_layers(wrapped("pissa")[0]).values()))
    name = next(iter(lora_layers(wrapped("pissa")[0])))
    left, values, right = torch.linalg.svd(dict(base().named_modules())[name].weight, full_matrices=False)
    largest = left[:, :4] @ torch.diag(values[:4]) @ right[:4]
    assert (product(layer) - largest).norm() < 1e-2 * largest.norm()
    layer = lora_layers(wrapped("milora")[0])[name]
    smallest = left[:, -4:] @ torch.diag(values[-4:]) @ right[-4:]
    assert (product(layer) - smallest).norm() < 1e-3 * smallest.norm() + 1e-5


def test_minor_components_split_their_singular_values_evenly():
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
    factor_a, factor_b = minor_components(weight, 3, 2.0)
    assert torch.allclose(factor_a.norm(dim=1), factor_b.norm(dim=0), rtol=1e-4)
    assert torch.linalg.svdvals(weight - 2 * factor_b @ factor_a)[-3:].max() < 1e-4


@pytest.mark.parametrize("name", ["lora-ga", "lora-ga-peft"])
def test_the_first_update_of_lora_ga_points_along_the_gradient(name):
    """dW = -(B B^T G + G A^T A), whose directions are the largest singular ones of G (paper, theorem 3.1)."""
    model, gradients = wrapped(name, rank=4)
    for name, layer in lora_layers(model).items():
        factor_a, factor_b = (value.detach() for value in pair(layer))
        left, values, right = torch.linalg.svd(gradients[name], full_matrices=False)
        assert values[8] < 0.01 * values[0]
        for factor, basis in ((factor_a, right[:8].T), (factor_b.T, left[:, :8])):
            inside = factor @ basis @ basis.T
            assert (inside - factor).norm() < 0.01 * factor.norm()


def svd(gradient):
    """Of a matrix, by numpy in float64."""
    return np.linalg.svd(gradient.double().numpy(), full_matrices=False)


def same_up_to_signs(found, expected):
    """Rows that are equal but for their sign, which an SVD leaves open."""
    return np.abs(np.abs((found * expected).sum(1)) - (expected**2).sum(1)).max() < 1e-5 * (expected**2).sum(1).max()


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e3])
def test_lora_ga_starts_as_published_whatever_the_size_of_the_gradient(size):
    torch.manual_seed(3)
    gradient = size * decaying(48, 32)
    left, _, right = svd(gradient)
    factor_a, factor_b = (factor.double().numpy() for factor in lora_ga.starting_factors("layer", gradient, 5))
    length = 48**0.25 / 4
    assert same_up_to_signs(factor_a, length * right[:5])
    assert same_up_to_signs(factor_b.T, length * left[:, 5:10].T)


def test_lora_ga_as_published_starts_far_from_peft_s_where_gradients_are_small():
    """PEFT's B carries the singular values of the gradient, and rows of its A have length 1."""
    published, peft = (next(iter(lora_layers(wrapped(name)[0]).values())) for name in ("lora-ga", "lora-ga-peft"))
    out = pair(published)[1].shape[0]
    assert torch.allclose(pair(published)[1].norm(dim=0), torch.tensor(out**0.25 / 4), rtol=1e-4)
    lengths = pair(peft)[1].norm(dim=0)
    assert torch.allclose(lengths, out**0.25 / 4 * 0.5 ** torch.arange(4.0, 8.0), rtol=1e-2)


def test_lora_ga_names_a_layer_that_is_too_narrow_for_it():
    with pytest.raises(InputError, match="takes 8 singular directions at rank 4, and layer is 48 x 7"):
        lora_ga.starting_factors("layer", torch.randn(48, 7), 4)


@pytest.mark.parametrize("size", [1e-6, 1.0])
def test_lora_one_starts_with_the_best_step_against_the_gradient_of_one_size(size):
    torch.manual_seed(4)
    gradient = size * decaying(48, 32)
    left, values, right = svd(gradient)
    factor_a, factor_b = (factor.double().numpy() for factor in lora_one.starting_factors(gradient, 6))
    step = -(left[:, :6] * values[:6]) @ right[:6] / values[0] / 128
    assert np.abs(factor_b @ factor_a - step).max() < 1e-6 * np.abs(step).max()
    roots = np.sqrt(values[:6] / values[0] / 128)
    assert np.allclose(np.linalg.norm(factor_a, axis=1), roots, rtol=1e-6)
    assert np.allclose(np.linalg.norm(factor_b, axis=0), roots, rtol=1e-6)


def test_lora_one_moves_every_layer_by_one_spectral_norm_and_leaves_the_base():
    model, _ = wrapped("lora-one", rank=4)
    original = dict(base().named_modules())
    for name, layer in lora_layers(model).items():
        assert layer.scaling[ADAPTER] == 16 / math.sqrt(4)
        assert torch.linalg.matrix_norm(product(layer), ord=2).item() == pytest.approx(16 / (128 * 2), rel=1e-4)
        assert torch.equal(base_weight(layer), original[name].weight)


def test_lora_one_starts_from_zero_where_there_is_no_gradient():
    factor_a, factor_b = lora_one.starting_factors(torch.zeros(12, 8), 3)
    assert not factor_b.any()
    assert torch.allclose(factor_a @ factor_a.T, torch.eye(3) / 128, atol=1e-6)


def test_a_run_of_peft_s_lora_ga_under_its_old_name_is_not_resumed_as_the_published_one(tmp_path):
    """Recipes of those runs do not know gora.allocation."""
    folder = tmp_path / "run"
    train(recipe(folder, "lora-ga-peft", "train.max_steps=4", "train.save_steps=2"))
    (folder / "adapter").rename(tmp_path / "adapter")
    (folder / "checkpoints" / "checkpoint-4").rename(tmp_path / "checkpoint-4")
    checkpoint = folder / "checkpoints" / "checkpoint-2"
    begun = json.loads((checkpoint / "provenance.json").read_text())
    begun["recipe"]["adapter"]["method"] = "lora-ga"
    del begun["recipe"]["gora"]["allocation"], begun["recipe"]["gora"]["temperature"]
    (checkpoint / "provenance.json").write_text(json.dumps(begun))
    manifest.seal(checkpoint)
    again = ("train.max_steps=4", "train.save_steps=2")
    with pytest.raises(InputError, match="begun with other settings") as refused:
        train(recipe(folder, "lora-ga", *again), mode="resume")
    assert refused.value.problems == ("adapter.method: 'lora-ga-peft' when the run began, 'lora-ga' now",)
    train(recipe(folder, "lora-ga-peft", *again), mode="resume")
    resumed, whole = (PeftModel.from_pretrained(base(), path) for path in (folder / "adapter", tmp_path / "adapter"))
    assert (logits(resumed) - logits(whole)).abs().max() < 1e-5


@pytest.mark.parametrize("zero_b", [False, True])
def test_adjusted_gradients_of_lora_pro_solve_the_least_squares_problem(zero_b):
    generator = torch.Generator().manual_seed(2)
    gradient, factor_a, factor_b = (
        torch.randn(*shape, generator=generator).double() for shape in ((20, 30), (4, 30), (20, 4))
    )
    factor_b = factor_b * 0 if zero_b else factor_b
    scaling = 0.7
    plain = scaling * factor_b.T @ gradient, scaling * gradient @ factor_a.T
    new_a, new_b = adjusted(*plain, factor_a, factor_b, scaling)
    effect = scaling * (factor_b @ new_a + new_b @ factor_a)
    # The best that any pair can do, from an independent least-squares solver over both unknowns at once.
    columns = []
    for rows, width, build in ((4, 30, lambda e: factor_b @ e), (20, 4, lambda e: e @ factor_a)):
        for index in range(rows * width):
            unit = torch.zeros(rows * width, dtype=torch.float64)
            unit[index] = 1
            columns.append(scaling * build(unit.view(rows, width)).reshape(-1))
    matrix = torch.stack(columns, dim=1)
    best = matrix @ torch.linalg.lstsq(matrix, gradient.reshape(-1, 1), driver="gelsd").solution
    assert (effect.reshape(-1, 1) - best).norm() < 1e-6 * best.norm()


def test_lora_fa_leaves_a_as_it_was_drawn():
    model, _ = wrapped("lora-fa")
    groups = parameter_groups(model, TrainSection(), 1.0, METHODS["lora-fa"].parts)
    optimizer = METHODS["lora-fa"].optimizer(model, groups)
    before = [[value.detach().clone() for value in pair(layer)] for layer in lora_layers(model).values()]
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    for (first_a, first_b), layer in zip(before, lora_layers(model).values(), strict=True):
        assert torch.equal(pair(layer)[0], first_a)
        assert not torch.equal(pair(layer)[1], first_b)


def test_full_trains_exactly_the_target_weights():
    model, _ = wrapped("full")
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {f"{name}.weight" for name in find_targets(base(), "attention")}


def test_methods_that_need_whole_gradients_are_refused_under_an_engine_that_hides_them(tmp_path, monkeypatch):
    from gora.runtime.engine import Engine
    from gora.training.engine_training import refuse_what_cannot_train

    for name in ("lora-pro", "lora-fa", "adalora"):
        with pytest.raises(InputError, match="Give distributed: ddp"):
            refuse_what_cannot_train(Engine.of("zero2"), torch.device("cpu"), name)
    refuse_what_cannot_train(Engine.of("zero2"), torch.device("cpu"), "gora")
