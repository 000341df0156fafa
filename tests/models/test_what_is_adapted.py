"""What is adapted is what was asked for: mixtures, towers, and models that write into a layer's output."""

import pytest
import torch
import transformers as tf

from gora.errors import InputError
from gora.gradients.attach import Attachment
from gora.gradients.checkpoint import NoCheckpoint
from gora.gradients.collect import Collection, Pace
from gora.gradients.sums import DeviceSums
from gora.methods.dry_run import differences, refuse_what_peft_changes
from gora.models.targets import expert_share, find_targets, towers, weight_shape

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}
TEXT = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 128}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16}


def mixture(**more):
    return tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**{**TEXT, **EXPERTS, **more}))


def with_vision():
    text = {**TEXT, "head_dim": 16, "sliding_window": 64}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = tf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return tf.Gemma3ForConditionalGeneration(config)


def on_meta(make):
    with torch.device("meta"):
        return make()


@pytest.mark.parametrize("targets", ["attention", "all-linear"])
def test_text_recipes_adapt_the_language_model_only_and_name_what_is_left_out(targets):
    model = on_meta(with_vision)
    chosen = find_targets(model, targets)
    assert chosen
    assert all(name.startswith("model.language_model.") for name in chosen)
    assert towers(model)["model.vision_tower"] >= 12
    assert towers(on_meta(lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT)))) == {}


def test_the_share_of_weights_that_lies_in_fused_experts_is_told():
    model = mixture()
    fused = sum(value.numel() for name, value in model.named_parameters() if ".experts." in name)
    assert expert_share(model) == pytest.approx(fused / sum(value.numel() for value in model.parameters()))
    assert expert_share(tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT))) == 0


def test_names_that_peft_redirects_to_experts_are_refused_before_anything_is_loaded():
    model = on_meta(lambda: mixture(mlp_only_layers=[0]))
    targets = find_targets(model, ["q_proj", "down_proj"])
    assert [name for name in targets if "down_proj" in name] == ["model.layers.0.mlp.down_proj"]
    with pytest.raises(InputError, match=r"PEFT (would adapt other|cannot adapt these) layers"):
        refuse_what_peft_changes(model, targets)


@pytest.mark.parametrize("targets", ["attention", "all-linear"])
def test_ordinary_models_pass_the_dry_run(targets):
    for make in (
        lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT)),
        lambda: tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2)),
        with_vision,
    ):
        model = on_meta(make)
        refuse_what_peft_changes(model, find_targets(model, targets))


def test_what_peft_refuses_is_one_line():
    model = on_meta(lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT)))
    with pytest.raises(InputError, match="PEFT cannot adapt these layers of this model: "):
        refuse_what_peft_changes(model, ["model.layers.0.input_layernorm"])


def test_differences_are_told_both_ways():
    assert differences(["a", "b"], ["b", "c"]) == ["1 asked for and not adapted: a", "1 adapted and not asked for: c"]
    assert differences(["a"], ["a"]) == []


def falcon(**more):
    sizes = {**SIZES, "num_kv_heads": 1, "alibi": False, "bias": False, **more}
    return tf.FalconForCausalLM(tf.FalconConfig(**sizes))


@pytest.mark.parametrize(
    "more", [{"parallel_attn": True}, {"parallel_attn": False}, {"new_decoder_architecture": True}]
)
def test_a_model_that_adds_to_a_layer_s_output_in_place_has_autograd_s_gradients(more):
    torch.manual_seed(0)
    model = falcon(**more).eval()
    targets = find_targets(model, "all-linear")
    ids = torch.randint(4, 64, (2, 7))

    def loss(batch):
        return model(input_ids=batch, labels=batch, use_cache=False).loss

    loss(ids).backward()
    expected = {name: layer.weight.grad.clone() for name, layer in targets.items()}
    model.zero_grad(set_to_none=True)
    sums = DeviceSums({name: weight_shape(layer) for name, layer in targets.items()}, torch.device("cpu"))
    collection = Collection(
        attachment=Attachment(model, targets),
        sums=sums,
        batch_of=lambda index: ids,
        loss_of=loss,
        pace=Pace.alone(1),
        checkpoint=NoCheckpoint(),
    )
    assert collection.run().counted == 1
    for name, gradient in expected.items():
        assert torch.allclose(sums.read(name), gradient, atol=1e-7), name
