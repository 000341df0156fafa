"""From files to batches: what is read, what is refused and where, which tokens are trained on.

Masks are checked by decoding: the supervised ids must spell the response and the end-of-sequence token, the others the
prompt. What the hub itself answers is not checked: these tests use no network.
"""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gora.assets import resolve
from gora.data import (
    IGNORED,
    Collator,
    Encoder,
    Examples,
    PreparedData,
    Segment,
    format_for,
    padding_id,
    prepare,
    read_rows,
    sample_text,
)
from gora.data import file_bytes as content_module
from gora.errors import InputError
from gora.recipe.schema import DataSection, SourceSection

BAD = Path(__file__).parents[1] / "fixtures" / "bad"
INDEX = json.loads((BAD / "index.json").read_text(encoding="utf-8"))["files"]
TINY = resolve("builtin:tiny-6m", "models")
CHAT_WITH_BOS = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ROWS = [{"prompt": f"Count to {n}.", "response": f"Here: {' '.join(map(str, range(n)))}"} for n in range(1, 31)]


# Tokenizers


@pytest.fixture(scope="module")
def tiny() -> PreTrainedTokenizerBase:
    """Byte-level BPE that puts <s> in front by itself; no chat template."""
    return AutoTokenizer.from_pretrained(TINY)


def byte_level(post: Any = None, **special: Any) -> PreTrainedTokenizerFast:
    """The vocabulary of tiny-6m with another way of adding special tokens."""
    tokenizer = Tokenizer.from_file(f"{TINY}/tokenizer.json")
    tokenizer.post_processor = post or processors.ByteLevel(trim_offsets=False)
    special = {"eos_token": "</s>", "pad_token": "<pad>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture(scope="module")
def no_bos() -> PreTrainedTokenizerBase:
    """As Qwen's: no beginning-of-sequence token, a turn ends in the end-of-sequence token."""
    tokenizer = byte_level(eos_token="<|im_end|>")
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=True)])
    return tokenizer


@pytest.fixture(scope="module")
def t5_like() -> PreTrainedTokenizerBase:
    """Ends its inputs with </s> and starts them with nothing."""
    return byte_level(processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)]))


