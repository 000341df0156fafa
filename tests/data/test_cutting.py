"""Long texts are cut before they are tokenised: the example that is made of what is left must be the same."""

import json
import multiprocessing
import random
import resource
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gora.assets import resolve
from gora.data import Encoder, LabelledText, Segment, TextEncoder, prepare
from gora.recipe.schema import DataSection, SourceSection

TINY = resolve("builtin:tiny-6m", "models")
WORDS = [
    *("the", "a", "of", "12", "4,096", "3.14", "don't", "Straße", "naïve", "e\u0301", "\ufb01ne", "数学", "は"),
    *("\U0001f600\U0001f469\u200d\U0001f467", "<s>", "</s>", "foo()", "x==y;", "----", "________", "[MASK]", "\u200b"),
    *("\n", "\n\n", "  ", "\t", "\u3000", "\r\n"),
]
LENGTH = 24


def texts(count, size, seed):
    """Texts of words and spaces, some without any space, some of one character or of digits only."""
    draw = random.Random(seed)
    for number in range(count):
        joint = draw.choice([" ", "", " ", "\n", "_"])
        yield {
            0: "a" * size,
            1: "".join(draw.choices("0123456789", k=size)),
            2: " " * size,
            3: "数学は" * (size // 3),
            4: "ab" * (size // 2),
        }.get(number, joint.join(draw.choices(WORDS, k=size // 3)))


def corpus():
    return list(texts(20, 600, 1))


def fast(tokenizer, **special):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def whole_text_bpe():
    """As Llama 2's: no words, merges over the whole text, bytes for what it does not know."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False, max_token_length=12)
    tokenizer.train_from_iterator([text[:200] for text in corpus()], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return fast(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram():
    """As T5's: the best segmentation of a text, which may depend on all of it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return fast(tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def wordpiece():
    """As BERT's: a word of more than a hundred characters is one unknown token."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return fast(tokenizer, eos_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]")


def digits_from_the_end():
    """Digits in threes from the end of a number, so that its start depends on how long it is."""
    tokenizer = Tokenizer.from_file(f"{TINY}/tokenizer.json")
    split = pre_tokenizers.Split(Regex(r"\d{1,3}(?=(\d{3})*\b)"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return fast(tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


TOKENIZERS = {
    "byte-level": lambda: AutoTokenizer.from_pretrained(TINY),
    "whole-text": whole_text_bpe,
    "unigram": unigram,
    "wordpiece": wordpiece,
    "digits": digits_from_the_end,
}


@pytest.fixture(scope="module", params=TOKENIZERS, ids=str)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def characters(segments):
    return sum(len(segment.text) for segment in segments)


@pytest.mark.parametrize("encoder_decoder", [False, True])
def test_a_cut_row_makes_the_same_example(tokenizer, encoder_decoder):
    encoder = Encoder(tokenizer, LENGTH, "truncate", encoder_decoder=encoder_decoder)
    cut = 0
    for number, text in enumerate(texts(9, 4000, 2)):
        short = "Why? " * (number % 4)
        for segments in (
            [Segment(text, True)],
            [Segment(short or "x", False), Segment(text, True)],
            [Segment(text, False), Segment("Because.", True)],
            [Segment(short or "x", False), Segment(text, True, ((3, 9), (40, 60), (3000, 3500)))],
        ):
            if encoder_decoder and len(segments) == 1:
                continue
            left = encoder.shortened(segments)
            assert list(encoder([left])) == list(encoder([segments]))
            cut += characters(left) < characters(segments) / 2
    assert cut > 8


def test_a_row_of_many_segments_is_cut_between_them(tokenizer):
    encoder = Encoder(tokenizer, LENGTH, "truncate", encoder_decoder=False)
    segments = [Segment(f"turn {number} of many. ", number % 2 == 1) for number in range(2000)]
    left = encoder.shortened(segments)
    assert len(left) < 1000
    assert left == segments[: len(left)]
    assert list(encoder([left])) == list(encoder([segments]))
    few = segments[:4]
    assert encoder.shortened(few) == few


@pytest.mark.parametrize(("side", "even"), [("right", 0), ("right", 1), ("left", 0)])
def test_texts_of_a_classifier_are_cut_to_the_same_tokens(side, even):
    bert = wordpiece()
    bert.truncation_side = side
    # Of an odd number of tokens, two texts get one more for the longer of them.
    encoder = TextEncoder(bert, LENGTH + even)
    cut = 0
    for text in texts(8, 2500, 3):
        for row in (LabelledText(text, None, 1), LabelledText("short", text, 0), LabelledText(text, text[::-1], 1)):
            left = encoder.shortened(row)
            assert list(encoder([left])) == list(encoder([row]))
            cut += len(left.text) < len(row.text)
    assert (cut > 3) == (side == "right")


def test_of_an_odd_number_of_tokens_the_longer_of_two_texts_keeps_one_more():
    """What is left of the longer text, 2000 words, has fewer words than what is left of the other one."""
    row = LabelledText("the " * 2000, "a " * 1500, 0)
    for length in (LENGTH, LENGTH + 1):
        encoder = TextEncoder(wordpiece(), length)
        left = encoder.shortened(row)
        assert list(encoder([left])) == list(encoder([row]))
        assert (len(left.text) < len(row.text)) == (length > LENGTH)


def test_texts_that_are_long_and_have_few_tokens_stay_whole():
    bert = wordpiece()
    text = "x" * 50_000
    segments = [Segment("why", False), Segment(f"{text} yes", True)]
    encoder = Encoder(bert, LENGTH, "truncate", encoder_decoder=False)
    assert encoder.shortened(segments) == segments


def test_a_row_of_any_size_takes_a_few_times_its_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    size = 10_000_000
    with open(path, "w") as file:
        for text in ("short", "word " * (size // 5), "x" * size):
            file.write(json.dumps({"prompt": "big", "response": text}) + "\n")
    results = multiprocessing.get_context("fork").Queue()
    tokenizer = AutoTokenizer.from_pretrained(TINY)

    def measured():
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        data = DataSection(train=SourceSection(path=str(path)), max_length=64, cache=str(tmp_path / "cache"))
        counts = prepare(data, tokenizer, 0, encoder_decoder=False, say=print).counts.train
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        results.put((counts.used, counts.truncated, peak - before))

    process = multiprocessing.get_context("fork").Process(target=measured)
    process.start()
    used, truncated, grown = results.get()
    process.join()
    assert (used, truncated) == (3, 2)
    assert grown < 10 * size
