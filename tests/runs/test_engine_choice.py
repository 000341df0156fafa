"""`distributed: auto`."""

from types import SimpleNamespace

import pytest
import torch

from gora.disk import size_text
from gora.recipe.schema import Recipe
from gora.runs import engine_choice
from gora.runs.engine_choice import choose_engine


@pytest.fixture
def recipe():
    document = {"model": {"name": "builtin:tiny-6m"}, "data": {"train": {"path": "x"}}, "distributed": "auto"}
    return Recipe.model_validate(document)


def chosen(recipe, *, processes=4, device="cuda", **settings):
    return choose_engine(
        recipe, processes=processes, device=torch.device(device), trust_remote_code=False, **settings
    ).distributed


def gpus_of(monkeypatch, total):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=total))
    monkeypatch.setattr(engine_choice, "weight_bytes", lambda model, settings, device: 700)


@pytest.mark.parametrize(("total", "engine"), [(1000, "ddp"), (999, "fsdp")])
def test_weights_are_shared_out_where_they_leave_no_room(recipe, monkeypatch, capsys, total, engine):
    gpus_of(monkeypatch, total)
    assert chosen(recipe) == engine
    said = f"engine    {engine} (auto): the weights take {size_text(700)} of a GPU's {size_text(total)}"
    assert said in capsys.readouterr().out


def test_one_process_and_cpus_keep_whole_weights(recipe, monkeypatch):
    gpus_of(monkeypatch, 10)
    assert chosen(recipe, processes=1) == "ddp"
    assert chosen(recipe, device="cpu") == "ddp"


def test_an_engine_that_is_named_stays(recipe):
    assert chosen(recipe.model_copy(update={"distributed": "zero3"})) == "zero3"
