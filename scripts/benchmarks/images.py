"""How long a GPU waits for images: ViT-B/16 with random weights on photos of 500 x 375 pixels, trained by gora.

    python scripts/benchmarks/images.py --work FOLDER --output images.json

The photos are drawn, and nearly as large as those of ImageNet (about 80 KB as JPEG). For each arithmetic the share of
the time in which training waited is that of the second half of the steps, with the workers that gora takes by itself;
what the same workers deliver when nothing is computed is measured before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

RECIPE = """\
preset: paper
model: {{name: {work}/vit, head: image-classification}}
data: {{format: image, train: {{path: {work}/photos}}, cache: {work}/rows, augment: crop}}
adapter: {{method: lora, targets: all-linear, rank: 8}}
train: {{epochs: 1000, max_steps: {steps}, batch_size: 64, micro_batch_size: 64, log_steps: 10, save_minutes: null}}
"""


def main() -> None:
    """Write photos and a model, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--photos", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--alone", type=int, default=40, help="steps of the workers alone")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    given = parser.parse_args()
    _write(given)
    alone = _alone(given)
    print("workers alone", alone, flush=True)
    found: dict[str, dict[str, object]] = {"alone": dict(alone)}
    for precision in given.precisions:
        found[precision] = _train(given, precision)
        print(precision, found[precision], flush=True)
        if given.output:
            given.output.write_text(json.dumps(found, indent=1))


def _write(given: argparse.Namespace) -> None:
    import torch
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    with ProcessPoolExecutor() as pool:
        list(pool.map(_photo, [given.work / "photos"] * given.photos, range(given.photos), chunksize=16))
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=given.width,
        num_hidden_layers=given.depth,
        num_attention_heads=given.width // 64,
        intermediate_size=4 * given.width,
    )
    ViTForImageClassification(config).save_pretrained(given.work / "vit")
    ViTImageProcessorPil().save_pretrained(given.work / "vit")
    sizes = [path.stat().st_size for path in (given.work / "photos").rglob("*.jpg")]
    print(f"photos     {len(sizes)} of {statistics.mean(sizes) / 1000:.0f} KB", flush=True)


def _photo(place: Path, number: int) -> None:
    import numpy as np
    from PIL import Image

    folder, noise = place / f"class-{number % 10}", np.random.default_rng(number)
    folder.mkdir(parents=True, exist_ok=True)
    coarse = Image.fromarray(noise.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((500, 375))
    picture = np.asarray(coarse) + noise.normal(0, 14, (375, 500, 3))
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=88)


def _alone(given: argparse.Namespace) -> dict[str, float]:
    """Images per second that the workers deliver."""
    from gora.recipe import load_recipe
    from gora.runs.context import RunContext
    from gora.training.batches import StepBatches, StepCollator, StepNumbers
    from gora.training.layout import StepLayout
    from gora.training.loader import IMAGE_WORKERS, step_loader
    from gora.training.step_rows import KeptSteps

    recipe = given.work / "recipe.yaml"
    recipe.write_text(RECIPE.format(work=given.work, steps=given.steps))
    context = RunContext.alone(load_recipe(str(recipe), []).recipe)
    layout = StepLayout(kind="none", size=64, longest=1, processes=1)
    batches = StepBatches(KeptSteps(context.data.train, 64, 0), layout, 0)
    count = min(IMAGE_WORKERS, len(os.sched_getaffinity(0)))
    numbers, collator = StepNumbers(given.alone), StepCollator(context.collator, False)
    loader = iter(step_loader(batches, numbers, collator, last=given.alone, workers=count, pin=False))
    for _ in range(count):
        next(loader)
    begin, left = time.perf_counter(), given.alone - count
    for _ in range(left):
        next(loader)
    return {"workers": count, "images_per_second": round(64 * left / (time.perf_counter() - begin), 1)}


def _train(given: argparse.Namespace, precision: str) -> dict[str, object]:
    import torch

    import gora.training.trainer as trainer
    from gora.recipe import load_recipe
    from gora.stages.train import train

    workers: list[int] = []
    choose = trainer.loader_workers

    def noting(*arguments: object) -> int:
        workers.append(choose(*arguments))  # type: ignore[arg-type]
        return workers[-1]

    trainer.loader_workers = noting  # type: ignore[assignment]
    recipe = given.work / "recipe.yaml"
    recipe.write_text(RECIPE.format(work=given.work, steps=given.steps))
    folder = given.work / f"run-{precision}"
    dtype = "float32" if precision == "fp32" else "bfloat16"
    settings = [f"output={folder}", f"train.precision={precision}", f"model.dtype={dtype}"]
    try:
        train(load_recipe(str(recipe), settings).recipe)
    finally:
        trainer.loader_workers = choose
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    laps = [line for line in lines if "waiting" in line and line["step"] > given.steps // 2]
    return {
        "images_per_second": round(statistics.mean(lap["tokens_per_second"] for lap in laps), 1),
        "waiting": round(statistics.mean(lap["waiting"] for lap in laps), 4),
        "most_waiting": max(lap["waiting"] for lap in laps),
        "workers": workers[-1],
        "cores": len(os.sched_getaffinity(0)),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


if __name__ == "__main__":
    main()
