"""Every recipe that ships: it loads, it has the paper's settings, and its targets exist on its architecture.

Models of the hub are built empty. What is not checked here: that the hub still serves those names. Whole runs are in
`test_recipe_families.py`.
"""

import json
from dataclasses import dataclass

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

from gora.core.initial import scaling
from gora.core.ranks import adapter_parameters, allocate
from gora.methods.gora import plan_config
from gora.models.targets import find_targets, weight_shape
from gora.plan import DataIdentity, ModelIdentity, ModulePlan, Plan
from gora.recipe import accumulation_steps, json_schema, load_recipe
from gora.recipe.builtin import builtin_comparisons, builtin_paths, builtin_recipes
from gora.recipe.derived import rank_bounds
from tests.conftest import ROOT
from tests.helpers.architectures import BY_HUB_ID

NAMES = list(builtin_paths())


@dataclass
class Paper:
    """One row of the paper's Table 9."""

    model: str
    targets: str
    learning_rate: float
    final: float
    weight_decay: float
    batch: int
    precision: str


# The tables of the paper, written down apart from the recipes.
MODELS = {
    "llama3.1-8b": Paper("meta-llama/Llama-3.1-8B", "attention", 5e-5, 0.1, 5e-4, 64, "bfloat16"),
    "llama2-7b": Paper("meta-llama/Llama-2-7b-hf", "all-linear", 2e-5, 0.0, 0.0, 32, "bfloat16"),
}
T5 = Paper("google-t5/t5-base", "all-linear", 1e-4, 0.0, 0.0, 32, "float32")
SETS = {
    "metamathqa": ("meta-math/MetaMathQA", 100_000, "response"),
    "code-feedback": ("m-a-p/Code-Feedback", 100_000, "code"),
    "wizardlm": ("WizardLMTeam/WizardLM_evol_instruct_70k", 52_000, "response"),
}
GAMMA = {8: 0.05, 32: 0.01, 128: 0.005}
LLAMA = [(f"{data}-{model}{'' if rank == 8 else f'-r{rank}'}", data, model, rank)
         for data in SETS for model in MODELS for rank in GAMMA]  # fmt: skip
# Task, its words and the texts of its labels 0, 1, 2 in the T5 paper (arXiv 1910.10683, appendix D).
GLUE = {
    "mnli": ("mnli hypothesis: H premise: P", ["entailment", "neutral", "contradiction"], "validation_matched"),
    "sst2": ("sst2 sentence: S", ["negative", "positive"], "validation"),
    "cola": ("cola sentence: S", ["unacceptable", "acceptable"], "validation"),
    "qnli": ("qnli question: Q sentence: S", ["entailment", "not_entailment"], "validation"),
    "mrpc": ("mrpc sentence1: A sentence2: B", ["not_equivalent", "equivalent"], "validation"),
}
CLIP = Paper("openai/clip-vit-base-patch16", "all-linear", 1e-4, 0.0, 0.0, 64, "float32")
# The hub ids of the paper's seven sets of images, with their subsets.
VISION = {
    "cars": ("tanganke/stanford_cars", None),
    "dtd": ("tanganke/dtd", None),
    "eurosat": ("tanganke/eurosat", None),
    "gtsrb": ("tanganke/gtsrb", None),
    "resisc45": ("tanganke/resisc45", None),
    "sun397": ("tanganke/sun397", None),
    "svhn": ("ufldl-stanford/svhn", "cropped_digits"),
}
# What the documentation of five tools begins with, written down apart from the recipes: rank, alpha, dropout, targets;
# rows in a step, rate, schedule, warm-up (steps from 1 on, else a share), weight decay.
QUERY_VALUE = ["q_proj", "v_proj"]
TOOLS = {
    "peft": (8, 8, 0.0, QUERY_VALUE, 32, 1e-3, "linear", 0.0, 0.01),
    "llama-factory": (8, 16, 0.0, "all-linear", 8, 1e-4, "cosine", 0.1, 0.0),
    "axolotl": (16, 32, 0.05, "all-linear", 4, 2e-4, "cosine", 10, 0.0),
    "unsloth": (16, 16, 0.0, "all-linear", 8, 2e-4, "linear", 5, 0.01),
    "trl": (32, 16, 0.05, QUERY_VALUE, 16, 2e-4, "linear", 0.0, 0.0),
}
# LoRA's trainable parameters at rank 8 (Table 7).
TABLE_7 = {
    "google-t5/t5-base": 3_244_032,
    "meta-llama/Llama-3.1-8B": 6_815_744,
    "meta-llama/Llama-2-7b-hf": 19_988_480,
    "openai/clip-vit-base-patch16": 1_327_104,
}