@pytest.fixture(scope="module")
def spaced() -> PreTrainedTokenizerBase:
    """As Llama 2's: takes the start of every text for the start of a word, and puts a space there."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special[:3], initial_alphabet=["▁"], show_progress=False
    )
    tokenizer.train_from_iterator([row["prompt"] + " " + row["response"] + "\n:" for row in ROWS], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


# Helpers


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def prepared(tokenizer: PreTrainedTokenizerBase, path: Path | str, *, seed: int = 0, **settings: Any) -> PreparedData:
    say: Callable[[str], None] = settings.pop("say", lambda line: None)
    encoder_decoder = settings.pop("encoder_decoder", False)
    data = DataSection(train=SourceSection(path=str(path)), **settings)
    return prepare(data, tokenizer, seed, encoder_decoder=encoder_decoder, say=say)


def read(path: Path | str, **source: Any) -> Any:
    return read_rows(SourceSection(path=str(path), **source), ("train",))


def trained(tokenizer: PreTrainedTokenizerBase, example: dict[str, list[int]]) -> str:
    return str(tokenizer.decode([label for label in example["labels"] if label != IGNORED]))


def untrained(tokenizer: PreTrainedTokenizerBase, example: dict[str, list[int]]) -> str:
    pairs = zip(example["input_ids"], example["labels"], strict=True)
    return str(tokenizer.decode([token for token, label in pairs if label == IGNORED]))


def labels_match(example: dict[str, list[int]]) -> bool:
    pairs = zip(example["input_ids"], example["labels"], strict=True)
    return all(label in (IGNORED, token) for token, label in pairs)


# Sources


def settings_of(fault: dict[str, Any]) -> dict[str, Any]:
    if fault["columns"] == ["messages"]:
        return {"format": "chat", "chat_template": "plain"}
    if "label" in fault["columns"]:
        return {"prompt": "sentence", "response": "label", "choices": ["negative", "positive"]}
    return {"prompt": "query"}


def broken_file(name: str, folder: Path) -> Path:
    """A file of the index; the long one is made here, as the index describes it."""
    if name != "long_line.jsonl":
        return BAD / name
    good = {"query": "How many pencils are in 4 boxes?", "response": "6 * 4 = 24"}
    return write_rows(folder / name, [good, {**good, "response": "15 - 7 = 8. " * 17_000}, good, good])


FILE_FAULTS = {"empty.jsonl": "is empty", "wrong_column_name.jsonl": "did you mean 'reponse'"}
ROW_IS_GOOD = {
    "blank_lines.jsonl",
    "bom_crlf.jsonl",
    "json_array.jsonl",
    "json_array_one_line.jsonl",
    "gzip_content.jsonl",
    "label_as_text.jsonl",  # the text is the name of a choice
}


@pytest.mark.parametrize("fault", INDEX, ids=lambda fault: fault["file"])
def test_every_broken_file_is_read_as_far_as_it_is_good(
    fault: dict[str, Any], tiny: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path, settings = broken_file(fault["file"], tmp_path), settings_of(fault)
    if fault["file"] in FILE_FAULTS:
        for bad_rows in ("error", "skip"):
            with pytest.raises(InputError, match=FILE_FAULTS[fault["file"]]):
                prepared(tiny, path, bad_rows=bad_rows, **settings)
        return
    if fault["file"] == "long_line.jsonl":
        settings["overlong"] = "drop"
    said: list[str] = []
    data = prepared(tiny, path, bad_rows="skip", say=said.append, **settings)
    good = fault["file"] in ROW_IS_GOOD
    assert len(data.train) == (fault["rows_lenient"] if fault["file"] != "label_as_text.jsonl" else 3)
    faulty = [] if good or settings.get("overlong") else fault["line"]
    assert data.counts.train.bad == len(faulty)
    if not faulty:
        assert not said
        assert prepared(tiny, path, **settings).fingerprint == data.fingerprint
        return
    with pytest.raises(InputError) as error:
        prepared(tiny, path, **settings)
    named = [problem.split(": ")[0] for problem in error.value.problems]
    assert named == [f"{path}:{line}" for line in faulty]
    assert all(problem in said[-1] for problem in error.value.problems)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1', "not JSON: Expecting ',' delimiter"),
        (b'{"a": Infinity}', "the bare word Infinity"),
        (b'{"a": {"b": 1, "b": 2}}', "the key 'b' stands more than once"),
        (b'{"a": 1} x', "text follows after the value's end at column 9"),
        (b'"text"', "not an object but the text 'text'"),
        (b'{"a": "\xff"}', "byte 0xff at byte 7 of the line, 23 of the file"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not usable JSON: Exceeds the limit"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(line: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": "first"}\r\n' + line + b'\n\n{"a": "last"}')
    rows = read(path)
    assert rows.rows == [{"a": "first"}, {"a": "last"}]
    assert [rows.where(0), rows.where(1)] == [f"{path}:1", f"{path}:4"]
    assert [bad.where for bad in rows.bad] == [f"{path}:2"]
    assert reason in rows.bad[0].reason


def test_columns_that_are_only_sometimes_there_are_named_row_by_row(
    tiny: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "x.jsonl", [ROWS[0], {"prompt": "a", "reponse": "b"}])
    with pytest.raises(InputError) as error:
        prepared(tiny, path)
    reason = "column 'response' is missing; the row has 'prompt', 'reponse' - did you mean 'reponse'?"
    assert error.value.problems == (f"{path}:2: {reason}",)


def test_half_a_surrogate_pair_is_a_bad_row(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a", "response": "\\ud83d"}\n')
    with pytest.raises(InputError, match="half of a surrogate pair"):
        prepared(tiny, path)


def test_ten_bad_rows_are_named_and_the_rest_counted(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [{"prompt": "a", "response": n} for n in range(25)] + ROWS[:2])
    with pytest.raises(InputError, match="25 of 27 rows cannot be used") as error:
        prepared(tiny, path)
    assert len(error.value.problems) == 11
    assert error.value.problems[0].endswith(":1: column 'response' must be text, not the number 0")
    assert error.value.problems[-1] == "and 15 more"


@pytest.mark.parametrize(
    "text", ['[\n {"a": 1},\n {"a": 2},\n 3,\n {"a": NaN}\n]\n', '{"a": 1}\n{"a": 2}\n3\n{"a": NaN}\n']
)
def test_an_array_is_read_like_lines(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    rows = read(path)
    first = 2 if text.startswith("[") else 1
    assert rows.rows == [{"a": 1}, {"a": 2}]
    assert [bad.where.split(" ")[0] for bad in rows.bad] == [f"{path}:{first + 2}", f"{path}:{first + 3}"]
    assert [bad.where for bad in read(path, max_rows=3).bad] == [rows.bad[0].where]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n{"a": ]', ":2: the JSON array cannot be read past this row"),
        ('[{"a": 1},\n{"a": 2}', ":2: the JSON array breaks off"),
        ('[{"a": 1},\n{"a": 2}] x', ":2: text follows after the end"),
        ('[{"a": 1},\n{"a": "\udcff"}\n]', ":2: not UTF-8"),
        ('{\n "data": []\n}', "one JSON object spread over several lines, with the keys 'data'"),
        ("[]", "holds no rows"),
        ("\n \n", "holds no rows"),
    ],
)
def test_a_broken_document_is_refused_as_a_whole(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("utf-8", errors="surrogateescape"))
    with pytest.raises(InputError, match=message):
        read(path)


def test_lines_that_are_lists_are_not_taken_for_an_array(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('["a"]\n{"a": 1}\n')
    rows = read(path)
    assert (rows.rows, rows.bad[0].where) == ([{"a": 1}], f"{path}:1")


def test_csv(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b'\xef\xbb\xbfa,b\r\n1,"two\r\nlines, ""quoted"""\r\n\r\n1,2,3\r\n5,\xff\r\n"6"x,7\r\n8,9\r\n')
    rows = read(path)
    assert rows.rows == [{"a": "1", "b": 'two\r\nlines, "quoted"'}, {"a": "8", "b": "9"}]
    assert [rows.where(0), rows.where(1)] == [f"{path}:2", f"{path}:8"]
    assert [bad.where for bad in rows.bad] == [f"{path}:{line}" for line in (5, 6, 7)]
    assert "3 values where the header names 2" in rows.bad[0].reason
    assert read(path, max_rows=1).rows == rows.rows[:1]
    # Every value of a CSV file is text, so the number of a choice is, too.
    path.write_text("prompt,label\ngood,1\nbad,0\nodd,x\n")
    data = prepared(tiny, path, response="label", choices=["no", "yes"], bad_rows="skip")
    assert [trained(tiny, data.train[i]) for i in (0, 1)] == ["yes</s>", "no</s>"]
    assert data.counts.train.bad == 1


