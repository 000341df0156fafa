"""`gora init`: rows as people have them become a recipe that runs without an edit, or are answered with what to do."""

import json

import pytest

from gora.errors import InputError
from gora.stages.init import propose
from tests.conftest import TINY
from tests.helpers.classifiers import write_model

COUNT = 24
TINY_NAME = "builtin:tiny-6m"
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"type": "function", "function": {"name": "add", "arguments": "{}"}}
SHAREGPT = [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "say"}]
OPENAI = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "say"}]


def save(path, row, count=COUNT, *, array=False):
    rows = [{**row, "idx": index} if isinstance(row, dict) else row(index) for index in range(count)]
    text = json.dumps(rows) if array else "".join(json.dumps(each) + "\n" for each in rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


def found(path, model=TINY_NAME, settings=()):
    return propose(model, path, settings).loaded.recipe


KINDS = {
    "LLaMA-Factory, Alpaca": (
        {"instruction": "do", "input": "this", "output": "done", "system": "Be brief.", "history": [["a", "b"]]},
        {"format": "instruction", "prompt": "instruction", "response": "output", "template": "alpaca"},
    ),
    "LLaMA-Factory, ShareGPT": (
        {"conversations": SHAREGPT, "system": "Be brief.", "tools": ""},
        {"format": "chat", "messages": "conversations", "chat_template": "plain"},
    ),
    "Axolotl, chat_template": ({"messages": OPENAI}, {"format": "chat", "messages": "messages"}),
    "Axolotl, ShareGPT": ({"id": "x", "conversations": SHAREGPT}, {"format": "chat", "messages": "conversations"}),
    "Axolotl, Alpaca": (
        {"instruction": "do", "input": "", "output": "done"},
        {"format": "instruction", "prompt": "instruction", "template": "alpaca"},
    ),
    "Axolotl, completion": ({"text": "a text of some words"}, {"format": "text", "text": "text"}),
    "OpenAI": ({"messages": [*OPENAI, *OPENAI], "parallel_tool_calls": False}, {"format": "chat"}),
    "OpenAI, before chat": (
        {"prompt": "ask\n\n###\n\n", "completion": " say END"},
        {"format": "instruction", "prompt": "prompt", "response": "completion", "template": "plain"},
    ),
    "messages as JSON text": ({"messages": json.dumps(OPENAI)}, {"format": "chat"}),
    "begins with the assistant": ({"conversations": [SHAREGPT[1], *SHAREGPT]}, {"first_turn": "drop"}),
    "GSM8K": (
        {"question": "1+1?", "answer": "2"},
        {"prompt": "question", "response": "answer", "template": "qa", "choices": None},
    ),
    "programs": ({"task_id": 3, "text": "add", "code": "a + b"}, {"prompt": "text", "response": "code"}),
    "labels as text": (
        lambda index: {"sentence": "good or bad", "label": ("bad", "good")[index % 2]},
        {"prompt": "sentence", "response": "label", "choices": ["bad", "good"]},
    ),
    "labels of a pair": (
        lambda index: {"premise": "it rains", "hypothesis": "it pours", "label": index % 3, "idx": index},
        {"prompt": "premise", "template": "{prompt}\n{hypothesis}\n", "choices": ["0", "1", "2"]},
    ),
}


@pytest.mark.parametrize(("row", "expected"), KINDS.values(), ids=KINDS)
def test_rows_as_people_have_them_are_recognised(tmp_path, row, expected):
    data = found(save(tmp_path / "rows.jsonl", row)).data
    assert {key: getattr(data, key) for key in expected} == expected
    assert data.holdout == 6 and data.max_length == 256


def test_an_encoder_gets_a_head_for_the_labels_of_the_rows(tmp_path):
    model = write_model(tmp_path / "bert")
    path = save(tmp_path / "rows.jsonl", lambda index: {"sentence1": "one", "sentence2": "two", "label": index % 2})
    recipe = found(path, str(model))
    assert recipe.model.head == "classification"
    assert (recipe.data.prompt, recipe.data.prompt_pair, recipe.data.choices) == ("sentence1", "sentence2", ["0", "1"])
    path = save(tmp_path / "texts.jsonl", {"question": "ask", "answer": "a long answer that is not one of a few"})
    floats = save(tmp_path / "floats.jsonl", lambda index: {"sentence": "x", "label": float(index % 2)})
    with pytest.raises(InputError, match=r"column 'label' holds the number 0\.0, and labels are whole numbers"):
        found(floats, str(model))
    with pytest.raises(InputError, match=r"the model is a classifier.*'label'.*or give a language model"):
        propose(str(model), path)


def test_lengths_are_those_of_the_rows_and_stay_within_the_context(tmp_path):
    long = save(tmp_path / "long.jsonl", {"question": "word " * 400, "answer": "end"})
    longest = save(tmp_path / "longest.jsonl", {"question": "word " * 4000, "answer": "end"})
    context = json.loads((TINY / "config.json").read_text())["max_position_embeddings"]
    assert 400 < found(long).data.max_length <= found(longest).data.max_length == context


def test_a_folder_with_a_split_for_evaluation_is_evaluated_on_it(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "test"):
        save(folder / f"{split}.jsonl", {"question": split, "answer": "a"})
    data = found(str(folder)).data
    assert data.eval.path == data.train.path == str(folder) and data.holdout == 0


def test_the_recipe_is_written_with_reasons_and_settings_of_the_command_line_and_runs_without_an_edit(
    tmp_path, gora_here
):
    save(tmp_path / "mine.jsonl", {"query": "1+1?", "reply": "It is 2."})
    small = ["--set", "train.max_steps=2", "--set", "gora.steps=2", "--set", "train.batch_size=4"]
    output = ["--output", "my own.yaml"]
    code, out, err = gora_here("init", TINY_NAME, "mine.jsonl", *small, *output, cwd=tmp_path)
    assert code == 0, err
    text = (tmp_path / "my own.yaml").read_text()
    assert text in out and "rows      train 18 of 24" in out and "next      gora run 'my own.yaml'" in out
    assert (
        "preset: auto" in text
        and "response: reply" in text
        and "# the answers, which are trained" in text
        and "max_steps: 2" in text
    )
    assert sum(not line.startswith("#") for line in text.splitlines()) <= 16
    code, out, err = gora_here("init", TINY_NAME, "mine.jsonl", *output, cwd=tmp_path)
    assert code == 2 and "my own.yaml exists. Add --overwrite to replace it" in err
    code, out, err = gora_here("run", "my own.yaml", cwd=tmp_path)
    assert code == 0, err
    code, again, err = gora_here(
        "run", "--model", TINY_NAME, "--data", "mine.jsonl", *small, "--overwrite", cwd=tmp_path
    )
    assert code == 0, err
    losses = [line.split() for line in out.splitlines() if "evaluation loss" in line]
    assert len(losses) == 1 and losses == [line.split() for line in again.splitlines() if "evaluation loss" in line]
    assert (tmp_path / "runs" / "mine" / "adapter" / "adapter_model.safetensors").exists()


def rows_file(row):
    return lambda folder: save(folder / "rows.jsonl", row)


def text_file(text, name="rows.jsonl"):
    def make(folder):
        (folder / name).write_text(text, encoding="utf-8")
        return str(folder / name)

    return make


WRONG = {
    "no such file": (lambda folder: str(folder / "row.jsonl"), r"row\.jsonl does not exist"),
    "a name nearby": (
        lambda folder: save(folder / "train.jsonl", {"a": "b"}).replace("train", "trian"),
        r"did you mean '.*train\.jsonl'",
    ),
    "an empty file": (text_file(""), r"rows\.jsonl"),
    "no JSON": (text_file("hello\nyou\n"), r"holds no rows that can be read(.|\n)*rows\.jsonl:1"),
    "one object": (text_file(json.dumps({"data": [{"a": 1}]}, indent=1), "one.json"), r"one\.json"),
    "a pattern without files": (lambda folder: str(folder / "*.csv"), r"\*\.csv matches no file"),
    "an ending that nobody knows": (text_file("a,b\n1,2\n", "rows.xlsx"), r"rows\.xlsx"),
    "an empty folder": (lambda folder: str(folder), r"."),
    "numbers only": (
        rows_file({"a": 1, "b": 2.5}),
        r"there are 'a' \(the number 1\), 'b' \(the number 2\.5\).*docs/data\.md",
    ),
    "fields inside one column": (
        lambda folder: save(folder / "rows.jsonl", lambda index: {"data": {"question": "x", "answer": "y"}}),
        r"there are 'data' \(an object\).*columns of their own",
    ),
    "three texts": (
        rows_file({"one": "x", "two": "y", "three": "z"}),
        r"not clear which column is the prompt.*'one', 'two', 'three'.*gora init MODEL DATA --set data\.prompt=COLUMN",
    ),
    "an answer and two texts": (rows_file({"left": "x", "right": "y", "answer": "z"}), r"not clear which column"),
    "preferences": (
        rows_file({"prompt": "x", "chosen": "y", "rejected": "z"}),
        r"--set data\.prompt=prompt --set data\.response=chosen",
    ),
    "preferences as messages": (
        rows_file({"chosen": OPENAI, "rejected": OPENAI}),
        r"--set data\.format=chat --set data\.messages=chosen",
    ),
    "a conversation in two columns": (
        rows_file({"prompt": OPENAI[:1], "completion": OPENAI[1:]}),
        r"both hold messages\. Join them into one column `messages`",
    ),
    "semicolons": (
        text_file("question;answer\n" + "why?;so\n" * COUNT, "rows.csv"),
        r"rows\.csv: the header row is one column, 'question;answer', as if values were separated by semicolons",
    ),
    "commas in a file of tabs": (
        text_file("question,answer\n" + "why?,so\n" * COUNT, "rows.tsv"),
        r"separated by commas\. Give it a name that ends in \.csv",
    ),
    "segments": (rows_file({"segments": [{"label": True, "text": "x"}]}), r"Write each row as a prompt and a response"),
    "a list of data sets": (
        text_file(json.dumps([{"mine": {"file_name": "mine.json"}}]), "dataset_info.json"),
        r"dataset_info\.json, not rows\. Give a file that it names",
    ),
    "labels that are identities": (
        lambda folder: save(folder / "rows.jsonl", lambda index: {"sentence": "x", "label": 100 + index}),
        r"column 'label' holds numbers up to 123, which are not labels",
    ),
    "images": (
        rows_file({"image": "photos/a.png", "label": 1}),
        r"holds images \(column 'image'\).*model\.head: image-classification and data\.format: image",
    ),
    "one label": (rows_file({"sentence": "x", "label": "good"}), r"holds 1 different texts, which are not labels"),
    "roles that nobody knows": (
        rows_file({"messages": [{"role": "customer", "content": "a"}, {"role": "assistant", "content": "b"}]}),
        r"cannot write any of the first 24 conversations(.|\n)*the role 'customer'; known are",
    ),
    "tools without a template for them": (
        rows_file(
            {
                "messages": [
                    OPENAI[0],
                    {"role": "assistant", "tool_calls": [CALL]},
                    {"role": "tool", "content": "3"},
                    OPENAI[1],
                ],
                "tools": [TOOL],
            }
        ),
        r"Give a model whose template can, or a template with --set",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_rows_that_cannot_be_used_are_answered_with_what_to_do(tmp_path, make, message):
    with pytest.raises(InputError, match=message):
        propose(TINY_NAME, make(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["init", "builtin:tiny-7m", "rows.jsonl"], "does not ship with gora. Known models: builtin:tiny-6m"),
        (["init", "no/such-folder/here", "rows.jsonl"], "no/such-folder/here"),
        (["init", ".", "rows.jsonl"], "model '.'"),
        (["init", TINY_NAME, "rows.jsonl", "--output", "."], "is a folder. Give the name of the new file"),
        (["init", TINY_NAME, "rows.jsonl", "--set", "train.learning_rte=1"], "did you mean"),
        (["init", TINY_NAME, "rows.jsonl", "--set", "data.response=replies"], "data.response asks for the column"),
        (["run"], "Give a RECIPE, or --model and --data."),
        (["run", "quickstart", "--data", "rows.jsonl"], "Give a RECIPE, or --model and --data."),
    ],
)
def test_a_command_that_cannot_be_followed_is_answered_with_what_to_do(tmp_path, gora_here, arguments, message):
    save(tmp_path / "rows.jsonl", {"query": "1+1?", "reply": "It is 2."})
    code, out, err = gora_here(*arguments, cwd=tmp_path)
    assert code == 2
    assert message in out + err
    assert "Traceback" not in out + err


def test_a_recipe_for_texts_can_be_written(tmp_path):
    """The setting `data.train_on` is none of the source `data.train`, whatever its name begins with."""
    from gora.recipe import load_recipe

    path = tmp_path / "my.yaml"
    path.write_text("model: {name: m}\ndata: {train: {path: rows.jsonl}, format: text}\n")
    assert load_recipe(str(path)).recipe.data.format == "text"


def test_settings_of_the_source_are_read_before_its_rows(tmp_path):
    """A folder as on the hub has subsets, and a split for evaluation in each."""
    splits = ("train", "test")
    card = [
        {"config_name": name, "data_files": [{"split": split, "path": f"{name}/{split}.jsonl"} for split in splits]}
        for name in ("sums", "texts")
    ]
    (tmp_path / "README.md").write_text("---\n" + json.dumps({"configs": card}) + "\n---\n")
    for name, row in (("sums", {"question": "1+1?", "answer": "2"}), ("texts", {"text": "a text"})):
        (tmp_path / name).mkdir()
        for split in splits:
            save(tmp_path / name / f"{split}.jsonl", row)
    with pytest.raises(InputError, match=r"Set `subset`, as in data\.train\.subset, to one of 'sums', 'texts'"):
        found(str(tmp_path))
    data = found(str(tmp_path), settings=["data.train.subset=sums"]).data
    assert (data.prompt, data.train.subset, data.eval.subset) == ("question", "sums", "sums")
    data = found(str(tmp_path), settings=["data.train.subset=texts", "data.train.split=test"]).data
    assert (data.format, data.train.split, data.eval, data.holdout > 0) == ("text", "test", None, True)
    data = found(str(tmp_path), settings=["data.train.subset=sums", "data.holdout=5"]).data
    assert (data.eval, data.holdout) == (None, 5)


def test_a_row_of_other_values_does_not_hide_what_the_columns_are(tmp_path):
    path = tmp_path / "rows.jsonl"
    save(path, {"question": "1+1?", "answer": "2"})
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"question": 5, "answer": ["x"]}) + "\n")
    assert (found(str(path)).data.prompt, found(str(path)).data.response) == ("question", "answer")
