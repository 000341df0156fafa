"""Fused experts of a mixture: gradients, ranks, values and adapters, each against autograd, PEFT or plain algebra."""

import json
import math
import shutil

import pytest
import torch
import transformers as tf
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from gora import mean_gradients
from gora.adapters.dry_wrap import choose_layers
from gora.adapters.load import read_config
from gora.core.ranks import RankBounds, adapter_parameters, allocate, allocate_parameters
from gora.errors import InputError
from gora.methods.gora import as_held
from gora.models.checkpointing import recomputing_activations
from gora.models.experts import fused_experts, target_of
from gora.models.source import Source
from gora.plan import read_factors, read_plan, write_plan
from gora.recipe.schema import AdapterSection
from gora.runs.owner import mark
from gora.stages.merge import merge
from gora.stages.precompute import plan_from_gradients, precompute
from gora.stages.run import run
from gora.stages.train import train
from gora.training import saving as saving_module
from tests.helpers.mixtures import gpt_oss, jetmoe, llama4, made, mixtral, qwen3_moe, recipe_on

TOKENS = torch.arange(4, 24)[None]


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def base_of(folder):
    return tf.AutoModelForCausalLM.from_pretrained(folder / "model")


# --- the gradient pass ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "recompute"), [(mixtral, False), (mixtral, True), (gpt_oss, False), (llama4, False), (jetmoe, False)]
)
def test_each_experts_mean_gradient_is_that_of_autograd(build, recompute):
    model = made(build).requires_grad_(False)
    torch.manual_seed(1)
    batches = [{"input_ids": rows, "labels": rows} for rows in torch.randint(4, 32, (3, 2, 12))]

    def loss_of(batch):
        return model(**batch, use_cache=False).loss

    fused = {name: value for name, value in model.named_parameters() if value.dim() == 3}
    totals = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in fused.items()}
    for value in fused.values():
        value.requires_grad_(True)
    for batch in batches:
        for name, gradient in zip(fused, torch.autograd.grad(loss_of(batch), list(fused.values())), strict=True):
            totals[name] += gradient
    model.requires_grad_(False)

    with recomputing_activations(model, recompute):
        gradients = mean_gradients(model, "attention", batches, loss_of, experts=True)

    assert sum(name.rpartition(".")[0] in fused for name in gradients) == sum(len(value) for value in fused.values())
    for name, total in totals.items():
        for index, expected in enumerate(total.mT if build is gpt_oss else total):
            found = gradients[f"{name}.{index}"].double() * len(batches)
            assert (found - expected).norm() <= 1e-6 * total.norm()
    assert all(value.grad is None and not value.requires_grad for value in model.parameters())


# --- ranks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choose", [allocate, allocate_parameters])
def test_a_group_gets_the_rank_that_each_of_its_members_would_get_as_a_layer(choose):
    bounds = RankBounds(0, None)
    importances, shapes, sizes = [3.0, 8.0, 1.5], [(64, 64), (48, 96), (96, 32)], [1, 5, 3]
    pairs = list(zip(importances, shapes, sizes, strict=True))
    apart = choose(
        [value / size for value, _, size in pairs for _ in range(size)],
        [shape for _, shape, size in pairs for _ in range(size)],
        8,
        bounds,
    )
    together = choose(importances, shapes, 8, bounds, sizes)
    assert [rank for rank, size in zip(together, sizes, strict=True) for _ in range(size)] == apart
    assert len(set(together)) == 3
    assert adapter_parameters(shapes, together, sizes) == sum(
        rank * sum(shape) * size for rank, shape, size in zip(together, shapes, sizes, strict=True)
    )


# --- what PEFT makes of A and B -------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [mixtral, gpt_oss, llama4])
def test_peft_adds_to_each_expert_its_own_product(build):
    model = made(build)
    name, fused = next(iter(fused_experts(model).items()))
    before = fused.weight.detach().clone()
    rows, columns = fused.shape
    factor_a, factor_b = torch.randn(fused.count, 3, columns), torch.randn(fused.count, rows, 3)
    config = LoraConfig(r=3, lora_alpha=5, target_modules=[], target_parameters=[name])
    wrapped = get_peft_model(model, config)
    layer = wrapped.base_model.model.get_submodule(name.rpartition(".")[0])
    held_a, held_b = as_held((factor_a, factor_b))
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(held_a)
        layer.lora_B["default"].weight.copy_(held_b)
    merged = dict(wrapped.merge_and_unload().named_parameters())[name].detach()
    for index in range(fused.count):
        product = 5 / 3 * factor_b[index] @ factor_a[index]
        moved = merged[index] - before[index]
        assert torch.allclose(moved, product.T if build is gpt_oss else product, atol=1e-5)