@pytest.mark.parametrize(
    ("text", "message"), [("a,a\n1,2\n", "once"), ('a,b\n1,"2\n3,4\n', "x.csv:2.*never closed"), ("a,b\n", "no rows")]
)
def test_broken_csv(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "x.csv")


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=7)
    rows = read(path)
    assert (rows.rows, rows.where(16)) == (ROWS, f"{path} row 17")
    assert read(path, max_rows=10).rows == ROWS[:10]
    twice = pyarrow.table([["a"], ["b"]], names=["answer", "answer"])
    pyarrow.parquet.write_table(twice, path)
    with pytest.raises(InputError, match="several columns of one name: 'answer'"):
        read(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read(path)


@pytest.fixture
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_bars_of_the_library_stay_out_of_files_and_logs(tmp_path, datasets_cache, capfd):
    import datasets

    datasets.enable_progress_bars()
    (tmp_path / "set").mkdir()
    write_rows(tmp_path / "set" / "train.jsonl", ROWS[:5])
    assert len(read(tmp_path / "set").rows) == 5
    assert "examples/s" not in capfd.readouterr().err
    assert not datasets.are_progress_bars_disabled()


def test_a_folder_with_configurations(tmp_path: Path, datasets_cache: None) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_rows(folder / "one.jsonl", ROWS[:5])
    write_rows(folder / "two.jsonl", ROWS[5:8])
    configs = [
        {"config_name": "big", "data_files": [{"split": "train", "path": "one.jsonl"}]},
        {"config_name": "small", "data_files": [{"split": "test", "path": "two.jsonl"}]},
    ]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    rows = read(folder, subset="big", max_rows=4)
    assert (rows.rows, rows.where(3)) == (ROWS[:4], f"{folder}/big[train] row 4")
    assert read(folder, subset="small", split="test[1:]").rows == ROWS[6:8]
    with pytest.raises(InputError, match=r"Set `subset`, as in data\.train\.subset, to one of 'big', 'small'"):
        read(folder)
    with pytest.raises(InputError, match=r"no subset 'bigg' - did you mean 'big'\? Known: 'big', 'small'"):
        read(folder, subset="bigg")
    with pytest.raises(InputError, match=r"no split 'train'\. Its splits are 'test'\. Set `split`"):
        read(folder, subset="small")
    with pytest.raises(InputError, match=r"no split 'tset' - did you mean 'test'\?"):
        read(folder, subset="small", split="tset")


def test_a_saved_data_set(tmp_path: Path, datasets_cache: None) -> None:
    import datasets

    made = datasets.Dataset.from_list(ROWS)
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=made, test=made.select([3])).save_to_disk(tmp_path / "both")
    assert read(tmp_path / "one").rows == ROWS
    assert read(tmp_path / "both", split="test").rows == ROWS[3:4]
    with pytest.raises(InputError, match="no split 'dev'"):
        read(tmp_path / "both", split="dev")
    with pytest.raises(InputError, match="has no subsets"):
        read(tmp_path / "one", subset="x")


