"""Recipes: what is read, what is refused, and in which words."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gora import assets
from gora.errors import InputError
from gora.recipe import LoadedRecipe, Recipe, accumulation_steps, dump_recipe, json_schema, load_recipe
from gora.recipe.builtin import builtin_recipes, read_builtin
from gora.recipe.data_rules import TEMPLATES
from gora.recipe.document import Builder, Document
from gora.recipe.messages import FOREIGN_NAMES, known_keys
from gora.recipe.schema import DataSection, ModelSection, Section, SourceSection, TrainSection
from gora.recipe.yaml_text import compose, dump

MINIMAL = "model:\n  name: some/model\ndata:\n  train:\n    path: rows.jsonl\n"

Write = Callable[..., str]
Problems = Callable[..., list[str]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a recipe and returns its path."""

    def _write(text: str | bytes, name: str = "recipe.yaml") -> str:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return _write


@pytest.fixture
def problems(write: Write) -> Problems:
    """Loads a text that is wrong and returns its problems, with the file shortened to its name."""

    def _problems(text: str | bytes, *overrides: str) -> list[str]:
        path = write(text)
        with pytest.raises(InputError) as caught:
            load_recipe(path, overrides)
        found = caught.value.problems
        count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
        assert caught.value.headline == f"{path}: {count}"
        assert caught.value.exit_code == 2
        return [problem.replace(path, "recipe.yaml") for problem in found]

    return _problems


@pytest.fixture
def load(write: Write) -> Callable[..., LoadedRecipe]:
    return lambda text, *overrides: load_recipe(write(text), overrides)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two built-in recipes."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "tiny-chat.yaml").write_text(MINIMAL + "description: Chat on a tiny model\n")
    (folder / "tiny-math.yaml").write_text(MINIMAL + "seed: 7\n")
    monkeypatch.setattr(assets, "folder", lambda kind: folder if kind == "recipes" else tmp_path / "none")
    return folder


def without_notes(text: str) -> str:
    """A written recipe without what it says of where values come from."""
    return re.sub(r"(?m)  # .*$", "", text)


def plain(text: str) -> Any:
    document = Document(origin="text")
    node = compose(text)
    assert node is not None
    return Builder(document, "text").value(node, ())


def only(found: list[str]) -> str:
    assert len(found) == 1, found
    return found[0]


# --- finding a recipe -------------------------------------------------------------------------------------------------


def test_a_file_is_loaded_with_name_origin_and_default_output(write: Write) -> None:
    path = write("preset: paper\n" + MINIMAL, "my-run.yaml")
    loaded = load_recipe(path)
    assert (loaded.name, loaded.origin, loaded.recipe.output) == ("my-run", path, "runs/my-run")
    assert loaded.recipe.model.name == "some/model"
    assert loaded.recipe.train == TrainSection()


def test_an_output_of_its_own_is_kept(load: Callable[..., LoadedRecipe]) -> None:
    assert load(MINIMAL + "output: elsewhere\n").recipe.output == "elsewhere"


def test_a_builtin_recipe_is_loaded_by_name(shipped: Path) -> None:
    loaded = load_recipe("tiny-math")
    assert (loaded.name, loaded.recipe.seed, loaded.recipe.output) == ("tiny-math", 7, "runs/tiny-math")
    assert loaded.origin == str(shipped / "tiny-math.yaml")


