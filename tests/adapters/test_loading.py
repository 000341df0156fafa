"""An adapter that is loaded holds the values of its file, or is refused."""

import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model

from gora.adapters.load import load_adapter
from gora.errors import InputError
from scripts.families.small import small_config


def laguna():
    torch.manual_seed(0)
    return tf.LagunaForCausalLM(small_config("laguna"))


def saved(folder, target):
    wrapped = get_peft_model(laguna(), LoraConfig(r=2, target_modules=[target], init_lora_weights=False))
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_" in name:
                value += 1
    wrapped.save_pretrained(folder)
    return wrapped


def test_values_that_peft_renames_and_loses_are_refused_by_name(tmp_path):
    saved(tmp_path, "shared_experts.up_proj")
    with pytest.raises(InputError, match="not loaded by PEFT as it was saved") as refused:
        load_adapter(laguna(), tmp_path)
    assert "shared_experts.up_proj.lora_" in refused.value.problems[0]


def test_values_that_it_loads_are_those_of_the_file(tmp_path):
    trained = dict(saved(tmp_path, "q_proj").named_parameters())
    loaded = dict(load_adapter(laguna(), tmp_path).named_parameters())
    assert all(torch.equal(loaded[name], value) for name, value in trained.items() if "lora_" in name)


def test_the_adapter_of_a_model_without_a_table_of_tokens_loads(tmp_path):
    def canine():
        torch.manual_seed(0)
        return tf.CanineForSequenceClassification(small_config("canine"))

    get_peft_model(canine(), LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")).save_pretrained(tmp_path)
    assert any(".query.lora_A." in name for name, _ in load_adapter(canine(), tmp_path).named_parameters())
