"""Small models with an adapter as GoRA leaves them: ranks from 1 to 4 times the reference, and layers without one."""

import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import TINY

TOKENS = [[5, 9, 200, 31, 7, 1033, 12, 90, 4, 77, 300, 8], [40, 41, 42, 43]]


_SIZES = {"vocab_size": 4096, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
_SIZES |= {"num_key_value_heads": 2, "pad_token_id": 0}
FAMILIES = {
    "llama": lambda width: tf.LlamaForCausalLM(tf.LlamaConfig(**_SIZES, hidden_size=width)),
    "qwen2": lambda width: tf.Qwen2ForCausalLM(tf.Qwen2Config(**_SIZES, hidden_size=width)),
    "qwen3": lambda width: tf.Qwen3ForCausalLM(tf.Qwen3Config(**_SIZES, hidden_size=width, head_dim=width // 2)),
    "gemma": lambda width: tf.GemmaForCausalLM(tf.GemmaConfig(**_SIZES, hidden_size=width, head_dim=width // 2)),
}


def adapted_llama(folder, width=64, family="llama", **settings):
    """Write `base` and `adapter`; the folder, and PEFT's log-probabilities with and without the adapter.

    Args:
        folder: where.
        width: of the hidden layers.
        family: one of `FAMILIES`.
        settings: more of PEFT's configuration.
    """
    torch.manual_seed(0)
    model = FAMILIES[family](width).eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() > 1:
                value.mul_(3)
            else:
                # As they begin, norms are all ones and biases all zeros: one taken for the other would not show.
                value.add_(torch.randn_like(value) * 0.1)
    model.save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder / "base")
    kinds = [f"self_attn.{kind}_proj" for kind in "qkvo"] + ["mlp.up_proj", "mlp.down_proj"]
    names = [f"model.layers.{block}.{kind}" for block in range(3) for kind in kinds]
    ranks = {name: (0, 4, 1, 16, 8, 3, 4)[number % 7] for number, name in enumerate(names)}
    config = LoraConfig(
        r=4,
        lora_alpha=16 * 4**0.5,
        target_modules=[name for name, rank in ranks.items() if rank],
        rank_pattern={name: rank for name, rank in ranks.items() if rank not in (0, 4)},
        alpha_pattern={name: 16 * rank**0.5 for name, rank in ranks.items() if rank not in (0, 4)},
        **settings,
    )
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), config)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.02)
            elif "magnitude" in name:
                value.mul_(torch.rand_like(value) + 0.5)
    wrapped.save_pretrained(str(folder / "adapter"))
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), str(folder / "adapter"))
    return folder, log_probabilities(adapted.eval()), log_probabilities(model.eval())


def log_probabilities(model):
    """Float64, (tokens, vocabulary) of each row of `TOKENS`."""
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row])).logits[0].double().log_softmax(-1) for row in TOKENS]