def test_a_folder_does_not_hide_a_builtin_recipe(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-math").mkdir()
    assert load_recipe("tiny-math").recipe.seed == 7


def test_a_file_comes_before_a_builtin_recipe(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-math").write_text(MINIMAL + "seed: 8\n")
    assert load_recipe("tiny-math").recipe.seed == 8


@pytest.mark.parametrize("reference", ["tiny-maht", "recipes/tiny-maht.yaml"])
def test_an_unknown_reference_is_answered_with_the_nearest_builtin_names(shipped: Path, reference: str) -> None:
    with pytest.raises(InputError, match=r"neither a file nor a built-in recipe.*Did you mean 'tiny-math'"):
        load_recipe(reference)


@pytest.mark.parametrize("reference", ["qqq", "", "a\0b", "x" * 5000, "../shipped/tiny-math"])
def test_an_unknown_reference_is_never_a_traceback(shipped: Path, reference: str) -> None:
    with pytest.raises(InputError):
        load_recipe(reference)


def test_a_run_folder_is_answered_with_the_recipe_in_it(write: Write, tmp_path: Path) -> None:
    path = write(MINIMAL)
    with pytest.raises(InputError) as caught:
        load_recipe(str(tmp_path))
    assert "is a folder" in str(caught.value) and path in str(caught.value)


def test_builtin_recipes_are_listed_with_their_descriptions(shipped: Path) -> None:
    (shipped / "broken.yaml").write_text("[")
    (shipped / "notes.txt").write_text("no recipe")
    assert builtin_recipes() == [("broken", ""), ("tiny-chat", "Chat on a tiny model"), ("tiny-math", "")]


def test_no_folder_of_recipes_is_an_empty_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "folder", lambda kind: tmp_path / "none")
    assert builtin_recipes() == []


def test_a_builtin_recipe_is_read_as_it_stands(shipped: Path) -> None:
    assert read_builtin("tiny-math") == MINIMAL + "seed: 7\n"
    with pytest.raises(InputError, match="Did you mean 'tiny-math'"):
        read_builtin("tiny-mth")


# --- YAML -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("5e-5", 5e-5),
        ("5E+3", 5000.0),
        (".5", 0.5),
        ("-1.5", -1.5),
        ("8", 8),
        ("+8", 8),
        ("-8", -8),
        ("010", 10),
        ("0o10", "0o10"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("true", True),
        ("false", False),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("null", None),
        ("~", None),
        ("''", ""),
        ("'8'", "8"),
        ("=", "="),
        ("[a, 1, [b]]", ["a", 1, ["b"]]),
        ("{a: 1, b: {c: }}", {"a": 1, "b": {"c": None}}),
    ],
)
def test_plain_values_are_read_by_the_core_rules_of_yaml_1_2(text: str, value: Any) -> None:
    assert plain(text) == value
    assert type(plain(text)) is type(value)


@pytest.mark.parametrize(
    "text", ["yes", "1e5", "010", "1:30", "0o7", "null", "", " a ", "a\nb\n", "{x}: y", "a\x85b\u2028", "é", "# a"]
)
def test_text_is_written_so_that_every_reader_gets_the_same_text(text: str) -> None:
    assert plain(dump({"a": [text]})) == {"a": [text]}
    assert yaml.safe_load(dump({"a": [text]})) == {"a": [text]}


def test_an_alias_repeats_a_value(load: Callable[..., LoadedRecipe]) -> None:
    text = MINIMAL.replace("rows.jsonl", "&p rows.jsonl") + "  eval: {path: *p, split: x}\n"
    assert load(text).recipe.data.eval == SourceSection(path="rows.jsonl", split="x")


BILLION_LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "recipe.yaml:1: the file is empty"),
        ("# nothing\n", "recipe.yaml:1: the file is empty"),
        ("---\n", "recipe.yaml:1: the file is empty"),
        ("- a\n", "recipe.yaml:1: expected sections"),
        ("\n\njust text\n", "recipe.yaml:3: expected sections"),
        ("model:\n  name: a: b\n", "recipe.yaml:2: not valid YAML: mapping values are not allowed here; put quotes"),
        ("model:\n\tname: a\n", "recipe.yaml:2: not valid YAML: .*spaces, not with tabs"),
        ("model: {name: [}\n", "recipe.yaml:1: not valid YAML"),
        ("model: *other\n", "recipe.yaml:1: not valid YAML: found undefined alias"),
        ("a: 1\n---\nb: 2\n", "recipe.yaml:2: not valid YAML"),
        ("a: 1\nb: \x07\n", "recipe.yaml:2: the character '.x07' cannot stand in YAML"),
        (b"a: 1\nb: \xff\n", "recipe.yaml:2: not UTF-8 text .byte 0xff."),
        ('a: "\\UFFFFFFFF"\n', "recipe.yaml:1: not valid YAML"),
        ("a: " + "[" * 10_000, "recipe.yaml:1: not valid YAML: more nested"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(200)), "recipe.yaml:21: not valid YAML: more nested"),
        ("a: &a [*a]\n", "recipe.yaml:1: more values, or deeper ones"),
        (BILLION_LAUGHS, "recipe.yaml:1: more values, or deeper ones"),
        ("# " + "x" * 300_000, "recipe.yaml:1: larger than 256 KiB"),
    ],
)
def test_text_that_is_no_recipe_is_one_problem_with_its_line(
    problems: Problems, text: str | bytes, problem: str
) -> None:
    assert re.match(problem, only(problems(text)))


