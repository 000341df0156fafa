"""Image heads from a folder of images to an ordinary model: the whole chain, its gradients, resume, engines."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoTokenizer,
    CLIPModel,
    TrainerCallback,
)

import gora.training.trainer as trainer_module
from gora.errors import Interrupted
from gora.gradients.archive import ArchivedStatistics
from gora.models.vision import in_vision
from gora.plan import read_plan
from gora.planning.micro_batches import MicroBatches
from gora.recipe import load_recipe
from gora.runs.base_model import load_base_model
from gora.stages.precompute import precompute
from gora.stages.run import run
from gora.stages.train import train
from tests.conftest import ROOT, opened
from tests.helpers.callbacks import call_too
from tests.helpers.cards import loaded_as_told
from tests.helpers.images import CLASSES, picture, write_recipe

KINDS = ("vit", "clip", "swin")


def recipe_of(path, output, *more):
    return load_recipe(str(path), [f"output={output}", *more]).recipe


def lines(folder):
    kept = ("step", "loss", "eval_loss", "rows", "learning_rate_a")
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in kept if key in line} for line in found]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Recipes, models and images."""
    folder = tmp_path_factory.mktemp("images")
    for kind in KINDS:
        write_recipe(folder, kind)
    return folder


@pytest.fixture(scope="module")
def finished(home):
    """A run of each kind of head, merged."""
    for kind in ("vit", "clip"):
        recipe = recipe_of(home / f"{kind}.yaml", home / f"run-{kind}")
        run(recipe, merge_too=True)
    return home


def pixels_of(folder, picture_):
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return processor(picture_, return_tensors="pt")["pixel_values"]


# --- the whole chain --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_the_loss_falls_and_new_images_are_recognised(finished, kind, gora_here):
    folder = finished / f"run-{kind}"
    losses = json.loads((folder / "results.json").read_text())["loss"]
    assert losses["final"] < 0.5 * losses["base"]
    code, printed, _ = gora_here("eval", folder, "--task", "image", "--both", cwd=finished)
    assert code == 0
    tasks = json.loads((folder / "results.json").read_text())["tasks"]["image"]
    assert tasks["trained"]["metrics"]["accuracy"] == 1.0 > tasks["base"]["metrics"]["accuracy"]
    assert tasks["trained"]["accuracy_by_class"] == dict.fromkeys(CLASSES, 1.0)
    assert "the least accurate" in printed
    with Image.open(folder / "evaluation" / "image-trained" / "confusion.png") as shown:
        assert shown.size[0] > 100
    rows = (folder / "evaluation" / "image-trained" / "rows.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["row"].endswith("test/blue/000.png")


def test_a_classifier_loads_with_plain_libraries_to_the_same_logits(finished):
    folder = finished / "run-vit"
    merged = AutoModelForImageClassification.from_pretrained(folder / "merged").eval()
    assert merged.config.id2label == dict(enumerate(CLASSES))
    base = AutoModelForImageClassification.from_pretrained(finished / "vit", num_labels=3, ignore_mismatched_sizes=True)
    adapted = PeftModel.from_pretrained(base, folder / "adapter").eval()
    pixels = pixels_of(folder / "adapter", picture("red", 99))
    with torch.no_grad():
        expected, found = adapted(pixel_values=pixels).logits, merged(pixel_values=pixels).logits
    assert (expected - found).abs().max() < 1e-5 < expected.abs().max()
    assert merged.config.id2label[int(found.argmax())] == "red"
    told, processor = loaded_as_told(folder / "adapter")
    with torch.no_grad():
        logits = told(**processor(picture("red", 99), return_tensors="pt")).logits
    assert (logits - expected).abs().max() < 1e-2 * expected.abs().max()
    assert json.loads((folder / "adapter" / "gora.json").read_text())["labels"] == CLASSES


def test_a_zero_shot_classifier_loads_as_a_plain_clip_to_the_same_logits(finished):
    folder = finished / "run-clip"
    recipe = recipe_of(finished / "clip.yaml", folder)
    context = opened(recipe)
    ours = PeftModel.from_pretrained(load_base_model(context), folder / "adapter").eval()
    batch = context.collator(context.data.eval.take(range(12)))
    assert batch["pixel_values"].dtype == torch.uint8
    pixels = context.processor.scaled(batch["pixel_values"])
    texts = AutoTokenizer.from_pretrained(folder / "adapter")(
        [f"a photo of a {name}." for name in CLASSES], return_tensors="pt", padding=True
    )
    merged = CLIPModel.from_pretrained(folder / "merged").eval()
    adapted = PeftModel.from_pretrained(CLIPModel.from_pretrained(finished / "clip"), folder / "adapter").eval()
    with torch.no_grad():
        expected = ours(pixel_values=batch["pixel_values"]).logits
        for other in (merged, adapted):
            found = other(pixel_values=pixels, **texts).logits_per_image
            assert (expected - found).abs().max() < 1e-4 < expected.abs().max()
    assert (expected.argmax(dim=1) == batch["labels"]).all()
    before, after = load_file(finished / "clip" / "model.safetensors"), load_file(folder / "merged/model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 12
    assert all(name.startswith("vision_model.encoder.") for name in changed)


def test_the_classes_of_a_zero_shot_classifier_are_means_of_sentences(home):
    both = "data.class_prompts=['a photo of a {class}.', 'the colour {class}']"
    context = opened(recipe_of(home / "clip.yaml", home / "unused", both))
    model = load_base_model(context)
    plain = CLIPModel.from_pretrained(home / "clip").eval()
    tokenizer = AutoTokenizer.from_pretrained(home / "clip")
    rows = []
    for name in CLASSES:
        embeddings = []
        for text in (f"a photo of a {name}.", f"the colour {name}"):
            found = plain.get_text_features(**tokenizer(text, return_tensors="pt")).pooler_output[0]
            embeddings.append(found / found.norm())
        mean = torch.stack(embeddings).mean(dim=0)
        rows.append(mean / mean.norm())
    assert (model.class_embeddings - torch.stack(rows)).abs().max() < 1e-5


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "clip", "swin"])
def test_mean_gradients_are_those_of_autograd(home, kind):
    recipe = recipe_of(home / f"{kind}.yaml", home / f"gradients-{kind}")
    precompute(recipe, keep="fp32")
    plan = read_plan(home / f"gradients-{kind}" / "plan.safetensors")
    kept = ArchivedStatistics(home / f"gradients-{kind}" / "gradients")
    context = opened(recipe)
    model = load_base_model(context)
    batches = MicroBatches(context)
    layers = {module.name: model.get_submodule(module.name) for module in plan.modules}
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    for index in range(batches.steps):
        batch = batches[index]
        logits = model(pixel_values=batch["pixel_values"]).logits
        (cross_entropy(logits, batch["labels"]) / batches.steps).backward()
    assert len(layers) >= 12
    for name, layer in layers.items():
        expected = layer.weight.grad
        difference = (kept._read(name) - expected).norm() / expected.norm()
        assert difference < 1e-6, name
    if kind == "clip":
        assert all(map(in_vision(model), layers))