def test_a_hub_set_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach 'org/name' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match="'org/name' is neither a local path nor a hub data set that can be reached"):
        read("org/name")


def test_a_path_that_does_not_exist_names_its_neighbours(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(InputError, match=r"trian.jsonl does not exist - did you mean '.*train\.jsonl'"):
        read(tmp_path / "trian.jsonl")
    with pytest.raises(InputError, match="there is no folder"):
        read(tmp_path / "nowhere" / "train.jsonl")


def test_a_file_takes_no_split_and_must_be_of_a_known_kind(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", ROWS)
    with pytest.raises(InputError, match="is a file and has no split 'train'"):
        read(path, split="train")
    path.rename(tmp_path / "x.txt")
    with pytest.raises(InputError, match=r"must end in one of \.jsonl"):
        read(tmp_path / "x.txt")


def test_packed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = gzip.compress(write_rows(tmp_path / "x.jsonl", ROWS).read_bytes())
    (tmp_path / "x.jsonl.gz").write_bytes(packed)
    assert read(tmp_path / "x.jsonl.gz").rows == ROWS
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[:-20])
    with pytest.raises(InputError, match="damaged gzip"):
        read(tmp_path / "cut.jsonl.gz")
    monkeypatch.setattr(content_module, "UNPACKED_LIMIT", 100)
    with pytest.raises(InputError, match="unpacks to more than"):
        read(tmp_path / "x.jsonl.gz")


# Instruction format


@pytest.mark.parametrize(
    ("template", "prompt", "response"),
    [
        ("plain", "What?\n", "So."),
        ("qa", "Question: What?\nAnswer:", " So."),
        (
            "alpaca",
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            "\n\n### Instruction:\nWhat?\n\n### Response:",
            " So.",
        ),
        ("{{{prompt}}} in {year}: ", "{What?} in 1999:", " So."),
    ],
)
@pytest.mark.parametrize("name", ["tiny", "no_bos"])
def test_the_response_is_trained_and_the_prompt_is_what_generation_sees(
    template: str, prompt: str, response: str, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tokenizer = request.getfixturevalue(name)
    path = write_rows(tmp_path / "x.jsonl", [{"ask": "What?", "say": "So.", "year": 1999}])
    example = prepared(tokenizer, path, prompt="ask", response="say", template=template).train[0]
    assert labels_match(example)
    assert trained(tokenizer, example) == response + tokenizer.eos_token
    seen = tokenizer(prompt)["input_ids"]
    assert example["input_ids"][: len(seen)] == seen
    assert set(example["labels"][: len(seen)]) == {IGNORED}
    assert untrained(tokenizer, example) == ("<s>" if name == "tiny" else "") + prompt


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("alpacca", "neither one of 'plain', 'alpaca', 'qa'.*did you mean 'alpaca'"),
        ("{prompt} {", "lone '{'"),
        ("{prompt} {responce}", "data.template asks for the column 'responce' - did you mean 'response'"),
    ],
)
def test_a_wrong_template_is_refused_once(
    template: str, message: str, tiny: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        prepared(tiny, write_rows(tmp_path / "x.jsonl", ROWS), template=template)


@pytest.mark.parametrize("label", [True, "1", 2, -1, 1.0, None])
def test_a_choice_is_a_number_in_range(label: Any, tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [{"prompt": "a", "label": 1}, {"prompt": "b", "label": label}])
    data = prepared(tiny, path, response="label", choices=["no", "yes"], bad_rows="skip", template="qa")
    assert [trained(tiny, one) for one in (data.train[i] for i in range(len(data.train)))] == [" yes</s>"]


def test_a_tokenizer_that_starts_words_with_spaces_goes_on_where_the_prompt_ends(
    spaced: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    data = prepared(spaced, write_rows(tmp_path / "x.jsonl", ROWS))
    for row, example in zip(ROWS, (data.train[i] for i in range(len(ROWS))), strict=True):
        whole = spaced(row["prompt"] + "\n" + row["response"])["input_ids"]
        assert example["input_ids"] == [*whole, spaced.eos_token_id]
        seen = spaced(row["prompt"] + "\n")["input_ids"]
        assert example["labels"] == [IGNORED] * len(seen) + example["input_ids"][len(seen) :]


# Chat format

CONVERSATION = [
    {"from": "human", "value": "Hi"},
    {"from": "gpt", "value": "Hello."},
    {"from": "human", "value": "3 * 3?"},
    {"from": "gpt", "value": "9"},
    {"from": "human", "value": "Thanks"},
]


def turns(tokenizer: PreTrainedTokenizerBase, example: dict[str, list[int]]) -> list[tuple[bool, str]]:
    """Runs of tokens that are all trained or all not, decoded."""
    runs: list[tuple[bool, list[int]]] = []
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        if not runs or runs[-1][0] != (label != IGNORED):
            runs.append((label != IGNORED, []))
        runs[-1][1].append(token)
    return [(is_trained, str(tokenizer.decode(ids))) for is_trained, ids in runs]


@pytest.mark.parametrize("name", ["tiny", "no_bos"])
def test_plain_chat_trains_every_answer(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    tokenizer = request.getfixturevalue(name)
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token
    path = write_rows(tmp_path / "x.jsonl", [{"talk": CONVERSATION}])
    example = prepared(
        tokenizer, path, format="chat", messages="talk", chat_template="plain", system="Be brief."
    ).train[0]
    assert labels_match(example)
    assert turns(tokenizer, example) == [
        (False, f"{bos}Be brief.\n\nUser: Hi\nAssistant:"),
        (True, f" Hello.{eos}"),
        (False, "\nUser: 3 * 3?\nAssistant:"),
        (True, f" 9{eos}"),
    ]


def test_chatml_ends_a_turn_in_its_own_token_and_learns_no_line_break_after_it(
    no_bos: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    said: list[str] = []
    path = write_rows(tmp_path / "x.jsonl", [{"messages": CONVERSATION}])
    example = prepared(no_bos, path, format="chat", chat_template="chatml", say=said.append).train[0]
    assert turns(no_bos, example) == [
        (False, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        (True, "Hello.<|im_end|>"),
        (False, "\n<|im_start|>user\n3 * 3?<|im_end|>\n<|im_start|>assistant\n"),
        (True, "9<|im_end|>"),
    ]
    assert ["turn behind the last answer (1)" in line for line in said] == [True]


def test_the_tokenizers_own_template_is_used_and_its_bos_is_not_doubled(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.chat_template = CHAT_WITH_BOS
    path = write_rows(tmp_path / "x.jsonl", [{"messages": CONVERSATION}])
    example = prepared(tokenizer, path, format="chat").train[0]
    assert example["input_ids"].count(1) == 1
    assert turns(tokenizer, example)[:2] == [(False, "<s><user>Hi\n<assistant>"), (True, "Hello.</s>")]
    seen = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=False
    )
    assert example["input_ids"][: len(seen)] == seen


def test_templates_that_do_not_fit_the_tokenizer_are_warned_of(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [{"messages": CONVERSATION[:-1]}])
    jinja = tmp_path / "own.jinja"
    jinja.write_text(CHAT_WITH_BOS.removeprefix("{{ bos_token }}"))
    said: list[str] = []
    example = prepared(tiny, path, format="chat", chat_template=str(jinja), say=said.append).train[0]
    assert example["input_ids"].count(1) == 1
    assert "does not write <s>" in said[0]
    prepared(tiny, path, format="chat", chat_template="chatml", say=said.append)
    assert "no token <|im_start|>" in said[1]


@pytest.mark.parametrize(
    ("jinja", "message"),
    [
        (
            "{% for m in messages %}{{ m.content }}{% if loop.last %}!{% endif %}{% endfor %}",
            "renders the first 1 messages",
        ),
        ("{{ raise_exception('no system please') }}", "own.jinja' fails: no system please"),
        ("{% for m in messages %}", "not valid Jinja: line 1"),
    ],
)
def test_a_template_that_cannot_be_used_is_named(
    jinja: str, message: str, tiny: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    (tmp_path / "own.jinja").write_text(jinja)
    path = write_rows(tmp_path / "x.jsonl", [{"messages": CONVERSATION}])
    with pytest.raises(InputError, match=message):
        prepared(tiny, path, format="chat", chat_template=str(tmp_path / "own.jinja"))


def test_chat_without_a_template_names_the_remedy(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [{"messages": CONVERSATION}])
    with pytest.raises(InputError, match=r"no chat template.*`plain`"):
        prepared(tiny, path, format="chat")
    with pytest.raises(InputError, match="nor a file that exists - did you mean 'chatml'"):
        prepared(tiny, path, format="chat", chat_template="chatlm")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}],
            "message 2: the assistant's content is",
        ),
        (
            [{"role": "user", "content": ["a"]}, CONVERSATION[1]],
            "message 1: part 1 of content must be an object with type and text",
        ),
        ([{"text": "a"}], "message 1 has neither role and content nor from and value; it has 'text'"),
        (["a"], "message 1 must be an object"),
        (CONVERSATION[1:], "starts with the assistant"),
    ],
)
def test_bad_conversations(messages: Any, reason: str, tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [{"messages": messages}])
    with pytest.raises(InputError, match=reason):
        prepared(tiny, path, format="chat", chat_template="plain")


# Encoding and preparing


def test_cut_and_dropped_rows_are_counted(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "response": "b"},
        {"prompt": "a", "response": "b " * 50},
        {"prompt": "a " * 50, "response": "b"},
    ]
    path = write_rows(tmp_path / "x.jsonl", rows)
    cut = prepared(tiny, path, max_length=16)
    assert (len(cut.train), cut.counts.train.truncated, cut.counts.train.dropped) == (2, 1, 1)
    assert len(cut.train[1]["input_ids"]) == len(cut.train[1]["labels"]) == 16
    assert cut.train[1]["labels"][-1] not in (IGNORED, tiny.eos_token_id)
    assert [cut.train.where(i) for i in (0, 1)] == [f"{path}:1", f"{path}:2"]
    dropped = prepared(tiny, path, max_length=16, overlong="drop")
    assert (len(dropped.train), dropped.counts.train.truncated, dropped.counts.train.dropped) == (1, 0, 2)
    counts = cut.counts.train
    assert counts.rows == counts.used + counts.bad + counts.dropped + counts.held_out
    assert counts.tokens == sum(cut.train.lengths) == sum(len(cut.train[i]["input_ids"]) for i in (0, 1))
    assert counts.supervised_tokens == sum(label != IGNORED for i in (0, 1) for label in cut.train[i]["labels"])
    assert "1 cut at the end, 1 dropped as too long" in cut.counts.summary()