def test_a_byte_order_mark_is_no_part_of_the_first_key(load: Callable[..., LoadedRecipe]) -> None:
    assert load(b"\xef\xbb\xbf" + MINIMAL.encode()).recipe.model.name == "some/model"


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!!set", "!mine"])
def test_tags_are_refused_and_nothing_runs(problems: Problems, tmp_path: Path, tag: str) -> None:
    found = problems(MINIMAL + f"seed: {tag} ['touch {tmp_path}/owned']\n")
    assert only(found).startswith(f"recipe.yaml:6: seed: the tag '{tag}' is not allowed")
    assert not (tmp_path / "owned").exists()


def test_a_standard_tag_must_fit_its_value(problems: Problems) -> None:
    assert "recipe.yaml:6: seed: the tag '!!int' is not allowed" in only(problems(MINIMAL + "seed: !!int abc\n"))


@pytest.mark.parametrize("key", ["1", "null", "true", "1.5", "[a]", "{a: b}", "? "])
def test_keys_must_be_text(problems: Problems, key: str) -> None:
    line = f"? {key}\n: x\n" if key != "? " else "? \n: x\n"
    assert only(problems(MINIMAL + line)).startswith("recipe.yaml:6: a key must be text")


def test_a_key_given_twice_is_reported_with_both_lines(problems: Problems) -> None:
    found = problems(MINIMAL + "train:\n  epochs: 1\n  batch_size: 8\n  epochs: 2\n")
    assert only(found) == "recipe.yaml:9: train.epochs: given twice (lines 7 and 9); keep one of the two"


def test_the_keys_of_a_section_given_twice_are_all_checked(problems: Problems) -> None:
    found = problems(MINIMAL + "train:\n  epochs: a\ntrain:\n  max_steps: b\n")
    assert [problem.split(": ")[:2] for problem in found] == [
        ["recipe.yaml:7", "train.epochs"],
        ["recipe.yaml:8", "train"],
        ["recipe.yaml:9", "train.max_steps"],
    ]


