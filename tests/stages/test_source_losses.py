"""Rows to evaluate on that are of several sources have a loss for each."""

import json
from pathlib import Path

import pytest

from gora.assets import resolve
from gora.recipe import load_recipe
from gora.runs.base_model import load_base_model
from gora.runs.context import RunContext
from gora.runs.loss import evaluate_loss, evaluate_sources
from gora.stages.train import train

LINES = Path(resolve("builtin:gsm8k/train.jsonl", "data")).read_text().splitlines(keepends=True)
SETTINGS = ("adapter.method=lora", "data.max_length=160", "train.batch_size=4", "train.micro_batch_size=4")


def recipe_on(folder, *settings):
    (folder / "long.jsonl").write_text("".join(LINES[:5]))
    (folder / "short.jsonl").write_text("".join(sorted(LINES[5:60], key=len)[:8]))
    return load_recipe("quickstart", [*SETTINGS, *settings, f"output={folder / 'run'}"]).recipe


def both(folder):
    return f"[{{path: {folder / 'long.jsonl'}}}, {{path: {folder / 'short.jsonl'}, template: alpaca}}]"


def test_each_source_has_the_loss_of_its_rows_alone_and_all_have_that_of_every_token(tmp_path):
    recipe = recipe_on(tmp_path, f"data.eval={both(tmp_path)}", "evaluation.micro_batch_size=3")
    context = RunContext.alone(recipe)
    model, rows = load_base_model(context), context.data.eval
    found = evaluate_sources(model, context)
    expected, tokens = {}, {}
    for name in ("long", "short"):
        own = [index for index in range(len(rows)) if f"{name}.jsonl:" in rows.where(index)]
        expected[str(tmp_path / f"{name}.jsonl")] = evaluate_loss(model, context, rows.subset(own))
        tokens[name] = sum(rows.supervised[index] for index in own)
    assert len(set(expected.values())) == 2
    assert found.by_source == pytest.approx(expected, rel=1e-5)
    sums = sum(loss * count for loss, count in zip(expected.values(), tokens.values(), strict=True))
    assert found.mean == pytest.approx(sums / sum(tokens.values()), rel=1e-5)


def test_a_run_says_them_at_every_evaluation_and_of_one_source_says_nothing_more(tmp_path, capsys):
    more = ("train.max_steps=2", "evaluation.steps=1")
    train(recipe_on(tmp_path, f"data.train={both(tmp_path)}", "data.eval=null", "data.holdout=4", *more))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    told = [line["eval_loss_by_source"] for line in lines if "eval_loss" in line]
    assert len(told) == 2
    assert {name for each in told for name in each} <= {str(tmp_path / f"{name}.jsonl") for name in ("long", "short")}
    name, loss = next(iter(told[-1].items()))
    assert f"{name} {loss:.4f}" in capsys.readouterr().out.replace("\n", " ")
    train(recipe_on(tmp_path, f"data.eval={{path: {tmp_path / 'short.jsonl'}}}", *more), mode="overwrite")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line.keys() for line in lines if "eval_loss" in line] == [{"step", "epoch", "eval_loss"}] * 2
