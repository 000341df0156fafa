"""One run is one room: opened once, its rows read once, its facts and failures told as data."""

import json

import pytest

import gora.runs.context as context_module
import gora.runs.engine_choice as engine_module
import gora.runs.inputs as inputs_module
from gora.errors import GoraError, InputError
from gora.plan import read_plan
from gora.recipe import load_recipe
from gora.runs.failure import read_failure
from gora.runs.folder import RunFolder
from gora.stages.run import run
from gora.stages.train import train

SMALL = (
    "data.train.max_rows=24",
    "data.eval.max_rows=4",
    "data.max_length=96",
    "gora.steps=2",
    "gora.micro_batch_size=2",
    "train.batch_size=4",
    "train.micro_batch_size=2",
    "train.max_steps=2",
    "train.log_steps=1",
    "train.save_steps=1",
    "evaluation.steps=null",
)


def recipe(output, *more):
    return load_recipe("quickstart", [*SMALL, *more, f"output={output}"]).recipe


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A finished run, and how often it joined the processes, read rows and took its folder."""
    folder = tmp_path_factory.mktemp("context") / "run"
    calls = {"join": 0, "prepare": 0, "owning_together": 0, "load_tokenizer": 0}

    def counting(name, real):
        def call(*arguments, **named):
            calls[name] += 1
            return real(*arguments, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in calls:
            owner = next(module for module in (context_module, engine_module, inputs_module) if hasattr(module, name))
            patch.setattr(owner, name, counting(name, getattr(owner, name)))
        run(recipe(folder))
    return RunFolder(folder), calls


def test_a_run_joins_its_processes_once_and_tokenizes_its_rows_once(ran):
    assert ran[1] == {"join": 1, "prepare": 1, "owning_together": 1, "load_tokenizer": 1}


def test_the_facts_of_each_stage_are_data(ran):
    results = json.loads(ran[0].results.read_text())
    precomputed, trained = results["precompute"], results["train"]
    assert (precomputed["engine"], precomputed["processes"], precomputed["micro_batches"]) == ("ddp", 1, 2)
    shapes = [module.shape for module in read_plan(ran[0].plan).modules]
    assert precomputed["sums"]["device_bytes"] == 4 * sum(rows * columns for rows, columns in shapes)
    assert set(precomputed["seconds"]) == {"load", "gradients", "plan"}
    assert trained["steps"] == 2
    assert trained["tokens_per_second"] > 0
    assert "AdamW" in trained["runs_as"]
    assert results["loss"]["final"] > 0
    plan = ran[0].plan.read_bytes()
    assert b"seconds" not in plan[: 8 + int.from_bytes(plan[:8], "little")]


def test_an_error_is_in_the_log_and_in_a_file_for_programs(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(GoraError, match="NaN or infinity"):
        run(recipe(folder.path, "adapter.method=lora", "train.learning_rate=1e11", "train.max_steps=4"))
    failure = read_failure(folder)
    assert (failure.code, failure.exit_code) == ("not-finite", 1)
    assert f"error: {failure.message}" in folder.log.read_text()
    run(recipe(folder.path, "adapter.method=lora"), mode="overwrite")
    assert read_failure(folder) is None


def test_a_refused_command_says_nothing_against_the_run_that_the_folder_holds(ran):
    before = ran[0].results.read_bytes()
    for mode in ("new", "resume"):
        with pytest.raises(InputError):
            train(recipe(ran[0].path), mode=mode)
    assert read_failure(ran[0]) is None
    assert ran[0].results.read_bytes() == before
    assert "error: " in ran[0].log.read_text()


def test_rows_that_changed_between_two_stages_are_refused(ran):
    with pytest.raises(InputError, match=r"made from other training rows.*precompute --overwrite") as refused:
        train(recipe(ran[0].path, "data.train.max_rows=12"), mode="overwrite")
    assert "in the plan" in refused.value.problems[0]
    assert ran[0].adapter.exists()
