"""Targets that an adapter could not change the loss through are known before a pass or a training over them."""

import pytest
import torch
from torch import nn

from gora.errors import InputError
from gora.gradients.reach import without_effect


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
            without_effect(model, targets, lambda: model.loss(inputs))
    else:
        found = without_effect(model, targets, lambda: model.loss(inputs))
        assert list(found) == passed_by
        assert all("without calling them" in reason for reason in found.values())
    assert all(not value.requires_grad and value.grad is None for value in model.parameters())


class Scaled(nn.Linear):
    def forward(self, inputs, scale=1.0):
        return super().forward(inputs) * scale


class Squashed(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs).tanh()


class Renamed(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs)


@pytest.mark.parametrize(
    ("kind", "settings", "is_odd"),
    [(Scaled, {"scale": 0.5}, True), (Scaled, {}, False), (Squashed, {}, True), (Renamed, {}, False)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("by_name", [False, True])
def test_a_layer_of_a_class_of_its_own_is_odd_where_it_does_more_than_multiply(kind, settings, is_odd, dtype, by_name):
    torch.manual_seed(0)
    layer = kind(8, 8).to(dtype)
    model, inputs = nn.ModuleDict({"layer": layer}).requires_grad_(False), torch.randn(3, 8, dtype=dtype) * 3

    def loss():
        answer = layer(inputs=inputs, **settings) if by_name else layer(inputs, **settings)
        return answer.float().square().mean()

    found = without_effect(model, {"layer": layer}, loss)
    assert found == ({"layer": "they compute more than the product with their weight"} if is_odd else {})


def test_a_model_that_writes_into_what_a_layer_has_read_is_refused_in_one_line():
    layer = nn.Linear(4, 4)
    model, table = nn.ModuleDict({"layer": layer}).requires_grad_(False), torch.randn(3, 4, requires_grad=True)

    def loss():
        inputs = table * 1
        answer = layer(inputs)
        inputs.add_(1)
        return (answer + inputs).square().mean()

    with pytest.raises(InputError, match=r"no gradients can be taken of this model \(RuntimeError: .*inplace"):
        without_effect(model, {"layer": layer}, loss)
