"""What is adapted is what was asked for, also of models that write into a layer's output."""

import pytest
import torch
import transformers as tf

from gora.gradients.attach import Attachment
from gora.gradients.checkpoint import NoCheckpoint
from gora.gradients.collect import Collection, Pace
from gora.gradients.sums import DeviceSums
from gora.methods.base import differences
from gora.models.targets import find_targets, weight_shape

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}


def test_differences_are_told_both_ways():
    assert differences(["a", "b"], ["b", "c"]) == ["1 asked for and not adapted: a", "1 adapted and not asked for: c"]
    assert differences(["a"], ["a"]) == []


def falcon(**more):
    sizes = {**SIZES, "num_kv_heads": 1, "alibi": False, "bias": False, **more}
    return tf.FalconForCausalLM(tf.FalconConfig(**sizes))


@pytest.mark.parametrize(
    "more", [{"parallel_attn": True}, {"parallel_attn": False}, {"new_decoder_architecture": True}]
)
def test_a_model_that_adds_to_a_layer_s_output_in_place_has_autograd_s_gradients(more):
    torch.manual_seed(0)
    model = falcon(**more).eval()
    targets = find_targets(model, "all-linear")
    ids = torch.randint(4, 64, (2, 7))

    def loss(batch):
        return model(input_ids=batch, labels=batch, use_cache=False).loss

    loss(ids).backward()
    expected = {name: layer.weight.grad.clone() for name, layer in targets.items()}
    model.zero_grad(set_to_none=True)
    sums = DeviceSums({name: weight_shape(layer) for name, layer in targets.items()}, torch.device("cpu"))
    collection = Collection(
        attachment=Attachment(model, targets),
        sums=sums,
        batch_of=lambda index: ids,
        loss_of=loss,
        pace=Pace.alone(1),
        checkpoint=NoCheckpoint(),
    )
    assert collection.run().counted == 1
    for name, gradient in expected.items():
        assert torch.allclose(sums.read(name), gradient, atol=1e-7), name