def test_the_list_of_recipes_is_complete_and_described():
    expected = {name for name, *_ in LLAMA} | {f"glue/{task}" for task in GLUE} | {"quickstart"}
    assert set(NAMES) == expected | {f"vision/{name}" for name in VISION} | {f"defaults/{name}" for name in TOOLS}
    described = [*builtin_recipes(), *builtin_comparisons()]
    assert all(description for _, description in described)
    assert len({description for _, description in described}) == len(described)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_valid_and_its_batch_divides(name):
    loaded = load_recipe(name)
    assert loaded.recipe.output == f"runs/{name.replace('/', '-')}"
    assert accumulation_steps(loaded.recipe.train, 1) >= 1
    assert f"\n#   gora run {name}\n" in (ROOT / "recipes" / f"{name}.yaml").read_text()


def has_the_paper_s_settings(recipe, paper, rank, gamma):
    train = recipe.train
    assert (recipe.model.name, recipe.model.dtype) == (paper.model, paper.precision)
    assert train.precision == ("fp32" if paper.precision == "float32" else "auto")
    assert (recipe.adapter.targets, recipe.adapter.exclude) == (paper.targets, [])
    assert (recipe.adapter.method, recipe.adapter.rank, recipe.adapter.alpha) == ("gora", rank, 16)
    assert (recipe.adapter.dropout, recipe.adapter.dora) == (0, False)
    assert (recipe.gora.steps, recipe.gora.gamma, recipe.gora.importance) == (64, gamma, "sensitivity")
    assert (recipe.gora.rank_min, recipe.gora.rank_max, recipe.gora.budget) == ("auto", "auto", "paper")
    bounds = rank_bounds(recipe.gora, recipe.adapter)
    assert (bounds.smallest, bounds.largest) == (rank // 2, 4 * rank)
    assert (train.epochs, train.max_steps, train.batch_size) == (1, None, paper.batch)
    assert (train.learning_rate, train.loraplus_lr_ratio) == (paper.learning_rate, "auto")
    assert (train.schedule, train.warmup_ratio, train.min_lr_ratio) == ("cosine", 0.03, paper.final)
    assert (train.beta1, train.beta2, train.weight_decay) == (0.9, 0.999, paper.weight_decay)


@pytest.mark.parametrize(("name", "data", "model", "rank"), LLAMA, ids=lambda value: str(value))
def test_the_llama_recipes_have_the_paper_s_settings(name, data, model, rank):
    recipe = load_recipe(name).recipe
    gamma = 0.08 if (data, rank) == ("metamathqa", 8) else GAMMA[rank]
    has_the_paper_s_settings(recipe, MODELS[model], rank, gamma)
    path, rows, supervised = SETS[data]
    assert (recipe.data.train.path, recipe.data.train.max_rows) == (path, rows)
    assert (recipe.data.supervise, recipe.data.max_length) == (supervised, 1024)
    # Rows are padded as they were drawn, and processes share optimizer states in host memory.
    assert recipe.data.packing == "none"
    assert recipe.distributed == "zero2-offload"


@pytest.mark.parametrize("task", GLUE)
def test_the_glue_recipes_have_the_paper_s_settings(task):
    recipe = load_recipe(f"glue/{task}").recipe
    has_the_paper_s_settings(recipe, T5, 8, 0.05)
    template, choices, split = GLUE[task]
    columns = {"H": "hypothesis", "P": "premise", "S": "sentence", "Q": "question", "A": "sentence1", "B": "sentence2"}
    assert recipe.data.template == " ".join(f"{{{columns[word]}}}" if word in columns else word
                                            for word in template.split())  # fmt: skip
    assert (recipe.data.response, recipe.data.choices, recipe.data.max_length) == ("label", choices, 128)
    for source, part in ((recipe.data.train, "train"), (recipe.data.eval, split)):
        assert source.model_dump() == {
            "path": "nyu-mll/glue",
            "subset": task,
            "split": part,
            "separator": None,
            "max_rows": None,
        }


@pytest.mark.parametrize("name", VISION)
def test_the_vision_recipes_have_the_paper_s_settings(name):
    recipe = load_recipe(f"vision/{name}").recipe
    has_the_paper_s_settings(recipe, CLIP, 8, 0.05)
    assert (recipe.model.head, recipe.data.format, recipe.data.augment) == ("image-zero-shot", "image", "none")
    assert recipe.data.class_prompts == ["a photo of a {class}."]
    path, subset = VISION[name]
    for source, split in ((recipe.data.train, "train"), (recipe.data.eval, "test")):
        assert (source.path, source.subset, source.split) == (path, subset, split)
    assert [task.name for task in recipe.evaluation.tasks] == ["image"]


@pytest.mark.parametrize("name", TOOLS)
def test_the_recipes_of_tools_have_their_documented_settings(name):
    recipe = load_recipe(f"defaults/{name}").recipe
    adapter, train = recipe.adapter, recipe.train
    warm_up = train.warmup_ratio if train.warmup_steps is None else train.warmup_steps
    assert adapter.method == "lora" and train.min_lr_ratio == 0
    found = (adapter.rank, adapter.alpha, adapter.dropout, adapter.targets)
    assert found == TOOLS[name][:4]
    found = (train.batch_size, train.learning_rate, train.schedule, warm_up, train.weight_decay)
    assert found == TOOLS[name][4:]
    assert "https://" in (ROOT / "recipes" / "defaults" / f"{name}.yaml").read_text()


def test_the_recipe_of_peft_has_peft_s_own_defaults():
    peft, adapter = LoraConfig(), load_recipe("defaults/peft").recipe.adapter
    assert (adapter.rank, adapter.alpha, adapter.dropout) == (peft.r, peft.lora_alpha, peft.lora_dropout)
    assert set(adapter.targets) == set(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING["llama"])


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
    return plan


@pytest.mark.parametrize(
    "name",
    [f"metamathqa-{model}{rank}" for model in MODELS for rank in ("", "-r32", "-r128")] + ["glue/sst2", "vision/dtd"],
)
def test_targets_exist_on_the_empty_model_and_take_a_plan_with_the_counts_of_table_7(name):
    """The recipes of one model and rank differ in their rows only, so that one of them stands for all."""
    recipe = load_recipe(name).recipe
    model = BY_HUB_ID[recipe.model.name]()
    targets = find_targets(model, recipe.adapter.targets, recipe.adapter.exclude)
    plan = check_plan_on_empty_model(model, targets, recipe)
    assert plan.lora_parameters == TABLE_7[recipe.model.name] * recipe.adapter.rank // 8


@pytest.mark.parametrize("rank", [32, 128])
def test_t5_at_higher_ranks_has_the_counts_of_table_7_times_the_rank(rank):
    model = BY_HUB_ID["google-t5/t5-base"]()
    shapes = [weight_shape(module) for module in find_targets(model, "all-linear").values()]
    expected = TABLE_7["google-t5/t5-base"] * rank // 8
    assert adapter_parameters(shapes, [rank] * len(shapes)) == expected


def test_the_schema_for_editors_is_the_recipe_s():
    assert json.loads((ROOT / "configs" / "recipe.schema.json").read_text()) == json_schema()
