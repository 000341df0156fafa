"""The plan file: what is written is what is read, and what does not fit is refused."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gora.core.initial import scaling
from gora.errors import InputError
from gora.plan import (
    DataIdentity,
    ModelIdentity,
    ModulePlan,
    Plan,
    identity_differences,
    read_factors,
    read_plan,
    write_plan,
)
from gora.recipe import load_recipe
from gora.runs.provenance import plan_differences

SHAPES = {"model.layers.0.self_attn.q_proj": (6, 4), "model.layers.0.self_attn.v_proj": (3, 4)}


def make_plan(ranks=(2, 3), **changes):
    modules = [
        ModulePlan(
            name=name,
            shape=shape,
            importance=0.5,
            advantage=0.5,
            rank=rank,
            scaling=scaling(16, rank) if rank else 0.0,
            gradient_norm=1.0,
        )
        for (name, shape), rank in zip(SHAPES.items(), ranks, strict=True)
    ]
    fields = {
        "gora_version": "0",
        "model": ModelIdentity(name="m", config="c", weights="w"),
        "data": DataIdentity(fingerprint="d"),
        "steps": 4,
        "micro_batch_size": 2,
        "seed": 1,
        "gamma": 0.05,
        "alpha": 16.0,
        "reference_rank": 2,
        "rank_min": 0,
        "rank_max": None,
        "importance": "sensitivity",
        "budget": "paper",
        "modules": tuple(modules),
    }
    return Plan(**{**fields, **changes})


def make_factors(plan):
    return {m.name: (torch.randn(m.rank, m.shape[1]), torch.randn(m.shape[0], m.rank)) for m in plan.adapted}


def test_what_is_written_is_read_back(tmp_path):
    plan = make_plan(ranks=(2, 0))
    factors = make_factors(plan)
    write_plan(tmp_path / "plan.safetensors", plan, factors)
    assert read_plan(tmp_path / "plan.safetensors") == plan
    again = read_factors(tmp_path / "plan.safetensors", plan)
    assert again.keys() == factors.keys() == {"model.layers.0.self_attn.q_proj"}
    for name, (factor_a, factor_b) in factors.items():
        assert torch.equal(again[name][0], factor_a)
        assert torch.equal(again[name][1], factor_b)


def test_the_file_follows_the_published_format(tmp_path):
    plan = make_plan()
    write_plan(tmp_path / "plan.safetensors", plan, make_factors(plan))
    with safe_open(tmp_path / "plan.safetensors", framework="numpy") as file:
        document = json.loads(file.metadata()["gora"])
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    assert shapes == {
        "model.layers.0.self_attn.q_proj.lora_A": [2, 4],
        "model.layers.0.self_attn.q_proj.lora_B": [6, 2],
        "model.layers.0.self_attn.v_proj.lora_A": [3, 4],
        "model.layers.0.self_attn.v_proj.lora_B": [3, 3],
    }
    assert document["format_version"] == 2
    assert document["rank_max"] is None
    assert {"model", "data", "steps", "seed", "gamma", "alpha", "reference_rank", "rank_min"} <= document.keys()
    fields = {"name", "shape", "experts", "importance", "advantage", "rank", "scaling", "gradient_norm", "signal"}
    assert document["modules"][0].keys() == fields


def write_version_1(path, document, tensors):
    """A plan file as gora wrote it when no module could be fused experts."""
    document = {**document, "format_version": 1}
    document["modules"] = [{k: v for k, v in module.items() if k != "experts"} for module in document["modules"]]
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(json.dumps([name, "F32", list(value.shape)]).encode() + value.numpy().tobytes())
    document["sha256"] = digest.hexdigest()
    save_file(tensors, path, metadata={"gora": json.dumps(document)})


def test_a_plan_of_version_1_is_read_as_it_was_meant(tmp_path):
    plan, path = make_plan(), tmp_path / "plan.safetensors"
    factors = make_factors(plan)
    tensors = {}
    for name, (factor_a, factor_b) in factors.items():
        tensors |= {f"{name}.lora_A": factor_a, f"{name}.lora_B": factor_b}
    write_version_1(path, plan.model_dump(mode="json"), tensors)
    read = read_plan(path)
    assert read == plan
    assert all(torch.equal(read_factors(path, read)[name][0], factor_a) for name, (factor_a, _) in factors.items())
    assert identity_differences(read, plan.model, SHAPES) == []
    write_version_1(path, plan.model_dump(mode="json") | {"gamma": 0.5}, tensors)
    changed = path.read_bytes().replace(b'\\"gamma\\": 0.5', b'\\"gamma\\": 0.6')
    path.write_bytes(changed)
    with pytest.raises(InputError, match="is damaged"):
        read_plan(path)


GROUP = "model.layers.0.mlp.experts.down_proj"


def make_plan_with_experts():
    plan = make_plan()
    group = plan.modules[0].model_copy(update={"name": GROUP, "shape": (5, 3), "experts": 4, "rank": 2})
    return plan.model_copy(update={"modules": (*plan.modules, group)})


def test_experts_share_a_rank_and_have_factors_of_their_own(tmp_path):
    plan, path = make_plan_with_experts(), tmp_path / "plan.safetensors"
    assert plan.parameters == make_plan().parameters + 4 * 2 * (5 + 3)
    assert plan.lora_parameters == make_plan().lora_parameters + 4 * 2 * (5 + 3)
    factors = {**make_factors(make_plan()), GROUP: (torch.randn(4, 2, 3), torch.randn(4, 5, 2))}
    write_plan(path, plan, factors)
    assert read_plan(path) == plan
    found = read_factors(path, plan)[GROUP]
    assert all(torch.equal(mine, value) for mine, value in zip(found, factors[GROUP], strict=True))
    write_plan(path, plan, factors | {GROUP: (torch.randn(3, 2, 3), torch.randn(4, 5, 2))})
    with pytest.raises(InputError, match=r"down_proj.lora_A is \(3, 2, 3\) float32, expected \(4, 2, 3\)"):
        read_factors(path, plan)


def test_a_model_with_another_number_of_experts_is_a_stranger():
    plan = make_plan_with_experts()
    assert identity_differences(plan, plan.model, {**SHAPES, GROUP: (4, 5, 3)}) == []
    (told,) = identity_differences(plan, plan.model, {**SHAPES, GROUP: (8, 5, 3)})
    assert "(4, 5, 3) in the plan, (8, 5, 3) in the model" in told


def test_a_plan_that_does_not_say_how_a_began_has_a_drawn_at_random():
    document = make_plan(init_a="gradient").model_dump()
    assert Plan.model_validate(document).init_a == "gradient"
    del document["init_a"]
    assert Plan.model_validate(document).init_a == "random"


def test_settings_that_a_plan_was_not_made_with_are_named():
    recipe = load_recipe("quickstart", ["gora.init_a=gradient", "adapter.rank=2", "gora.rank_min=0"]).recipe
    settings, train = recipe.gora, recipe.train
    plan = make_plan(
        gamma=settings.gamma,
        rank_max=8,
        seed=recipe.seed,
        steps=settings.steps,
        micro_batch_size=settings.micro_batch_size or train.micro_batch_size,
    )
    assert plan_differences(plan, recipe) == ["gora.init_a: random in the plan, gradient in the recipe"]


def test_parameters_are_counted_from_given_ranks():
    plan = make_plan(ranks=(2, 3))
    assert plan.parameters == 2 * (6 + 4) + 3 * (3 + 4)
    assert plan.lora_parameters == 2 * (6 + 4) + 2 * (3 + 4)


def damaged(tmp_path, change):
    plan = make_plan()
    path = tmp_path / "plan.safetensors"
    factors = make_factors(plan)
    tensors = {}
    for name, (factor_a, factor_b) in factors.items():
        tensors |= {f"{name}.lora_A": factor_a, f"{name}.lora_B": factor_b}
    change(tensors)
    save_file(tensors, path, metadata={"gora": plan.model_dump_json()})
    return path, plan


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(f"{Q}.lora_B"), f"tensor {Q}.lora_B is missing"),
        (lambda tensors: tensors.update(other=torch.zeros(1)), "tensor other belongs to no module"),
        (lambda tensors: tensors.update({f"{Q}.lora_A": torch.zeros(3, 4)}), r"is \(3, 4\) float32, expected \(2, 4\)"),
        (lambda tensors: tensors.update({f"{Q}.lora_A": torch.zeros(2, 4).half()}), "float16, expected"),
        (lambda tensors: tensors[f"{Q}.lora_A"].fill_(float("nan")), "holds NaN or infinity"),
    ],
)
def test_tensors_that_do_not_agree_with_the_ranks_are_named(tmp_path, change, message):
    path, plan = damaged(tmp_path, change)
    with pytest.raises(InputError, match=message):
        read_factors(path, plan)


def test_files_that_are_no_plan_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such plan file"):
        read_plan(tmp_path / "none")
    path = tmp_path / "plan.safetensors"
    plan = make_plan()
    write_plan(path, plan, make_factors(plan))
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"\xff" * 100):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="not a whole safetensors file"):
            read_plan(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="not a plan of gora"):
        read_plan(path)
    save_file({"x": torch.zeros(1)}, path, metadata={"gora": "[]"})
    with pytest.raises(InputError, match="not an object"):
        read_plan(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "format version 3, but this gora reads versions 1 and 2"),
        ({"gamma": "much"}, "gamma"),
        ({"modules": [{"name": "x"}]}, r"modules\.0\.rank"),
    ],
)
def test_a_document_with_wrong_fields_is_refused_with_their_names(tmp_path, change, message):
    document = json.loads(make_plan().model_dump_json()) | change
    save_file({"x": torch.zeros(1)}, tmp_path / "plan.safetensors", metadata={"gora": json.dumps(document)})
    with pytest.raises(InputError, match=message):
        read_plan(tmp_path / "plan.safetensors")


@pytest.mark.parametrize(
    ("model", "shapes", "message"),
    [
        ({"weights": "x"}, {}, "model.weights"),
        ({"config": "x"}, {}, "model.config"),
        ({}, {"model.layers.0.self_attn.k_proj": (3, 4)}, "1 targets of this run are not in the plan"),
        ({}, {Q: None}, "1 planned layers are not targets"),
        ({}, {Q: (6, 5)}, rf"modules.{Q}.shape: \(6, 4\) in the plan, \(6, 5\) in the model"),
    ],
)
def test_a_stranger_is_told_by_the_differing_field(model, shapes, message):
    import re

    plan = make_plan()
    there = {name: shape for name, shape in {**SHAPES, **shapes}.items() if shape}
    found = identity_differences(plan, plan.model.model_copy(update=model), there)
    assert len(found) == 1
    assert re.search(message, found[0])


def test_changed_weights_are_named_where_they_are_known():
    plan = make_plan()
    other = plan.model.model_copy(update={"weights": "x"})
    assert identity_differences(plan, other, SHAPES, changed="1 of 9 tensors differ: t")[0].endswith(
        "differ from those the plan was made from (1 of 9 tensors differ: t)"
    )


def test_the_right_model_differs_in_nothing_even_under_another_name():
    plan = make_plan()
    assert identity_differences(plan, plan.model.model_copy(update={"name": "elsewhere"}), SHAPES) == []
