"""The how-tos followed word by word: what they add to a copy of the package works there."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

USE = """
import json, sys
from pathlib import Path
import gora
from gora.evaluation.registry import TASKS
from gora.evaluation.task import Options
from gora.runs.context import RunContext

folder = Path(sys.argv[1])

class Subject:
    converses = True
    def ask(self, conversations, sampling):
        return [["No, it is not."], ["That is true"], ["Perhaps"]]

scores = TASKS["yes-no"].evaluate(Subject(), Options(folder=folder, data=str(folder / "questions.jsonl")))
settings = {
    "data.train.path": str(folder / "rows.jsonl"), "data.eval": None, "data.format": "lines", "data.text": "talk",
    "data.prompt": "prompt", "data.response": "response", "data.template": "plain", "evaluation.steps": None,
    "gora.steps": 1, "train.max_steps": 1, "train.batch_size": 2, "train.micro_batch_size": 2,
    "train.learning_rate": 1e-3, "output": str(folder / "run"),
}
recipe = gora.load_recipe("quickstart", settings)
context = RunContext.alone(recipe)
row = context.data.train[0]
trained = [token for token, label in zip(row["input_ids"], row["labels"]) if label != -100]
gora.run(recipe)
print(json.dumps({"scores": scores.metrics, "said": [r["said"] for r in scores.rows],
                  "trained": context.tokenizer.decode(trained, skip_special_tokens=True)}))
"""


def copy_of_gora(folder):
    """The package without what ships, which is linked."""
    package = shutil.copytree(ROOT / "gora", folder / "gora", ignore=shutil.ignore_patterns("__pycache__", "assets"))
    (package / "assets").mkdir()
    shutil.copy(ROOT / "gora" / "assets" / "__init__.py", package / "assets")
    for kind in ("models", "data", "judges"):
        (package / "assets" / kind).symlink_to(ROOT / "gora" / "assets" / kind)
    for kind in ("recipes", "configs"):
        (package / "assets" / kind).symlink_to(ROOT / kind)
    return package


def follow(page, folder):
    """Write the files of a page and apply its patches."""
    text = (ROOT / "docs" / page).read_text()
    for name, content in re.findall(r'```python title="([^"]+)"\n(.*?)```', text, re.DOTALL):
        assert not (folder / name).exists()
        (folder / name).write_text(content)
    patches = re.findall(r"```diff\n(.*?)```", text, re.DOTALL)
    assert patches
    for patch in patches:
        done = subprocess.run(["patch", "-p1"], cwd=folder, input=patch, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{page}: a patch no longer fits: {done.stdout}{done.stderr}"
    for command in re.findall(r"^sed -i .*$", text, re.MULTILINE):
        subprocess.run(["bash", "-c", command], cwd=folder, check=True)


@pytest.mark.skipif(shutil.which("patch") is None, reason="the program patch is not installed")
def test_a_task_and_a_data_format_that_the_documentation_adds_work(tmp_path):
    copy_of_gora(tmp_path)
    for page in ("add-task.md", "add-format.md"):
        follow(page, tmp_path)
    answers = (False, True, True)
    rows = [{"question": f"is {index} even", "answer": answer} for index, answer in enumerate(answers)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"talk": "hello\ngood day\nbye\nsee you"}) + "\n" + '{"talk": "a\\nb"}\n'
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", USE, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads(done.stdout.splitlines()[-1])
    assert made["scores"] == {"accuracy": pytest.approx(2 / 3)} and made["said"] == [False, True, None]
    assert made["trained"].split("\n")[:2] == ["good day", "see you"]
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()


def test_the_recipe_that_the_documentation_adds_loads(tmp_path):
    from gora.recipe import load_recipe

    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "add-recipe.md").read_text(), re.DOTALL)
    (tmp_path / "samsum.yaml").write_text(text)
    recipe = load_recipe(str(tmp_path / "samsum.yaml")).recipe
    assert recipe.data.prompt == "dialogue" and recipe.adapter.targets == "attention"
