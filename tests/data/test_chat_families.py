"""Chat templates of public model families: exactly what the model has to write is trained.

What is expected is read off the rendered text by search, with what a family's model writes around an answer; borders
of turns are never asked of gora.
"""

import datetime
import json
from pathlib import Path

import pytest
from test_data import prepared, write_rows
from transformers import PreTrainedTokenizerBase

from gora.data import IGNORED
from gora.errors import InputError
from tests.helpers.chat_families import FAMILIES, Family, tokenizer_of

ONE = [{"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "It is 5."}]
# The second answer stands in its question, and the third is a part of the first.
THREE = [
    *ONE,
    {"role": "user", "content": "Is it six?\nOr (é, 日本) nine?"},
    {"role": "assistant", "content": "nine"},
    {"role": "user", "content": "Again?"},
    {"role": "assistant", "content": "It is"},
]
SYSTEM = {"role": "system", "content": "Be brief and exact."}


def rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """What the template writes on the day that gora pins."""
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    for form in ("%d %b %Y", "%Y-%m-%d"):
        text = text.replace(datetime.datetime.now().strftime(form), datetime.date(2024, 7, 26).strftime(form))
    return text


def expected(
    tokenizer: PreTrainedTokenizerBase, family: Family, messages: list[dict[str, str]], trained: list[int]
) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation of which some messages are trained, by search in its text."""
    text = rendered(tokenizer, messages)
    spans, position = [], 0
    for index, message in enumerate(messages):
        piece = message["content"]
        if message["role"] == "assistant":
            piece = family.writes(piece, index == len(messages) - 1)
        if message["role"] != "system":
            position = text.index(piece, position)
            if index in trained:
                spans.append((position, position + len(piece)))
            position += len(piece)
    text = text[: spans[-1][1]]
    made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = list(made["input_ids"])
    labels = [
        token if any(start <= first and last <= end for start, end in spans) else IGNORED
        for token, (first, last) in zip(ids, made["offset_mapping"], strict=True)
    ]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and ids[0] != bos:
        ids, labels = [bos, *ids], [IGNORED, *labels]
    return (ids, labels) if ids[-1] == eos else ([*ids, eos], [*labels, eos])


def examples_of(
    tokenizer: PreTrainedTokenizerBase, folder: Path, row: dict[str, object], **settings: object
) -> list[tuple[list[int], list[int]]]:
    path = write_rows(folder / "x.jsonl", [row])
    found = prepared(tokenizer, path, format="chat", max_length=4096, **settings).train
    return [(found[index]["input_ids"], found[index]["labels"]) for index in range(len(found))]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("with_system", [False, True], ids=["", "system"])
@pytest.mark.parametrize("messages", [ONE, THREE], ids=["one turn", "three turns"])
def test_what_the_model_has_to_write_is_trained_and_nothing_else(
    messages: list[dict[str, str]], with_system: bool, name: str, tmp_path: Path
) -> None:
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family)
    told = [SYSTEM, *messages] if with_system else messages
    if with_system and not family.system:
        with pytest.raises(InputError, match=r"x\.jsonl:1: the tokenizer's chat template fails: .*(S|o)"):
            examples_of(tokenizer, tmp_path, {"messages": told})
        return
    answers = [index for index, message in enumerate(told) if message["role"] == "assistant"]
    separate = [expected(tokenizer, family, told[: index + 1], [index]) for index in answers]
    assert examples_of(tokenizer, tmp_path, {"messages": told}, turns="separate") == separate
    if family.separate and len(answers) > 1:
        with pytest.raises(InputError, match=r"differently when others follow.*`data\.turns: separate`"):
            examples_of(tokenizer, tmp_path, {"messages": told})
    else:
        together = expected(tokenizer, family, told, answers)
        assert examples_of(tokenizer, tmp_path, {"messages": told}) == [together]


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.separate])
def test_the_last_turn_alone_and_turns_without_weight(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family)
    assert examples_of(tokenizer, tmp_path, {"messages": THREE}, train_on="last") == [
        expected(tokenizer, family, THREE, [5])
    ]
    marks = [{}, {"weight": 0}, {}, {"weight": 1}, {}, {"train": False}]
    marked = [message | mark for message, mark in zip(THREE, marks, strict=True)]
    # Nothing after the last trained turn is kept, but an answer that is not the last of its text may end otherwise.
    upto = expected(tokenizer, family, THREE[:4], [3])
    assert examples_of(tokenizer, tmp_path, {"messages": marked}) == [upto]


def test_generation_marks_of_a_template_say_the_same(tmp_path: Path) -> None:
    """transformers' own mask, for a template that marks what is generated."""
    family = FAMILIES["llama-3"]
    tokenizer = tokenizer_of(family)
    tokenizer.chat_template = template = family.template.replace("{{ strftime_now('%d %b %Y') }}", "today")
    mine = examples_of(tokenizer, tmp_path, {"messages": THREE})
    plain = "{{ m.content | trim }}<|eot_id|>"
    marked = "{% if m.role == 'assistant' %}{% generation %}" + plain + "{% endgeneration %}{% else %}" + plain
    tokenizer.chat_template = template.replace(plain, marked + "{% endif %}")
    made = tokenizer.apply_chat_template(THREE, return_dict=True, return_assistant_tokens_mask=True)
    pairs = zip(made["input_ids"], made["assistant_masks"], strict=True)
    assert mine == [(made["input_ids"], [token if mask else IGNORED for token, mask in pairs])]
    assert sum(made["assistant_masks"]) > 0


def spelled(tokenizer: PreTrainedTokenizerBase, example: tuple[list[int], list[int]]) -> str:
    """The text with what is trained between marks."""
    text, runs = "", []
    for token, label in zip(*example, strict=True):
        if not runs or runs[-1][0] != (label != IGNORED):
            runs.append((label != IGNORED, []))
        runs[-1][1].append(token)
    for is_trained, ids in runs:
        piece = str(tokenizer.decode(ids))
        text += f"⟦{piece}⟧" if is_trained else piece
    return text


THOUGHTFUL = [
    {"role": "user", "content": "2 + 3?"},
    {"role": "assistant", "reasoning_content": "Two and three.", "content": "5"},
    {"role": "user", "content": "And 4?"},
    {"role": "assistant", "content": "<think>Five and four.</think>9"},
]


def test_reasoning_is_trained_where_the_row_has_it_and_dropped_of_earlier_turns_as_in_use(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(FAMILIES["qwen-3"])
    with pytest.raises(InputError, match=r"leaves out the reasoning of message 2 .*`data\.turns: separate`"):
        examples_of(tokenizer, tmp_path, {"messages": THOUGHTFUL})
    first, second = examples_of(tokenizer, tmp_path, {"messages": THOUGHTFUL}, turns="separate")
    ask = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    begin = ask.format("2 + 3?")
    assert spelled(tokenizer, first) == begin + "⟦<think>\nTwo and three.\n</think>\n\n5<|im_end|>⟧"
    begin += "5<|im_end|>\n" + ask.format("And 4?")
    assert spelled(tokenizer, second) == begin + "⟦<think>\nFive and four.\n</think>\n\n9<|im_end|>⟧"


def test_a_thinking_block_that_only_the_template_writes_is_not_trained(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(FAMILIES["qwen-3"])
    (example,) = examples_of(tokenizer, tmp_path, {"messages": ONE})
    assert spelled(tokenizer, example).endswith("assistant\n<think>\n\n</think>\n\n⟦It is 5.<|im_end|>⟧")
    own = [ONE[0], {"role": "assistant", "content": "<think>\n\n</think>\n\nIt is 5."}]
    (example,) = examples_of(tokenizer, tmp_path, {"messages": own})
    assert spelled(tokenizer, example).endswith("assistant\n⟦<think>\n\n</think>\n\nIt is 5.<|im_end|>⟧")


@pytest.mark.parametrize("key", ["thinking", "reasoning_content", "reasoning"])
def test_reasoning_goes_to_the_key_that_the_template_reads(key: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(FAMILIES["harmony"])
    row = {"messages": [ONE[0], {"role": "assistant", key: "Add them.", "content": "It is 5."}]}
    (example,) = examples_of(tokenizer, tmp_path, row)
    assert spelled(tokenizer, example).endswith(
        "<|start|>assistant⟦<|channel|>analysis<|message|>Add them.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>It is 5.<|return|>⟧"
    )


CALL = {"type": "function", "id": "call12345", "function": {"name": "weather", "arguments": '{"place":"Oslo"}'}}
TOOLS = [{"name": "weather", "description": "Tells the weather.", "parameters": {"type": "object"}}]
WITH_TOOLS = [
    {"role": "user", "content": "Weather in Oslo?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call12345", "content": '{"degrees": 3,\n"wind": "none"}'},
    {"role": "assistant", "content": "Three degrees."},
]
CALLS = {
    "llama-3": '{"name": "weather", "parameters": {"place": "Oslo"}}<|eot_id|>',
    "mistral-3": '[TOOL_CALLS] [{"name": "weather", "arguments": {"place": "Oslo"}}]</s>',
    "qwen-2.5": '<tool_call>\n{"name": "weather", "arguments": {"place": "Oslo"}}\n</tool_call><|im_end|>',
    "qwen-3": '\n<tool_call>\n{"name": "weather", "arguments": {"place": "Oslo"}}\n</tool_call><|im_end|>',
}


@pytest.mark.parametrize("name", ["mistral-3", "qwen-2.5"])
@pytest.mark.parametrize("as_text", [False, True], ids=["list", "JSON text"])
def test_tools_are_shown_and_their_calls_trained(name: str, as_text: bool, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(FAMILIES[name])
    row = {"messages": json.dumps(WITH_TOOLS), "tools": json.dumps(TOOLS)} if as_text else None
    (example,) = examples_of(tokenizer, tmp_path, row or {"messages": WITH_TOOLS, "tools": TOOLS})
    trained = [piece.partition("⟧")[0] for piece in spelled(tokenizer, example).split("⟦")[1:]]
    assert [piece.strip() for piece in trained] == [CALLS[name], FAMILIES[name].writes("Three degrees.", True).strip()]
    assert '{"type": "function", "function": {"name": "weather", "description"' in spelled(tokenizer, example)


def test_tools_that_move_to_the_last_question_need_separate_turns(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(FAMILIES["mistral-3"])
    row = {"messages": [*WITH_TOOLS, *ONE], "tools": TOOLS}
    with pytest.raises(InputError, match=r"differently when others follow.*`data\.turns: separate`"):
        examples_of(tokenizer, tmp_path, row)
    found = [spelled(tokenizer, example) for example in examples_of(tokenizer, tmp_path, row, turns="separate")]
    assert [text.partition("⟦")[2] for text in found] == [
        f"{CALLS['mistral-3']}⟧",
        " Three degrees.</s>⟧",
        " It is 5.</s>⟧",
    ]
    assert [text.index("[AVAILABLE_TOOLS]") < text.index("Weather in Oslo?") for text in found] == [True, True, False]


@pytest.mark.parametrize("left_out", ["function.name", "function.description", "function.parameters.properties"])
def test_a_template_that_writes_a_part_of_a_tool_is_named(left_out: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(FAMILIES["qwen-2.5"])
    parts = ["function.name", "function.description", "function.parameters.properties"]
    written = "".join(f"{{{{ tool.{part} }}}} " for part in parts if part != left_out)
    assert "{{ tool | tojson }}" in str(tokenizer.chat_template)
    tokenizer.chat_template = str(tokenizer.chat_template).replace("{{ tool | tojson }}", written)
    parameters = {"type": "object", "properties": {"town": {"type": "string"}}}
    tools = [{"name": "forecast", "description": "Tells the weather.", "parameters": parameters}]
    with pytest.raises(InputError, match="leaves out the name, the description or a parameter of the tool 'forecast'"):
        examples_of(tokenizer, tmp_path, {"messages": ONE, "tools": tools})


def test_a_template_that_has_no_place_for_tools_is_named(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(FAMILIES["llama-3"])
    (example,) = examples_of(tokenizer, tmp_path, {"messages": WITH_TOOLS})
    assert f"⟦{CALLS['llama-3']}⟧" in spelled(tokenizer, example)
    with pytest.raises(InputError, match=r"x\.jsonl:1: the tokenizer's chat template leaves out the tools"):
        examples_of(tokenizer, tmp_path, {"messages": WITH_TOOLS, "tools": TOOLS})
    with pytest.raises(InputError, match="leaves out the name of tool call 1 of message 2"):
        examples_of(tokenizer_of(FAMILIES["zephyr"]), tmp_path, {"messages": WITH_TOOLS})


def test_templates_that_cut_reasoning_out_of_answers_are_named(tmp_path: Path) -> None:
    """In any turn, and whatever is asked for: the last turn is cut as well."""
    tokenizer = tokenizer_of(FAMILIES["deepseek-r1"])
    for messages in (THOUGHTFUL[2:], [*THOUGHTFUL[2:], *ONE]):
        for turns in ("together", "separate"):
            with pytest.raises(InputError, match="leaves out the reasoning of message 2"):
                examples_of(tokenizer, tmp_path, {"messages": messages}, turns=turns)


def test_a_prompt_that_opens_the_thinking_block_is_matched_or_named(tmp_path: Path) -> None:
    family = FAMILIES["qwen-3"]
    tokenizer = tokenizer_of(family)
    tokenizer.chat_template = family.template.removesuffix("{% endif %}") + "<think>\n{% endif %}"
    thinks, does_not = ({"messages": messages} for messages in (THOUGHTFUL[2:], ONE))
    (example,) = examples_of(tokenizer, tmp_path, thinks)
    assert spelled(tokenizer, example).endswith("<think>\n⟦Five and four.\n</think>\n\n9<|im_end|>⟧")
    (example,) = examples_of(tokenizer, tmp_path, does_not)
    assert spelled(tokenizer, example).endswith("<think>\n\n</think>\n\n⟦It is 5.<|im_end|>⟧")
    tokenizer = tokenizer_of(FAMILIES["chatml"])
    tokenizer.chat_template = FAMILIES["chatml"].template.removesuffix("{% endif %}") + "<think>\n{% endif %}"
    with pytest.raises(
        InputError, match=r"writes '<\|im_start\|>assistant\\n<think>\\n' to ask for message 2, but not"
    ):
        examples_of(tokenizer, tmp_path, does_not)
