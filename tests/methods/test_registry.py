"""Methods find their way from one file and one record into recipes, training and documentation."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from gora.errors import GoraError
from gora.methods import METHODS, by_name
from gora.methods.base import Method
from gora.methods.lora import Lora
from gora.recipe.method_facts import METHOD_FACTS
from tests.conftest import ROOT, TINY

sys.path.insert(0, str(ROOT / "scripts" / "docs"))

import methods_table

SETTINGS = (
    "adapter.method=loha",
    "data.train.max_rows=32",
    "data.eval.max_rows=4",
    "data.max_length=96",
    "train.micro_batch_size=2",
    "train.batch_size=4",
    "train.max_steps=3",
    "train.learning_rate=1e-2",
)


def package_with(folder, record, file):
    """A copy of gora with one file and one record more, and nothing else."""
    package = shutil.copytree(ROOT / "gora", folder / "gora", ignore=shutil.ignore_patterns("__pycache__", "assets"))
    (package / "assets").mkdir()
    (package / "assets" / "__init__.py").write_text((ROOT / "gora" / "assets" / "__init__.py").read_text())
    for kind in ("models", "data", "judges"):
        (package / "assets" / kind).symlink_to(ROOT / "gora" / "assets" / kind)
    for kind in ("recipes", "configs"):
        (package / "assets" / kind).symlink_to(ROOT / kind)
    (package / "methods" / "another.py").write_text(file)
    facts = package / "recipe" / "method_facts.py"
    before, end, after = facts.read_text().partition("\n)\n\nMETHOD_NAMES")
    facts.write_text(f"{before}\n{record.rstrip()},{end}{after}")
    return package


def test_the_method_that_the_documentation_adds_trains_through_the_recipe(tmp_path):
    page = (ROOT / "docs" / "methods.md").read_text()
    record, file = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    package_with(tmp_path, record, file)
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    command = [sys.executable, "-m", "gora", "run", "quickstart", *settings, "--set", f"output={tmp_path / 'run'}"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    adapter = tmp_path / "run" / "adapter"
    assert json.loads((adapter / "gora.json").read_text())["method"] == "loha"
    assert json.loads((adapter / "adapter_config.json").read_text())["peft_type"] == "LOHA"
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
        before = base(input_ids=ids).logits
        after = PeftModel.from_pretrained(base, adapter).eval()(input_ids=ids).logits
    assert (after - before).abs().max() > 1e-4 * before.abs().max()


def test_a_record_without_a_class_and_two_classes_of_one_name_are_refused():
    classes = [type(method) for method in METHODS.values()]
    names = [*METHODS, "new", "newer"]
    with pytest.raises(GoraError, match=r"METHOD_FACTS has 'new', 'newer', but no class in gora\.methods has"):
        by_name(classes, names)
    twin = type("Twin", (Method,), {"name": "lora"})
    with pytest.raises(GoraError, match=r"'lora' is defined twice, in gora\.methods\.lora and test"):
        by_name([*classes, twin], [*METHODS])


def test_a_class_without_a_record_and_a_fact_that_is_said_twice_are_refused():
    with pytest.raises(GoraError, match="the method 'new' has no record in METHOD_FACTS"):
        type("New", (Lora,), {"name": "new"})
    with pytest.raises(GoraError, match="needs_plan is said in METHOD_FACTS"):
        type("Again", (Lora,), {"name": "lora", "needs_plan": True})


def test_every_method_has_the_facts_of_its_own_record():
    for facts in METHOD_FACTS:
        method = METHODS[facts.name]
        assert {name: getattr(method, name) for name in vars(facts)} == vars(facts)
    papers = [facts.paper for facts in METHOD_FACTS if facts.paper]
    # Full fine-tuning and PEFT's variant of LoRA-GA have none of their own.
    assert len(papers) == len(set(papers)) == len(METHODS) - 2
    assert all(re.fullmatch(r"\d{4}\.\d{5}", paper) for paper in papers)


def test_the_table_of_the_documentation_is_written_from_the_methods():
    page = methods_table.PAGE.read_text()
    assert methods_table.with_table(page) == page
    line = next(line for line in page.splitlines() if line.startswith("| `lora-pro` |"))
    assert "2407.18242" in line
    assert line.endswith("| x 1 |  |  | `ddp` | plain LoRA |")
