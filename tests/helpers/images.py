"""Tiny vision models with random weights, and pictures whose class shows in their colour."""

import io
import random

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

SIZE = 32
COLOURS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 40, 40)}
CLASSES = sorted(COLOURS)
BLOCK = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SQUARE = {"height": SIZE, "width": SIZE}
WORDS = ("a", "photo", "of", "the", "picture", "colour", *CLASSES, ".")
TARGETS = 12


def picture(name, seed, size=(40, 36)):
    """A noisy picture of a class's colour."""
    noise = np.random.default_rng(seed).normal(0, 40, (size[1], size[0], 3))
    return Image.fromarray((np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8))


def encoded(image, kind="PNG", **settings):
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def write_folder(path, per_class, seed=0):
    """A folder with a folder for each class."""
    for number, name in enumerate(CLASSES):
        folder = path / name
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(per_class):
            (folder / f"{index:03}.png").write_bytes(encoded(picture(name, seed + 1000 * number + index)))
    return path


def tokenizer():
    """Words as tokens, with the ends that CLIP pools at."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(special + list(WORDS))}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=16,
    )


def vit_config(**more):
    return ViTConfig(**BLOCK, image_size=SIZE, patch_size=8, initializer_range=0.2, **more)


def make_model(kind):
    """A tiny model with random weights, float32, and its image processor."""
    torch.manual_seed(0)
    text = {**BLOCK, "num_hidden_layers": 1, "vocab_size": 16, "max_position_embeddings": 16}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**BLOCK, "image_size": SIZE, "patch_size": 8}
    if kind == "vit":
        return ViTForImageClassification(vit_config()), ViTImageProcessorPil(size=SQUARE)
    if kind == "swin":
        config = SwinConfig(image_size=SIZE, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)
        return SwinForImageClassification(config), ViTImageProcessorPil(size=SQUARE)
    if kind == "convnext":
        config = ConvNextConfig(hidden_sizes=[16, 24, 32, 32], depths=[1, 1, 1, 1], layer_scale_init_value=1.0)
        processor = ConvNextImageProcessorPil(size={"shortest_edge": SIZE}, crop_pct=0.875)
        return ConvNextForImageClassification(config), processor
    if kind == "clip":
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24, initializer_factor=4.0)
        processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=SQUARE)
        return CLIPModel(config), processor
    config = SiglipConfig(text_config=text, vision_config=vision)
    return SiglipModel(config), SiglipImageProcessorPil(size=SQUARE)


def write_model(path, kind):
    """A folder with a tiny model, its image processor and, of two towers, a tokenizer."""
    model, processor = make_model(kind)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    if kind in ("clip", "siglip"):
        tokenizer().save_pretrained(path)
    return path


def head_of(kind):
    return "image-zero-shot" if kind in ("clip", "siglip") else "image-classification"


def write_recipe(home, kind, *, name=None, method="gora", rate=1e-3):
    """A recipe of a few steps on folders of images; models and images are made once."""
    if not (home / kind).exists():
        write_model(home / kind, kind)
    if not (home / "train").exists():
        write_folder(home / "train", 12)
        write_folder(home / "test", 4, seed=500)
    path = home / f"{name or kind}.yaml"
    path.write_text(f"""\
preset: paper
model: {{name: {home / kind}, head: {head_of(kind)}}}
data:
  format: image
  train: {{path: {home / "train"}}}
  eval: {{path: {home / "test"}}}
  cache: {home / "rows"}
adapter: {{method: {method}, targets: all-linear, rank: 4, alpha: 8}}
gora: {{steps: 4, micro_batch_size: 4}}
train: {{epochs: 3, batch_size: 12, micro_batch_size: 6, learning_rate: {rate}, log_steps: 1, weight_decay: 0.0}}
output: {home / "run"}
seed: 7
""")
    return path


def shuffled(items, seed=0):
    items = list(items)
    random.Random(seed).shuffle(items)
    return items
