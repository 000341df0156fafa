"""Every family of built-in recipes runs end to end on a small model and rows in its set's columns.

Nothing of a recipe is edited: all that differs is given as a user would give it, with --set.
"""

import json

import datasets
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from gora.models.source import find_model
from gora.models.tokenizer import load_tokenizer
from gora.recipe import load_recipe
from gora.recipe.builtin import builtin_paths
from gora.stages.run import run
from tests.conftest import ROOT, opened
from tests.helpers import forks
from tests.helpers.images import CLASSES, encoded, picture, write_model

ROWS = ROOT / "tests" / "fixtures" / "rows"
TWO_STEPS = (
    "gora.steps=2",
    "train.max_steps=2",
    "train.micro_batch_size=1",
    "train.batch_size=2",
    "train.log_steps=1",
    "evaluation.steps=2",
)
ON_A_LAPTOP = ("model.name=builtin:tiny-6m", "model.dtype=float32", "distributed=ddp", "data.holdout=2")
FIRST_TRAINED = {
    "metamathqa": " 4 * 6 = 24 books are on the shelf.\nThe answer is: 24</s>",
    "code-feedback": "```python\ndef double(x):\n    return 2 * x\n```\n\n</s>",
    "wizardlm": " It holds pages together, resets small devices, and marks a place in a book.</s>",
    "glue/sst2": "positive</s>",
    "glue/cola": "acceptable</s>",
    "glue/mnli": "entailment</s>",
    "glue/mrpc": "equivalent</s>",
    "glue/qnli": "entailment</s>",
}
LLAMA = [name for name in builtin_paths() if "llama" in name and not name.startswith("defaults/")]
GLUE = [name for name in builtin_paths() if name.startswith("glue/")]


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory):
    """A random T5 of two blocks on the vocabulary of the small model that ships."""
    torch.manual_seed(0)
    settings = load_recipe("quickstart").recipe.model
    vocabulary = len(load_tokenizer(settings, find_model(settings)))
    config = T5Config(
        vocab_size=vocabulary, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    folder = tmp_path_factory.mktemp("tiny-t5")
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def family(name):
    return name if name.startswith("glue/") else name.partition("-llama")[0]


def settings(name, tiny_t5, *more):
    if name.startswith("glue/"):
        glue = ROWS / "glue"
        where = (f"model.name={tiny_t5}", "model.tokenizer=builtin:tiny-6m",
                 f"data.train.path={glue}", f"data.eval.path={glue}")  # fmt: skip
    else:
        where = (*ON_A_LAPTOP, f"data.train.path={ROWS / family(name).replace('-', '_')}.jsonl")
    return (*where, *TWO_STEPS, *more)


def has_run(folder, recipe):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    result = json.loads((folder / "results.json").read_text())
    assert result["loss"]["final"] != result["loss"]["base"]
    adapter = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert set(adapter["rank_pattern"].values()) | {adapter["r"]} != {recipe.adapter.rank}


@pytest.mark.parametrize("name", ["code-feedback-llama2-7b", "glue/mnli"])
def test_a_recipe_of_each_model_kind_runs_from_the_command_line(name, tiny_t5, tmp_path):
    overrides = settings(name, tiny_t5)
    done = forks.run("run", name, *(part for text in overrides for part in ("--set", text)), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    has_run(tmp_path / "runs" / name.replace("/", "-"), load_recipe(name).recipe)
    if name.startswith("code"):
        assert "1 without code" in done.stdout


@pytest.mark.parametrize(
    "name", [*GLUE, "metamathqa-llama3.1-8b", "metamathqa-llama2-7b-r128", "wizardlm-llama3.1-8b-r32"]
)
def test_the_others_run_as_well(name, tiny_t5, tmp_path):
    recipe = load_recipe(name, settings(name, tiny_t5, f"output={tmp_path}")).recipe
    run(recipe)
    has_run(tmp_path, recipe)


@pytest.mark.parametrize("name", [*LLAMA, *GLUE])
def test_what_is_trained_is_the_answer(name, tiny_t5):
    more = () if name.startswith("glue/") else ("data.holdout=0", "evaluation.steps=null")
    setup = opened(load_recipe(name, settings(name, tiny_t5, *more)).recipe)
    trained = [label for label in setup.data.train[0]["labels"] if label != -100]
    assert setup.tokenizer.decode(trained) == FIRST_TRAINED[family(name)]


@pytest.mark.parametrize("name", ["dtd", "svhn"])
def test_the_vision_recipes_run_from_gradients_to_their_accuracy_on_a_small_clip(name, tmp_path):
    """One that others extend, and one that has a subset; the others differ in their hub id."""
    write_model(tmp_path / "clip", "clip")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    contents = [{"bytes": encoded(picture(each, index)), "path": None} for index in range(4) for each in CLASSES]
    rows = datasets.Dataset.from_dict({"image": contents, "label": CLASSES * 4}, features=features)
    rows.to_parquet(tmp_path / "rows.parquet")
    rows.select(range(6)).to_parquet(tmp_path / "tests.parquet")
    files = {"train": "rows.parquet", "eval": "tests.parquet"}
    local = [f"data.{part}={{path: {tmp_path / file}}}" for part, file in files.items()]
    settings = [*TWO_STEPS, f"model.name={tmp_path / 'clip'}", f"output={tmp_path / 'run'}", *local]
    run(load_recipe(f"vision/{name}", settings).recipe)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["tasks"]["image"]["trained"]["questions"] == 6
    assert set(results["tasks"]["image"]["trained"]["accuracy_by_class"]) == set(CLASSES)
    assert results["trainable_parameters"] > 0
