"""Whatever a file holds, reading it ends well or in an error of gora's: never in a traceback.

Every trial begins with what is valid and changes a little of it. The trials are the same at every run; the slow ones
are many more of them.
"""

import json
import shutil
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gora import manifest, plan
from gora.adapters.load import find_adapter, read_base_note, read_config, tensor_names
from gora.data import prepare
from gora.errors import GoraError
from gora.evaluation.models.locate import find_subject
from gora.gradients.archive import ArchivedStatistics
from gora.gradients.checkpoint import PassCheckpoint
from gora.gradients.collect import Progress
from gora.gradients.sums import DeviceSums
from gora.models.source import find_model
from gora.models.tokenizer import load_tokenizer
from gora.models.weight_files import tensor_shapes, weight_files
from gora.recipe import accumulation_steps, dump_recipe, load_recipe
from gora.recipe.derived import rank_bounds
from gora.recipe.schema import ModelSection
from gora.recipe.variants import read_variants
from gora.report.ranks import rank_report
from gora.runs.failure import read_failure
from gora.runs.folder import RunFolder
from gora.runs.provenance import (
    check_provenance,
    check_same_base,
    check_same_rows,
    check_same_settings,
    plan_differences,
)
from gora.runs.results import held_results, losses_of, read_results, task_results
from gora.runs.state import find_progress
from gora.runtime.engine import Engine
from gora.runtime.world import World
from gora.stages.run import run
from gora.training.metrics import Metrics, read_metrics
from gora.training.saved_state import check_state
from tests.helpers.checkpoints import save_llama, save_rows
from tests.helpers.mutations import NASTY, as_json, files, mutated, torn
from tests.runs.test_context import recipe as quick

FEW, MANY = 40, 3000

