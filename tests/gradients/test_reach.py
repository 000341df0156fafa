"""Targets that the loss does not depend on are refused before a pass or a training over them."""

import pytest
import torch
from torch import nn

from gora.errors import InputError
from gora.gradients.reach import find_passed_by


class Model(nn.Module):
    """One layer that counts, one whose output is multiplied by zero, one passed by and one that nobody uses."""

    def __init__(self):
        super().__init__()
        self.used, self.ignored, self.passed, self.idle = (nn.Linear(4, 4) for _ in range(4))

    def loss(self, inputs):
        through = self.used(inputs) + 0 * self.ignored(inputs)
        return nn.functional.linear(through, self.passed.weight).square().mean()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model().requires_grad_(False)


@pytest.mark.parametrize(
    ("names", "passed_by"),
    [
        (["used"], []),
        (["passed"], ["passed"]),
        (["idle", "ignored", "used"], []),
        (["used", "idle", "passed"], ["passed"]),
        (["ignored"], None),
        (["idle"], None),
        (["idle", "ignored"], None),
    ],
)
def test_targets_are_refused_where_none_has_a_gradient_and_told_where_they_are_passed_by(model, names, passed_by):
    targets = {name: model.get_submodule(name) for name in names}
    inputs = torch.randn(3, 4)
    if passed_by is None:
        with pytest.raises(InputError, match=rf"does not depend on any of these {len(names)} layers \({names[0]}"):
            find_passed_by(model, targets, lambda: model.loss(inputs))
    else:
        assert find_passed_by(model, targets, lambda: model.loss(inputs)) == passed_by
    assert all(not value.requires_grad and value.grad is None for value in model.parameters())
