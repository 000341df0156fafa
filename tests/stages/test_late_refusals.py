"""What is known to fail at the end of a run is refused at its start."""

import json

import pytest
import torch

from gora.adapters.mergeable import refuse_unmergeable
from gora.errors import InputError
from gora.models.source import find_model
from gora.stages.check import check
from gora.stages.evaluate import closing_job
from gora.stages.run import run
from gora.stages.train import train
from tests.helpers.checkpoints import recipe_for, save_llama, save_rows


@pytest.fixture
def base(tmp_path):
    save_rows(tmp_path / "rows.jsonl")
    return save_llama(tmp_path / "base")


def recipe(tmp_path, **sections):
    return recipe_for(tmp_path / "base", tmp_path / "rows.jsonl", tmp_path / "run", **sections)


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        ({"method": "full"}, "no adapter to merge"),
        ({"method": "adalora"}, "cannot be folded into weights"),
    ],
)
def test_a_merge_that_would_fail_is_refused_before_anything_is_read_or_written(base, tmp_path, adapter, reason):
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(InputError, match=f"--merge: .*{reason}"):
        run(recipe(tmp_path, adapter=adapter), merge_too=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "method",
    [
        "gora",
        "lora",
        "rslora",
        "lora+",
        "olora",
        "pissa",
        "milora",
        "lora-ga",
        "lora-ga-peft",
        "lora-one",
        "eva",
        "dora",
    ],
)
def test_what_can_be_merged_is_not_refused(base, tmp_path, method):
    asked = recipe(tmp_path, adapter={"method": method})
    refuse_unmergeable(asked, find_model(asked.model))


def test_the_command_says_so_and_ends_with_exit_code_2(base, tmp_path, gora_here):
    recipe(tmp_path, adapter={"method": "adalora"})
    code, out, err = gora_here("run", tmp_path / "run.json", "--merge", cwd=tmp_path)
    assert code == 2
    assert "--merge: an adapter of AdaLoRA" in out + err
    assert "Traceback" not in out + err


def test_a_base_in_4_bits_by_the_recipe_s_wish_can_be_merged(base, tmp_path):
    pytest.importorskip("bitsandbytes")
    asked = recipe(tmp_path, model={"quantization": "nf4"})
    refuse_unmergeable(asked, find_model(asked.model))


# --- closing tasks ----------------------------------------------------------------------------------------------------


def closing(asked):
    return closing_job(asked, allow_code_execution=False, trust_remote_code=False)


@pytest.mark.parametrize("task", ["gsm8k", "humaneval", "mbpp", "mtbench"])
def test_a_classifier_is_not_closed_with_a_task_that_asks_for_text(tmp_path, base, task):
    asked = recipe(
        tmp_path,
        model={"head": "classification"},
        data={"choices": ["no", "yes"]},
        evaluation={"tasks": [{"name": task}]},
    )
    with pytest.raises(InputError, match=f"evaluation.tasks: {task} asks for text"):
        closing(asked)


def test_labels_and_losses_fit_a_classifier(tmp_path, base):
    asked = recipe(
        tmp_path,
        model={"head": "classification"},
        data={"choices": ["no", "yes"]},
        evaluation={"tasks": [{"name": "loss"}, {"name": "glue/sst2"}]},
    )
    assert [task.name for task, _ in closing(asked).tasks] == ["loss", "glue/sst2"]


def test_a_closing_task_that_cannot_work_ends_the_run_before_rows_are_read(base, tmp_path, capsys):
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question": "what is one"}) + "\n")
    task = {"name": "gsm8k", "path": str(tmp_path / "questions.jsonl")}
    with pytest.raises(InputError, match="answer"):
        run(recipe(tmp_path, evaluation={"tasks": [task]}))
    assert "rows      " not in capsys.readouterr().out


def test_programs_without_permission_end_the_run_before_rows_are_read(base, tmp_path, capsys):
    with pytest.raises(InputError, match="allow-code-execution"):
        run(recipe(tmp_path, evaluation={"tasks": [{"name": "humaneval"}]}))
    assert "rows      " not in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="Liger's kernels run on a GPU")
def test_kernels_that_cannot_run_are_refused_by_the_check_too(base, tmp_path):
    asked = recipe(tmp_path, train={"kernels": "liger"})
    with pytest.raises(InputError, match="liger cannot be used: it needs a GPU"):
        run(asked)
    assert any("liger cannot be used" in problem for problem in check(asked).problems)


def test_a_warm_up_that_is_longer_than_the_run_is_said(base, tmp_path, capsys):
    adapter = {"method": "lora", "rank": 2}
    train(recipe(tmp_path, adapter=adapter, train={"max_steps": 2, "warmup_steps": 50}))
    assert "train.warmup_steps is 50, but the run has 2 optimizer steps, of which 1 warm up" in capsys.readouterr().out
