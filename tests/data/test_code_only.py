"""Code-only labels: which characters are code, and which tokens carry a loss.

In the texts below « and » stand around what is expected to be trained; they are taken out before anything is read.
"""

import json

import pytest
from rich.console import Console
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gora.data import IGNORED, sample_text
from gora.data.code_blocks import code_spans
from gora.errors import InputError
from gora.recipe import load_recipe
from tests.data.test_data import TINY, byte_level, prepared, turns, write_rows

MARKDOWN = {
    "no code": "Only words, `inline` and ``more``.",
    "one block": "Here:\n\n«```python\nx = 1\n```»\n\nIt sets x.",
    "nothing but a block": "«```\nx\n```»",
    "two blocks": "a\n«```py\n1\n```»\nb\n«```js\n2\n```»\nc",
    "neighbours": "«```\n1\n```»\n«```\n2\n```»",
    "empty block": "a\n«```\n```»\nb",
    "blank lines and prose inside": "«```text\nLet me explain.\n\nThis is code.\n```»\nend",
    "tildes": "a\n«~~~python\nx\n~~~»\nb",
    "tildes around backticks": "«~~~\n```\nx\n```\n~~~»\nb",
    "backticks around tildes": "«```\n~~~\n```»\n~~ b",
    "longer outer fence": "«````markdown\n```python\nx\n```\n````»\nb",
    "longer closing fence": "«```\nx\n`````»\nb",
    "shorter fence does not close": "«````\n```\n````»\nb",
    "language on what looks like a closing fence": "«```\nx\n```python\ny\n```»\nb",
    "closing fence with spaces behind it": "«```\nx\n```»  \nb",
    "never closed": "a\n«```python\nx = 1\ny = 2»",
    "never closed, other fence inside": "a\n«```python\nx\n~~~\ny»",
    "opened at the very end": "a\n«```»",
    "inline fence is words": "Type ```ls``` here.\n```ls``` too.\nend",
    "tilde info may hold backticks": "«~~~ `x`\n1\n~~~»\nb",
    "in a list": "1. First:\n«   ```sh\n   ls\n   ```»\n2. Then.",
    "deep in a list": "- a\n  - b\n«      ```sh\n      ls\n      ```»\nend",
    "right behind a list mark": "- «```sh\n  ls\n  ```»\n- b",
    "right behind a number": "10) «```sh\nls\n```»\nb",
    "list mark does not close": "«```\n- ```\n```»\nb",
    "tabs": "a\n«\t```\n\tx\n\t```»\nb",
    "windows line ends": "a\r\n«```py\r\nx\r\n```»\r\nb",
    "info string with attributes": "«```{.python .numberLines}\nx\n```»",
    "two ticks are no fence": "``\nx\n``",
    "fence in a quotation is words": "> ```\n> x\n> ```",
    "four spaces alone are no block": "a\n\n    x = 1\n\nb",
    "letters of several bytes": "Größe:\n«```py\nπ = '日本語 🙂'\n```»\nfertig 🙂",
    "odd line separators are text": "a\u2028```\nb\n«```\nx\x0c```\n```»\nend",
}


@pytest.fixture(scope="module")
def tiny():
    """Byte-level BPE that puts <s> in front by itself."""
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def no_bos():
    """As Qwen's: no beginning-of-sequence token, a turn ends in the end-of-sequence token."""
    tokenizer = byte_level(eos_token="<|im_end|>")
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=True)])
    return tokenizer


