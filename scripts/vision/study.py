"""Methods on images: a small ViT learns half of CIFAR-10's classes, and is fine-tuned on the others and on digits.

    python scripts/vision/study.py CIFAR OUTPUT [--digits digits.csv.gz]

CIFAR is a folder with train.parquet and test.parquet (columns image and label), OUTPUT takes models, runs and
results.json. Digits are scikit-learn's, 8 x 8 pixels. Every method is tried at three rates on one seed, and at the next
one beyond as long as the best, by the loss on rows that are held out of training, is at an edge; the best is run on
other seeds. The preset `auto` finds its own rate in every run. Accuracies are of images that nobody has trained on.
Several runs share each GPU, the better with NVIDIA's MPS. Finished runs in results.json are not repeated.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LEARNT, NEW = NAMES[::2], NAMES[1::2]
SETS = {"cifar": "five other classes", "digits": "digits"}
LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
AUTO = "gora auto"
"""GoRA as the preset has it, which finds its rate itself: known by the rate 0."""
GRADIENT = ("gora.init_a=gradient", "gora.gamma=auto", "gora.steps=auto", "train.loraplus_lr_ratio=1")
METHODS: dict[str, tuple[str, ...]] = {
    AUTO: ("adapter.method=gora",),
    "full": ("adapter.method=full",),
    "lora": ("adapter.method=lora",),
    "gora paper": ("adapter.method=gora", "gora.steps=64", "gora.micro_batch_size=8"),
    "dora": ("adapter.method=lora", "adapter.dora=true"),
    "lora+": ("adapter.method=lora+",),
    "lora-ga": ("adapter.method=lora-ga",),
    "gora, A from gradients": ("adapter.method=gora", "gora.micro_batch_size=8", *GRADIENT),
    "lora-pro": ("adapter.method=lora-pro",),
}
Result = dict[str, Any]
Job = tuple[str, str, float, int]
"""Set, method, rate and seed of a run."""


def main() -> None:
    """Pre-train, search rates, run seeds, print the table."""
    given = _arguments()
    given.output.mkdir(parents=True, exist_ok=True)
    _write_images(given)
    base = given.output / "base"
    if not (base / "model.safetensors").exists():
        _pretrain(given, base)
    results = Results(given.output / "results.json")
    results.note("settings", {name: str(value) for name, value in vars(given).items()})
    results.note("base", json.loads((base / "pretraining.json").read_text()))
    with Workers(given) as workers:
        workers.run([(kind, method) for method in given.methods for kind in SETS], results)
    print(table(results, given))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--digits", type=Path, help="scikit-learn's digits.csv.gz; its own without")
    parser.add_argument("--images", type=int, default=2500, help="of the new classes, to fine-tune on")
    parser.add_argument("--tests", type=int, default=5000, help="of the new classes, to test on")
    parser.add_argument("--pretraining", type=int, default=40, help="epochs on the first classes")
    parser.add_argument("--pretraining-images", type=int, default=25000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--rates", type=float, nargs="+", choices=LADDER, default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--each", type=int, default=6, help="runs at a time on each GPU")
    parser.add_argument("--set", dest="more", action="append", default=[], help="for all runs, as gora takes it")
    return parser.parse_args()


# --- images -----------------------------------------------------------------------------------------------------------


def _write_images(given: argparse.Namespace) -> None:
    """Parquet files with names as labels; digits as a folder of images by class."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for split, most in (("train", given.images), ("test", given.tests)):
        table = pq.read_table(given.cifar / f"{split}.parquet")
        rows = [row for row in table.to_pylist() if NAMES[row["label"]] in NEW][:most]
        labels = [NAMES[row["label"]] for row in rows]
        made = pa.table({"image": pa.array([row["image"] for row in rows]), "label": labels})
        pq.write_table(made, given.output / f"cifar-{split}.parquet")
    folder = given.output / "digits"
    if not folder.exists():
        _write_digits(given.digits, folder)


def _write_digits(file: Path | None, folder: Path) -> None:
    import numpy as np
    from PIL import Image

    if file is None:
        import sklearn.datasets

        file = Path(sklearn.datasets.__file__).parent / "data" / "digits.csv.gz"
    with gzip.open(file) as lines:
        rows = np.loadtxt(lines, delimiter=",")
    for number, row in enumerate(rows):
        split, label = "test" if number % 5 == 0 else "train", int(row[-1])
        place = folder / split / str(label)
        place.mkdir(parents=True, exist_ok=True)
        # Sixteen shades of grey.
        pixels = np.clip(row[:-1].reshape(8, 8) * 255 / 16, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number:04}.png")


