"""Runs of gora's own stages, several at a time on each GPU."""

from __future__ import annotations

import argparse
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import yaml


def parser_of(text: str) -> argparse.ArgumentParser:
    """Options that every script about rates has."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", default="", help="combinations whose names hold this")
    parser.add_argument("--workers", type=int, default=1, help="on each device")
    parser.add_argument("--devices", default="", help="numbers of GPUs, with commas between")
    return parser


def folders_of(models: list[str]) -> dict[str, str]:
    """Folders by name, of `--models`."""
    return dict(text.split("=", 1) for text in models)


def pool_of(workers: int, devices: str, *, muted: bool = True) -> ProcessPoolExecutor:
    """Processes that each see one GPU.

    Args:
        workers: on each device.
        devices: numbers of GPUs, with commas between.
        muted: whether what runs print is dropped.
    """
    context = multiprocessing.get_context("spawn")
    numbers, queue = devices.split(","), context.Queue()
    for number in numbers * workers:
        queue.put(number)
    return ProcessPoolExecutor(workers * len(numbers), context, initializer=_start, initargs=(queue, muted))


def _start(devices: Any, muted: bool) -> None:
    """Give a worker its GPU, before it knows of any."""
    os.environ["CUDA_VISIBLE_DEVICES"] = devices.get()
    os.environ["OMP_NUM_THREADS"] = "1"
    if muted:
        from gora.runtime.console import output

        output.mute()


def write_recipe(recipe: dict[str, Any], folder: str, rate: float | str) -> str:
    """Write the recipe of a run beside its folder.

    Returns:
        Its path.
    """
    path = Path(f"{folder}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**recipe, "train": {**recipe["train"], "learning_rate": rate}, "output": folder}))
    return str(path)