# --- values of the wrong type -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("gora.rank_max", "unb", "expected a whole number greater than 0, or 'auto' or 'unbounded', got 'unb'."),
        ("gora.rank_max", "unbound", "got 'unbound'; did you mean 'unbounded'?"),
        ("gora.rank_max", "0", "expected a whole number greater than 0, or 'auto' or 'unbounded', got 0."),
        ("gora.rank_min", "-1", "expected a whole number at least 0, or 'auto', got -1."),
        ("train.epochs", "'3'", "expected a number greater than 0, got '3'; write a number without quotes"),
        ("train.epochs", ".inf", "got a number that is not finite"),
        ("train.epochs", ".nan", "got a number that is not finite"),
        ("train.epochs", "9" * 5000, "got a number that is not finite"),
        ("train.batch_size", "64.0", "expected a whole number greater than 0, got 64.0."),
        ("train.batch_size", "1_000", "got '1_000'; write a number without quotes and underscores"),
        ("train.learning_rate", "'0,001'", "got '0,001'; write a decimal point instead of the comma"),
        ("train.learning_rate", "1\u0435-3", "in it is CYRILLIC SMALL LETTER IE, which no number has: type it again"),
        ("train.learning_rate", "\u22121e-3", "in it is MINUS SIGN, which no number has: type it again"),
        ("train.batch_size", "true", "expected a whole number greater than 0, got true."),
        ("train.batch_size", "null", "expected a whole number greater than 0, got null."),
        ("train.batch_size", "[8]", "expected a whole number greater than 0, got [8]."),
        ("train.max_steps", "a", "expected a whole number greater than 0, or null, got 'a'."),
        ("train.beta1", "1", "expected a number at least 0 and less than 1, got 1."),
        ("train.warmup_ratio", "2", "expected a number at least 0 and at most 1, got 2."),
        ("train.learning_rate", "fast", "got 'fast'. Peak learning rate of A."),
        ("train.activation_checkpointing", "yes", "expected true or false, or 'auto', got 'yes'."),
        ("train.schedule", "cosin", "expected 'cosine', 'linear' or 'constant', got 'cosin'; did you mean 'cosine'?"),
        ("adapter.method", "lroa", "'lora-fa' or 'full', got 'lroa'; did you mean 'lora'?"),
        ("model.name", "7", "expected text, got 7; put quotes around text"),
        ("model.name", "{a}", "expected text, got keys and values; put quotes around text"),
        ("adapter.targets", "[]", "expected text, or a list of text (at least 1), got []."),
        ("adapter.targets", "[a, 3]", "got ['a', 3] (item 2 is 3); put quotes"),
        (
            "data.choices",
            "[true, false]",
            "expected a list of text (at least 2), or null, got [true, false] (item 1 is true)",
        ),
        ("model.name", '"\\uD83D"', "'\\ud83d' has half a character"),
        ("train", "5", "expected a section with keys such as 'epochs', got 5"),
        ("train", "[a]", "expected a section with keys such as 'epochs', got ['a']"),
        ("data.eval", "rows.jsonl", "expected a section with keys such as 'path', or a list of them, got 'rows.jsonl'"),
        ("model", "x", "expected a section with keys such as 'name', got 'x'"),
    ],
)
def test_a_wrong_value_is_one_sentence_in_plain_words(problems: Problems, key: str, value: str, sentence: str) -> None:
    found = only(problems(MINIMAL, f"{key}={value}"))
    assert f": {key}: " in found
    assert sentence in found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("seed: 1\n", ["recipe.yaml: model.name: missing", "recipe.yaml: data.train.path: missing"]),
        (
            "model:\ndata:\n  train:\n",
            ["recipe.yaml:1: model.name: missing", "recipe.yaml:3: data.train.path: missing"],
        ),
        (
            "\nmodel: {}\ndata: {train: {path: x}, eval: {split: a}}\n",
            ["recipe.yaml:2: model.name", "recipe.yaml:3: data.eval.path"],
        ),
    ],
)
def test_what_is_missing_is_named_with_the_line_of_its_section(problems: Problems, text: str, found: list[str]) -> None:
    for problem, start in zip(problems(text), found, strict=True):
        assert problem.startswith(start)


def test_what_is_missing_is_explained(problems: Problems) -> None:
    assert "missing; expected text. Hub id or folder of a causal" in problems("seed: 1\n")[0]


def test_a_section_with_nothing_under_it_is_an_empty_section(load: Callable[..., LoadedRecipe]) -> None:
    assert load(MINIMAL + "train:\nadapter: ~\n").recipe.train == TrainSection()


# --- unknown keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("adapter: {lora_rnak: 4}", "adapter.lora_rnak: unknown key 'lora_rnak'; did you mean 'rank'?"),
        ("trian: {epochs: 4}", "trian: unknown key 'trian'; did you mean 'train'?"),
        (
            "train: {Learning-Rate: 4}",
            "train.Learning-Rate: unknown key 'Learning-Rate'; did you mean 'learning_rate'?",
        ),
        ("adapter: {learning_rate: 1}", "unknown key 'learning_rate'; 'learning_rate' belongs under 'train:'"),
        ("learning_rate: 1", "learning_rate: unknown key 'learning_rate'; 'learning_rate' belongs under 'train:'"),
        ("train: {seed: 1}", "train.seed: unknown key 'seed'; 'seed' belongs at the top level"),
        ("train: {steps: 1}", "'steps' belongs under 'gora:' or under 'evaluation:'"),
        ("path: x", "'path' belongs under 'data.train:' or under 'data.eval:'"),
        ("learnin_rate: 1", "did you mean 'learning_rate', which belongs under 'train:'?"),
        ("train.learning_rate: 1", "a key has no dots: write 'learning_rate' under 'train:'"),
        ("data.eval.path: 1", "a key has no dots: write 'path' under 'data.eval:'"),
        ("train.rank: 1", "unknown key 'rank'; 'rank' belongs under 'adapter:'"),
        ("train: {lr: 1}", "unknown key 'lr'; here it is 'learning_rate' under 'train:'"),
        ("output_dir: x", "unknown key 'output_dir'; here it is 'output' at the top level"),
        ("evaluation: {qqqqq: 1}", "unknown key 'qqqqq'; known here: steps, micro_batch_size"),
        ("no.such: 1", "'no.such': unknown key 'no.such'"),
        ("'a b\\e': 1", "unknown key"),
        ("<<: {seed: 1}", "'<<': unknown key '<<'"),
    ],
)
def test_an_unknown_key_is_answered_with_what_was_probably_meant(problems: Problems, lines: str, sentence: str) -> None:
    found = only(problems(MINIMAL + lines + "\n"))
    assert found.startswith("recipe.yaml:6: ")
    assert sentence in found


