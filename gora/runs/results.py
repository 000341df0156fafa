"""Where figures are kept, and with what they were made."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from gora import __version__
from gora.files import write_json


def record(path: Path, task: str, side: str, result: Mapping[str, Any]) -> None:
    """Add a result to the file; what it says of other tasks and of training stays."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    content.setdefault("tasks", {}).setdefault(task, {})[side] = result
    write_json(path, content)


def read_results(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """By task and side what was recorded; empty where nothing was."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8")).get("tasks", {})
    return found


def versions() -> dict[str, str]:
    """Of what computes, and the name of the device."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "gora": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "device": device,
    }