def test_no_token_to_train_on_is_an_error_that_says_why(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [{"prompt": "a " * 50, "response": "b"}])
    with pytest.raises(InputError, match=r"no token to train on \(format instruction, template alpaca\)") as error:
        prepared(tiny, path, max_length=16, template="alpaca")
    assert error.value.problems == ("In 1 the prompt alone fills data.max_length, 16 tokens.",)
    write_rows(path, [{"prompt": "a", "response": None}])
    with pytest.raises(InputError, match="no token to train on"):
        prepared(tiny, path, bad_rows="skip")


def test_a_response_that_ends_in_eos_gets_no_second_one(tiny: PreTrainedTokenizerBase) -> None:
    encoder = Encoder(tiny, 64, "truncate", encoder_decoder=False)
    once, twice = encoder([[Segment("a\n", False), Segment(text, True)] for text in ("b", "b</s>")])
    assert once is not None
    assert once == twice
    assert list(once.labels).count(2) == 1


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no end-of-sequence token"):
        prepared(byte_level(eos_token=None), write_rows(tmp_path / "x.jsonl", ROWS))


def test_encoder_decoder_pairs(t5_like: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "x.jsonl", [{"prompt": "a", "response": "b"}, {"prompt": "a " * 50, "response": "b " * 50}]
    )
    data = prepared(t5_like, path, encoder_decoder=True, max_length=16)
    assert t5_like.decode(data.train[0]["input_ids"]) == "a\n</s>"
    assert t5_like.decode(data.train[0]["labels"]) == "b</s>"
    assert [len(data.train[1][key]) for key in ("input_ids", "labels")] == [16, 16]
    assert data.train[1]["input_ids"][-1] == t5_like.eos_token_id
    assert data.train[1]["labels"][-1] != t5_like.eos_token_id
    assert data.counts.train.truncated == 1
    # The same tokenizer in a model without an encoder: nothing is ended but the response.
    causal = prepared(t5_like, path, max_length=16).train[0]
    assert t5_like.decode(causal["input_ids"]) == "a\nb</s>"