RECIPE = {
    "extends": "quickstart",
    "description": "a recipe",
    "model": {"name": "builtin:tiny-6m", "dtype": "float32", "new_tokens": ["<x>"], "revision": None},
    "data": {
        "train": {"path": "builtin:gsm8k/train.jsonl", "max_rows": 64},
        "eval": {"path": ["builtin:gsm8k/test.jsonl"], "max_rows": 16, "split": None},
        "template": "{question} ",
        "max_length": 96,
        "ignore": ["answer"],
    },
    "adapter": {"method": "gora", "rank": 8, "alpha": 16.0, "targets": ["q_proj"], "exclude": []},
    "gora": {"steps": 8, "rank_min": "auto", "rank_max": 32, "gamma": 0.05},
    "train": {"epochs": 1.5, "max_steps": 12, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-4},
    "evaluation": {"steps": 6, "tasks": [{"name": "gsm8k", "max_rows": 4}]},
    "distributed": "ddp",
    "output": "run",
    "seed": 1,
}
VARIANTS = {"description": "d", "share_gradients": True, "variants": {"a": {"gora.gamma": 0.1}, "b": {}}}
ROWS = {
    "instruction": [
        {"prompt": "what is one plus two", "response": "it equals three", "history": [["what", "is"]], "input": "one"},
        {"prompt": "what is two", "response": "two", "score": 0.5},
    ],
    "chat": [
        {
            "messages": [
                {"role": "user", "content": "what is one"},
                {"role": "assistant", "content": "it is one", "tool_calls": [{"function": {"name": "sum"}}]},
                {"role": "tool", "content": "two"},
                {"from": "gpt", "value": "three"},
            ],
            "tools": [{"type": "function", "function": {"name": "sum", "parameters": {}}}],
        },
        {"messages": '[{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]'},
    ],
    "text": [{"text": "what is one plus two"}, {"text": "it equals three"}],
}
ENGINE = {
    "distributed_type": "DEEPSPEED",
    "deepspeed_config": {"zero_stage": 2, "offload_optimizer_device": "none", "deepspeed_config_file": None},
    "mixed_precision": "no",
    "num_processes": 2,
}
ZERO = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}, "bf16": {"enabled": "auto"}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run, a model with an index of its files, and a collection of gradients."""
    folder = tmp_path_factory.mktemp("made")
    run(quick(folder / "run"))
    save_llama(folder / "model")
    (folder / "model" / "model.safetensors").rename(folder / "model" / "model-1.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensor_names_of(folder / "model"), "model-1.safetensors")}
    (folder / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    sums = DeviceSums({"a": (3, 4)}, torch.device("cpu"))
    pass_checkpoint(folder / "sums").save(sums, Progress())
    save_rows(folder / "rows.jsonl")
    return folder


def tensor_names_of(model):
    from safetensors import safe_open

    with safe_open(model / "model-1.safetensors", framework="pt") as file:
        return list(file.keys())


def pass_checkpoint(folder):
    return PassCheckpoint(folder, {"seed": 1}, stop=lambda: None, interrupt=lambda number, cursor: None)


class Trial:
    """A folder for one trial, with what a check calls, each on its own: one refusal must not hide the next."""

    def __init__(self, made):
        self.made = made
        self.folder = Path(tempfile.mkdtemp(dir=made))

    def put(self, name, content):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def copy(self, name):
        return Path(shutil.copytree(self.made / name, self.folder / name, dirs_exist_ok=True))

    def tries(self, *calls):
        for call in calls:
            try:
                call()
            except GoraError as error:
                assert str(error).strip()
                str(error).encode()


def load_and_use(path):
    recipe = load_recipe(str(path)).recipe
    assert load_recipe_text(path.with_name("again.yaml"), dump_recipe(recipe)) == recipe
    accumulation_steps(recipe.train, 2)
    rank_bounds(recipe.gora, recipe.adapter)


def load_recipe_text(path, text):
    path.write_text(text)
    return load_recipe(str(path)).recipe


def recipes(trial, content):
    path = trial.put("recipe.yaml", content)
    trial.tries(lambda: load_and_use(path))


def overrides(trial, setting):
    trial.tries(lambda: load_recipe("quickstart", [setting]))


def variants(trial, content):
    path = trial.put("variants.yaml", content)
    trial.tries(lambda: read_variants(str(path)))


def engines(trial, content):
    yaml, plain = trial.put("engine.yaml", content), trial.put("engine.json", content)
    trial.tries(lambda: Engine.of(str(yaml)), lambda: Engine.of(str(plain)))


def rows_of(kind):
    def rows(trial, content):
        names = ("rows.jsonl", "rows.json", "rows.csv", "rows.parquet")
        section = quick("run").data.model_copy(
            update={"eval": None, "format": kind, "template": "{prompt}", "chat_template": "chatml", "max_length": 64}
        )
        tokenizer = tokenizer_of(trial.made)
        for name in names:
            source = section.train.model_copy(update={"path": str(trial.put(name, content)), "max_rows": None})
            data = section.model_copy(update={"train": source})
            trial.tries(lambda data=data: prepare(data, tokenizer, 0, encoder_decoder=False, say=lambda text: None))

    return rows


def tokenizer_of(made, known={}):  # noqa: B006
    if made not in known:
        settings = ModelSection(name="builtin:tiny-6m")
        known[made] = load_tokenizer(settings, find_model(settings))
    return known[made]


def plans(trial, content):
    path = trial.put("plan.safetensors", content)

    def use():
        found = plan.read_plan(path)
        plan.read_factors(path, found)
        rank_report(found)
        plan_differences(found, quick("run"))

    trial.tries(use)


def with_document(header):
    """A plan whose document was changed by somebody who also knows how its checksum is made."""

    def content(document):
        values = struct.pack("<4f", 1, 2, 3, 4)
        tensors = {
            "a.lora_A": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
            "a.lora_B": {"dtype": "F32", "shape": [2, 1], "data_offsets": [8, 16]},
        }
        if isinstance(document, dict):
            contents = (
                (name, t["dtype"], t["shape"], values[slice(*t["data_offsets"])]) for name, t in tensors.items()
            )
            document = {**document, "sha256": plan._digest(document, contents)}
        text = json.dumps({**header, "__metadata__": {"gora": json.dumps(document)}, **tensors}).encode()
        return struct.pack("<Q", len(text)) + text + values

    return content


PLAN = {
    "format_version": plan.FORMAT_VERSION,
    "gora_version": "0.1.0",
    "model": {"name": "m", "config": "c", "weights": "w", "tensors": ""},
    "data": {"fingerprint": "f"},
    "steps": 8,
    "micro_batch_size": 2,
    "seed": 42,
    "gamma": 0.05,
    "init_a": "random",
    "alpha": 16.0,
    "reference_rank": 8,
    "rank_min": 4,
    "rank_max": 32,
    "importance": "sensitivity",
    "budget": "paper",
    "modules": [
        {
            "name": "a",
            "shape": [2, 2],
            "importance": 1.0,
            "advantage": 1.0,
            "rank": 1,
            "scaling": 16.0,
            "gradient_norm": 1.0,
        }
    ],
}


def in_place_of(folder, name, use):
    """A check that replaces one file of a folder, with a manifest that fits again, and uses the folder."""

    def check(trial, content):
        copy = trial.copy(folder)
        (copy / name).write_bytes(content)
        sealed = copy
        while not manifest.is_sealed(sealed) and sealed != trial.folder:
            sealed = sealed.parent
        if manifest.is_sealed(sealed) and name != manifest.NAME:
            manifest.seal(sealed)
        use(trial, copy)

    return check


def use_checkpoint(trial, folder):
    run_folder, recipe = RunFolder(trial.folder / "run"), quick("run")
    base = None
    trial.tries(
        lambda: find_progress(run_folder),
        lambda: check_provenance(folder, recipe, run_folder, Engine.of("ddp"), World()),
        lambda: check_same_rows(folder, "x"),
        lambda: check_same_base(folder, base) if base else None,
        lambda: check_state(folder),
    )


def use_run(trial, folder):
    run_folder = RunFolder(folder)
    trial.tries(
        lambda: find_progress(run_folder),
        lambda: read_results(run_folder),
        lambda: losses_of(run_folder),
        lambda: task_results(run_folder),
        lambda: held_results(run_folder),
        lambda: read_failure(run_folder),
        lambda: read_metrics(run_folder.metrics),
        lambda: Metrics(run_folder.metrics, 1),
        lambda: check_same_settings(run_folder, quick("run")),
    )


def use_adapter(trial, folder):
    trial.tries(
        lambda: read_config(find_adapter(folder)),
        lambda: read_base_note(folder),
        lambda: tensor_names(folder),
        lambda: find_subject(str(folder)),
    )


def use_model(trial, folder):
    def load():
        source = find_model(ModelSection(name=str(folder)))
        weight_files(source)
        tensor_shapes(source)
        load_tokenizer(ModelSection(name=str(folder)), source)

    trial.tries(load, lambda: find_subject(str(folder)))


def use_sums(trial, folder):
    sums = DeviceSums({"a": (3, 4)}, torch.device("cpu"))
    trial.tries(
        lambda: pass_checkpoint(folder).restore(sums),
        lambda: pass_checkpoint(folder).saved_rounds(),
        lambda: ArchivedStatistics(folder).importance("a", "sensitivity"),
    )


def lines(rows):
    """JSON Lines, or one value where it is no list any more."""
    return b"\n".join(map(as_json, rows)) if isinstance(rows, list) else as_json(rows)


def stored(made, name):
    content = (made / name).read_bytes()
    return json.loads(content) if name.endswith((".json", ".partial")) else content


def file_of(made, name):
    content = stored(made, name)
    return torn(content) if isinstance(content, bytes) else files(content)


METRICS = [{"step": 1, "loss": 2.0, "epoch": 0.5}, {"step": 2, "eval_loss": 2.0}, {"step": 2, "loss": "nan"}]
PARTIAL = {"data": "f", "result": {"loss": {"base": 1.0}, "rows": 4}}
FAILURE = {"code": "input", "message": "m", "exit_code": 2, "rows": ["a:1"]}
CHECKPOINT = "run/checkpoints/checkpoint-2"

CHECKS = {
    "recipe": (recipes, lambda made: files(RECIPE)),
    "recipe as text": (recipes, lambda made: st.binary(max_size=60) | st.text(max_size=60).map(str.encode)),
    "override": (
        overrides,
        lambda made: st.builds(
            "{}={}".format,
            st.sampled_from(["train.epochs", "model.name", "gora", "adapter.targets", "a..b", "seed"]) | st.text(),
            st.sampled_from(NASTY) | st.text() | mutated(RECIPE).map(json.dumps),
        ),
    ),
    "variants": (variants, lambda made: files(VARIANTS)),
    "engine": (engines, lambda made: files(ENGINE) | files(ZERO)),
    **{f"{kind} rows": (rows_of(kind), lambda made, kind=kind: files(ROWS[kind], lines)) for kind in ROWS},
    "plan": (plans, lambda made: mutated(PLAN).map(with_document({}))),
    "bytes of a plan": (plans, lambda made: torn(with_document({})(PLAN))),
    **{
        f"{name} of a checkpoint": (
            in_place_of(CHECKPOINT, name, use_checkpoint),
            lambda made, name=name: file_of(made, f"{CHECKPOINT}/{name}"),
        )
        for name in ("provenance.json", "trainer_state.json", manifest.NAME)
    },
    "results.json": (in_place_of("run", "results.json", use_run), lambda made: file_of(made, "run/results.json")),
    "recipe.yaml of a run": (in_place_of("run", "recipe.yaml", use_run), lambda made: file_of(made, "run/recipe.yaml")),
    "results.partial": (in_place_of("run", "results.partial", use_run), lambda made: files(PARTIAL)),
    "failure.json": (in_place_of("run", "failure.json", use_run), lambda made: files(FAILURE)),
    "metrics.jsonl": (in_place_of("run", "metrics.jsonl", use_run), lambda made: files(METRICS, lines)),
    **{
        f"{name} of an adapter": (
            in_place_of("run/adapter", name, use_adapter),
            lambda made, name=name: file_of(made, f"run/adapter/{name}"),
        )
        for name in ("adapter_config.json", "gora.json", "adapter_model.safetensors", manifest.NAME)
    },
    **{
        f"{name} of a model": (
            in_place_of("model", name, use_model),
            lambda made, name=name: file_of(made, f"model/{name}"),
        )
        for name in ("config.json", "model.safetensors.index.json", "model-1.safetensors", "tokenizer_config.json")
    },
    **{
        f"{name} of gradient sums": (
            in_place_of("sums", name, use_sums),
            lambda made, name=name: file_of(made, f"sums/{name}"),
        )
        for name in ("state.json", "sums-00000.safetensors")
    },
}


def try_many(name, made, examples):
    check, contents = CHECKS[name]

    @settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(contents(made))
    def trial(content):
        place = Trial(made)
        try:
            check(place, content)
        finally:
            shutil.rmtree(place.folder)

    trial()


@pytest.mark.parametrize("name", CHECKS)
def test_no_input_ends_in_a_traceback(made, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    try_many(name, made, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_none_of_many_inputs_ends_in_a_traceback(made, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    try_many(name, made, MANY)
