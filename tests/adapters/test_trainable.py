"""What is refused before rows are read."""

import pytest
import torch

from gora.adapters.trainable import refuse_mixed_types
from gora.errors import InputError
from gora.recipe.schema import AdapterSection, DataSection, ModelSection, Recipe, SourceSection


def test_weights_trained_in_float32_beside_bfloat16_ones_are_refused_where_nothing_brings_them_together():
    data = DataSection(train=SourceSection(path="rows.jsonl"))
    full = Recipe(model=ModelSection(name="x"), data=data, adapter=AdapterSection(method="full"))
    with pytest.raises(
        InputError, match=r"full trains weights in float32.*Give model\.dtype: float32, or train\.precis"
    ):
        refuse_mixed_types(full, "fp32", torch.bfloat16)
    lora = full.model_copy(update={"adapter": AdapterSection(method="lora")})
    for recipe, precision, dtype in (
        (full, "bf16", torch.bfloat16),
        (full, "fp32", torch.float32),
        (lora, "fp32", torch.bfloat16),
    ):
        refuse_mixed_types(recipe, precision, dtype)