# --- the base ---------------------------------------------------------------------------------------------------------


def _pretrain(given: argparse.Namespace, folder: Path) -> None:
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


# --- runs -------------------------------------------------------------------------------------------------------------


class Results:
    """What is known of every run; kept in a file after each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": []}

    @property
    def runs(self) -> list[Result]:
        """All of them."""
        runs: list[Result] = self.content["runs"]
        return runs

    def note(self, name: str, value: Any) -> None:
        """Keep something beside the runs."""
        self.content[name] = value

    def add(self, result: Result) -> None:
        """Keep one more."""
        self.runs.append(result)
        self._path.write_text(json.dumps(self.content, indent=1))

    def has(self, job: Job) -> bool:
        """Whether it is known."""
        return any((run["set"], run["method"], run["rate"], run["seed"]) == job for run in self.runs)

    def losses(self, kind: str, method: str) -> dict[float, float]:
        """Loss on the rows held out by rate, on the first seed; infinite where a run has failed."""
        return {
            run["rate"]: run["loss"] if run.get("loss") is not None else math.inf
            for run in self.runs
            if (run["set"], run["method"], run["seed"]) == (kind, method, 0)
        }

    def best(self, kind: str, method: str) -> float | None:
        """The rate with the least of them; 0 for what finds its own."""
        if method == AUTO:
            return 0.0
        tried = self.losses(kind, method)
        return min(tried, key=tried.__getitem__) if tried else None

    def next(self, kind: str, method: str, given: argparse.Namespace) -> list[Job]:
        """The runs that are known to be needed for a method on a set, as far as results go."""
        if method != AUTO:
            tried = self.losses(kind, method)
            if missing := [rate for rate in given.rates if rate not in tried]:
                return [(kind, method, rate, 0) for rate in missing]
            best, places = self.best(kind, method), sorted(LADDER.index(rate) for rate in tried)
            beyond = {LADDER[places[0]]: places[0] - 1, LADDER[places[-1]]: places[-1] + 1}.get(best or 0.0, -1)
            if 0 <= beyond < len(LADDER):
                return [(kind, method, LADDER[beyond], 0)]
        jobs = [(kind, method, self.best(kind, method) or 0.0, seed) for seed in range(1, given.seeds + 1)]
        return [job for job in jobs if not self.has(job)]


class Workers:
    """Processes that each hold one GPU's share."""

    def __init__(self, given: argparse.Namespace) -> None:
        gpus = _gpus()
        context = multiprocessing.get_context("spawn")
        places = context.Queue()
        count = given.each * max(gpus, 1)
        names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        for number in range(count):
            places.put(names[number % gpus] if gpus else "")
        logs = given.output / "logs"
        logs.mkdir(exist_ok=True)
        self._given = given
        self._pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(places, str(logs)))

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, pairs: list[tuple[str, str]], results: Results) -> None:
        """Do what is not done for these sets and methods; what comes next follows from what has come in."""
        begun: set[Job] = set()
        running: set[Future[Result]] = set()

        def begin(kind: str, method: str) -> None:
            for job in results.next(kind, method, self._given):
                if job not in begun:
                    begun.add(job)
                    running.add(self._pool.submit(_do, job, self._given))

        for pair in pairs:
            begin(*pair)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()
                results.add(result)
                shown = [str(result.get(key)) for key in ("set", "method", "rate", "seed", "loss", "accuracy", "error")]
                print(f"{len(results.runs)}, {len(running)} begun:", *shown, flush=True)
                begin(result["set"], result["method"])


def _gpus() -> int:
    # Asked for in a process of its own: this one forks nothing, and its children choose their GPU.
    import torch

    return torch.cuda.device_count()


def _begin(places: Any, logs: str) -> None:
    gpu = places.get()
    if gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    log = open(f"{logs}/{os.getpid()}.log", "w", buffering=1)  # noqa: SIM115 - for as long as the process
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)


def _do(job: Job, given: argparse.Namespace) -> Result:
    kind, method, rate, seed = job
    result: Result = {"set": kind, "method": method, "rate": rate, "seed": seed}
    begin = time.monotonic()
    try:
        result |= _measured(kind, method, rate, seed, given)
    except Exception as error:  # one run of many
        result["error"] = f"{type(error).__name__}: {error}"[:300]
    return {**result, "seconds": round(time.monotonic() - begin, 1)}


