"""The images of the study: half of CIFAR-10's classes to learn first, the others and digits to fine-tune on."""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LEARNT, NEW = NAMES[::2], NAMES[1::2]
SETS = {"cifar": "five other classes", "digits": "digits"}


def write_images(given: argparse.Namespace) -> None:
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