@pytest.fixture(scope="module")
def spaced():
    """As Llama 2's: no words before the merges, a space in front of every text, bytes for rare characters."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, max_token_length=4, show_progress=False)
    texts = [plain(text) for text in MARKDOWN.values() if "🙂" not in text]
    tokenizer.train_from_iterator([*texts, "Question: Go.\nAnswer:"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def plain(marked):
    return marked.replace("«", "").replace("»", "")


@pytest.mark.parametrize("name", MARKDOWN)
def test_blocks_are_found_as_a_reader_would(name):
    marked, text = MARKDOWN[name], plain(MARKDOWN[name])
    for start, end in reversed(code_spans(text)):
        text = f"{text[:start]}«{text[start:end]}»{text[end:]}"
    assert text == marked


@pytest.mark.parametrize("tokenizer", ["tiny", "no_bos", "spaced"])
def test_tokens_are_those_of_whole_answers_and_the_trained_ones_spell_the_code(tokenizer, request, tmp_path):
    """Inputs equal those of `supervise: response`; a token that also holds a neighbouring character is trained."""
    tokenizer = request.getfixturevalue(tokenizer)
    coded = {name: marked for name, marked in MARKDOWN.items() if "«" in marked}
    path = write_rows(tmp_path / "x.jsonl", [{"prompt": "Go.", "response": plain(text)} for text in coded.values()])
    code = prepared(tokenizer, path, template="qa", supervise="code").train
    whole = prepared(tokenizer, path, template="qa").train
    assert len(code) == len(whole) == len(coded)
    for index, marked in enumerate(coded.values()):
        assert code[index]["input_ids"] == whole[index]["input_ids"]
        pairs = zip(code[index]["labels"], whole[index]["labels"], strict=True)
        assert all(label in (IGNORED, other) for label, other in pairs)
        assert code[index]["labels"][-1] == tokenizer.eos_token_id
        spelled = "".join(text for trained, text in turns(tokenizer, code[index]) if trained)
        wanted = "".join(piece.partition("»")[0] for piece in marked.split("«")[1:])
        spelled = spelled.removesuffix(tokenizer.eos_token)
        # A sequence that begins in the middle of words decodes without its first space, and a token may hold more
        # line breaks than the code's own.
        squeezed = "".join(spelled.split())
        assert squeezed == "".join(wanted.split())


def test_an_answer_that_is_only_code_can_be_learned_from_prompt_to_end(tiny, tmp_path):
    path = write_rows(tmp_path / "x.jsonl", [{"prompt": "Go.", "response": "```py\nx = 1\n```"}])
    example = prepared(tiny, path, template="qa", supervise="code").train[0]
    assert turns(tiny, example) == [
        (False, "<s>Question: Go.\nAnswer:"),
        (True, " ```py\nx = 1\n```</s>"),
    ]


TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Code?"},
    {"role": "assistant", "content": "Sure:\n\n```py\nx = 1\n```\n\nDone."},
    {"role": "user", "content": "Again?"},
    {"role": "assistant", "content": "```py\ny\n```"},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "Bye."},
]


@pytest.mark.parametrize(("template", "front", "back"), [("plain", " ", ""), ("chatml", "", "")])
def test_in_a_conversation_code_and_the_end_of_answers_with_code_are_trained(no_bos, tmp_path, template, front, back):
    path = write_rows(tmp_path / "x.jsonl", [{"messages": TALK}])
    example = prepared(no_bos, path, format="chat", chat_template=template, supervise="code").train[0]
    trained = [text.strip("\n") for is_trained, text in turns(no_bos, example) if is_trained]
    assert trained == ["```py\nx = 1\n```", "<|im_end|>", f"{front}```py\ny\n```<|im_end|>"]
    # What follows the last code is never predicted.
    assert "Thanks" not in no_bos.decode(example["input_ids"])


def test_the_prompt_of_an_answer_that_begins_with_words_is_what_generation_sees(no_bos, tmp_path):
    path = write_rows(tmp_path / "x.jsonl", [{"messages": TALK[2:4]}])
    example = prepared(no_bos, path, format="chat", chat_template="chatml", supervise="code").train[0]
    seen = no_bos("<|im_start|>user\nCode?<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    assert example["input_ids"][: len(seen)] == seen


def test_rows_without_code_are_left_out_and_counted(tiny, tmp_path):
    rows = [{"prompt": "a", "response": text} for text in ("words", "```\nx\n```", "more words")]
    path = write_rows(tmp_path / "x.jsonl", rows)
    data = prepared(tiny, path, supervise="code")
    assert (len(data.train), data.counts.train.rows, data.counts.train.bad) == (1, 3, 0)
    assert data.counts.train.without_code == 2
    assert "1 of 3 (2 without code)" in data.counts.summary()
    assert data.train.where(0) == f"{path}:2"
    with pytest.raises(InputError, match=r"(?s)data.holdout is 1.*2 of its 3 rows have no fenced code block"):
        prepared(tiny, path, supervise="code", holdout=1)
    write_rows(path, rows[:1])
    with pytest.raises(InputError, match=r"(?s)no token to train on.*1 of its 1 rows have no fenced code block"):
        prepared(tiny, path, supervise="code")


def test_a_row_that_is_cut_before_its_code_is_dropped(tiny, tmp_path):
    rows = [{"prompt": "a", "response": "word " * 200 + "\n```\nx\n```"}, {"prompt": "a", "response": "```\nx\n```"}]
    data = prepared(tiny, write_rows(tmp_path / "x.jsonl", rows), supervise="code", max_length=50)
    assert (len(data.train), data.counts.train.dropped) == (1, 1)


def test_the_sample_marks_what_is_trained(tiny, tmp_path):
    path = write_rows(tmp_path / "x.jsonl", [{"prompt": "Go.", "response": "Here:\n```py\nx = 1\n```\nDone."}])
    console = Console(width=100, record=True)
    console.print(sample_text(tiny, prepared(tiny, path, supervise="code").train))
    shown = console.export_text()
    assert "Here:\n⟦```py\nx = 1\n```" in shown
    assert "⟦</s>⟧" in shown
    assert "EOS trained: yes" in shown


def test_an_encoder_decoder_and_choices_are_refused(tiny, tmp_path):
    path = write_rows(tmp_path / "x.jsonl", [{"prompt": "a", "response": "```\nx\n```"}])
    with pytest.raises(InputError, match=r"data.supervise: code needs a decoder-only model"):
        prepared(tiny, path, supervise="code", encoder_decoder=True)
    with pytest.raises(InputError) as refused:
        load_recipe("glue/sst2", ["data.supervise=code"])
    assert "--set data.supervise=code: data.supervise: the responses are choices" in str(refused.value)


def test_a_template_that_changes_answers_makes_a_row_bad(tiny, tmp_path):
    jinja = "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}"
    (tmp_path / "own.jinja").write_text(jinja)
    path = write_rows(tmp_path / "x.jsonl", [{"messages": json.loads(json.dumps(TALK[2:4]))}])
    with pytest.raises(InputError, match=r"changes message 1 \(user\)"):
        prepared(tiny, path, format="chat", chat_template=str(tmp_path / "own.jinja"), supervise="code")