def _measured(kind: str, method: str, rate: float, seed: int, given: argparse.Namespace) -> Result:
    import gora.training.trainer as trainer
    from gora.evaluation.task import Options
    from gora.recipe import load_recipe
    from gora.stages.evaluate import Job, evaluate, task_jobs
    from gora.stages.run import run

    # Many runs share the cores.
    trainer.loader_workers = lambda *_: 1 if sys.platform == "linux" and os.environ.get("CUDA_VISIBLE_DEVICES") else 0
    folder = given.output / "runs" / f"{kind}-{method.replace(' ', '-')}-{rate:g}-{seed}"
    train = given.output / ("cifar-train.parquet" if kind == "cifar" else "digits/train")
    test = given.output / ("cifar-test.parquet" if kind == "cifar" else "digits/test")
    recipe = given.output / f"{kind}-{'auto' if method == AUTO else 'paper'}.yaml"
    settings = [
        *METHODS[method],
        *([f"train.learning_rate={rate}"] if rate else []),
        f"seed={seed}",
        f"output={folder}",
        f"train.epochs={given.epochs}",
        *given.more,
    ]
    if not recipe.exists():
        aside = recipe.with_suffix(f".{os.getpid()}")
        known = {"base": given.output / "base", "train": train, "rows": given.output / "rows"}
        aside.write_text((AUTO_RECIPE if method == AUTO else RECIPE).format(**known))
        aside.replace(recipe)
    run(load_recipe(str(recipe), settings).recipe, mode="overwrite" if folder.exists() else "new")
    tasks = task_jobs(["image"], Options(folder=Path(), data=str(test)))
    scores = evaluate(str(folder), Job(tasks=tasks, batch_size=256))["image"]["trained"]
    found = json.loads((folder / "results.json").read_text())
    ran = load_recipe(str(folder / "recipe.yaml"), []).recipe
    return {
        "rate_found": ran.train.learning_rate,
        "loss": found["loss"]["final"],
        "accuracy": scores.metrics["accuracy"],
        "trainable": found["trainable_parameters"],
        "training_seconds": found["seconds"],
        "versions": found["versions"],
    }


AUTO_RECIPE = """\
model: {{name: {base}, head: image-classification, dtype: float32}}
data:
  format: image
  train: {{path: {train}}}
  holdout: 200
  cache: {rows}
train: {{precision: fp32, save_minutes: null}}
evaluation: {{micro_batch_size: 200}}
"""
RECIPE = """\
preset: paper
model: {{name: {base}, head: image-classification, dtype: float32}}
data:
  format: image
  train: {{path: {train}}}
  holdout: 200
  cache: {rows}
adapter: {{targets: all-linear, rank: 8, alpha: 16}}
train:
  {{batch_size: 64, micro_batch_size: 64, weight_decay: 0.0, min_lr_ratio: 0.0, precision: fp32, save_minutes: null}}
evaluation: {{micro_batch_size: 200}}
"""


# --- the table --------------------------------------------------------------------------------------------------------


def table(results: Results, given: argparse.Namespace) -> str:
    """Mean accuracy with its standard error, and the rate, by method and set."""
    lines = ["| method | trained | " + " | ".join(f"{title} | rate" for title in SETS.values()) + " |"]
    lines.append("|---" * (2 + 2 * len(SETS)) + "|")
    for method in given.methods:
        cells, trainable = [], 0
        for kind in SETS:
            rate = results.best(kind, method)
            runs = [
                run
                for run in results.runs
                if (run["set"], run["method"], run["rate"]) == (kind, method, rate)
                and run["seed"]
                and "accuracy" in run
            ]
            values = [100 * run["accuracy"] for run in runs]
            trainable = max([trainable, *(run["trainable"] for run in runs)])
            if not values:
                cells += ["-", "-"]
                continue
            alone = len(values) == 1
            error = ", one seed" if alone else f" ± {statistics.stdev(values) / math.sqrt(len(values)):.2f}"
            rates = sorted({round(run["rate_found"], 5) for run in runs})
            cells += [
                f"{statistics.mean(values):.2f}{error}",
                " to ".join(f"{each:g}" for each in rates[:: max(1, len(rates) - 1)]),
            ]
        lines.append(f"| {method} | {trainable:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
