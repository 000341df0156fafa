"""Folding a large weight in blocks of rows: every bit is that of PEFT's merge."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from gora.adapters.fold import folded, folded_pieces


class Wide(nn.Module):
    """One layer of 2.8 MB in float32."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(700, 1000, bias=False)

    def forward(self, x):
        return self.layer(x)


def wrapped(dtype, **settings):
    torch.manual_seed(0)
    model = get_peft_model(Wide().to(dtype), LoraConfig(r=23, lora_alpha=11, target_modules=["layer"], **settings))
    nn.init.normal_(model.base_model.model.layer.lora_B["default"].weight, std=0.1)
    return model


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_blocks_of_rows_are_those_of_peft_s_merge(settings):
    model = wrapped(torch.float32, **settings)
    layer = model.base_model.model.layer
    weight = layer.weight.detach().clone()
    found = torch.cat([piece.clone() for piece in folded_pieces(layer, weight)])
    assert torch.equal(weight, layer.weight)
    assert torch.equal(found, model.merge_and_unload().layer.weight)


def test_a_bfloat16_weight_is_added_to_in_float32():
    layer = wrapped(torch.bfloat16).base_model.model.layer
    pieces = [piece.clone() for piece in folded_pieces(layer, layer.weight)]
    assert len(pieces) > 1
    assert {piece.dtype for piece in pieces} == {torch.float32}
    assert torch.equal(torch.cat(pieces), folded(layer, layer.weight))


def test_memory_is_kept_from_one_weight_to_the_next():
    layer = wrapped(torch.float32).base_model.model.layer
    places = {next(iter(folded_pieces(layer, layer.weight))).untyped_storage().data_ptr() for _ in range(3)}
    assert len(places) == 1


def test_who_does_not_take_all_blocks_keeps_gradients():
    layer = wrapped(torch.float32).base_model.model.layer
    blocks = folded_pieces(layer, layer.weight)
    assert next(blocks).shape[0] < 1000
    assert torch.is_grad_enabled()
