"""A loaded model's loss is that of the tokens it should predict, unseen; whatever computes another one is refused."""

import pytest
import torch
import transformers as tf

from gora.data import Collator, LabelCollator
from gora.errors import InputError
from gora.models.trial import rounding, row_to_try, try_out
from scripts.families.small import small_config

BERT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
TEXT = {"input_ids": [2, 5, 6, 7, 8, 3], "labels": [2, 5, 6, 7, 8, 3]}
CAUSAL, PAIRS, LABELS = Collator(0), Collator(0, encoder_decoder=True), LabelCollator(0)


def tried(model, row=TEXT, collator=CAUSAL):
    torch.manual_seed(0)
    model.eval()
    settings = {} if collator is LABELS else {"use_cache": False}
    batch = collator([row])
    return try_out(
        "small", model, lambda told: model(**told, **settings), batch, padding=0, tolerance=rounding(torch.float32)
    )


@pytest.fixture
def bart():
    torch.manual_seed(0)
    whole = tf.BartForConditionalGeneration(small_config("bart"))
    return {"decoder": tf.BartForCausalLM(small_config("bart")), "whole": whole}


def test_a_causal_model_is_tried_without_a_remark_and_left_as_it_was(llama):
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    llama.eval()
    batch = CAUSAL([TEXT])
    assert try_out("small", llama, lambda told: llama(**told), batch, padding=0, tolerance=1e-4) == []
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(module.training for module in llama.modules())
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())


def test_weights_that_are_not_finite_are_told_by_name_and_not_blamed_on_the_rows(llama):
    with torch.no_grad():
        llama.model.layers[0].self_attn.q_proj.weight[0, 0] = torch.inf
    with pytest.raises(InputError, match=r"1 of its weights hold NaN or infinity \(model.layers.0.self_attn.q_proj"):
        tried(llama)


def test_a_decoder_that_compares_each_token_with_itself_is_refused(bart):
    with pytest.raises(InputError, match=r"BartForCausalLM\) computes the loss of each token itself"):
        tried(bart["decoder"])


def test_the_encoder_decoder_that_it_comes_from_is_not(bart):
    assert tried(bart["whole"], {"input_ids": [2, 5, 6, 3], "labels": [7, 8, 9, 10, 3]}, PAIRS) == []


def test_a_model_that_reads_both_ways_is_refused_unless_it_is_made_a_decoder():
    torch.manual_seed(0)
    with pytest.raises(InputError, match="reads a text in both directions"):
        tried(tf.BertLMHeadModel(tf.BertConfig(**BERT)))
    assert tried(tf.BertLMHeadModel(tf.BertConfig(**BERT, is_decoder=True))) == []


@pytest.mark.parametrize("labels", [[7, 8, 9, 10, 3], [7, 8, 9, 3], [7, 3]])
def test_an_encoder_decoder_that_makes_no_inputs_of_its_labels_is_refused(labels):
    torch.manual_seed(0)
    model = tf.FSMTForConditionalGeneration(small_config("fsmt"))
    with pytest.raises(InputError, match="cannot compute the loss of a row of text"):
        tried(model, {"input_ids": [2, 5, 6, 3], "labels": labels}, PAIRS)


def test_what_fails_in_training_alone_is_refused():
    torch.manual_seed(0)
    with pytest.raises(InputError, match="axial_pos_shape"):
        tried(tf.ReformerModelWithLMHead(small_config("reformer")))


def test_a_loss_with_terms_of_its_own_is_told():
    torch.manual_seed(0)
    model = tf.ProphetNetForConditionalGeneration(small_config("prophetnet"))
    (remark,) = tried(model, {"input_ids": [2, 5, 6, 3], "labels": [7, 8, 9, 10, 3]}, PAIRS)
    assert "terms of its own" in remark


def test_a_classifier_that_reads_padding_is_told_of():
    torch.manual_seed(0)
    row = {"input_ids": [2, 5, 6, 7, 3], "labels": [1]}
    assert tried(tf.BertForSequenceClassification(tf.BertConfig(**BERT)), row, LABELS) == []
    (remark,) = tried(tf.XLNetForSequenceClassification(small_config("xlnet")), row, LABELS)
    assert remark.startswith("Padding changes the answers")


def test_a_model_that_returns_no_logits_is_not_compared(llama):
    llama.register_forward_hook(lambda module, inputs, output: output.__setitem__("logits", None) or output)
    assert tried(llama) == []


def test_the_shortest_row_that_tells_something_is_tried():
    assert row_to_try([9, 2, 5, 30]) == 2
    assert row_to_try([3, 2, 1]) == 0
    assert row_to_try([4]) == 0
