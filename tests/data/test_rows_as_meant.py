"""Every row is trained as it was meant: what a row says is used, named or refused, and never dropped in silence."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_data import byte_level, labels_match, prepared, read, trained, turns, write_rows
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from gora.data import IGNORED
from gora.data.prompting import Prompting
from gora.errors import InputError
from gora.recipe import load_recipe
from gora.recipe.schema import DataSection, SourceSection


@pytest.fixture(scope="module")
def tiny() -> PreTrainedTokenizerBase:
    """Byte-level BPE without a beginning-of-sequence token."""
    return byte_level()


@pytest.fixture(scope="module")
def chatml() -> PreTrainedTokenizerBase:
    """Turns end in the end-of-sequence token."""
    tokenizer = byte_level(eos_token="<|im_end|>")
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=True)])
    return tokenizer


def spelled(tokenizer: PreTrainedTokenizerBase, path: Path, index: int = 0, **settings: Any) -> str:
    """One example with what is trained between marks."""
    example = prepared(tokenizer, path, **settings).train[index]
    assert labels_match(example)
    return "".join(f"⟦{text}⟧" if is_trained else text for is_trained, text in turns(tokenizer, example))


def refusal(tokenizer: PreTrainedTokenizerBase, path: Path, **settings: Any) -> str:
    with pytest.raises(InputError) as error:
        prepared(tokenizer, path, **settings)
    return str(error.value)


def talk(*messages: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {"messages": list(messages), **columns}


ASK, ANSWER = {"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}


# What nobody reads


def test_columns_and_message_keys_that_nobody_reads_are_named_once_with_their_number(
    tiny: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    said: list[str] = []
    rows = [{"prompt": "a", "response": "b", "id": 0, "source": "x", "note": None, "tags": []}] * 3
    path = write_rows(tmp_path / "x.jsonl", [*rows, {"prompt": "a", "response": "b", "source": "y", "note": " "}])
    prepared(tiny, path, say=said.append)
    named = "not read, and how often it is there: column 'source' (4), column 'id' (3)."
    assert said == [f"{path}: {named} Name columns that need not be read in `data.ignore`."]
    prepared(tiny, path, say=said.append, ignore=["id", "source"])
    assert len(said) == 1
    path = write_rows(tmp_path / "y.jsonl", [talk(ASK | {"mood": "curious"}, ANSWER | {"name": "Ann", "mood": ""})] * 2)
    prepared(tiny, path, format="chat", chat_template="plain", say=said.append)
    assert said[1] == f"{path}: not read, and how often it is there: message key 'mood' (2), message key 'name' (2)."


def test_the_second_way_to_name_role_and_text_is_not_read_beside_the_first(
    tiny: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    said: list[str] = []
    path = write_rows(tmp_path / "x.jsonl", [talk(ASK | {"from": "gpt", "value": "other"}, ANSWER)])
    prepared(tiny, path, format="chat", chat_template="plain", say=said.append)
    assert "message key 'from' (1), message key 'value' (1)" in said[0]


def test_evaluation_rows_with_the_same_columns_are_named_for_their_own_file(
    tiny: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    said: list[str] = []
    paths = [
        write_rows(tmp_path / name, [{"prompt": "a", "response": "b", "id": 1}]) for name in ("x.jsonl", "y.jsonl")
    ]
    prepared(tiny, paths[0], eval=SourceSection(path=str(paths[1])), say=said.append)
    assert [line.partition(": ")[0] for line in said] == [str(path) for path in paths]


@pytest.mark.parametrize(
    ("column", "value", "settings", "advice"),
    [
        ("input", "1 and 2", {}, "put {input?} into a `data.template` of your own, take `data.template: alpaca`"),
        ("input", "1 and 2", {"template": "{prompt}\n"}, "put {input?} into"),
        ("system", "Be brief.", {"template": "{prompt}\n"}, "put {system?} into"),
        ("instruction", "Add.", {}, "set `data.prompt: instruction`"),
        ("images", ["a.png"], {"format": "chat"}, "this format reads text only"),
        ("images", ["a.png"], {}, "this format reads text only"),
        ("audio", "a.wav", {"template": "{prompt} <audio>\n"}, "this format reads text only"),
        ("functions", [{"name": "f"}], {"format": "chat"}, "set `data.tools: functions`"),
    ],
)
def test_a_column_that_says_what_the_format_needs_is_refused_unless_it_is_ignored_on_purpose(
    column: str, value: Any, settings: dict[str, Any], advice: str, tiny: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    row = {"prompt": "a", "response": "b"} if "format" not in settings else talk(ASK, ANSWER)
    settings = {"chat_template": "plain", **settings} if "format" in settings else settings
    path = write_rows(tmp_path / "x.jsonl", [row, {**row, column: value}, {**row, column: None}])
    message = refusal(tiny, path, **settings, bad_rows="skip")
    assert f"column {column!r} has a value in 1 of 3 rows: " in message
    assert advice in message
    assert len(prepared(tiny, path, **settings, ignore=[column]).train) == 3


def test_a_column_cannot_be_asked_for_and_ignored(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [{"prompt": "a", "response": "b"}])
    assert "data.ignore names the column 'response', which data.response asks for" in refusal(
        tiny, path, ignore=["response"]
    )


def test_a_column_that_is_ignored_is_not_read(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [{"prompt": "a", "response": "b", "input": "c"}])
    with_input, without = (spelled(tiny, path, template="alpaca", ignore=ignore) for ignore in ([], ["input"]))
    assert "### Input:\nc\n" in with_input
    assert "nput" not in without


@pytest.mark.parametrize(
    "lines",
    [
        "format: text, prompt: q",
        "format: text, messages: talk",
        "format: text, supervise: code",
        "format: text, train_on: last",
        "text: body",
        "turns: separate",
        "first_turn: drop",
        "tools: functions",
        "train_on: [user]",
        "format: chat, text: body",
    ],
)
def test_settings_that_the_format_does_not_read_are_refused(lines: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {{name: some/model}}\ndata: {{train: {{path: rows.jsonl}}, {lines}}}\n")
    with pytest.raises(InputError, match=r"belongs to data\.format|have no roles"):
        load_recipe(str(recipe))


# Instruction rows


def test_alpaca_rows_with_and_without_input_have_the_two_wordings(
    tiny: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = [{"instruction": "Add.", "input": "1 and 2", "output": "3"}]
    rows += [{"instruction": "Add.", "output": "3"} | empty for empty in ({}, {"input": None}, {"input": " "})]
    path = write_rows(tmp_path / "x.jsonl", rows)
    texts = [
        spelled(tiny, path, index, prompt="instruction", response="output", template="alpaca") for index in range(4)
    ]
    assert texts[0] == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:⟦ 3</s>⟧"
    )
    assert texts[1] == texts[2] == texts[3]
    assert texts[1] == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Response:⟦ 3</s>⟧"
    )


@pytest.mark.parametrize(
    ("template", "full", "empty"),
    [
        ("{prompt}\n{input?}\nA: ", "ask\nmore\nA:", "ask\nA:"),
        ("{input?}\n{prompt}\n", "more\nask\n", "ask\n"),
        ("{prompt}\n{input?}", "ask\nmore", "ask"),
        ("{prompt}\n  {input?}\t\nA:", "ask\n  more\t\nA:", "ask\nA:"),
        ("{prompt} ({input?})\n", "ask (more)\n", "ask ()\n"),
        ("{prompt}{input?}\n", "askmore\n", "ask\n"),
        ("{{input?}} {prompt}\n{input?}\n\nA:", "{input?} ask\nmore\n\nA:", "{input?} ask\n\nA:"),
    ],
)
def test_an_optional_column_goes_with_its_line_where_it_stands_alone(
    template: str, full: str, empty: str, tiny: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = [{"prompt": "ask", "response": "b", "input": value} for value in ("more", "", "  ", None)]
    path = write_rows(tmp_path / "x.jsonl", [*rows, {"prompt": "ask", "response": "b"}])
    found = [spelled(tiny, path, index, template=template).partition("⟦")[0] for index in range(5)]
    assert found == [full, *[empty] * 4]


def test_null_beside_the_prompt_is_an_empty_text_and_counted(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    said: list[str] = []
    path = write_rows(tmp_path / "x.jsonl", [{"prompt": "a", "response": "b", "input": None}] * 2)
    assert spelled(tiny, path, template="{prompt}\n{input}\n", say=said.append) == "a\n\n⟦b</s>⟧"
    assert "null in column 'input', which is read as an empty text (2)" in said[0]
    path = write_rows(tmp_path / "y.jsonl", [{"prompt": None, "response": "b", "input": "x"}])
    assert "column 'prompt' must be text, not null" in refusal(tiny, path, template="{prompt}\n{input}\n")


@pytest.mark.parametrize("as_text", [False, True], ids=["list", "JSON text"])
def test_system_and_history_stand_in_front(as_text: bool, tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    history: Any = [["1 + 1?", "2"], ["2 + 1?", "3"]]
    row = {"prompt": "More?", "response": "No.", "system": "Be brief."}
    path = write_rows(tmp_path / "x.jsonl", [{**row, "history": json.dumps(history) if as_text else history}])
    begin = "Be brief.\n\nQuestion: 1 + 1?\nAnswer:{} 2</s>{}\n\nQuestion: 2 + 1?\nAnswer:{} 3</s>{}\n\n"
    end = "Question: More?\nAnswer:⟦ No.</s>⟧"
    assert spelled(tiny, path, template="qa") == begin.format("⟦", "⟧", "⟦", "⟧") + end
    assert spelled(tiny, path, template="qa", train_on="last") == begin.format("", "", "", "") + end
    path = write_rows(tmp_path / "y.jsonl", [{**row, "history": [["1 + 1?"]]}])
    assert "turn 1 of column 'history' must be a prompt and its response" in refusal(tiny, path)


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_a_label_is_a_number_or_a_name(name: str, tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    labels = [1, "no", "yes", "0" if name == "x.csv" else 0]
    path = tmp_path / name
    if name == "x.csv":
        path.write_text("prompt,label\n" + "".join(f"a,{label}\n" for label in labels))
    else:
        write_rows(path, [{"prompt": "a", "label": label} for label in labels])
    data = prepared(tiny, path, response="label", choices=["no", "yes"]).train
    assert [trained(tiny, data[index]) for index in range(4)] == ["yes</s>", "no</s>", "yes</s>", "no</s>"]
    write_rows(tmp_path / "y.jsonl", [{"prompt": "a", "label": "yess"}])
    reason = refusal(tiny, tmp_path / "y.jsonl", response="label", choices=["no", "yes"])
    assert "the number or the name of a choice, not the text 'yess' - did you mean 'yes'?" in reason


def test_digits_that_name_one_choice_and_count_another_are_refused(
    tiny: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    (tmp_path / "x.csv").write_text("prompt,label\na,1\n")
    assert "is 1, which is the name of choice 0" in refusal(
        tiny, tmp_path / "x.csv", response="label", choices=["1", "2"]
    )
    write_rows(tmp_path / "x.jsonl", [{"prompt": "a", "label": "1"}, {"prompt": "a", "label": 1}])
    data = prepared(tiny, tmp_path / "x.jsonl", response="label", choices=["1", "2"]).train
    assert [trained(tiny, data[index]) for index in (0, 1)] == ["1</s>", "2</s>"]


# Texts


def test_every_token_of_a_text_is_trained(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [{"text": "Once upon a time.\n", "body": "Then it ended."}])
    example = prepared(tiny, path, format="text").train[0]
    assert example["input_ids"] == [*tiny("Once upon a time.\n")["input_ids"], tiny.eos_token_id]
    # Nothing stands before the first token from which it could be predicted.
    assert example["labels"] == [IGNORED, *example["input_ids"][1:]]
    assert spelled(tiny, path, format="text", text="body", ignore=["text"]).endswith("it ended.</s>⟧")


@pytest.mark.parametrize(("value", "reason"), [(" ", "only white space"), (None, "must be text, not null"), (3, "3")])
def test_a_text_must_say_something(value: Any, reason: str, tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [{"text": "a"}, {"text": value}])
    message = refusal(tiny, path, format="text")
    assert f"{path}:2: column 'text'" in message
    assert reason in message
    with pytest.raises(InputError, match="needs a decoder-only model"):
        prepared(tiny, path, format="text", encoder_decoder=True)


# Sources


def test_bad_rows_are_counted_in_the_file_that_holds_them(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    good, bad = {"prompt": "a", "response": "b"}, {"prompt": "a", "response": 1}
    one = write_rows(tmp_path / "1.jsonl", [bad, good, bad])
    two = write_rows(tmp_path / "2.jsonl", [good] * 5)
    three = write_rows(tmp_path / "3.jsonl", [good, bad])
    other = write_rows(tmp_path / "eval.jsonl", [good] * 100)
    settings = {"eval": SourceSection(path=str(other))}
    first = refusal(tiny, one, **settings).splitlines()[0]
    assert first == f"{one}: 2 of 3 rows cannot be used. Fix them, or skip them with `data.bad_rows: skip`."
    message = refusal(tiny, f"{tmp_path}/[123].jsonl", **settings)
    assert f"{one}: 2 of 3 rows cannot be used; {three}: 1 of 2 rows cannot be used. Fix" in message
    assert f"{three}:2: column 'response'" in message
    said: list[str] = []
    data = prepared(tiny, f"{tmp_path}/[123].jsonl", bad_rows="skip", say=said.append)
    assert [data.train.where(index).rpartition("/")[2] for index in (0, 1, 6)] == [
        "1.jsonl:2",
        "2.jsonl:1",
        "3.jsonl:1",
    ]
    assert "1.jsonl: 2 of 3 rows cannot be used; " in said[0]
    assert two.exists()


def test_several_files_are_read_in_turn(tmp_path: Path) -> None:
    names = ["b.jsonl", "a.jsonl", "c.csv"]
    for name in names[:2]:
        write_rows(tmp_path / name, [{"a": name}, {"a": "more"}])
    (tmp_path / "c.csv").write_text("a\nc.csv\n")
    paths = [str(tmp_path / name) for name in names]
    rows = read_rows_of(paths)
    assert [row["a"] for row in rows.rows] == ["b.jsonl", "more", "a.jsonl", "more", "c.csv"]
    assert rows.where(4) == f"{paths[2]}:2"
    assert not rows.typed
    assert [row["a"] for row in read_rows_of(paths, max_rows=3).rows] == ["b.jsonl", "more", "a.jsonl"]
    assert [row["a"] for row in read(f"{tmp_path}/*.jsonl").rows] == ["a.jsonl", "more", "b.jsonl", "more"]
    with pytest.raises(InputError, match=r"b\.jsonl is named more than once"):
        read_rows_of([paths[0], f"{tmp_path}/*.jsonl"])
    with pytest.raises(InputError, match=r"\*\.json matches no file"):
        read(f"{tmp_path}/*.json")


def read_rows_of(paths: list[str], **source: Any) -> Any:
    from gora.data import read_rows

    return read_rows(SourceSection(path=paths, **source), ("train",))


def test_tables_with_other_separators(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text('a\tb\n1,5\t"two\nlines"\n3\t4\n')
    rows = read(tmp_path / "x.tsv")
    assert rows.rows == [{"a": "1,5", "b": "two\nlines"}, {"a": "3", "b": "4"}]
    assert rows.where(1) == f"{tmp_path / 'x.tsv'}:4"
    (tmp_path / "x.csv").write_text("a;b\n1,5;2\n")
    assert read(tmp_path / "x.csv", separator=";").rows == [{"a": "1,5", "b": "2"}]
    write_rows(tmp_path / "x.jsonl", [{"a": 1}])
    with pytest.raises(InputError, match="is not a CSV or TSV file and has no `separator`"):
        read(tmp_path / "x.jsonl", separator=";")


# Conversations


def chat(tokenizer: PreTrainedTokenizerBase, folder: Path, *rows: dict[str, Any], **settings: Any) -> str:
    return spelled(tokenizer, write_rows(folder / "x.jsonl", list(rows)), format="chat", **settings)


def chat_refusal(tokenizer: PreTrainedTokenizerBase, folder: Path, row: dict[str, Any], **settings: Any) -> str:
    return refusal(tokenizer, write_rows(folder / "x.jsonl", [row]), format="chat", **settings)


ANY_ROLE = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<{{ call.function.name }} {{ call.function.arguments | tojson }}>{% endfor %}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture
def any_role(tmp_path: Path) -> str:
    (tmp_path / "any.jinja").write_text(ANY_ROLE)
    return str(tmp_path / "any.jinja")


def test_roles_of_other_formats_have_their_place(tiny: PreTrainedTokenizerBase, any_role: str, tmp_path: Path) -> None:
    said = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"at": "Oslo"}}'},
        {"from": "observation", "value": '{"degrees": 3}'},
        {"from": "gpt", "value": "Three."},
    ]
    assert chat(tiny, tmp_path, talk(*said), chat_template=any_role) == (
        'system:Be brief.</s>user:Weather?</s>assistant:⟦<weather {"at": "Oslo"}></s>⟧'
        'tool:{"degrees": 3}</s>assistant:⟦Three.</s>⟧'
    )
    told = [{"role": "developer", "content": "Be brief."}, ASK, ANSWER]
    assert chat(tiny, tmp_path, talk(*told), chat_template=any_role).startswith("system:Be brief.</s>user")
    (tmp_path / "any.jinja").write_text("{# developer #}" + ANY_ROLE)
    assert chat(tiny, tmp_path, talk(*told), chat_template=any_role).startswith("developer:Be brief.</s>user")
    legacy = [ASK, {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
              {"role": "function", "name": "f", "content": "1"}, ANSWER]  # fmt: skip
    assert "assistant:⟦<f {}></s>⟧tool:1</s>" in chat(tiny, tmp_path, talk(*legacy), chat_template=any_role)


def test_parts_of_text_are_joined_and_others_refused(chatml: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "2 + "}, {"type": "text", "text": "3?"}]
    whole = chat(chatml, tmp_path, talk(ASK, ANSWER), chat_template="chatml")
    assert chat(chatml, tmp_path, talk({**ASK, "content": parts}, ANSWER), chat_template="chatml") == whole
    picture = [*parts, {"type": "image_url", "image_url": {"url": "x"}}]
    message = chat_refusal(chatml, tmp_path, talk({**ASK, "content": picture}, ANSWER), chat_template="chatml")
    assert "x.jsonl:1: message 1: part 3 of content is of type 'image_url': only text is read" in message


def test_messages_may_be_json_text(chatml: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    whole = chat(chatml, tmp_path, talk(ASK, ANSWER), chat_template="chatml")
    assert chat(chatml, tmp_path, {"messages": json.dumps([ASK, ANSWER])}, chat_template="chatml") == whole
    message = chat_refusal(chatml, tmp_path, {"messages": "[{'role': 'user'}]"}, chat_template="chatml")
    assert "column 'messages' is the text" in message
    assert "which is not JSON" in message


def test_a_system_column_is_the_system_message(chatml: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    row = talk(ASK, ANSWER, system="Be brief.")
    text = chat(chatml, tmp_path, row, chat_template="chatml", system="Be long.")
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 3?")
    assert "long" not in text
    row["messages"].insert(0, {"role": "system", "content": "Be long."})
    assert "both a system message" in chat_refusal(chatml, tmp_path, row, chat_template="chatml")


def test_a_conversation_that_starts_with_the_assistant(chatml: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    row = talk({"role": "assistant", "content": "Hello!"}, ASK, ANSWER)
    for system in (None, "Be brief."):
        message = chat_refusal(chatml, tmp_path, row, chat_template="chatml", system=system)
        assert "starts with the assistant" in message
        assert "`data.first_turn: drop`" in message
    said: list[str] = []
    text = chat(chatml, tmp_path, row, chat_template="chatml", first_turn="drop", say=said.append)
    assert text == chat(chatml, tmp_path, talk(ASK, ANSWER), chat_template="chatml")
    assert "turn of the assistant in front of the first question (1)" in said[0]


def test_turns_that_nothing_answers_are_left_out_and_counted(chatml: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    thanks, again = {"role": "user", "content": "Thanks!"}, {"role": "user", "content": "And 3 + 4?"}
    said: list[str] = []
    row = talk(ASK, ANSWER, thanks, again)
    text = chat(chatml, tmp_path, row, chat_template="chatml", say=said.append)
    assert text == chat(chatml, tmp_path, talk(ASK, ANSWER), chat_template="chatml")
    assert "turn behind the last answer (2)" in said[0]


def test_turns_of_other_roles_are_trained_from_their_text_on(chatml: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    row = talk(ASK, ANSWER, {"role": "user", "content": "Sure?"})
    text = chat(chatml, tmp_path, row, chat_template="chatml", train_on=["user"])
    assert text == (
        "<|im_start|>user\n⟦2 + 3?<|im_end|>⟧\n<|im_start|>assistant\n5<|im_end|>\n<|im_start|>user\n⟦Sure?<|im_end|>⟧"
    )
    both = chat(chatml, tmp_path, row, chat_template="chatml", train_on=["user", "assistant"])
    assert both == text.replace("5<|im_end|>", "⟦5<|im_end|>⟧")
    message = chat_refusal(chatml, tmp_path, row, chat_template="chatml", train_on=["tool"])
    assert "has no turn of tool" in message


@pytest.mark.parametrize("key", ["weight", "train"])
def test_turns_without_weight_are_read_and_not_trained(
    key: str, chatml: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    wrong = {"role": "assistant", "content": "6", key: 0 if key == "weight" else False}
    text = chat(chatml, tmp_path, talk(ASK, wrong, ASK, ANSWER | {key: 1}), chat_template="chatml")
    assert "assistant\n6<|im_end|>\n" in text
    assert text.endswith("assistant\n⟦5<|im_end|>⟧")
    assert text.count("⟦") == 1
    assert "weight 0 or train false" in chat_refusal(chatml, tmp_path, talk(ASK, wrong), chat_template="chatml")
    half = chat_refusal(chatml, tmp_path, talk(ASK, ANSWER | {key: 0.5}), chat_template="chatml")
    assert f"message 2: {key} must be 0 or 1 (false or true), not the number 0.5" in half
    said: list[str] = []
    chat(chatml, tmp_path, talk(ASK | {key: 1}, ANSWER), chat_template="chatml", say=said.append)
    assert "weight or train of a message of role user, which `data.train_on` does not train (1)" in said[0]


def test_each_turn_alone_is_a_row_of_its_own(chatml: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [talk(ASK, ANSWER, ASK, ANSWER), talk(ASK, ANSWER)])
    data = prepared(chatml, path, format="chat", chat_template="chatml", turns="separate")
    assert [data.train.where(index) for index in range(3)] == [
        f"{path}:1 (message 2)", f"{path}:1 (message 4)", f"{path}:2 (message 2)"
    ]  # fmt: skip
    assert (data.counts.train.rows, data.counts.train.used) == (3, 3)
    assert data.train[0] == data.train[2]
    assert spelled(chatml, path, 1, format="chat", chat_template="chatml", turns="separate").count("⟦") == 1


def test_of_separate_turns_those_without_code_are_left_out(chatml: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    code = {"role": "assistant", "content": "Here:\n```\nx = 5\n```"}
    path = write_rows(tmp_path / "x.jsonl", [talk(ASK, ANSWER, ASK, code), talk(ASK, ANSWER)])
    settings: dict[str, Any] = {"format": "chat", "chat_template": "chatml", "turns": "separate", "supervise": "code"}
    data = prepared(chatml, path, **settings)
    assert [data.train.where(index) for index in range(len(data.train))] == [f"{path}:1 (message 4)"]
    assert spelled(chatml, path, **settings).endswith("Here:\n⟦```\nx = 5\n```<|im_end|>⟧")
    assert (data.counts.train.rows, data.counts.train.used, data.counts.train.without_code) == (2, 1, 1)


def test_a_holdout_takes_whole_conversations(chatml: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    rows = [talk(*[{"role": "user", "content": str(number)}, ANSWER] * 3) for number in range(6)]
    path = write_rows(tmp_path / "x.jsonl", rows)
    data = prepared(chatml, path, format="chat", chat_template="chatml", turns="separate", holdout=2)
    assert data.eval is not None
    lines = [{each.where(index).partition(" ")[0] for index in range(len(each))} for each in (data.train, data.eval)]
    assert (len(lines[0]), len(lines[1]), lines[0] & lines[1]) == (4, 2, set())
    assert (len(data.train), len(data.eval), data.counts.train.held_out) == (12, 6, 6)


def test_answers_that_an_encoder_decoder_does_not_train_are_counted(
    tiny: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    said: list[str] = []
    path = write_rows(tmp_path / "x.jsonl", [talk(ASK, ANSWER, ASK, ANSWER), talk(ASK, ANSWER)])
    settings: dict[str, Any] = {"format": "chat", "chat_template": "plain", "encoder_decoder": True}
    assert len(prepared(tiny, path, say=said.append, **settings).train) == 2
    assert said[0].startswith("1 rows have several answers, of which an encoder-decoder is trained on the last alone")
    assert len(prepared(tiny, path, turns="separate", say=said.append, **settings).train) == 3
    assert len(said) == 1


def test_a_question_that_the_template_leaves_out_is_not_asked(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}")
    data = DataSection(train=SourceSection(path="-"), format="chat", chat_template=str(tmp_path / "own.jinja"))
    asked = Prompting(data, tiny)
    assert asked.conversation([ASK]) == "2 + 3?"
    with pytest.raises(InputError, match=r"leaves out message 1 \(system\)"):
        asked.conversation([{"role": "system", "content": "Be brief."}, ASK])


@pytest.mark.parametrize(
    ("name", "jinja", "reason"),
    [
        ("a message that is left out", "{% for m in messages if m.role != 'system' %}", "message 1 (system)"),
        ("a short text that another one holds", "{% for m in messages[1:] %}", "message 1 (system)"),
        ("only the last question", "{% for m in messages[:1] + messages[-2:] %}", "message 2 (user)"),
    ],
)
def test_messages_that_a_template_leaves_out_are_named(
    name: str, jinja: str, reason: str, tiny: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    (tmp_path / "own.jinja").write_text(ANY_ROLE.replace("{% for m in messages %}", jinja))
    told = talk({"role": "system", "content": "a"}, {"role": "user", "content": "as?"}, ANSWER, ASK, ANSWER)
    message = chat_refusal(tiny, tmp_path, told, chat_template=str(tmp_path / "own.jinja"), train_on="last")
    assert f"x.jsonl:1: the chat template '{tmp_path}/own.jinja' leaves out {reason}" in message


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("m.content.split('</think>')[-1]", "leaves out the reasoning of message 2"),
        ("m.content[:12]", "leaves out"),
        ("m.content | upper", "changes"),
        ("m.content | replace('So', 'Thus')", "changes message 2 (assistant)"),
        ("m.content.split('\\n')[0]", "leaves out message 2 (assistant)"),
        ("m.content | trim", None),
        ("m.content | tojson", None),
        ("m.content.split('</think>')[0] + '</think>\n\n' + m.content.split('</think>')[-1] | trim", None),
    ],
)
def test_answers_that_a_template_cuts_or_changes_are_named(
    written: str, reason: str | None, tiny: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{{ " + written + " }}"
        "{% else %}{{ m.content }}{% endif %}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    row = talk(ASK, {"role": "assistant", "content": "<think>Two, three.</think>\nSo 5,\nI think. "})
    if reason is None:
        assert "Two, three.</think>" in chat(tiny, tmp_path, row, chat_template=str(tmp_path / "own.jinja"))
    else:
        message = chat_refusal(tiny, tmp_path, row, chat_template=str(tmp_path / "own.jinja"))
        assert f"x.jsonl:1: the chat template '{tmp_path}/own.jinja' {reason}" in message


ARGUMENTS = {"at": "Oslo", "days": [1, 2], "exact": True}


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("call.function | tojson", None),
        ("call.function.name ~ call.function.arguments | tojson(indent=2)", None),
        # Templates that take arguments as text; the second would write an object as Python does.
        ("call.function.name + ' ' + call.function.arguments", None),
        ("call.function.name ~ call.function.arguments", None),
        ("call.function.name ~ call.function.arguments.items() | list", None),
        ("call.function.name", "the arguments of tool call 1 of message 2"),
        ("call.function.name ~ ' at ' ~ call.function.arguments.at", "the arguments of tool call 1 of message 2"),
        ("call.function.arguments | tojson", "the name of tool call 1 of message 2"),
        ("'a tool'", "the name of tool call 1 of message 2"),
    ],
)
@pytest.mark.parametrize("as_text", [False, True], ids=["object", "JSON text"])
def test_tool_calls_are_compared_as_json(
    written: str, reason: str | None, as_text: bool, tiny: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{% for call in m.tool_calls or [] %}"
        "<call>{{ " + written + " }}</call>{% endfor %}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    arguments = json.dumps(ARGUMENTS, separators=(",", ":")) if as_text else ARGUMENTS
    call = {"type": "function", "function": {"name": "weather_of", "arguments": arguments}}
    # The question and the answer have the words of the call, which must stand in its own turn.
    words = "weather_of at Oslo days 1 2 exact true"
    told = talk({"role": "user", "content": words}, {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "3"}, {"role": "assistant", "content": words})  # fmt: skip
    if reason is None:
        text = chat(tiny, tmp_path, told, chat_template=str(tmp_path / "own.jinja"))
        trained = text.split("⟦")[1].partition("⟧")[0]
        assert trained.startswith("<call>")
        if "items" not in written:
            assert json.loads(trained[trained.index("{") : trained.rindex("}") + 1]) in (
                ARGUMENTS,
                {"name": "weather_of", "arguments": ARGUMENTS},
            )
    else:
        message = chat_refusal(tiny, tmp_path, told, chat_template=str(tmp_path / "own.jinja"))
        assert f"leaves out {reason}" in message


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "assistant", "content": "a", "tool_calls": [{"function": {"arguments": {}}}]}, "tool_calls 1 has no"),
        ({"role": "assistant", "content": "a", "tool_calls": "f(x)"}, "which is not JSON"),
        ({"role": "assistant", "content": "a", "reasoning_content": ["b"]}, "reasoning_content must be text, not a"),
        ({"role": "assistant", "content": "a", "reasoning_content": "b", "thinking": "c"}, "different texts in"),
        ({"role": "assistant", "content": "a", "reasoning_content": "b"}, "no place for the reasoning of message 2"),
        ({"role": "assistant", "content": "a", "images": ["x.png"]}, "message 2 has 'images': only text is read"),
        ({"role": "asistant", "content": "a"}, "has the role 'asistant'"),
    ],
)
def test_what_cannot_be_kept_of_a_message_is_refused(
    message: dict[str, Any], reason: str, chatml: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    assert reason in chat_refusal(chatml, tmp_path, talk(ASK, message), chat_template="chatml")


def test_keys_that_tables_fill_with_null_count_as_missing(chatml: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    keys = {"tool_calls": None, "reasoning_content": None, "weight": None, "name": None}
    path = tmp_path / "x.parquet"
    rows = [talk(ASK | keys, ANSWER | keys, tools=None), talk(ASK | keys, ANSWER | keys | {"weight": 1}, tools=None)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    said: list[str] = []
    whole = chat(chatml, tmp_path, talk(ASK, ANSWER), chat_template="chatml")
    assert spelled(chatml, path, format="chat", chat_template="chatml", say=said.append) == whole
    assert not said


def test_a_key_that_the_template_writes_is_not_named(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    by_name = "{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}:"
    (tmp_path / "own.jinja").write_text(ANY_ROLE.replace("{{ m.role }}:", by_name))
    said: list[str] = []
    row = talk(ASK | {"name": "Ann"}, ANSWER)
    text = chat(tiny, tmp_path, row, chat_template=str(tmp_path / "own.jinja"), say=said.append)
    assert text == "user Ann:2 + 3?</s>assistant:⟦5</s>⟧"
    assert not said


def test_templates_whose_text_depends_on_what_they_are_given_are_checked_too(
    tiny: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Marks around texts change what such a template writes, so texts are searched."""
    counting = "{{ m.content }}{% if m.role == 'user' %} ({{ m.content | length }}){% endif %}"
    template = ANY_ROLE.replace("{{ m.content }}", counting)
    (tmp_path / "own.jinja").write_text(template)
    row = talk({"role": "system", "content": "Be brief."}, ASK, ANSWER)
    settings: dict[str, Any] = {"chat_template": str(tmp_path / "own.jinja")}
    assert chat(tiny, tmp_path, row, **settings) == "system:Be brief.</s>user:2 + 3? (6)</s>assistant:⟦5</s>⟧"
    (tmp_path / "own.jinja").write_text(template.replace("in messages", "in messages[1:]"))
    assert "leaves out message 1 (system)" in chat_refusal(tiny, tmp_path, row, **settings)
