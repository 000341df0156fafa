"""What a vision model keeps for its backward pass, beside what autograd is seen to keep."""

import pytest
import torch

from gora.estimate.memory import Arithmetic, Batch, kept_of_block
from gora.estimate.vision_shapes import read_vision_shape
from gora.methods import METHODS, AdapterSettings, Wrapping
from gora.models.targets import find_targets
from tests.helpers.images import SIZE, make_model


def measured(model, images):
    """Bytes that autograd keeps of a forward pass beside parameters, each storage once."""
    own = {value.untyped_storage().data_ptr() for value in model.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(pixel_values=images)
    del output
    return sum(kept.values())


@pytest.mark.parametrize(
    ("kind", "blocks", "tokens"), [("vit", 2, [17, 17]), ("clip", 2, [17, 17]), ("swin", 2, [64, 16])]
)
def test_tokens_of_each_block_are_read_off_the_model(kind, blocks, tokens):
    with torch.device("meta"):
        model, _ = make_model(kind)
    targets = find_targets(model, "all-linear")
    shape = read_vision_shape(model, targets, (SIZE, SIZE))
    assert (len(shape.blocks), [block.tokens for block in shape.blocks]) == (blocks, tokens)
    assert set(shape.targets) == set(targets)
    assert sum(block.adapted for block in shape.blocks) in (len(targets), len(targets) - 1)


def test_convolutions_have_a_token_for_each_place_of_their_map():
    with torch.device("meta"):
        model, _ = make_model("convnext")
    shape = read_vision_shape(model, find_targets(model, "all-linear"), (SIZE, SIZE))
    assert [(block.hidden, block.tokens) for block in shape.blocks] == [(16, 64), (24, 16), (32, 4), (32, 1)]


@pytest.mark.parametrize("kind", ["vit", "swin", "convnext"])
def test_the_estimate_of_activations_is_near_what_autograd_keeps(kind):
    model, _ = make_model(kind)
    targets = find_targets(model, "all-linear")
    shape = read_vision_shape(model.to("meta"), targets, (SIZE, SIZE))
    model, _ = make_model(kind)
    targets = find_targets(model, "all-linear")
    model.requires_grad_(False)
    settings = AdapterSettings(rank=4, alpha=8, dropout=0.0, dora=False)
    wrapped = METHODS["lora"].wrap(model, Wrapping(targets=targets, settings=settings)).train()
    images = torch.randn(16, 3, SIZE, SIZE)
    batch, arithmetic = Batch(rows=16, length=1), Arithmetic(width=4, weight_width=4)
    expected = sum(kept_of_block(block, batch, arithmetic, rank=4) for block in shape.blocks)
    assert 0.6 < expected / measured(wrapped, images) < 1.4