def test_names_of_other_toolkits_lead_to_keys_that_exist() -> None:
    for foreign, key in FOREIGN_NAMES.items():
        assert tuple(key.split(".")) in known_keys()
        assert foreign not in {known[-1] for known in known_keys()}


# --- all at once ------------------------------------------------------------------------------------------------------


def test_all_problems_are_listed_at_once_in_the_order_of_the_file(problems: Problems) -> None:
    text = (
        "model:\n  name: 7\n  nmae: x\n"
        "data:\n  train: {path: a.jsonl}\n  holdout: 5\n  eval: {path: b.jsonl}\n"
        "train:\n  epochs: 0\n  batch_size: 10\n  micro_batch_size: 4\n"
        "seed: !!python/none x\n"
    )
    starts = [problem.split(": ")[:2] for problem in problems(text, "gora.steps=0", "nonsense")]
    assert starts == [
        ["recipe.yaml:2", "model.name"],
        ["recipe.yaml:3", "model.nmae"],
        ["recipe.yaml:6", "data.holdout"],
        ["recipe.yaml:9", "train.epochs"],
        ["recipe.yaml:10", "train.batch_size"],
        ["recipe.yaml:12", "seed"],
        ["--set nonsense", "expected section.key=value, as in train.epochs=3"],
        ["--set gora.steps=0", "gora.steps"],
    ]


def test_the_error_shows_its_problems(write: Write) -> None:
    path = write(MINIMAL + "seed: x\n")
    with pytest.raises(InputError, match=r"1 problem\n  - .*recipe.yaml:6: seed: expected a whole number"):
        load_recipe(path)


def test_a_number_is_no_key_of_a_single_source(problems: Problems) -> None:
    said = "data.train.0: data.train is not a list, and only a list has numbered sections; leave the number out"
    text = "model: {name: x}\ndata: {train: {path: a"
    for told in (problems(text + "}}", "data.train.0.path=b"), problems(text + ", '0': {path: b}}}")):
        assert len(told) == 1 and said in told[0]


# --- contradictions ---------------------------------------------------------------------------------------------------

CONTRADICTIONS = [
    ("gora: {rank_min: 12, rank_max: 10}\nadapter: {rank: 11}", "gora.rank_min: rank_min (12) is above rank_max (10)"),
    ("gora: {rank_min: 40}", "gora.rank_min: rank_min (40) is above rank_max (auto, here 32)"),
    ("gora: {rank_min: 9}", "gora.rank_min: rank_min (9) is above adapter.rank (8)"),
    ("gora: {rank_max: 7}", "gora.rank_max: rank_max (7) is below adapter.rank (8)"),
    ("train: {batch_size: 10, micro_batch_size: 4}", "train.batch_size: batch_size (10) is not a multiple of"),
    ("train: {micro_batch_size: 3}", "train.micro_batch_size: batch_size (64) is not a multiple of"),
    ("evaluation: {steps: 5}", "evaluation.steps: there are no rows to evaluate on"),
    ("TRAIN: {holdout: 5, eval: {path: b.jsonl}}", "data.holdout: evaluation rows are given twice"),
    ("TRAIN: {eval: {path: rows.jsonl}}", "data.eval: the evaluation rows are the training rows"),
    ("TRAIN: {eval: {path: ./rows.jsonl}}", "data.eval: the evaluation rows are the training rows"),
    ("TRAIN: {system: hello}", "data.system: system belongs to data.format: chat"),
    ("TRAIN: {messages: turns}", "data.messages: messages belongs to data.format: chat"),
    ("TRAIN: {chat_template: chatml}", "data.chat_template: chat_template belongs to data.format: chat"),
    ("TRAIN: {format: chat, prompt: q}", "data.prompt: prompt belongs to data.format: instruction"),
    ("TRAIN: {format: chat, response: a}", "data.response: response belongs to data.format: instruction"),
    ("TRAIN: {format: chat, choices: [a, b]}", "data.choices: choices belongs to data.format: instruction"),
    ("TRAIN: {format: chat, template: qa}", "data.template: template belongs to data.format: instruction"),
    (
        "TRAIN: {prompt: answer, response: answer}",
        "data.response: prompt and response both come from the column 'answer'",
    ),
    ("TRAIN: {template: alpcaa}", "'alpcaa' has none; did you mean 'alpaca'?"),
    ("TRAIN: {template: 'Answer this:'}", "data.template: a template of your own needs a column in braces"),
    ("adapter: {targets: 'layers.(1|2'}", "adapter.targets: 'layers.(1|2' is not a valid regular expression"),
    ("adapter: {targets: [q_proj, '*.v_proj']}", "adapter.targets: '*.v_proj' is not a valid regular expression"),
]


