"""The command as a user meets it: processes, exit codes, messages, signals.

What a stage refuses is asked of the command in the process of the tests, where its libraries are imported already.
"""

import contextlib
import gc
import json
import math
import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from safetensors.torch import load_file

from gora.plan import read_plan
from gora.runs.owner import LOCK, MARKER
from gora.runtime.imports import importing
from tests.conftest import ROOT
from tests.helpers import forks

FEW = (
    "data.train.max_rows=64",
    "data.eval.max_rows=16",
    "data.max_length=160",
    "gora.steps=2",
    "evaluation.steps=null",
)


def gora(*arguments, cwd, **options):
    command = [sys.executable, "-m", "gora", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, **options)


def settings(*values):
    return [part for value in (*FEW, *values) for part in ("--set", value)]


def imported_by(code):
    shown = "print(sorted(sys.modules), file=sys.stderr)"
    probe = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\n{shown}"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], ["recipes"], ["train", "nothing"]])
def test_answers_that_need_no_torch_do_not_import_it(arguments):
    code = f"sys.argv = ['gora', *{arguments!r}]; from gora.cli import main; main()"
    loaded = imported_by(code)
    assert "'gora.cli'" in loaded
    assert "'torch'" not in loaded
    assert "'transformers'" not in loaded


def test_help_names_every_verb(tmp_path):
    done = gora("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "..." not in done.stdout.replace("[ARGS]...", "")
    for verb in (
        "init",
        "report",
        "run",
        "precompute",
        "train",
        "merge",
        "export",
        "inspect-ranks",
        "cache",
        "recipes",
    ):
        assert re.search(rf"^  {verb}\s", done.stdout, re.MULTILINE)


def test_a_wrong_recipe_is_answered_with_all_problems_and_code_2(tmp_path):
    (tmp_path / "my.yaml").write_text(
        "model: {name: builtin:tiny-6m}\n\ndata:\n  train: {path: x}\nadapter:\n  rnak: 8\ntrain:\n  epochs: many\n"
    )
    done = gora("run", "my.yaml", "--set", "train.learning_rte=1e-5", cwd=tmp_path)
    assert done.returncode == 2
    assert "my.yaml:6: adapter.rnak" in done.stderr
    assert "'rank'" in done.stderr
    assert "my.yaml:8: train.epochs" in done.stderr
    assert "--set train.learning_rte" in done.stderr
    assert "'learning_rate'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "quickstart"], "no such plan file"),
        (["inspect-ranks", "none"], "no such plan file"),
        (["recipes", "show", "quikstart"], "quickstart"),
    ],
)
def test_wrong_input_is_explained_with_code_2_and_leaves_no_results(tmp_path, arguments, message):
    done = gora(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "quickstart", "--set", "data.train.path=none.jsonl"], "none.jsonl does not exist"),
        (["run", "quickstart", "--set", "model.name=./none"], "neither a folder here"),
        (["run", "quickstart", "--set", "adapter.targets=[q_prj]"], "did you mean 'q_proj'"),
        (["run", "quickstart", "--set", "train.precision=bf16"], "bf16 needs a GPU"),
        (["train", "quickstart", "--set", "output=''"], "a run needs a folder of its own"),
        (["train", "quickstart", "--set", f"output={'x' * 300}"], "File name too long"),
        (["merge", ".", "--output", "merged"], "no adapter_config.json"),
    ],
)
def test_wrong_input_that_a_stage_finds_is_explained_as_well(gora_here, tmp_path, arguments, message):
    code, _, errors = gora_here(*arguments, cwd=tmp_path)
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.rglob("*.safetensors"))


def test_garbage_is_collected_again_after_the_libraries_are_imported():
    before = gc.get_freeze_count()
    new = [[]]
    for problem in (None, ImportError()):
        with contextlib.suppress(ImportError), importing():
            assert not gc.isenabled()
            if problem:
                raise problem
        assert gc.isenabled()
    assert gc.get_freeze_count() > before
    assert all(each is not new for each in gc.get_objects())


