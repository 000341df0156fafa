"""Recipes that are built to take long or to fill the memory are refused, at once and in words."""

import pytest
import torch

from gora.errors import InputError
from gora.models.targets import find_targets
from gora.recipe import load_recipe
from gora.runtime.engine import Engine

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def problems(path, text):
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        load_recipe(str(path))
    return str(refused.value)


def test_aliases_of_aliases_are_not_written_out(tmp_path):
    assert "more values, or deeper ones" in problems(tmp_path / "recipe.yaml", LAUGHS)


def test_aliases_of_aliases_in_an_engine_file_are_refused(tmp_path):
    (tmp_path / "engine.yaml").write_text(LAUGHS)
    with pytest.raises(InputError, match="aliases are not supported"):
        Engine.of(str(tmp_path / "engine.yaml"))


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_deep_nesting_is_refused(tmp_path, opening):
    assert "nested" in problems(tmp_path / "recipe.yaml", "model:\n " + opening * 5000)


@pytest.mark.parametrize(
    "setting",
    [
        "train.max_steps=1000000000000000000000000000000",
        "train.epochs=1e30",
        "adapter.alpha=1e308",
        "data.holdout=-9e15",
    ],
)
def test_numbers_beyond_any_recipe_are_refused(setting):
    with pytest.raises(InputError, match="larger than any number that a recipe can hold"):
        load_recipe("quickstart", [setting])


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("gora.steps=1000000000", "would draw 8,000,000,000 rows, and may draw 100,000,000"),
        ("adapter.rank=1000000", "rank 1,000,000 is above 131,072"),
    ],
)
def test_sizes_that_would_fill_the_memory_are_refused(setting, reason):
    with pytest.raises(InputError, match=reason):
        load_recipe("quickstart", [setting, "gora.micro_batch_size=8"])


@pytest.mark.parametrize("setting", ['model.name="a\\0b"', 'data.train.path="\\0"', 'adapter.targets=["q\\0"]'])
def test_a_null_character_is_refused(setting):
    with pytest.raises(InputError, match="null character"):
        load_recipe("quickstart", [setting])


@pytest.mark.parametrize("expression", ["(a|a)*b", "(a+)+$", "((a*)*)*b"])
def test_an_expression_that_would_never_end_is_refused(expression, monkeypatch):
    monkeypatch.setattr("gora.models.targets._PATIENCE", 0.2)
    model = torch.nn.ModuleDict({"a" * 60: torch.nn.Linear(2, 2), "x": torch.nn.Linear(2, 2)})
    with pytest.raises(InputError, match=r"takes too long|no linear layer's full name matches"):
        find_targets(model, f"{expression}c")