def with_data(lines: str) -> str:
    """A recipe with more lines; `TRAIN:` stands for a data section that has its training rows."""
    if lines.startswith("TRAIN: {"):
        data = lines.replace("TRAIN: {", "data: {train: {path: rows.jsonl}, ")
        return f"model: {{name: some/model}}\n\n\n\n\n{data}\n"
    return f"{MINIMAL}{lines}\n"


@pytest.mark.parametrize(("lines", "sentence"), CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_refused(problems: Problems, lines: str, sentence: str) -> None:
    found = problems(with_data(lines))
    assert any(sentence in problem for problem in found), found
    assert all(problem.startswith("recipe.yaml:6: ") for problem in found)


def test_a_bound_that_is_left_open_is_named_with_its_value(problems: Problems) -> None:
    found = problems(MINIMAL + "gora: {rank_max: 3}\n", "preset=paper")
    assert any("rank_min (auto, here 4) is above rank_max (3)" in problem for problem in found)


@pytest.mark.parametrize(
    "lines",
    [
        "gora: {rank_min: 8, rank_max: 8}",
        "gora: {rank_min: 0, rank_max: unbounded}",
        "adapter: {rank: 1}",
        "adapter: {rank: 128, method: lora}\ngora: {rank_max: 64}",
        "train: {batch_size: 8, micro_batch_size: 8}",
        "evaluation: {steps: 5}\n",
        "TRAIN: {format: chat, messages: turns, system: hello, chat_template: chatml}",
        "TRAIN: {format: chat, prompt: prompt, choices: null, template: plain}",
        "TRAIN: {format: instruction, prompt: q, response: a, choices: [a, b], messages: messages, system: null}",
        "TRAIN: {template: 'Q: {question}'}",
        "TRAIN: {template: alpaca}",
        "TRAIN: {eval: {path: rows.jsonl, subset: other}}",
        "TRAIN: {eval: {path: hub/set, split: test}}",
        "adapter: {targets: 'model\\.layers\\.[0-9]+\\..*_proj'}",
        "adapter: {targets: [q_proj, v_proj]}",
        "adapter: {targets: all-linear}",
    ],
)
def test_settings_that_agree_are_taken(load: Callable[..., LoadedRecipe], lines: str) -> None:
    text = with_data(lines)
    load(text.replace("data:\n", "data:\n  holdout: 9\n") if "evaluation" in lines else text)


@pytest.mark.parametrize(
    ("train_split", "eval_split", "same"), [("", "", False), ("test", "test", True), ("", "train", True)]
)
def test_without_a_split_a_data_set_is_not_evaluated_on_its_training_rows(
    load: Callable[..., LoadedRecipe], problems: Problems, train_split: str, eval_split: str, same: bool
) -> None:
    train, evaluation = (f"{{path: hub/set, split: {split}}}" for split in (train_split, eval_split))
    text = f"model: {{name: m}}\ndata: {{train: {train}, eval: {evaluation}}}\n"
    if same:
        assert "the evaluation rows are the training rows" in only(problems(text))
    else:
        load(text)


@pytest.mark.parametrize(
    "lines",
    [
        "gora: {rank_min: 100}\nadapter: {rank: x}",
        "gora: {rank_min: 100}\nadapter: {rnak: 200}",
        "gora: {rank_min: 100}\nlora_rank: 200",
        "train: {batch_size: 10, micro_batch_size: x}",
        "evaluation: {steps: 5, holdout: 5}",
        "TRAIN: {format: cht, system: hello}",
        "TRAIN: {eval: {path: rows.jsonl, split: 3}}",
    ],
)
def test_a_rule_is_silent_while_a_key_that_it_concerns_is_wrong(problems: Problems, lines: str) -> None:
    only(problems(with_data(lines)))


def test_a_contradiction_that_an_override_makes_is_shown_at_the_override(problems: Problems) -> None:
    found = only(problems(MINIMAL + "gora: {rank_min: 6}\n", "adapter.rank=5"))
    assert found.startswith("--set adapter.rank=5: adapter.rank: rank_min (6) is above adapter.rank (5)")


# --- overrides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("adapter.rank=16", "adapter.rank", 16),
        ("train.learning_rate=1e-5", "train.learning_rate", 1e-5),
        ("adapter.targets=[q_proj, v_proj]", "adapter.targets", ["q_proj", "v_proj"]),
        ("train.max_grad_norm=", "train.max_grad_norm", None),
        ("train.max_grad_norm=null", "train.max_grad_norm", None),
        ("data.train.path=other.jsonl", "data.train.path", "other.jsonl"),
        ("data.eval.path=other.jsonl", "data.eval.path", "other.jsonl"),
        ("data.eval={path: other.jsonl}", "data.eval.path", "other.jsonl"),
        ("model.name=builtin:tiny-6m", "model.name", "builtin:tiny-6m"),
        ("output=a=b", "output", "a=b"),
        ("data.template='Q: {question}'", "data.template", "Q: {question}"),
    ],
)
def test_an_override_changes_one_value(load: Callable[..., LoadedRecipe], override: str, key: str, value: Any) -> None:
    found: Any = load(MINIMAL, override).recipe
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value


