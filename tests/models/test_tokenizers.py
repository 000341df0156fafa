"""Tokenizers that transformers makes up, padding beyond the embeddings, and tokens that are new."""

import json
import shutil

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from gora.data import Collator, padding_id
from gora.errors import InputError
from gora.evaluation.models.classify import predict
from gora.evaluation.models.generate import Generator
from gora.evaluation.task import Sampling
from gora.models.load import load_model
from gora.models.source import find_model
from gora.models.tokenizer import check_tokenizer, load_tokenizer, new_token_ids
from gora.recipe.schema import ModelSection
from gora.stages.run import run
from tests.conftest import TINY
from tests.helpers.checkpoints import SIZES, WORDS, recipe_for, save_llama, save_rows, save_words

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SMALL = {key: SIZES[key] for key in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}


def qwen2():
    return Qwen2ForCausalLM(Qwen2Config(**SIZES))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=32, **SMALL))


def bert():
    return BertForSequenceClassification(
        BertConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )


def t5():
    return T5ForConditionalGeneration(
        T5Config(vocab_size=128, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0)
    )


def load(folder, **settings):
    section = ModelSection(name=str(folder), **settings)
    return load_tokenizer(section, find_model(section, labels=["no", "yes"]))


def refusal(folder, **settings):
    with pytest.raises(InputError) as refused:
        load(folder, **settings)
    return str(refused.value)


# --- a vocabulary -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [qwen2, gpt2, t5])
def test_a_tokenizer_that_transformers_makes_up_is_refused(tmp_path, make):
    make().save_pretrained(tmp_path)
    assert len(AutoTokenizer.from_pretrained(tmp_path)) < 120
    message = refusal(tmp_path)
    assert "knows no words" in message
    assert str(tmp_path) in message
    assert "tokenizer.json" in message


def test_so_is_that_of_an_encoder(tmp_path):
    bert().save_pretrained(tmp_path)
    assert "knows no words" in refusal(tmp_path, head="classification")


def test_marks_and_a_chat_template_are_no_vocabulary(tmp_path):
    """What an interrupted download leaves of a chat model: every row would become its marks."""
    qwen2().save_pretrained(tmp_path)
    marks = {str(10 + n): {"content": text, "special": True} for n, text in enumerate(["<|im_start|>", "<|im_end|>"])}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "Qwen2Tokenizer",
                "eos_token": "<|im_end|>",
                "chat_template": CHATML,
                "added_tokens_decoder": marks,
            }
        )
    )
    assert "knows no words" in refusal(tmp_path)


def test_a_vocabulary_of_four_letters_is_one(tmp_path):
    save_llama(tmp_path, vocab_size=8)
    save_words(tmp_path, ("A", "C", "G", "T"))
    assert len(load(tmp_path)) == 8


def test_a_file_of_another_kind_than_the_class_reads_is_refused(tmp_path):
    """Qwen2's class reads a BPE file; of one with whole words it keeps the names and loses the words."""
    qwen2().save_pretrained(tmp_path)
    save_words(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("what is one")["input_ids"] == []
    message = refusal(tmp_path)
    assert "not what its files say" in message
    assert "WordLevel" in message
    assert "Qwen2Tokenizer" in message


def test_the_advice_for_a_file_of_another_kind_works(tmp_path):
    qwen2().save_pretrained(tmp_path / "model")
    save_words(tmp_path / "words")
    tokenizer = load(tmp_path / "model", tokenizer=str(tmp_path / "words"))
    assert tokenizer("what is one")["input_ids"] == [4, 5, 6]


@pytest.mark.parametrize("class_name", ["GemmaTokenizer", "CodeLlamaTokenizer"])
def test_a_file_of_byte_level_pieces_that_is_read_as_another_kind_is_refused(tmp_path, class_name):
    """The names of both kinds are BPE and their sizes agree: only the text shows that spaces are lost."""
    shutil.copytree(TINY, tmp_path / "model")
    settings = tmp_path / "model" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "tokenizer_class": class_name}))
    broken = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert "what is one" not in broken.decode(broken("what is one", add_special_tokens=False)["input_ids"])
    message = refusal(tmp_path / "model")
    assert "not what its files say" in message
    assert class_name in message


