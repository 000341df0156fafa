"""Recipes with several sources: what each may say for itself, and how what is wrong is placed."""

import pytest

from gora.errors import InputError
from gora.recipe import dump_recipe, load_recipe
from gora.recipe.sources import asked_as, sources_of

LIST = """model:
  name: some/model
data:
  template: qa
  train:
    - path: a.jsonl
      prompt: question
      weight: 0.5
    - path: org/chats
      split: train_sft
      format: chat
      rows: 200
"""
MAPPING = "model: {name: some/model}\ndata: {train: {path: rows.jsonl}, template: qa}\n"


@pytest.fixture
def load(tmp_path):
    def _load(text, *overrides):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return load_recipe(str(path), overrides).recipe

    return _load


@pytest.fixture
def problems(load, tmp_path):
    def _problems(text, *overrides):
        with pytest.raises(InputError) as refused:
            load(text, *overrides)
        return [problem.removeprefix(f"{tmp_path}/recipe.yaml:") for problem in refused.value.problems]

    return _problems


def test_a_source_says_for_itself_what_differs_from_the_settings_of_all(load):
    first, second = sources_of(load(LIST).data, "train")
    assert (first.key, first.section.path, first.section.weight) == ("data.train.0", "a.jsonl", 0.5)
    assert (first.data.format, first.data.prompt, first.data.template) == ("instruction", "question", "qa")
    assert (second.section.split, second.section.rows) == ("train_sft", 200)
    assert (second.data.format, second.data.prompt) == ("chat", "prompt")
    assert asked_as(load(LIST).data) == first.data


def test_a_recipe_of_one_source_is_written_as_before_there_were_several(load):
    recipe = load(MAPPING)
    (source,) = sources_of(recipe.data, "train")
    assert (source.key, source.data) == ("data.train", recipe.data)
    names = ["path", "subset", "split", "separator", "max_rows"]
    assert list(recipe.model_dump()["data"]["train"]) == names
    assert load(dump_recipe(recipe)) == recipe


def test_a_written_list_of_sources_reads_back_the_same(load):
    recipe = load(LIST + "  eval:\n    - path: b.jsonl\n")
    assert load(dump_recipe(recipe)) == recipe


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("rows: 200", "rows: 0", "12: data.train.1.rows: expected a whole number greater than 0, or null, got 0."),
        ("path: a.jsonl", "pth: a.jsonl", "6: data.train.0.pth: unknown key 'pth'; did you mean 'path'?"),
        ("weight: 0.5", "max_length: 5", "8: data.train.0.max_length: unknown key 'max_length'; 'max_length' belongs"),
        ("weight: 0.5", "weight: -1", "8: data.train.0.weight: expected a number greater than 0, or null, got -1."),
        ("rows: 200", "rows: 200\n      weight: 2", "12: data.train.1.rows: weight (2) and rows (200) both say"),
        ("rows: 200", "prompt: q", "12: data.train.1.prompt: prompt belongs to format: instruction, but the format is"),
        ("prompt: question", "template: none", "7: data.train.0.template: a template of your own needs a column in"),
        ("rows: 200", "train_on: [asistant]", "12: data.train.1.train_on: expected 'all' or 'last'"),
    ],
)
def test_what_is_wrong_in_a_source_is_named_with_its_number_and_line(problems, old, new, problem):
    found = problems(LIST.replace(old, new))
    assert any(each.startswith(problem) for each in found), found


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        ("[]", "data.train: expected a section with keys such as 'path', or a list of them, got []"),
        ("[rows.jsonl]", "data.train.0: expected a section with keys such as 'path', got 'rows.jsonl'"),
        ("[{path: a.jsonl}, 3]", "data.train.1: expected a section with keys such as 'path', got 3"),
        ("[{split: x}]", "data.train.0.path: missing; expected text, or a list of text"),
        ("{path: a.jsonl, weight: 2}", "data.train.weight: unknown key 'weight'"),
    ],
)
def test_a_list_that_is_not_of_sources_is_refused(problems, train, problem):
    (found,) = problems(f"model: {{name: m}}\ndata: {{train: {train}}}\n")
    assert problem in found


def test_an_evaluation_source_has_no_share_and_is_no_training_source(problems):
    found = problems(LIST + "  eval:\n    - {path: b.jsonl, weight: 2}\n    - {path: ./a.jsonl}\n")
    assert [each.partition(": ")[2].partition(":")[0] for each in found] == ["data.eval", "data.eval.0.weight"]


def test_a_setting_that_only_some_sources_read_is_fine_and_one_that_none_reads_is_not(load, problems):
    load(LIST, "data.messages=turns", "data.prompt=q")
    (found,) = problems(LIST.replace("      format: chat\n", ""), "data.messages=turns")
    assert "data.messages: messages belongs to data.format: chat, but the format is instruction" in found


def test_a_source_is_changed_from_the_command_line_by_its_number(load, problems):
    data = load(LIST, "data.train.0.weight=2", "data.train.1.max_rows=5").data
    assert (data.train[0].weight, data.train[1].max_rows) == (2, 5)
    assert load(LIST, "data.train={path: x.jsonl}").data.train.path == "x.jsonl"
    for setting, why in [
        ("data.train.2.weight=2", "not one of the 2 sections here, which are numbered from 0"),
        ("data.train.path=x", "has no keys to set: it is a list, whose sections are numbered from 0"),
        ("data.train.weight.x=2", "not one of the 2 sections here"),
    ]:
        assert why in str(problems(LIST, setting))


def test_a_list_replaces_the_source_of_the_recipe_that_is_extended(load, tmp_path):
    (tmp_path / "base.yaml").write_text(MAPPING.replace("rows.jsonl}", "rows.jsonl, max_rows: 3}"))
    recipe = load("extends: base.yaml\ndata:\n  train:\n    - {path: a.jsonl}\n")
    assert [source.path for source in recipe.data.train] == ["a.jsonl"]
    (tmp_path / "list.yaml").write_text(LIST)
    assert load("extends: list.yaml\ndata:\n  train: {path: b.jsonl}\n").data.train.path == "b.jsonl"


def test_a_stream_needs_an_end_and_cannot_be_counted(load, problems):
    stream = LIST.replace("  template: qa", "  streaming: true\n  holdout: 5")
    never, holdout, rows = problems(stream)
    assert "data.streaming: a stream does not say how many rows it has; say with train.max_steps" in never
    assert holdout.startswith("5: data.holdout: rows cannot be drawn from all of a stream")
    assert "rows counts those of an epoch, which a stream does not have; use weight" in rows
    load(stream.replace("  holdout: 5\n", "").replace("rows: 200", "weight: 2"), "train.max_steps=5")
