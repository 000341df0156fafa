"""Classification heads: rows, the drawn head, its training beside an adapter, what is saved, and what is refused."""

import json
import os
import shutil

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForMaskedLM

import gora.training.saving as saving
from gora.data import LabelCollator, LabelledText, TextEncoder, format_for, sample_text
from gora.errors import InputError
from gora.evaluation.models.classify import class_logits, predict
from gora.evaluation.task import Options
from gora.gradients.archive import ArchivedStatistics
from gora.methods import METHODS
from gora.models.encoders import longest_input
from gora.models.fingerprint import base_weights, weights_fingerprint
from gora.models.head import head_modules
from gora.models.load import load_model
from gora.models.source import find_model
from gora.models.targets import find_targets
from gora.plan import read_plan
from gora.planning.micro_batches import MicroBatches
from gora.recipe import load_recipe
from gora.recipe.schema import DataSection, ModelSection, SourceSection
from gora.runs.base_model import load_base_model
from gora.runs.loss import evaluate_loss
from gora.runs.owner import mark
from gora.stages.evaluate import Job, evaluate, task_jobs
from gora.stages.merge import merge
from gora.stages.precompute import precompute
from gora.stages.train import train
from tests.conftest import ROOT, opened
from tests.helpers import forks
from tests.helpers.cards import loaded_as_told
from tests.helpers.classifiers import GOOD, KINDS, sentences, tokenizer, write_model, write_recipe, write_rows

CPU = torch.device("cpu")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
TEXTS = [text for text, _ in sentences()[:9]]
CHOICES = ["bad", "good"]
FEW = ("train.max_steps=3", "gora.steps=2", "gora.micro_batch_size=16")