@pytest.mark.parametrize("class_name", ["LlamaTokenizer", "PreTrainedTokenizerFast", "GPT2Tokenizer", "Qwen2Tokenizer"])
def test_classes_that_keep_the_text_are_taken(tmp_path, class_name):
    shutil.copytree(TINY, tmp_path / "model")
    settings = tmp_path / "model" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "tokenizer_class": class_name}))
    tokenizer = load(tmp_path / "model")
    assert tokenizer.decode(tokenizer("what is one", add_special_tokens=False)["input_ids"]) == "what is one"


@pytest.mark.parametrize(
    ("class_name", "make"), [("LlamaTokenizer", gpt2), ("T5Tokenizer", gpt2), ("Qwen2Tokenizer", gpt2)]
)
def test_a_class_in_the_settings_that_does_not_fit_the_file_is_refused_or_reads_it(tmp_path, class_name, make):
    make().save_pretrained(tmp_path)
    save_words(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": class_name}))
    try:
        tokenizer = load(tmp_path)
    except InputError:
        return
    assert tokenizer("what is one", add_special_tokens=False)["input_ids"] == [4, 5, 6]


# --- as large as the model's ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "embeddings"),
    [
        (50_257, 50_257),  # GPT-2
        (50_277, 50_688),  # Pythia
        (50_295, 51_200),  # Phi-2
        (151_665, 152_064),  # Qwen2.5
        (128_815, 129_280),  # DeepSeek-V3
        (32_100, 32_128),  # T5
        (64_789, 65_024),  # ChatGLM
        (384, 384),  # ByT5
        (23, 64),  # a toy
    ],
)
def test_padded_embeddings_are_taken(tokens, embeddings):
    check_tokenizer("x", "x", _Sized(tokens), embeddings)


@pytest.mark.parametrize(("tokens", "embeddings"), [(4096, 32_000), (30_522, 151_936), (32_000, 128_256), (8, 64)])
def test_a_vocabulary_far_smaller_than_the_embeddings_is_refused(tokens, embeddings):
    with pytest.raises(InputError, match=f"has {tokens:,} tokens, but the model has {embeddings:,} embeddings"):
        check_tokenizer("x", "x", _Sized(tokens), embeddings)


class _Sized:
    """As much of a tokenizer as its size shows."""

    all_special_tokens = ()

    def __init__(self, size):
        self._size = size

    def __len__(self):
        return self._size

    def get_vocab(self):
        return {str(number): number for number in range(self._size)}

    def get_added_vocab(self):
        return {}


def test_the_tokenizer_of_another_model_is_refused_by_its_size(tmp_path):
    save_llama(tmp_path / "model", vocab_size=9000)
    message = refusal(tmp_path / "model", tokenizer=str(TINY))
    assert "belongs to another model" in message


def test_rows_of_unknown_words_are_refused_before_the_model_is_loaded(tmp_path):
    model = save_llama(tmp_path / "model")
    save_words(tmp_path / "model", ("eins", "zwei", "drei", "vier", "gleich", "und", "wie", "viel"))
    with pytest.raises(InputError, match=r"does not know the words of the rows: \d+% of their tokens are '<unk>'"):
        run(recipe_for(model, save_rows(tmp_path / "rows.jsonl"), tmp_path / "run"))


# --- padding ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def beyond(tmp_path):
    """A model whose tokenizer was given a padding token that the model has no embedding for."""
    folder = save_llama(tmp_path / "model", vocab_size=len(WORDS) + 4)
    tokenizer = save_words(folder, pad_token=None)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    assert tokenizer.pad_token_id == len(WORDS) + 4
    return folder


