"""Every recipe that ships: it loads, its targets exist on its architecture, and its rows become examples.

Models of the hub are built empty, and their data sets are stood in for by rows with the same columns. What is not
checked here: that the hub still serves those names.
"""

import json

import pytest
import torch
from architectures import BY_HUB_ID, clip_vit_b_16, llama_2_7b
from conftest import ROOT
from peft import get_peft_model

from gora import assets
from gora.core.initial import scaling
from gora.core.ranks import allocate
from gora.data import prepare
from gora.methods.gora import plan_config
from gora.models.load import find_model, load_tokenizer
from gora.models.targets import find_targets, weight_shape
from gora.plan import DataIdentity, ModelIdentity, ModulePlan, Plan
from gora.recipe import accumulation_steps, json_schema, load_recipe
from gora.recipe.builtin import builtin_recipes
from gora.recipe.schema import ModelSection
from gora.stages.planning import rank_bounds

NAMES = sorted(path.stem for path in assets.folder("recipes").glob("*.yaml"))
HUB_ROWS = {
    "meta-math/MetaMathQA": {"type": "GSM_X", "query": "1+1?", "original_question": "1+1?", "response": "It is 2."},
    "m-a-p/Code-Feedback": {
        "id": 1,
        "messages": [{"role": "user", "content": "Sort."}, {"role": "assistant", "content": "sorted(x)"}],
    },
    "WizardLMTeam/WizardLM_evol_instruct_70k": {"instruction": "Say hello.", "output": "Hello."},
    "nyu-mll/glue": {"sentence": "a fine film ", "label": 1, "idx": 0},
}
TRAINED_TEXT = {
    "metamathqa-llama3.1-8b": " It is 2.",
    "code-feedback-llama3.1-8b": " sorted(x)",
    "wizardlm-llama3.1-8b": " Hello.",
    "glue-sst2-t5-base": "positive",
}
HUB_RECIPES = sorted(TRAINED_TEXT)


def test_the_list_of_recipes_is_complete_and_described():
    assert sorted({*HUB_RECIPES, "quickstart"}) == NAMES
    assert all(description for _, description in builtin_recipes())


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_valid_and_its_batch_divides(name):
    loaded = load_recipe(name)
    assert loaded.recipe.output == f"runs/{name}"
    assert accumulation_steps(loaded.recipe.train, 1) >= 1
    assert f"gora run {name}" in (ROOT / "recipes" / f"{name}.yaml").read_text()


def check_plan_on_empty_model(model, targets, recipe):
    """Give every target a rank, wrap the empty model, and compare PEFT's count and layers with the plan's."""
    shapes = [weight_shape(module) for module in targets.values()]
    importances = torch.rand(len(shapes), generator=torch.Generator().manual_seed(0)).square().tolist()
    ranks = allocate(importances, shapes, recipe.adapter.rank, rank_bounds(recipe.gora, recipe.adapter))
    plan = Plan(
        gora_version="0",
        model=ModelIdentity(name=recipe.model.name, config="", weights=""),
        data=DataIdentity(fingerprint=""),
        steps=1,
        micro_batch_size=1,
        seed=0,
        gamma=recipe.gora.gamma,
        alpha=recipe.adapter.alpha,
        reference_rank=recipe.adapter.rank,
        rank_min=4,
        rank_max=32,
        importance=recipe.gora.importance,
        budget=recipe.gora.budget,
        modules=tuple(
            ModulePlan(
                name=module,
                shape=shape,
                importance=value,
                advantage=0.0,
                rank=rank,
                scaling=scaling(recipe.adapter.alpha, rank),
                gradient_norm=0.0,
            )
            for module, shape, value, rank in zip(targets, shapes, importances, ranks, strict=True)
        ),
    )
    names = [module for module, _ in model.named_modules()]
    with torch.device("meta"):
        wrapped = get_peft_model(model, plan_config(plan, 0.0, names))
    expected = sum(rank * (rows + columns) for rank, (rows, columns) in zip(ranks, shapes, strict=True))
    assert len(set(ranks)) > 4
    assert wrapped.get_nb_trainable_parameters()[0] == plan.parameters == expected
    layers = {module: layer for module, layer in wrapped.base_model.model.named_modules() if hasattr(layer, "lora_A")}
    assert {module: (layer.r["default"], layer.scaling["default"]) for module, layer in layers.items()} == {
        module.name: (module.rank, module.scaling) for module in plan.modules
    }


@pytest.mark.parametrize("name", HUB_RECIPES)
def test_targets_of_a_hub_recipe_exist_on_its_empty_model_and_take_a_plan(name):
    recipe = load_recipe(name).recipe
    model = BY_HUB_ID[recipe.model.name]()
    check_plan_on_empty_model(model, find_targets(model, recipe.adapter.targets, recipe.adapter.exclude), recipe)


@pytest.mark.parametrize(
    ("build", "targets"), [(llama_2_7b, "all-linear"), (clip_vit_b_16, r"vision_model\..*(_proj|fc\d)")]
)
def test_the_other_architectures_of_table_7_take_a_plan_with_the_count_of_its_ranks(build, targets):
    model = build()
    check_plan_on_empty_model(model, find_targets(model, targets), load_recipe("quickstart").recipe)


@pytest.mark.parametrize("name", HUB_RECIPES)
def test_rows_with_a_hub_recipe_s_columns_become_examples(name, tmp_path):
    recipe = load_recipe(name).recipe
    path = tmp_path / "rows.jsonl"
    row = json.dumps(HUB_ROWS[recipe.data.train.path])
    path.write_text(f"{row}\n" * (recipe.data.holdout + 2))
    source = recipe.data.train.model_copy(update={"path": str(path), "split": None, "subset": None, "max_rows": None})
    data = recipe.data.model_copy(update={"train": source, "eval": source if recipe.data.eval else None})
    tiny = ModelSection(name="builtin:tiny-6m")
    tokenizer = load_tokenizer(tiny, find_model(tiny))
    encoder_decoder = BY_HUB_ID[recipe.model.name]().config.is_encoder_decoder
    said = []
    prepared = prepare(data, tokenizer, 0, encoder_decoder=encoder_decoder, say=said.append)
    assert len(prepared.train) == 2 if recipe.data.holdout else recipe.data.holdout + 2
    trained = [label for label in prepared.train[0]["labels"] if label != -100]
    assert tokenizer.decode(trained) == TRAINED_TEXT[name] + "</s>"


def test_the_schema_for_editors_is_the_recipe_s():
    assert json.loads((ROOT / "configs" / "recipe.schema.json").read_text()) == json_schema()