def test_encoder_decoder_chat_trains_the_last_answer(t5_like: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [{"messages": CONVERSATION}])
    example = prepared(t5_like, path, encoder_decoder=True, format="chat", chat_template="plain").train[0]
    assert t5_like.decode(example["input_ids"]) == "User: Hi\nAssistant: Hello.</s>\nUser: 3 * 3?\nAssistant:</s>"
    assert t5_like.decode(example["labels"]) == " 9</s>"


def test_the_holdout_is_drawn_with_the_seed_and_the_rest_keeps_its_order(
    tiny: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "x.jsonl", ROWS)
    data, again, other = (prepared(tiny, path, holdout=10, seed=seed) for seed in (1, 1, 2))

    def lines(examples: Examples | None) -> list[int]:
        assert examples is not None
        return [int(examples.where(index).rpartition(":")[2]) for index in range(len(examples))]

    assert sorted(lines(data.train) + lines(data.eval)) == list(range(1, 31))
    assert lines(data.train) == sorted(lines(data.train))
    assert lines(data.eval) == lines(again.eval) != lines(other.eval)
    assert data.fingerprint == again.fingerprint != other.fingerprint
    assert data.counts.eval is not None
    assert (data.counts.train.used, data.counts.train.held_out, data.counts.eval.used) == (20, 10, 10)
    with pytest.raises(InputError, match=r"data\.holdout is 30, but there are 30 usable rows"):
        prepared(tiny, path, holdout=30)