def test_padding_beyond_the_embeddings_becomes_the_end_token(beyond):
    tokenizer = load(beyond)
    assert (tokenizer.pad_token, padding_id(tokenizer)) == ("</s>", 3)
    batch = Collator.of(tokenizer, False)([{"input_ids": [4], "labels": [4]}, {"input_ids": [4, 5], "labels": [4, 5]}])
    assert batch["input_ids"].tolist() == [[4, 3], [4, 5]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]


def test_a_run_with_such_a_tokenizer_trains_says_so_and_saves_a_tokenizer_that_can_pad(beyond, tmp_path, capsys):
    rows = save_rows(tmp_path / "rows.jsonl")
    rows.write_text(rows.read_text() + '{"prompt": "what is one", "response": "it"}\n')
    recipe = recipe_for(beyond, rows, tmp_path / "run", train={"max_steps": 5})
    adapter = run(recipe, merge_too=True).adapter
    assert "padding with '</s>' instead" in " ".join(capsys.readouterr().out.split())
    for folder in (adapter, tmp_path / "run" / "merged"):
        assert AutoTokenizer.from_pretrained(folder).pad_token_id == 3


def test_generation_pads_within_the_embeddings_whatever_the_tokenizer_says(beyond):
    section = ModelSection(name=str(beyond))
    model = load_model(section, find_model(section), torch.device("cpu"))
    generator = Generator(model, AutoTokenizer.from_pretrained(beyond), batch_size=4)
    answers = generator.generate([[4], [4, 5, 6]], Sampling(max_new_tokens=3), lambda *_: None, base=False)
    assert len(answers) == 2


def test_so_do_classifiers(tmp_path):
    torch.manual_seed(0)
    model = bert().eval()
    tokenizer = save_words(tmp_path, WORDS, pad_token=None)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens([f"more{n}" for n in range(20)])
    assert tokenizer.pad_token_id < 32
    tokenizer.pad_token = "more19"
    assert tokenizer.pad_token_id >= 32
    texts = ["what is one", "what is one plus two", "two"]
    assert predict(model, tokenizer, texts) == [predict(model, tokenizer, [text])[0] for text in texts]


def test_padding_within_the_embeddings_stays(tmp_path):
    tokenizer = load(save_llama(tmp_path))
    assert (tokenizer.pad_token, padding_id(tokenizer, 32)) == ("<pad>", 0)


# --- new tokens -------------------------------------------------------------------------------------------------------


def test_new_tokens_are_single_tokens_behind_the_others_and_known_ones_stay(tmp_path):
    tokenizer = load(save_llama(tmp_path), new_tokens=["<a>", "plus", "<b>"])
    assert tokenizer("what<a>is plus <b>")["input_ids"] == [
        4,
        len(WORDS) + 4,
        5,
        4 + WORDS.index("plus"),
        len(WORDS) + 5,
    ]
    assert tokenizer.decode([len(WORDS) + 4], skip_special_tokens=True) == "<a>"


def test_a_token_that_is_named_twice_is_one_token(tmp_path):
    tokenizer = load(save_llama(tmp_path), new_tokens=["<a>", "<b>", "<a>"])
    assert new_token_ids(tokenizer, ["<a>", "<b>", "<a>"]) == [len(WORDS) + 4, len(WORDS) + 5]


@pytest.mark.parametrize("known", ["</s>", "what"])
def test_a_token_that_is_known_adds_nothing(tmp_path, known):
    assert len(load(save_llama(tmp_path), new_tokens=[known])) == len(WORDS) + 4


def test_a_piece_that_no_text_is_read_as_is_refused(tmp_path):
    """Whole words of this tokenizer end at a sign: "what?" stands in its vocabulary and is never read."""
    save_llama(tmp_path)
    save_words(tmp_path, (*WORDS, "what?"))
    with pytest.raises(InputError, match=r"does not read 'what\?' as one token"):
        load(tmp_path, new_tokens=["what?"])
