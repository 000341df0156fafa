"""An adapter with one rank and scale 1 computes what the one with many ranks and scales does."""

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model

from gora.adapters.forms import write_uniform
from gora.errors import InputError


def adapted(model, **settings):
    config = LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], **settings)
    wrapped = get_peft_model(model, config)
    torch.manual_seed(1)
    for name, value in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value)
    return wrapped.eval()


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 16},
        {"r": 4, "lora_alpha": 16, "use_rslora": True},
        {
            "r": 4,
            "lora_alpha": 16,
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, "layers.1.mlp.down_proj": 11},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 5, "layers.1.self_attn.v_proj": 3},
        },
        {"r": 4, "lora_alpha": 8, "use_rslora": True, "rank_pattern": {"down_proj": 9}, "alpha_pattern": {"v_proj": 1}},
    ],
)
def test_logits_are_the_same(llama, tmp_path, settings):
    tokens = torch.arange(2, 40).view(2, 19)
    wrapped = adapted(llama, **settings)
    with torch.no_grad():
        expected = wrapped(input_ids=tokens).logits
    wrapped.save_pretrained(str(tmp_path / "adapter"))
    rank = write_uniform(tmp_path / "adapter", tmp_path / "uniform")
    assert rank == (16 if max([4, *settings.get("rank_pattern", {}).values()]) > 8 else 8)
    config = PeftConfig.from_pretrained(str(tmp_path / "uniform"))
    assert config.r == config.lora_alpha == rank
    assert not (config.rank_pattern or config.alpha_pattern or config.use_rslora)
    again = PeftModel.from_pretrained(wrapped.unload(), str(tmp_path / "uniform")).eval()
    with torch.no_grad():
        assert torch.allclose(again(input_ids=tokens).logits, expected, atol=1e-5, rtol=1e-5)


def test_a_rank_that_no_runtime_takes_is_refused(llama, tmp_path):
    adapted(llama, r=513).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(InputError, match="513"):
        write_uniform(tmp_path / "adapter", tmp_path / "uniform")