def recipe_of(path, output, *more):
    return load_recipe(str(path), [f"output={output}", *more]).recipe


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def adapter_tensors(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Recipes for every kind of model, with rows and models."""
    folder = tmp_path_factory.mktemp("home")
    for kind in KINDS:
        write_recipe(folder, kind)
    return folder


@pytest.fixture(scope="module")
def finished(home):
    """`gora run --merge` as a user types it: its folder and what it printed."""
    done = forks.run("run", str(home / "bert.yaml"), "--merge", cwd=home, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    return home / "run", done.stdout


# --- the whole chain --------------------------------------------------------------------------------------------------


def test_the_loss_falls_and_the_head_learns(finished, home):
    folder, printed = finished
    losses = json.loads((folder / "results.json").read_text())["loss"]
    assert losses["final"] < 0.5 * losses["base"]
    recipe = recipe_of(home / "bert.yaml", folder)
    drawn = load_base_model(opened(recipe)).classifier.weight
    trained = adapter_tensors(folder)["base_model.model.classifier.weight"]
    assert trained.dtype == torch.float32
    assert (trained - drawn).abs().max() > 1e-3
    assert "head      classifier: 2 labels, 66 parameters, trained in full" in printed
    assert "labels bad 50 %, good 50 %" in printed


def test_the_head_is_a_parameter_group_of_its_own_at_the_rate_of_a(finished):
    _, printed = finished
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if line.startswith("│")]
    groups = {row[0]: row for row in rows if len(row) == 7}
    assert groups["head"][1:4] == ["2", "66", "0.0003"]
    assert (groups["A"][3], groups["B"][3]) == ("0.0003", "0.0048")


def test_adapter_and_merged_model_load_with_public_loaders_to_the_same_logits(finished):
    folder, _ = finished
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(folder / "adapter")
    merged = AutoModelForSequenceClassification.from_pretrained(folder / "merged")
    its_tokenizer = AutoTokenizer.from_pretrained(folder / "merged")
    logits = class_logits(loaded, its_tokenizer, TEXTS)
    assert (class_logits(merged, its_tokenizer, TEXTS) - logits).abs().max() < 1e-5 < logits.abs().max()
    assert merged.config.id2label == {0: "bad", 1: "good"}
    assert type(merged).__name__ == "BertForSequenceClassification"
    assert json.loads((folder / "adapter" / "gora.json").read_text())["labels"] == CHOICES


def test_the_lines_of_the_model_card_load_it(finished):
    adapter = finished[0] / "adapter"
    model, its_tokenizer = loaded_as_told(adapter)
    expected = AutoPeftModelForSequenceClassification.from_pretrained(adapter)
    assert torch.equal(class_logits(model, its_tokenizer, TEXTS), class_logits(expected, its_tokenizer, TEXTS))


def test_predictions_are_those_of_each_text_by_itself(finished):
    folder, _ = finished
    model = AutoPeftModelForSequenceClassification.from_pretrained(folder / "adapter")
    its_tokenizer = AutoTokenizer.from_pretrained(folder / "adapter")
    alone = [model(**its_tokenizer(text, return_tensors="pt")).logits[0].detach() for text in TEXTS]
    model.train()
    together = class_logits(model, its_tokenizer, TEXTS, batch_size=4)
    assert model.training
    assert (together - torch.stack(alone)).abs().max() < 1e-5
    assert predict(model, its_tokenizer, TEXTS, batch_size=5) == torch.stack(alone).argmax(dim=1).tolist()
    rows = sentences()[:38]
    found = predict(model, its_tokenizer, [text for text, _ in rows])
    assert sum(label == expected for label, (_, expected) in zip(found, rows, strict=True)) >= 30


def test_run_adapter_and_merged_model_are_evaluated_by_their_likeliest_class(finished, tmp_path):
    folder, _ = finished
    rows = [{"sentence": text, "text": text, "label": label} for text, label in sentences()]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(folder / "adapter")
    its_tokenizer = AutoTokenizer.from_pretrained(folder / "adapter")
    expected = predict(loaded, its_tokenizer, [row["text"] for row in rows])
    for subject in (folder, folder / "adapter", folder / "merged"):
        job = Job(tasks=task_jobs(["glue/sst2", "loss"], Options(folder=tmp_path, data=str(tmp_path / "rows.jsonl"))))
        found = evaluate(str(subject), job, destination=tmp_path / subject.name)
        scores = found["glue/sst2"]["trained"]
        assert [row["predicted"] for row in scores.rows] == expected
        right = sum(label == row["label"] for label, row in zip(expected, rows, strict=True))
        assert scores.metrics == {"accuracy": right / len(rows)}
        logits = class_logits(loaded, its_tokenizer, [row["text"] for row in rows])
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([row["label"] for row in rows]))
        assert found["loss"]["trained"].metrics["loss"] == pytest.approx(float(loss), rel=1e-4)
    with pytest.raises(InputError, match="no place for one"):
        job = Job(tasks=task_jobs(["gsm8k"], Options(folder=tmp_path, data="builtin:gsm8k/test.jsonl", limit=1)))
        evaluate(str(folder), job, destination=tmp_path / "other")


def test_the_plan_gives_a_rank_to_every_linear_layer_but_the_head(finished):
    folder, _ = finished
    plan = read_plan(folder / "plan.safetensors")
    names = [module.name for module in plan.modules]
    assert len(names) == 13
    assert "bert.pooler.dense" in names and "classifier" not in names
    assert all(module.gradient_norm > 0 for module in plan.modules)
    tensors = adapter_tensors(folder)
    for module in plan.modules:
        assert tensors[f"base_model.model.{module.name}.lora_A.weight"].shape == (module.rank, module.shape[1])


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "llama"])
def test_other_kinds_of_models_run_from_gradients_to_a_merged_model(home, tmp_path, kind):
    recipe = recipe_of(home / f"{kind}.yaml", tmp_path / "run", "train.max_steps=30", "gora.steps=2")
    precompute(recipe)
    trained = train(recipe)
    course = [line["loss"] for line in lines(tmp_path / "run") if "loss" in line]
    assert sum(course[-5:]) < 0.9 * sum(course[:5])
    made = merge(trained.adapter, tmp_path / "merged")
    assert made.largest_difference < 1e-5
    base = load_model(recipe.model, find_model(recipe.model, labels=CHOICES), CPU, seed=1)
    heads = {"roberta": ["classifier"], "distilbert": ["pre_classifier", "classifier"], "llama": ["score"]}[kind]
    assert list(head_modules(base)) == heads
    saved = {name.split(".")[2] for name in adapter_tensors(tmp_path / "run") if ".lora_" not in name}
    assert saved == set(heads)
    its_tokenizer = AutoTokenizer.from_pretrained(trained.adapter)
    loaded = class_logits(PeftModel.from_pretrained(base, trained.adapter), its_tokenizer, TEXTS)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert (class_logits(merged, its_tokenizer, TEXTS) - loaded).abs().max() < 1e-5


ALWAYS = ("gora", "pissa", "adalora", "full")
"""One of each kind; the others take minutes."""


@pytest.mark.parametrize(
    "method", [each if each in ALWAYS else pytest.param(each, marks=pytest.mark.slow) for each in METHODS]
)
def test_every_method_trains_the_head_and_saves_what_it_computes(home, tmp_path, method, monkeypatch):
    folder = tmp_path / "run"
    recipe = recipe_of(home / "bert.yaml", folder, f"adapter.method={method}", *FEW)
    held = {}

    def remember(name):
        save = getattr(saving, name)

        def keep(path, model, its_tokenizer, *arguments, **note):
            held["logits"] = class_logits(model, its_tokenizer, TEXTS)
            save(path, model, its_tokenizer, *arguments, **note)

        monkeypatch.setattr(saving, name, keep)

    remember("save_adapter"), remember("save_whole")
    if METHODS[method].needs_plan:
        precompute(recipe)
    made = train(recipe).adapter
    family = AutoModelForSequenceClassification if method == "full" else AutoPeftModelForSequenceClassification
    model = family.from_pretrained(made)
    logits = class_logits(model, AutoTokenizer.from_pretrained(made), TEXTS)
    assert (logits - held["logits"]).abs().max() < 1e-5
    trained = dict(model.named_parameters())
    weight = next(value for name, value in trained.items() if "classifier" in name and "original" not in name)
    assert (weight - load_base_model(opened(recipe)).classifier.weight).abs().max() > 1e-4


def test_eva_is_refused_where_it_would_never_see_enough_inputs_of_the_pooler(home, tmp_path):
    with pytest.raises(InputError, match=r"bert\.pooler\.dense has one input a row\. Give gora\.micro_batch_size: 16"):
        train(recipe_of(home / "bert.yaml", tmp_path, "adapter.method=eva", *FEW[:2]))


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit_in_the_head_too(home, tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    settings = ("train.save_steps=5", "train.epochs=2", "adapter.dropout=0.1", "adapter.method=lora")
    unbroken = train(recipe_of(home / "bert.yaml", whole, *settings))
    mark(again)
    (again / "checkpoints").mkdir()
    shutil.copytree(whole / "checkpoints" / "checkpoint-5", again / "checkpoints" / "checkpoint-5")
    (again / "metrics.jsonl").write_bytes((whole / "metrics.jsonl").read_bytes())
    resumed = train(recipe_of(home / "bert.yaml", again, *settings), mode="resume")
    found, expected = adapter_tensors(again), adapter_tensors(whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert resumed.losses == unbroken.losses
    assert [line.get("loss") for line in lines(again)] == [line.get("loss") for line in lines(whole)]


def test_a_short_base_computes_beside_a_head_in_float32(home, tmp_path):
    recipe = recipe_of(
        home / "bert.yaml", tmp_path / "run", "model.dtype=bfloat16", "train.max_steps=2", "gora.steps=2"
    )
    precompute(recipe)
    made = train(recipe).adapter
    assert adapter_tensors(tmp_path / "run")["base_model.model.classifier.weight"].dtype == torch.float32
    merge(made, tmp_path / "merged", dtype="float32")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert torch.equal(
        merged["classifier.weight"], adapter_tensors(tmp_path / "run")["base_model.model.classifier.weight"]
    )


# --- losses and gradients against plain torch -------------------------------------------------------------------------


def all_rows(setup):
    rows = setup.data.train
    return setup.collator([rows[index] for index in range(len(rows))])


def test_the_step_is_that_of_the_mean_over_all_rows_whatever_the_micro_batches(home, tmp_path):
    """38 rows in micro-batches of 12 are 12, 12, 12 and 2: a mean of means would be another one."""
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        settings = json.loads((home / "bert" / "config.json").read_text())
        (home / "bert" / "config.json").write_text(json.dumps(settings | {name: 0.0}))
    more = (
        "adapter.method=full",
        "train.epochs=1",
        "train.batch_size=48",
        "train.micro_batch_size=12",
        "data.eval=null",
    )
    recipe = recipe_of(home / "bert.yaml", tmp_path / "run", *more)
    setup = opened(recipe)
    model = load_base_model(setup).double()
    targets = find_targets(model, "all-linear")
    trained = [layer.weight for layer in targets.values()] + list(model.classifier.parameters())
    for value in trained:
        value.requires_grad_(True)
    batch = all_rows(setup)
    loss = cross_entropy(model(**{key: batch[key] for key in batch if key != "labels"}).logits, batch["labels"])
    loss.backward()
    norm = torch.stack([value.grad.norm() for value in trained]).norm()
    train(recipe)
    (first,) = lines(tmp_path / "run")
    assert first["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert first["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)


def test_the_evaluation_loss_is_the_mean_over_rows(home, tmp_path):
    setup = opened(recipe_of(home / "bert.yaml", tmp_path, "evaluation.micro_batch_size=4"))
    model = load_base_model(setup)
    rows = setup.data.eval
    batch = setup.collator([rows[index] for index in range(len(rows))])
    with torch.no_grad():
        expected = cross_entropy(model(**{key: batch[key] for key in batch if key != "labels"}).logits, batch["labels"])
    assert evaluate_loss(model, setup) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
def test_gradient_sums_equal_autograd_in_float64(home, tmp_path, kind):
    recipe = recipe_of(home / f"{kind}.yaml", tmp_path / "run")
    precompute(recipe, keep="fp32")
    kept = ArchivedStatistics(tmp_path / "run" / "gradients")
    setup = opened(recipe)
    model = load_base_model(setup).double()
    targets = find_targets(model, "all-linear")
    batches = MicroBatches(setup)
    for layer in targets.values():
        layer.weight.requires_grad_(True)
    for index in range(batches.steps):
        (model(**batches[index]).loss / batches.steps).backward()
    for name, layer in targets.items():
        difference = (kept._read(name).double() - layer.weight.grad).norm()
        assert difference <= 1e-5 * layer.weight.grad.norm() != 0


def test_two_processes_train_as_one(home, tmp_path):
    settings = ("train.epochs=2", "gora.steps=5", "train.micro_batch_size=2", "adapter.dropout=0")
    recipe = recipe_of(home / "roberta.yaml", tmp_path / "one", *settings)
    precompute(recipe)
    train(recipe)
    overrides = [part for each in (*settings, f"output={tmp_path / 'two'}") for part in ("--set", each)]
    done = forks.run("run", str(home / "roberta.yaml"), *overrides, "--processes", "2", cwd=tmp_path, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    plans = [read_plan(tmp_path / name / "plan.safetensors") for name in ("one", "two")]
    assert [module.rank for module in plans[0].modules] == [module.rank for module in plans[1].modules]
    first, second = (json.loads((tmp_path / name / "results.json").read_text())["loss"] for name in ("one", "two"))
    assert (first["base"], first["initial"]) == pytest.approx((second["base"], second["initial"]), rel=1e-5)
    # Dropout of the base draws other values in each process, but the first step's loss has not moved far.
    assert lines(tmp_path / "one")[0]["tokens"] == lines(tmp_path / "two")[0]["tokens"]


# --- the head ---------------------------------------------------------------------------------------------------------


def classifier(path, labels=("bad", "good"), seed=3):
    settings = ModelSection(name=str(path), head="classification")
    return load_model(settings, find_model(settings, labels=labels), CPU, seed=seed)


def test_the_head_is_drawn_with_the_seed_and_nothing_else_is(home):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = classifier(home / "bert")
    assert torch.equal(torch.rand(1), expected)
    second, other = classifier(home / "bert"), classifier(home / "bert", seed=4)
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    # The head says nothing of which base it stands on.
    assert len({weights_fingerprint(base_weights(model)) for model in (first, second, other)}) == 1
    assert not any("classifier" in name for name, _ in base_weights(first))


def test_a_head_of_the_checkpoint_is_kept_where_it_fits_and_drawn_anew_where_not(home, tmp_path):
    model = classifier(home / "bert")
    model.save_pretrained(tmp_path / "trained")
    assert torch.equal(classifier(tmp_path / "trained", seed=9).classifier.weight, model.classifier.weight)
    assert classifier(tmp_path / "trained", labels=("a", "b", "c")).classifier.weight.shape == (3, 32)


def test_any_other_missing_weight_is_refused(home, tmp_path):
    shutil.copytree(home / "bert", tmp_path / "holed")
    tensors = load_file(tmp_path / "holed" / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    tensors["pooler.dense.weight"] = torch.zeros(3, 3)
    save_file(tensors, tmp_path / "holed" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError) as raised:
        classifier(tmp_path / "holed")
    assert "2 weights of the checkpoint cannot be used" in str(raised.value)
    assert "bert.encoder.layer.1.output.dense.weight is missing" in str(raised.value)
    assert "classifier" not in str(raised.value)


def test_a_layer_of_the_head_is_no_target(home):
    model = classifier(home / "roberta")
    assert not any("classifier" in name for name in find_targets(model, ["dense", "query"]))
    with pytest.raises(InputError, match="'out_proj' names no linear layer"):
        find_targets(model, ["out_proj"])


def test_a_plan_for_other_labels_is_refused(home, tmp_path):
    precompute(recipe_of(home / "bert.yaml", tmp_path / "run", "gora.steps=1"))
    with pytest.raises(InputError, match="does not belong to this model"):
        train(recipe_of(home / "bert.yaml", tmp_path / "run", "gora.steps=1", "data.choices=[bad, good, other]"))


def test_three_labels_are_merged_with_their_names(home, tmp_path):
    more = ("data.choices=[bad, good, other]", "adapter.method=lora", "train.max_steps=1")
    made = train(recipe_of(home / "bert.yaml", tmp_path / "run", *more)).adapter
    merge(made, tmp_path / "merged")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert merged.config.id2label == {0: "bad", 1: "good", 2: "other"}
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(made, num_labels=3)
    its_tokenizer = AutoTokenizer.from_pretrained(made)
    difference = class_logits(merged, its_tokenizer, TEXTS) - class_logits(loaded, its_tokenizer, TEXTS)
    assert difference.abs().max() < 1e-5


def test_whole_layers_besides_the_head_are_not_merged(home, tmp_path):
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], modules_to_save=["pooler"])
    get_peft_model(classifier(home / "bert"), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"it holds base_model\.model\.bert\.pooler besides the head"):
        merge(tmp_path / "adapter", tmp_path / "merged", base=str(home / "bert"))


def test_a_head_beside_the_adapter_of_a_language_model_is_not_merged(finished, tmp_path):
    adapter = tmp_path / "adapter"
    shutil.copytree(finished[0] / "adapter", adapter, ignore=shutil.ignore_patterns("manifest.json"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"task_type": "CAUSAL_LM"}))
    with pytest.raises(InputError, match="modules_to_save: it holds whole layers"):
        merge(adapter, tmp_path / "merged")


def test_an_adapter_without_its_head_is_not_merged(finished, tmp_path):
    adapter = tmp_path / "adapter"
    shutil.copytree(finished[0] / "adapter", adapter, ignore=shutil.ignore_patterns("manifest.json"))
    tensors = {name: value for name, value in adapter_tensors(tmp_path).items() if "classifier" not in name}
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"base_model\.model\.classifier\.(weight|bias) is missing"):
        merge(adapter, tmp_path / "merged")


def test_positions_behind_the_padding_id_are_not_counted(home):
    assert longest_input(classifier(home / "bert")) == 40
    assert longest_input(classifier(home / "roberta")) == 39


# --- rows -------------------------------------------------------------------------------------------------------------


def encoded(its_tokenizer, text, pair=None, max_length=24, overlong="truncate"):
    (one,) = TextEncoder(its_tokenizer, max_length, overlong)([LabelledText(text, pair, 1)])
    return one


def tokens(its_tokenizer, one):
    return its_tokenizer.convert_ids_to_tokens(list(one.input_ids))


def test_pairs_are_separated_as_the_tokenizer_does_it():
    bert, roberta = tokenizer(), tokenizer(separators=2, token_types=False)
    one = encoded(bert, "a dull film", "what a film")
    assert tokens(bert, one) == ["[CLS]", "a", "dull", "film", "[SEP]", "what", "a", "film", "[SEP]"]
    assert list(one.token_types) == [0] * 5 + [1] * 4
    assert list(one.labels) == [1]
    other = encoded(roberta, "a dull film", "what a film")
    assert tokens(roberta, other)[4:6] == ["[SEP]", "[SEP]"]
    assert other.token_types is None


def test_the_longer_text_is_cut_first_and_special_tokens_stay():
    bert = tokenizer()
    one = encoded(bert, "a dull film", "what a lovely film from start to end", max_length=9)
    assert tokens(bert, one) == ["[CLS]", "a", "dull", "film", "[SEP]", "what", "a", "lovely", "[SEP]"]
    assert one.truncated and len(one.token_types) == 9
    assert encoded(bert, "a dull film", "what a lovely film", max_length=8, overlong="drop") is None


def test_a_batch_has_one_label_a_row_and_is_padded_on_the_right():
    rows = [
        {"input_ids": [2, 7, 3], "token_type_ids": [0, 0, 0], "labels": [1]},
        {"input_ids": [2, 7, 3, 8, 3], "token_type_ids": [0, 0, 0, 1, 1], "labels": [0]},
    ]
    batch = LabelCollator(0)(rows)
    assert batch["input_ids"].tolist() == [[2, 7, 3, 0, 0], [2, 7, 3, 8, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]
    assert batch["labels"].tolist() == [1, 0]
    assert int(LabelCollator(0).supervised(batch["labels"])) == 2
    assert "token_type_ids" not in LabelCollator(0, token_types=False)(rows)


def test_a_pair_recipe_reads_two_columns(home, tmp_path):
    rows = [
        {"premise": text, "hypothesis": f"what a {word} plot", "label": 0} for text, _ in sentences() for word in GOOD
    ]
    write_rows(tmp_path / "pairs.jsonl", rows[:40])
    more = (f"data.train.path={tmp_path / 'pairs.jsonl'}", "data.prompt=premise", "data.prompt_pair=hypothesis")
    setup = opened(recipe_of(home / "bert.yaml", tmp_path / "run", *more, "data.eval=null", "data.holdout=8"))
    example = setup.data.train[0]
    assert example["input_ids"].count(3) == 2 and sum(example["token_type_ids"]) == 5
    assert setup.data.counts.train.supervised_tokens == 32
    assert setup.data.counts.train.labels == {"bad": 32, "good": 0}
    other = (*more[:2], "data.prompt_pair=premise2")
    with pytest.raises(InputError, match=r"data\.prompt_pair asks for the column 'premise2'"):
        opened(recipe_of(home / "bert.yaml", tmp_path / "run", *other, "data.eval=null"))


def test_token_types_and_labels_count_in_the_fingerprint(home, tmp_path):
    rows = [{"a": "a dull film", "b": "what a film", "label": 0}]
    prints = set()
    for label, separators, types in ((0, 1, True), (1, 1, True), (0, 2, False), (0, 1, False)):
        write_rows(tmp_path / "rows.jsonl", [{**rows[0], "label": label}] * 3)
        tokenizer(separators=separators, token_types=types).save_pretrained(tmp_path / "tokenizer")
        more = (f"data.train.path={tmp_path / 'rows.jsonl'}", "data.prompt=a", "data.prompt_pair=b", "data.eval=null")
        recipe = recipe_of(home / "bert.yaml", tmp_path / "run", *more, f"model.tokenizer={tmp_path / 'tokenizer'}")
        prints.add(opened(recipe).data.fingerprint)
    assert len(prints) == 4


def test_a_sample_shows_the_name_of_its_label(home, tmp_path):
    setup = opened(recipe_of(home / "bert.yaml", tmp_path))
    console = Console(width=100, record=True)
    console.print(sample_text(setup.tokenizer, setup.data.train))
    shown = console.export_text()
    assert "[CLS] a lovely film from start to end [SEP]" in shown
    assert "⟦good⟧" in shown
    assert "9 tokens · label 1 of 2 · " in shown


def test_a_template_of_ones_own_makes_the_text(tmp_path):
    data = DataSection(
        train=SourceSection(path="x.jsonl"), template="{topic}: {prompt}", prompt="text", response="y", choices=CHOICES
    )
    fmt = format_for(data, tokenizer(), head="classification")
    assert fmt.labelled({"topic": "sea", "text": "cold", "y": 0}) == LabelledText("sea: cold", None, 0)
    assert list(fmt.columns) == ["topic", "text", "y"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"sentence": "a film", "label": 2}, "column 'label' is 2; data.choices has the numbers 0 to 1"),
        ({"sentence": "a film", "label": -1}, "column 'label' is -1"),
        ({"sentence": "a film", "label": "great"}, "must be the number or the name of a choice, not the text 'great'"),
        ({"sentence": " ", "label": 1}, "column 'sentence' is only white space: there is nothing to classify"),
        ({"sentence": 5, "label": 1}, "column 'sentence' must be text, not the number 5"),
        ({"label": 1}, "column 'sentence' is missing"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(home, tmp_path, row, reason):
    write_rows(tmp_path / "rows.jsonl", [{"sentence": "a film", "label": 0}, row])
    with pytest.raises(InputError) as raised:
        opened(recipe_of(home / "bert.yaml", tmp_path, f"data.train.path={tmp_path / 'rows.jsonl'}"))
    assert "rows.jsonl:2: " in str(raised.value) and reason in str(raised.value)


# --- wrong inputs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            ("data.format=chat", "data.prompt=prompt", "data.response=response", "data.choices=null"),
            "not conversations",
        ),
        (("data.choices=null",), "a classification head needs data.choices"),
        (("data.template=alpaca",), "alpaca asks for an answer in words"),
        (("data.prompt_pair=sentence",), "both texts of a pair come from the column 'sentence'"),
        (("model.head=language", "data.prompt_pair=other"), "pairs of texts are for classification"),
        (("model.quantization=nf4",), "a base in nf4 goes with head: language only"),
        (("model.head=regression",), "model.head"),
    ],
)
def test_settings_that_contradict_a_classification_head_are_refused(home, tmp_path, settings, sentence):
    with pytest.raises(InputError) as raised:
        recipe_of(home / "bert.yaml", tmp_path, *settings)
    assert sentence in str(raised.value)


def test_an_encoder_does_not_continue_texts(home, tmp_path):
    model = BertForMaskedLM.from_pretrained(home / "bert")
    model.save_pretrained(tmp_path / "masked")
    with pytest.raises(InputError, match=r"is an encoder \(BertForMaskedLM\), which cannot continue a text"):
        find_model(ModelSection(name=str(tmp_path / "masked")))
    find_model(ModelSection(name=str(tmp_path / "masked"), head="classification"))


def test_an_encoder_decoder_answers_in_words(t5, tmp_path):
    t5.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"give model\.head: language"):
        find_model(ModelSection(name=str(tmp_path), head="classification"))


def test_a_row_longer_than_the_model_s_positions_is_refused(home, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"sentence": "film " * 38, "label": 0}] * 8)
    more = (f"data.train.path={tmp_path / 'rows.jsonl'}", "data.max_length=64", "gora.steps=1")
    for kind, answer in (("bert", None), ("roberta", "the longest row has 40 tokens, but the model takes 39")):
        setup = opened(recipe_of(home / f"{kind}.yaml", tmp_path / kind, *more))
        if answer is None:
            load_base_model(setup)
        else:
            with pytest.raises(InputError, match=answer):
                load_base_model(setup)


def test_pairs_that_do_not_match_are_refused(home):
    with pytest.raises(InputError, match="2 first texts of pairs and 1 second"):
        class_logits(classifier(home / "bert"), tokenizer(), ["a", "b"], ["c"])


def test_a_model_folder_for_tests_has_no_head(tmp_path):
    write_model(tmp_path)
    assert not any("classifier" in name for name in load_file(tmp_path / "model.safetensors"))
