"""The commands that are printed for what was written name the base, the folder and a rank that holds the greatest."""

import shlex

import pytest
from peft import LoraConfig, get_peft_model

from gora.adapters.serving import adapter_commands, model_commands


def save(model, folder, **settings):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **settings)
    wrapped = get_peft_model(model, config)
    for name, value in wrapped.named_parameters():
        if "lora_B" in name:
            value.data.fill_(1.0)
    wrapped.peft_config["default"].base_model_name_or_path = "my base"
    wrapped.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize(("greatest", "served"), [(4, "8"), (16, "16"), (17, "32"), (129, "256")])
def test_the_rank_that_vllm_keeps_room_for_holds_the_greatest(llama, tmp_path, greatest, served):
    vllm, export = adapter_commands(
        save(llama, tmp_path / "my run", rank_pattern={"layers.1.self_attn.q_proj": greatest})
    )
    typed = shlex.split(vllm, comments=True)
    assert typed[:3] == ["vllm", "serve", "my base"]
    assert typed[typed.index("--max-lora-rank") + 1] == served
    assert typed[-1] == f"gora={tmp_path / 'my run'}"
    assert shlex.split(export)[:4] == ["gora", "export", str(tmp_path / "my run"), "--for"]


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"rank_pattern": {"q_proj": 513}}])
def test_an_adapter_that_vllm_does_not_read_is_not_offered(llama, tmp_path, settings):
    assert adapter_commands(save(llama, tmp_path / "adapter", **settings)) == []


def test_a_merged_model_is_served_as_it_is(tmp_path):
    vllm, converted = model_commands(tmp_path / "my model")
    assert shlex.split(vllm) == ["vllm", "serve", str(tmp_path / "my model")]
    assert shlex.split(converted)[-1] == "my model.gguf"
