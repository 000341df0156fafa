"""`preset`: what a recipe's silence means, and where each value is said to come from."""

import re

import pytest
import yaml

from gora.errors import InputError
from gora.recipe import dump_recipe, load_recipe, load_recorded
from gora.recipe.builtin import builtin_paths
from gora.recipe.derived import by_key
from gora.recipe.preset import AUTO
from gora.recipe.schema import Recipe
from tests.conftest import ROOT

ROWS = {"model": {"name": "some/model"}, "data": {"train": {"path": "rows.jsonl"}}}


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def _load(*settings, **sections):
        (tmp_path / "my.yaml").write_text(yaml.safe_dump(ROWS | sections))
        return load_recipe("my.yaml", settings).recipe

    return _load


def test_a_recipe_that_says_nothing_is_auto_and_the_paper_s_is_the_schema_s_defaults(load):
    assert load().preset == "auto"
    values = by_key(load())
    assert {setting.key: values[setting.key] for setting in AUTO} == {setting.key: setting.value for setting in AUTO}
    silent = Recipe.model_validate(ROWS | {"preset": "paper", "output": "runs/my"})
    assert load("preset=paper") == silent


def test_every_shipped_recipe_says_paper_and_takes_nothing_from_the_preset():
    for name, path in builtin_paths().items():
        assert yaml.safe_load(path.read_text())["preset"] == "paper", name
        origins = load_recipe(name).recipe.origins
        assert {origin.source for origin in origins.values()} == {"recipe"}, name


def test_the_page_lists_what_the_preset_sets_and_why():
    page = (ROOT / "docs" / "preset.md").read_text()
    for setting in AUTO:
        assert f"| `{setting.key}` | `{setting.value}` | {setting.why} |" in page


@pytest.mark.parametrize("setting", AUTO, ids=lambda setting: setting.key)
def test_what_is_written_wins(load, setting):
    defaults = by_key(Recipe.model_validate(ROWS))
    value = 64 if setting.key == "train.micro_batch_size" else defaults[setting.key]
    text = yaml.safe_dump(value).splitlines()[0]
    recipe = load(f"{setting.key}={text}", *(["train.batch_size=64"] if setting.key.endswith("batch_size") else []))
    assert by_key(recipe)[setting.key] == value
    assert recipe.origins[setting.key].source == "recipe"


def test_what_was_written_for_experts_or_noise_takes_the_preset_s_place(load):
    """Contradictions between what is written and the preset are none of the writer's."""
    experts = load("adapter.experts=true")
    assert (experts.gora.gamma, experts.gora.steps, experts.adapter.targets) == (0.05, 64, "attention")
    assert load("gora.importance=above-noise").gora.steps == 64


def test_bounds_are_those_of_the_rank_that_the_schema_has(load):
    recipe = load("gora.rank_max=16")
    assert (recipe.adapter.rank, recipe.gora.allocation) == (8, "proportional")


def test_other_methods_keep_their_own_ratio_and_whole_weights_have_no_rank(load):
    assert load("adapter.method=lora+").train.loraplus_lr_ratio == "auto"
    full = load("adapter.method=full")
    assert (full.adapter.rank, full.train.learning_rate) == (8, "auto")


def test_a_recipe_that_extends_takes_the_preset_of_what_it_extends(load):
    recipe = load(extends="quickstart")
    assert (recipe.preset, recipe.train.learning_rate) == ("paper", 5e-4)


@pytest.mark.parametrize(
    "settings", [{"parameters": 5000}, {"parameters": "rank 4 on all-linear"}, {"targets": "auto"}]
)
def test_a_budget_or_layers_left_open_mean_a_rank_that_follows(load, settings):
    recipe = load("preset=paper", adapter=settings)
    assert recipe.adapter.rank == "auto"
    assert recipe.gora.budget == ("parameters" if "parameters" in settings else "paper")


@pytest.mark.parametrize(
    ("adapter", "sentence"),
    [
        ({"parameters": "rank 8 on attention", "rank": 4}, "say how many parameters there are, as does adapter.rank"),
        ({"parameters": 5000, "method": "full"}, "full trains the weights of its targets"),
        (
            {"parameters": "rank 8 on mlp"},
            "expected a whole number greater than 0, or text such as 'rank 8 on attention', or null, got",
        ),
        ({"parameters": 0}, "adapter.parameters: "),
    ],
)
def test_a_budget_that_says_too_much_or_nothing_is_refused(load, adapter, sentence):
    with pytest.raises(InputError) as caught:
        load(adapter=adapter)
    assert any(sentence.replace("say how", "says how") in problem for problem in caught.value.problems)


def test_every_value_says_where_it_comes_from_unless_it_is_a_default(load, tmp_path):
    text = dump_recipe(load("train.epochs=2", adapter={"alpha": 32.0}))
    notes = dict(re.findall(r"(?m)^ *(\w+): \S.*  # (.*)$", text))
    assert notes["epochs"] == "--set train.epochs=2"
    assert notes["alpha"] == "my.yaml:2"
    assert notes["learning_rate"].startswith("preset: ")
    assert "beta1" not in notes
    assert str(tmp_path) not in text


def test_text_of_many_lines_gets_no_note_inside(load):
    template = "a\n\ntrain: {prompt}\n  rank: {prompt}\n"
    text = dump_recipe(load(data={"train": {"path": "rows.jsonl"}, "template": template}))
    assert yaml.safe_load(text)["data"]["template"] == template


class TestARunThatIsOlderThanPresets:
    """Its recipe has no `preset`, and every other setting."""

    @pytest.fixture
    def begun(self, load, tmp_path):
        values = load("preset=paper").model_dump(mode="json")
        del values["preset"], values["gora"]["allocation"]
        folder = tmp_path / "runs" / "my"
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
        return folder

    def test_goes_on_as_the_paper_s(self, load, begun):
        recipe = load()
        assert (recipe.preset, recipe.train.learning_rate, recipe.gora.allocation) == ("paper", 5e-5, "proportional")

    def test_is_read_as_the_paper_s_wherever_it_lies(self, begun, tmp_path):
        moved = begun.rename(tmp_path / "elsewhere")
        recipe = load_recorded(moved / "recipe.yaml")
        assert (recipe.preset, recipe.gora.allocation) == ("paper", "proportional")

    def test_makes_way_for_a_new_one(self, begun, load, tmp_path):
        assert load_recipe(str(tmp_path / "my.yaml"), (), begin=True).recipe.preset == "auto"

    def test_is_not_what_a_recipe_with_a_preset_goes_on_with(self, load, begun):
        assert load("preset=auto").train.learning_rate == "auto"
