"""A run on rows end to end is the run on padded rows: the same plan, steps, losses and adapter."""

import json
import re

import pytest
from safetensors.torch import load_file

from gora.errors import InputError
from gora.plan import read_plan
from gora.recipe import load_recipe
from gora.runs import base_model
from gora.stages.run import run
from gora.training import trainer
from gora.training.recording import RecordedSteps
from tests.helpers.flash import pretend_flash_attention, with_flash_attention
from tests.helpers.recorded import recording_on_a_cpu

SETTINGS = (
    "data.train.max_rows=28",
    "data.eval.max_rows=6",
    "data.max_length=160",
    "gora.steps=3",
    "gora.micro_batch_size=2",
    "train.batch_size=8",
    "train.micro_batch_size=4",
    "train.epochs=2",
    "train.log_steps=1",
    "evaluation.steps=null",
    # With Adam's usual epsilon, rounding decides the direction in which weights without a gradient go.
    "train.epsilon=1e-3",
)


def trained(folder, *more):
    run(load_recipe("quickstart", [*SETTINGS, *more, f"output={folder}"]).recipe)
    return folder


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("padded") / "run", "data.packing=none")


@pytest.mark.parametrize(
    "more",
    [
        ["data.packing=auto", "train.kernels=fused"],
        ["data.packing=padding-free", "train.activation_checkpointing=true"],
    ],
    ids=["packed", "padding-free, activations recomputed"],
)
def test_a_run_without_padding_is_the_run_with_it(tmp_path, padded, more):
    assert_same_run(trained(tmp_path / "run", *more), padded)


def test_the_log_says_how_fast_each_step_was_and_where_the_start_went(padded):
    log = (padded / "log.txt").read_text()
    steps = re.findall(r"step \d+: loss [\d.]+  (.*)", log)
    logged = [line for line in map(json.loads, (padded / "metrics.jsonl").read_text().splitlines()) if "loss" in line]
    assert len(steps) == len(logged) > 1
    for said, line in zip(steps, logged, strict=True):
        rate, computed = line["tokens_per_second"], line["computed_per_second"]
        padding = f"{computed:,.0f} with padding, " if computed > rate else ""
        assert re.fullmatch(rf"{rate:,.0f} tokens/s, {padding}[\d.]+% waiting for rows, \d+s left", said)
    assert any("with padding" in said for said in steps)
    assert steps[-1].endswith(" 0s left")
    (phases,) = re.findall(r"startup   (.*)", log)
    for phase in ("rows", "model", "adapter", "first step"):
        assert re.search(rf"{phase} [\d.]+", phases)


def test_a_run_whose_passes_are_recorded_is_the_run_without(tmp_path, padded, monkeypatch):
    shapes = recording_on_a_cpu(monkeypatch)

    def recorded(model, context, layout, *, steps, lean):
        parameters = [value for value in model.parameters() if value.requires_grad]
        return RecordedSteps(model.get_base_model(), parameters, layout.size * layout.longest, context.world)

    monkeypatch.setattr(trainer, "recorded_steps", recorded)
    folder = trained(tmp_path / "run", "data.packing=packed", "train.kernels=fused")
    assert shapes
    assert_same_run(folder, padded)


def test_a_packed_run_with_flash_attention_is_the_padded_run(tmp_path, padded, monkeypatch):
    told = pretend_flash_attention(monkeypatch)
    load = base_model.load_model
    monkeypatch.setattr(base_model, "load_model", lambda *each, **more: with_flash_attention(load(*each, **more)))
    folder = trained(tmp_path / "run", "data.packing=packed", "train.kernels=fused")
    assert any(len(bounds) > 2 for bounds in told)
    log = (folder / "log.txt").read_text()
    assert "packing   seen to keep rows apart" in log
    assert "attention flash_attention_2" in log
    assert_same_run(folder, padded)


def assert_same_run(folder, padded):
    plans = [read_plan(each / "plan.safetensors") for each in (folder, padded)]
    assert [module.rank for module in plans[0].modules] == [module.rank for module in plans[1].modules]
    found, expected = (
        [json.loads(line) for line in (each / "metrics.jsonl").read_text().splitlines()] for each in (folder, padded)
    )
    for mine, other in zip(found, expected, strict=True):
        assert mine.get("rows") == other.get("rows")
        assert mine.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=1e-4)
    losses, others = (json.loads((each / "results.json").read_text())["loss"] for each in (folder, padded))
    assert losses == pytest.approx(others, rel=1e-4)
    saved, reference = (load_file(each / "adapter" / "adapter_model.safetensors") for each in (folder, padded))
    for name, value in reference.items():
        assert (saved[name] - value).norm() <= 1e-3 * value.norm(), name


def test_packing_a_model_that_mixes_rows_is_refused_by_name(tmp_path, monkeypatch):

    monkeypatch.setattr("gora.runs.base_model.set_apart", lambda *_: "a token sees those of another row")
    with pytest.raises(InputError, match=r"data\.packing: packed is not possible with this model: a token sees"):
        trained(tmp_path / "run", "data.packing=packed")