def test_the_last_override_wins(load: Callable[..., LoadedRecipe]) -> None:
    assert load(MINIMAL + "seed: 1\n", "seed=2", "seed=3").recipe.seed == 3


def test_an_override_replaces_a_wrong_value_of_the_file(load: Callable[..., LoadedRecipe]) -> None:
    assert load(MINIMAL + "seed: x\n", "seed=2").recipe.seed == 2


def test_an_override_reaches_into_a_section_that_is_null(load: Callable[..., LoadedRecipe]) -> None:
    recipe = load(MINIMAL + "  eval: null\ntrain:\n", "data.eval.path=b.jsonl", "train.epochs=2").recipe
    assert recipe.data.eval == SourceSection(path="b.jsonl")
    assert recipe.train.epochs == 2


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("foo", "--set foo: expected section.key=value"),
        ("=3", "--set =3: expected section.key=value"),
        ("", "--set : expected section.key=value"),
        ("train..rank=3", "--set train..rank=3: expected section.key=value"),
        ("train.=3", "--set train.=3: expected section.key=value"),
        ("train.rnk=3", "--set train.rnk=3: train.rnk: unknown key 'rnk'"),
        ("train.rank=3", "--set train.rank=3: train.rank: unknown key 'rank'; 'rank' belongs under 'adapter:'"),
        ("nothing.rank=3", "--set nothing.rank=3: nothing: unknown key 'nothing'"),
        ("adapter.rank=a", "--set adapter.rank=a: adapter.rank: expected "),
        ("adapter.rank=[", "--set adapter.rank=[: adapter.rank: not valid YAML"),
        ("adapter.rank=*a", "--set adapter.rank=*a: adapter.rank: not valid YAML"),
        ("adapter.rank=!!python/name:os.system", "adapter.rank: the tag '!!python/name:os.system' is not allowed"),
        ("data.eval={path: a, path: b}", "--set data.eval={path: a, path: b}: data.eval.path: given twice"),
        ("seed.x=3", "--set seed.x=3: seed: has no keys to set: it is a single value (recipe.yaml:6)"),
        ("data.eval.split=a", "--set data.eval.split=a: data.eval.path: missing"),
        ("model.name=\udcff", "--set model.name=?: model.name: the character '\\udcff' cannot stand in YAML"),
        ("model.name=" + "[" * 10_000, "model.name: not valid YAML: more nested than a recipe can be"),
    ],
)
def test_a_wrong_override_is_shown_as_it_was_typed(problems: Problems, override: str, sentence: str) -> None:
    found = only(problems(MINIMAL + "seed: 1\n", override))
    assert sentence in found
    assert found.startswith("--set ")


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("processes", "steps"), [(1, 8), (2, 4), (8, 1)])
def test_accumulation_shares_the_batch_over_processes(processes: int, steps: int) -> None:
    assert accumulation_steps(TrainSection(batch_size=64, micro_batch_size=8), processes) == steps


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "remedy"),
    [
        (64, 8, 3, "Set train.batch_size: 48 or 72."),
        (8, 8, 2, "Set train.batch_size: 16, or train.micro_batch_size: 4."),
        (64, 12, 2, "Set train.batch_size: 48 or 72, or train.micro_batch_size: 8."),
        (999_999_937, 10**9, 1, "Set train.batch_size: 1000000000, or train.micro_batch_size: 1."),
    ],
)
def test_a_batch_that_cannot_be_shared_is_answered_with_sizes_that_can(
    batch: int, micro: int, processes: int, remedy: str
) -> None:
    train = TrainSection(batch_size=batch, micro_batch_size=micro)
    with pytest.raises(InputError) as caught:
        accumulation_steps(train, processes)
    assert str(caught.value).endswith(remedy)