def test_torch_compiles_what_is_defined_in_an_import_when_it_is_called(monkeypatch):
    compiled = []

    def compile_now(function, **settings):
        compiled.append((function.__name__, settings))
        return lambda *arguments: ("compiled", *arguments)

    monkeypatch.setattr(torch, "compile", compile_now)
    with importing():

        @torch.compile(dynamic=True)
        def used(number):
            raise AssertionError("it is not compiled")

        @torch.compile
        def unused():
            pass

    assert torch.compile is compile_now and not compiled
    assert [used(3), used(4)] == [("compiled", 3), ("compiled", 4)]
    assert compiled == [("used", {"dynamic": True})]


def test_an_output_that_cannot_be_made_is_a_message_and_no_traceback(gora_here, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, errors = gora_here("precompute", "quickstart", *settings("output=file/run"), cwd=tmp_path)
    assert code == 2
    assert "file/run cannot be a folder" in errors
    assert "Traceback" not in errors


def test_recipes_are_listed_shown_and_copied(tmp_path):
    listed = gora("recipes", cwd=tmp_path)
    assert "metamathqa-llama3.1-8b" in listed.stdout
    shown = gora("recipes", "show", "quickstart", cwd=tmp_path)
    assert shown.stdout == (ROOT / "recipes" / "quickstart.yaml").read_text()
    assert gora("recipes", "copy", "quickstart", "mine.yaml", cwd=tmp_path).returncode == 0
    assert (tmp_path / "mine.yaml").read_text() == shown.stdout
    assert gora("recipes", "copy", "quickstart", "mine.yaml", cwd=tmp_path).returncode == 2
    schema = json.loads(gora("recipes", "schema", cwd=tmp_path).stdout)
    assert schema["properties"]["gora"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """One whole run from the command line, with its folder of work."""
    folder = tmp_path_factory.mktemp("ran")
    return folder, gora("run", "quickstart", "--merge", *settings(), cwd=folder)


def test_a_run_leaves_every_file_of_the_design_and_says_what_is_next(ran):
    folder, done = ran
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (folder / "runs" / "quickstart").iterdir()}
    assert names >= {
        "recipe.yaml",
        "plan.safetensors",
        "adapter",
        "metrics.jsonl",
        "results.json",
        "log.txt",
        "merged",
    }
    assert {name for name in names if name.startswith(".")} == {MARKER, LOCK}
    assert "failure.json" not in names
    losses = json.loads((folder / "runs" / "quickstart" / "results.json").read_text())["loss"]
    assert f"{losses['base']:.4f} with the base model, {losses['final']:.4f} with the adapter" in done.stdout
    assert losses["final"] < losses["base"]
    assert "gora inspect-ranks runs/quickstart/plan.safetensors" in done.stdout
    assert re.search("^serve     vllm serve .*runs/quickstart/merged$", done.stdout, re.MULTILINE)


def test_the_terminal_is_free_of_the_libraries_own_lines(ran):
    _, done = ran
    assert "FutureWarning" not in done.stdout + done.stderr
    assert "Loading weights" not in done.stdout + done.stderr
    assert "{'loss'" not in done.stdout
    assert done.stderr == ""


def test_the_log_holds_what_was_printed(ran):
    folder, done = ran
    log = (folder / "runs" / "quickstart" / "log.txt").read_text()
    for part in ("trainable", "learning rate", "base weights unchanged"):
        assert part in done.stdout
        assert part in log
    steps, warmup = map(int, re.findall(r"(\d+) optimizer steps, (\d+) of them warm-up", log)[0])
    assert warmup == math.ceil(0.03 * steps) > 0


def test_the_saved_recipe_runs_again_to_the_same_plan(ran, tmp_path):
    folder, _ = ran
    saved = folder / "runs" / "quickstart" / "recipe.yaml"
    # A name that rich would take for markup and an emoji, and a shell for more than one word.
    done = forks.run("precompute", str(saved), "--set", "output=ag ä[red]:car:x", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "plan      ag ä[red]:car:x/plan.safetensors" in done.stdout
    paths = [folder / "runs" / "quickstart" / "plan.safetensors", tmp_path / "ag ä[red]:car:x" / "plan.safetensors"]
    first, again = (read_plan(path) for path in paths)
    # What was the schema's default is now a line of the recipe; nothing else differs.
    assert again.model_copy(update={"decisions": {}}) == first.model_copy(update={"decisions": {}})
    assert {name: each.value for name, each in again.decisions.items()} == {
        name: each.value for name, each in first.decisions.items()
    }
    tensors, same = (load_file(path) for path in paths)
    assert tensors.keys() == same.keys()
    assert all(torch.equal(value, same[name]) for name, value in tensors.items())


def test_a_second_run_is_refused_until_it_is_told_to_replace(ran):
    folder, _ = ran
    done = forks.run("run", "quickstart", *settings(), cwd=folder)
    assert done.returncode == 2
    assert "--overwrite" in done.stderr
    assert (folder / "runs" / "quickstart" / "adapter").exists()


def test_ranks_are_shown_as_table_as_json_and_as_pictures(ran, tmp_path):
    folder, _ = ran
    plan = folder / "runs" / "quickstart"
    table = gora("inspect-ranks", str(plan), cwd=tmp_path)
    assert "v_proj" in table.stdout
    data = json.loads(forks.run("inspect-ranks", str(plan), "--json", cwd=tmp_path).stdout)
    assert sum(module["rank"] * sum(module["shape"]) for module in data["modules"]) == data["parameters"]
    assert forks.run("inspect-ranks", str(plan), "--plot", "ranks.png", cwd=tmp_path).returncode == 0
    assert (tmp_path / "ranks.png").read_bytes().startswith(b"\x89PNG")
    assert forks.run("inspect-ranks", str(plan), "--plot", "ranks.svg", cwd=tmp_path).returncode == 0
    assert ElementTree.parse(tmp_path / "ranks.svg").getroot().tag.endswith("svg")
    assert forks.run("inspect-ranks", str(plan), "--plot", "ranks.gif", cwd=tmp_path).returncode == 2


def test_a_sample_is_shown_with_its_supervised_part_marked(gora_here, tmp_path):
    for verb in ("precompute", "train"):
        code, said, errors = gora_here(verb, "quickstart", "--show-sample", cwd=tmp_path)
        assert code == 0, errors
        marked = re.search("⟦(.*)⟧", said, re.DOTALL)
        assert marked is not None
        assert marked[1].startswith(" Natalia sold 48/2")
        assert marked[1].endswith("</s>")
        assert "EOS trained: yes" in said
    assert not list(tmp_path.iterdir())


def interrupted(arguments, cwd, until, number):
    """Start gora, send it a signal once it has printed `until`, and return its code and what it said."""
    with forks.running(*arguments, cwd=cwd) as (process, stream):
        said = ""
        for line in stream:
            said += line
            if until in line:
                break
        # The marker is printed where signals are already answered between steps.
        os.kill(process.pid, number)
        said += stream.read()
        process.join()
        return process.exitcode, said


def test_ctrl_c_in_precompute_keeps_the_sums_and_nothing_half_made(tmp_path):
    code, said = interrupted(
        ["precompute", "quickstart", *settings("gora.steps=500")], tmp_path, "sums      ", signal.SIGINT
    )
    assert code == 130
    assert re.search(r"Stopped by signal 2. .*gradients.checkpoint holds the sums of \d+ of 500 .* add --resume", said)
    assert "Traceback" not in said
    names = sorted(path.name for path in (tmp_path / "runs" / "quickstart").iterdir())
    assert names == [MARKER, LOCK, "failure.json", "gradients.checkpoint", "log.txt"]
    failure = json.loads((tmp_path / "runs" / "quickstart" / "failure.json").read_text())
    assert (failure["code"], failure["exit_code"]) == ("interrupted", 130)


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_training_says_what_was_kept_and_the_run_goes_on_from_it(tmp_path, number, expected):
    small = ("data.train.max_rows=8", "train.batch_size=2", "train.micro_batch_size=2")
    more = settings(*small, "train.epochs=3", "train.log_steps=1")
    code, said = interrupted(["run", "quickstart", *more], tmp_path, "Parameter groups", number)
    assert code == expected
    kept = re.search(r"checkpoints/checkpoint-(\d+) holds step (\d+) of 12; add --resume", said)
    assert kept is not None, said
    folder = tmp_path / "runs" / "quickstart"
    assert not (folder / "adapter").exists()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"checkpoint-{kept[1]}"]
    if number == signal.SIGINT:
        done = forks.run("run", "quickstart", "--resume", *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(1, 13))