def test_what_is_drawn_of_a_head_is_the_same_at_every_load(home):
    recipe = recipe_of(home / "vit.yaml", home / "unused")
    one, other = (load_base_model(opened(recipe)).classifier.weight for _ in range(2))
    assert torch.equal(one, other)
    assert one.shape == (3, 32)


# --- resume -----------------------------------------------------------------------------------------------------------


class SignalAt(TrainerCallback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("augment", "workers"), [("none", 0), ("crop", 2)])
def test_a_resumed_run_sees_the_same_pixels_and_ends_with_the_same_adapter(home, augment, workers, monkeypatch):
    more = [f"data.augment={augment}", "train.epochs=2", "adapter.method=lora"]
    whole, broken = (home / f"{name}-{augment}" for name in ("whole", "broken"))
    train(recipe_of(home / "vit.yaml", whole, *more))
    monkeypatch.setattr(trainer_module, "loader_workers", lambda *_: workers)
    recipe = recipe_of(home / "vit.yaml", broken, *more)
    with monkeypatch.context() as patch:
        call_too(patch, SignalAt(4))
        with pytest.raises(Interrupted, match="checkpoint-4 holds step 4 of 6"):
            train(recipe)
    train(recipe, mode="resume")
    expected, found = (load_file(each / "adapter" / "adapter_model.safetensors") for each in (whole, broken))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert lines(whole) == lines(broken)
    assert len({line["rows"] for line in lines(whole) if "rows" in line}) == 6


def test_augmentation_changes_training(home):
    ends = [load_file(home / f"whole-{kind}" / "adapter" / "adapter_model.safetensors") for kind in ("none", "crop")]
    assert any(not torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


# --- several processes ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "engine"), [("vit", "ddp"), ("vit", "zero2"), ("vit", "zero3"), ("clip", "zero3")])
def test_two_processes_train_on_images_as_one(home, kind, engine):
    settings = ["train.micro_batch_size=3", "adapter.method=lora", "train.epochs=2", "data.augment=flip"]
    alone, together = home / f"alone-{kind}-{engine}", home / f"together-{kind}-{engine}"
    train(recipe_of(home / f"{kind}.yaml", alone, *settings))
    overrides = [
        part for each in (*settings, f"output={together}", f"distributed={engine}") for part in ("--set", each)
    ]
    command = [sys.executable, "-m", "gora", "train", str(home / f"{kind}.yaml"), *overrides, "--processes", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = lines(alone), lines(together)
    assert [line.get("rows") for line in one] == [line.get("rows") for line in two]
    losses = [[line.get("loss", line.get("eval_loss")) for line in each] for each in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    expected, found = (load_file(each / "adapter" / "adapter_model.safetensors") for each in (alone, together))
    assert expected.keys() == found.keys()