# --- writing, and the schema ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        MINIMAL,
        MINIMAL + "train: {learning_rate: 1e-5, epochs: 3}\nadapter: {targets: [q_proj, v_proj]}\n",
        with_data("TRAIN: {format: chat, system: 'yes', eval: {path: b.csv, max_rows: 3}}"),
        with_data('TRAIN: {template: "Q: {q}\\n\\nA: "}') + "description: '1e5'\n",
        with_data("TRAIN: {choices: ['no', 'yes', '1:30', '010', '2', 'null', é]}"),
    ],
)
def test_a_written_recipe_loads_as_an_equal_one(write: Write, text: str) -> None:
    recipe = load_recipe(write(text)).recipe
    written = dump_recipe(recipe)
    assert load_recipe(write(written)).recipe == recipe
    assert without_notes(dump_recipe(load_recipe(write(written)).recipe)) == without_notes(written)


def test_a_written_recipe_is_complete_and_in_the_order_of_the_schema() -> None:
    data = DataSection(train=SourceSection(path="rows.jsonl"))
    written = plain(dump_recipe(Recipe(model=ModelSection(name="m"), data=data)))
    assert list(written) == [name for name in Recipe.model_fields if name != "extends"]
    assert list(written["train"]) == list(TrainSection.model_fields)


def sections() -> Iterator[type[Section]]:
    waiting = list(Section.__subclasses__())
    while waiting:
        section = waiting.pop()
        waiting.extend(section.__subclasses__())
        yield section


def test_every_field_of_every_section_has_a_description() -> None:
    assert {"Recipe", "TrainSection", "SourceSection"} <= {section.__name__ for section in sections()}
    for section in sections():
        for name, field in section.model_fields.items():
            assert field.description and field.description.endswith("."), f"{section.__name__}.{name}"


def test_every_required_key_is_text_or_a_section() -> None:
    """Checking goes on after a wrong value with an empty one in its place."""
    for path, key in known_keys().items():
        kinds = [key.schema, *key.schema.get("anyOf", [])]
        assert key.section or not key.required or any(kind.get("type") == "string" for kind in kinds), path


def test_the_json_schema_describes_a_closed_recipe() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "gora recipe"
    assert schema["properties"]["seed"]["description"].startswith("Seed of")
    for part in [schema, *schema["$defs"].values()]:
        assert part["additionalProperties"] is False
        assert part["description"]


def test_the_known_templates_are_the_ones_that_the_schema_names() -> None:
    described = DataSection.model_fields["template"].description or ""
    assert all(f"`{name}`" in described for name in TEMPLATES)


# --- speed ------------------------------------------------------------------------------------------------------------


def test_loading_a_wrong_recipe_imports_neither_torch_nor_transformers(write: Write) -> None:
    program = (
        "import sys\n"
        "from gora.errors import InputError\n"
        "from gora.recipe import load_recipe\n"
        "try:\n    load_recipe(sys.argv[1], ['train.rank=3'])\n"
        "except InputError as error:\n    print(len(error.problems), {'torch', 'transformers'} & set(sys.modules))\n"
    )
    command = [sys.executable, "-c", program, write("model: 3\n")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout == "3 set()\n"