# --- the whole chain --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[mixtral, qwen3_moe, gpt_oss], ids=lambda build: build.__name__)
def chain(request, tmp_path_factory):
    """Folder, recipe and logits of a run whose adapter was saved."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    recipe = recipe_on(folder, made(request.param), "train.save_steps=1", "train.keep_checkpoints=9")
    seen = []
    save = saving_module.save_adapter

    def saving(place, model, *arguments, **named):
        seen.append(logits(model))
        return save(place, model, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving_module, "save_adapter", saving)
        precompute(recipe, keep="fp32")
        run(recipe, mode="resume")
    return folder, recipe, seen[-1]


def groups_of(plan):
    return [module for module in plan.modules if module.experts is not None]


def test_peft_alone_loads_the_adapter_to_the_logits_of_training(chain):
    folder, _, trained = chain
    base = logits(base_of(folder))
    found = logits(PeftModel.from_pretrained(base_of(folder), folder / "run" / "adapter"))
    assert torch.equal(found, trained)
    assert (trained - base).abs().max() > 1e-2


def test_the_saved_ranks_of_groups_and_layers_are_the_plans(chain):
    folder, _, _ = chain
    plan = read_plan(folder / "run" / "plan.safetensors")
    tensors = load_file(folder / "run" / "adapter" / "adapter_model.safetensors")
    config = json.loads((folder / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["target_parameters"] == sorted(module.name for module in groups_of(plan))
    assert len({module.rank for module in plan.modules}) > 1
    for module in plan.modules:
        rank = config["rank_pattern"].get(module.name, config["r"])
        alpha = config["alpha_pattern"].get(module.name, config["lora_alpha"])
        assert (rank, alpha / rank) == (module.rank, module.scaling)
    assert sum(tensor.numel() for tensor in tensors.values()) == plan.parameters


def test_a_merged_mixture_computes_what_base_and_adapter_compute(chain):
    folder, _, trained = chain
    merge(folder / "run", folder / "merged")
    assert torch.allclose(logits(tf.AutoModelForCausalLM.from_pretrained(folder / "merged")), trained, atol=1e-5)


def test_who_loads_plain_adapters_only_is_told_of_the_experts(chain):
    folder, _, _ = chain
    with pytest.raises(InputError, match=r"target_parameters: it adapts parameters .* \(fused experts\)"):
        read_config(folder / "run" / "adapter")


def test_every_experts_b_is_the_papers_from_its_own_gradient(chain):
    folder, recipe, _ = chain
    plan = read_plan(folder / "run" / "plan.safetensors")
    factors = read_factors(folder / "run" / "plan.safetensors", plan)
    gradients = {
        name: value.double()
        for file in (folder / "run" / "gradients").glob("*.safetensors")
        for name, value in load_file(file).items()
    }
    weights = dict(base_of(folder).named_parameters())
    shares = {}
    for module in groups_of(plan):
        weight = weights[module.name].detach().double()
        weight = weight.mT if weight.shape[1:] != module.shape else weight
        of_group = [gradients[f"{module.name}.{index}"] for index in range(module.experts)]
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in of_group))
        importance = sum(float((w * g).abs().mean()) for w, g in zip(weight, of_group, strict=True))
        assert module.gradient_norm == pytest.approx(norm, rel=1e-5)
        shares[module.name] = importance
        for index, gradient in enumerate(of_group):
            a, b = (factor[index].double() for factor in factors[module.name])
            assert a.abs().max() <= 1 / math.sqrt(module.shape[1])
            step = recipe.gora.gamma * math.sqrt(module.shape[1]) / recipe.adapter.alpha
            expected = -step * torch.linalg.lstsq(a.T, gradient.T).solution.T
            assert (b - expected).norm() <= 1e-4 * max(expected.norm(), 1e-6)
        # Drawn for each expert apart.
        assert not torch.equal(factors[module.name][0][0], factors[module.name][0][1])
    square = [module for module in groups_of(plan) if weights[module.name].shape[1] != weights[module.name].shape[2]]
    assert all(module.importance == pytest.approx(shares[module.name], rel=1e-4) for module in square)


def test_a_plan_from_kept_gradients_is_the_plan(chain, tmp_path):
    folder, recipe, _ = chain
    again = recipe.model_copy(update={"output": str(tmp_path / "again")})
    made_again = plan_from_gradients(again, folder / "run" / "gradients").plan
    plan = read_plan(folder / "run" / "plan.safetensors")
    assert made_again == plan
    found = read_factors(tmp_path / "again" / "plan.safetensors", plan)
    for name, pair in read_factors(folder / "run" / "plan.safetensors", plan).items():
        assert all(torch.equal(mine, value) for mine, value in zip(found[name], pair, strict=True))
    without = recipe.model_copy(update={"adapter": recipe.adapter.model_copy(update={"experts": False})})
    with pytest.raises(InputError, match=r"adapter\.experts: True there, False in the recipe"):
        plan_from_gradients(without, folder / "run" / "gradients", mode="overwrite")


def test_a_resumed_run_ends_with_the_adapter_of_an_unbroken_one(chain, tmp_path):
    folder, recipe, _ = chain
    again = tmp_path / "run"
    mark(again)
    for name in ("plan.safetensors", "metrics.jsonl"):
        shutil.copyfile(folder / "run" / name, again / name)
    shutil.copytree(folder / "run" / "checkpoints" / "checkpoint-1", again / "checkpoints" / "checkpoint-1")
    train(recipe.model_copy(update={"output": str(again)}), mode="resume")
    expected = load_file(folder / "run" / "adapter" / "adapter_model.safetensors")
    found = load_file(again / "adapter" / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_without_whole_gradients_every_experts_b_is_the_same(chain, tmp_path):
    folder, recipe, _ = chain
    plan = read_plan(folder / "run" / "plan.safetensors")
    fixed = recipe.model_copy(
        update={
            "output": str(tmp_path / "low"),
            "gora": recipe.gora.model_copy(update={"rank_min": 2, "rank_max": 2}),
        }
    )
    low = precompute(fixed, low_memory=True).plan
    whole = plan_from_gradients(
        fixed.model_copy(update={"output": str(tmp_path / "whole")}), folder / "run" / "gradients"
    )
    found, expected = (read_factors(each, low) for each in (tmp_path / "low" / "plan.safetensors", whole.path))
    for module in groups_of(plan):
        (low_a, low_b), (whole_a, whole_b) = found[module.name], expected[module.name]
        assert torch.equal(low_a, whole_a)
        assert (low_b - whole_b).norm() <= 1e-4 * whole_b.norm()


def test_ranks_are_shown_with_a_line_for_each_group(chain, gora_here):
    folder, _, _ = chain
    plan = read_plan(folder / "run" / "plan.safetensors")
    code, shown, _ = gora_here("inspect-ranks", "run/plan.safetensors", cwd=folder)
    text = " ".join(shown.split())
    assert code == 0
    for module in groups_of(plan):
        rows, columns = module.shape
        assert f"{module.name}: 4 experts of {rows} x {columns}, rank {module.rank} each" in text
    code, told, _ = gora_here("inspect-ranks", "run/plan.safetensors", "--json", cwd=folder)
    by_name = {module["name"]: module for module in json.loads(told)["modules"]}
    assert {name for name, module in by_name.items() if module["experts"] == 4} == {m.name for m in groups_of(plan)}


def test_a_group_of_rank_zero_stays_as_it_is(chain, tmp_path):
    """PEFT wraps the two parameters of a module inside each other; in one block one of them is missing."""
    folder, recipe, _ = chain
    settings = {"rank_min": 0, "rank_max": 4}
    recipe = recipe.model_copy(
        update={"output": str(tmp_path / "run"), "gora": recipe.gora.model_copy(update=settings)}
    )
    made_plan = plan_from_gradients(recipe, folder / "run" / "gradients")
    zero = groups_of(made_plan.plan)[-1]
    modules = tuple(
        module.model_copy(update={"rank": 0, "scaling": 0.0}) if module.name == zero.name else module
        for module in made_plan.plan.modules
    )
    factors = read_factors(made_plan.path, made_plan.plan)
    write_plan(made_plan.path, made_plan.plan.model_copy(update={"modules": modules}), factors)
    train(recipe, mode="resume")
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert zero.name not in config["target_parameters"]
    assert len(config["target_parameters"]) == len(groups_of(made_plan.plan)) - 1
    wrapped = PeftModel.from_pretrained(base_of(folder), tmp_path / "run" / "adapter")
    merge(tmp_path / "run", tmp_path / "merged")
    assert torch.allclose(
        logits(tf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), logits(wrapped), atol=1e-5
    )


# --- other methods and bases ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "rslora", "lora+"])
def test_other_methods_train_experts_with_equal_ranks(method, tmp_path):
    recipe = recipe_on(tmp_path, made(gpt_oss), method=method)
    trained = run(recipe)
    wrapped = PeftModel.from_pretrained(base_of(tmp_path), trained.adapter)
    layers = [layer for layer in wrapped.modules() if type(layer).__name__ == "ParamWrapper"]
    expected = 4 / math.sqrt(2) if method == "rslora" else 2
    assert [(layer.r, layer.scaling) for layer in layers] == [
        ({"default": 2}, {"default": pytest.approx(expected)})
    ] * 4
    assert all(layer.lora_B["default"].weight.any() for layer in layers)
    groups = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["adapter"]
    assert groups["experts"] is True


@pytest.mark.parametrize(
    "setting", ["model.dtype=bfloat16", "model.quantization=nf4", "train.activation_checkpointing=true"]
)
def test_experts_train_beside_other_bases(setting, tmp_path):
    recipe = recipe_on(tmp_path, made(mixtral), setting)
    trained = run(recipe)
    tensors = load_file(trained.adapter / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert sum(".experts." in name for name in tensors) == 8


# --- what is refused --------------------------------------------------------------------------------------------------


REFUSED = [
    ({"dropout": 0.1}, "adapter.dropout", "cannot be put in front of fused experts; set it to 0"),
    ({"dora": True}, "adapter.dora", "set dora or experts to false"),
    *(
        ({"method": name}, "adapter.experts", f"does not go together with {name}; methods that have it: gora, lora, ")
        for name in (
            "dora",
            "olora",
            "pissa",
            "milora",
            "lora-ga",
            "lora-ga-peft",
            "lora-one",
            "eva",
            "adalora",
            "lora-pro",
            "lora-fa",
            "full",
        )
    ),
]


@pytest.mark.parametrize(("adapter", "key", "advice"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_peft_cannot_do_with_experts_is_refused_by_the_recipe(adapter, key, advice, tmp_path):
    model = made(mixtral)
    with pytest.raises(InputError) as refused:
        recipe_on(tmp_path, model, **adapter)
    assert key in str(refused.value) and advice in str(refused.value)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with a mixture and its recipe."""
    folder = tmp_path_factory.mktemp("small")
    recipe_on(folder, made(mixtral))
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["adapter.dropout=0.1"], "dropout (0.1) cannot be put in front of fused experts"),
        (["distributed=zero3"], "adapter.experts: fused experts cannot be adapted while"),
        (
            ["model.name=builtin:tiny-6m"],
            "adapter.experts: true, but this model has no fused experts. Set it to false.",
        ),
        (["adapter.exclude=[gate_up_proj,down_proj]"], "adapter.exclude leaves none of them to adapt"),
        (["adapter.exclude=[up_prj]"], "'up_prj' names no linear layer"),
    ],
)
def test_a_refusal_comes_with_code_2_before_the_gradient_pass(settings, message, small, gora_here):
    overrides = [part for setting in settings for part in ("--set", setting)]
    code, out, error = gora_here("run", "recipe.json", *overrides, cwd=small)
    assert code == 2
    assert message in " ".join((out + error).split())
    assert not (small / "run" / "plan.safetensors").exists()


def test_packed_experts_are_refused_by_name():
    holder = nn.Module()
    holder.experts = nn.Module()
    holder.experts.down_proj = nn.Parameter(torch.zeros(4, 8, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(InputError, match=r"experts\.down_proj is held in few bits \(uint8 \(4, 8\)\)"):
        target_of(holder, "experts.down_proj")


def test_an_excluded_kind_of_experts_is_left_out():
    source = Source(path="small", revision=None, trust_remote_code=False, config=made(mixtral).config)
    chosen = choose_layers(
        AdapterSection(experts=True, rank=2, exclude=["down_proj", "layers.0.self_attn.q_proj"]), source
    )
    assert {name.rpartition(".")[2] for name in chosen.experts} == {"gate_up_proj"}
    assert len(chosen.layers) == 7


def test_what_no_target_reaches_names_the_setting_that_would():
    source = Source(path="small", revision=None, trust_remote_code=False, config=made(mixtral).config)
    without, with_them = (choose_layers(AdapterSection(experts=on, rank=2), source) for on in (False, True))
    assert without.warning().endswith("adapter.experts: true adapts fused experts.")
    assert with_them.unreached < 0.1 < without.unreached
    assert choose_layers(AdapterSection(method="pissa", rank=2), source).could_reach is False
