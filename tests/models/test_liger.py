"""Liger's kernels are left out, and nothing of them stays, where they do not know a model, fail or compute otherwise.

The package needs a GPU: a stand-in patches as it does, on instances of modules and in the code of the model.
"""

import sys
from contextlib import nullcontext
from types import MethodType, ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama import modeling_llama

from gora.errors import InputError
from gora.models import kernels
from gora.models.kernels import use_kernels
from gora.models.liger import use_liger

ROWS = [[5, 9, 3, 44, 20, 7], [60, 2, 2, 8]]
ROTARY = modeling_llama.apply_rotary_pos_emb


@pytest.fixture
def model():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return AutoModelForCausalLM.from_config(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))


@pytest.fixture
def liger(monkeypatch):
    """Install a stand-in that knows these models, multiplies what norms give, and may fail when it has patched."""

    def install(*, known=("llama",), factor=1.0, fails=False):
        def scaled(module, hidden):
            return factor * type(module).forward(module, hidden)

        def apply(model, *, cross_entropy, fused_linear_cross_entropy):
            assert not cross_entropy
            assert not fused_linear_cross_entropy
            modeling_llama.apply_rotary_pos_emb = lambda *each, **more: ROTARY(*each, **more)
            for module in model.modules():
                if isinstance(module, modeling_llama.LlamaRMSNorm):
                    module.forward = MethodType(scaled, module)
            if fails:
                raise TypeError("an argument that this version of transformers does not have")

        patch = ModuleType("liger_kernel.transformers.monkey_patch")
        patch.MODEL_TYPE_TO_APPLY_LIGER_FN = dict.fromkeys(known)
        patch._apply_liger_kernel_to_instance = apply
        for name in ("liger_kernel", "liger_kernel.transformers"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setitem(sys.modules, patch.__name__, patch)
        monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", ROTARY)
        monkeypatch.setattr(kernels, "_why_not_liger", lambda device: "")

    return install


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ROWS[0]])).logits


def patched(model):
    return [module for module in model.modules() if "forward" in vars(module)]


def test_kernels_that_compute_the_same_stay(model, liger):
    liger()
    assert use_liger(model, ROWS, nullcontext()) == ""
    assert len(patched(model)) == 5
    assert modeling_llama.apply_rotary_pos_emb is not ROTARY


@pytest.mark.parametrize(
    ("stand_in", "reason"),
    [
        ({"known": ("gemma",)}, "Liger does not know llama"),
        ({"fails": True}, "Liger fails (TypeError)"),
        ({"factor": 1.5}, "its logits are others with Liger"),
    ],
    ids=["unknown", "failing", "computing otherwise"],
)
def test_kernels_that_cannot_be_used_leave_the_model_as_it_was_and_the_log_says_why(model, liger, stand_in, reason):
    liger(**stand_in)
    own = model.model.norm.forward = MethodType(
        lambda module, hidden: 2 * type(module).forward(module, hidden), model.model.norm
    )
    before = logits(model)
    model.train()
    assert f"kernels   without Liger: {reason}" in use_kernels(model, "auto", ROWS, nullcontext())
    assert model.training
    assert model.model.norm.forward == own
    assert patched(model.model) == [model.model.norm]
    assert modeling_llama.apply_rotary_pos_emb is ROTARY
    assert torch.equal(logits(model.eval()), before)
    with pytest.raises(InputError, match=r"train\.kernels: liger cannot be used"):
        use_kernels(model, "liger", ROWS, nullcontext())
