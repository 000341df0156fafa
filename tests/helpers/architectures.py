"""The paper's four architectures as empty models: shapes without weights."""

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)


def t5_base():
    config = T5Config(
        vocab_size=32128, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_decoder_layers=12, num_heads=12
    )
    return _empty(T5ForConditionalGeneration, config)


def llama_3_1_8b():
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    return _empty(LlamaForCausalLM, config)


def llama_2_7b():
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        tie_word_embeddings=False,
    )
    return _empty(LlamaForCausalLM, config)


def clip_vit_b_16():
    vision = CLIPVisionConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, patch_size=16
    )
    text = CLIPTextConfig(hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=512)
    return _empty(CLIPModel, config)


BY_HUB_ID = {
    "google-t5/t5-base": t5_base,
    "meta-llama/Llama-3.1-8B": llama_3_1_8b,
    "meta-llama/Llama-2-7b-hf": llama_2_7b,
    "openai/clip-vit-base-patch16": clip_vit_b_16,
}


def _empty(family, config):
    with torch.device("meta"):
        return family(config)