def test_evaluation_rows_have_their_own_source(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path, other = write_rows(tmp_path / "x.jsonl", ROWS), write_rows(tmp_path / "y.jsonl", ROWS[:3])
    data = prepared(tiny, path, eval=SourceSection(path=str(other)))
    assert data.eval is not None
    assert (len(data.train), len(data.eval), data.eval.where(2)) == (30, 3, f"{other}:3")
    assert data.fingerprint == prepared(tiny, path).fingerprint
    with pytest.raises(InputError, match="Use one of them"):
        prepared(tiny, path, eval=SourceSection(path=str(other)), holdout=2)
    write_rows(other, [{"prompt": "a", "response": 1}])
    with pytest.raises(InputError, match=r"y\.jsonl: 1 of 1 rows cannot be used\. Fix them"):
        prepared(tiny, path, eval=SourceSection(path=str(other)))


def test_a_length_beyond_the_models_is_warned_of(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    said: list[str] = []
    prepared(tiny, write_rows(tmp_path / "x.jsonl", ROWS), max_length=2048, say=said.append)
    assert said == ["data.max_length is 2,048 tokens, but the tokenizer says that the model takes 1,024."]


def test_the_same_ids_make_the_same_fingerprint_and_others_another(
    tiny: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    first = prepared(tiny, write_rows(tmp_path / "x.jsonl", ROWS)).fingerprint
    assert first == prepared(tiny, write_rows(tmp_path / "y.jsonl", ROWS)).fingerprint
    assert first != prepared(tiny, write_rows(tmp_path / "x.jsonl", ROWS[::-1])).fingerprint
    assert first != prepared(tiny, tmp_path / "y.jsonl", template="{prompt}").fingerprint


# Batches and samples


def test_a_batch_is_padded_to_its_longest(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    data = prepared(tiny, write_rows(tmp_path / "x.jsonl", [ROWS[0], ROWS[9]])).train
    batch = Collator.of(tiny, False)([data[0], data[1]])
    short, long = data.lengths
    assert {key: (value.dtype, value.shape) for key, value in batch.items()} == {
        key: (torch.int64, (2, long)) for key in ("input_ids", "attention_mask", "labels")
    }
    assert batch["input_ids"][0].tolist() == data[0]["input_ids"] + [0] * (long - short)
    assert batch["attention_mask"].sum(1).tolist() == [short, long]
    assert batch["labels"][0].tolist() == data[0]["labels"] + [IGNORED] * (long - short)
    assert Collator(0, False)([data[0]], width=500)["labels"].shape[1] == 500


def test_padding_with_eos_leaves_the_trained_eos_alone(tmp_path: Path) -> None:
    tokenizer = byte_level(pad_token=None)
    assert padding_id(tokenizer) == 2
    data = prepared(tokenizer, write_rows(tmp_path / "x.jsonl", [ROWS[0], ROWS[9]])).train
    batch = Collator.of(tokenizer, False)([data[0], data[1]])
    assert (batch["labels"] == 2).sum(1).tolist() == [1, 1]


def test_encoder_decoder_labels_have_their_own_width() -> None:
    batch = Collator(0, True)([{"input_ids": [5, 6, 7], "labels": [8]}, {"input_ids": [5], "labels": [8, 9]}])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[8, IGNORED], [8, 9]]


def shown(tokenizer: PreTrainedTokenizerBase, examples: Examples) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        console.print(sample_text(tokenizer, examples))
    return capture.get()


def test_a_sample_shows_what_is_trained(
    tiny: PreTrainedTokenizerBase, t5_like: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "x.jsonl", [{"prompt": "a [b]\x1b[31m", "response": "So."}])
    text = shown(tiny, prepared(tiny, path, template="qa").train)
    assert "<s>Question: a [b]␛[31m\nAnswer:⟦ So.</s>⟧" in text
    assert "3 supervised" in text
    assert f"BOS once · EOS trained: yes · {path}:1" in text
    pair = shown(t5_like, prepared(t5_like, path, encoder_decoder=True).train)
    assert "⟦So.</s>⟧" in pair
    assert "BOS none · EOS trained: yes" in pair


def test_a_doubled_bos_and_a_missing_eos_are_shown(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [{"prompt": "<s><s>a", "response": "So " * 30}])
    text = shown(tiny, prepared(tiny, path, max_length=16).train)
    assert "BOS twice! · EOS trained: no (the row was cut)" in text


def test_the_prompt_of_a_row_is_open_to_other_stages(tiny: PreTrainedTokenizerBase) -> None:
    data = DataSection(train=SourceSection(path="x"), template="qa")
    segments = format_for(data, tiny).segments({"prompt": "What?", "response": "So."})
    assert segments == [Segment("Question: What?\nAnswer:", False), Segment(" So.", True)]
