"""Recipes that extend others: whose value holds, where a problem is said to be, and what is refused."""

from pathlib import Path

import pytest

from gora.errors import InputError
from gora.recipe import dump_recipe, load_recipe
from gora.recipe.builtin import builtin_paths

BASE = """\
model: {name: m}
data:
  train: {path: rows.jsonl, max_rows: 10}
  eval: {path: other.jsonl}
adapter:
  targets: [q_proj, k_proj]
train:
  epochs: 2
  seed: 1
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def _write(**files):
        for name, text in files.items():
            Path(f"{name}.yaml").write_text(text)

    return _write


def problems(reference, *overrides):
    with pytest.raises(InputError) as caught:
        load_recipe(reference, overrides)
    return list(caught.value.problems)


def test_sections_are_merged_and_everything_else_is_replaced(write):
    write(
        base=BASE.replace("  seed: 1\n", "seed: 1\n"),
        middle="extends: base.yaml\ndata:\n  train: {max_rows: 5}\n  eval: null\nadapter: {targets: [v_proj]}\n",
        leaf="extends: middle.yaml\nseed: 3\n",
    )
    recipe = load_recipe("leaf.yaml", ["train.epochs=4"]).recipe
    assert recipe.data.train.model_dump(exclude_none=True) == {"path": "rows.jsonl", "max_rows": 5}
    assert recipe.data.eval is None
    assert recipe.adapter.targets == ["v_proj"]
    assert (recipe.train.epochs, recipe.seed, recipe.output, recipe.extends) == (4, 3, "runs/leaf", None)
    Path("complete.yaml").write_text(dump_recipe(recipe))
    assert load_recipe("complete.yaml").recipe == recipe


def test_a_built_in_recipe_can_be_extended_from_anywhere(write, tmp_path):
    write(my="extends: quickstart\ntrain: {epochs: 2}\n")
    recipe = load_recipe("my.yaml").recipe
    assert recipe.model.name == "builtin:tiny-6m"
    assert recipe.train.epochs == 2
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "own.yaml").write_text("extends: ../my.yaml\nseed: 9\n")
    assert load_recipe("inside/own.yaml").recipe.seed == 9


def test_a_problem_is_named_by_the_file_that_it_stands_in(write):
    write(base=BASE, leaf="extends: base.yaml\ntrain:\n  epohcs: 3\n  batch_size: 7\n  micro_batch_size: 8\n")
    assert [line.split(": ")[0] for line in problems("leaf.yaml")] == ["base.yaml:9", "leaf.yaml:3", "leaf.yaml:4"]
    # The last word counts: what is overridden is no longer where it was.
    (found,) = problems("leaf.yaml", "train={batch_size: 7, micro_batch_size: 8}")
    assert found.startswith("--set train={batch_size: 7, micro_batch_size: 8}: train.batch_size")


def test_a_replaced_section_leaves_no_places_behind(write):
    write(base=BASE.replace("  seed: 1\n", ""), leaf="extends: base.yaml\ndata:\n  eval: 3\n")
    (found,) = problems("leaf.yaml")
    assert found.startswith("leaf.yaml:3: data.eval")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: bsae.yaml\n", r"leaf.yaml:1: extends: 'bsae.yaml' is neither a file beside this one nor a built-in"),
        ("seed: 1\nextends: quikstart\n", "leaf.yaml:2: extends: .*Did you mean 'quickstart'"),
        ("extends: [a, b]\n", "leaf.yaml:1: extends: expected the name of"),
        ("extends: leaf.yaml\n", "a recipe cannot extend itself: leaf.yaml extends leaf.yaml"),
        ("extends: round.yaml\n", "round.yaml:1: extends: .*: leaf.yaml extends round.yaml extends leaf.yaml"),
        ("extends: broken.yaml\n", "broken.yaml:2: not valid YAML"),
    ],
)
def test_what_cannot_be_extended_is_refused_with_its_line(write, text, message):
    write(leaf=text, round="extends: leaf.yaml\n", broken="model: [\n", base=BASE)
    with pytest.raises(InputError, match=f"(?s){message}"):
        load_recipe("leaf.yaml")


def test_extends_is_no_setting_of_the_command_line(write):
    (found,) = problems("quickstart", "extends=glue/sst2")
    assert (
        found
        == "--set extends=glue/sst2: extends: can stand in a recipe only; give the recipe to be extended as RECIPE"
    )


def test_every_built_in_recipe_that_extends_another_extends_a_built_in_one():
    for path in builtin_paths().values():
        found = [line for line in path.read_text().splitlines() if line.startswith("extends:")]
        assert all(line.partition(": ")[2] in builtin_paths() for line in found), path
