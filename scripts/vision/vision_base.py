"""The base model of the study: a small ViT that has learnt five classes."""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from pathlib import Path

from vision_sets import LEARNT, NAMES


def pretrain(given: argparse.Namespace, folder: Path) -> None:
    """A ViT of 4 x 4 patches on the first classes, with shifts and flips; the last fifth tells how well it learnt."""
    import numpy as np
    import pyarrow.parquet as pq
    import torch
    from PIL import Image
    from torch.nn.functional import cross_entropy, pad
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    def read(name: str, most: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = pq.read_table(given.cifar / name).to_pylist()
        rows = [row for row in rows if NAMES[row["label"]] in LEARNT][:most]
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")) for row in rows])
        labels = torch.tensor([LEARNT.index(NAMES[row["label"]]) for row in rows])
        return (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1).to(device), labels.to(device)

    begin = time.monotonic()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, labels = read("train.parquet", given.pretraining_images)
    config = ViTConfig(
        hidden_size=given.width,
        num_hidden_layers=given.depth,
        num_attention_heads=given.width // 64 or 1,
        intermediate_size=4 * given.width,
        image_size=32,
        patch_size=4,
        id2label=dict(enumerate(LEARNT)),
        label2id={name: number for number, name in enumerate(LEARNT)},
    )
    model = ViTForImageClassification(config).to(device)
    batch = min(512, len(images))
    steps = math.ceil(given.pretraining * len(images) / batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        chosen = torch.randint(len(images), (batch,), device=device)
        some = images[chosen]
        some = torch.where((torch.rand(batch, 1, 1, 1, device=device) < 0.5), some.flip(3), some)
        down, right = (int(torch.randint(9, ())) for _ in range(2))
        some = pad(some, (4, 4, 4, 4))[:, :, down : down + 32, right : right + 32]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(pixel_values=some).logits
        loss = cross_entropy(logits.float(), labels[chosen], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    tests, truth = read("test.parquet", 5000)
    with torch.no_grad():
        found = torch.cat([model(pixel_values=part).logits.argmax(1) for part in tests.split(512)])
    told = {
        "classes": LEARNT,
        "parameters": model.num_parameters(),
        "steps": steps,
        "accuracy": (found == truth).float().mean().item(),
        "seconds": round(time.monotonic() - begin, 1),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }
    model.cpu().save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    (folder / "pretraining.json").write_text(json.dumps(told))
    print("base      ", told, flush=True)
